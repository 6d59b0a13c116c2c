// The Compare page: two runs side by side; what is selected in one is selected in the other.
function part(name) {
  return one(`[data-part="${name}"]`);
}
const state = { value: null, place: null, images: [[], []], maps: [] };
const sideItems = (s) => state.value.sides[s].view.items;

// A place that both runs may have: the same latent of the same block, or the same word counted from the start.
function placeOf(s, n) {
  const item = sideItems(s)[n];
  if (item.k === "latent") return `latent/${item.b}/${item.i}`;
  return `word/${
    sideItems(s)
      .slice(0, n)
      .filter((other) => other.k === "text").length
  }`;
}
function stepAt(s, place) {
  const items = sideItems(s);
  return items.findIndex((item, n) => (item.k === "latent" || item.k === "text") && placeOf(s, n) === place);
}
const calledAt = (item) =>
  item.k === "latent" ? `latent ${item.i + 1} of block ${item.b + 1}` : `word “${item.t.trim()}”`;

function drawSide(s) {
  const side = state.value.sides[s],
    view = side.view,
    words = state.value.words[s];
  let stretch = 0,
    within = 0;
  const track = make("div", { class: "ins-track", role: "group", "aria-label": `Run ${"AB"[s]}: latents and words` });
  let last = null;
  view.items.forEach((item, n) => {
    let changed = false;
    if (item.k === "text") {
      // stretches are of the text alone: walk along
      for (let left = item.t.length; left > 0 && words[stretch];) {
        const room = words[stretch].text.length - within,
          used = Math.min(left, room);
        changed ||=
          !words[stretch].same && item.t.slice(item.t.length - left, item.t.length - left + used).trim() !== "";
        left -= used;
        within += used;
        if (within === words[stretch].text.length) {
          stretch += 1;
          within = 0;
        }
      }
      if (!item.t.trim()) return;
    } else if (item.k !== "latent") return;
    if (item.k === "latent" && last !== item.b) track.append(make("span", {}, `block ${item.b + 1}`));
    if (item.k === "latent") last = item.b;
    track.append(
      item.k === "latent"
        ? miniCard(view.items, n, state.images[s][0], view.grids, state.maps[s].of, () => choose(s, n))
        : wordButton(item, n, changed, () => choose(s, n)),
    );
  });
  walk(track, (n) => choose(s, n));
  const canvas = make("canvas", { role: "img", "data-big": s });
  return make(
    "section",
    { class: "ins-panel", "aria-label": `Run ${"AB"[s]}` },
    make("header", { class: "ins-head" }, make("h2", {}, `${"AB"[s]}  ${side.name}`)),
    make("p", { class: "ins-says" }, view.question),
    track,
    make(
      "div",
      { class: "ins-answer" },
      make("span", { class: "ins-label" }, "Answer"),
      make("span", { class: "ins-big" }, view.finish.answer ?? "none"),
    ),
    make("div", { class: "ins-stack" }, canvas, make("p", { class: "ins-small", "data-caption": s })),
  );
}

function choose(s, n) {
  tellSelected(state.value.sides[s].id, n);
  take(placeOf(s, n));
}
function take(place) {
  state.place = place;
  for (const s of [0, 1]) {
    const n = stepAt(s, place),
      view = state.value.sides[s].view,
      panel = part("sides").children[s];
    press(one(".ins-track", panel), n);
    const canvas = one("canvas[data-big]", panel),
      caption = one("[data-caption]", panel),
      image = state.images[s][0],
      map = n < 0 ? null : state.maps[s].of(n);
    if (image?.naturalWidth && view.grids.length) {
      const cells = view.grids[0][0] * view.grids[0][1],
        shown = map?.slice(0, cells);
      drawHeat(canvas, image, view.grids[0], shown, 300, shown ? { ...scaleOf([shown]), cells: true, dim: 0.4 } : {});
      canvas.setAttribute("aria-label", shown ? `Where ${calledAt(view.items[n])} looks` : "The image");
    }
    caption.textContent =
      n < 0
        ? "This run has nothing at this place."
        : map
          ? `${calledAt(view.items[n])}: ${state.maps[s].words}; its own scale`
          : `${calledAt(view.items[n])}: ${view.maps?.left ?? "no state was recorded"}`;
  }
  const pair = state.value.pairs.find((p) => place === `latent/${p.block}/${p.index}`);
  part("note").textContent = pair ? `Cosine of the two latents at this place: ${signed(pair.cosine)}.` : "";
}
followSelected(
  (run) => state.value?.sides.some((side) => String(side.id) === run),
  (n, run) =>
    take(
      placeOf(
        state.value.sides.findIndex((side) => String(side.id) === run),
        n,
      ),
    ),
);

const CELLS = [
  ["answer", (f) => f.answer ?? "none"],
  ["probability of the answer", (f) => f.probability?.toFixed(2) ?? "n/a"],
  ["blocks", (f) => f.blocks],
  ["latents", (f) => f.latents],
  ["tokens", (f) => f.tokens],
  ["tokens per second", (f) => f.tokens_per_second ?? "n/a"],
  ["ms per latent", (f) => f.ms_per_latent ?? "n/a"],
  ["seconds in all", (f) => f.seconds],
  ["highest probability of opening a block", (f) => f.max_p_open],
];
function drawNumbers() {
  const views = state.value.sides.map((side) => side.view);
  const rows = [
    ["checkpoint", ...views.map((v) => v.checkpoint)],
    ["mode, K, rule", ...views.map((v) => `${v.mode}, ${v.k}, ${v.rule}`)],
    ...CELLS.map(([name, read]) => [name, ...views.map((v) => String(read(v.finish)))]),
  ];
  part("numbers").replaceChildren(table(["", "A", "B"], rows));
  part("numbers-panel").hidden = false;
}
function drawChips(value) {
  const busy = value.busy ?? false,
    chip = (words, changes) =>
      make(
        "button",
        {
          type: "button",
          class: "ins-chip",
          disabled: busy || !state.value,
          onclick: () => {
            part("note").textContent = "Running…";
            for (const node of all("button", part("again"))) node.disabled = true;
            trigger("again", { id: part("a").value, changes });
          },
        },
        words,
      );
  part("again").replaceChildren(
    ...[0, 1, 2, 4, 8, 12, 16].map((k) => chip(`K ${k}`, { latents: k, mode: "latent" })),
    chip("Text only", { mode: "text" }),
    chip("Forced", { mode: "forced" }),
    chip("Markers only", { mode: "markers" }),
    ...value.checkpoints.map((name) => chip(name, { checkpoint: name })),
  );
}

function update() {
  const value = props.value;
  if (!value) return;
  part("problem").hidden = !value.problem;
  part("problem").textContent = value.problem ?? "";
  if (value.sides) {
    const before = state.value?.sides[0].id;
    state.value = value;
    state.maps = value.sides.map(({ view }) => mapsOf(view));
    if (value.sides[0].id !== before) state.place = placeChosen();
    state.images = value.sides.map(({ view }) =>
      view.images.map((url) => {
        const image = new Image();
        image.onload = drawSides;
        image.src = url;
        return image;
      }),
    );
  }
  const chosen = state.value?.sides.map((side) => side.id) ?? [];
  ["a", "b"].forEach((name, s) =>
    part(name).replaceChildren(
      ...value.runs.map(([words, id]) => {
        const option = make("option", { value: id }, words);
        option.selected = id === chosen[s];
        return option;
      }),
    ),
  );
  drawChips(value);
  if (value.sides) {
    drawSides();
    drawNumbers();
  } else part("note").textContent = "";
}
// What was selected in A elsewhere, or else what was compared last.
function placeChosen() {
  const n = selections.get(String(state.value.sides[0].id));
  return sideItems(0)[n] ? placeOf(0, n) : (state.place ?? "latent/0/0");
}
function drawSides() {
  part("sides").replaceChildren(drawSide(0), drawSide(1));
  take(state.place);
}
for (const name of ["a", "b"]) part(name).onchange = () => trigger("pair", { a: part("a").value, b: part("b").value });
watch("value", update);
update();
