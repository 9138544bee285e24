"""Tables of layers: formulas that give the numbers, and the shapes that functions have."""

import cProfile
import dataclasses
import gc
import itertools
import math
import re
import sys
import weakref
from functools import cache, partial

import covering
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstmjax import (
    bidirectional,
    conv1d,
    crf,
    dense,
    embedding,
    hierarchy,
    lstm,
    residual,
    stack,
    summary,
    time_distributed,
)

KEY = jax.random.key(0)
PARTS = {
    "bias": [True, False],
    "peepholes": [False, True],
    "projection": [None, 5],
    "layer_norm": [False, "joint", "joint_cell", "per_gate", "per_gate_cell"],
    "coupled": [False, True],
    "learned_state": [False, True],
}


def filled(init, *sizes, **options):
    """Params in the shapes of those that `init` makes, since no number in them matters here."""
    shapes = jax.eval_shape(lambda: init(KEY, *sizes, **options))
    return jax.tree.map(lambda leaf: jnp.asarray(np.zeros(leaf.shape, leaf.dtype)), shapes)


LAYERS = {
    "dense": filled(dense.init, 3, 4),
    "embedding": filled(embedding.init, 7, 3),
    "conv1d": filled(conv1d.init, 3, 4, kernel=5),
    "dense without a bias": filled(dense.init, 3, 4, bias=False),
    "conv1d of groups": filled(conv1d.init, 4, 6, kernel=5, groups=2, bias=False),
    "crf": filled(crf.init, 5),
    "bidirectional": filled(bidirectional.init, 2, 3),
    "stack": filled(stack.init, 2, (4, 3, 3), bidirectional=True),
    "hierarchy": filled(hierarchy.init, (8, 4, 0), (6, (5, 5), 4), vocabulary=(9, 7, None), peepholes=True),
    "residual": filled(residual.init, 2, (4, 4), kernel=3)[0],
}


def shape(*axes, dtype="float32"):
    return jax.ShapeDtypeStruct(axes, dtype)


def size(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def formulas(table):
    """Each as its names, its numbers and its value; a long one continues on the next line."""
    lines = [line.strip() for line in table.splitlines()]
    blocks = itertools.groupby(lines, lambda line: "  " not in line)
    found = [re.fullmatch(r"(.*?[a-z].*?) = (?:(.*) = )?([\d,]+)", " ".join(block)) for alone, block in blocks if alone]
    return [(m[1], m[2] or m[3].replace(",", ""), int(m[3].replace(",", ""))) for m in found if m]


def rows(table):
    """The columns of layers: the name, the output, the number."""
    found = [re.fullmatch(r"( *)(\S.*?)  +(\[.*\])  +([\d,]+)", line) for line in table.splitlines()]
    return [(len(m[1]) // 2, m[2], m[3], int(m[4].replace(",", ""))) for m in found if m]


def sizes(output):
    """Of the axes that an output is said to have."""
    return tuple(map(int, re.findall(r"\d+", output)))


def test_a_table_of_params():
    params = {"encoder": filled(lstm.init, 1, 1), "head": filled(dense.init, 1, 1000, dtype=jnp.bfloat16)}
    params["own"] = jnp.asarray(np.ones(5, np.float32))
    assert summary(params) == (
        "name            shape                    dtype     count\n"
        "encoder (LSTM)  [*batch, time, units 1]               12\n"
        "  4 * units * (inputs + units + 1) = 4 * 1 * (1 + 1 + 1) = 12\n"
        "encoder/w_x     (1, 4)                   float32       4\n"
        "encoder/w_h     (1, 4)                   float32       4\n"
        "encoder/bias    (4,)                     float32       4\n"
        "head (Dense)    [*batch, units 1000]               2,000\n"
        "  units * (inputs + 1) = 1000 * (1 + 1) = 2,000\n"
        "head/w          (1, 1000)                bfloat16  1,000\n"
        "head/bias       (1000,)                  bfloat16  1,000\n"
        "own             (5,)                     float32       5\n"
        "total           4.0 KiB                            2,017"
    )
    assert summary(jax.eval_shape(lambda: params)) == summary(params)
    assert summary({}).splitlines()[-1].split() == ["total", "0", "bytes", "0"]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(row, marks=[] if row in covering.pairs(PARTS) else pytest.mark.slow)
        for row in itertools.product(*PARTS.values())
    ],
    ids=str,
)
def test_the_formula_of_every_lstm_gives_the_number_of_its_parameters(options):
    """Also with a second bias, which is PyTorch's, and an offset, which is TensorFlow's."""
    options = dict(zip(PARTS, options, strict=True))
    made = jax.eval_shape(lambda: lstm.init(KEY, 2, 3, **options))
    gates = shape(made.w_x.shape[1])
    for more in ({}, {"bias_h": gates}, {"offset": gates}, {"bias_h": gates, "offset": gates}):
        params = dataclasses.replace(made, **more)
        [(names, numbers, value)] = formulas(summary(params))
        assert eval(names, {"inputs": 2, "units": 3, "projection": 5}) == eval(numbers) == value == size(params)
        [(_, _, output, _)] = rows(summary(params))
        assert output == ("[*batch, time, projection 5]" if options["projection"] else "[*batch, time, units 3]")


@pytest.mark.parametrize("params", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("copies", [(), (5,), (2, 3)])
def test_the_formula_of_every_layer_gives_the_number_of_its_parameters(params, copies):
    """Also where `jax.vmap` made several of them."""
    params = jax.tree.map(lambda leaf: shape(*copies, *leaf.shape), params)
    table = summary(params)
    every = formulas(table)
    assert len(every) == len(rows(table))
    assert every[0][2] == size(params)
    for (_, numbers, value), (_, _, _, count) in zip(every, rows(table), strict=True):
        assert eval(numbers) == value == count
    assert table.split()[-1] == f"{size(params):,}"
    assert table.split()[:4] == ["name", "shape", "dtype", "count"]


def test_a_number_is_printed_once():
    table = summary(filled(stack.init, 32, (64,)))
    assert "  layers/0 = 24,832\n" in table
    for line in table.splitlines():
        said = [text.replace(",", "") for text in line.split(" = ")]
        assert len(set(said)) == len(said), line


@pytest.mark.parametrize(("merge", "outputs"), [("concat", 6), ("sum", 3), ("mul", 3), ("ave", 3)])
def test_outputs_of_two_directions_are_those_of_the_merge_or_say_of_which(merge, outputs):
    params = filled(stack.init, 2, (3, 3), bidirectional=True, merge=merge)
    called = rows(summary(partial(stack.apply, merge=merge), params, shape(10, 2)))
    assert [row[2] for row in called if "LSTM" not in row[1]] == [f"[time 10, outputs {outputs}]"] * 3
    alone = rows(summary(params))
    assert [row[2] for row in alone if "LSTM" not in row[1]] == ["[*batch, time, outputs 6 (concat)]"] * 3


def test_names_of_the_formulas_are_those_of_init():
    sizes_of = {"vocabulary": 7, "features": 3, "kernel": 5, "inputs": 3, "units": 4, "tags": 5}
    for name in ("dense", "embedding", "conv1d", "crf"):
        [(names, _, value)] = formulas(summary(LAYERS[name]))
        assert eval(names, sizes_of) == value


def test_arrays_that_are_no_such_layer_have_no_formula():
    odd = dense.DenseParams(w=np.ones((3, 4)), bias=np.ones(7))
    assert formulas(summary(odd)) == []
    assert summary(lstm.LSTMParams(None, None, None)).split()[-1] == "0"
    assert summary(bidirectional.BidirectionalParams(None, None)).split()[-1] == "0"
    assert summary(stack.StackParams(())).split()[-1] == "0"


@pytest.mark.parametrize(
    ("count", "told"),
    [(72, "288 bytes"), (256, "1.0 KiB"), (300 * 1024, "1.2 MiB"), (3 * 2**28, "3.0 GiB"), (0, "0 bytes")],
)
def test_memory(count, told):
    assert re.split("  +", summary(shape(count)).splitlines()[-1])[1] == told


def test_a_long_formula_goes_on_on_the_next_line():
    table = summary(jax.eval_shape(lambda: stack.init(KEY, 2, (500,) * 12)))
    assert max(map(len, table.splitlines())) <= 100


LSTM, PROJECTED = filled(lstm.init, 2, 3), filled(lstm.init, 2, 3, projection=2)
CALLS = {  # with the shape of the first thing returned
    "lstm": ((8, 10, 3), lstm.apply, LSTM, shape(8, 10, 2)),
    "lstm, no batch": ((10, 3), lstm.apply, LSTM, shape(10, 2)),
    "lstm, final": ((8, 2), partial(lstm.apply, return_sequences=False), PROJECTED, shape(8, 10, 2)),
    "step": ((8, 3), lstm.step, LSTM, shape(8, 2), lstm.LSTMState(shape(8, 3), shape(8, 3))),
    "bidirectional": ((8, 10, 6), bidirectional.apply, LAYERS["bidirectional"], shape(8, 10, 2)),
    "sum": ((8, 10, 3), partial(bidirectional.apply, merge="sum"), LAYERS["bidirectional"], shape(8, 10, 2)),
    "stack": ((4, 8, 10, 6), stack.apply, LAYERS["stack"], shape(4, 8, 10, 2)),
    "hierarchy": (
        (2, 3, 4),
        lambda params, tokens, words: hierarchy.apply(params, (tokens, words, None)),
        LAYERS["hierarchy"],
        shape(2, 3, 4, 5, dtype="int32"),
        shape(2, 3, 4, dtype="int32"),
    ),
    "code": (
        (2, 4),
        partial(hierarchy.apply, code="max", return_sequences=False),
        filled(hierarchy.init, 2, (3, 4)),
        shape(2, 3, 4, 2),
    ),
    "dense": ((8, 10, 4), dense.apply, LAYERS["dense"], shape(8, 10, 3)),
    "embedding": ((8, 10, 3), embedding.apply, LAYERS["embedding"], shape(8, 10, dtype="int32")),
    "conv1d": ((8, 5, 4), partial(conv1d.apply, stride=2), LAYERS["conv1d"], shape(8, 9, 3)),
    "residual": ((8, 9, 3), residual.apply, filled(residual.init, 2, (4, 3)), shape(8, 9, 2)),
    "crf": ((8,), crf.log_likelihood, LAYERS["crf"], shape(8, 9, 5), shape(8, 9, dtype="int32")),
    "partition": ((8,), crf.log_partition, LAYERS["crf"], shape(8, 9, 5)),
    "marginals": ((8, 9, 5), crf.marginals, LAYERS["crf"], shape(8, 9, 5)),
    "decode": ((8, 9), crf.decode, LAYERS["crf"], shape(8, 9, 5)),
    "k best paths": ((8, 3, 9), partial(crf.decode, k=3), LAYERS["crf"], shape(8, 9, 5)),
    "tied head": ((8, 10, 7), embedding.attend, LAYERS["embedding"], shape(8, 10, 3)),
    "conv1d of groups": ((8, 9, 6), partial(conv1d.apply, groups=2), LAYERS["conv1d of groups"], shape(8, 9, 4)),
}


@cache
def table_of(name):
    _, function, *arguments = CALLS[name]
    return summary(function, *arguments)


@pytest.mark.parametrize("name", CALLS)
def test_every_layer_that_is_called_is_listed_with_the_shape_of_its_output(name):
    expected, _, params, *_ = CALLS[name]
    table = table_of(name)
    (depth, _, output, count), *within = rows(table)
    assert depth == 0
    assert sizes(output) == expected
    assert count == size(params)
    assert all(row[0] > 0 for row in within)
    assert table.split()[-1] == f"{count:,}"
    for _, numbers, value in formulas(table):
        assert eval(numbers) == value


def test_calls_stand_within_the_layers_that_made_them():
    assert [row[:3] for row in rows(table_of("hierarchy"))] == [
        (0, "Hierarchy", "[batch 2, time 3, units 4]"),
        (1, "levels/0 (Hierarchy level)", "[batch 2 x 3 x 4, units 6]"),
        (2, "levels/0/embedding (Embedding)", "[batch 2 x 3 x 4 x 5, features 8]"),
        (2, "levels/0/encoder (LSTM)", "[batch 2 x 3 x 4, units 6]"),
        (1, "levels/1 (Hierarchy level)", "[batch 2 x 3, units 5]"),
        (2, "levels/1/embedding (Embedding)", "[batch 2 x 3 x 4, features 4]"),
        (2, "levels/1/encoder (Stack)", "[batch 2 x 3, units 5]"),
        (3, "levels/1/encoder/layers/0 (LSTM)", "[batch 2 x 3, time 4, units 5]"),
        (3, "levels/1/encoder/layers/1 (LSTM)", "[batch 2 x 3, units 5]"),
        (1, "levels/2 (Hierarchy level)", "[batch 2, time 3, units 4]"),
        (2, "levels/2/encoder (LSTM)", "[batch 2, time 3, units 4]"),
    ]
    assert [row[:3] for row in rows(table_of("code"))] == [
        (0, "Hierarchy", "[batch 2, units 4]"),
        (1, "levels/0 (Hierarchy level)", "[batch 2 x 3, units 3]"),
        (2, "levels/0/encoder (LSTM)", "[batch 2 x 3, time 4, units 3]"),
        (1, "levels/1 (Hierarchy level)", "[batch 2, units 4]"),
        (2, "levels/1/encoder (LSTM)", "[batch 2, time 3, units 4]"),
    ]
    assert [row[1] for row in rows(table_of("residual"))] == [
        "Residual blocks",
        *("0 (Residual)", "0/first (Conv1D)", "0/second (Conv1D)", "0/shortcut (Conv1D)"),
        *("1 (Residual)", "1/first (Conv1D)", "1/second (Conv1D)", "1/shortcut (Conv1D)"),
    ]


PARAMS = {
    "below": filled(lstm.init, 2, 3),
    "above": filled(bidirectional.init, 3, 3),
    "head": filled(dense.init, 6, 1),
}


def model(params, xs):
    ys, _ = lstm.apply(params["below"], xs)
    ys, _ = bidirectional.apply(params["above"], ys)
    return dense.apply(params["head"], ys)


WRAPPED = {
    "jit": jax.jit(model),
    "jit twice": jax.jit(jax.jit(model)),
    "jit within": lambda params, xs: 2 * jax.jit(model)(params, xs),
    "checkpoint": jax.checkpoint(model),
    "grad": lambda params, xs: jax.value_and_grad(lambda params: model(params, xs).sum())(params),
    "cast": lambda params, xs: model(jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params), xs.astype("bfloat16")),
    "partial": partial(model, xs=np.ones((8, 10, 2), np.float32)),
}


@cache
def of_the_model():
    return summary(model, PARAMS, shape(8, 10, 2))


@pytest.mark.parametrize("name", WRAPPED)
def test_transformations_hide_nothing(name):
    """Nor does it matter that JAX has traced the function before."""
    arguments = (PARAMS,) if name == "partial" else (PARAMS, shape(8, 10, 2))
    expected = of_the_model()
    assert [row[1] for row in rows(expected)] == [
        "below (LSTM)",
        "above (Bidirectional)",
        "above/forward (LSTM)",
        "above/backward (LSTM)",
        "head (Dense)",
    ]
    if name.startswith(("jit", "checkpoint")):
        jax.eval_shape(WRAPPED[name], *arguments)
    assert summary(WRAPPED[name], *arguments) == expected
    if name.startswith("jit"):
        assert summary(WRAPPED[name], *arguments) == expected


def test_layers_see_no_axis_that_is_mapped():
    mapped = jax.vmap(model, in_axes=(None, 0))
    assert rows(summary(mapped, PARAMS, shape(8, 10, 2))) == rows(summary(model, PARAMS, shape(10, 2)))
    folded = time_distributed(lambda xs: lstm.apply(LSTM, xs)[0])
    assert rows(summary(folded, shape(4, 2, 10, 2)))[0][2] == "[batch 8, time 10, units 3]"


def test_layers_alike_in_a_compiled_function_have_no_path_but_a_row_each():
    params = [filled(lstm.init, 3, 3)] * 2

    @jax.jit
    def inner(params, xs):
        return lstm.apply(params[1], lstm.apply(params[0], xs)[0])[0]

    found = rows(summary(lambda params, xs: inner(params, xs), params, shape(10, 3)))
    assert found == [(0, "LSTM", "[time 10, units 3]", 84)] * 2


def test_params_that_a_function_brings_along_count():
    params = filled(lstm.init, 2, 3)

    def loop(x):
        state = lstm.initial_state(params, (8,))
        for _ in range(5):
            y, state = lstm.step(params, x, state)
        return y

    assert rows(summary(loop, shape(8, 2))) == [(0, "LSTM step, 5 times", "[batch 8, units 3]", 72)]
    assert summary(loop, shape(8, 2)).splitlines()[-1].split() == ["total", "288", "bytes", "72"]


def test_params_that_a_function_brings_along_are_not_taken_for_its_arguments():
    teacher, other = filled(lstm.init, 2, 3), filled(lstm.init, 2, 3)

    def distance(student, xs):
        ys, targets = lstm.apply(student["lstm"], xs)[0], lstm.apply(teacher, xs)[0]
        return ys - targets + lstm.apply(other, xs)[0]

    table = summary(distance, {"lstm": filled(lstm.init, 2, 3)}, shape(10, 2))
    assert [row[1] for row in rows(table)] == ["lstm (LSTM)", "LSTM", "LSTM"]
    assert table.split()[-1] == "216"


def test_layers_that_nothing_depends_on_are_unused():
    def forgetful(params, xs):
        bidirectional.apply(params["above"], xs)
        ys, _ = lstm.apply(params["below"], xs)
        return ys

    params = PARAMS | {"above": filled(bidirectional.init, 2, 3), "layers": filled(stack.init, 2, (3, 3))}
    table = summary(forgetful, params, shape(10, 2))
    assert re.findall(r"^unused: (\S+) \((\w+)\) +([\d,]+)$", table, re.MULTILINE) == [
        ("above", "Bidirectional", "144"),
        ("head", "Dense", "7"),
        ("layers", "Stack", "156"),
    ]
    assert rows(table)[0][1] == "above (Bidirectional)"

    def lower(params, xs):
        return lstm.apply(params.layers[0], xs)[0]

    assert "unused: layers/1 (LSTM)" in summary(lower, filled(stack.init, 2, (3, 3)), shape(10, 2))


def test_paths_begin_with_names_of_arguments_where_several_have_layers():
    def both(encoder, decoder, *rest):
        ys, _ = lstm.apply(encoder, rest[0])
        return dense.apply(rest[1], lstm.apply(decoder["lstm"], ys)[0])

    table = summary(
        both, filled(lstm.init, 2, 3), {"lstm": filled(lstm.init, 3, 4)}, shape(10, 2), filled(dense.init, 4, 1)
    )
    assert [row[1] for row in rows(table)] == ["encoder (LSTM)", "decoder/lstm (LSTM)", "rest[1] (Dense)"]


def test_nothing_is_computed():
    def computes(params, xs):
        return jax.pure_callback(pytest.fail, shape(10, 3), lstm.apply(params, xs)[0])

    assert len(rows(summary(computes, filled(lstm.init, 2, 3), np.ones((10, 2), "f")))) == 1


def test_the_hook_is_taken_away():
    def watch(frame, event, argument):
        pass

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        summary(dense.apply, PARAMS["head"], shape(10, 6))
        assert sys.getprofile() is watch
        with pytest.raises(ValueError, match="xs must have 6 features"):
            summary(dense.apply, PARAMS["head"], shape(10, 5))
        assert sys.getprofile() is watch
    finally:
        sys.setprofile(before)


def test_under_a_profiler_it_works_or_says_why_not():
    with cProfile.Profile():
        if sys.version_info >= (3, 12):
            assert len(rows(summary(dense.apply, PARAMS["head"], shape(11, 6)))) == 1
        else:
            with pytest.raises(RuntimeError, match=r"sys\.setprofile, which a profiler holds: run it outside"):
                summary(dense.apply, PARAMS["head"], shape(11, 6))


def test_refusals(untyped):
    with pytest.raises(TypeError, match="params must be a tree of arrays; name is a str"):
        summary({"name": "lstm"})
    with pytest.raises(TypeError, match="params must be a tree of arrays; the tree is a int"):
        summary(3)
    with pytest.raises(TypeError, match="summary takes arguments for a function alone; got a dict before them"):
        summary(PARAMS, jnp.ones(3))
    with pytest.raises(TypeError, match="missing a required argument: 'xs'"):
        summary(model, PARAMS)


def head(params, xs):
    return dense.apply(params["head"], xs)


AGAIN = {
    "function": lambda: head,
    "jit": lambda: jax.jit(head),
    "partial": lambda: partial(head, {"head": PARAMS["head"]}),
    "jit within": lambda: WITHIN,
}
INNER = jax.jit(head)


def WITHIN(params, xs):
    return INNER(params, xs)


@pytest.mark.parametrize("name", AGAIN)
def test_a_second_summary_traces_nothing_and_keeps_nothing(name):
    arguments = (shape(7, 6),) if name == "partial" else ({"head": PARAMS["head"]}, shape(7, 6))
    expected = summary(AGAIN[name](), *arguments)
    gc.collect()
    before = len(gc.get_objects())
    with jax.no_tracing():
        for _ in range(20):
            assert summary(AGAIN[name](), *arguments) == expected
    gc.collect()
    assert len(gc.get_objects()) < before + 20


def test_a_summary_keeps_neither_the_function_nor_its_arguments():
    params = jax.tree.map(jnp.zeros_like, filled(lstm.init, 2, 3))
    leaf = weakref.ref(params.w_x)
    summary(lambda xs: lstm.apply(params, xs)[0], shape(5, 2))
    summary(partial(lstm.apply, params), shape(5, 2))
    del params
    gc.collect()
    assert leaf() is None


def test_what_decides_a_table_is_not_mistaken():
    """Shapes, options, and whether two params are the same."""

    def model(first, second, xs, merge="concat"):
        ys, _ = bidirectional.apply(first, xs, merge=merge)
        return ys + bidirectional.apply(second, xs, merge=merge)[0]

    one, other = filled(bidirectional.init, 2, 3), filled(bidirectional.init, 2, 3)
    tables = [
        summary(partial(model, one, other), shape(5, 2)),
        summary(partial(model, one, one), shape(5, 2)),
        summary(partial(model, one, other), shape(6, 2)),
        summary(partial(model, one, other, merge="sum"), shape(5, 2)),
    ]
    assert len(set(tables)) == len(tables)
