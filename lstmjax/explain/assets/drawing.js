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
const factor = (value, form = short) => (form(value).startsWith("\u2212") ? `(${form(value)})` : form(value));
const tuple = (...sizes) => `(${sizes.join(", ")}${sizes.length === 1 ? "," : ""})`;
const vector = (values, form = fixed) => `[${values.map(form).join(", ")}]`;
const counted = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const small = (value) => (value === 0 ? "0" : minus(value.toExponential(1)));

// Blue above 0, orange below, paler the nearer to 0; `most` has the full colour.
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

const COLUMN = 96, ROW = 80, LEFT = 92, BOX = 56, BOX_HEIGHT = 46, ASIDE = 15;

// Columns are steps, rows are LSTMs, the first layer lowest; the halves of a layer stand aside, so that what both read
// passes the lower one, and what the lower one gives passes the upper. `chosen` is told of the box that is clicked.
function unrolled({parts}, state, chosen) {
  const time = parts[0].xs.length, top = parts[parts.length - 1].layer;
  const height = parts.length * ROW + 118, width = LEFT + time * COLUMN + 24;
  const middle = (t) => LEFT + t * COLUMN + COLUMN / 2;
  const floor = (row) => height - 52 - row * ROW; // under the row; what a layer reads and gives meets there
  const level = (row) => floor(row) - ROW / 2;
  const most = Math.max(...parts.flatMap((part) => part.steps.flatMap((step) => step.h.map(Math.abs))));
  const aside = (part) => (part.halves === 1 ? 0 : part.half ? ASIDE : -ASIDE);
  const picture = shape("svg", {width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": told(parts, state)});
  picture.append(shape("defs", {}, ["", "-now"].map((kind) => shape("marker",
    {id: `arrow${kind}`, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto-start-reverse"},
    shape("path", {d: "M0 0.6 L8 4 L0 7.4 Z", class: `arrowhead${kind}`})))));
  picture.append(shape("rect", {x: middle(state.t) - COLUMN / 2 + 3, y: 4, width: COLUMN - 6, height: height - 8, rx: 10, class: "now"}));

  const wire = (points, now, arrow = true) => picture.append(shape("polyline", {points: points.map((point) => point.join(",")).join(" "),
    class: now ? "wire now-wire" : "wire", "marker-end": arrow ? `url(#arrow${now ? "-now" : ""})` : null}));
  const text = (x, y, words, kind) => picture.append(shape("text", {x, y, class: kind}, words));

  for (let t = 0; t < time; t++) {
    const now = t === state.t, x = middle(t);
    text(x, height - 24, `x${subscript(t + 1)}`, "name");
    text(x, height - 9, shown(parts[0].xs[t]), "tiny");
    wire([[x, height - 40], [x, floor(0)]], now, false);
    for (const part of parts.filter((one) => one.halves > 1 && !one.half)) {
      const y = floor(parts.indexOf(part));
      picture.append(shape("circle", {cx: x, cy: y, r: 3.5, class: now ? "joint now-joint" : "joint"}));
    }
    parts.forEach((part, row) => {
      const base = floor(row - part.half), roof = floor(row - part.half + part.halves), at = x + aside(part);
      const past = x + aside(part) * 2.2, bottom = level(row) + BOX_HEIGHT / 2 + 2, lid = level(row) - BOX_HEIGHT / 2;
      wire(part.half ? [[x, base], [past, base - 9], [past, bottom]] : [[x, base], [at, base - 7], [at, bottom]], now);
      const ends = part.order[time - 1] === t, last = part.layer === top;
      if (last && !state.return_sequences && !ends) return;
      wire(part.half || part.halves === 1 ? [[at, lid], [at, roof + 7], [x, roof]] : [[past, lid], [past, roof + 9], [x, roof]], now, false);
      if (!last) return;
      wire([[x, roof], [x, roof - 18]], now);
      text(x, roof - 24, state.return_sequences ? `y${subscript(t + 1)}` : "ys", "name");
      if (!state.return_sequences && part.halves > 1 && time > 1) text(x, roof - 41, part.half ? "backward" : "forward", "tiny");
    });
  }
  parts.forEach((part, row) => {
    const name = [top ? `layer ${part.layer + 1}` : "", part.halves > 1 ? (part.half ? "backward" : "forward") : ""].filter(Boolean);
    if (!name.length) name.push("LSTM");
    name.forEach((words, number) => text(10, level(row) + 4 + (number - (name.length - 1) / 2) * 16, words,
      row === state.part ? "row-name picked" : "row-name"));
    part.order.forEach((t, position) => {
      const way = part.reverse ? -1 : 1, x = middle(t) + aside(part);
      if (position) {
        const from = middle(part.order[position - 1]) + aside(part);
        wire([[from + (way * BOX) / 2, level(row)], [x - way * (BOX / 2 + 2), level(row)]], t === state.t);
      }
      picture.append(box(part, row, t, x));
    });
  });
  return picture;

  function box(part, row, t, x) {
    const {h} = part.steps[t], many = Math.min(h.length, 8), size = Math.min(11, (BOX - 10) / many);
    const left = x - (many * size) / 2, picked = row === state.part;
    return shape("g", {class: "box", onclick: () => chosen(t, row)},
      shape("title", {}, `step ${t + 1}: h = ${vector(h)}`),
      shape("rect", {x: x - BOX / 2, y: level(row) - BOX_HEIGHT / 2, width: BOX, height: BOX_HEIGHT, rx: 9,
        class: picked && t === state.t ? "body chosen" : "body"}),
      shape("text", {x, y: level(row) - 4, class: "name"}, `h${subscript(t + 1)}`),
      h.slice(0, many).map((value, unit) => shape("rect",
        {x: left + unit * size + 0.5, y: level(row) + 5, width: size - 1, height: 11, rx: 1.5, style: `fill: ${tint(value, most)}`,
          class: picked && unit === state.unit ? "square picked" : "square"})));
  }

  // As many numbers as fit under a column.
  function shown(values) {
    const words = values.map((value) => minus(String(Number(value.toPrecision(3)))));
    let many = words.length;
    while (many > 1 && words.slice(0, many).join(", ").length > (many < words.length ? 6 : 10)) many--;
    return `[${words.slice(0, many).join(", ")}${many < words.length ? ", \u2026" : ""}]`;
  }
}

const subscript = (number) => [...String(number)].map((digit) => String.fromCharCode(0x2080 + Number(digit))).join("");

function told(parts, state) {
  const part = parts[state.part];
  const way = part.reverse ? "in reverse order" : "first to last";
  return `${counted(parts.length, "LSTM")} unrolled over ${counted(part.xs.length, "step")}. ` +
    `The one that is picked reads ${way}. At step ${state.t + 1} its h is ${vector(part.steps[state.t].h)}.`;
}
