// The response: words are inline, a block is a strip of cards inside the sentence. Nodes are appended, never rebuilt.
const run = {}; // what is shown: see reset() in run.js
const selectable = (n) => run.nodes[n] !== undefined;

function append(item, n) {
  run.items[n] = item;
  if (item.k === "latent") appendCard(item, n);
  else if (item.k === "open") openStrip(item.b, item.f);
  else if (item.k === "close") closeStrip(item.b);
  else if (item.k === "text") appendWord(item, n);
}

function appendWord(item, n) {
  const [, space, word] = /^(\s*)([\s\S]*)$/.exec(item.t);
  if ((space && !part("transcript").lastElementChild?.matches(".ins-strip")) || run.nodes[n - 1])
    part("transcript").append(space);
  if (!word) return;
  const node = make("span", {
    class: "ins-token",
    role: "button",
    "aria-pressed": "false",
    onclick: () => select(n, true),
  });
  node.textContent = word;
  addNode(node, n, part("transcript"));
}

function appendCard(item, n) {
  const strip = run.strips[item.b] ?? openStrip(item.b, false);
  const node = make(
    "button",
    {
      type: "button",
      class: "ins-card",
      "aria-pressed": "false",
      onclick: () => select(n, true),
      "aria-label": `Latent ${item.i + 1} of block ${item.b + 1}`,
    },
    make("canvas", { "aria-hidden": "true" }),
    make("span", { class: "ins-foot" }, make("b", {}, String(item.i + 1)), make("span")),
  );
  node.style.setProperty("--delay", `${40 * run.fresh++}ms`);
  strip.latents.push(n);
  if (item.c) {
    // a grid of parallel latents looks like one
    strip.cards.classList.add("ins-grid");
    strip.cards.style.setProperty("--columns", item.c);
  }
  addNode(node, n, strip.cards);
  run.stale.add(item.b);
}

function addNode(node, n, parent) {
  node.tabIndex = run.nodes.some(Boolean) ? -1 : 0;
  run.nodes[n] = node;
  parent.append(node);
}

function openStrip(block, forced) {
  const cards = make("span", { class: "ins-cards" }),
    caption = make("span", { class: "ins-caption" });
  const box = make("span", { class: "ins-strip", role: "group", "aria-label": `Block ${block + 1}` }, cards, caption);
  run.strips[block] = { cards, caption, forced, latents: [], closed: false };
  part("transcript").append(box);
  say(`Block ${block + 1} opened`);
  run.stale.add(block);
  return run.strips[block];
}

function closeStrip(block) {
  if (run.strips[block]) run.strips[block].closed = true;
  run.stale.add(block);
}

// Cards and caption of one block, all on the block's own scale.
function drawStrip(block) {
  const strip = run.strips[block],
    count = strip.latents.length;
  const last = strip.latents.at(-1),
    each = run.value.finish?.ms_per_latent;
  const lines = [make("b", {}, `Block ${block + 1}`)];
  if (count)
    lines.push(make("span", {}, plural(count, "latent") + (each ? ` in ${Math.round(count * each)} ms` : "")));
  else if (strip.closed) lines.push(make("span", {}, "markers only, no latents"));
  if (strip.forced) lines.push(make("span", {}, "forced (off-policy)"));
  if (count && mapOf(last)) {
    const peak = peakOf(mapOf(last)),
      many = run.images.length > 1 ? ` of image ${peak.image + 1}` : "";
    lines.push(make("span", {}, `looks at patch ${place(peak.cell, run.grids[peak.image][1])}${many}`));
  }
  strip.caption.replaceChildren(...lines);
  const range = rangeOf(last);
  for (const n of strip.latents) {
    const map = mapOf(n);
    if (!map) continue;
    const peak = peakOf(map),
      image = run.images[peak.image];
    one(".ins-foot span", run.nodes[n]).textContent = short(peak.value);
    if (image?.complete && image.naturalWidth)
      drawHeat(one("canvas", run.nodes[n]), image, run.grids[peak.image], partOf(map, peak.image), 92, {
        ...range,
        dim: 0.34,
        gamma: 1.2,
      });
  }
}

function drawStrips() {
  for (const block of run.stale) drawStrip(block);
  run.stale.clear();
}

// What stands in \boxed{…} is repeated as the answer below: there it is large, here it is quiet.
function quietAnswer() {
  const text = run.items.map((item) => (item.k === "text" ? item.t : "")).join("");
  const spans = [...text.matchAll(/\\boxed\{[^{}]*\}/g)].map((m) => [m.index, m.index + m[0].length]);
  let at = 0;
  run.items.forEach((item, n) => {
    if (item.k !== "text") return;
    const end = at + item.t.length,
      from = at;
    if (run.nodes[n] && spans.some(([a, b]) => from < b && end > a)) run.nodes[n].classList.add("ins-quiet");
    at = end;
  });
}

function step(by) {
  let n = run.selected + by;
  if (run.selected < 0) n = by > 0 ? 0 : run.items.length - 1;
  while (n >= 0 && n < run.items.length && !selectable(n)) n += by;
  if (selectable(n)) select(n, true);
}

part("transcript").addEventListener("keydown", (event) => {
  const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (by) step(by);
  else if (event.key === "Home") {
    run.selected = -1;
    step(1);
  } else if (event.key === "End") {
    run.selected = run.items.length;
    step(-1);
  } else if (event.key === "Enter" || event.key === " ") select(run.nodes.indexOf(document.activeElement), true);
  else return;
  event.preventDefault();
  run.nodes[run.selected]?.focus();
});

function select(n, byHand, announced = false) {
  if (!selectable(n)) return;
  if (!announced) tellSelected(run.value.run, n, byHand);
  if (byHand) run.follow = false;
  const before = run.nodes.find((node) => node?.getAttribute("aria-pressed") === "true");
  before?.setAttribute("aria-pressed", "false");
  for (const node of run.nodes) if (node?.tabIndex === 0) node.tabIndex = -1;
  run.selected = n;
  run.nodes[n].setAttribute("aria-pressed", "true");
  run.nodes[n].tabIndex = 0;
  run.cell = null;
  drawPanel();
}
