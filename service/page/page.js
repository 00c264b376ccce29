// The page: asks /info what is served and /predict what it thinks. No library, no build step.

import { drawLabels, drawNovelty, drawPlane, element, number, percent } from "./charts.js";

const get = (id) => document.getElementById(id);
const state = { info: null, history: [], shown: null };

// Talking to the server
async function ask(path, body) {
  const headers = {};
  const key = sessionStorage.getItem("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  const answer = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  if (!response.ok) throw Object.assign(new Error(answer.error), answer, { status: response.status });
  return { answer, timing: response.headers.get("Server-Timing") ?? "" };
}

async function connect() {
  try {
    const chosen = get("adapter").value;
    state.info = (await ask(chosen ? `info?adapter=${encodeURIComponent(chosen)}` : "info")).answer;
  } catch (error) {
    const wantsKey = error.status === 401;
    get("served").textContent = wantsKey ? "locked" : "not ready";
    get("key-form").hidden = !wantsKey;
    if (wantsKey) {
      complain(sessionStorage.getItem("key") ? error : null);
      get("key").focus();
    } else {
      get("served").textContent = error.status === 503 ? error.message : "the server cannot be reached";
      setTimeout(connect, 1000);
    }
    return;
  }
  complain(null);
  get("key-form").hidden = true;
  get("docs").hidden = sessionStorage.getItem("key") !== null; // a link cannot carry a key
  get("served").textContent = `${state.info.adapter} on ${state.info.model}`;
  showAdapters(state.info);
  showFields(state.info.fields);
  get("predict").disabled = false;
}

async function predict() {
  if (!state.info || get("predict").disabled) return;
  const input = {};
  for (const area of get("fields").querySelectorAll("textarea")) input[area.name] = area.value;
  get("predict").disabled = true;
  get("status").textContent = "asking …";
  complain(null);
  try {
    const { answer, timing } = await ask("predict", { input, adapter: state.info.adapter, return_samples: true });
    const entry = { input, answer, timing, info: state.info };
    state.history.unshift(entry);
    state.history.length = Math.min(state.history.length, 50);
    show(entry);
  } catch (error) {
    complain(error);
    if (error.status === 401) await connect();
    if (error.error_type === "unknown_adapter") { // unloaded meanwhile: start again with the default
      get("adapter").value = "";
      await connect();
    }
  } finally {
    get("status").textContent = "";
    get("predict").disabled = false;
  }
}

function complain(error) {
  get("problem").hidden = !error;
  if (!error) return;
  const id = error.request_id ? ` (request ${error.request_id})` : "";
  get("problem").textContent = (error.status ? error.message : "the server cannot be reached") + id;
}

// The answer
function show(entry) {
  state.shown = entry;
  const { answer, info } = entry;
  get("welcome").hidden = true;
  get("answer").hidden = false;
  get("decision").className = answer.decision;
  get("decision").textContent = answer.decision;
  get("verdict").textContent = `${answer.label}, ${percent(answer.probability)}`;
  get("reason").textContent = `${answer.reason}.`;
  const { policy } = info;
  const past = state.history.filter((other) => other !== entry && other.info.adapter === info.adapter).map((other) => other.answer);
  drawLabels(get("labels"), answer, policy);
  drawPlane(get("plane"), answer, past, info);
  get("policy-note").textContent = policyNote(policy);
  get("novelty-figure").hidden = answer.novelty == null;
  if (answer.novelty != null) drawNovelty(get("novelty"), answer.novelty, policy.min_novelty_p);
  showNumbers(entry);
  showHistory();
}

function showAdapters(info) {
  get("adapter-row").hidden = info.adapters.length < 2;
  get("adapter").replaceChildren(...info.adapters.map((name) => element("option", { value: name }, name)));
  get("adapter").value = info.adapter;
}

function showFields(names) {
  const typed = new Map([...get("fields").querySelectorAll("textarea")].map((area) => [area.name, area.value]));
  const areas = names.map((name) => {
    const id = `field-${name}`;
    const area = element("textarea", { id, name, value: typed.get(name) ?? "", required: true, spellcheck: false });
    return [element("label", { htmlFor: id }, name.replaceAll("_", " ")), area];
  });
  get("fields").replaceChildren(...areas.flat());
  // Whoever chooses an adapter, or an older answer, by keyboard stays where they are.
  const choosing = [get("adapter"), get("history")].some((part) => part.contains(document.activeElement));
  if (!choosing) get("fields").querySelector("textarea")?.focus();
}

// Only a policy with a confidence promises anything; its errors are costs where costs were given.
function policyNote(policy) {
  if (policy.min_probability > 1) return `accepts nothing: ${policy.source}`;
  if (policy.target_error == null) return policy.source;
  const costs = Object.keys(policy.costs ?? {}).length > 0;
  const target = costs ? `a mean cost of ${number(policy.target_error)}` : `${number(100 * policy.target_error)} % wrong`;
  if (policy.confidence == null) return `picked for ${target} among accepted, on ${policy.source}`;
  return `at most ${target} among accepted, with ${number(100 * policy.confidence)} % confidence (${policy.source})`;
}

function showNumbers({ answer, timing }) {
  const stages = timing.split(", ").filter(Boolean).map((part) => part.split(";dur="));
  const milliseconds = stages.reduce((sum, [, duration]) => sum + Number(duration), 0);
  const facts = {
    variance: number(answer.variance),
    ...(answer.standard_error == null ? {} : { "standard error": number(answer.standard_error) }),
    entropy: `${number(answer.entropy)} nats`,
    "of it epistemic": `${number(answer.mutual_information)} nats`,
    samples: answer.samples,
    ...(answer.novelty == null ? {} : { "novelty p": number(answer.novelty) }),
    ...(stages.length ? { time: `${number(milliseconds)} ms` } : {}),
    ...(answer.truncated ? { input: "cut to fit" } : {}),
    request: answer.request_id, // last, on a line of its own
  };
  get("numbers").replaceChildren(...Object.entries(facts).map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, String(value)))));
}

// History
function showHistory() {
  const items = state.history.map((entry) => {
    const { answer } = entry;
    const text = Object.values(entry.input).join(" · ");
    const button = element("button", { type: "button", title: text, onclick: () => recall(entry) },
      element("span", { className: `glyph ${answer.decision}`, ariaLabel: answer.decision, role: "img" }),
      element("span", { className: "text" }, text),
      element("span", { className: "result" }, `${answer.label} ${percent(answer.probability)}`));
    if (entry === state.shown) button.setAttribute("aria-current", "true");
    return element("li", {}, button);
  });
  const focused = [...get("history").querySelectorAll("button")].indexOf(document.activeElement);
  get("history").replaceChildren(...items);
  if (focused >= 0) get("history").querySelectorAll("button")[focused]?.focus();
  get("history-empty").hidden = items.length > 0;
  get("clear").hidden = items.length === 0;
}

async function recall(entry) {
  if (entry.info.adapter !== state.info.adapter) {
    get("adapter").value = entry.info.adapter;
    await connect();
  }
  for (const [name, value] of Object.entries(entry.input)) {
    const area = get(`field-${name}`);
    if (area) area.value = value;
  }
  show(entry);
}

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
get("clear").addEventListener("click", () => {
  state.history = [];
  showHistory();
});
get("adapter").addEventListener("change", connect);
get("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  predict();
});
get("ask").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    get("ask").requestSubmit();
  }
});
get("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", get("key").value);
  get("key").value = "";
  connect();
});

setTheme(localStorage.getItem("theme") ?? "auto");
connect();
