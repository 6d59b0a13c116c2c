// One selection for all views of a run: whoever selects tells the document, whoever shows that run follows.
function tellSelected(run, n) {
  document.dispatchEvent(new CustomEvent("ins-select", { detail: { run: String(run), n, from: element } }));
}
function followSelected(isShown, take) {
  const listen = ({ detail }) => {
    if (!element.isConnected) return document.removeEventListener("ins-select", listen);
    if (detail.from !== element && isShown(detail.run)) take(detail.n, detail.run);
  };
  document.addEventListener("ins-select", listen);
}
