// What the selected latent or word says: nearest words, vocabulary by layer, picture, rollout; and what was measured.
function panel(name, title, says, ...children) {
  const formula = make(
    "details",
    { class: "ins-formula" },
    make("summary", {}, "How is this computed?"),
    make("div", {}),
  );
  const node = make(
    "section",
    { class: `ins-panel ins-figure-${name}`, "aria-label": title },
    make("header", { class: "ins-head" }, make("h2", {}, title)),
    make("p", { class: "ins-says" }, says),
    ...children,
    formula,
  );
  return { node, explain: (functions) => explainIn(one("div", formula), functions) };
}

const lensBox = make("div", {});
const lens = panel(
  "lens",
  "Read as words",
  "What the selected latent or word resembles when it is read as language: the nearest states of words in the bank, and the likeliest tokens after each layer.",
  lensBox,
);
function drawLens() {
  const { lens: readings, known } = state.value,
    q = rowOf(state.selected),
    parts = [];
  if (q < 0) parts.push(make("p", { class: "ins-says" }, "Select a latent or a word."));
  else {
    if (readings.nearest)
      parts.push(
        table(
          ["nearest words of the bank", "cosine, centred"],
          readings.nearest[q].map(([word, value]) => [word, signed(value)]),
        ),
      );
    const layers = readings.layers?.[String(state.selected)];
    if (layers)
      parts.push(
        table(
          ["after", "likeliest tokens, the run’s mean subtracted"],
          layers.map((tokens, layer) => [
            `layer ${layer + 1}`,
            tokens.map(([word, p]) => `${word} ${p.toFixed(2)}`).join("  "),
          ]),
        ),
      );
    else if (readings.layers)
      parts.push(
        make("p", { class: "ins-says" }, isLatent(state.selected) ? state.value.left : "By layer, latents only."),
      );
  }
  if (!readings.layers)
    parts.push(
      known
        ? make(
            "button",
            {
              type: "button",
              class: "ins-button ins-read-button",
              onclick: () => trigger("read", { id: state.value.id }),
            },
            "Read the latents by layer (loads the model)",
          )
        : make(
            "p",
            { class: "ins-says" },
            "Reading by layer needs the run’s model, which is not one of those offered here.",
          ),
    );
  lensBox.replaceChildren(...parts);
}

const depictBox = make("div", { class: "ins-pictures-row" }),
  depictNote = make("p", { class: "ins-says" });
const depict = panel(
  "depict",
  "What the block depicts",
  "A decoder trained on this checkpoint’s latents paints the picture that they stand for: the whole block, then each latent alone. Blur and grey mean that it is not in them.",
  depictBox,
  depictNote,
);
function drawDepict() {
  const pictures = state.value.depict,
    shown = pictures?.find((b) => b.number === state.block) ?? pictures?.[0];
  depict.node.hidden = !shown;
  if (!shown) return;
  const steps = state.value.of.filter((n) => isLatent(n) && items()[n].b === shown.number);
  depictBox.replaceChildren(
    make(
      "button",
      { type: "button", class: "ins-whole", disabled: true },
      make("img", { src: shown.whole, alt: `Decoded picture of block ${shown.number + 1}` }),
      `block ${shown.number + 1}`,
    ),
    ...shown.each.map((url, i) =>
      make(
        "button",
        { type: "button", "aria-pressed": String(steps[i] === state.selected), onclick: () => choose(steps[i]) },
        make("img", { src: url, alt: `Decoded picture of latent ${i + 1} alone` }),
        String(i + 1),
      ),
    ),
  );
  const report = state.value.measured.depict;
  depictNote.textContent = report
    ? `Share of the true pictures’ variance that it explains on the test split: ${Object.entries(report.explained)
        .map(([family, share]) => `${family} ${share.toFixed(2)}`)
        .join(", ")}.`
    : "";
}

// The rollout of row q: base64 of uint8, 255 for the largest of its row.
function rolloutMaps() {
  const sent = state.value.rollout,
    tokens = sent && atob(sent.maps).length / sent.peaks.length;
  return (
    sent && {
      peaks: sent.peaks,
      of: (q) =>
        Array.from(
          atob(sent.maps).slice(q * tokens, (q + 1) * tokens),
          (c) => (c.charCodeAt(0) * sent.peaks[q]) / 255,
        ),
    }
  );
}
const rolloutCanvas = make("canvas", { role: "img" });
const rollout = panel(
  "rollout",
  "Attention rollout",
  "Through which patches the selected state came about, attention multiplied through all layers; residual paths count half. Early tokens and image borders draw attention whatever is asked.",
  make("div", { class: "ins-stack" }, rolloutCanvas),
);
function drawRollout() {
  const q = rowOf(state.selected),
    maps = rolloutMaps(),
    image = state.images[0];
  rollout.node.hidden = !maps || !(q in maps.peaks) || !image?.naturalWidth || state.value.view.grids.length !== 1;
  if (rollout.node.hidden) return;
  const { of, peaks } = maps,
    map = of(q);
  drawHeat(rolloutCanvas, image, state.value.view.grids[0], map, 300, {
    low: 0,
    high: peaks.reduce((a, b) => Math.max(a, b), 0),
    cells: true,
    dim: 0.4,
  });
  rolloutCanvas.setAttribute(
    "aria-label",
    `Rollout of ${called(state.selected)}: ${(100 * map.reduce((a, b) => a + b, 0)).toFixed(0)}% comes from the image`,
  );
}

const measuredBox = make("div", {});
const measured = panel(
  "measured",
  "Measured on this checkpoint",
  "How often latents look at the thing that they are about, and what a classifier reads off their decoded pictures, over many runs.",
  measuredBox,
);
const percent = (share) =>
  `${(100 * share.value).toFixed(1)} [${(100 * share.low).toFixed(1)}, ${(100 * share.high).toFixed(1)}]`;
function ruleWords(rule) {
  return rule.kind === "similarity"
    ? `cosine, level ${rule.level}, ${rule.part ? "centred" : "raw"}`
    : `attention, layer ${rule.level + 1}, ${rule.part < 0 ? "mean of heads" : `head ${rule.part + 1}`}`;
}
function drawMeasured() {
  const { grounding, depict: read } = state.value.measured,
    parts = [];
  if (grounding)
    parts.push(
      make(
        "p",
        { class: "ins-says" },
        `Share of looks in the true region, percent with 95% interval, n = ${grounding.rows[0].latents.n} runs of ${grounding.family}. ${grounding.command}`,
      ),
      table(
        ["looks at the highest", "latents", "words", "random region"],
        grounding.rows.map((row) => [
          ruleWords(row.rule),
          percent(row.latents),
          percent(row.words),
          percent(row.elsewhere),
        ]),
      ),
    );
  if (read)
    parts.push(
      make(
        "p",
        { class: "ins-says" },
        `Marks that the classifier reads rightly, percent with 95% interval, n = ${read.read["from the block"].mark.n}. ${read.command}`,
      ),
      table(
        ["picture", "mark"],
        Object.entries(read.read)
          .filter(([name]) => !name.endsWith("alone"))
          .map(([name, row]) => [name, percent(row.mark)]),
      ),
    );
  measured.node.hidden = !parts.length;
  measuredBox.replaceChildren(...parts);
}
