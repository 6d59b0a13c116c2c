// Painting a region on the big image: drag, or Shift and arrow keys, then Enter. Python tells who looks there.
let painting = null; // { from, to } cells while the pointer is down

function regionCells() {
  if (!run.region || run.region.image !== run.image) return null;
  const [, columns] = run.grids[run.image],
    cells = [run.region.from, run.region.to];
  const rows = cells.map((cell) => Math.floor(cell / columns)),
    across = cells.map((cell) => cell % columns);
  return { top: Math.min(...rows), bottom: Math.max(...rows), left: Math.min(...across), right: Math.max(...across) };
}
function drawRegion() {
  for (const box of all(".ins-region", part("view"))) box.remove();
  const cells = regionCells();
  if (!cells) return;
  const [rows, columns] = run.grids[run.image],
    box = make("div", { class: "ins-cell ins-region" });
  Object.assign(box.style, {
    left: `${(100 * cells.left) / columns}%`,
    top: `${(100 * cells.top) / rows}%`,
    width: `${(100 * (cells.right - cells.left + 1)) / columns}%`,
    height: `${(100 * (cells.bottom - cells.top + 1)) / rows}%`,
  });
  part("view").append(box);
}
function askRegion() {
  const cells = regionCells();
  if (!cells) return;
  if (!run.maps) return say("A region can be asked about once the run has ended.");
  const [rows, columns] = run.grids[run.image],
    look = run.maps.attention;
  trigger("region", {
    run: String(run.value.run),
    image: run.image,
    box: [cells.left / columns, cells.top / rows, (cells.right + 1) / columns, (cells.bottom + 1) / rows],
    level: run.maps.levels[run.level],
    centred: run.shown === "centred",
    layer: look ? look.layers[run.layer] : 0,
    head: look && run.head < look.heads ? run.head : 0,
  });
}
function cellAt(event) {
  const box = part("view").getBoundingClientRect(),
    [rows, columns] = run.grids[run.image];
  const x = clamp(Math.floor(((event.clientX - box.left) / box.width) * columns), 0, columns - 1);
  return clamp(Math.floor(((event.clientY - box.top) / box.height) * rows), 0, rows - 1) * columns + x;
}
function paint(from, to) {
  run.region = { image: run.image, from, to };
  drawRegion();
}

part("view").addEventListener("pointerdown", (event) => {
  if (!run.grids[run.image] || event.button) return;
  painting = cellAt(event);
  part("view").setPointerCapture(event.pointerId);
});
part("view").addEventListener("pointermove", (event) => {
  if (painting !== null) paint(painting, cellAt(event));
});
part("view").addEventListener("pointerup", (event) => {
  if (painting === null) return;
  paint(painting, cellAt(event));
  painting = null;
  askRegion();
});
part("view").addEventListener("pointercancel", () => {
  painting = null;
});
part("view").addEventListener("keydown", (event) => {
  if (!run.grids[run.image] || run.cell === null) return;
  if (event.key === "Enter" || event.key === " ") {
    if (!event.shiftKey && !regionCells()) paint(run.cell, run.cell);
    askRegion();
  } else if (event.key === "Escape") {
    run.region = null;
    drawRegion();
  } else return;
  event.preventDefault();
});
document.addEventListener("ins-region-closed", () => {
  run.region = null;
  drawRegion();
});
