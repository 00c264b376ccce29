// The page: asks /info what is served and /predict what it thinks. No library, no build step.

const get = (id) => document.getElementById(id);
const state = { info: null, history: [], shown: null };

// ---- small helpers --------------------------------------------------------------------------

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  Object.assign(node, attributes);
  node.append(...children);
  return node;
}

function shape(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const percent = (p) => `${(100 * p).toFixed(p > 0.9995 || p < 0.0005 ? 2 : 1)} %`;
const number = (x) => (x === 0 ? "0" : Math.abs(x) < 1e-4 ? x.toExponential(1) : Number(x.toPrecision(3)).toString());

// ---- talking to the server ------------------------------------------------------------------

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
    state.info = (await ask("info")).answer;
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
    const { answer, timing } = await ask("predict", { input, return_samples: true });
    const entry = { input, answer, timing };
    state.history.unshift(entry);
    state.history.length = Math.min(state.history.length, 50);
    show(entry);
  } catch (error) {
    complain(error);
    if (error.status === 401) await connect();
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

// ---- the answer -----------------------------------------------------------------------------

function show(entry) {
  state.shown = entry;
  const { answer } = entry;
  get("welcome").hidden = true;
  get("answer").hidden = false;
  get("decision").className = answer.decision;
  get("decision").textContent = answer.decision;
  get("verdict").textContent = `${answer.label}, ${percent(answer.probability)}`;
  get("reason").textContent = `${answer.reason}.`;
  showLabels(answer);
  showPlane(entry);
  showNumbers(entry);
  showHistory();
}

function showFields(names) {
  const areas = names.map((name) => {
    const id = `field-${name}`;
    const area = element("textarea", { id, name, required: true, spellcheck: false });
    return [element("label", { htmlFor: id }, name.replaceAll("_", " ")), area];
  });
  get("fields").replaceChildren(...areas.flat());
  get("fields").querySelector("textarea")?.focus();
}

// One row for each label; under the predicted one, a dot for each posterior sample.
function showLabels(answer) {
  const samples = answer.sample_probabilities ?? [];
  const tau = state.info.policy.min_probability;
  const ranked = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]);
  const rows = ranked.flatMap(([label, p]) => {
    const best = label === answer.label;
    const dots = best ? swarm(samples) : [];
    const floor = 16 + (dots.length ? 12 : 0) + Math.max(0, ...dots.map((dot) => dot.level)) * 9;
    const height = best ? floor + 20 : 16;
    const svg = shape("svg", { height, class: best ? "best" : "" });
    svg.append(
      shape("rect", { class: "track", width: "100%", height: 14, rx: 3 }),
      shape("rect", { class: "bar", width: `${100 * p}%`, height: 14, rx: 3 }),
      ...dots.map(({ x, level }) => shape("circle", { class: "sample", cx: `${100 * x}%`, cy: 24 + level * 9, r: 4.5 })),
    );
    if (best && tau <= 1) {
      const text = `τₚ ${number(tau)}`;
      svg.append(
        shape("line", { class: "threshold", x1: `${100 * tau}%`, x2: `${100 * tau}%`, y1: -3, y2: floor + 6 }),
        shape("text", { class: "tau", x: `${100 * tau}%`, y: floor + 18, "text-anchor": tau > 0.9 ? "end" : "middle" }, text),
      );
    }
    const mark = best ? " best" : "";
    return [
      element("div", { className: `name${mark}` }, label),
      svg,
      element("div", { className: `share${mark}` }, percent(p)),
    ];
  });
  get("labels").replaceChildren(...rows);
  const range = samples.length ? `; ${samples.length} samples of ${answer.label} from ${percent(Math.min(...samples))} to ${percent(Math.max(...samples))}` : "";
  get("labels").setAttribute("aria-label", ranked.map(([label, p]) => `${label} ${percent(p)}`).join(", ") + range);
}

// Dots that would cover each other are stacked: the first free level from the bar downwards.
function swarm(samples) {
  const ends = [];
  return [...samples].sort((a, b) => a - b).map((x) => {
    let level = ends.findIndex((end) => x - end > 0.022);
    if (level < 0) level = ends.length;
    ends[level] = x;
    return { x, level };
  });
}

// Where the answer stands against both thresholds. The height is √variance: its lower end matters.
function showPlane(entry) {
  const { min_probability: tauP, max_variance: tauV } = state.info.policy;
  const never = tauP > 1;
  const left = 1 / state.info.labels.length;
  const answers = state.history.map((past) => past.answer);
  const deviations = [...answers, entry.answer].map((answer) => Math.sqrt(answer.variance));
  const top = Math.min(0.5, Math.max(0.1, 2.2 * Math.sqrt(tauV), 1.2 * Math.max(...deviations)));
  const x = (p) => 100 * Math.min(1, Math.max(0, (p - left) / (1 - left)));
  const y = (variance) => 100 - 100 * Math.min(1, Math.sqrt(variance) / top);
  const height = 210;
  const zone = (decision, x0, x1, y0, y1) => [
    shape("rect", { class: `zone ${decision}`, x: `${x0}%`, y: `${y0}%`, width: `${x1 - x0}%`, height: `${y1 - y0}%` }),
    ...(x1 - x0 > 12 && y1 - y0 > 12
      ? [shape("text", { class: `zone-name ${decision}`, x: `${x0}%`, y: `${y0}%`, dx: 8, dy: 18 }, decision)] : []),
  ];
  const edge = never ? 100 : x(tauP);
  const svg = shape("svg", { height });
  svg.append(
    ...zone("escalate", 0, 100, 0, y(tauV)),
    ...zone("clarify", 0, edge, y(tauV), 100),
    ...zone("accept", edge, 100, y(tauV), 100),
    shape("rect", { class: "frame", width: "100%", height: "100%" }),
    shape("line", { class: "threshold", x1: "0%", x2: "100%", y1: `${y(tauV)}%`, y2: `${y(tauV)}%` }),
    shape("text", { class: "tau", x: "100%", dx: -6, y: `${y(tauV)}%`, dy: -6, "text-anchor": "end" }, `τᵥ ${number(tauV)}`),
  );
  if (!never) {
    svg.append(
      shape("line", { class: "threshold", x1: `${edge}%`, x2: `${edge}%`, y1: `${y(tauV)}%`, y2: "100%" }),
      shape("text", { class: "tau", x: `${edge}%`, dx: -6, y: "100%", dy: -8, "text-anchor": "end" }, `τₚ ${number(tauP)}`),
    );
  }
  for (const step of [0, 0.25, 0.5, 0.75, 1]) {
    svg.append(shape("text", { x: `${100 * step}%`, y: "100%", dy: 17, "text-anchor": "middle" }, number(left + step * (1 - left))));
  }
  for (const variance of ticks(y)) {
    svg.append(shape("text", { x: 0, dx: -8, y: `${y(variance)}%`, dy: 4, "text-anchor": "end" }, number(variance)));
  }
  svg.append(
    shape("text", { x: "50%", y: "100%", dy: 34, "text-anchor": "middle" }, "probability"),
    shape("text", { transform: `translate(-50 ${height / 2}) rotate(-90)`, "text-anchor": "middle" }, "variance (√ scale)"),
    ...answers.filter((answer) => answer !== entry.answer).map((answer) =>
      shape("circle", { class: "past", cx: `${x(answer.probability)}%`, cy: `${y(answer.variance)}%`, r: 3.5 })),
    shape("circle", { class: "now", cx: `${x(entry.answer.probability)}%`, cy: `${y(entry.answer.variance)}%`, r: 7 }),
  );
  get("plane").replaceChildren(svg);
  get("plane").setAttribute("aria-label", `probability ${number(entry.answer.probability)} against ${never ? "no threshold" : number(tauP)}, variance ${number(entry.answer.variance)} against ${number(tauV)}`);
  get("policy-note").textContent = policyNote(state.info.policy, never);
}

// Round variances that fit into the frame and leave each other room.
function ticks(y) {
  const kept = [0];
  for (const variance of [0.0001, 0.0005, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25]) {
    if (y(variance) > 0 && y(kept.at(-1)) - y(variance) > 14) kept.push(variance);
  }
  return kept;
}

function policyNote(policy, never) {
  if (never) return `accepts nothing: ${policy.source}`;
  const target = policy.target_error;
  return target === null || target === undefined ? policy.source : `at most ${percent(target)} wrong among accepted; ${policy.source}`;
}

function showNumbers({ answer, timing }) {
  const stages = timing.split(", ").filter(Boolean).map((part) => part.split(";dur="));
  const milliseconds = stages.reduce((sum, [, duration]) => sum + Number(duration), 0);
  const facts = {
    variance: number(answer.variance),
    entropy: `${number(answer.entropy)} nats`,
    "of it epistemic": `${number(answer.mutual_information)} nats`,
    samples: answer.samples,
    ...(stages.length ? { time: `${number(milliseconds)} ms` } : {}),
    ...(answer.truncated ? { input: "cut to fit" } : {}),
    request: answer.request_id, // last, on a line of its own
  };
  get("numbers").replaceChildren(...Object.entries(facts).map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, String(value)))));
}

// ---- history --------------------------------------------------------------------------------

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

function recall(entry) {
  for (const [name, value] of Object.entries(entry.input)) {
    const area = get(`field-${name}`);
    if (area) area.value = value;
  }
  show(entry);
}

// ---- theme ----------------------------------------------------------------------------------

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
