// What the page draws: SVG in percent of its width, so that text keeps its size.

export function element(tag, attributes = {}, ...children) {
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

export const percent = (p) => `${(100 * p).toFixed(p > 0.9995 || p < 0.0005 ? 2 : 1)} %`;
export const number = (x) => (x === 0 ? "0" : Math.abs(x) < 1e-4 ? x.toExponential(1) : Number(x.toPrecision(3)).toString());

// One row for each label, the most probable first, levels of a scale as they are; under the predicted
// one, a dot for each posterior sample.
export function drawLabels(figure, answer, { min_probability: tau }) {
  const samples = answer.sample_probabilities ?? [];
  const ranked = Object.entries(answer.probabilities);
  if (!answer.scale) ranked.sort((a, b) => b[1] - a[1]);
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
  figure.replaceChildren(...rows);
  const range = samples.length ? `; ${samples.length} samples of ${answer.label} from ${percent(Math.min(...samples))} to ${percent(Math.max(...samples))}` : "";
  figure.setAttribute("aria-label", ranked.map(([label, p]) => `${label} ${percent(p)}`).join(", ") + range);
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

// Where the answer stands against both thresholds; what is not accepted is told apart by novelty. The
// height is √variance: its lower end matters.
export function drawPlane(figure, now, past, { policy, labels }) {
  const { min_probability: tauP, max_variance: tauV } = policy;
  const never = tauP > 1;
  const left = 1 / labels.length;
  const deviations = [...past, now].map((answer) => Math.sqrt(answer.variance));
  const top = Math.min(0.5, Math.max(0.1, 2.2 * Math.sqrt(tauV), 1.2 * Math.max(...deviations)));
  const x = (p) => 100 * Math.min(1, Math.max(0, (p - left) / (1 - left)));
  const y = (variance) => 100 - 100 * Math.min(1, Math.sqrt(variance) / top);
  const height = 210;
  const zone = (kind, name, x0, x1, y0, y1) => [
    shape("rect", { class: `zone ${kind}`, x: `${x0}%`, y: `${y0}%`, width: `${x1 - x0}%`, height: `${y1 - y0}%` }),
    ...(x1 - x0 > 12 && y1 - y0 > 12
      ? [shape("text", { class: `zone-name ${kind}`, x: `${x0}%`, y: `${y0}%`, dx: 8, dy: 18 }, name)] : []),
  ];
  const edge = never ? 100 : x(tauP);
  const svg = shape("svg", { height });
  svg.append(
    ...zone("unaccepted", "not accepted", 0, 100, 0, never ? 100 : y(tauV)),
    ...(never ? [] : zone("unaccepted", "", 0, edge, y(tauV), 100)),
    ...(never ? [] : zone("accept", "accept", edge, 100, y(tauV), 100)),
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
    ...past.map((answer) =>
      shape("circle", { class: "past", cx: `${x(answer.probability)}%`, cy: `${y(answer.variance)}%`, r: 3.5 })),
    shape("circle", { class: "now", cx: `${x(now.probability)}%`, cy: `${y(now.variance)}%`, r: 7 }),
  );
  figure.replaceChildren(svg);
  const tau = never ? "no threshold" : number(tauP);
  figure.setAttribute("aria-label", `probability ${number(now.probability)} against ${tau}, variance ${number(now.variance)} against ${number(tauV)}`);
}

// How like the training data the input is: its p-value and the level below which it escalates.
export function drawNovelty(figure, novelty, level) {
  const x = (p) => `${100 * (1 + Math.log10(Math.max(p, 0.001)) / 3)}%`; // from 0.001 to 1
  const svg = shape("svg", { height: 40 });
  svg.append(shape("rect", { class: "track", width: "100%", height: 14, rx: 3 }));
  if (level) {
    svg.append(
      shape("rect", { class: "zone escalate", width: x(level), height: 14, rx: 3 }),
      shape("line", { class: "threshold", x1: x(level), x2: x(level), y1: -3, y2: 17 }),
      shape("text", { class: "tau", x: x(level), y: 32, "text-anchor": "middle" }, `ε ${number(level)}`),
    );
  }
  svg.append(
    shape("text", { x: "0%", y: 32 }, "unlike"),
    shape("text", { x: "100%", y: 32, "text-anchor": "end" }, "alike"),
    shape("circle", { class: "now", cx: x(novelty), cy: 7, r: 7 }),
  );
  figure.replaceChildren(svg);
  figure.setAttribute("aria-label", `novelty p-value ${number(novelty)} against ${level ? number(level) : "no level"}`);
}

// Round variances that fit into the frame and leave each other room.
function ticks(y) {
  const kept = [0];
  for (const variance of [0.0001, 0.0005, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25]) {
    if (y(variance) > 0 && y(kept.at(-1)) - y(variance) > 14) kept.push(variance);
  }
  return kept;
}
