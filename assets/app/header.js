// Light and dark: the stored choice, else what Gradio took from ?__theme or the system.
const button = element.querySelector('[data-part="theme"]');
const requested = new URLSearchParams(location.search).get("__theme");
const glossary = element.querySelector("details");
function stored(value) {
  try {
    if (value) localStorage.setItem("ins-theme", value);
    return localStorage.getItem("ins-theme");
  } catch {
    return null;
  } // storage may be forbidden; the choice then lasts as long as the page
}
function setTheme(name) {
  document.body.classList.toggle("dark", name === "dark");
  button.querySelector("span").textContent = name === "dark" ? "Light" : "Dark";
  button.setAttribute("aria-label", `Switch to the ${name === "dark" ? "light" : "dark"} theme`);
}
const system = () => (document.body.classList.contains("dark") ? "dark" : "light");
setTheme(requested ? system() : (stored() ?? system()));
button.onclick = () => {
  const next = document.body.classList.contains("dark") ? "light" : "dark";
  stored(next);
  setTheme(next);
};
document.addEventListener("click", (event) => {
  if (!glossary.contains(event.target)) glossary.open = false;
});
glossary.addEventListener("keydown", (event) => {
  if (event.key === "Escape") glossary.open = false;
});
document.documentElement.lang = "en";
