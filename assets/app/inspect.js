// The Inspect page: one run, one selection, several figures that follow it.
function part(name) {
  return one(`[data-part="${name}"]`);
}

const layerSlider = slider("Layer", 0, 0, (at) => {
  if (!ready() || !state.value.shares) return;
  state.layer = state.value.shares.layers[at];
  shares.draw();
  labelLayer();
});
const matrixBlocks = make("div", {}),
  normChoice = make("div", {}),
  ranks = make("p", { class: "ins-says" });
const key = (pairs) =>
  make(
    "div",
    { class: "ins-key" },
    ...pairs.map(([name, tint]) => {
      const dot = make("i", {});
      dot.style.background = tint;
      return make("span", {}, dot, name);
    }),
  );
const ready = () => Boolean(state.value) && !state.value.blind;
const redraw = (name, value) => {
  state[name] = value;
  if (ready()) space.draw();
};
const mapChoice = make("div", {}),
  bankCheck = check("Bank", true, (v) => redraw("bank", v));
// Without a bank there is no UMAP: the choice is then not offered, rather than answered with something else.
function offerMaps() {
  const hasBank = state.value.space.labels.length > 0;
  if (!hasBank) state.map = "pca";
  bankCheck.hidden = !hasBank;
  mapChoice.replaceChildren(
    choice(
      "Map",
      hasBank
        ? [
            ["pca", "PCA"],
            ["umap", "UMAP"],
          ]
        : [["pca", "PCA"]],
      state.map,
      (v) => redraw("map", v),
    ),
  );
}
const space = figure(
  "space",
  "Trajectories",
  "Each numbered point is one latent, joined in their order, as it was fed; thumbnails are this image’s patches and grey words the response, both states after the final norm.",
  buildSpace,
  {
    height: 480,
    pick: choose,
    controls: [
      mapChoice,
      choice(
        "Axes",
        [
          [2, "2-D"],
          [3, "3-D"],
        ],
        2,
        (v) => redraw("axes", v),
      ),
      check("Direction only", true, (v) => redraw("scaled", v)),
      check("Patches", true, (v) => redraw("patches", v)),
      check("Words", true, (v) => redraw("words", v)),
      bankCheck,
      key([
        ["latents", "var(--ins-latent)"],
        ["words", "var(--body-text-color-subdued)"],
        ["patches", "#b0416f"],
      ]),
    ],
  },
);
const shares = figure(
  "shares",
  "Attention along the response",
  "Where each position sends its attention, mean of the heads of one layer.",
  buildShares,
  {
    height: 320,
    pick: choose,
    controls: [
      layerSlider.box,
      key([
        ["image", "#b0416f"],
        ["question", "#8a93a0"],
        ["latents", "var(--ins-latent)"],
        ["text", "var(--ins-words)"],
        ["markers", "var(--border-color-primary)"],
      ]),
    ],
  },
);
const norms = figure(
  "norms",
  "Norms",
  "Length of every latent (filled) and word (open) over a mean length; the dotted line is that mean.",
  buildNorms,
  { height: 260, pick: choose, controls: [normChoice] },
);
const matrix = figure(
  "homogeneity",
  "Homogeneity",
  "How alike the latents of a block are: cosine of every pair.",
  buildMatrix,
  { height: 340, pick: choose, controls: [matrixBlocks] },
);
const references = figure(
  "references",
  "Beside references",
  "The same as one number, the mean cosine of neighbours, beside words, a dummy block, and what papers report.",
  buildReferences,
  { height: 300 },
);
const figures = { space, shares, norms, homogeneity: matrix };
references.node.append(ranks);
part("figures").append(
  make("div", { class: "ins-column" }, space.node, shares.node, references.node, norms.node, measured.node),
  make("div", { class: "ins-column" }, depict.node, matrix.node, lens.node, rollout.node),
);

function labelLayer() {
  const layers = state.value.shares?.layers ?? [],
    at = Math.max(0, layers.indexOf(state.layer));
  Object.assign(layerSlider.input, { max: Math.max(0, layers.length - 1), value: at });
  layerSlider.output.textContent = layers.length ? `layer ${layers[at] + 1}` : "";
}

function choose(n) {
  tellSelected(state.value.id, n);
  take(n);
}
function take(n) {
  if (!ready() || rowOf(n) < 0) return;
  state.selected = n;
  if (isLatent(n) && items()[n].b !== state.block) {
    state.block = items()[n].b;
    drawBlocks();
  }
  press(part("track"), n);
  part("chosen").textContent = `${called(n)[0].toUpperCase()}${called(n).slice(1)} is selected in every figure.`;
  drawAll();
}
followSelected((run) => run === String(state.value?.id), take);

function drawAll() {
  if (!ready() || !element.offsetWidth) return;
  for (const each of [space, shares, norms, matrix, references]) each.draw().catch((error) => trouble(error.message));
  drawLens();
  drawDepict();
  drawRollout();
  drawMeasured();
  ranks.textContent = rankLine();
}

function drawTrack() {
  const maps = mapsOf(state.value.view);
  let last = null;
  part("track").replaceChildren(
    ...state.value.of.flatMap((n) => {
      const item = items()[n],
        nodes = [];
      if (item.k === "latent") {
        if (last !== item.b) nodes.push(make("span", {}, `block ${item.b + 1}`));
        last = item.b;
        nodes.push(miniCard(items(), n, state.images[0], state.value.view.grids, maps.of, () => choose(n)));
      } else if (item.t.trim()) nodes.push(wordButton(item, n, false, () => choose(n)));
      return nodes;
    }),
  );
}
walk(part("track"), choose);

function drawBlocks() {
  const blocks = withMatrix();
  matrixBlocks.replaceChildren(
    ...(blocks.length > 1
      ? [
          choice(
            "Block",
            blocks.map((b) => [b.number, String(b.number + 1)]),
            state.block,
            (b) => {
              state.block = b;
              matrix.draw();
              drawDepict();
            },
          ),
        ]
      : []),
  );
}

function trouble(sentence) {
  part("problem").hidden = !sentence;
  part("problem").textContent = sentence ?? "";
}
function drawRuns(value) {
  part("runs").replaceChildren(
    ...value.runs.map(([name, id]) => {
      const option = make("option", { value: id }, name);
      option.selected = id === value.id;
      return option;
    }),
  );
  part("name").value = value.name ?? "";
  for (const name of ["rename", "remove", "name"]) part(name).disabled = !value.own;
  part("naming").hidden = part("rename").hidden = part("remove").hidden = !value.own;
  part("save").hidden = !value.trace;
}

function update() {
  const value = props.value;
  if (!value) return;
  trouble(value.problem);
  if (!value.view) {
    // nothing new to show: only the list of runs or a sentence
    drawRuns({ ...state.value, runs: value.runs });
    return;
  }
  const same = state.value?.id === value.id;
  state.value = value;
  drawRuns(value);
  part("question").textContent = value.view.question;
  const done = value.view.finish,
    blocks = `${plural(done.blocks, "block")} of K ${value.view.k}`;
  part("about").textContent =
    `${value.view.checkpoint}, ${value.view.opens ? `mode ${value.view.mode}, ${blocks}, ` : ""}answer ${done.answer ?? "none"}` +
    (value.cut ? `; the last ${value.cut} steps are not drawn` : "") +
    [value.left, value.view.maps?.left]
      .filter(Boolean)
      .map((sentence) => `. ${sentence}`)
      .join("");
  part("image").hidden = !value.view.images.length;
  part("image").src = value.view.images[0] ?? "";
  part("image").alt = "The first image of the question";
  part("empty").hidden = !value.blind;
  part("figures").hidden = value.blind;
  part("empty").textContent = value.blind
    ? "This run recorded no states, so there is nothing to draw. Run the question again."
    : "";
  if (value.blind) {
    part("track").replaceChildren();
    return;
  }
  part("chosen").textContent = "Select a latent or a word; every figure follows.";
  state.images = value.view.images.map((url) => {
    const image = new Image();
    image.onload = () => {
      drawTrack();
      if (state.selected >= 0) take(state.selected);
      else drawAll();
    };
    image.src = url;
    return image;
  });
  state.block = value.homogeneity.blocks[0]?.number ?? 0;
  state.layer = value.shares ? value.shares.layers.at(-1) : null;
  if (!same)
    state.selected =
      [selections.get(String(value.id)), value.of.find(isLatent)].find((n) => rowOf(n) >= 0) ?? value.of[0];
  const names = Object.keys(value.norms);
  normChoice.replaceChildren(
    choice(
      "Over the",
      names.map((name, i) => [i, name.replace("mean ", "").split(",")[0].split(" (")[0]]),
      0,
      (i) => {
        state.norm = i;
        norms.draw();
      },
    ),
  );
  state.norm = 0;
  for (const [name, each] of Object.entries(figures)) each.explain(value.formulas[name]);
  references.explain(value.formulas.homogeneity);
  lens.explain(value.formulas.lens);
  depict.explain(value.formulas.depict);
  rollout.explain(value.formulas.shares.filter(({ name }) => name === "Rollout"));
  measured.explain(value.formulas.region.filter(({ name }) => name === "nearest_patch"));
  labelLayer();
  offerMaps();
  drawBlocks();
  drawTrack();
  take(state.selected);
}

part("runs").onchange = () => trigger("open", { id: part("runs").value });
part("rename").onclick = () => trigger("rename", { id: state.value?.id, name: part("name").value });
part("name").onkeydown = (event) => {
  if (event.key === "Enter") part("rename").click();
};
part("remove").onclick = () => trigger("remove", { id: state.value?.id });
part("save").onclick = () => saveTrace(state.value.trace, trouble);
part("open").onclick = () => part("file").click();
part("file").onchange = async () => {
  const [file] = part("file").files;
  part("file").value = "";
  if (!file) return;
  try {
    trigger("upload", { path: (await upload(file)).path });
  } catch (error) {
    trouble(
      /size/i.test(String(error))
        ? "That file is larger than 10 MB."
        : (/"detail":"([^"]+)"/.exec(String(error))?.[1] ?? "That file could not be uploaded; try again."),
    );
  }
};
new ResizeObserver(drawAll).observe(element);
new MutationObserver(() => drawAll()).observe(document.body, { attributeFilter: ["class"] });
watch("value", update);
update();
