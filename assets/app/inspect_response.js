// Figures of the Inspect page along the response: attention by segment, and norms.

const SEGMENT_COLOURS = (c) => ({
  image: "#b0416f",
  question: "#8a93a0",
  latents: c.latent,
  text: colour("--ins-words"),
  markers: c.grid,
});
const along = (of) => of.map((n, i) => `${i}`),
  tickText = (of) => of.map((n) => (isLatent(n) ? String(items()[n].i + 1) : wordOf(n)));
function alongAxis(of, c) {
  const every = Math.ceil(of.length / Math.min(48, element.offsetWidth / 22));
  const shown = of.map((_, i) => i).filter((i) => i % every === 0);
  return {
    type: "category",
    tickmode: "array",
    tickvals: shown.map(String),
    ticktext: shown.map((i) => tickText(of)[i]),
    tickangle: -50,
    tickfont: { size: 11, color: c.soft },
    fixedrange: true,
    showgrid: false,
  };
}
function ringAt(of, c, height) {
  const i = of.indexOf(state.selected);
  return i < 0
    ? []
    : [
        {
          type: "rect",
          x0: i - 0.5,
          x1: i + 0.5,
          y0: 0,
          y1: height,
          yref: height === 1 ? "paper" : "y",
          line: { color: c.text, width: 2 },
        },
      ];
}
function buildShares(c) {
  const s = state.value.shares;
  if (!s) return null;
  const e = s.layers.indexOf(state.layer) < 0 ? s.layers.length - 1 : s.layers.indexOf(state.layer),
    colours = SEGMENT_COLOURS(c);
  return {
    data: s.segments.map((name, i) => ({
      type: "bar",
      name,
      x: along(s.of),
      y: s.shares.map((layers) => layers[e][i]),
      customdata: s.of,
      marker: { color: colours[name], line: { width: 0 } },
      hovertext: s.of.map((n) => called(n)),
      hovertemplate: `%{hovertext}: %{y:.0%} on ${name}<extra></extra>`,
    })),
    layout: {
      barmode: "stack",
      bargap: 0.08,
      xaxis: alongAxis(s.of, c),
      yaxis: { tickformat: ".0%", range: [0, 1], fixedrange: true },
      shapes: ringAt(s.of, c, 1),
      margin: { l: 48, r: 8, t: 8, b: 64 },
    },
    rows: [
      ["step", "text", "layer", ...s.segments, "entropy"],
      ...s.of.flatMap((n, q) =>
        s.layers.map((layer, i) => [
          n,
          isLatent(n) ? called(n) : wordOf(n),
          layer + 1,
          ...s.shares[q][i],
          s.entropy[q][i],
        ]),
      ),
    ],
    label: `Layer ${s.layers[e] + 1} of the decoder, mean of the heads, ${s.of.length} positions.`,
  };
}
function buildNorms(c) {
  const names = Object.keys(state.value.norms),
    name = names[state.norm] ?? names[0];
  if (!name) return null;
  const of = state.value.of,
    values = state.value.norms[name];
  return {
    data: [
      {
        type: "scatter",
        mode: "markers",
        x: along(of),
        y: values,
        customdata: of,
        hovertext: of.map((n) => called(n)),
        hovertemplate: "%{hovertext}: %{y:.2f}×<extra></extra>",
        marker: {
          size: 9,
          color: of.map((n) => (isLatent(n) ? c.latent : c.soft)),
          symbol: of.map((n) => (isLatent(n) ? SYMBOLS[items()[n].b % 4] : "circle-open")),
        },
      },
    ],
    layout: {
      xaxis: alongAxis(of, c),
      yaxis: { rangemode: "tozero", ticksuffix: "×", fixedrange: true },
      shapes: [
        { type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: { color: c.soft, dash: "dot", width: 1 } },
        ...ringAt(of, c, 1),
      ],
      margin: { l: 48, r: 8, t: 8, b: 64 },
    },
    rows: [
      ["step", "text", ...names],
      ...of.map((n, q) => [n, isLatent(n) ? called(n) : wordOf(n), ...names.map((key) => state.value.norms[key][q])]),
    ],
    label: `Norms over the ${name}.`,
  };
}
