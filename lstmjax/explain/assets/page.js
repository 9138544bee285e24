// What the reader chose, and the page that follows from it.

const data = JSON.parse(document.getElementById("data").textContent);
const by = (id) => document.getElementById(id);
const LIMIT = 1e-6; // of the difference from lstmjax
const state = {...data.start, t: 0, unit: 0, part: 0, return_sequences: true};
let result = null, playing = null;

function set(changes) {
  Object.assign(state, changes);
  result = run(data, state);
  const {parts} = result;
  state.t = Math.min(Math.max(state.t, 0), parts[0].xs.length - 1);
  state.part = Math.min(state.part, parts.length - 1);
  state.unit = Math.min(Math.max(state.unit, 0), parts[state.part].units - 1);
  render();
}

function render() {
  const focused = document.activeElement && document.activeElement.dataset.key;
  const part = result.parts[state.part];
  renderLead();
  renderControls();
  renderDock(part);
  for (const place of document.querySelectorAll(".of-part")) {
    place.textContent = result.parts.length > 1 ? `of ${nameOf(part)}` : "";
  }
  renderShapes(part);
  renderCounts(part);
  renderNetwork(part);
  renderValues(part);
  renderEquation(part);
  renderWeights(part);
  renderResults();
  renderWrong(part);
  if (focused) document.querySelector(`[data-key="${focused}"]`)?.focus({preventScroll: true});
}

// Every configuration that lstmjax has computed for this page, computed here again.
function renderCheck() {
  const greatest = Math.max(0, ...data.checks.map((check) => difference(data, check))); // NaN if any is
  const passed = data.checks.length > 0 && greatest <= LIMIT;
  by("check").classList.toggle("failed", !passed);
  const over = `over ${counted(data.checks.length, "configuration")}`;
  fill("check", passed
    ? `\u2713 Checked against lstmjax ${data.version}: greatest difference ${small(greatest)} ${over}.`
    : `\u2717 These numbers are not those of lstmjax ${data.version}: greatest difference ${small(greatest)} ${over}. Do not trust this page.`);
}

function renderControls() {
  for (const name of ["inputs", "units", "steps"]) {
    const fixedBy = data.fixed[name];
    const value = {inputs: result.parts[0].inputs, units: result.parts[0].units, steps: result.parts[0].xs.length}[name];
    const slider = by(name);
    slider.max = fixedBy ? value : data.most[name];
    slider.value = value;
    slider.disabled = Boolean(fixedBy);
    by(`${name}-value`).textContent = value;
    note(name, fixedBy);
  }
  for (const name of ["layers", "direction"]) {
    for (const radio of by(name).querySelectorAll("input")) {
      radio.checked = radio.value === String(state[name]);
      radio.disabled = !data.choices[name].map(String).includes(radio.value);
    }
    note(name, data.fixed[name]);
  }
  by("return_sequences").checked = state.return_sequences;
  fill("return-note", state.return_sequences ? "True: h of every step comes back" : "False: h of the last step alone");

  function note(name, fixedBy) {
    by(`${name}-note`).hidden = !fixedBy;
    by(`${name}-note`).textContent = fixedBy ? `fixed by ${fixedBy}` : "";
  }
}

function renderDock(part) {
  const time = part.xs.length;
  by("time").max = time;
  by("time").value = state.t + 1;
  by("time").setAttribute("aria-valuetext", `step ${state.t + 1} of ${time}`);
  by("time-value").textContent = `${state.t + 1} of ${time}`;
  by("play").textContent = playing ? "Pause" : "Play";
  options("unit", part.steps[0].h.map((_, unit) => String(unit + 1)), state.unit);
  options("part", result.parts.map(nameOf), state.part);
  by("part-label").hidden = result.parts.length === 1;

  function options(id, words, chosen) {
    if (by(id).options.length !== words.length || words.some((word, at) => by(id).options[at].text !== word)) {
      fill(id, words.map((word, at) => element("option", {value: at}, word)));
    }
    by(id).value = chosen;
  }
}

function build() {
  const words = {layers: Array.from({length: data.choices.shown}, (_, at) => at + 1), direction: ["forward", "reverse", "bidirectional"]};
  for (const [name, values] of Object.entries(words)) {
    fill(name, values.map((value) => element("label", {},
      element("input", {type: "radio", name, value, onchange: () => set({[name]: value, part: 0})}), element("span", {}, String(value)))));
  }
  for (const name of ["inputs", "units", "steps"]) by(name).addEventListener("input", (event) => set({[name]: Number(event.target.value)}));
  by("return_sequences").addEventListener("change", (event) => set({return_sequences: event.target.checked}));
  by("controls").addEventListener("submit", (event) => event.preventDefault());
  by("time").addEventListener("input", (event) => set({t: Number(event.target.value) - 1}));
  by("unit").addEventListener("change", (event) => set({unit: Number(event.target.value)}));
  by("part").addEventListener("change", (event) => set({part: Number(event.target.value)}));
  by("play").addEventListener("click", play);
  document.addEventListener("keydown", pressed);
  fill("footer", `Made by lstmjax ${data.version}. ${data.origin}`);
}

// One step at a time in the order in which the picked LSTM reads, from its first step if it stands at its last.
function play() {
  const order = () => result.parts[state.part].order;
  const stop = () => { clearInterval(playing); playing = null; render(); };
  if (playing) return stop();
  if (order().indexOf(state.t) === order().length - 1) set({t: order()[0]});
  playing = setInterval(() => {
    const next = order().indexOf(state.t) + 1;
    if (next < order().length) set({t: order()[next]});
    if (next >= order().length - 1) stop();
  }, 900);
  render();
}

// Arrow keys: time, unless what has the focus moves by them itself; weights move among weights.
function pressed(event) {
  const way = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
  if (!way || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (event.target.closest(".weight")) {
    const line = weightAt.line + way[0], column = weightAt.column + way[1];
    document.querySelector(`[data-key="weight-${line}-${column}"]`)?.focus();
    event.preventDefault();
  } else if (way[1] && !event.target.closest("input:not([type=checkbox]), select, .sideways")) {
    set({t: state.t + way[1]});
    event.preventDefault();
  }
}

build();
renderCheck();
set({t: state.direction === "reverse" ? state.steps - 1 : 0});
