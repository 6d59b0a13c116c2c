// The maps of a run, and which of them is shown: what the checkpoint's own measurements found best, until a person chooses.
// Maps arrive as base64 of int16, items × levels × image tokens, 10,000 units per 1; attention as uint8.
function decodeMaps(maps) {
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)),
    numbers = (text) => new Int16Array(bytes(text).buffer);
  const rows = (of) => new Map(of.map((n, q) => [n, q]));
  const look = maps.attention && {
    ...maps.attention,
    row: rows(maps.attention.of),
    baseline: maps.attention.baseline && bytes(maps.attention.baseline),
    maps: bytes(maps.attention.maps),
  };
  return { ...maps, raw: numbers(maps.raw), centred: numbers(maps.centred), row: rows(maps.of), attention: look };
}

// What a person chose, by name: shown (raw, centred, attention, minus), level, layer, head. It lasts as long as the tab.
const CHOSEN = "ins-map";
let choiceHere = {}; // storage may be forbidden; the choice then lasts as long as the page
function chosenMap() {
  try {
    const stored = JSON.parse(sessionStorage.getItem(CHOSEN));
    return typeof stored === "object" && stored ? stored : choiceHere;
  } catch {
    return choiceHere;
  }
}
function chooseMap(change) {
  choiceHere = change ? { ...chosenMap(), ...change } : {};
  try {
    sessionStorage.setItem(CHOSEN, JSON.stringify(choiceHere));
  } catch {
    /* see above */
  }
}

// Places in `maps`: of the level, of the layer, the head (0 the mean of all), and which kind of map is shown.
function mapShown(maps, looks) {
  const look = maps.attention,
    chosen = chosenMap();
  const recorded = (rule) =>
    rule.kind === "similarity"
      ? maps.levels.includes(rule.level)
      : look && look.layers.includes(rule.level) && rule.part + 1 < look.heads;
  const rules = looks.filter(recorded),
    similar = rules.find((rule) => rule.kind === "similarity"),
    attended = rules.find((rule) => rule.kind === "attention");
  const [best] = rules,
    place = (of, ...candidates) => candidates.map((one) => of.indexOf(one)).find((at) => at >= 0);
  let shown = !best ? "centred" : best.kind === "attention" ? "attention" : best.part ? "centred" : "raw";
  if (["raw", "centred"].includes(chosen.shown) || (look && ["attention", "minus"].includes(chosen.shown)))
    shown = chosen.shown;
  return {
    shown,
    level: place(maps.levels, chosen.level, similar?.level) ?? Math.max(0, maps.levels.length - 2),
    layer: look ? (place(look.layers, chosen.layer, attended?.level) ?? look.layers.length - 1) : 0,
    head:
      look && Number.isInteger(chosen.head) && chosen.head >= 0 && chosen.head < look.heads
        ? chosen.head
        : attended
          ? attended.part + 1
          : 0,
  };
}

// The map of item n, all image tokens of the run; null where it has none.
function mapIn(maps, tokens, at, n) {
  const look = maps.attention;
  if (look && (at.shown === "attention" || at.shown === "minus")) {
    const q = look.row.get(n);
    if (q === undefined) return null;
    const spot = (q * look.layers.length + at.layer) * look.heads + at.head,
      unit = look.peaks[spot] / 255;
    const map = Array.from(look.maps.subarray(spot * tokens, (spot + 1) * tokens), (units) => units * unit);
    if (at.shown !== "minus" || !look.baseline) return map;
    const base = at.layer * look.heads + at.head,
      step = look.base_peaks[base] / 255;
    return map.map((value, token) => Math.max(0, value - look.baseline[base * tokens + token] * step));
  }
  const q = maps.row.get(n),
    from = (q * maps.levels.length + at.level) * tokens;
  return q === undefined
    ? null
    : Array.from(
        maps[at.shown === "centred" ? "centred" : "raw"].subarray(from, from + tokens),
        (units) => units / 10000,
      );
}

// n → its map, in a run that is over, as the page shows it; and the words for it.
function mapsOf(view) {
  const tokens = view.grids.reduce((sum, [rows, columns]) => sum + rows * columns, 0),
    maps = view.maps && decodeMaps(view.maps);
  const at = maps && mapShown(maps, view.looks ?? []);
  return {
    of: (n) => (maps ? mapIn(maps, tokens, at, n) : (view.items[n].m ?? null)),
    words: maps ? mapWords(maps, at) : "",
  };
}
function mapWords(maps, at) {
  if (maps.attention && (at.shown === "attention" || at.shown === "minus"))
    return `attention of layer ${maps.attention.layers[at.layer] + 1}, ${at.head ? `head ${at.head}` : "mean of all heads"}${at.shown === "minus" ? ", minus what words look at" : ""}`;
  return `cosine with the image patches, level ${maps.levels[at.level]}, ${at.shown}`;
}

// One colour scale for maps that are drawn together, so that magnitude stays visible. Zero, and what lies below, is black.
const scaleOf = (maps) => ({
  low: 0,
  high: maps.filter(Boolean).reduce((high, map) => map.reduce((a, b) => Math.max(a, b), high), 1e-6),
});
