// Figures of the Inspect page: what each draws of the run in `state`, the selected word or latent marked.
const state = {
  value: null,
  selected: -1,
  map: "pca",
  axes: 2,
  scaled: true,
  patches: true,
  words: true,
  bank: true,
  block: 0,
  layer: null,
  norm: 0,
  images: [],
};
const items = () => state.value?.view?.items ?? [];
const isLatent = (n) => items()[n]?.k === "latent";
const wordOf = (n) => (items()[n]?.t ?? "").trim();
const called = (n) =>
  isLatent(n) ? `latent ${items()[n].i + 1} of block ${items()[n].b + 1}` : `word “${wordOf(n)}”`;
const rowOf = (n) => state.value.of.indexOf(n);
const SYMBOLS = ["circle", "square", "diamond", "cross"],
  DASHES = ["solid", "dash", "dot", "dashdot"];

function ints(text, axes) {
  const flat = new Int16Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  return Array.from({ length: flat.length / axes }, (_, i) => flat.subarray(i * axes, (i + 1) * axes));
}
function places(layout, name) {
  if (!layout[name]) return [];
  return ints(layout[name], layout.axes.length).map((row) =>
    Array.from(row, (v, a) => layout.middle[a] + v * layout.unit),
  );
}
function layoutNow() {
  const { layouts } = state.value.space,
    kind = state.scaled ? "unit" : "raw";
  const key = state.map === "umap" ? `umap${state.axes}.${kind}` : `pca.${kind}`;
  return layouts.find((layout) => layout.key === key);
}

// ---- trajectories
function patchPicture(cell) {
  const grids = state.value.view.grids;
  let image = 0;
  while (cell >= grids[image][0] * grids[image][1]) {
    cell -= grids[image][0] * grids[image][1];
    image += 1;
  }
  const [rows, columns] = grids[image],
    picture = state.images[image],
    canvas = make("canvas", {});
  if (!picture?.naturalWidth) return null;
  canvas.width = canvas.height = 24;
  const w = picture.naturalWidth / columns,
    h = picture.naturalHeight / rows;
  canvas.getContext("2d").drawImage(picture, (cell % columns) * w, Math.floor(cell / columns) * h, w, h, 0, 0, 24, 24);
  return canvas;
}
function buildSpace(c) {
  const layout = layoutNow();
  if (!layout) return null;
  const flat = state.axes === 2 || layout.axes.length < 3,
    type = flat ? "scatter" : "scatter3d";
  const points = places(layout, "items"),
    patches = places(layout, "patches"),
    bank = state.bank ? places(layout, "bank") : [];
  const xyz = (rows) => ({
    x: rows.map((p) => p[0]),
    y: rows.map((p) => p[1]),
    ...(flat ? {} : { z: rows.map((p) => p[2]) }),
  });
  const data = [],
    size = (a, b) => (flat ? a : b);
  const { kinds, labels } = state.value.space;
  for (const [kind, tint, opacity] of [
    ["patch", "#b0416f", 0.28],
    ["word", c.soft, 0.35],
    ["latent", c.latent, 0.22],
  ]) {
    const rows = bank.map((p, i) => [p, i]).filter(([, i]) => kinds[i] === kind);
    if (rows.length)
      data.push({
        type,
        mode: "markers",
        ...xyz(rows.map(([p]) => p)),
        text: rows.map(([, i]) => `${kind} of the bank: ${labels[i]}`),
        hoverinfo: "text",
        marker: { size: size(4, 2), color: tint, opacity },
      });
  }
  if (state.patches)
    data.push({
      type,
      mode: "markers",
      ...xyz(patches),
      text: patches.map((_, i) => `patch ${i} of this image`),
      hoverinfo: "text",
      marker: { size: size(11, 4), color: "#b0416f", symbol: "square", opacity: flat ? 0.001 : 0.9 },
    });
  const of = state.value.of,
    words = of.map((n, q) => [n, q]).filter(([n]) => !isLatent(n));
  if (state.words)
    data.push({
      type,
      mode: flat ? "markers+text" : "markers",
      ...xyz(words.map(([, q]) => points[q])),
      text: words.map(([n]) => wordOf(n)),
      textposition: "top center",
      textfont: { size: 11, color: c.soft },
      hovertext: words.map(([n]) => called(n)),
      hoverinfo: "text",
      customdata: words.map(([n]) => n),
      marker: { size: size(6, 3), color: c.soft },
    });
  const blocks = [...new Set(of.filter(isLatent).map((n) => items()[n].b))];
  for (const b of blocks) {
    const own = of.map((n, q) => [n, q]).filter(([n]) => isLatent(n) && items()[n].b === b);
    data.push({
      type,
      mode: flat ? "lines+markers+text" : "lines+markers",
      ...xyz(own.map(([, q]) => points[q])),
      text: own.map(([n]) => String(items()[n].i + 1)),
      textfont: { size: 10, color: c.text, family: c.mono },
      hovertext: own.map(([n]) => called(n)),
      hoverinfo: "text",
      customdata: own.map(([n]) => n),
      line: { color: c.latent, width: size(1.6, 3), dash: DASHES[b % 4] },
      marker: {
        size: size(18, 6),
        color: flat ? c.paper : c.latent,
        symbol: SYMBOLS[b % 4],
        line: { color: c.latent, width: 1.6 },
      },
    });
  }
  const q = rowOf(state.selected);
  if (q >= 0)
    data.push({
      type,
      mode: "markers",
      ...xyz([points[q]]),
      hoverinfo: "skip",
      marker: {
        size: size(26, 10),
        color: "rgba(0,0,0,0)",
        symbol: flat ? "circle" : "circle-open",
        line: { color: c.text, width: 2.5 },
      },
    });
  const [x0, x1, y0, y1] = [0, 1].flatMap((a) => {
    const all = [...points, ...patches, ...bank].map((p) => p[a]);
    const low = Math.min(...all),
      high = Math.max(...all),
      pad = (high - low || 1) * 0.06;
    return [low - pad, high + pad];
  });
  const side = [(x1 - x0) * 0.024, (y1 - y0) * 0.045];
  const images =
    flat && state.patches && patches.length <= 200
      ? patches
          .map((p, i) => [p, patchPicture(i)])
          .filter(([, pic]) => pic)
          .map(([p, pic]) => ({
            source: pic.toDataURL(),
            x: p[0],
            y: p[1],
            sizex: side[0],
            sizey: side[1],
            xref: "x",
            yref: "y",
            xanchor: "center",
            yanchor: "middle",
            sizing: "stretch",
            layer: "below",
          }))
      : [];
  const title = (i) => ({ text: layout.axes[i], font: { size: 12, color: c.soft } });
  const isPca = layout.key.startsWith("pca"),
    tick = { showticklabels: isPca };
  const scene = { bgcolor: "rgba(0,0,0,0)" };
  ["xaxis", "yaxis", "zaxis"].forEach((axis, i) => {
    scene[axis] = { title: title(i), gridcolor: c.grid, color: c.soft, showticklabels: false, zeroline: false };
  });
  return {
    data,
    layout: {
      images,
      ...(flat
        ? {
            xaxis: { title: title(0), range: [x0, x1], ...tick },
            yaxis: { title: title(1), range: [y0, y1], ...tick },
          }
        : { scene, margin: { l: 0, r: 0, t: 0, b: 0 } }),
      uirevision: layout.key + state.value.id,
    },
    rows: [
      ["kind", "block", "number", "text", ...layout.axes],
      ...of.map((n, k) => [
        isLatent(n) ? "latent" : "word",
        isLatent(n) ? items()[n].b + 1 : "",
        isLatent(n) ? items()[n].i + 1 : "",
        wordOf(n),
        ...points[k],
      ]),
      ...patches.map((p, i) => ["patch", "", i, "", ...p]),
    ],
    label: `${plural(of.filter(isLatent).length, "latent")} in ${plural(blocks.length, "block")}, ${words.length} words and ${patches.length} patches on ${layout.axes.join(" and ")}.`,
    note: state.value.space.note
      ? `Background and axes: ${state.value.space.note.replaceAll("`", "")}. ${isPca ? "" : "New points lie by their 15 nearest neighbours; distances far apart mean little. "}`
      : "No reference bank for this checkpoint: the axes come from this run alone, and there is no UMAP (python -m trainers bank makes one).",
  };
}

// ---- homogeneity
const withMatrix = () => state.value.homogeneity.blocks.filter((block) => block.matrix);
function buildMatrix(c) {
  const blocks = withMatrix(),
    block = blocks.find((b) => b.number === state.block) ?? blocks[0];
  if (!block) return null;
  const k = block.matrix.length,
    names = block.matrix.map((_, i) => String(i + 1)),
    item = items()[state.selected];
  const steps = state.value.of.filter((n) => isLatent(n) && items()[n].b === block.number);
  const shapes =
    item?.k === "latent" && item.b === block.number
      ? [0, 1].map((v) => ({
          type: "rect",
          line: { color: c.text, width: 2 },
          ...(v
            ? { x0: -0.5, x1: k - 0.5, y0: item.i - 0.5, y1: item.i + 0.5 }
            : { y0: -0.5, y1: k - 0.5, x0: item.i - 0.5, x1: item.i + 0.5 }),
        }))
      : [];
  return {
    data: [
      {
        type: "heatmap",
        z: block.matrix,
        x: names,
        y: names,
        zmin: block.matrix.reduce((low, row) => Math.min(low, ...row), 0),
        zmax: 1,
        colorscale: MAGMA,
        showscale: false,
        xgap: 1,
        ygap: 1,
        customdata: block.matrix.map((row, i) => row.map(() => steps[i])),
        hovertemplate: "latents %{y} and %{x}: %{z:.2f}<extra></extra>",
        ...(k <= 10 ? { text: block.matrix.map((row) => row.map((v) => v.toFixed(2))), texttemplate: "%{text}" } : {}),
      },
    ],
    layout: {
      xaxis: { side: "top", type: "category", fixedrange: true, showgrid: false },
      yaxis: { autorange: "reversed", type: "category", fixedrange: true, showgrid: false },
      shapes,
      margin: { l: 24, r: 8, t: 24, b: 8 },
    },
    rows: [["latent", ...names], ...block.matrix.map((row, i) => [names[i], ...row])],
    label: `Block ${block.number + 1}: neighbours have cosine ${block.adjacent === null ? "none" : block.adjacent.toFixed(2)} on average.`,
  };
}
function buildReferences(c) {
  const h = state.value.homogeneity,
    rows = [];
  for (const block of h.blocks)
    if (block.adjacent !== null) rows.push([`this run, block ${block.number + 1}`, block.adjacent, null, "run"]);
  if (h.words !== null) rows.push(["this run, words", h.words, null, "run"]);
  for (const m of h.measured)
    if (m.quantity === "adjacent cosine") rows.push([`${m.of}, n = ${m.n}`, m.value, m.interval, "measured"]);
  for (const r of h.reported)
    if (r.quantity === "adjacent cosine")
      rows.push([`${r.model}:\n${r.condition} (${r.source})`, r.value, null, "reported"]);
  if (!rows.length) return null;
  const set = (kind, marker) => {
    const own = rows.filter((row) => row[3] === kind);
    return {
      type: "scatter",
      mode: "markers",
      x: own.map((row) => row[1]),
      y: own.map((row) => row[0]),
      marker,
      ...(kind === "measured"
        ? {
            error_x: {
              type: "data",
              symmetric: false,
              array: own.map((row) => row[2][1] - row[1]),
              arrayminus: own.map((row) => row[1] - row[2][0]),
              color: c.soft,
              thickness: 1.5,
              width: 3,
            },
          }
        : {}),
      hovertemplate: "%{y}: %{x:.3f}<extra></extra>",
    };
  };
  return {
    data: [
      set("run", { size: 11, color: c.latent }),
      set("measured", { size: 9, color: c.soft }),
      set("reported", { size: 10, color: c.paper, line: { color: c.soft, width: 2 } }),
    ],
    layout: {
      xaxis: {
        range: [Math.min(0, ...rows.map((row) => row[1])) - 0.05, 1.05],
        title: { text: "cosine of neighbours", font: { size: 12, color: c.soft } },
      },
      yaxis: {
        categoryorder: "array",
        categoryarray: rows.map((row) => row[0]).reverse(),
        automargin: true,
        tickfont: { size: 11, color: c.text },
      },
      margin: { l: 8, r: 8, t: 4, b: 36 },
    },
    rows: [
      ["what", "cosine of neighbours", "low", "high", "kind"],
      ...rows.map(([what, value, interval, kind]) => [
        what.replace("\n", " "),
        value,
        ...(interval ?? ["", ""]),
        kind,
      ]),
    ],
    label: rows.map((row) => `${row[0].replace("\n", " ")}: ${row[1].toFixed(2)}`).join("; "),
    note: `Filled: this run, and other runs of this checkpoint with 95% interval${h.command ? ` (${h.command})` : ""}. Open: reported by others, with their models and data; not a mark to reach.`,
  };
}
function rankLine() {
  const h = state.value.homogeneity,
    of = (name, quantity) => h.measured.find((m) => m.quantity === quantity && m.of === name);
  if (h.rank === null) return "";
  const others = ["latents", "words", "patches"]
    .map((name) => [name, of(name, "effective rank")])
    .filter(([, m]) => m);
  return (
    `Effective rank of this run’s ${h.latents} latents: ${h.rank.toFixed(1)}; ${h.rank90} directions hold 90% of their variance.` +
    (others.length
      ? ` Over many runs: ${others.map(([name, m]) => `${name} ${m.value.toFixed(1)} (n = ${m.n})`).join(", ")}.`
      : "")
  );
}
