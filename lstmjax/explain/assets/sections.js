// The sections of the page: each is filled anew from `state`, what the reader chose, and `result`, what follows from it.

const MEANINGS = {i: "input gate: what is written", f: "forget gate: what is kept", g: "candidate: what would be written",
  o: "output gate: what is shown", c: "cell state: f \u00d7 c before + i \u00d7 g", h: "hidden state: o \u00d7 tanh(c)"};
let weightAt = {line: 0, column: 0}; // the weight that the tab key reaches

// New content at the place to which the reader had scrolled.
function fill(id, ...children) {
  const place = by(id), at = place.scrollLeft;
  place.replaceChildren(...children.flat(Infinity));
  place.scrollLeft = at;
}

// Scroll sideways no further than a column, from `left` to `right`, needs to be seen beside what stays at the left edge.
function show(id, left, right, edge) {
  const place = by(id);
  place.scrollLeft = Math.max(Math.min(place.scrollLeft, left - edge), right - place.clientWidth);
}

const countOf = ({inputs, units, held}) => (held ? held.count : 4 * units * (inputs + units + 1));
const total = () => result.parts.reduce((sum, part) => sum + countOf(part), 0);

function nameOf(part) {
  const layers = result.parts[result.parts.length - 1].layer + 1;
  const half = part.halves > 1 ? (part.half ? "backward" : "forward") : "";
  if (layers === 1) return half ? `the ${half} half` : "the LSTM";
  return `layer ${part.layer + 1}${half ? `, ${half}` : ""}`;
}

function renderLead() {
  const {parts} = result, time = parts[0].xs.length;
  fill("lead", `${counted(parts[0].inputs, "input")}, ${counted(parts[0].units, "unit")}, ${counted(time, "step")}: `,
    element("strong", {id: "total"}, counted(total(), "parameter")), ". Change anything below; everything else follows.");
}

function renderShapes({inputs, units, xs, layer}) {
  const rows = [
    ["xs", tuple(xs.length, inputs), "every step, [time, inputs]"],
    ["x_t", tuple(inputs), layer ? "one step of it: h of the layer below" : "the input of one step"],
    ["h", tuple(units), "hidden state, which is the output"],
    ["c", tuple(units), "cell state"],
    ["W_x", tuple(inputs, 4 * units), "[inputs, 4\u202f\u00d7\u202funits]"],
    ["W_h", tuple(units, 4 * units), "[units, 4\u202f\u00d7\u202funits]"],
    ["b", tuple(4 * units), "[4\u202f\u00d7\u202funits]"],
  ];
  fill("shapes", table("Shapes", [heading("name"), heading("shape"), heading("what it is")],
    rows.map(([name, size, meaning]) => element("tr", {id: `shape-${name}`}, rowHeading(name, {class: "math"}),
      cell(size, {class: "number"}), cell(meaning))), {class: "plain"}));
}

function renderCounts(part) {
  const {inputs, units} = part, wide = 4 * units;
  const held = part.held || {
    formula: `4 * units * (inputs + units + 1) = 4 * ${units} * (${inputs} + ${units} + 1) = ${countOf(part)}`,
    arrays: [["W_x", [inputs, wide], inputs * wide, ""], ["W_h", [units, wide], units * wide, ""], ["b", [wide], wide, ""]],
  };
  const [names, ...numbers] = held.formula.replaceAll("*", "\u00d7").split(" = ");
  fill("counts",
    element("p", {class: "formula"}, names),
    element("p", {class: "formula", id: "formula"}, `= ${numbers.slice(0, -1).join(" = ")} = `, element("strong", {}, numbers.at(-1))),
    table("Parameters of each array", [heading("array"), heading("shape"), heading("numbers")],
      held.arrays.map(([name, sizes, count]) => element("tr", {id: `count-${name}`}, rowHeading(name, {class: "math"}),
        cell(sizes.join(" \u00d7 "), {class: "number"}), cell(String(count), {class: "number"}))), {class: "plain"}));
  if (result.parts.length > 1) {
    by("counts").append(element("p", {class: "explained", id: "all-counts"},
      `All ${result.parts.length} LSTMs: ${result.parts.map(countOf).join(" + ")} = ${total()}`));
  }
  for (const [name, , , meaning] of held.arrays) {
    if (meaning) by("counts").append(element("p", {class: "explained"}, `${name}: ${meaning}.`));
  }
  if (held.bias) by("counts").append(element("p", {class: "explained"}, held.bias));
}

function renderNetwork(part) {
  const both = result.parts.some((one) => one.halves > 1), time = part.xs.length;
  const way = both
    ? "Each layer reads in both directions and joins the two h of a step into one."
    : state.direction === "reverse" ? "It is read from the last step to the first." : "It is read from the first step to the last.";
  fill("network-text", `${result.parts.length === 1 ? "One cell, drawn once for each step" : `${result.parts.length} cells, each drawn once for each step`}: ` +
    `the weights are the same at ${time === 1 ? "every step" : `all ${time} steps`}. ${way} What goes from box to box is h and c.`);
  fill("network", unrolled(result, state, (t, number) => set({t, part: number})));
  show("network", LEFT + state.t * COLUMN, LEFT + (state.t + 1) * COLUMN + 12, LEFT);
}

function renderValues(part) {
  const step = part.steps[state.t], {unit} = state;
  by("values-step").textContent = state.t + 1;
  const vectors = [
    ["x_t", step.x, "x", part.layer ? "from the layer below" : "input"],
    ["h before", step.before.h, "h-before", ""],
    ["c before", step.before.c, "c-before", ""],
  ];
  fill("vectors", element("dl", {class: "vectors"}, vectors.map(([name, values, key]) => [
    element("dt", {class: "math"}, name),
    element("dd", {id: `vector-${key}`, class: "number"}, vector(values, key === "x" && !part.layer ? short : fixed))])));
  const most = {c: Math.max(1, ...part.steps.flatMap((one) => one.c.map(Math.abs)))};
  const tables = [
    ["values-table", `Gates and states of all units at step ${state.t + 1}`, step.h.map((_, at) => `unit ${at + 1}`), unit,
      (name, at) => step[name][at], (at) => set({unit: at})],
    ["course", `Gates and states of unit ${unit + 1} at all steps`, part.steps.map((_, at) => `step ${at + 1}`), state.t,
      (name, at) => part.steps[at][name][unit], (at) => set({t: at})],
  ];
  by("course-unit").textContent = unit + 1;
  for (const [id, caption, columns, picked, value, pick] of tables) {
    const head = [cell(""), ...columns.map((words, at) => element("th", {scope: "col", class: at === picked ? "picked" : ""},
      element("button", {type: "button", "data-key": `${id}-${at}`, "aria-pressed": String(at === picked), onclick: () => pick(at)}, words)))];
    const rows = [..."ifgoch"].map((name) => element("tr", {id: `${id}-${name}`},
      rowHeading(element("span", {class: `gate gate-${name}`, title: MEANINGS[name]}, name)),
      columns.map((_, at) => cell(fixed(value(name, at)), {class: `number tinted${at === picked ? " picked" : ""}`,
        style: `--tint: ${tint(value(name, at), most[name] || 1)}`}))));
    fill(id, table(caption, head, rows, {class: "values"}));
    const {offsetLeft, offsetWidth} = head[picked + 1];
    show(id, offsetLeft, offsetLeft + offsetWidth, head[0].offsetWidth);
  }
  by("live").textContent = `Step ${state.t + 1} of ${part.xs.length}, unit ${unit + 1}: ` +
    [..."ifgoch"].map((name) => `${name} ${fixed(step[name][unit])}`).join(", ");
}

function renderEquation(part) {
  const step = part.steps[state.t], {unit} = state, {units} = part;
  by("equation-unit").textContent = unit + 1;
  const term = (text, kind = "") => element("span", {class: `term ${kind}`}, text);
  const lines = GATES.map((gate, number) => {
    const column = number * units + unit;
    const terms = [...step.x.map((x, row) => term(`${factor(x, part.layer ? fixed : short)}\u00b7${factor(part.w_x[row][column])}`, "of-x")),
      ...step.before.h.map((h, row) => term(`${factor(h, fixed)}\u00b7${factor(part.w_h[row][column])}`, "of-h")),
      term(factor(part.bias[column]), "of-b")];
    const squashed = gate === "g" ? "tanh" : "sigmoid";
    return element("div", {class: "line", id: `line-${gate}`},
      element("p", {class: "sum"}, element("span", {class: `gate gate-${gate}`}, `z_${gate}`), " = ",
        terms.flatMap((one, at) => (at ? [" + ", one] : [one])), " = ", element("b", {}, fixed(step.z[column]))),
      element("p", {class: "sum"}, element("span", {class: `gate gate-${gate}`}, gate), ` = ${squashed}(${fixed(step.z[column])}) = `,
        element("b", {class: "result"}, fixed(step[gate][unit]))));
  });
  const at = (name) => fixed(step[name][unit]);
  lines.push(
    element("div", {class: "line", id: "line-c"}, element("p", {class: "sum"}, element("span", {class: "gate gate-c"}, "c"),
      " = f\u00b7c", element("sub", {}, "before"), " + i\u00b7g = ", term(`${at("f")}\u00b7${factor(step.before.c[unit], fixed)}`), " + ",
      term(`${at("i")}\u00b7${factor(step.g[unit], fixed)}`), " = ", element("b", {class: "result"}, at("c")))),
    element("div", {class: "line", id: "line-h"}, element("p", {class: "sum"}, element("span", {class: "gate gate-h"}, "h"),
      " = o\u00b7tanh(c) = ", term(`${at("o")}\u00b7tanh(${at("c")})`), " = ", element("b", {class: "result"}, at("h")))));
  fill("equation", element("p", {class: "legend"}, term("x\u00b7W_x", "of-x"), term("h\u00b7W_h", "of-h"), term("b", "of-b")), lines);
}

function renderWeights(part) {
  const {units, inputs} = part;
  const most = Math.max(...[...part.w_x, ...part.w_h, part.bias].flat().map(Math.abs));
  fill("weights-text", `Each gate has ${counted(units, "column")}, one for each unit. Outlined: the four of unit ${state.unit + 1}, which every ` +
    "x and every h reaches. Point at a weight, or move among them with the arrow keys.");
  const groups = element("tr", {}, element("td", {}), GATES.map((gate) =>
    element("th", {colspan: units, scope: "colgroup", class: "first"}, element("span", {class: `gate gate-${gate}`}, gate))));
  const columns = element("tr", {}, element("td", {}), GATES.map((_, gate) => Array.from({length: units}, (_, unit) =>
    element("th", {scope: "col", class: kind(unit)}, String(unit + 1)))));
  const arrays = [["W_x", part.w_x, (row) => `x ${row + 1}`], ["W_h", part.w_h, (row) => `h ${row + 1}`], ["b", [part.bias], () => "b"]];
  let at = 0;
  const rows = arrays.flatMap(([name, matrix, label]) => matrix.map((weights, row) => {
    const line = at++;
    return element("tr", {class: row ? "" : "start"}, rowHeading(label(row), {}), weights.map((value, column) => {
      const gate = Math.floor(column / units), unit = column % units;
      const sentence = `${name}: from ${name === "b" ? "1" : label(row)} to ${GATES[gate]} of unit ${unit + 1}: ${short(value)}`;
      const tell = () => fill("readout", sentence);
      return cell(unit === state.unit ? minus(String(Number(value.toPrecision(3)))) : "", {
        class: `weight ${kind(unit)}`, style: `--tint: ${tint(value, most)}`, "aria-label": sentence, title: short(value),
        "data-key": `weight-${line}-${column}`, tabindex: line === weightAt.line && column === weightAt.column ? 0 : -1,
        onmouseenter: tell, onfocus: () => { weightAt = {line, column}; tell(); }, onclick: () => set({unit})});
    }));
  }));
  weightAt = {line: Math.min(weightAt.line, inputs + units), column: Math.min(weightAt.column, 4 * units - 1)};
  fill("weights", element("table", {class: "heat", role: "grid", "aria-label": "Weights"}, element("thead", {}, groups, columns),
    element("tbody", {}, rows)));
  by("weights").querySelector(`[data-key="weight-${weightAt.line}-${weightAt.column}"]`).tabIndex = 0;
  if (!by("readout").textContent) fill("readout", "Point at a weight, or focus one, to read it.");

  function kind(unit) {
    return `${unit === state.unit ? "picked" : ""}${unit === 0 ? " first" : ""}`;
  }
}

function renderResults() {
  const {parts, ys, last} = result;
  const name = parts[parts.length - 1].layer ? "stack" : parts[0].halves > 1 ? "bidirectional" : "lstm";
  const asked = `${state.direction === "reverse" ? ", reverse=True" : ""}${state.return_sequences ? "" : ", return_sequences=False"}`;
  const size = state.return_sequences ? tuple(ys.length, last.length) : tuple(last.length);
  fill("results-text", element("code", {}, `ys, state = ${name}.apply(params, xs${asked})`), element("br"),
    "ys has shape ", element("b", {id: "ys-shape"}, size), state.return_sequences
      ? ": h of every step. With return_sequences=False it would be " : ": h after the last step that was read. With return_sequences=True it would be ",
    state.return_sequences ? tuple(last.length) : tuple(ys.length, last.length), ".");
  const rows = state.return_sequences ? ys.map((values, t) => [`step ${t + 1}`, values, t === state.t]) : [["last", last, false]];
  fill("results", table("Outputs", [heading(""), ...last.map((_, at) => heading(`${at + 1}`))],
    rows.map(([label, values, now]) => element("tr", {class: now ? "now" : ""}, rowHeading(label, {}),
      values.map((value) => cell(fixed(value), {class: "number tinted", style: `--tint: ${tint(value)}`})))), {class: "values", id: "ys"}));
  fill("state-text", "state, the last h and c", parts.length > 1 ? " of each LSTM" : "",
    ", always comes too; elsewhere return_state=True asks for it. Its h",
    parts[parts.length - 1].layer ? " of the last layer" : "",
    " is what return_sequences=False gives; c is in no output.");
  fill("states", table("State", [heading(""), heading("shape"), heading("after the last step")], parts.flatMap((part, number) => ["h", "c"].map((key) =>
    element("tr", {id: `state-${key}-${number}`}, rowHeading(`${parts.length > 1 ? `${nameOf(part)}: ` : ""}${key}`, {}),
      cell(tuple(part.units), {class: "number"}), cell(vector(part.final[key]), {class: "number wide"})))), {class: "plain"}));
}

function renderWrong(part) {
  const {units, inputs} = part, time = part.xs.length, count = countOf(part), cells = result.parts.length;
  const same = (a, b) => (a === b ? " That both are the same number here is chance." : "");
  const answers = [
    ["\u201cunits is the number of cells.\u201d", cells === 1
      ? `There is one cell, whatever units is; units = ${units} is the length of its h and of its c.`
      : `There are ${cells} cells, one for each layer and direction; units = ${units} is the length of h and of c in ${nameOf(part)}.`],
    ["\u201cunits is the number of time steps.\u201d",
      `The ${counted(time, "step")} use${time === 1 ? "s" : ""} the same ${count} parameters one after another; h has ${counted(units, "number")} at each.${same(units, time)}`],
    ["\u201cunits must be the number of features.\u201d",
      `x_t has ${counted(inputs, "number")} and h has ${units}: W_x, ${inputs} \u00d7 ${4 * units}, leads from one to the other.${same(units, inputs)}`],
    [`\u201cLSTM(${units}) is ${counted(units, "LSTM")} side by side.\u201d`, units === 1
      ? `With 1 unit it is one LSTM whose h has 1 number; with more, each unit would see the h of all.`
      : `Each unit sees all ${units} numbers of h before it through W_h, ${units} \u00d7 ${4 * units}; ${units} LSTMs of 1 unit would see 1 each. Only c is a unit\u2019s own.`],
  ];
  fill("wrong", answers.map(([wrong, right]) => element("div", {}, element("dt", {}, wrong), element("dd", {}, right))));
}
