"""Programs that are stored and read back against `apply`, and what of them is refused."""

import doctest
import hashlib
import random
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from lstmjax import LSTMOptions, LSTMState, bidirectional, export, lstm, stack
from lstmjax.bidirectional import BidirectionalState

# An open axis is no int, and annotations say that sizes are.
pytestmark = [pytest.mark.versions, pytest.mark.usefixtures("untyped")]

INPUTS, UNITS = 2, 3
SIZES = ((4, 6), (1, 9))  # batch, time


def drawn(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def filled(make, *arguments, **options):
    """A tree in the shapes of `make(...)` with other numbers in every leaf, so that none can stand for another."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(lambda: make(*arguments, **options)))
    return structure.unflatten([jnp.asarray(drawn(*leaf.shape, seed=n) / 2) for n, leaf in enumerate(leaves)])


KEY = jax.random.key(0)
EVERY_PART = {"peepholes": True, "projection": 2, "layer_norm": True, "learned_state": True}
TREES = {
    "lstm": filled(lstm.init, KEY, INPUTS, UNITS),
    "every part": filled(lstm.init, KEY, INPUTS, UNITS, **EVERY_PART),
    "bidirectional": filled(bidirectional.init, KEY, INPUTS, UNITS),
    "stack": filled(stack.init, KEY, INPUTS, (4, 3), bidirectional=True),
}
apply = jax.jit(stack.apply, static_argnames=("implementation", "options", "reverse", "merge", "return_sequences"))


def plain(state):
    if isinstance(state, BidirectionalState):
        return {"forward": plain(state.forward), "backward": plain(state.backward)}
    if isinstance(state, LSTMState):
        return {"h": state.h, "c": state.c}
    return tuple(plain(layer) for layer in state)


@cache
def exported(name, **options):
    return export.stablehlo(TREES[name], **options)


def applied(name, xs, lengths=None, state=None):
    """What `apply` gives, with one program for all sizes: what is smaller is padded to the largest of both axes."""
    batch, time, _ = xs.shape
    rows, steps = (max(sizes) for sizes in zip(*SIZES, strict=True))

    def padded(array):
        return np.pad(array, [(0, rows - batch), *[(0, 0)] * (np.ndim(array) - 1)])

    if state is None:
        assert TREES[name] is not TREES["every part"]  # whose initial state is learned
        shapes = jax.eval_shape(lambda: stack.initial_state(TREES[name], (batch,)))
        state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    lengths = padded(np.full(batch, time, np.int32) if lengths is None else lengths)
    xs = np.pad(padded(xs), ((0, 0), (0, steps - time), (0, 0)), constant_values=np.nan)
    ys, after = apply(TREES[name], xs, jax.tree.map(padded, state), lengths=lengths, implementation="fused")
    return np.asarray(ys)[:batch, :time], plain(jax.tree.map(lambda leaf: np.asarray(leaf)[:batch], after))


def assert_close(actual, expected, atol=1e-6):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_allclose(np.float32(a), np.float32(e), rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        *((name, "fused") for name in TREES),
        ("stack", "scan"),
        *(pytest.param(name, "scan", marks=pytest.mark.slow) for name in TREES if name != "stack"),
    ],
)
def test_stablehlo(name, implementation):
    program = export.load(exported(name, lengths=True, state=True, implementation=implementation))
    assert program.platforms == ("cpu", "cuda", "tpu")
    for batch, time in SIZES:
        xs, lengths = drawn(batch, time, INPUTS), np.arange(batch, dtype=np.int32) % (time + 1)
        state = filled(stack.initial_state, TREES[name], (batch,))
        assert_close(program.call(xs, lengths, plain(state)), applied(name, xs, lengths, state))


def test_the_simplest_program():
    program = export.load(exported("stack"))
    for batch, time in SIZES:
        xs = drawn(batch, time, INPUTS)
        assert_close(program.call(xs), applied("stack", xs))


def test_a_stream_hands_its_state_on():
    program = export.load(exported("lstm", state=True, platforms=("cpu",)))
    xs = drawn(4, 6, INPUTS)
    state = {"h": np.zeros((4, UNITS), np.float32), "c": np.zeros((4, UNITS), np.float32)}
    pieces = []
    for piece in (xs[:, :3], xs[:, 3:]):
        ys, state = program.call(piece, state)
        pieces.append(ys)
    assert_close((np.concatenate(pieces, axis=1), state), applied("lstm", xs))


def test_arguments_of_apply():
    params, xs = TREES["bidirectional"], drawn(4, 6, INPUTS)
    options = LSTMOptions(preactivation_clip=0.1, precision="bfloat16")
    arguments = {"options": options, "reverse": True, "merge": "sum", "return_sequences": False}
    program = export.load(export.stablehlo(params, **arguments))
    ys, after = apply(params, xs, **arguments)
    assert_close(program.call(xs), (ys, plain(after)), atol=1e-2)
    _, others = applied("bidirectional", xs)
    assert not np.allclose(np.float32(ys), others["forward"]["h"] + others["backward"]["h"], atol=5e-2)


def test_the_state_of_another_precision_comes_back_as_it_went():
    program = export.load(export.stablehlo(TREES["lstm"], state=True, options=LSTMOptions(precision="bfloat16")))
    xs = drawn(4, 6, INPUTS)
    state = {"h": jnp.zeros((4, UNITS), jnp.bfloat16), "c": jnp.zeros((4, UNITS))}
    _, once = program.call(xs, state)
    _, twice = program.call(xs, once)
    assert jax.tree.map(lambda leaf: leaf.dtype, twice) == jax.tree.map(lambda leaf: leaf.dtype, state)


def test_weights_are_inside_and_need_no_package(tmp_path):
    xs = drawn(4, 6, INPUTS)
    expected, _ = applied("stack", xs)
    (tmp_path / "program").write_bytes(exported("stack"))
    np.save(tmp_path / "xs.npy", xs)
    alone = """
import sys, numpy as np, jax, jax.export
program = jax.export.deserialize(bytearray(open("program", "rb").read()))
ys, state = program.call(np.load("xs.npy"))
assert not any(name.startswith("lstmjax") for name in sys.modules)
np.save("ys.npy", ys)
"""
    subprocess.run([sys.executable, "-c", alone], cwd=tmp_path, check=True, timeout=300)
    np.testing.assert_allclose(np.load(tmp_path / "ys.npy"), expected, rtol=0, atol=1e-6)


def test_a_function_with_shapes():
    params = TREES["lstm"]

    def classify(xs, lengths, weights):
        return jax.nn.softmax(lstm.apply(params, xs, lengths=lengths, return_sequences=False)[0] @ weights["dense"])

    weights = {"dense": drawn(UNITS, 5)}
    examples = jnp.zeros((1, 1, INPUTS)), jax.ShapeDtypeStruct((1,), jnp.int32), weights
    data = export.stablehlo(classify, *examples, shapes=["batch, time, _", "batch", None], platforms=["cpu"])
    program = export.load(data)
    assert program.platforms == ("cpu",)
    for batch, time in SIZES:
        xs, lengths = drawn(batch, time, INPUTS), np.full(batch, time - 1, np.int32)
        scores = np.exp(applied("lstm", xs, lengths)[1]["h"] @ weights["dense"])
        assert_close(program.call(xs, lengths, weights), scores / scores.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("checkpoint", [True, 3])
def test_checkpoints_of_an_open_number_of_steps(checkpoint):
    def outputs(xs):
        return lstm.apply(TREES["lstm"], xs, checkpoint=checkpoint)[0]

    examples = jnp.zeros((1, 1, INPUTS))
    with pytest.raises(ValueError, match=f"checkpoint={checkpoint} cuts a known number of steps; .* left open: time"):
        export.stablehlo(outputs, examples, shapes="batch, time, _")
    assert export.load(export.stablehlo(outputs, examples, shapes="batch, 1, _", platforms=["cpu"]))


def test_a_function_without_shapes_has_those_of_its_examples():
    program = export.load(export.stablehlo(jnp.sin, jnp.ones((2, 3))))
    np.testing.assert_allclose(program.call(jnp.ones((2, 3))), np.sin(np.ones((2, 3))), rtol=1e-6)
    with pytest.raises(ValueError, match="shape"):
        program.call(jnp.ones((3, 3)))


def test_a_program_runs_inside_of_others():
    program, xs = export.load(exported("lstm", platforms=("cpu",))), drawn(4, 6, INPUTS)
    actual = jax.jit(lambda xs: 2 * program.call(xs)[0])(xs)
    np.testing.assert_allclose(actual, 2 * applied("lstm", xs)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("source", "examples", "arguments", "error", "message"),
    [
        (TREES["lstm"], (jnp.ones(3),), {}, TypeError, "examples and shapes are for a function"),
        (TREES["lstm"], (), {"shapes": "b"}, TypeError, "examples and shapes are for a function"),
        (
            jnp.sin,
            (jnp.ones(3),),
            {"lengths": True, "reverse": True},
            TypeError,
            "lengths, reverse can be said of params",
        ),
        (3, (), {}, TypeError, "source must be params or a function; got int"),
        (jnp.sin, (jnp.ones(3),), {"platforms": ()}, ValueError, r"platforms must be a tuple of some of .*; got \(\)"),
        (jnp.sin, (jnp.ones(3),), {"platforms": "cpu"}, ValueError, "platforms must be a tuple of some .*; got 'cpu'"),
        (jnp.sin, (jnp.ones(3),), {"platforms": ["gpu"]}, ValueError, "'cuda', .*; got \\['gpu'\\]"),
        (jnp.sin, (jnp.ones(3),), {"platforms": ["cpus"]}, ValueError, "'cpu', .*; got \\['cpus'\\]"),
        (jnp.sin, (jnp.ones(3),), {"platforms": 1}, ValueError, "got 1"),
        (jnp.sin, (jnp.ones(3),), {"shape": False}, TypeError, "did you mean 'shapes'"),
        (TREES["lstm"], (), {"lengths": 1}, TypeError, "lengths must be True or False"),
        (TREES["lstm"], (), {"merge": "max"}, ValueError, "merge must be one of"),
        (TREES["lstm"], (), {"checkpoint": True}, ValueError, "checkpoint is about gradients, of which a program has"),
        (TREES["stack"], (), {"checkpoint": 5}, ValueError, "checkpoint is about gradients, of which a program has"),
        (TREES["lstm"], (), {"unroll": 3}, ValueError, "unroll=3 needs the number of steps, which this program leaves"),
    ],
)
def test_refused(source, examples, arguments, error, message):
    with pytest.raises(error, match=message):
        export.stablehlo(source, *examples, **arguments)


def test_examples():
    examples = doctest.DocTestParser().get_doctest(
        export.stablehlo.__doc__.replace("# doctest: +SKIP", ""), vars(export), "stablehlo", None, None
    )
    assert doctest.DocTestRunner().run(examples) == (0, 7)


def test_arguments_that_change_nothing_may_be_said():
    export.stablehlo(TREES["lstm"], checkpoint=False, unroll=1, platforms=["cpu"])


def test_what_is_no_program(tmp_path):
    data = export.stablehlo(jnp.sin, jnp.ones(3), path=tmp_path / "program")
    assert (tmp_path / "program").read_bytes() == data
    for source in (tmp_path / "program", str(tmp_path / "program"), bytearray(data)):
        assert export.load(source).in_avals[0].shape == (3,)
    alone = data[: -export.SUM]
    assert jax.export.deserialize(bytearray(alone)).serialize() == alone
    for other in (alone, b"no program" * 100):
        with pytest.raises(
            ValueError, match="whole and unchanged; the last 32 bytes of these bytes are not the SHA-256"
        ):
            export.load(other)
    (tmp_path / "text").write_text("no program" * 100)
    with pytest.raises(ValueError, match=r"whole and unchanged; the last 32 bytes of .*text are not"):
        export.load(tmp_path / "text")
    with pytest.raises(FileNotFoundError):
        export.load(str(tmp_path / "none"))
    with pytest.raises(ValueError, match=f"these bytes cannot be read by JAX {jax.__version__}"):
        export.load(bytes(100) + hashlib.sha256(bytes(100)).digest())


def test_five_thousand_mutations_are_refused_before_jax_reads_them(monkeypatch):
    good = exported("lstm", lengths=True, state=True, implementation="fused")
    monkeypatch.setattr(jax.export, "deserialize", lambda data: pytest.fail("JAX was given what is not whole"))
    draw, refused = random.Random(0), 0
    while refused < 5_000:
        at, size = draw.randrange(len(good)), draw.choice([1, 4, 64])
        flipped = bytes([good[at] ^ 1 << draw.randrange(8)])
        content = draw.choice(
            [
                good[:at] + flipped + good[at + 1 :],
                good[:at] + draw.randbytes(size) + good[at + size :],
                good[:at] + draw.randbytes(size) + good[at:],
                good[:at] + good[at + size :],
                good[:at],
                good[at:],
                good + draw.randbytes(size),
                good[at:] + good[:at],
            ]
        )
        if content == good:
            continue
        with pytest.raises(ValueError, match="whole and unchanged"):
            export.load(content)
        refused += 1


def test_onnx(tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: python -m pip install -e '.[peers]'")
    model = export.onnx(
        TREES["stack"], tmp_path / "model.onnx", options=LSTMOptions(preactivation_clip=3.0), lengths=True
    )
    assert onnx.load(tmp_path / "model.onnx") == model
    assert [given.name for given in model.graph.input] == ["xs", "lengths"]
    nodes = [node for node in model.graph.node if node.op_type == "LSTM"]
    clips = [given.f for node in nodes for given in node.attribute if given.name == "clip"]
    assert clips == [3.0, 3.0]
    with pytest.raises(ValueError, match=r"ONNX has no place for params.w_projection"):
        export.onnx(TREES["every part"], Path(tmp_path / "none.onnx"))
    assert not (tmp_path / "none.onnx").exists()
