// Figures: a title, a sentence, controls, a Plotly chart, downloads, and how it is computed. Plotly comes from our server.
let plotly;
function loadPlotly() {
  plotly ??= new Promise((done, failed) => {
    if (window.Plotly) return done(window.Plotly);
    const script = make("script", { src: "plotly.min.js" });
    script.onload = () => done(window.Plotly);
    script.onerror = () => failed(new Error("The drawing library could not be loaded; reload the page."));
    document.head.append(script);
  });
  return plotly;
}

const colour = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
function ink() {
  return {
    text: colour("--body-text-color"),
    soft: colour("--body-text-color-subdued"),
    grid: colour("--border-color-primary"),
    paper: colour("--block-background-fill"),
    latent: colour("--ins-latent"),
    mono: colour("--font-mono"),
    font: colour("--font"),
  };
}
const MAGMA = HEAT.map((c, i) => [i / 8, rgb(c).replaceAll(" ", ",")]);

// What Plotly is given. It takes <a>, <b> and the like in any text for markup, so all text is escaped here, and nowhere
// else; its templates, which are ours and name such texts, are not. A line break is our only markup.
function plain(thing) {
  if (typeof thing === "string")
    return thing.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll("\n", "<br>");
  if (Array.isArray(thing)) return thing.map(plain);
  if (Object.prototype.toString.call(thing) !== "[object Object]") return thing;
  return Object.fromEntries(
    Object.entries(thing).map(([key, value]) => [key, key.endsWith("template") ? value : plain(value)]),
  );
}

// A figure draws itself from `build(ink)`: { data, layout, rows (of the CSV, header first), label }.
function figure(name, title, says, build, { height = 380, controls = [], pick = null } = {}) {
  const plot = make("div", { class: "ins-plot", role: "img" }),
    notes = make("p", { class: "ins-small", hidden: true });
  plot.style.height = `${height}px`;
  const buttons = ["PNG", "SVG", "CSV"].map((kind) =>
    make(
      "button",
      {
        type: "button",
        class: "ins-chip",
        "aria-label": `Download ${title} as ${kind}`,
        onclick: () => download(kind),
      },
      kind,
    ),
  );
  const formula = make(
    "details",
    { class: "ins-formula" },
    make("summary", {}, "How is this computed?"),
    make("div", {}),
  );
  const node = make(
    "section",
    { class: `ins-panel ins-figure ins-figure-${name}`, "aria-label": title },
    make(
      "header",
      { class: "ins-head" },
      make("h2", {}, title),
      make("span", { class: "ins-grow" }),
      make("span", { class: "ins-downloads" }, ...buttons),
    ),
    make("p", { class: "ins-says" }, says),
    make("div", { class: "ins-figure-controls" }, ...controls),
    plot,
    notes,
    formula,
  );
  let drawn = null;
  async function draw() {
    const made = build(ink());
    node.hidden = !made;
    if (!made || !plot.offsetWidth) return;
    const colours = ink(),
      axis = { gridcolor: colours.grid, zeroline: false, linecolor: colours.grid, tickfont: { color: colours.soft } };
    const layout = {
      template: null,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      showlegend: false,
      hovermode: "closest",
      font: { family: colours.font, size: 12, color: colours.text },
      margin: { l: 48, r: 16, t: 8, b: 40 },
      height,
      width: plot.offsetWidth,
      hoverlabel: { bgcolor: colours.paper, bordercolor: colours.soft, font: { color: colours.text } },
      ...made.layout,
    };
    for (const key of ["xaxis", "yaxis"]) layout[key] = { ...axis, ...layout[key] };
    const Plotly = await loadPlotly();
    drawn = made;
    plot.setAttribute("aria-label", `${title}. ${made.label ?? ""}`);
    notes.hidden = !made.note;
    notes.textContent = made.note ?? "";
    await Plotly.react(plot, plain(made.data), plain(layout), {
      displayModeBar: false,
      displaylogo: false,
      scrollZoom: false,
      responsive: false,
    });
    if (pick && !plot.dataset.clickable) {
      plot.dataset.clickable = "yes";
      plot.on("plotly_click", ({ points }) => {
        const n = points[0]?.customdata;
        if (Number.isInteger(n)) pick(n);
      });
    }
  }
  async function download(kind) {
    if (!drawn) return;
    const stem = `inscape-${name}`;
    if (kind === "CSV") return save(`${stem}.csv`, new Blob([csv(drawn.rows)], { type: "text/csv" }));
    const Plotly = await loadPlotly();
    const url = await Plotly.toImage(plot, {
      format: kind.toLowerCase(),
      scale: kind === "PNG" ? 2 : 1,
      width: plot.offsetWidth,
      height,
    });
    save(`${stem}.${kind.toLowerCase()}`, await (await fetch(url)).blob());
  }
  function explain(functions) {
    explainIn(one("div", formula), functions);
  }
  return { node, draw, explain };
}

function explainIn(box, functions) {
  box.replaceChildren(
    ...functions.map(({ name, text }) => make("div", {}, make("b", {}, name), make("pre", {}, text))),
  );
}

function save(name, blob) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
// Cells that a spreadsheet would take for a formula are quoted as text.
const csv = (rows) =>
  rows
    .map((row) =>
      row
        .map((cell) => {
          const text = typeof cell === "string" && /^[=+\-@\t]/.test(cell) ? `'${cell}` : String(cell ?? "");
          return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
        })
        .join(","),
    )
    .join("\n") + "\n";

// A row of radio buttons that looks like one switch.
let groups = 0;
function choice(legend, options, chosen, change) {
  const group = `ins-group-${++groups}-${Math.random().toString(36).slice(2, 8)}`;
  const labels = options.map(([value, words]) => {
    const input = make("input", { type: "radio", name: group, value });
    input.checked = value === chosen;
    input.onchange = () => change(value);
    return make("label", {}, input, make("span", {}, words));
  });
  return make("fieldset", { class: "ins-choice" }, make("legend", {}, legend), make("div", {}, ...labels));
}
function check(words, on, change) {
  const input = make("input", { type: "checkbox" });
  input.checked = on;
  input.onchange = () => change(input.checked);
  return make("label", { class: "ins-check" }, input, words);
}
function slider(words, max, value, change) {
  const input = make("input", { type: "range", min: 0, max, "aria-label": words }),
    output = make("output", {});
  input.value = value;
  const box = make("div", { class: "ins-range" }, make("span", {}, words), output, input);
  input.oninput = () => change(Number(input.value));
  return { box, input, output };
}
