"""`python -m lstmjax.explain`: what it prints and what its page is given, beside what the library computes."""

import dataclasses
import functools
import itertools
import json
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstmjax import LSTMOptions, LSTMState, bidirectional, files, lstm, stack
from lstmjax.explain import __main__ as command
from lstmjax.explain import defaults, equations, lesson, page, sources
from lstmjax.inspect import trace

PRINTED = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(autouse=True, scope="module")
def compiled():
    """One program for each signature of what is called here, where the command goes from operation to operation."""

    def signature(function):
        """With all arguments in their places, so that what is left out and what is said are the same signature."""

        def call(params, xs, reverse=False, return_sequences=None):
            return program(params, xs, reverse, return_sequences)

        def run(params, xs, reverse, return_sequences):
            more = {} if return_sequences is None else {"return_sequences": return_sequences}
            return function(params, xs, reverse=reverse, **more)

        program = jax.jit(run, static_argnums=(2, 3))
        return call

    computed = types.SimpleNamespace(apply=signature(stack.apply))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defaults, "lstm", types.SimpleNamespace(init=jax.jit(lstm.init, static_argnums=(1, 2))))
        patch.setattr(defaults, "cut", jax.jit(defaults.cut, static_argnums=(1, 2)))
        for module in (equations, page):
            patch.setattr(module, "stack", computed)
            patch.setattr(module, "trace", signature(trace))
        yield computed


@functools.cache
def filled(init, *sizes, **options):
    """Params in the shapes of those that `init` makes, drawn by NumPy."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), *sizes, **options))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(scale=0.5, size=leaf.shape), leaf.dtype), shapes)


def lesson_of(path):
    """What the program prints of a file of params."""
    example = sources.example(params_file=str(path))
    return lesson.lesson(example, equations.run(example.params, example.xs))


@pytest.fixture
def told(capsys):
    """What the program prints, given these arguments."""

    def told(*arguments):
        assert command.main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    return told


@pytest.fixture
def refused(capsys):
    """What the program says of arguments that it does not take."""

    def refused(*arguments):
        with pytest.raises(SystemExit) as error:
            command.main([str(argument) for argument in arguments])
        assert error.value.code == 2
        return capsys.readouterr().err

    return refused


def rows(text, name):
    """The numbers in the lines of a table that begin with a name, as [lines, columns]."""
    lines = re.findall(rf"^  {name} +(-?\d[-\d. ]*)$", text, re.MULTILINE)
    return np.array([[float(number) for number in line.split()] for line in lines])


def assert_printed(vector, values):
    """All of a vector of which the first six are printed, and how many more there are."""
    *numbers, last = vector.split(", ")
    if more := re.fullmatch(r"\.\.\.|\((\d+) more\)", last):
        assert len(numbers) + int(more[1]) == values.size
    else:
        numbers.append(last)
    np.testing.assert_allclose([float(number) for number in numbers], values[: len(numbers)], **PRINTED)


def in_order(text, values):
    """Rows in the order of time, whatever the order of reading."""
    steps = [int(step) for step in re.findall(r"^STEP (\d+)", text, re.MULTILINE)]
    return values[np.argsort(steps)]


@pytest.mark.parametrize(
    ("inputs", "units", "formula", "arrays"),
    [
        pytest.param(
            *(1, 1, "4 * 1 * (1 + 1 + 1) = 12", [("W_x", "1 x 4", 4), ("W_h", "1 x 4", 4), ("b", "4", 4)]),
            marks=pytest.mark.slow,
        ),
        (2, 3, "4 * 3 * (2 + 3 + 1) = 72", [("W_x", "2 x 12", 24), ("W_h", "3 x 12", 36), ("b", "12", 12)]),
    ],
)
def test_parameters_are_counted_array_by_array(told, inputs, units, formula, arrays):
    text = told("--inputs", inputs, "--units", units)
    assert f"4 * units * (inputs + units + 1) = {formula}\n" in text
    for name, shape, count in arrays:
        assert re.search(rf"^  {name} +{shape} = +{count}$", text, re.MULTILINE)
    params = jax.eval_shape(lambda: lstm.init(jax.random.key(0), inputs, units))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == sum(count for *_, count in arrays)


@pytest.mark.parametrize(
    ("inputs", "units", "steps"), [(1, 3, 4), (2, 1, 1), pytest.param(3, 5, 8, marks=pytest.mark.slow)]
)
def test_every_printed_value_is_what_the_library_gives(told, compiled, inputs, units, steps):
    text = told("--inputs", inputs, "--units", units, "--steps", steps)
    params, xs = defaults.network(inputs, units), jnp.asarray(defaults.data(steps, inputs), jnp.float32)
    ys, state = compiled.apply(params, xs)
    seen = equations.trace(params, xs)
    np.testing.assert_allclose(rows(text, "h"), ys, **PRINTED)
    for name in "ifgoc":
        np.testing.assert_allclose(rows(text, name), getattr(seen, name), **PRINTED)
    for name, shape, value in (("h", state.h.shape, state.h), ("c", state.c.shape, state.c)):
        (printed,) = re.findall(rf"^    {name} {re.escape(str(shape))} = \[(.*)\]$", text, re.MULTILINE)
        np.testing.assert_allclose([float(number) for number in printed.split(",")], value, **PRINTED)
    assert f"return_sequences=True, the default: ys {ys.shape}" in text


def test_products_of_the_first_unit_add_up_to_what_is_said(told):
    """Evaluated as the reader would, from what is printed alone."""
    text = re.sub(r"\n {10}(?! )", " ", told("--inputs", 2, "--units", 3))
    sums = re.findall(r"^    z_([ifgo]) = (.*) = (-?[\d.]+)$", text, re.MULTILINE)
    assert [gate for gate, *_ in sums] == list("ifgo") * 2
    for _, products, total in sums:
        value = sum(
            np.prod([float(factor.strip("()\n ")) for factor in term.split("*")]) for term in products.split("+")
        )
        assert value == pytest.approx(float(total), abs=5e-6)
    worked = re.findall(r"^    [zch]\S* += .*$", text, re.MULTILINE)
    assert len(worked) == 12
    assert any("(-0." in line for line in worked)
    assert not [line for line in worked if re.search(r"[+*] -", line)]


def test_the_first_numbers_are_the_famous_ones(told):
    text = told()
    assert "1 input, 3 units, 4 steps" in text
    assert re.findall(r"^  x_\d = (.*)$", text, re.MULTILINE) == ["[1]", "[2]", "[3]", "[4]"]
    assert "It is not the number of time steps (4) and not that of features (1)." in text


def test_long_examples_are_shortened(told):
    text = told("--inputs", 40, "--units", 200, "--steps", 300)
    assert len(text.splitlines()) < 250
    assert max(map(len, text.splitlines())) <= 120
    assert "292 steps more" in text
    assert "STEP 300" in text
    assert "(194 more)" in text


def test_weights_stay_as_they_are_when_a_size_changes():
    small, large = defaults.network(1, 3, layers=2), defaults.network(4, 8, layers=2)
    for one, other in zip(small.layers, large.layers, strict=True):
        for name in ("w_x", "w_h", "bias"):
            ours, theirs = getattr(one, name), getattr(other, name)
            blocks = np.reshape(theirs, (*theirs.shape[:-1], 4, 8))[..., :3].reshape(*theirs.shape[:-1], 12)
            np.testing.assert_array_equal(ours, blocks[: len(ours)] if ours.ndim == 2 else blocks)


MADE = {
    "lstm": filled(lstm.init, 2, 3),
    "without biases": filled(lstm.init, 2, 3, bias=False, forget_bias=0.0),
    "learned state": dataclasses.replace(
        filled(lstm.init, 2, 3), initial=LSTMState(h=jnp.array([0.5, -0.1, 0.2]), c=jnp.array([1.0, -2.0, 0.3]))
    ),
    "bidirectional": filled(bidirectional.init, 2, 3),
    "stack": filled(stack.init, 2, (3, 4), bidirectional=True),
}


@pytest.mark.parametrize("kind", ["lstm", "stack", pytest.param("bidirectional", marks=pytest.mark.slow)])
def test_own_weights_and_data(told, compiled, tmp_path, kind):
    params = MADE[kind]
    files.save(tmp_path / "own.safetensors", params, LSTMOptions())
    (tmp_path / "own.txt").write_text("0.5, -1\n\n2 3\n-0.25\t4e-1\n1 0\n")
    text = told("--params", tmp_path / "own.safetensors", "--data", tmp_path / "own.txt")
    xs = np.float32([[0.5, -1], [2, 3], [-0.25, 0.4], [1, 0]])
    ys, states = compiled.apply(params, xs)
    last, _ = compiled.apply(params, xs, return_sequences=False)
    (printed,) = re.findall(rf"{re.escape(str(last.shape))}, h after the last step.*\n    \[(.*)\]", text)
    assert_printed(printed, last)
    for name in "hc":
        printed = re.findall(rf"^    (?:.*: )?{name} \(\d+,\) = \[(.*)\]$", text, re.MULTILINE)
        for vector, state in zip(printed, equations.flat(states), strict=True):
            assert_printed(vector, getattr(state, name))
    top = re.split("^==== LAYER 2", text, maxsplit=1, flags=re.MULTILINE)[-1]
    halves = re.split("^==== .*BACKWARD", top, flags=re.MULTILINE)
    printed = [in_order(half, rows(half, "h")) for half in halves]
    np.testing.assert_allclose(np.concatenate(printed, axis=-1), ys, **PRINTED)


@pytest.mark.parametrize(
    ("kind", "reverse"),
    [
        *((kind, False) for kind in MADE),
        *(("learned state", True), ("stack", True)),
        *(pytest.param(kind, True, marks=pytest.mark.slow) for kind in ("lstm", "without biases", "bidirectional")),
    ],
)
def test_the_equations_are_those_of_the_library(kind, reverse):
    params = MADE[kind]
    xs = np.random.default_rng(0).normal(size=(4, 2))
    parts = equations.run(params, xs, reverse)
    assert equations.difference(parts, *equations.cast(params, xs, jnp.float32), reverse) < 1e-6


def test_numbers_that_are_not_those_of_the_library_are_an_error(monkeypatch, capsys):
    monkeypatch.setattr(equations, "sigmoid", lambda z: np.clip(0.2 * z + 0.5, 0, 1))
    assert command.main([]) == 1
    out, err = capsys.readouterr()
    assert "differ from the library's" in err
    assert not out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--units", "0"], ["--units", "from 1 to 256", "'0'"]),
        (["--inputs", "two"], ["--inputs", "from 1 to 256", "'two'"]),
        (["--steps", "10001"], ["--steps", "from 1 to 1000", "'10001'"]),
        (["--steps", "-1"], ["--steps"]),
        (["--unit", "3"], ["--unit"]),
        (["--params", "none.safetensors"], ["--params none.safetensors", "No such file"]),
        (["--data", "none.txt"], ["--data none.txt", "No such file"]),
        (["--data", "."], ["--data .", "directory"]),
        (["--units", "9", "--html", "page.html"], ["--units must be at most 8 on a page", "got 9"]),
        (["--inputs", "5", "--html", "page.html"], ["--inputs must be at most 4 on a page", "got 5"]),
        (["--steps", "13", "--html", "page.html"], ["--steps must be at most 12 on a page", "got 13"]),
    ],
)
def test_wrong_arguments_are_named(refused, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    said = refused(*arguments)
    for word in words:
        assert word in said
    assert not list(tmp_path.iterdir())


def test_a_page_that_cannot_be_written_is_an_error(refused, tmp_path):
    files.save(tmp_path / "p", filled(lstm.init, 2, 3))
    said = refused("--params", tmp_path / "p", "--html", tmp_path / "none" / "page.html")
    assert f"--html {tmp_path / 'none' / 'page.html'}" in said
    assert "No such file" in said
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_a_byte_order_mark_is_no_data(tmp_path):
    (tmp_path / "own.txt").write_bytes(b"\xef\xbb\xbf1,2\r\n3,4\r\n")
    np.testing.assert_array_equal(sources.read_data(str(tmp_path / "own.txt")), [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["at least one line"]),
        (b"1 2\n3\n", ["line 2", "2 numbers, as line 1", "got 1"]),
        (b"\n1\nx\n", ["line 3", "'x'"]),
        (b"\ntime,the value\n1,2\n", ["line 2", "a header, 'time,the value'", "take it out"]),
        (b"1,2\ntime,value\n", ["line 2", "numbers from", "'time'"]),
        (b"1,x\n", ["line 1", "numbers from", "'x'"]),
        (b"1\n" * 600_000, ["at most 1,048,576 bytes", "it has 1,200,000", "fewer steps"]),
        (b"1,,2\n", ["line 1", "nothing between two commas"]),
        (b"nan\n", ["line 1", "'nan'"]),
        (b"1e300\n", ["line 1", "'1e300'"]),
        (b"1_0\n", ["line 1", "'1_0'"]),
        (b"\xff\xfe", ["byte 0", "UTF-8"]),
    ],
)
def test_data_that_are_no_numbers_are_refused_with_the_line(refused, tmp_path, content, words):
    path = tmp_path / "own.txt"
    path.write_bytes(content)
    said = refused("--data", path)
    for word in (str(path), *words):
        assert word in said


OTHER = {
    "peepholes": filled(lstm.init, 2, 3, peepholes=True),
    "a projection": filled(lstm.init, 2, 3, projection=2),
    "layer norm": filled(lstm.init, 2, 3, layer_norm=True),
    "coupled gates": filled(lstm.init, 2, 3, coupled=True),
    "LSTMParams, BidirectionalParams or StackParams": {"encoder": filled(lstm.init, 2, 3)},
    "merge='concat': layer 2 reads 4 numbers, and is given 8": filled(
        stack.init, 2, (4, 4), bidirectional=True, merge="sum"
    ),
    "it has others": jax.tree.map(lambda leaf: leaf * jnp.nan, filled(lstm.init, 2, 3)),
}


@pytest.mark.parametrize("words", OTHER)
def test_other_cells_are_refused(refused, tmp_path, words):
    path = tmp_path / "own.safetensors"
    files.save(path, OTHER[words])
    said = refused("--params", path)
    assert str(path) in said
    assert words in said


def test_files_and_sizes_that_do_not_go_together_are_refused(refused, tmp_path):
    path, data = tmp_path / "own.safetensors", tmp_path / "own.txt"
    files.save(path, filled(lstm.init, 2, 3))
    assert "--units must be 3" in refused("--params", path, "--units", 4)
    assert "--inputs must be 2" in refused("--params", path, "--inputs", 1)
    data.write_text("1 2 3\n")
    assert "must have 2 numbers in a line" in refused("--params", path, "--data", data)
    assert "--inputs must be 3" in refused("--data", data, "--inputs", 1)
    assert "--steps must be at most 1" in refused("--data", data, "--steps", 2)
    files.save(path, filled(lstm.init, 2, 3), LSTMOptions(activation="relu"))
    assert "options of the standard cell" in refused("--params", path)
    path.write_bytes(b"no safetensors at all")
    assert "--params" in refused("--params", path)


def test_data_without_end_are_refused(refused):
    assert "at most 1,048,576 bytes; it has more" in refused("--data", "/dev/zero")


MORE = {
    "bias_h": (jnp.full(12, 0.1), 12, ["b_h 12 = 12 a second bias", "their sum: b + b_h."]),
    "offset": (jnp.ones(12), 12, ["b_0 12 = 12 an offset", "their sum: b + b_0."]),
    "initial": (
        LSTMState(jnp.ones(3), jnp.ones(3)),
        6,
        ["h_0 3 = 3 the h to begin with, learned", "c_0 3 = 3 the c to begin with, learned"],
    ),
    "bias": (None, -12, ["There is no bias: b in the equations is zeros."]),
}


@pytest.mark.parametrize("fields", [*((name,) for name in MORE), tuple(MORE), ("bias_h", "offset", "initial")])
def test_all_that_a_file_holds_is_counted(told, tmp_path, fields):
    plain = filled(lstm.init, 2, 3)
    params = dataclasses.replace(plain, **{name: MORE[name][0] for name in fields})
    files.save(tmp_path / "p", params)
    text = lesson_of(tmp_path / "p") if len(fields) == 1 else told("--params", tmp_path / "p")
    (block,) = re.findall(r"^PARAMETERS\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    held = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert held == 72 + sum(MORE[name][1] for name in fields)
    names, numbers, count = block.splitlines()[0].split(" = ")
    assert eval(names, {"inputs": 2, "units": 3}) == eval(numbers) == int(count) == held
    assert sum(int(number) for number in re.findall(r"^  \w+ +[\dx ]+ = +(\d+)", block, re.MULTILINE)) == held
    assert int(re.findall(r"^  total +(\d+)$", block, re.MULTILINE)[0]) == held
    lines = [" ".join(line.split()) for line in block.splitlines()]
    if len(fields) == 1:
        for words in MORE[fields[0]][2]:
            assert any(words in line for line in lines)
        return
    (tmp_path / "x.txt").write_text("1 -2\n0.5 3\n2 0\n1 1\n")
    told("--params", tmp_path / "p", "--data", tmp_path / "x.txt", "--html", tmp_path / "page.html")
    ((half,),) = given((tmp_path / "page.html").read_text())["params"]
    assert half["held"]["count"] == sum(count for _, _, count, _ in half["held"]["arrays"]) == held


def test_the_counts_of_all_parts_are_added(tmp_path):
    params = filled(stack.init, 2, (3, 4), bidirectional=True, learned_state=True)
    files.save(tmp_path / "p", params)
    held = [sum(leaf.size for leaf in jax.tree.leaves(half)) for half in itertools.chain(*sources.cells(params))]
    assert f"PARAMETERS OF ALL: {' + '.join(map(str, held))} = {sum(held)}" in lesson_of(tmp_path / "p")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (LSTMOptions(precision="bfloat16"), "precision='bfloat16', are not followed"),
        (LSTMOptions(units_axis="model"), "units_axis='model', are not followed"),
        (LSTMOptions(), ""),
        pytest.param(None, "", marks=pytest.mark.slow),
    ],
)
def test_options_that_are_not_followed_are_told(told, tmp_path, options, said):
    files.save(tmp_path / "p", filled(lstm.init, 2, 3), options)
    for text in (
        told("--params", tmp_path / "p"),
        told("--params", tmp_path / "p", "--html", tmp_path / "page.html") and (tmp_path / "page.html").read_text(),
    ):
        assert said in text
        assert ("not followed" in text) == bool(said)


def test_the_core_is_enough():
    script = (
        "import sys\n"
        "for name in ('safetensors', 'flax', 'optax', 'matplotlib', 'rich', 'tyro'): sys.modules[name] = None\n"
        "sys.argv = ['explain', '--units', '1', '--steps', '1']\n"
        "import runpy; runpy.run_module('lstmjax.explain', run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "4 * 1 * (1 + 1 + 1) = 12" in result.stdout
    assert not result.stderr


def given(text):
    """What a page has as data."""
    (data,) = re.findall(r'<script type="application/json" id="data">(.*)</script>', text)
    return json.loads(data)


@pytest.mark.parametrize("own", ["data", "params", pytest.param("nothing", marks=pytest.mark.slow)])
def test_the_page_is_given_what_apply_computes(told, tmp_path, own):
    """Compared with the loop over NumPy arrays, which other tests compare with `apply`."""
    arguments = {
        "nothing": ["--inputs", 2],
        "data": ["--data", tmp_path / "x.txt"],
        "params": ["--params", tmp_path / "p"],
    }
    (tmp_path / "x.txt").write_text("1 -2\n0.5 3\n")
    files.save(tmp_path / "p", filled(lstm.init, 2, 3))
    told(*arguments[own], "--html", tmp_path / "page.html")
    data = given((tmp_path / "page.html").read_text())
    xs = np.array(data["xs"])
    if own == "data":
        np.testing.assert_array_equal(xs, [[1, -2], [0.5, 3]])
    assert len(data["checks"]) == {"nothing": 10, "data": 10, "params": 6}[own]
    for check in data["checks"]:
        inputs, units, steps, layers, direction = check["config"].values()
        params = (
            files.load(tmp_path / "p")[0]
            if own == "params"
            else defaults.network(inputs, units, layers, direction == "bidirectional")
        )
        parts = equations.run(params, xs[:steps, :inputs], direction == "reverse")
        top = [part.steps.h for part in parts if part.layer == parts[-1].layer]
        np.testing.assert_allclose(check["ys"], np.concatenate(top, axis=-1), **PRINTED)
        for (h, c), part in zip(check["states"], parts, strict=True):
            np.testing.assert_allclose(h, part.final[0], **PRINTED)
            np.testing.assert_allclose(c, part.final[1], rtol=1e-6, atol=1e-6)
    assert "trace" in data["checks"][0]


def test_the_page_needs_nothing_beside_itself(tmp_path):
    files.save(tmp_path / "p", filled(lstm.init, 2, 3))
    text = page.page(sources.example(params_file=str(tmp_path / "p")))
    assert set(re.findall(r"\w+://[^\"'`\s]*", text)) == {"http://www.w3.org/2000/svg"}  # a name, which nothing fetches
    assert not re.search(r"<(img|iframe|object|embed|audio|video)\b|@import|url\((?!#)|\bsrc=|innerHTML|fetch\(", text)
    assert not re.search(r"\{\{\w+\}\}", text)


def test_names_of_files_end_no_script(told, tmp_path):
    path = tmp_path / "<!--<script>{{data}}.txt"
    path.write_text("1 -2\n0.5 3\n")
    told("--data", path, "--html", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert given(text)["fixed"]["steps"] == path.name
    assert "<!--<script>" not in text


def test_what_is_too_large_for_a_page_is_refused(refused, tmp_path):
    files.save(tmp_path / "p", filled(lstm.init, 2, 33))
    assert "--units must be at most 32 on a page" in refused(
        "--params", tmp_path / "p", "--html", tmp_path / "page.html"
    )
    (tmp_path / "x.txt").write_text("1\n" * 101)
    assert "--steps must be at most 100 on a page" in refused(
        "--data", tmp_path / "x.txt", "--html", tmp_path / "page.html"
    )
