// The first view: one input, its label, and what the decision rests on.

import { drawLabels, drawNovelty, drawPlane, element, number, percent } from "./charts.js";
import { ask, complain, get, submits } from "./server.js";

const state = { info: null, history: [], shown: null, reconnect: null };

export const chosenAdapter = () => get("adapter").value;

// `reconnect` asks the server what it serves, and calls `showInfo`.
export function whenChosen(reconnect) {
  state.reconnect = reconnect;
  get("adapter").addEventListener("change", reconnect);
}

export function showInfo(info) {
  state.info = info;
  complain(get("problem"), null);
  showAdapters(info);
  showFields(info.fields);
  get("predict").disabled = info.labels.length === 0;
  get("status").textContent = info.labels.length ? "" : "this adapter answers questions";
}

async function predict() {
  const input = {};
  for (const area of get("fields").querySelectorAll("textarea")) input[area.name] = area.value;
  complain(get("problem"), null);
  try {
    const { answer, timing } = await ask("predict", { input, adapter: state.info.adapter, return_samples: true });
    const entry = { input, answer, timing, info: state.info };
    state.history.unshift(entry);
    state.history.length = Math.min(state.history.length, 50);
    show(entry);
  } catch (error) {
    complain(get("problem"), error);
    if (error.error_type === "unknown_adapter") { // unloaded meanwhile: start again with the default
      get("adapter").value = "";
      await state.reconnect();
    }
  }
}

// The answer
function show(entry) {
  state.shown = entry;
  const { answer, info } = entry;
  get("welcome").hidden = true;
  get("answer").hidden = false;
  get("decision").className = `decision ${answer.decision}`;
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
    await state.reconnect();
  }
  for (const [name, value] of Object.entries(entry.input)) {
    const area = get(`field-${name}`);
    if (area) area.value = value;
  }
  show(entry);
}

get("clear").addEventListener("click", () => {
  state.history = [];
  showHistory();
});
submits(get("ask"), get("predict"), get("status"), predict);
