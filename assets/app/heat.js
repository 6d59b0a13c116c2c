// Colour and drawing: magma, screened onto the dimmed image, so that low values leave the image as it is.
const HEAT = ["#000004", "#1d1147", "#51127c", "#832681", "#b73779", "#e65164", "#fb8861", "#fec287", "#fcfdbf"].map(
  (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)),
);
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

function heat(t) {
  const x = clamp(t, 0, 1) * 8,
    i = Math.min(7, Math.floor(x)),
    f = x - i;
  return HEAT[i].map((v, k) => Math.round(v + (HEAT[i + 1][k] - v) * f));
}
const rgb = (c) => `rgb(${c[0]} ${c[1]} ${c[2]})`;
const RAMP = `linear-gradient(to right, ${HEAT.map(rgb).join(", ")})`;

// Cubic B-spline of a map (rows × columns, row by row) at column x, row y, in cells.
function smooth(map, rows, columns, x, y) {
  const w = (t) => [
    (1 - t) ** 3 / 6,
    (3 * t ** 3 - 6 * t * t + 4) / 6,
    (-3 * t ** 3 + 3 * t * t + 3 * t + 1) / 6,
    t ** 3 / 6,
  ];
  const i = Math.floor(x - 0.5),
    j = Math.floor(y - 0.5),
    a = w(x - 0.5 - i),
    b = w(y - 0.5 - j);
  let sum = 0;
  for (let m = 0; m < 4; m++)
    for (let n = 0; n < 4; n++)
      sum += b[m] * a[n] * map[clamp(j - 1 + m, 0, rows - 1) * columns + clamp(i - 1 + n, 0, columns - 1)];
  return sum;
}

// A canvas of `width` CSS pixels with the image's own proportions.
function fit(canvas, width, ratio) {
  const scale = clamp(window.devicePixelRatio || 1, 2, 3);
  canvas.width = Math.round(width * scale);
  canvas.height = Math.max(1, Math.round((width * scale) / ratio));
  return canvas.getContext("2d");
}

function drawHeat(canvas, image, [rows, columns], map, width, { low, high, cells = false, dim = 0.45, gamma = 1 }) {
  const c = fit(canvas, width, image.naturalWidth / image.naturalHeight),
    w = canvas.width,
    h = canvas.height;
  c.imageSmoothingQuality = "high";
  c.drawImage(image, 0, 0, w, h);
  if (!map) return;
  c.fillStyle = `rgb(4 6 9 / ${dim})`;
  c.fillRect(0, 0, w, h);
  c.globalCompositeOperation = "screen";
  const norm = (v) => clamp((v - low) / (high - low || 1), 0, 1) ** gamma;
  if (cells) {
    const edge = (n, of, size) => Math.round((n * size) / of);
    for (let i = 0; i < rows * columns; i++) {
      const r = Math.floor(i / columns),
        k = i % columns,
        x = edge(k, columns, w),
        y = edge(r, rows, h);
      c.fillStyle = rgb(heat(norm(map[i])));
      c.fillRect(x, y, edge(k + 1, columns, w) - x, edge(r + 1, rows, h) - y);
    }
  } else {
    const side = 48,
      layer = document.createElement("canvas");
    layer.width = layer.height = side;
    const lc = layer.getContext("2d"),
      pixels = lc.createImageData(side, side);
    for (let y = 0; y < side; y++)
      for (let x = 0; x < side; x++) {
        const p = heat(norm(smooth(map, rows, columns, ((x + 0.5) / side) * columns, ((y + 0.5) / side) * rows)));
        pixels.data.set([...p, 255], (y * side + x) * 4);
      }
    lc.putImageData(pixels, 0, 0);
    c.drawImage(layer, 0, 0, w, h);
  }
  c.globalCompositeOperation = "source-over";
}

// One patch with a third of its neighbours around it.
function drawPatch(canvas, image, [rows, columns], cell, width) {
  const c = fit(canvas, width, 1),
    n = canvas.width;
  const pw = image.naturalWidth / columns,
    ph = image.naturalHeight / rows,
    pad = 0.35;
  c.fillStyle = "#0a0d11";
  c.fillRect(0, 0, n, n);
  c.imageSmoothingQuality = "high";
  c.drawImage(
    image,
    ((cell % columns) - pad) * pw,
    (Math.floor(cell / columns) - pad) * ph,
    pw * (1 + 2 * pad),
    ph * (1 + 2 * pad),
    0,
    0,
    n,
    n,
  );
}

// An element with attributes and children; strings become text, never HTML.
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node[name] = value;
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}
const one = (selector, root = element) => root.querySelector(selector);
const all = (selector, root = element) => [...root.querySelectorAll(selector)];
const signed = (v) => (v < 0 ? "−" : "") + Math.abs(v).toFixed(2);
const short = (v) => signed(v).replace("0.", ".");
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
const place = (cell, columns) => `(${Math.floor(cell / columns)}, ${cell % columns})`;
