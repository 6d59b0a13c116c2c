// What a person has asked for and not yet seen the end of. Gradio's events ask here for the time before they are sent
// (page.py), so that the server knows which of two that overtake each other is the later one.
const ADJUSTING = 2000; // milliseconds after such a run in which the next change starts one, too
const inscape = (window.inscape ??= {});
Object.assign(inscape, {
  asked: null, // when what is under way was asked for last; null at rest
  now() {
    return (this.last = Math.max(performance.timeOrigin + performance.now(), (this.last ?? 0) + 0.01));
  },
  // The inputs of an event, the first of which says what `what` does. Where nothing is asked for, an empty field is no
  // reason for a complaint.
  tell(what, rest) {
    const first = this[what]();
    return [first, ...(first < 0 ? rest.map((value) => value ?? 0) : rest)];
  },
  // Run was pressed.
  run() {
    comeIntoView();
    this.adjusted = false;
    return this.mark(this.now());
  },
  // The next step of what was asked for, or a change while it is under way; negative at rest and after Stop.
  again() {
    return this.asked === null ? -1 : (this.asked = this.now());
  },
  // A setting changed, and then the next step of that. A number that is being typed is none yet. Who has just changed
  // one during a run and goes on changing does not care whether the run that came of it was so short as to be over.
  change() {
    const field = document.activeElement,
      typing = field?.matches?.("input[type='number']") && field.value === "";
    this.changing = !typing && (this.asked !== null || (this.adjusted && this.now() - this.over < ADJUSTING));
    if (this.changing) this.adjusted = Boolean(this.mark(this.now()));
    return this.changed();
  },
  changed() {
    return this.changing ? this.again() : -1;
  },
  stop() {
    this.adjusted = false;
    this.mark(null);
    return this.now();
  },
  // The end of what was asked for at a time is known: it is at rest, unless more was asked for since.
  ended(at) {
    if (this.asked === null || at < this.asked) return;
    this.over = this.now();
    this.mark(null);
  },
  mark(asked) {
    this.asked = asked;
    const stop = document.querySelector("#ins-stop");
    if (stop) stop.disabled = asked === null;
    return asked;
  },
  // The run in view, for the pages that go on from it, and which way led there.
  view: null,
  show(run) {
    this.view = { run: String(run), at: this.now() };
  },
  shown() {
    return this.view;
  },
});

// Where the columns stand one above the other, the answer would come out of sight. The focus stays where it is.
function comeIntoView() {
  const panel = element.querySelector("section"),
    { top, bottom } = panel.getBoundingClientRect();
  const visible = Math.min(bottom, innerHeight) - Math.max(top, 0);
  if (visible >= Math.min(bottom - top, 160)) return;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  panel.scrollIntoView({ block: "start", behavior: still ? "instant" : "smooth" });
}

// Enter in the question runs it, with Shift it breaks the line: the other way round than Gradio's. Not while an input
// method is composing, where Enter takes a word.
function enterRuns(event) {
  if (event.key !== "Enter" || event.isComposing || !event.target.matches?.("#ins-question textarea")) return;
  event.stopPropagation();
  if (event.shiftKey) return;
  event.preventDefault();
  if (event.type === "keydown" && !event.repeat) document.querySelector("#ins-run").click();
}
document.addEventListener("keydown", enterRuns, true);
document.addEventListener("keypress", enterRuns, true);
