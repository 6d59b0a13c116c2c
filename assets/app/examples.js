// Thumbnails of example scenes; a click loads one. The one whose image stands in the well is marked.
const box = element.querySelector(".ins-examples");
for (const example of props.value) {
  const picture = document.createElement("img"),
    button = document.createElement("button");
  picture.src = example.image;
  picture.alt = "";
  button.type = "button";
  button.className = "ins-example";
  button.setAttribute("aria-label", `Example scene: ${example.family}, ${example.question}`);
  button.setAttribute("aria-pressed", "false");
  button.append(picture, example.family);
  button.onclick = () => {
    mark(example);
    trigger("pick", { family: example.family, seed: example.seed });
  };
  box.append(button);
}
function mark(shown) {
  props.value.forEach((example, i) => box.children[i].setAttribute("aria-pressed", String(example === shown)));
}
document.addEventListener(
  "load",
  ({ target }) => {
    // an image of the well, whoever put it there
    const pictures = document.querySelectorAll("#ins-well img");
    if (target.closest?.("#ins-well"))
      mark(
        pictures.length === 1 &&
          props.value.find(({ file }) => new URL(file.url, document.baseURI).href === pictures[0].src),
      );
  },
  true,
);
