// A run in one line of buttons, words and small cards, as Inspect and Compare show it; and tables.
function miniCard(items, n, image, grids, mapOf, onclick) {
  const item = items[n],
    canvas = make("canvas", { "aria-hidden": "true" }),
    map = mapOf(n);
  if (map && grids.length === 1 && image?.naturalWidth) {
    // one scale for the block
    const group = items.flatMap((other, k) => (other.k === "latent" && other.b === item.b ? [mapOf(k)] : []));
    drawHeat(canvas, image, grids[0], map, 44, { ...scaleOf(group), dim: 0.34, gamma: 1.2 });
  }
  return make(
    "button",
    {
      type: "button",
      class: "ins-mini",
      "data-n": n,
      tabindex: "-1",
      "aria-pressed": "false",
      "aria-label": `Latent ${item.i + 1} of block ${item.b + 1}`,
      onclick,
    },
    canvas,
    make("b", {}, String(item.i + 1)),
  );
}
function wordButton(item, n, differs, onclick) {
  return make(
    "button",
    {
      type: "button",
      "data-n": n,
      tabindex: "-1",
      "aria-pressed": "false",
      class: differs ? "ins-changed" : "",
      "aria-label": `Word ${item.t.trim()}${differs ? ", differs" : ""}`,
      onclick,
    },
    item.t.trim(),
  );
}

// Arrow keys, Home and End walk the buttons of a track from the focused one.
function walk(track, choose) {
  track.onkeydown = (event) => {
    const buttons = all("button", track),
      at = buttons.indexOf(document.activeElement);
    const to = {
      ArrowRight: at + 1,
      ArrowDown: at + 1,
      ArrowLeft: at - 1,
      ArrowUp: at - 1,
      Home: 0,
      End: buttons.length - 1,
    }[event.key];
    if (to === undefined || !buttons[to]) return;
    event.preventDefault();
    choose(Number(buttons[to].dataset.n));
    one(`[data-n="${buttons[to].dataset.n}"]`, track).focus();
  };
}
// Marks the chosen step and makes it the track's one tab stop; without one, its first button is.
function press(track, n) {
  const buttons = all("button", track);
  for (const node of buttons) {
    const on = Number(node.dataset.n) === n;
    node.setAttribute("aria-pressed", String(on));
    node.tabIndex = on ? 0 : -1;
  }
  if (buttons.length && !buttons.some((node) => node.tabIndex === 0)) buttons[0].tabIndex = 0;
}

function table(head, rows) {
  return make(
    "div",
    { class: "ins-table-wrap", tabindex: "0", role: "group", "aria-label": "Table" },
    make(
      "table",
      { class: "ins-table" },
      make("thead", {}, make("tr", {}, ...head.map((cell) => make("th", { scope: "col" }, cell)))),
      make(
        "tbody",
        {},
        ...rows.map(([first, ...cells]) =>
          make("tr", {}, make("th", { scope: "row" }, first), ...cells.map((cell) => make("td", {}, cell))),
        ),
      ),
    ),
  );
}
