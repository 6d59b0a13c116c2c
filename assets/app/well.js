// Up to four images, as files that Gradio keeps: upload, drop, paste, remove. Python checks what they hold.
const LIMIT = 4;
const MOST_BYTES = 10_000_000; // of a file, as in app/limits.py; above it Gradio would show a notice of its own
const part = (name) => element.querySelector(`[data-part="${name}"]`);
const well = element.querySelector(".ins-well");
let adding = false;

function draw() {
  const files = props.value ?? [];
  well.dataset.empty = String(files.length === 0);
  part("hint").hidden = files.length > 0;
  part("add").hidden = files.length === 0 || files.length >= LIMIT;
  part("pictures").dataset.count = String(files.length);
  part("pictures").replaceChildren(
    ...files.map((file, n) => {
      const picture = document.createElement("img"),
        remove = document.createElement("button"),
        frame = document.createElement("div");
      picture.src = file.url;
      // what no browser shows (TIFF) comes back from Python as something that it does; until then its name stands here
      picture.onerror = () =>
        picture.replaceWith(
          Object.assign(document.createElement("span"), {
            className: "ins-name",
            textContent: file.orig_name ?? "image",
          }),
        );
      picture.alt = files.length > 1 ? `Image ${n + 1} of the question` : "The image of the question";
      remove.type = "button";
      remove.textContent = "×";
      remove.setAttribute("aria-label", `Remove image ${n + 1}`);
      remove.onclick = () => put(files.filter((_, k) => k !== n));
      frame.append(picture, remove);
      return frame;
    }),
  );
}

function problem(sentence) {
  part("problem").textContent = sentence;
  part("problem").hidden = !sentence;
}

function put(files) {
  props.value = files;
  draw();
  trigger("input", {});
}

// One file at a time: one that cannot be taken is named, and the others are taken all the same.
async function take(list, append) {
  const files = [...list],
    earlier = append ? (props.value ?? []) : [],
    sent = [],
    problems = [];
  if (!files.length) return;
  problem("");
  well.setAttribute("aria-busy", "true");
  for (const file of files) {
    if (earlier.length + sent.length === LIMIT) {
      problems.push(`A question carries at most ${LIMIT} images; the first ${LIMIT} are kept.`);
      break;
    }
    try {
      if (file.size > MOST_BYTES) throw new Error("size");
      const { path, url } = await upload(file);
      sent.push({
        path,
        url,
        orig_name: file.name,
        size: file.size,
        mime_type: file.type,
        meta: { _type: "gradio.FileData" },
      });
    } catch (error) {
      const reason = /"detail":"([^"]+)"/.exec(String(error))?.[1]; // the server's sentence, where it has one
      problems.push(
        /size/i.test(String(error))
          ? `${file.name} is larger than 10 MB; save it smaller or crop it.`
          : `${file.name}${reason ? `: ${reason}` : " could not be uploaded; try again."}`,
      );
    }
  }
  well.removeAttribute("aria-busy");
  problem(problems.join(" "));
  if (sent.length) put([...earlier, ...sent]);
}

part("upload").onclick = () => {
  adding = false;
  part("file").click();
};
part("add").onclick = () => {
  adding = true;
  part("file").click();
};
part("file").onchange = () => {
  take(part("file").files, adding).finally(() => {
    part("file").value = "";
  });
};
part("paste").onclick = async () => {
  try {
    const pasted = [];
    for (const item of await navigator.clipboard.read()) {
      const type = item.types.find((name) => name.startsWith("image/"));
      if (type) pasted.push(new File([await item.getType(type)], "pasted.png", { type }));
    }
    if (pasted.length) take(pasted, false);
    else problem("The clipboard holds no image.");
  } catch {
    problem("This browser does not let a page read the clipboard; press Ctrl+V instead.");
  }
};
document.addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith("image/"));
  if (files.length) {
    event.preventDefault();
    take(files, false);
  }
});
well.ondragover = (event) => {
  event.preventDefault();
  well.classList.add("ins-over");
};
well.ondragleave = () => well.classList.remove("ins-over");
well.ondrop = (event) => {
  event.preventDefault();
  well.classList.remove("ins-over");
  take(event.dataTransfer.files, false);
};

watch("value", () => {
  if (!props.value?.some((file) => file.orig_name)) problem(""); // another scene took the place of what was uploaded
  draw();
});
draw();
