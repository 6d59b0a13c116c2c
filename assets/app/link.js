// One selection for all views of a run: whoever selects tells the document, whoever shows that run follows, now or when
// it comes to show it.
const selections = ((window.inscape ??= {}).selections ??= new Map()); // the selected step, by the run's id
function tellSelected(run, n, byHand = true) {
  if (byHand) selections.set(String(run), n); // what a run selects by itself while it streams is nobody's choice
  document.dispatchEvent(new CustomEvent("ins-select", { detail: { run: String(run), n, from: element } }));
}
function followSelected(isShown, take) {
  const listen = ({ detail }) => {
    if (!element.isConnected) return document.removeEventListener("ins-select", listen);
    if (detail.from !== element && isShown(detail.run)) take(detail.n, detail.run);
  };
  document.addEventListener("ins-select", listen);
}

// A run's trace, as a download; `trouble` is told where it is gone.
async function saveTrace({ url, path }, trouble) {
  const got = await fetch(url).catch(() => null);
  if (!got?.ok) return trouble("That run is not kept any more; run the question again.");
  const link = make("a", { href: URL.createObjectURL(await got.blob()), download: path.split(/[\\/]/).at(-1) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
