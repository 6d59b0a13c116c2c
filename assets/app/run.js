// Updates of a run: new items are appended, a new run starts afresh, updates of earlier runs are dropped.
const HISTORY = 6;
const history = []; // final values of finished runs, newest last
let latest = { run: -1, items: [] }; // the last value of the newest run, with all its items

function reset(value) {
  for (const image of run.images ?? []) image.onload = null;
  Object.assign(run, {
    value,
    items: [],
    nodes: [],
    strips: {},
    stale: new Set(),
    images: [],
    grids: [],
    offsets: [0],
    tokens: 0,
    maps: null,
    level: 0,
    layer: 0,
    head: 0,
    shown: "centred",
    own: part("own").checked,
    selected: -1,
    image: 0,
    cell: null,
    region: null,
    follow: true,
    fresh: 0,
  });
  part("transcript").replaceChildren();
  part("idle").hidden = true;
  part("saw").textContent = "";
  part("asked").textContent = value.question ?? "";
  part("asked").hidden = !value.question;
  if (value.run) inscape.show(value.run);
  drawPanel();
}

function show(value) {
  run.value = value;
  if (value.images && !run.images.length) {
    takeImages(value);
    settleMap();
  }
  run.fresh = 0;
  const first = value.n - value.items.length;
  value.items.forEach((item, k) => {
    if (first + k === run.items.length) append(item, first + k);
  });
  if (value.maps && !run.maps) {
    run.maps = decodeMaps(value.maps);
    const look = run.maps.attention;
    if (look) {
      part("head").replaceChildren(
        ...Array.from({ length: look.heads }, (_, h) => make("option", { value: h }, h ? String(h) : "mean of all")),
      );
    }
    settleMap();
    for (const block in run.strips) run.stale.add(Number(block));
  }
  drawStrips();
  if (value.finish) quietAnswer();
  if (run.follow) follow(value);
  else if (value.finish) drawPanel();
  drawAnswer(value);
  drawStatus(value);
  part("problem").hidden = !value.problem;
  part("problem").textContent = value.problem ?? "";
  part("transcript").setAttribute("aria-busy", String(value.state === "running"));
}

// Until a person selects something, the panel follows the newest latent.
function follow(value) {
  let n = run.items.length - 1;
  while (n >= 0 && run.items[n].k !== "latent") n -= 1;
  if (n < 0 && value.finish) n = run.nodes.findIndex(Boolean);
  if (n >= 0 && (n !== run.selected || value.finish)) select(n, false);
}

function takeImages(value) {
  run.grids = value.grids;
  run.offsets = value.grids.reduce((sums, [rows, columns]) => [...sums, sums.at(-1) + rows * columns], [0]);
  run.tokens = run.offsets.at(-1);
  run.images = value.images.map((url) => {
    const image = new Image();
    image.onload = redraw;
    image.src = url;
    return image;
  });
  const one = value.sizes.length === 1;
  part("saw").textContent =
    `${value.checkpoint}, ` +
    value.sizes
      .map(
        ([w, h], i) =>
          `${one ? "the model saw " : ""}${w} × ${h} px, ${value.grids[i][0]} × ${value.grids[i][1]} patches`,
      )
      .join("; ");
}

function redraw() {
  for (const block in run.strips) run.stale.add(Number(block));
  drawStrips();
  if (run.selected >= 0) drawPanel();
}

function drawAnswer(value) {
  const answer = value.finish?.answer;
  part("answer").hidden = !answer && !value.truth;
  if (part("answer").hidden) return;
  const line = [
    make("span", { class: "ins-label" }, "Answer"),
    answer ? make("span", { class: "ins-big" }, answer) : make("span", {}, "none was given"),
  ];
  if (answer) line.push(make("span", { class: "ins-small" }, `probability ${value.finish.probability.toFixed(2)}`));
  if (value.truth) line.push(make("span", { class: "ins-small" }, `truth of the scene: ${value.truth}`));
  part("answer").replaceChildren(...line);
}

function drawStatus(value) {
  const facts = [],
    fact = (number, words) => facts.push(make("span", {}, make("b", {}, number), ` ${words}`));
  const state = (words) => facts.push(make("span", { class: "ins-state" }, words));
  const finish = value.finish;
  if (value.state === "failed") state("Not run");
  else if (value.state === "stopped") state("Stopped");
  else if (!finish) {
    state(value.images ? "Streaming" : "Reading the image");
    const last = run.items.at(-1);
    if (value.n) fact(String(run.items.filter((item) => item.k !== "latent").length), "tokens");
    if (last?.k === "latent") fact(`${last.i + 1} of ${value.k}`, `latents of block ${last.b + 1}`);
  } else {
    const none = finish.blocks === 0 && value.opens && value.mode !== "text";
    state(
      {
        stop: none ? "Finished, no block opened" : "Finished",
        length: "Reached the token limit",
        cancelled: "Stopped",
      }[finish.reason],
    );
    if (finish.tokens_per_second) fact(finish.tokens_per_second.toFixed(0), "tokens/s");
    if (finish.ms_per_latent) fact(finish.ms_per_latent.toFixed(1), "ms per latent");
    fact(String(finish.blocks), finish.blocks === 1 ? "block" : "blocks");
    fact(String(finish.latents), finish.latents === 1 ? "latent" : "latents");
    fact(finish.seconds.toFixed(2), "s in all");
    if (value.opens)
      fact(
        finish.max_p_open.toFixed(2),
        none ? "highest probability of opening a block" : "probability of opening a block",
      );
    facts.push(
      make(
        "button",
        {
          type: "button",
          class: "ins-button ins-inspect",
          onclick: () => {
            inscape.show(value.run);
            document.querySelector("#ins-tabs [role=tab]:nth-of-type(2)")?.click();
          },
        },
        "Inspect this run",
      ),
    );
    if (none && finish.reason !== "cancelled")
      facts.push(
        make(
          "button",
          {
            type: "button",
            class: "ins-button",
            onclick: () => {
              inscape.run();
              trigger("force", {});
            },
          },
          "Force a block and run again",
        ),
      );
  }
  part("status").replaceChildren(...facts);
  part("trace").disabled = !value.trace;
}

const MODES = {
  latent: (v) => `K ${v.k}`,
  text: () => "text only",
  forced: (v) => `forced K ${v.k}`,
  markers: () => "markers only",
};
const runName = (value) =>
  `${value.label}${value.opens ? `, ${MODES[value.mode](value)}` : ""}: ${value.finish ? (value.finish.answer ?? "no answer") : "…"}`;
function drawHistory() {
  const runs = latest.state === "running" ? [...history, latest] : history;
  part("runs").hidden = runs.length < 2;
  part("runs").replaceChildren(
    ...runs.map((value) =>
      make(
        "button",
        {
          type: "button",
          class: "ins-chip",
          "aria-pressed": String(value.run === run.value.run),
          title: value.question,
          onclick: () => choose(value),
        },
        runName(value),
      ),
    ),
  );
}

// A run that is shown again brings the latent or word that was selected in it, and what it was asked.
function choose(value) {
  const n = selections.get(String(value.run));
  reset(value);
  show(value);
  if (n !== undefined) select(n, true);
  tellItems();
  drawHistory();
  if (value.finish) trigger("choose", { run: String(value.run) });
}

part("trace").onclick = () =>
  saveTrace(run.value.trace, (sentence) => {
    part("problem").hidden = false;
    part("problem").textContent = sentence;
  });

// Other views name the words and latents of this run as this one does.
function tellItems() {
  document.dispatchEvent(
    new CustomEvent("ins-items", {
      detail: {
        run: String(run.value.run),
        names: run.items.map((item) =>
          item.k === "latent" ? `latent ${item.i + 1} of block ${item.b + 1}` : (item.t ?? "").trim() || "space",
        ),
      },
    }),
  );
}

let spoken = "";
function say(words) {
  if (words !== spoken) part("live").textContent = spoken = words;
}

function update() {
  const value = props.value;
  if (!value || value.run < latest.run) return;
  const fresh = value.run > latest.run,
    items = fresh ? [] : latest.items,
    first = value.n - value.items.length;
  value.items.forEach((item, k) => {
    items[first + k] ??= item;
  });
  latest = { ...value, items };
  if (fresh) reset(value); // a new run is shown; an earlier one that is chosen meanwhile stays
  const inView = run.value.run === value.run,
    busy = value.state === "running";
  if (inView) show(latest);
  if (busy && !value.n) say("Running");
  if (!busy) {
    inscape.ended(value.at);
    say(
      value.problem ??
        (value.state === "stopped"
          ? "Stopped"
          : value.finish?.answer
            ? `Finished. Answer: ${value.finish.answer}`
            : "Finished"),
    );
    if (value.finish && inView) tellItems();
    const at = history.findIndex((old) => old.run === value.run);
    if (at >= 0)
      history[at] = latest; // its trace comes after its end
    else if (value.finish) history.push(latest);
    if (history.length > HISTORY) history.shift();
  }
  if (fresh || !busy) drawHistory();
}

// A run's updates begin with the run; before that the page says how many wait.
let timer = 0;
function awaitTurn() {
  const before = latest.run;
  clearInterval(timer);
  timer = setInterval(async () => {
    let size = 0;
    try {
      size = (await (await fetch(new URL("gradio_api/queue/status", document.baseURI))).json()).queue_size;
    } catch {
      clearInterval(timer);
      return;
    } // Gradio itself says that the connection is lost
    const stopped = inscape.asked === null;
    if (latest.run !== before || stopped || !size) clearInterval(timer);
    if (latest.run !== before || (!stopped && !size)) return;
    if (stopped) return part("status").replaceChildren(make("span", { class: "ins-state" }, "Stopped"));
    const words = `The server is busy: ${size === 1 ? "1 question waits" : `${size} questions wait`}`;
    part("status").replaceChildren(make("span", { class: "ins-state" }, words));
    say(words);
  }, 1000);
}
document.addEventListener("click", (event) => {
  if (event.target.closest?.("#ins-run")) awaitTurn();
});

// What a run still had to say when the connection broke does not come any more.
document.addEventListener("ins-lost", () => {
  if (props.value?.state !== "running") return;
  props.value = {
    ...props.value,
    state: "failed",
    problem: "The connection was lost during this run; run the question again.",
  };
  update();
});

followSelected(
  (shown) => shown === String(run.value?.run),
  (n) => select(n, true, true),
);
part("level").disabled = true;
reset({ items: [], n: 0 });
part("idle").hidden = false;
watch("value", update);
update();
