// The page: two views of one server, /predict and typed questions. No library, no build step.

import { chosenAdapter, showInfo, whenChosen } from "./predict.js";
import { showModels } from "./questions.js";
import { ask, complain, get, hasKey } from "./server.js";

const VIEWS = ["predict", "questions"];

async function connect() {
  let info, models;
  try {
    const chosen = chosenAdapter();
    info = (await ask(chosen ? `info?adapter=${encodeURIComponent(chosen)}` : "info")).answer;
    models = (await ask("v1/models")).answer.models;
  } catch (error) {
    if (error.status === 401) return;
    get("key-form").hidden = true;
    get("served").textContent = error.status === 503 ? error.message : "the server cannot be reached";
    setTimeout(connect, 1000);
    return;
  }
  get("key-form").hidden = true;
  get("docs").hidden = hasKey(); // a link cannot carry a key
  get("served").textContent = `${info.adapter} on ${info.model}`;
  showModels(models);
  showInfo(info);
  if (!location.hash && info.labels.length === 0) open("questions");
}

function lock({ detail: error }) {
  get("served").textContent = "locked";
  get("key-form").hidden = false;
  complain(get("key-problem"), hasKey() ? error : null);
  get("key").focus();
}

// Views
function view() {
  return VIEWS.find((name) => location.hash === `#${name}`) ?? VIEWS[0];
}

function showView() {
  for (const name of VIEWS) {
    const shown = name === view();
    get(`${name}-view`).hidden = !shown;
    get(`${name}-tab`).setAttribute("aria-selected", String(shown));
    get(`${name}-tab`).tabIndex = shown ? 0 : -1;
  }
}

function open(name) { // a link to a fragment would take the focus away
  history.replaceState(null, "", `#${name}`);
  showView();
}

for (const [place, name] of VIEWS.entries()) {
  get(`${name}-tab`).addEventListener("click", () => open(name));
  get(`${name}-tab`).addEventListener("keydown", ({ key }) => {
    if (key !== "ArrowLeft" && key !== "ArrowRight") return;
    const next = VIEWS[(place + 1) % VIEWS.length]; // there are two
    get(`${next}-tab`).focus();
    open(next);
  });
}
window.addEventListener("hashchange", showView);

// Theme
function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  get("theme").textContent = `Theme: ${theme}`;
  localStorage.setItem("theme", theme);
}

get("theme").addEventListener("click", () => {
  const themes = ["auto", "light", "dark"];
  setTheme(themes[(themes.indexOf(localStorage.getItem("theme")) + 1) % 3] ?? "auto");
});

window.addEventListener("locked", lock);
get("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", get("key").value);
  get("key").value = "";
  connect();
});

setTheme(localStorage.getItem("theme") ?? "auto");
showView();
whenChosen(connect);
connect();
