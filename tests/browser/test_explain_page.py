"""The page of `python -m lstmjax.explain --html`, used as a reader uses it, beside what the library computes."""

import ast
import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstmjax import bidirectional, files, lstm, stack
from lstmjax.explain import __main__ as command
from lstmjax.explain import defaults, equations
from lstmjax.inspect import trace

SHOWN = {"rtol": 0, "atol": 1e-6}
START = {"inputs": 2, "units": 3, "steps": 4}


@pytest.fixture(scope="session")
def page_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("explain") / "page.html"
    sizes = itertools.chain(*((f"--{name}", str(size)) for name, size in START.items()))
    assert command.main([*sizes, "--html", str(path)]) == 0
    return path


@pytest.fixture
def reader(open_page, page_file):
    return open_page(page_file)


def plain(text):
    return text.replace("\N{MINUS SIGN}", "-")


def numbers(text):
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", plain(text))]


def table(reader, selector):
    """The numbers in the cells of a table's body, as [rows, columns]."""
    rows = reader.locator(f"{selector} tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.querySelectorAll('td')].map(cell => cell.textContent))"
    )
    return np.array([[float(plain(cell)) for cell in row] for row in rows])


def slide(reader, name, value):
    """Move a slider by the arrow keys."""
    slider = reader.locator(f"#{name}")
    slider.focus()
    while (now := int(slider.input_value())) != value:
        slider.press("ArrowRight" if now < value else "ArrowLeft")


def choose(reader, inputs, units, steps, layers=1, direction="forward"):
    slide(reader, "inputs", inputs)
    slide(reader, "units", units)
    slide(reader, "steps", steps)
    reader.locator(f"#layers input[value='{layers}']").check()
    reader.locator(f"#direction input[value='{direction}']").check()


def computed(inputs, units, steps, layers=1, direction="forward"):
    """Outputs, states and traces of the LSTMs of such a configuration, by the library."""
    params = defaults.network(inputs, units, layers, direction == "bidirectional")
    xs, reverse = jnp.asarray(defaults.data(steps, inputs), jnp.float32), direction == "reverse"
    ys, states = stack.apply(params, xs, reverse=reverse)
    return params, ys, equations.flat(states), equations.flat(trace(params, xs, reverse=reverse))


def shape(reader, name):
    return ast.literal_eval(reader.locator(f"#shape-{name} td").first.inner_text())


CONFIGURATIONS = [
    (1, 1, 4, 1, "forward"),
    (2, 3, 5, 1, "forward"),
    (4, 8, 12, 1, "reverse"),
    (1, 2, 1, 1, "bidirectional"),
    (3, 4, 3, 2, "forward"),
    (1, 5, 6, 2, "reverse"),
    (2, 3, 4, 2, "bidirectional"),
    (4, 1, 7, 3, "reverse"),
    (4, 8, 12, 3, "bidirectional"),
]


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_every_number_is_what_the_library_computes(reader, configuration):
    _, _, steps, layers, direction = configuration
    choose(reader, *configuration)
    params, ys, states, traces = computed(*configuration)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert reader.locator("#total").inner_text() == f"{count} parameters"
    assert reader.locator("#ys-shape").inner_text() == str(ys.shape)
    np.testing.assert_allclose(table(reader, "#ys"), ys, **SHOWN)
    for number, state in enumerate(states):
        for name in "hc":
            row = reader.locator(f"#state-{name}-{number} td")
            assert row.first.inner_text() == str(state.h.shape)
            np.testing.assert_allclose(numbers(row.last.inner_text()), getattr(state, name), **SHOWN)

    halves = 2 if direction == "bidirectional" else 1
    assert len(traces) == layers * halves
    made = itertools.chain(*(equations.sources.cells(params)))
    for number, (seen, half) in enumerate(zip(traces, made, strict=True)):
        if len(traces) > 1:
            reader.locator("#part").select_option(index=number)
        features = half.w_x.shape[0]
        for name, size in {
            "xs": (steps, features),
            "x_t": (features,),
            "h": (half.units,),
            "c": (half.units,),
            "W_x": half.w_x.shape,
            "W_h": half.w_h.shape,
            "b": half.bias.shape,
        }.items():
            assert shape(reader, name) == size
        factors = f"= 4 \N{MULTIPLICATION SIGN} {half.units} \N{MULTIPLICATION SIGN} ({features} + {half.units} + 1)"
        assert (
            reader.locator("#formula").inner_text() == f"{factors} = {half.w_x.size + half.w_h.size + half.bias.size}"
        )
        for name, leaf in (("W_x", half.w_x), ("W_h", half.w_h), ("b", half.bias)):
            assert reader.locator(f"#count-{name} td").last.inner_text() == str(leaf.size)
        weights = reader.locator("#weights td.weight").evaluate_all("cells => cells.map(cell => cell.title)")
        together = np.concatenate([half.w_x, half.w_h, half.bias[None]])
        np.testing.assert_allclose([float(plain(text)) for text in weights], together.ravel(), **SHOWN)
        for t in sorted({0, steps // 2, steps - 1}):
            slide(reader, "time", t + 1)
            values = np.stack([getattr(seen, name)[t] for name in "ifgoch"])
            np.testing.assert_allclose(table(reader, "#values-table"), values, **SHOWN)
        course = np.stack([getattr(seen, name)[:, 0] for name in "ifgoch"])
        np.testing.assert_allclose(table(reader, "#course"), course, **SHOWN)


def test_it_opens_with_what_was_asked_for_and_is_checked(reader):
    assert reader.locator("#lead").inner_text().startswith("2 inputs, 3 units, 4 steps: 72 parameters")
    check = reader.locator("#check")
    (difference,) = re.findall(r"greatest difference (\S+) over 10 configurations", plain(check.inner_text()))
    assert 0 <= float(difference) < 1e-12
    assert "failed" not in check.get_attribute("class").split()


@pytest.mark.parametrize("spoilt", ["ys", "states", "trace", "last", "weights", "missing", "none"])
def test_a_page_that_computes_something_else_says_so(open_page, page_file, tmp_path, spoilt):
    text = page_file.read_text()
    (data,) = re.findall(r'id="data">(.*)</script>', text)
    content = json.loads(data)
    if spoilt == "weights":
        content["tables"][0][0]["w_x"][0][0] += 0.01
    elif spoilt == "missing":
        content["checks"][0]["ys"].pop()
    elif spoilt == "none":
        content["checks"] = []
    else:
        place = content["checks"][0][spoilt]
        while isinstance(place[0], list):
            place = place[0]
        place[0] += 2e-5
    path = tmp_path / "page.html"
    path.write_text(text.replace(data, json.dumps(content)))
    check = open_page(path).locator("#check")
    assert "failed" in check.get_attribute("class").split()
    assert "are not those of lstmjax" in check.inner_text()


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_return_sequences(reader, direction):
    choose(reader, 2, 3, 5, 2, direction)
    params, ys, states, _ = computed(2, 3, 5, 2, direction)
    reader.get_by_label("return_sequences").uncheck()
    xs, reverse = jnp.asarray(defaults.data(5, 2), jnp.float32), direction == "reverse"
    last, _ = stack.apply(params, xs, reverse=reverse, return_sequences=False)
    assert reader.locator("#ys-shape").inner_text() == str(last.shape)
    np.testing.assert_allclose(table(reader, "#ys"), last[None], **SHOWN)
    assert "return_sequences=False" in reader.locator("#results-text code").inner_text()
    assert reader.locator("#network text", has_text=re.compile("^ys$")).count() == len(states) // 2
    reader.get_by_label("return_sequences").check()
    np.testing.assert_allclose(table(reader, "#ys"), ys, **SHOWN)


def test_the_worked_equation_adds_up(reader):
    """Evaluated from its text alone, at a step where h is not 0, and beside the library."""
    choose(reader, 2, 3, 4)
    slide(reader, "time", 3)
    reader.locator("#unit").select_option(label="2")
    _, _, _, (seen,) = computed(2, 3, 4)
    for gate in "ifgo":
        lines = [plain(text) for text in reader.locator(f"#line-{gate} .sum").all_inner_texts()]
        left, total = lines[0].split("=", 1)[1].rsplit("=", 1)
        products = [term.split("·") for term in left.split("+")]
        assert [len(factors) for factors in products] == [2] * 5 + [1]
        value = sum(np.prod([float(factor.strip(" ()\n")) for factor in factors]) for factors in products)
        assert value == pytest.approx(float(total), abs=5e-6)
        assert float(lines[1].rsplit("=", 1)[1]) == pytest.approx(float(getattr(seen, gate)[2, 1]), abs=1e-6)
    for name in "ch":
        value = float(plain(reader.locator(f"#line-{name} .result").inner_text()))
        assert value == pytest.approx(float(getattr(seen, name)[2, 1]), abs=1e-6)
    np.testing.assert_allclose(numbers(reader.locator("#vector-h-before").inner_text()), seen.h[1], **SHOWN)
    np.testing.assert_allclose(numbers(reader.locator("#vector-c-before").inner_text()), seen.c[1], **SHOWN)


def test_time_and_unit_by_keyboard(reader):
    _, _, _, (seen,) = computed(**START)
    reader.locator("body").press("ArrowRight")
    reader.locator("body").press("ArrowRight")
    assert reader.locator("#time-value").inner_text() == "3 of 4"
    reader.locator("body").press("ArrowLeft")
    assert reader.locator("#time").input_value() == "2"
    reader.get_by_role("button", name="unit 3").focus()
    reader.keyboard.press("Enter")
    assert reader.locator("#unit option:checked").inner_text() == "3"
    assert reader.evaluate("document.activeElement.textContent") == "unit 3"
    live = reader.locator("#live")
    assert live.get_attribute("aria-live") == "polite"
    spoken = dict(re.findall(r"([ifgoch]) (-?[\d.]+)(?:,|$)", plain(live.inner_text())))
    for name in "ifgoch":
        assert float(spoken[name]) == pytest.approx(float(getattr(seen, name)[1, 2]), abs=1e-6)
    for _ in range(9):
        reader.keyboard.press("ArrowRight")
    assert reader.locator("#time-value").inner_text() == "4 of 4"


def test_the_weights_of_a_unit_are_outlined_and_read_out(reader):
    params, *_ = computed(**START)
    reader.locator("#unit").select_option(label="2")
    picked = reader.locator("#weights tbody tr").first.locator("td.picked")
    assert [float(plain(text)) for text in picked.all_inner_texts()] == [
        pytest.approx(float(weight)) for weight in params.w_x[0, 1::3]
    ]
    assert reader.locator("#weights tbody td.picked").count() == 4 * (2 + 3 + 1)
    reader.locator("#weights td.weight").first.focus()
    for key in (
        "ArrowDown",
        "ArrowDown",
        "ArrowRight",
        "ArrowRight",
        "ArrowRight",
        "ArrowRight",
        "ArrowUp",
        "ArrowDown",
    ):
        reader.keyboard.press(key)
    said = plain(reader.locator("#readout").inner_text())
    assert said.startswith("W_h: from h 1 to f of unit 2: ")
    assert float(said.rsplit(" ", 1)[1]) == pytest.approx(float(params.w_h[0, 4]), abs=1e-6)
    reader.locator("#weights td.weight").nth(13).hover()
    said = plain(reader.locator("#readout").inner_text())
    assert said.startswith("W_x: from x 2 to i of unit 2: ")
    assert float(said.rsplit(" ", 1)[1]) == pytest.approx(float(params.w_x[1, 1]), abs=1e-6)
    assert reader.locator("#time-value").inner_text() == "1 of 4"


@pytest.mark.parametrize(("direction", "first", "last"), [("forward", "1", "4"), ("reverse", "4", "1")])
def test_playing_goes_as_it_is_read_and_ends(open_page, page_file, direction, first, last):
    reader = open_page(page_file)
    reader.clock.install()
    reader.reload()
    reader.locator(f"#direction input[value='{direction}']").check()
    slide(reader, "time", int(last))
    play = reader.locator("#play")
    play.click()
    assert reader.locator("#time").input_value() == first
    assert play.inner_text() == "Pause"
    seen = [first]
    for _ in range(3):
        reader.clock.run_for(1000)
        seen.append(reader.locator("#time").input_value())
    assert seen == sorted(seen, reverse=direction == "reverse")
    assert seen[-1] == last
    assert play.inner_text() == "Play"
    play.click()
    play.click()
    reader.clock.run_for(5000)
    assert reader.locator("#time").input_value() == first


def test_a_box_that_is_clicked_is_picked(reader):
    choose(reader, 2, 3, 4, 2, "bidirectional")
    reader.locator("#network .box").nth(2 * 4 + 2).click()
    assert reader.locator("#part option:checked").inner_text() == "layer 2, forward"
    assert reader.locator("#time-value").inner_text() == "3 of 4"
    assert reader.locator("#network .box").count() == 4 * 4


def test_wrong_answers_have_the_readers_numbers(reader):
    choose(reader, 1, 4, 7)
    said = reader.locator("#wrong").inner_text()
    assert "There is one cell, whatever units is; units = 4 is the length of its h and of its c." in said
    assert "The 7 steps use the same 96 parameters one after another; h has 4 numbers at each." in said
    assert "x_t has 1 number and h has 4: W_x, 1 \N{MULTIPLICATION SIGN} 16, leads from one to the other." in said
    assert "chance" not in said
    slide(reader, "steps", 4)
    assert reader.locator("#wrong").inner_text().count("is chance") == 1


def test_tab_reaches_everything_and_the_focus_is_seen(reader):
    reached, unseen = [], []
    for _ in range(60):
        reader.keyboard.press("Tab")
        name, outline = reader.evaluate(
            "() => { const at = document.activeElement, shown = at.type === 'radio' ? at.nextSibling : at;"
            "const name = at.id || at.dataset.key || at.name || at.className || at.tagName;"
            "return [name, getComputedStyle(shown).outlineStyle] }"
        )
        if name in reached:
            break
        reached.append(name)
        unseen += [name] if outline == "none" else []
    names = (
        "skip inputs units steps layers direction return_sequences network vectors values-table-0 course-3 weight-0-0 "
    )
    assert set(names.split()) | {"results", "states", "play", "time", "unit"} <= set(reached)
    assert not [name for name in unseen if name != "BODY"]


def test_every_control_has_a_name(reader):
    nameless = reader.locator("input, select, button, [tabindex='0']").evaluate_all(
        "all => all.filter(one => !one.labels?.length && !one.textContent.trim() && !one.ariaLabel).length"
    )
    assert nameless == 0
    assert reader.locator("h1").count() == 1
    assert reader.locator("main section[aria-labelledby]").count() == reader.locator("section").count()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(open_page, page_file, width, scheme):
    reader = open_page(page_file, width, color_scheme=scheme)
    for configuration in ((2, 3, 4), (4, 8, 12, 3, "bidirectional")):
        choose(reader, *configuration)
        assert reader.evaluate("document.documentElement.scrollWidth") <= width
        wide = reader.locator("body *").evaluate_all(
            "(all, width) => all.filter(one => !one.closest('.scroll, .visually-hidden, svg') &&"
            " one.getBoundingClientRect().right > width + 0.5).map(one => one.outerHTML.slice(0, 80))",
            width,
        )
        assert not wide


def test_what_is_picked_is_in_sight_on_a_phone(open_page, page_file):
    reader = open_page(page_file, 390)
    choose(reader, 1, 8, 12)
    for step, unit in ((12, 8), (1, 1), (6, 4)):
        slide(reader, "time", step)
        reader.locator("#unit").select_option(label=str(unit))
        for place, seen in (
            ("#course", "#course th.picked"),
            ("#values-table", "#values-table th.picked"),
            ("#network", "#network .chosen"),
        ):
            outer, inner = reader.locator(place).bounding_box(), reader.locator(seen).bounding_box()
            assert outer["x"] - 1 <= inner["x"]
            assert inner["x"] + inner["width"] <= outer["x"] + outer["width"] + 1


# WCAG 2: (L1 + 0.05) / (L2 + 0.05), of colours as the browser draws them.
CONTRAST = """() => {
  const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = (colours) => {
    context.clearRect(0, 0, 1, 1);
    for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (colour) => colour.reduce((sum, v, k) => sum + linear(v / 255) * [0.2126, 0.7152, 0.0722][k], 0);
  const low = [];
  for (const one of document.querySelectorAll("body *:not(svg *):not(script):not(option)")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || one.closest(".visually-hidden, .skip, noscript, :disabled + span")) continue;
    const under = [];
    for (let at = one; at; at = at.parentElement) under.unshift(getComputedStyle(at).backgroundColor);
    const [a, b] = [rgb(under), rgb([...under, getComputedStyle(one).color])].map(light).sort((a, b) => b - a);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push([one.outerHTML.slice(0, 90), (a + 0.05) / (b + 0.05)]);
  }
  return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_either_scheme(open_page, page_file, scheme):
    reader = open_page(page_file, color_scheme=scheme)
    choose(reader, 4, 8, 12, 2, "bidirectional")
    assert reader.evaluate(CONTRAST) == []


def test_reduced_motion(open_page, page_file):
    behaviour = "getComputedStyle(document.documentElement).scrollBehavior"
    assert open_page(page_file, reduced_motion="reduce").evaluate(behaviour) == "auto"
    assert open_page(page_file, reduced_motion="no-preference").evaluate(behaviour) == "smooth"


@pytest.mark.parametrize("kind", ["lstm", "bidirectional"])
def test_own_weights_and_data(open_page, tmp_path, kind):
    params = {"lstm": lstm, "bidirectional": bidirectional}[kind].init(jax.random.key(5), 2, 3)
    files.save(tmp_path / "own.safetensors", params)
    (tmp_path / "<i>own.txt").write_text("0.5 -1\n2 3\n-0.25 0.4\n")
    path = tmp_path / "page.html"
    arguments = ["--params", tmp_path / "own.safetensors", "--data", tmp_path / "<i>own.txt", "--html", path]
    assert command.main([str(argument) for argument in arguments]) == 0
    reader = open_page(path)
    assert "failed" not in reader.locator("#check").get_attribute("class").split()
    for name, size, file in (
        ("inputs", 2, "own.safetensors"),
        ("units", 3, "own.safetensors"),
        ("steps", 3, "<i>own.txt"),
    ):
        assert reader.locator(f"#{name}").is_disabled()
        assert reader.locator(f"#{name}-value").inner_text() == str(size)
        assert reader.locator(f"#{name}-note").inner_text() == f"fixed by {file}"
    assert reader.locator("#layers input:enabled").count() == 1
    xs = jnp.array([[0.5, -1], [2, 3], [-0.25, 0.4]])
    ys, _ = stack.apply(params, xs)
    np.testing.assert_allclose(table(reader, "#ys"), ys, **SHOWN)
    if kind == "bidirectional":
        assert reader.locator("#direction input:enabled").count() == 1
        return
    reader.locator("#direction input[value='reverse']").check()
    np.testing.assert_allclose(table(reader, "#ys"), lstm.apply(params, xs, reverse=True)[0], **SHOWN)
    assert reader.locator("#direction input[value='bidirectional']").is_disabled()
