// The panel of the selected latent or word. It holds all maps of the run and redraws without asking the server.
function part(name) {
  return one(`[data-part="${name}"]`);
}

// The map of item n as it is shown; while a run streams, the one of the checkpoint's best rule, and of latents alone.
function mapOf(n) {
  return run.maps ? mapIn(run.maps, run.tokens, run, n) : (run.items[n]?.m ?? null);
}
// The rule of what is shown before the maps have come.
const streamed = () => (run.maps ? null : (run.value?.looks?.[0] ?? null));
const partOf = (map, image) => map.slice(run.offsets[image], run.offsets[image + 1]);

function peakOf(map) {
  const best = map.indexOf(Math.max(...map));
  const image = run.offsets.findIndex((offset, i) => best >= offset && best < run.offsets[i + 1]);
  return { image, cell: best - run.offsets[image], value: map[best] };
}

const isAttention = () =>
  run.maps
    ? Boolean(run.maps.attention) && (run.shown === "attention" || run.shown === "minus")
    : streamed()?.kind === "attention";
const isCentred = () => !isAttention() && (run.maps ? run.shown === "centred" : streamed()?.part === 1);

// One scale per block (or per word).
function rangeOf(n) {
  const item = run.items[n];
  return scaleOf((item?.k === "latent" && !run.own ? run.strips[item.b].latents : [n]).map(mapOf));
}

function drawPanel() {
  const item = run.items[run.selected],
    chosen = item !== undefined;
  part("selected").hidden = part("steps").hidden = !chosen;
  part("unselected").hidden = chosen;
  part("title").textContent = chosen ? title(item) : "Nothing selected yet";
  part("meta").textContent = !chosen
    ? ""
    : item.k === "latent"
      ? item.c
        ? "one of a grid fed at once"
        : "fed-back vector"
      : "state that produced this token, after the final norm";
  if (!chosen) return;
  const map = mapOf(run.selected);
  if (map && run.cell === null) run.image = peakOf(map).image;
  drawImageTabs();
  drawAxes();
  drawOverlay(map);
  drawNear(map);
  drawRule(item);
  drawStats(item);
  const layers = run.maps && isAttention() ? run.maps.attention.layers : null,
    levels = layers ?? run.maps?.levels ?? [];
  const slider = part("level");
  slider.disabled = levels.length < 2;
  slider.max = Math.max(1, levels.length - 1);
  slider.value = layers ? run.layer : run.level;
  part("levelof").textContent = isAttention() ? "Layer" : "Level of the image states";
  part("heads").hidden = !layers || run.maps.attention.heads < 2;
  part("levelname").textContent = layers
    ? `layer ${layers[run.layer] + 1}`
    : run.maps
      ? levelName(levels[run.level], levels.at(-1))
      : streamed()
        ? `${isAttention() ? `layer ${streamed().level + 1}` : streamed().level}; others at the end`
        : "";
  part("unchoose").hidden = !Object.keys(chosenMap()).length;
}

function title(item) {
  return item.k === "latent" ? `Latent ${item.i + 1} of block ${item.b + 1}` : `Word “${item.t.trim()}”`;
}
function levelName(level, last) {
  return level === 0
    ? "0, the merger’s output"
    : level === last
      ? `${level}, after the final norm`
      : `${level} of ${last}`;
}

function drawImageTabs() {
  part("images").hidden = run.images.length < 2;
  part("images").replaceChildren(
    ...run.images.map((_, i) =>
      make(
        "button",
        {
          type: "button",
          class: "ins-chip",
          "aria-pressed": String(i === run.image),
          onclick: () => {
            run.image = i;
            run.cell = 0;
            drawPanel();
          },
        },
        `Image ${i + 1}`,
      ),
    ),
  );
}

function drawAxes() {
  const [rows, columns] = run.grids[run.image] ?? [0, 0];
  for (const [name, count] of [
    ["rows", rows],
    ["columns", columns],
  ]) {
    const every = Math.ceil(count / 12);
    part(name).style.setProperty("--n", count);
    part(name).replaceChildren(
      ...Array.from({ length: count }, (_, i) => make("span", {}, i % every ? "" : String(i))),
    );
  }
}

function drawOverlay(map) {
  const image = run.images[run.image],
    canvas = part("big"),
    grid = run.grids[run.image];
  if (!image?.naturalWidth) return;
  const values = map && partOf(map, run.image),
    range = map ? rangeOf(run.selected) : { low: 0, high: 1 };
  drawHeat(canvas, image, grid, values, 420, { ...range, cells: true, dim: 0.4 });
  for (const cell of all(".ins-cell", part("view"))) cell.remove();
  const peak = values && values.indexOf(Math.max(...values));
  if (values) part("view").append(cellBox(peak, "ins-peak"));
  drawRead(values, run.cell ?? peak);
  drawRegion();
  canvas.setAttribute(
    "aria-label",
    values
      ? `Heat map over image ${run.image + 1}. Highest at patch row ${Math.floor(peak / grid[1])}, column ${peak % grid[1]}: ${signed(values[peak])}`
      : `Image ${run.image + 1}; the map of this word comes with the end of the run`,
  );
  part("low").textContent = map ? (isAttention() ? "" : "≤ ") + signed(range.low) : "";
  part("high").textContent = map ? signed(range.high) : "";
  part("what").textContent = !map
    ? run.maps
      ? (run.maps.left ?? "No state of the model produced this token.")
      : "Maps of words are computed when the run ends."
    : isAttention()
      ? `Attention on the image patches, ${headShown() ? `head ${headShown()}` : "mean of all heads"}. ${run.maps && run.shown === "minus" ? "What the run’s words look at on average is subtracted. " : ""}Together ${map.reduce((sum, value) => sum + value, 0).toFixed(2)} of 1.`
      : `Cosine similarity with the image patches, ${isCentred() ? "mean patch state subtracted on both sides" : "raw"}.` +
        (run.items[run.selected].k === "latent"
          ? ` ${run.own ? "Its own scale." : `One scale for block ${run.items[run.selected].b + 1}.`}`
          : "");
  if (map) part("what").textContent += whyShown();
}

const headShown = () => (run.maps ? run.head : streamed().part + 1);
// Whether the checkpoint was measured, where what it opens with is shown.
function whyShown() {
  const own = (run.value.looks ?? [])[0];
  if (!own || Object.keys(chosenMap()).length) return "";
  return own.measured
    ? " This checkpoint’s latents were measured to hit oftenest on such maps."
    : " Which map is best was not measured for this checkpoint.";
}

function cellBox(cell, kind) {
  const [rows, columns] = run.grids[run.image],
    box = make("div", { class: `ins-cell ${kind}` });
  Object.assign(box.style, {
    left: `${(100 * (cell % columns)) / columns}%`,
    top: `${(100 * Math.floor(cell / columns)) / rows}%`,
    width: `${100 / columns}%`,
    height: `${100 / rows}%`,
  });
  return box;
}

function drawRead(map, cell) {
  part("read").hidden = !map;
  part("read").classList.toggle("ins-above", map && cell >= (run.grids[run.image][0] - 2) * run.grids[run.image][1]);
  if (map) part("read").textContent = `patch ${place(cell, run.grids[run.image][1])}  ${signed(map[cell])}`;
}

function point(cell) {
  const map = mapOf(run.selected);
  for (const box of all(".ins-hover", part("view"))) box.remove();
  run.cell = cell;
  if (!map) return;
  const values = partOf(map, run.image);
  if (cell !== null) part("view").append(cellBox(cell, "ins-hover"));
  drawRead(values, cell ?? values.indexOf(Math.max(...values)));
}

function drawNear(map) {
  const order = map ? [...map.keys()].sort((a, b) => map[b] - map[a]).slice(0, 5) : [];
  part("near").replaceChildren(
    ...order.map((token) => {
      const i = run.offsets.findIndex((offset, k) => token >= offset && token < run.offsets[k + 1]),
        cell = token - run.offsets[i];
      const canvas = make("canvas", { "aria-hidden": "true" }),
        where = place(cell, run.grids[i][1]);
      const many = run.images.length > 1 ? `image ${i + 1} ` : "";
      const button = make(
        "button",
        { type: "button", "aria-label": `Patch ${many}${where}, ${signed(map[token])}` },
        canvas,
        make("b", {}, signed(map[token])),
        `${many}${where}`,
      );
      button.onmouseenter = button.onfocus = () => {
        if (i === run.image) point(cell);
      };
      button.onmouseleave = button.onblur = () => {
        if (i === run.image) point(null);
      };
      button.onclick = () => {
        run.image = i;
        run.cell = cell;
        drawPanel();
        point(cell);
      };
      if (run.images[i].naturalWidth) drawPatch(canvas, run.images[i], run.grids[i], cell, 54);
      return button;
    }),
  );
}

const SEES = {
  latents_only: "only the latents",
  sealed: "only the sealed copies of the latents",
  no_image: "the words and the latents, but not the image",
};
function drawRule(item) {
  const sees = item.a && item.k !== "latent" && SEES[run.value.rule];
  part("rule").hidden = !sees;
  if (sees)
    part("rule").textContent =
      `No attention on the image here: under the rule ${run.value.rule}, text after a block sees ${sees}. ` +
      (isAttention() ? "" : "The map compares vectors; it is no path of attention.");
}

function drawStats(item) {
  const q = run.maps?.row.get(run.selected),
    mapped = q !== undefined,
    facts = [];
  const fact = (name, value, note) =>
    facts.push(make("div", {}, make("dt", {}, name), make("dd", {}, value, make("small", {}, note))));
  const norm = mapped ? run.maps.norms[q] : null,
    latent = item.k === "latent";
  if (!latent) fact("probability", item.p.toFixed(2), "before temperature");
  if (mapped) {
    if (run.maps.text_norm)
      fact(
        latent ? "‖z‖ over mean text state" : "norm over mean text state",
        `${(norm / run.maps.text_norm).toFixed(2)}×`,
        "this run’s words, after the final norm",
      );
    const at = levelName(run.maps.levels[run.level], run.maps.levels.at(-1));
    fact(
      latent ? "‖z‖ over mean image state" : "norm over mean image state",
      `${(norm / run.maps.image_norms[run.level]).toFixed(2)}×`,
      `level ${at}`,
    );
  }
  if (latent && mapped)
    fact(
      "cosine to previous latent",
      run.maps.previous[q] === null ? "n/a" : signed(run.maps.previous[q]),
      run.maps.previous[q] === null ? "first of its block" : `latent ${item.i}`,
    );
  if (!latent) fact("opens a block", item.o.toFixed(2), "probability at this place");
  part("stats").replaceChildren(...facts);
}

part("ramp").style.background = RAMP;
part("previous").onclick = () => step(-1);
part("next").onclick = () => step(1);
// Chosen maps are kept by what they are called, for the next run may have others; without a change, none is chosen any more.
function changeMap(change) {
  chooseMap(change);
  settleMap();
  redraw();
}
function settleMap() {
  if (run.maps) Object.assign(run, mapShown(run.maps, run.value.looks ?? []));
  const shown = run.maps ? run.shown : isAttention() ? "attention" : isCentred() ? "centred" : "raw";
  for (const radio of all('[name="ins-shown"]')) {
    radio.checked = radio.value === shown;
    radio.disabled = !run.maps || (["attention", "minus"].includes(radio.value) && !run.maps.attention);
  }
  part("head").value = String(run.head);
}
part("level").oninput = ({ target }) =>
  changeMap(
    isAttention()
      ? { layer: run.maps.attention.layers[Number(target.value)] }
      : { level: run.maps.levels[Number(target.value)] },
  );
part("head").onchange = ({ target }) => changeMap({ head: Number(target.value) });
part("unchoose").onclick = () => changeMap(null);
part("own").onchange = (event) => {
  run.own = event.target.checked;
  redraw();
};
for (const radio of all('[name="ins-shown"]')) radio.onchange = () => changeMap({ shown: radio.value });
part("view").onpointermove = (event) => {
  if (!run.grids[run.image]) return;
  const box = part("view").getBoundingClientRect(),
    [rows, columns] = run.grids[run.image];
  const x = clamp(Math.floor(((event.clientX - box.left) / box.width) * columns), 0, columns - 1);
  point(clamp(Math.floor(((event.clientY - box.top) / box.height) * rows), 0, rows - 1) * columns + x);
};
part("view").onpointerleave = part("view").onblur = () => point(null);
part("view").onkeydown = (event) => {
  const [rows, columns] = run.grids[run.image] ?? [0, 0],
    map = mapOf(run.selected);
  const [down, right] =
    { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key] ?? [];
  if (down === undefined || !map) return;
  event.preventDefault();
  const from = run.cell ?? partOf(map, run.image).indexOf(Math.max(...partOf(map, run.image)));
  point(
    clamp(Math.floor(from / columns) + down, 0, rows - 1) * columns + clamp((from % columns) + right, 0, columns - 1),
  );
};
