// The equations, in float64, and nothing else:
//   z_t = x_t W_x + h_{t-1} W_h + b        gates side by side in the order i, f, g, o
//   c_t = f * c_{t-1} + i * g              h_t = o * tanh(c_t)

const GATES = ["i", "f", "g", "o"];
const sigmoid = (z) => 1 / (1 + Math.exp(-z));

// One LSTM over xs [time][inputs]; every value stands at its own step, whichever way it is read.
function read({w_x, w_h, bias, h: h0, c: c0, held}, xs, reverse) {
  const units = w_h.length, time = xs.length;
  const order = [...xs.keys()];
  if (reverse) order.reverse();
  const steps = new Array(time);
  let h = h0 || new Array(units).fill(0), c = c0 || new Array(units).fill(0);
  const initial = {h, c};
  for (const t of order) {
    const z = bias.map((b, column) =>
      xs[t].reduce((sum, x, row) => sum + x * w_x[row][column], 0) +
      h.reduce((sum, value, row) => sum + value * w_h[row][column], 0) + b);
    const at = (gate, unit) => z[gate * units + unit];
    const step = {x: xs[t], z, before: {h, c}, i: [], f: [], g: [], o: [], c: [], h: []};
    for (let unit = 0; unit < units; unit++) {
      const i = sigmoid(at(0, unit)), f = sigmoid(at(1, unit)), g = Math.tanh(at(2, unit)), o = sigmoid(at(3, unit));
      const written = f * c[unit] + i * g;
      for (const [name, value] of Object.entries({i, f, g, o, c: written, h: o * Math.tanh(written)})) {
        step[name].push(value);
      }
    }
    ({h, c} = step);
    steps[t] = step;
  }
  return {w_x, w_h, bias, held, xs, units, inputs: w_x.length, reverse, order, initial, steps, final: {h, c}};
}

// The first rows of a table, and of each gate the first columns.
function cut(table, inputs, units) {
  const most = table.w_h.length;
  const columns = (row) => GATES.flatMap((_, gate) => row.slice(gate * most, gate * most + units));
  return {
    w_x: table.w_x.slice(0, inputs).map(columns),
    w_h: table.w_h.slice(0, units).map(columns),
    bias: columns(table.bias),
  };
}

// Layers of one or two sets of weights, of the sizes asked for or as they came in a file.
function network(data, {inputs, units, layers, direction}) {
  if (data.params) return data.params;
  const made = [];
  for (const tables of data.tables.slice(0, layers)) {
    const halves = tables.slice(0, direction === "bidirectional" ? 2 : 1);
    made.push(halves.map((table) => cut(table, inputs, units)));
    inputs = units * halves.length;
  }
  return made;
}

// Everything that a configuration computes.
function run(data, config) {
  let xs = data.xs.slice(0, config.steps).map((row) => row.slice(0, config.inputs));
  const parts = [];
  network(data, config).forEach((halves, layer) => {
    const read_by = halves.map((weights, half) => read(weights, xs, (config.direction === "reverse") !== (half === 1)));
    read_by.forEach((part, half) => parts.push({...part, layer, half, halves: halves.length}));
    xs = xs.map((_, t) => read_by.flatMap((part) => part.steps[t].h));
  });
  const last = parts.filter((part) => part.layer === parts[parts.length - 1].layer);
  return {parts, ys: xs, last: last.flatMap((part) => part.final.h)};
}

// The greatest difference from what lstmjax computed of the same weights and data, NaN if anything is missing.
function difference(data, check) {
  const {parts, ys, last} = run(data, check.config);
  const apart = (ours, theirs) => {
    if (typeof ours === "number" && typeof theirs === "number") return Math.abs(ours - theirs);
    if (!Array.isArray(ours) || !Array.isArray(theirs) || ours.length !== theirs.length) return NaN;
    return Math.max(0, ...ours.map((value, at) => apart(value, theirs[at])));
  };
  const ours = [ys, parts.map((part) => [part.final.h, part.final.c])];
  const theirs = [check.ys, check.states];
  if (check.trace) {
    ours.push(last, parts.map((part) => [..."ifgoch"].map((name) => part.steps.map((step) => step[name]))));
    theirs.push(check.last, check.trace);
  }
  return apart(ours, theirs);
}
