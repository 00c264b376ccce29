// The second view: a state and typed questions about it, asked at /v1/systemone.

import { drawLabels, element, number, percent } from "./charts.js";
import { ask, complain, get, submits } from "./server.js";

const KINDS = { noul: "yes or no", choice: "choice", score: "score" };
const CRITERIA = {
  choice: "options, one a line; a description may follow after a colon",
  score: "levels, one a line, the lowest first",
};
const NO_THRESHOLD = { min_probability: Infinity };
let asked = 0; // so far, for the ids of their fields

export function showModels(models) {
  const chosen = get("model").value;
  get("model").replaceChildren(...models.map(({ name, description }) =>
    element("option", { value: name, title: description }, name)));
  if (models.some(({ name }) => name === chosen)) get("model").value = chosen;
  get("ask-questions").disabled = false;
}

// The questions that are typed in
function addQuestion(instructions = "") {
  const id = `question-${(asked += 1)}`;
  const kind = element("select", { id: `${id}-kind`, ariaLabel: "kind" },
    ...Object.entries(KINDS).map(([value, text]) => element("option", { value }, text)));
  const text = element("input", { id: `${id}-text`, ariaLabel: "question", value: instructions, required: true });
  const criteria = element("textarea", { id: `${id}-criteria`, spellcheck: false });
  const note = element("p", { className: "hint" });
  const remove = element("button", { type: "button", className: "quiet" }, "Remove");
  const set = element("fieldset", { className: "question" },
    element("div", { className: "row" }, kind, remove), text, criteria, note);
  const fit = () => {
    criteria.hidden = note.hidden = kind.value === "noul";
    criteria.required = !criteria.hidden;
    criteria.ariaLabel = kind.value === "score" ? "levels" : "options";
    note.textContent = CRITERIA[kind.value] ?? "";
  };
  kind.addEventListener("change", fit);
  remove.addEventListener("click", () => {
    set.remove();
    keepOne();
  });
  fit();
  get("questions").append(set);
  keepOne();
  return text;
}

// The last question cannot be removed.
function keepOne() {
  const sets = [...get("questions").children];
  for (const set of sets) set.querySelector("button").hidden = sets.length === 1;
}

function typed(set) {
  const type = set.querySelector("select").value;
  const lines = set.querySelector("textarea").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const question = { type, instructions: set.querySelector("input").value };
  if (type === "score") return { ...question, criteria: lines };
  if (type === "choice") return { ...question, criteria: Object.fromEntries(lines.map(described)) };
  return question;
}

function described(line) {
  const [, option, description] = line.match(/^(.+?):\s+(.+)$/) ?? [null, line, null];
  return [option, description];
}

// Only an object or an array is read as JSON: a state such as 42 is text.
function stateOf(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" && value !== null ? value : text;
  } catch {
    return text;
  }
}

async function send() {
  complain(get("questions-problem"), null);
  const questions = [...get("questions").children].map(typed);
  try {
    const { answer } = await ask("v1/systemone", {
      model: get("model").value,
      state: stateOf(get("state").value),
      questions: Object.fromEntries(questions.map((question, place) => [`question ${place + 1}`, question])),
      x_return_samples: true,
    });
    get("answers").replaceChildren(...Object.values(answer.answers).map((one, place) => card(questions[place], one)));
  } catch (error) {
    complain(get("questions-problem"), error);
  }
}

// The answers
function card(question, answer) {
  const labels = element("div", { className: "labels", role: "img" });
  const shown = distribution(answer);
  drawLabels(labels, shown, NO_THRESHOLD);
  return element("article", { className: "card" },
    element("p", { className: "asked" }, question.instructions),
    element("div", { className: "verdict" },
      element("span", { className: `decision ${answer.x_decision}` }, answer.x_decision),
      element("h2", {}, verdict(answer, shown))),
    element("p", { className: "reason" }, `${answer.x_reason}.`),
    element("figure", {}, labels),
    element("dl", { className: "numbers" }, ...Object.entries(facts(answer)).map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, String(value))))));
}

// What `drawLabels` wants; the samples are those of the most probable option.
function distribution({ type, noul, probabilities, legend, x_sample_probabilities: samples }) {
  if (type === "noul") {
    const yes = noul >= 0.5;
    return {
      label: yes ? "yes" : "no",
      probabilities: { yes: noul, no: 1 - noul },
      sample_probabilities: yes ? samples : samples.map((p) => 1 - p),
    };
  }
  const entries = Object.entries(probabilities).map(([name, p]) => [legend ? `${name} ${words(legend[name])}` : name, p]);
  const [label] = entries.reduce((best, one) => (one[1] > best[1] ? one : best));
  return { label, probabilities: Object.fromEntries(entries), sample_probabilities: samples, scale: type === "score" };
}

const words = (content) => (typeof content === "string" ? content : JSON.stringify(content));

function verdict(answer, { label, probabilities }) {
  if (answer.type !== "score") return `${label}, ${percent(probabilities[label])}`;
  return `${number(answer.score)} of ${Object.keys(answer.legend).length - 1}, most likely ${label}`;
}

function facts(answer) {
  const { x_promise: promise } = answer;
  return {
    variance: number(answer.x_variance),
    ...(answer.x_standard_error == null ? {} : { "standard error": number(answer.x_standard_error) }),
    ...(answer.x_novelty == null ? {} : { "novelty p": number(answer.x_novelty) }),
    samples: answer.x_samples,
    promise: promise ? `at most ${number(100 * promise.target_error)} % wrong` : "none",
    adapter: answer.x_adapter,
  };
}

get("add-question").addEventListener("click", () => addQuestion().focus());
submits(get("questions-form"), get("ask-questions"), get("questions-status"), send);
addQuestion("Is this review positive?");
