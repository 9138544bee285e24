// Elements, numbers, tables and the picture of the network.

const SVG = "http://www.w3.org/2000/svg";

function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function shape(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity));
  return node;
}

const minus = (text) => text.replace("-", "\u2212");
const fixed = (value) => minus(value === 0 ? "0" : value.toFixed(6));
const short = (value) => minus(String(Number(value.toPrecision(7))));
const factor = (value) => (value < 0 ? `(${short(value)})` : short(value));
const tuple = (...sizes) => `(${sizes.join(", ")}${sizes.length === 1 ? "," : ""})`;
const vector = (values, form = fixed) => `[${values.map(form).join(", ")}]`;
const counted = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const small = (value) => (value === 0 ? "0" : minus(value.toExponential(1)));

// Orange above 0, blue below, paler the nearer to 0; `most` has the full colour.
function tint(value, most = 1) {
  const share = Math.round(Math.min(1, Math.abs(value) / (most || 1)) * 100);
  return `color-mix(in oklab, var(${value < 0 ? "--below" : "--above"}) ${share}%, var(--panel))`;
}

function table(caption, head, rows, attributes = {}) {
  return element("table", attributes,
    element("caption", {class: "visually-hidden"}, caption),
    element("thead", {}, element("tr", {}, head)),
    element("tbody", {}, rows));
}

const heading = (text, attributes = {}) => element("th", {scope: "col", ...attributes}, text);
const rowHeading = (text, attributes = {}) => element("th", {scope: "row", ...attributes}, text);
const cell = (text, attributes = {}) => element("td", attributes, text);

const COLUMN = 86, ROW = 76, LEFT = 92, BOX = 58, BOX_HEIGHT = 46;

// Columns are steps, rows are LSTMs, the first layer lowest; `chosen` is told of the box that is clicked.
function unrolled({parts}, state, chosen) {
  const time = parts[0].xs.length, last = parts[parts.length - 1].layer;
  const height = parts.length * ROW + 132, width = LEFT + time * COLUMN + 24;
  const x = (t) => LEFT + t * COLUMN + COLUMN / 2;
  const y = (row) => height - 62 - (row + 1) * ROW + ROW / 2;
  const picture = shape("svg", {width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": told(parts, state)});
  picture.append(shape("defs", {}, ["", "-now"].map((kind) => shape("marker",
    {id: `arrow${kind}`, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto-start-reverse"},
    shape("path", {d: "M0 0.6 L8 4 L0 7.4 Z", class: `arrowhead${kind}`})))));
  picture.append(shape("rect", {x: x(state.t) - COLUMN / 2 + 3, y: 4, width: COLUMN - 6, height: height - 8, rx: 10, class: "now"}));

  const line = (x1, y1, x2, y2, now) => picture.append(shape("line",
    {x1, y1, x2, y2, class: now ? "wire now-wire" : "wire", "marker-end": `url(#arrow${now ? "-now" : ""})`}));
  const text = (at, level, words, kind = "") => picture.append(shape("text", {x: at, y: level, class: kind}, words));

  const top = y(parts.length - 1) - BOX_HEIGHT / 2;
  for (let t = 0; t < time; t++) {
    line(x(t), height - 40, x(t), y(0) + BOX_HEIGHT / 2 + 2, t === state.t);
    for (let row = 1; row < parts.length; row++) {
      line(x(t), y(row - 1) - BOX_HEIGHT / 2, x(t), y(row) + BOX_HEIGHT / 2 + 2, t === state.t);
    }
    text(x(t), height - 24, `x${subscript(t + 1)}`, "name");
    text(x(t), height - 9, shown(parts[0].xs[t]), "tiny");
    const ends = parts.filter((part) => part.layer === last && part.order[time - 1] === t);
    if (state.return_sequences || ends.length) {
      line(x(t), top, x(t), top - 22, t === state.t);
      text(x(t), top - 28, state.return_sequences ? `y${subscript(t + 1)}` : "ys", "name");
      if (!state.return_sequences && ends[0].halves > 1) text(x(t), 12, ends[0].half ? "backward" : "forward", "tiny");
    }
  }
  parts.forEach((part, row) => {
    const name = [last ? `layer ${part.layer + 1}` : "", part.halves > 1 ? (part.half ? "backward" : "forward") : ""].filter(Boolean);
    if (!name.length) name.push("LSTM");
    name.forEach((words, number) => text(10, y(row) + 4 + (number - (name.length - 1) / 2) * 16, words,
      row === state.part ? "row-name picked" : "row-name"));
    for (let t = 0; t < time; t++) {
      const position = part.order.indexOf(t);
      if (position) {
        const from = x(part.order[position - 1]), way = part.reverse ? -1 : 1;
        line(from + way * BOX / 2, y(row), x(t) - way * (BOX / 2 + 2), y(row), t === state.t);
      }
      picture.append(box(part, row, t));
    }
  });
  return picture;

  function box(part, row, t) {
    const {h} = part.steps[t], many = Math.min(h.length, 8), size = Math.min(11, (BOX - 10) / many);
    const left = x(t) - (many * size) / 2;
    const picked = row === state.part;
    return shape("g", {class: "box", onclick: () => chosen(t, row)},
      shape("title", {}, `step ${t + 1}: h = ${vector(h)}`),
      shape("rect", {x: x(t) - BOX / 2, y: y(row) - BOX_HEIGHT / 2, width: BOX, height: BOX_HEIGHT, rx: 9,
        class: picked && t === state.t ? "body chosen" : "body"}),
      shape("text", {x: x(t), y: y(row) - 4, class: "name"}, `h${subscript(t + 1)}`),
      h.slice(0, many).map((value, unit) => shape("rect",
        {x: left + unit * size + 0.5, y: y(row) + 5, width: size - 1, height: 11, rx: 1.5, style: `fill: ${tint(value)}`,
          class: picked && unit === state.unit ? "square picked" : "square"})));
  }

  function shown(values) {
    const words = values.slice(0, 3).map((value) => minus(String(Number(value.toPrecision(3))))).join(", ");
    return `[${words}${values.length > 3 ? ", \u2026" : ""}]`;
  }
}

const subscript = (number) => [...String(number)].map((digit) => String.fromCharCode(0x2080 + Number(digit))).join("");

function told(parts, state) {
  const part = parts[state.part];
  const way = part.reverse ? "last to first" : "first to last";
  return `${counted(parts.length, "LSTM")} unrolled over ${counted(part.xs.length, "step")}. ` +
    `The one that is picked reads ${way}. At step ${state.t + 1} its h is ${vector(part.steps[state.t].h)}.`;
}
