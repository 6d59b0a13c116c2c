// Thumbnails of example scenes; a click loads one.
const box = element.querySelector(".ins-examples");
for (const example of props.value) {
  const picture = document.createElement("img"), button = document.createElement("button");
  picture.src = example.image;
  picture.alt = "";
  button.type = "button";
  button.className = "ins-example";
  button.setAttribute("aria-label", `Example scene: ${example.family}, ${example.question}`);
  button.setAttribute("aria-pressed", "false");
  button.append(picture, example.family);
  button.onclick = () => {
    for (const other of box.children) other.setAttribute("aria-pressed", String(other === button));
    trigger("pick", { family: example.family, seed: example.seed });
  };
  box.append(button);
}
