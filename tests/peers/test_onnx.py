"""LSTM nodes of ONNX: its own backend tests, ONNX Runtime with the same weights, and the way there and back."""

import doctest
import importlib
import io
import itertools
import tracemalloc
import warnings
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstmjax import BidirectionalParams, LSTMOptions, LSTMParams, LSTMState, StackParams, bidirectional, lstm, stack
from lstmjax.bidirectional import BidirectionalState
from lstmjax.interop import to_torch
from lstmjax.interop.onnx import ACTIVATIONS, from_onnx, to_onnx

REASON = "is not installed: python -m pip install -e '.[peers]'"
onnx = pytest.importorskip("onnx", reason=f"onnx {REASON}")
runtime = pytest.importorskip("onnxruntime", reason=f"onnxruntime {REASON}")
backend = importlib.import_module("onnx.backend.test.case.node.lstm")

BATCH, TIME, INPUTS, UNITS = 3, 5, 2, 4
LENGTHS = np.array([2, 5, 1], np.int32)
NAMES = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
WEIGHTS = ("W", "R", "B", "P")


def published():
    """What ONNX's backend tests hold for LSTM, by name: the node, its inputs and the outputs that it must have."""
    found = {}

    def record(node, inputs, outputs, name):
        found[name] = node, inputs, outputs

    with mock.patch.object(backend, "expect", record):
        for name, export in vars(backend.LSTM).items():
            if name.startswith("export"):
                export.__func__()
    return found


PUBLISHED = published()


def made(direction="forward", *, given=WEIGHTS, layout=0, scale=0.5, seed=0, dtype=np.float32, **attributes):
    """A node with random inputs, and those by name, in ONNX's axes."""
    rng, count = np.random.default_rng(seed), 2 if direction == "bidirectional" else 1

    def draw(*shape):
        return rng.normal(scale=scale, size=shape).astype(dtype)

    inputs = {
        "X": draw(TIME, BATCH, INPUTS),
        "W": draw(count, 4 * UNITS, INPUTS),
        "R": draw(count, 4 * UNITS, UNITS),
        "B": draw(count, 8 * UNITS),
        "sequence_lens": LENGTHS,
        "initial_h": draw(count, BATCH, UNITS),
        "initial_c": draw(count, BATCH, UNITS),
        "P": draw(count, 3 * UNITS),
    }
    for name in ("X", "initial_h", "initial_c"):
        inputs[name] = np.swapaxes(inputs[name], 0, 1) if layout else inputs[name]
    inputs = {name: array for name, array in inputs.items() if name in {"X", "W", "R", *given}}
    node = onnx.helper.make_node(
        "LSTM",
        [name if name in inputs else "" for name in NAMES],
        ["Y", "Y_h", "Y_c"],
        name="encoder",
        hidden_size=UNITS,
        direction=direction,
        **({"layout": layout} if layout else {}),
        **attributes,
    )
    return node, inputs


def ours(node, inputs):
    """Y, Y_h and Y_c of `from_onnx` and `apply`, in ONNX's axes."""
    attributes = {given.name: onnx.helper.get_attribute_value(given) for given in node.attribute}
    reverse, layout = attributes.get("direction") == b"reverse", attributes.get("layout", 0)
    weights = {name: array for name, array in inputs.items() if name in WEIGHTS}
    params, options = from_onnx(node, initializers=weights, reverse=reverse)
    two = isinstance(params, BidirectionalParams)

    def first(name, axis):  # time or directions first
        return np.swapaxes(inputs[name], 0, axis) if layout else inputs[name]

    state = None
    if "initial_h" in inputs:
        states = [LSTMState(h=h, c=c) for h, c in zip(first("initial_h", 1), first("initial_c", 1), strict=True)]
        state = BidirectionalState(*states) if two else states[0]
    arguments = {"lengths": inputs.get("sequence_lens"), "options": options}
    if two:
        ys, after = bidirectional.apply(params, np.swapaxes(first("X", 1), 0, 1), state, merge=None, **arguments)
    else:
        ys, after = lstm.apply(params, np.swapaxes(first("X", 1), 0, 1), state, reverse=reverse, **arguments)
        ys, after = (ys,), (after,)
    y = np.stack(ys)  # [directions, batch, time, units]
    h, c = (np.stack([getattr(half, part) for half in after]) for part in "hc")
    if layout:
        return {"Y": np.moveaxis(y, 0, 2), "Y_h": np.swapaxes(h, 0, 1), "Y_c": np.swapaxes(c, 0, 1)}
    return {"Y": np.moveaxis(y, 2, 0), "Y_h": h, "Y_c": c}


def session(model):
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # its threads and XLA's would fight over the cores
    onnx.checker.check_model(model, full_check=True)
    return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def model_of(nodes, inputs, outputs, weights, opset=14):
    """A model of nodes, with `inputs` and `outputs` as {name: rank} of float32, but lengths of int32."""

    def value(name, rank):
        kind = onnx.TensorProto.INT32 if name == "sequence_lens" else onnx.TensorProto.FLOAT
        return onnx.helper.make_tensor_value_info(name, kind, [f"{name}_{axis}" for axis in range(rank)])

    graph = onnx.helper.make_graph(
        nodes,
        "graph",
        [value(*given) for given in inputs.items()],
        [value(*given) for given in outputs.items()],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=onnx.helper.find_min_ir_version_for(opsets))


def theirs(node, inputs):
    """Y, Y_h and Y_c of ONNX Runtime."""
    given = {name: array for name, array in inputs.items() if name not in WEIGHTS}
    weights = {name: array for name, array in inputs.items() if name in WEIGHTS}
    model = model_of([node], {name: a.ndim for name, a in given.items()}, {"Y": 4, "Y_h": 3, "Y_c": 3}, weights)
    return dict(zip(("Y", "Y_h", "Y_c"), session(model).run(None, given), strict=True))


def same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a), np.asarray(e)
        assert (a.dtype, a.shape, a.tobytes()) == (e.dtype, e.shape, e.tobytes())


def filled(tree, seed=0):
    """The same tree with random numbers in every leaf, zeros being what mistakes look like."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(scale=0.5, size=leaf.shape), leaf.dtype), tree)


def two_biases(params):
    with_second = lambda half: half if half.bias is None else LSTMParams(**vars(half) | {"bias_h": half.bias})  # noqa: E731
    return jax.tree.map(with_second, params, is_leaf=lambda part: isinstance(part, LSTMParams))


def test_every_backend_test_is_found():
    assert set(PUBLISHED) >= {
        "test_lstm_defaults",
        "test_lstm_with_initial_bias",
        "test_lstm_with_peepholes",
        "test_lstm_batchwise",
        "test_lstm_reverse",
        "test_lstm_bidirectional",
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_backend(name):
    node, inputs, outputs = PUBLISHED[name]
    actual = ours(node, dict(zip(filter(None, node.input), inputs, strict=True)))
    names = list(filter(None, node.output))
    assert names
    for output, expected in zip(names, outputs, strict=True):
        np.testing.assert_allclose(actual[output], expected, rtol=0, atol=1e-6)


EVERYTHING = {"given": NAMES}
NODES = {
    "weights alone": {"given": ()},
    "biases": {"given": ("B",)},
    "everything": EVERYTHING,
    "clip": {**EVERYTHING, "clip": 0.3},
    "input_forget": {**EVERYTHING, "input_forget": 1},
    "clip, input_forget": {**EVERYTHING, "clip": 0.3, "input_forget": 1},
}


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("made_with", NODES.values(), ids=NODES)
def test_node_against_onnx_runtime(made_with, direction):
    node, inputs = made(direction, **made_with)
    actual, expected = ours(node, inputs), theirs(node, inputs)
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=0, atol=1e-6, err_msg=name)


# Of f, g and h, with alpha and beta for those that have them.
NAMED = {
    "HardSigmoid of Keras 2": (["HardSigmoid", "Tanh", "Tanh"], [0.2], [0.5]),
    "HardSigmoid of Keras 3": (["HardSigmoid", "Tanh", "Tanh"], [1 / 6], [0.5]),
    "HardSigmoid by default": (["HardSigmoid", "Tanh", "Tanh"], [], []),
    "another for c": (["Sigmoid", "Softsign", "Relu"], [], []),
    "alpha in the order of those that have it": (["HardSigmoid", "Tanh", "HardSigmoid"], [1 / 6, 0.2], [0.5, 0.5]),
    "alpha for the second": (["Sigmoid", "Elu", "Affine"], [1.0, 1.0], [0.0]),
    "Softplus, in small letters": (["sigmoid", "softplus", "tanh"], [], []),
}


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize(("names", "alpha", "beta"), NAMED.values(), ids=NAMED)
def test_activations_against_onnx_runtime(names, alpha, beta, direction):
    count = 2 if direction == "bidirectional" else 1
    scales = {"activation_alpha": alpha * count, "activation_beta": beta * count}
    scales = {name: values for name, values in scales.items() if values}
    node, inputs = made(direction, given=("B",), scale=0.8, activations=names * count, **scales)
    actual, expected = ours(node, inputs), theirs(node, inputs)
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-6, atol=1e-6, err_msg=name)


def test_layout_changes_axes_alone():
    node, inputs = made("bidirectional", given=NAMES)
    turned_node, turned = made("bidirectional", given=NAMES, layout=1)
    expected = theirs(node, inputs)  # ONNX Runtime has no layout=1 on CPU
    actual = ours(turned_node, turned)
    np.testing.assert_allclose(actual["Y"], np.transpose(expected["Y"], (2, 0, 1, 3)), rtol=0, atol=1e-6)
    for name in ("Y_h", "Y_c"):
        np.testing.assert_allclose(actual[name], np.swapaxes(expected[name], 0, 1), rtol=0, atol=1e-6)


def states_of(outputs, number, two):
    """The state of one layer from final_h and final_c [directions, batch, units]."""
    h, c = outputs[1 + 2 * number], outputs[2 + 2 * number]
    halves = [LSTMState(h=h[d], c=c[d]) for d in range(len(h))]
    return BidirectionalState(*halves) if two else halves[0]


@pytest.mark.parametrize("two", [False, True], ids=["one way", "two ways"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_model_against_onnx_runtime(count, two):
    params = filled(stack.init(jax.random.key(0), INPUTS, (4, 5, 2)[:count], bidirectional=two))
    params = params if count > 1 else params.layers[0]
    rng = np.random.default_rng(1)
    plain, full = session(to_onnx(params)), session(to_onnx(params, lengths=True, state=True))
    for batch, time in ((3, 5), (1, 2)):
        xs = rng.normal(size=(batch, time, INPUTS)).astype(np.float32)
        expected = stack.apply(params, xs)
        outputs = plain.run(None, {"xs": xs})
        states = tuple(states_of(outputs, number, two) for number in range(count))
        assert_close((outputs[0], states if count > 1 else states[0]), expected)

        state = filled(stack.initial_state(params, (batch,)))
        lengths = rng.integers(1, time + 1, batch).astype(np.int32)
        given = {"xs": xs, "lengths": lengths}
        for number, layer in enumerate(state if count > 1 else (state,)):
            for part in "hc":
                halves = layer if two else (layer,)
                given[f"initial_{part}_{number}"] = np.stack([getattr(half, part) for half in halves])
        outputs = full.run(None, given)
        states = tuple(states_of(outputs, number, two) for number in range(count))
        expected = stack.apply(params, xs, state, lengths=lengths)
        assert_close((outputs[0], states if count > 1 else states[0]), expected)


def assert_close(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-6)


VARIANTS = {
    "reverse": ({}, LSTMOptions(), True),
    "peepholes": ({"peepholes": True}, LSTMOptions(), False),
    "coupled": ({"coupled": True, "peepholes": True}, LSTMOptions(), False),
    "learned state": ({"learned_state": True}, LSTMOptions(), False),
    "no bias, clip": ({"bias": False}, LSTMOptions(preactivation_clip=0.1), False),
}


@pytest.mark.parametrize(("init", "options", "reverse"), VARIANTS.values(), ids=VARIANTS)
def test_variants_against_onnx_runtime(init, options, reverse):
    params = filled(lstm.init(jax.random.key(0), INPUTS, UNITS, **init))
    xs = np.random.default_rng(1).normal(size=(BATCH, TIME, INPUTS)).astype(np.float32)
    outputs = session(to_onnx(params, options, reverse=reverse)).run(None, {"xs": xs})
    expected = lstm.apply(params, xs, options=options, reverse=reverse)
    assert_close((outputs[0], states_of(outputs, 0, False)), expected)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_activation_against_onnx_runtime(name):
    params = filled(lstm.init(jax.random.key(0), INPUTS, UNITS))
    bounded = name in ("tanh", "sigmoid", "softsign", "hard_sigmoid", "keras2_hard_sigmoid")
    options = LSTMOptions(activation=name, recurrent_activation=name if bounded else "sigmoid")
    xs = np.random.default_rng(1).normal(size=(BATCH, TIME, INPUTS)).astype(np.float32)
    model = to_onnx(params, options)
    expected = lstm.apply(params, xs, options=options)[0]
    np.testing.assert_allclose(session(model).run(None, {"xs": xs})[0], expected, rtol=1e-6, atol=1e-6)
    assert from_onnx(model)[1] == options


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_each_dtype_runs(dtype, x64):
    """ONNX's reference runs them all; ONNX Runtime has no LSTM of float64 and bfloat16 on CPU."""
    params = stack.init(jax.random.key(0), INPUTS, (4, 3), bidirectional=True, peepholes=True, learned_state=True)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), filled(params))
    model, xs = to_onnx(params), filled(jnp.zeros((BATCH, TIME, INPUTS), dtype), seed=1)
    expected = stack.apply(params, xs)
    runs = [importlib.import_module("onnx.reference").ReferenceEvaluator(model)]
    runs += [session(model)] if dtype in ("float16", "float32") else []
    for run in runs:
        outputs = run.run(None, {"xs": np.asarray(xs)})
        assert {output.dtype for output in outputs} == {xs.dtype}
        for actual, wanted in zip(
            jax.tree.leaves((outputs[0], tuple(states_of(outputs, number, True) for number in range(2)))),
            jax.tree.leaves(expected),
            strict=True,
        ):
            tolerance = 8 * float(jnp.finfo(dtype).eps)
            np.testing.assert_allclose(np.float64(actual), np.float64(wanted), rtol=0, atol=tolerance)


def test_a_stack_in_reverse_with_lengths():
    params = two_biases(filled(stack.init(jax.random.key(0), INPUTS, (4, 3), learned_state=True)))
    model = to_onnx(params, reverse=True, lengths=True)
    same_bits(from_onnx(model, reverse=True)[0], params)
    xs = np.random.default_rng(1).normal(size=(BATCH, TIME, INPUTS)).astype(np.float32)
    outputs = session(model).run(None, {"xs": xs, "lengths": LENGTHS})
    states = tuple(states_of(outputs, number, False) for number in range(2))
    assert_close((outputs[0], states), stack.apply(params, xs, lengths=LENGTHS, reverse=True))


def test_no_steps():
    params = filled(stack.init(jax.random.key(0), INPUTS, (4, 3), bidirectional=True))
    outputs = session(to_onnx(params)).run(None, {"xs": np.ones((BATCH, 0, INPUTS), np.float32)})
    assert [output.shape for output in outputs] == [(BATCH, 0, 6), *[(2, BATCH, 4)] * 2, *[(2, BATCH, 3)] * 2]


def test_weights_in_a_file_beside(tmp_path):
    params = two_biases(filled(lstm.init(jax.random.key(0), INPUTS, UNITS)))
    path = tmp_path / "model.onnx"
    onnx.save(to_onnx(params), path, save_as_external_data=True, location="weights", size_threshold=0)
    same_bits(from_onnx(path)[0], params)
    with pytest.raises(ValueError, match=r"W_0 .* in another file"):
        from_onnx(onnx.load(path, load_external_data=False))
    (tmp_path / "weights").unlink()
    with pytest.raises(ValueError, match=r"path of an ONNX model, whole; .*model\.onnx cannot be read: .*weights"):
        from_onnx(path)


def test_an_offset_is_in_the_bias():
    params = filled(lstm.init(jax.random.key(0), INPUTS, UNITS))
    params = LSTMParams(**vars(params) | {"offset": jnp.ones(4 * UNITS)})
    xs = np.random.default_rng(1).normal(size=(BATCH, TIME, INPUTS)).astype(np.float32)
    np.testing.assert_allclose(
        session(to_onnx(params)).run(None, {"xs": xs})[0], lstm.apply(params, xs)[0], rtol=0, atol=1e-6
    )


TREES = {
    "lstm": lambda **options: lstm.init(jax.random.key(0), INPUTS, UNITS, **options),
    "bidirectional": lambda **options: bidirectional.init(jax.random.key(0), INPUTS, UNITS, **options),
    "stack": lambda **options: stack.init(jax.random.key(0), INPUTS, (4, 5, 2), **options),
    "stack of both": lambda **options: StackParams(
        (bidirectional.init(jax.random.key(0), INPUTS, 3, **options), lstm.init(jax.random.key(1), 6, 4, **options))
    ),
}
PARTS = {
    "plain": {},
    "peepholes, learned state": {"peepholes": True, "learned_state": True},
    "coupled, peepholes": {"coupled": True, "peepholes": True},
    "no bias": {"bias": False},
    "bfloat16": {"dtype": jnp.bfloat16, "learned_state": True},
    "float16": {"dtype": jnp.float16},
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("make", TREES.values(), ids=TREES)
def test_there_and_back(make, parts, tmp_path):
    params = two_biases(filled(make(**parts)))
    options = LSTMOptions(preactivation_clip=0.1, recurrent_activation="hard_sigmoid", output_activation="relu")
    model = to_onnx(params, options)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "model.onnx")
    for source in (model, tmp_path / "model.onnx", str(tmp_path / "model.onnx")):
        back, options_back = from_onnx(source)
        same_bits(back, params)
        assert options_back == options


def test_there_and_back_in_float64(x64):
    params = two_biases(filled(bidirectional.init(jax.random.key(0), INPUTS, UNITS, dtype=jnp.float64)))
    same_bits(from_onnx(to_onnx(params))[0], params)


def test_one_bias_comes_back_with_zeros_beside():
    params = filled(lstm.init(jax.random.key(0), INPUTS, UNITS))
    back, _ = from_onnx(to_onnx(params))
    same_bits(back, LSTMParams(**vars(params) | {"bias_h": jnp.zeros(4 * UNITS)}))


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_foreign_weights_leave_as_they_came(direction):
    node, inputs = made(direction, clip=3.0)
    reverse = direction == "reverse"
    params, options = from_onnx(node, initializers=inputs, reverse=reverse)
    weights = {
        t.name: onnx.numpy_helper.to_array(t) for t in to_onnx(params, options, reverse=reverse).graph.initializer
    }
    for name in WEIGHTS:
        assert weights[f"{name}_0"].tobytes() == inputs[name].tobytes()


def test_what_is_of_the_forget_gate_is_left_behind():
    node, inputs = made(input_forget=1)
    params, options = from_onnx(node, initializers=inputs)
    assert params.gates == 3
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in to_onnx(params, options).graph.initializer}
    for name, axis, count in (("W", 1, 4), ("R", 1, 4), ("P", 1, 3)):
        expected = np.array(np.split(inputs[name], count, axis))
        expected[2] = 0  # i, o, f
        np.testing.assert_array_equal(np.split(weights[f"{name}_0"], count, axis), expected)


@pytest.mark.parametrize("two", [False, True], ids=["one way", "two ways"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_what_pytorch_exports(two, batch_first):
    torch = pytest.importorskip("torch", reason=f"torch {REASON}")
    torch.manual_seed(0)

    class Tagger(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(7, INPUTS)
            self.lstm = torch.nn.LSTM(INPUTS, UNITS, num_layers=2, bidirectional=two, batch_first=batch_first)
            self.dense = torch.nn.Linear((1 + two) * UNITS, 3)

        def forward(self, tokens):
            return self.dense(self.lstm(self.embedding(tokens))[0])

    model, file = Tagger().eval(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its older exporter, the one without further dependencies
        torch.onnx.export(model, (torch.zeros(2, 3, dtype=torch.int64),), file, dynamo=False, opset_version=17)
    params, options = from_onnx(onnx.load_from_string(file.getvalue()))
    assert options == LSTMOptions()
    xs = torch.randn(BATCH, TIME, INPUTS, requires_grad=True)
    expected = model.lstm(xs if batch_first else xs.transpose(0, 1))[0]
    expected = expected if batch_first else expected.transpose(0, 1)
    (expected**2).sum().backward()

    def loss(params, xs):
        ys, _ = stack.apply(params, xs)
        return (ys**2).sum(), ys

    slopes, ys = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, xs.detach().numpy())
    np.testing.assert_allclose(ys, expected.detach(), rtol=0, atol=1e-6)
    assert_close(slopes[1], xs.grad.numpy())
    weights = {name: weight.grad for name, weight in model.lstm.named_parameters()}
    assert_close(to_torch(slopes[0]), weights)


CELLS = {
    "learned": lambda torch, c, batch: c.expand(-1, batch, -1).contiguous(),
    "0": lambda torch, c, batch: torch.zeros(4, batch, UNITS),
    "1": lambda torch, c, batch: torch.ones(4, batch, UNITS),
}


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_states_that_pytorch_exports(cell):
    """Those of both layers in one, expanded to the batch and cut; and made anew for each batch."""
    torch = pytest.importorskip("torch", reason=f"torch {REASON}")
    torch.manual_seed(0)

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = torch.nn.LSTM(INPUTS, UNITS, num_layers=2, bidirectional=True, batch_first=True)
            self.h, self.c = (torch.nn.Parameter(torch.randn(4, 1, UNITS)) for _ in "hc")

        def forward(self, xs):
            h = self.h.expand(-1, xs.size(0), -1).contiguous()
            return self.lstm(xs, (h, cell(torch, self.c, xs.size(0))))[0]

    model, file, xs = Encoder().eval(), io.BytesIO(), torch.randn(BATCH, TIME, INPUTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"xs": {0: "batch", 1: "time"}}
        torch.onnx.export(model, (xs,), file, dynamo=False, opset_version=17, input_names=["xs"], dynamic_axes=axes)
    params, _ = from_onnx(onnx.load_from_string(file.getvalue()))
    np.testing.assert_allclose(stack.apply(params, xs.numpy())[0], model(xs).detach(), rtol=0, atol=1e-6)


def chained(*between, layout=0, direction="forward", below="Y", weights=None):
    """Two LSTMs with these nodes between them, from `y` to `x`; and what they weigh."""
    count = 2 if direction == "bidirectional" else 1
    first, inputs = made(direction, layout=layout)
    second, _ = made(direction, layout=layout, seed=1)
    draw = np.random.default_rng(1).normal
    inputs |= {"W_1": draw(size=(count, 4 * UNITS, count * UNITS)).astype(np.float32), **(weights or {})}
    first.output[:] = [{"Y": "y", "Y_h": "y_h", "Y_c": "y_c"}[name] for name in ("Y", "Y_h", "Y_c")]
    first.input[0], second.input[0], second.input[1] = "xs", "x", "W_1"
    second.name = "decoder"
    given = {name: array for name, array in inputs.items() if name != "X"}
    return model_of([first, *between, second], {"xs": 3}, {"Y": 4}, given), given


def operator(kind, inputs, output, **attributes):
    return onnx.helper.make_node(kind, inputs, [output], **attributes)


AXES = {"axes": np.array([1]), "last": np.array([0, 0, -1]), "middle": np.array([0, -1, UNITS])}
AXES |= {"flat": np.array([-1, UNITS]), "turned": np.array([BATCH, TIME, UNITS])}
STACKS = {
    "squeeze": ("forward", 0, [operator("Squeeze", ["y", "axes"], "x")]),
    "reshape": ("forward", 0, [operator("Reshape", ["y", "middle"], "x")]),
    "identity, dropout": (
        "forward",
        0,
        [
            operator("Identity", ["y"], "i"),
            operator("Squeeze", ["i", "axes"], "s"),
            operator("Dropout", ["s"], "x"),
        ],
    ),
    "two ways": (
        "bidirectional",
        0,
        [operator("Transpose", ["y"], "t", perm=[0, 2, 1, 3]), operator("Reshape", ["t", "last"], "x")],
    ),
    "batch first": ("bidirectional", 1, [operator("Reshape", ["y", "last"], "x")]),
    "there and back": (
        "forward",
        0,
        [operator("Transpose", ["y"], "t"), operator("Transpose", ["t"], "u"), operator("Squeeze", ["u", "axes"], "x")],
    ),
}


@pytest.mark.parametrize(("direction", "layout", "between"), STACKS.values(), ids=STACKS)
def test_stacks(direction, layout, between):
    model, given = chained(*between, layout=layout, direction=direction, weights=AXES)
    params, _ = from_onnx(model)
    node, _ = made(direction)
    single = {name: given[name] for name in WEIGHTS}
    first = from_onnx(node, initializers=single)[0]
    second = from_onnx(node, initializers=single | {"W": given["W_1"]})[0]
    same_bits(params, StackParams((first, second)))


NO_STACKS = {
    "no directions merged": ("bidirectional", 0, [operator("Identity", ["y"], "x")]),
    "directions not beside each other": ("bidirectional", 0, [operator("Reshape", ["y", "last"], "x")]),
    "batch for time": (
        "forward",
        0,
        [operator("Squeeze", ["y", "axes"], "s"), operator("Transpose", ["s"], "x", perm=[1, 0, 2])],
    ),
    "another layout": ("forward", 1, [operator("Squeeze", ["y", "axes"], "x")]),
    "arithmetic between": (
        "forward",
        0,
        [operator("Squeeze", ["y", "axes"], "s"), operator("Relu", ["s"], "x")],
    ),
    "the final state": ("forward", 0, [operator("Squeeze", ["y_h", "axes"], "x")]),
    "the same inputs": ("forward", 0, [operator("Identity", ["xs"], "x")]),
    "batch beside units": ("forward", 0, [operator("Reshape", ["y", "last"], "x")]),
    "batch for time, by numbers": ("forward", 0, [operator("Reshape", ["y", "turned"], "x")]),
    "a shape that is computed": (
        "forward",
        0,
        [operator("Shape", ["xs"], "shape"), operator("Reshape", ["y", "shape"], "x")],
    ),
    "steps in one row": ("forward", 0, [operator("Reshape", ["y", "flat"], "x")]),
}


@pytest.mark.parametrize(("direction", "layout", "between"), NO_STACKS.values(), ids=NO_STACKS)
def test_no_stacks(direction, layout, between):
    with pytest.raises(ValueError, match=r"LSTM 'decoder' reads 'x', which is not the outputs of LSTM 'encoder'"):
        from_onnx(chained(*between, layout=layout, direction=direction, weights=AXES)[0])


def test_weights_that_the_graph_computes():
    node, inputs = made()
    halves = dict(zip(("low", "high"), np.split(inputs.pop("R"), 2, axis=1), strict=True))
    constant = onnx.helper.make_node("Constant", [], ["W"], value=onnx.numpy_helper.from_array(inputs.pop("W")))
    joined = operator("Concat", ["low", "high"], "R", axis=1)
    weights = {name: array for name, array in inputs.items() if name != "X"} | halves
    params, _ = from_onnx(model_of([constant, joined, node], {"X": 3}, {"Y": 4}, weights))
    same_bits(params, from_onnx(node, initializers=made()[1])[0])


@pytest.mark.parametrize("layout", [0, 1])
def test_an_initial_state_in_the_weights(layout):
    node, inputs = made("bidirectional", given=("B", "initial_h", "initial_c"), layout=layout)
    for name in ("initial_h", "initial_c"):
        one = inputs[name][:1] if layout else inputs[name][:, :1]
        inputs[name] = np.broadcast_to(one, inputs[name].shape).copy()
    initial = from_onnx(node, initializers=inputs)[0].backward.initial
    for part, name in (("h", "initial_h"), ("c", "initial_c")):
        np.testing.assert_array_equal(getattr(initial, part), inputs[name][0, 1] if layout else inputs[name][1, 0])
    zeros = {name: np.zeros_like(array) if "initial" in name else array for name, array in inputs.items()}
    assert from_onnx(node, initializers=zeros)[0].forward.initial is None


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_state_of_one_number(value):
    """As TensorFlow's models have it: one number, expanded to [batch, units], then with an axis for directions."""
    node, inputs = made(given=("B", "initial_h"))
    del inputs["initial_h"], inputs["X"]
    before = [
        operator("Shape", ["X"], "shape"),
        operator("Gather", ["shape", "second"], "batch"),
        operator("Concat", ["batch", "units"], "sizes", axis=0),
        operator("Expand", ["number", "sizes"], "flat"),
        operator("Unsqueeze", ["flat", "first"], "initial_h"),
    ]
    inputs |= {"second": np.array([1]), "units": np.array([UNITS]), "first": np.array([0]), "number": np.float32(value)}
    params, _ = from_onnx(model_of([*before, node], {"X": 3}, {"Y": 4}, inputs))
    expected = LSTMState(h=jnp.full(UNITS, value), c=jnp.zeros(UNITS)) if value else None
    same_bits(params.initial, expected)


def test_an_initial_state_of_which_half_is_left_out():
    node, inputs = made(given=("initial_c",), dtype=np.float16)
    inputs["initial_c"] = inputs["initial_c"][:, :1]
    initial = from_onnx(node, initializers=inputs)[0].initial
    same_bits(initial, LSTMState(h=jnp.zeros(UNITS, jnp.float16), c=jnp.asarray(inputs["initial_c"][0, 0])))


def without(name):
    node, inputs = made()
    return node, {key: array for key, array in inputs.items() if key != name}


def changed(name, change, **attributes):
    node, inputs = made(**attributes)
    return node, inputs | {name: change(inputs[name])}


REFUSED = {
    "LeakyRelu": (
        made(activations=["Sigmoid", "LeakyRelu", "Tanh"]),
        r"LSTM 'encoder' has activation LeakyRelu, where LSTMOptions has Tanh, .*HardSigmoid alpha 0\.2 beta 0\.5",
    ),
    "alpha": (
        made(activations=["HardSigmoid", "Tanh", "Tanh"], activation_alpha=[0.3]),
        r"activation HardSigmoid alpha 0\.3 beta 0\.5",
    ),
    "Affine, of which ONNX says no alpha": (
        made(activations=["Sigmoid", "Affine", "Tanh"]),
        "has activation Affine alpha nan beta 0, where LSTMOptions has .*Affine alpha 1 beta 0",
    ),
    "two of three": (made(activations=["Sigmoid", "Tanh"]), "must have 3 activations; got Sigmoid, Tanh"),
    "directions that differ": (
        made("bidirectional", activations=["Sigmoid", "Tanh", "Tanh", "Sigmoid", "Relu", "Tanh"]),
        "same activations in both directions; got sigmoid, tanh, tanh, sigmoid, relu, tanh",
    ),
    "unknown attribute": (made(go_backwards=1), "has go_backwards, which is no attribute of LSTM"),
    "unknown direction": (made("backward"), "has direction 'backward', and reverse is False"),
    "reverse": (made("reverse"), "has direction 'reverse', and reverse is False: reverse must be True for 'reverse'"),
    "no clip": (made(clip=0.0), "preactivation_clip must be above 0"),
    "no W": (without("W"), "must have its W, 'W', in the weights, among initializers"),
    "no B": (without("B"), "must have its B, 'B', in the weights"),
    "shape of R": (
        changed("R", lambda r: r[:, :, 1:]),
        r"R of LSTM 'encoder' must have shape \(1, 16, 4\), got \(1, 16, 3\)",
    ),
    "shape of P": (changed("P", lambda p: p[:, 1:]), r"P of LSTM 'encoder' must have shape \(1, 12\), got \(1, 11\)"),
    "directions of B": (changed("B", lambda b: np.repeat(b, 2, 0)), r"must have shape \(1, 32\), got \(2, 32\)"),
    "no four gates": (
        (made()[0], {"W": np.ones((1, 10, 2), "f"), "R": np.ones((1, 10, 2), "f")}),
        "hidden_size 4, but an R of 2 units",
    ),
    "lengths": (made(given=NAMES), "sequence_lens among the weights; params have no lengths"),
    "states that differ": (
        made(given=("initial_h", "initial_c")),
        "initial_h of LSTM 'encoder' is another one for each of 3 sequences",
    ),
    "half a state": (
        (made(given=NAMES)[0], {**made()[1], "initial_c": np.ones((1, 1, UNITS), "f")}),
        "has one of initial_h and initial_c among the weights and is given the other",
    ),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_nodes(given, message):
    node, weights = given
    with pytest.raises(ValueError, match=message):
        from_onnx(node, initializers=weights)


def test_refused_sources(tmp_path):
    node, inputs = made()
    with pytest.raises(TypeError, match="W of LSTM 'encoder' must have a floating dtype, got int32"):
        from_onnx(node, initializers=inputs | {"W": np.ones((1, 16, 2), np.int32)})
    with pytest.raises(TypeError, match="initializers must map names of the node's inputs to arrays; got NoneType"):
        from_onnx(node)
    with pytest.raises(ValueError, match="reverse is True"):
        from_onnx(made("bidirectional")[0], initializers=inputs, reverse=True)
    with pytest.raises(ValueError, match="source must be an LSTM; got a node of GRU"):
        from_onnx(operator("GRU", ["X", "W", "R"], "Y"), initializers=inputs)
    with pytest.raises(TypeError, match=r"source must be an onnx ModelProto, a path to one or .*; got dict"):
        from_onnx({"W": 1})
    model = to_onnx(lstm.init(jax.random.key(0), INPUTS, UNITS))
    with pytest.raises(ValueError, match="initializers are for a NodeProto"):
        from_onnx(model, initializers=inputs)
    with pytest.raises(ValueError, match="must have a node of LSTM; those that it has are Relu"):
        from_onnx(model_of([operator("Relu", ["xs"], "y")], {"xs": 3}, {"y": 3}, {}))
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"source must be the path of an ONNX model, whole; .* cannot be read"):
        from_onnx(tmp_path / "model.onnx")
    with pytest.raises(FileNotFoundError):
        from_onnx(tmp_path / "none.onnx")


def test_an_lstm_inside_of_another_node():
    node, inputs = made()
    weights = [onnx.numpy_helper.from_array(inputs[name], name) for name in WEIGHTS]
    y = onnx.helper.make_tensor_value_info("Y", onnx.TensorProto.FLOAT, None)
    branch = onnx.helper.make_graph([node], "branch", [], [y], weights)
    either = operator("If", ["condition"], "Y", then_branch=branch, else_branch=branch)
    with pytest.raises(ValueError, match="source has an LSTM inside of If"):
        from_onnx(model_of([either], {"condition": 0, "X": 3}, {"Y": 4}, {}))


def test_a_local_function():
    node, inputs = made()
    imports = [onnx.helper.make_opsetid("", 14)]
    function = onnx.helper.make_function("mine", "Encoder", list(node.input), ["Y"], [node], imports)
    call = onnx.helper.make_node("Encoder", list(node.input), ["Y"], domain="mine")
    model = model_of([call], {"X": 3}, {"Y": 4}, {name: inputs[name] for name in WEIGHTS})
    model.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    model.functions.append(function)
    same_bits(from_onnx(model)[0], from_onnx(node, initializers=inputs)[0])


def test_stacks_of_one_kind():
    squeeze = operator("Squeeze", ["y", "axes"], "x")
    model, _ = chained(squeeze, weights=AXES)
    model.graph.node[-1].attribute.append(onnx.helper.make_attribute("clip", 0.5))
    with pytest.raises(ValueError, match=r"LSTM 'decoder' has LSTMOptions\(.*preactivation_clip=0\.5.*give each node"):
        from_onnx(model)
    model, _ = chained(squeeze, weights={**AXES, "W_1": np.ones((1, 4 * UNITS, 7), np.float32)})
    with pytest.raises(ValueError, match="LSTM 'decoder' must have 4 inputs, the outputs of the one before; got 7"):
        from_onnx(model)


@pytest.mark.parametrize("given", ["xs_lengths", ""])
def test_lengths_of_one_layer_alone(given):
    model, _ = chained(operator("Squeeze", ["y", "axes"], "x"), weights=AXES)
    first, second = (node for node in model.graph.node if node.op_type == "LSTM")
    first.input[4], second.input[4] = given, "" if given else "x_lengths"
    with pytest.raises(ValueError, match=r"LSTM 'decoder' has (no )?sequence_lens, LSTM 'encoder' has (none|them)"):
        from_onnx(model)


# What a file of some bytes could ask for

SMALL = {"one": np.ones(1, np.float32), "W": np.ones((1, 16, INPUTS), np.float32), "zero": np.zeros(1, np.int64)}


def computed(nodes, weights=(), functions=()):
    """A model whose W the nodes make, or of which they are a part."""
    _, inputs = made()
    made_w = any("W" in node.output for node in nodes)
    stored = {name: inputs[name] for name in WEIGHTS if name != "W" or not made_w} | dict(weights)
    node = onnx.helper.make_node("LSTM", ["X", *WEIGHTS[:3], "", "", "", WEIGHTS[3]], ["Y"], name="encoder")
    model = model_of([*nodes, node], {"X": 3}, {"Y": 4}, stored)
    for function in functions:
        model.functions.append(function)
    if functions:
        model.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    return model


def chain(count, kind="Add", copies=2):
    names = ["start", *(f"w{n}" for n in range(1, count)), "W"]
    more = {"axis": 0} if kind == "Concat" else {}
    return [operator(kind, [a] * copies, b, **more) for a, b in itertools.pairwise(names)]


def test_a_chain_of_additions_runs_each_node_once(monkeypatch):
    runs = []
    run = onnx.reference.ReferenceEvaluator.run
    monkeypatch.setattr(onnx.reference.ReferenceEvaluator, "run", lambda *args: runs.append(1) or run(*args))
    start = np.ones((1, 4 * UNITS, INPUTS), np.float32)
    params, _ = from_onnx(computed(chain(40), {"start": start}))
    assert len(runs) == 40
    np.testing.assert_array_equal(params.w_x, np.full((INPUTS, 4 * UNITS), 2.0**40))


def functions_that_double(count, last):
    """Each of which calls the one before twice."""
    imports = [onnx.helper.make_opsetid("", 14), onnx.helper.make_opsetid("mine", 1)]

    def function(number):
        domain, inner = ("mine", f"f{number - 1}") if number else ("", "Identity")
        nodes = [onnx.helper.make_node(inner, [a], [b], domain=domain) for a, b in (("x", "middle"), ("middle", "y"))]
        return onnx.helper.make_function("mine", f"f{number}", ["x"], ["y"], nodes, imports)

    made = [function(number) for number in range(count)]
    if last:
        made[0].node[0].op_type, made[0].node[0].domain = f"f{count - 1}", "mine"
    return made


def called(count, last=False):
    call = onnx.helper.make_node(f"f{count - 1}", ["start"], ["W"], domain="mine")
    return computed([call], {"start": SMALL["W"]}, functions_that_double(count, last))


def nested(depth):
    """Branches within branches."""
    graph = onnx.helper.make_graph([operator("Identity", ["X"], "y")], "inner", [], [])
    for _ in range(depth):
        node = onnx.helper.make_node("If", ["condition"], ["y"], then_branch=graph)
        graph = onnx.helper.make_graph([node], "outer", [], [])
    return list(graph.node)


FAR = np.array([2**20, 2**20], np.int64)
HOSTILE = {
    "depth": (lambda: computed(chain(3_000), {"start": SMALL["W"]}), "computed by at most 1000 nodes after each other"),
    "nodes": (
        lambda: computed(
            [
                *(operator("Neg", ["one"], f"n{n}") for n in range(2_500)),
                operator("Concat", [f"n{n}" for n in range(2_500)], "W", axis=0),
            ],
            {"one": SMALL["one"]},
        ),
        "computed by at most 2000 nodes",
    ),
    "ConstantOfShape": (
        lambda: computed([operator("ConstantOfShape", ["far"], "W")], {"far": FAR}),
        r"at most \d+ bytes, for the \d+ that it stores; ConstantOfShape of 'W' would make them 4398046511104",
    ),
    "Expand": (
        lambda: computed([operator("Expand", ["one", "far"], "W")], {"one": SMALL["one"], "far": FAR}),
        "Expand of 'W' would make them",
    ),
    "Tile": (
        lambda: computed([operator("Tile", ["one", "far"], "W")], {"one": SMALL["one"], "far": FAR[:1] ** 2}),
        "Tile of 'W' would make them",
    ),
    "Range": (
        lambda: computed(
            [operator("Range", ["a", "b", "c"], "W")],
            {"a": np.float32(0), "b": np.float32(2**40), "c": np.float32(1)},
        ),
        "Range of 'W' would make them",
    ),
    "Pad": (
        lambda: computed([operator("Pad", ["one", "far"], "W")], {"one": SMALL["one"], "far": FAR * 2**20}),
        "Pad of 'W' would make them",
    ),
    "Concat": (
        lambda: computed(chain(40, "Concat"), {"start": np.ones(100, np.float32)}),
        "Concat of 'w[0-9]+' would make them",
    ),
    "Concat, of many": (
        lambda: computed(chain(4, "Concat", 300), {"start": np.ones(100, np.float32)}),
        "Concat of 'w[0-9]+' would make them",
    ),
    "a size that depends on numbers": (
        lambda: computed([operator("NonZero", ["one"], "W")], {"one": SMALL["one"]}),
        r"stored, or computed by one of Abs, .*; got NonZero of 'W'",
    ),
    "a node that cannot run": (
        lambda: computed([operator("Concat", ["one", "far"], "W", axis=0)], {"one": SMALL["one"], "far": FAR}),
        "source has a node that cannot run, Concat of 'W'",
    ),
    "a value computed twice": (
        lambda: computed([*chain(1), *chain(1)], {"start": SMALL["W"]}),
        "must compute each value once; 'W' is the output of two nodes",
    ),
    "a value computed from itself": (
        lambda: computed([operator("Identity", ["W"], "V"), operator("Identity", ["V"], "W")]),
        "must have its W, 'W', in the weights",
    ),
    "functions": (lambda: called(60), r"at most 1000000 nodes with its functions inlined; it has \d+"),
    "a function that calls itself": (lambda: called(3, last=True), "source has a function 'f[0-9]' that calls itself"),
}


@pytest.mark.parametrize(("model", "message"), HOSTILE.values(), ids=HOSTILE)
def test_small_files_cannot_ask_for_much(model, message):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            from_onnx(model())
        assert tracemalloc.get_traced_memory()[1] < 2**28
    finally:
        tracemalloc.stop()


def test_nothing_recurses():
    """Neither between the LSTMs of a stack nor within branches."""
    squeeze = operator("Squeeze", ["y", "axes"], "x0")
    moves = [operator("Identity", [f"x{n}"], f"x{n + 1}") for n in range(900)]
    model, _ = chained(squeeze, *moves, operator("Identity", ["x900"], "x"), weights=AXES)
    assert len(from_onnx(model)[0].layers) == 2
    more = [operator("Identity", [f"x{n}"], f"x{n + 1}") for n in range(3_000)]
    model, _ = chained(squeeze, *more, operator("Identity", ["x3000"], "x"), weights=AXES)
    with pytest.raises(ValueError, match="reads 'x', which is not the outputs of LSTM 'encoder'"):
        from_onnx(model)
    model = computed(nested(20))
    assert from_onnx(model)[0].units == UNITS


@pytest.mark.parametrize("dims", [[1, 4 * UNITS, INPUTS + 1], [2**40]])
def test_a_tensor_without_its_numbers(dims):
    model = computed([])
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "W")
    del tensor.dims[:]
    tensor.dims.extend(dims)
    with pytest.raises(ValueError, match=r"W of source must have the numbers that its shape \[.*\] needs"):
        from_onnx(model)


def init(**options):
    return lstm.init(jax.random.key(0), INPUTS, UNITS, **options)


UNFIT = {
    "projection": (init(projection=2), {}, "ONNX has no place for params.w_projection"),
    "layer norm": (init(layer_norm=True), {}, "ONNX has no place for params.norm"),
    "silu": (
        init(),
        {"options": LSTMOptions(activation="silu")},
        "an activation for ONNX must be one of .* got 'silu'",
    ),
    "cell clip": (init(), {"options": LSTMOptions(cell_clip=1.0)}, "ONNX has no cell_clip"),
    "projection clip": (init(), {"options": LSTMOptions(projection_clip=1.0)}, "ONNX has no projection_clip"),
    "precision": (
        init(),
        {"options": LSTMOptions(precision="bfloat16")},
        "computes in the dtype of the weights, float32: precision must be None; got bfloat16",
    ),
    "dtypes": (
        StackParams((init(), lstm.init(jax.random.key(0), UNITS, UNITS, dtype=jnp.float16))),
        {},
        "one dtype for ONNX, .*; got float16, float32",
    ),
    "units": (
        BidirectionalParams(init(), lstm.init(jax.random.key(0), INPUTS, 3)),
        {},
        "one number of inputs, units and gates for both directions",
    ),
    "coupled": (BidirectionalParams(init(), init(coupled=True)), {}, "units and gates for both directions"),
    "reverse, two ways": (BidirectionalParams(init(), init()), {"reverse": True}, "reverse=True has no place"),
    "layers": (StackParams((init(), init())), {}, r"params\.layers\[1\] must have 4 inputs.*; got 2"),
    "merged by sum": (
        StackParams((BidirectionalParams(init(), init()), lstm.init(jax.random.key(0), UNITS, UNITS))),
        {},
        "layer 1 of params must have 8 inputs, the outputs below; got 4",
    ),
}


@pytest.mark.parametrize(("params", "arguments", "message"), UNFIT.values(), ids=UNFIT)
def test_refused_params(params, arguments, message):
    with pytest.raises(ValueError, match=message):
        to_onnx(params, **arguments)


@pytest.mark.parametrize(("function", "count"), [(from_onnx, 5), (to_onnx, 4)])
def test_examples(function, count):
    text = function.__doc__.replace("# doctest: +SKIP", "")
    names = vars(importlib.import_module("lstmjax.interop.onnx"))
    examples = doctest.DocTestParser().get_doctest(text, {"np": np, **names}, function.__name__, None, None)
    assert doctest.DocTestRunner().run(examples) == (0, count)
