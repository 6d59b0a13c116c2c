// Words and latents in the order in which they look into the painted region. The run's own words come from its view.
function part(name) {
  return one(`[data-part="${name}"]`);
}
let names = [],
  shown = null; // of the run in view
document.addEventListener("ins-items", ({ detail }) => {
  ({ names, run: shown } = detail);
});

function bars(title, rows, key) {
  const most = Math.max(...rows.map((row) => Math.abs(row[key] ?? 0)), 1e-6);
  return make(
    "div",
    {},
    make("h3", {}, title),
    make(
      "ol",
      { class: "ins-bars" },
      ...rows.slice(0, 10).map((row) => {
        const bar = make("i", { "aria-hidden": "true" });
        bar.style.width = `${(100 * Math.max(0, row[key] ?? 0)) / most}%`;
        return make(
          "li",
          {},
          make(
            "button",
            {
              type: "button",
              class: row.latent ? "ins-of-latent" : "",
              onclick: () => tellSelected(props.value.run, row.n),
            },
            bar,
            make("span", {}, names[row.n] ?? `step ${row.n}`),
            make("b", {}, signed(row[key] ?? 0)),
          ),
        );
      }),
    ),
  );
}

function update() {
  const value = props.value;
  part("box").hidden = !value || (value.run ?? shown) !== shown; // another run was chosen before the answer came
  if (part("box").hidden) return;
  part("trouble").hidden = !value.problem;
  part("trouble").textContent = value.problem ?? "";
  part("lists").hidden = Boolean(value.problem);
  if (value.problem) {
    part("count").textContent = "";
    return;
  }
  part("count").textContent = `${value.tokens} of ${value.of} patches`;
  const lists = [];
  if (value.by_attention.length) lists.push(bars("By attention: share of it inside", value.by_attention, "attention"));
  lists.push(bars("By similarity: mean cosine inside", value.by_cosine, "cosine"));
  const rich = value.enrichment;
  if (rich)
    lists.push(
      make(
        "div",
        {},
        make("h3", {}, "Enrichment by layer"),
        make(
          "p",
          { class: "ins-small" },
          "Attention inside over attention on other regions of this size; 1 is no preference.",
        ),
        make(
          "table",
          { class: "ins-table" },
          make(
            "thead",
            {},
            make(
              "tr",
              {},
              make("th", { scope: "col" }, "layer"),
              ...["latents", "words"].filter((kind) => rich[kind]).map((kind) => make("th", { scope: "col" }, kind)),
            ),
          ),
          make(
            "tbody",
            {},
            ...rich.layers.map((layer, e) =>
              make(
                "tr",
                {},
                make("th", { scope: "row" }, String(layer + 1)),
                ...["latents", "words"]
                  .filter((kind) => rich[kind])
                  .map((kind) => make("td", {}, `${rich[kind][e].toFixed(2)}×`)),
              ),
            ),
          ),
        ),
      ),
    );
  part("lists").replaceChildren(...lists);
  part("formulas").replaceChildren(
    ...value.formulas.map(({ name, text }) => make("div", {}, make("b", {}, name), make("pre", {}, text))),
  );
  const first = (value.by_attention[0] ?? value.by_cosine[0]).n;
  part("said").textContent = `${names[first] ?? "One step"} looks there most.`;
}
part("close").onclick = () => {
  part("box").hidden = true;
  document.dispatchEvent(new CustomEvent("ins-region-closed"));
};
document.addEventListener("ins-items", () => {
  part("box").hidden = true;
});
watch("value", update);
update();
