"""Weights of Flax's modules here and back, against Flax's own run of them.

Flax gathers the state of a length of 0 from the last step of the padding, so that lengths here are at least 1.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstmjax import LSTMOptions, LSTMState, bidirectional, lstm, stack
from lstmjax.bidirectional import BidirectionalState
from lstmjax.interop.flax import from_flax, to_flax
from lstmjax.stack import StackParams

flax = pytest.importorskip("flax", reason="Flax comes with lstmjax[tests]")
import flax.linen as nn  # noqa: E402
from flax import nnx  # noqa: E402

BATCH, TIME, INPUTS, UNITS = 4, 6, 2, 3
LENGTHS = np.array([4, 6, 2, 1])
MASK = np.arange(TIME) < LENGTHS[:, None]
CELLS = [nn.LSTMCell, nn.OptimizedLSTMCell, nnx.LSTMCell, nnx.OptimizedLSTMCell]


@pytest.fixture(autouse=True)
def rank_promotion():
    """Flax adds vectors to matrices."""
    with jax.numpy_rank_promotion("allow"):
        yield


def drawn(tree, dtype=np.float32):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(scale=0.5, size=leaf.shape).astype(dtype)), tree)


def rnn_of(cell, inputs):
    return nn.RNN(cell(UNITS)) if issubclass(cell, nn.Module) else nnx.RNN(cell(inputs, UNITS, rngs=nnx.Rngs(0)))


def two_ways_of(cell, inputs):
    return (nn if issubclass(cell, nn.Module) else nnx).Bidirectional(rnn_of(cell, inputs), rnn_of(cell, inputs))


def prepared(module, dtype=np.float32):
    """Random weights, and a function that runs Flax's module with them."""
    if isinstance(module, nn.Module):
        shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((BATCH, TIME, INPUTS), jnp.float32))
        return drawn(shapes, dtype), module.apply
    graph, weights, rest = nnx.split(module, nnx.Param, ...)

    def run(weights, *args, **how):
        return nnx.merge(graph, weights, jax.tree.map(lambda leaf: leaf, rest))(*args, **how)

    return drawn(weights, dtype), run


def sequences(width):
    rng = np.random.default_rng(1)
    xs = rng.normal(size=(BATCH, TIME, INPUTS)).astype(np.float32)
    return xs, *(rng.normal(size=(BATCH, width)).astype(np.float32) for _ in "ch")


def compare(ours, theirs):
    for a, e in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, e = np.asarray(a), np.asarray(e)
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-6 * max(1, np.abs(e).max(initial=0)))


def same_bits(made, source):
    source = nnx.to_pure_dict(source) if isinstance(source, nnx.State) else source
    assert jax.tree.structure(made) == jax.tree.structure(source)
    for a, e in zip(jax.tree.leaves(made), jax.tree.leaves(source), strict=True):
        assert (a.dtype, a.shape, np.asarray(a).tobytes()) == (e.dtype, e.shape, np.asarray(e).tobytes())


@functools.cache
def differentiated(function):
    """The gradients are of a sum of everything that the function returns, each number with a weight of its own."""

    def total(*arguments):
        out = function(*arguments)
        weights = [np.sin(np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape) for leaf in jax.tree.leaves(out)]
        return sum(jnp.sum(w * leaf) for w, leaf in zip(weights, jax.tree.leaves(out), strict=True)), out

    return jax.jit(lambda *arguments: jax.grad(total, tuple(range(len(arguments))), has_aux=True)(*arguments))


def outputs_and_gradients(function, *arguments):
    slopes, out = differentiated(function)(*arguments)
    return out, slopes


@functools.cache
def our_rnn(reverse):
    """One function for all cells, whose params have the same shapes; likewise the next two."""

    def ours(params, xs, c, h):
        ys, state = lstm.apply(params, xs, LSTMState(h, c), lengths=LENGTHS, reverse=reverse)
        return ys, (state.c, state.h)

    return ours


def our_bidirectional(params, xs, c, h):
    state = BidirectionalState(LSTMState(h, c), LSTMState(c, h))
    ys, after = bidirectional.apply(params, xs, state, lengths=LENGTHS)
    return ys, tuple((half.c, half.h) for half in after)


def our_stack(params, xs):
    return stack.apply(params, xs)[0]


# Each cell once; every cell reads in both directions in the test below.
IN_REVERSE = (nn.OptimizedLSTMCell, nnx.LSTMCell)


@pytest.mark.parametrize(
    ("cell", "reverse"),
    [
        pytest.param(cell, reverse, marks=[] if reverse == (cell in IN_REVERSE) else pytest.mark.slow)
        for cell in CELLS
        for reverse in (False, True)
    ],
)
def test_rnn(cell, reverse):
    weights, run = prepared(rnn_of(cell, INPUTS))
    params = from_flax(weights)
    xs, c, h = sequences(UNITS)

    def theirs(weights, xs, c, h):
        how = {"seq_lengths": LENGTHS, "return_carry": True, "reverse": reverse, "keep_order": True}
        carry, ys = run(weights, xs, initial_carry=(c, h), **how)
        return jnp.where(MASK[..., None], ys, 0), carry

    expected, (of_weights, *rest) = outputs_and_gradients(theirs, weights, xs, c, h)
    actual, slopes = outputs_and_gradients(our_rnn(reverse), params, xs, c, h)
    compare(actual, expected)
    compare(slopes, (from_flax(of_weights), *rest))
    same_bits(to_flax(params, weights), weights)


@pytest.mark.parametrize("cell", CELLS)
def test_bidirectional(cell):
    weights, run = prepared(two_ways_of(cell, INPUTS))
    params = from_flax(weights)
    xs, c, h = sequences(UNITS)

    def theirs(weights, xs, c, h):
        carry, ys = run(weights, xs, initial_carry=((c, h), (h, c)), seq_lengths=LENGTHS, return_carry=True)
        return jnp.where(MASK[..., None], ys, 0), carry

    expected, (of_weights, *rest) = outputs_and_gradients(theirs, weights, xs, c, h)
    actual, slopes = outputs_and_gradients(our_bidirectional, params, xs, c, h)
    compare(actual, expected)
    compare(slopes, (from_flax(of_weights), *rest))
    same_bits(to_flax(params, weights), weights)


# Every library with either kind of layer, each cell once; three layers of linen's are in the test without a template.
SEQUENTIAL = [
    (nn.OptimizedLSTMCell, rnn_of, 2),
    (nn.LSTMCell, two_ways_of, 2),
    (nnx.LSTMCell, rnn_of, 2),
    (nnx.OptimizedLSTMCell, two_ways_of, 2),
    (nnx.LSTMCell, rnn_of, 3),
]


@pytest.mark.parametrize(
    ("cell", "make", "layers"),
    [
        pytest.param(*row, marks=[] if row in SEQUENTIAL else pytest.mark.slow)
        for row in itertools.product(CELLS, [rnn_of, two_ways_of], [2, 3])
    ],
)
def test_sequential(cell, make, layers):
    width = UNITS if make is rnn_of else 2 * UNITS
    every = [make(cell, width if number else INPUTS) for number in range(layers)]
    weights, run = prepared(nn.Sequential(every) if issubclass(cell, nn.Module) else nnx.Sequential(*every))
    params = from_flax(weights)
    assert isinstance(params, StackParams)
    assert len(params.layers) == layers
    xs, *_ = sequences(UNITS)
    expected, (of_weights, of_xs) = outputs_and_gradients(run, weights, xs)
    actual, slopes = outputs_and_gradients(our_stack, params, xs)
    compare(actual, expected)
    compare(slopes, (from_flax(of_weights), of_xs))
    same_bits(to_flax(params, weights), weights)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("cell", CELLS)
def test_dtypes_are_kept(cell, dtype):
    weights, _ = prepared(two_ways_of(cell, INPUTS), dtype)
    params = from_flax(weights)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    same_bits(to_flax(params, weights), weights)


def test_float64(x64):
    weights, _ = prepared(rnn_of(nn.LSTMCell, INPUTS), np.float64)
    same_bits(to_flax(from_flax(weights), weights), weights)


@functools.cache
def without_a_template():
    """Params of a cell, of two directions and of stacks of three layers; and what we make of them."""
    xs, c, h = sequences(UNITS)

    def made(init, units, **options):
        return drawn(jax.eval_shape(lambda key: init(key, INPUTS, units, **options), jax.random.key(0)))

    one, two = made(lstm.init, UNITS), made(bidirectional.init, UNITS)
    stacks = [made(stack.init, (UNITS,) * 3, bidirectional=both) for both in (False, True)]

    @jax.jit
    def run(one, two, stacks):
        y, state = lstm.step(one, xs[:, 0], LSTMState(h, c))
        return (y, state.c), bidirectional.apply(two, xs)[0], [stack.apply(three, xs)[0] for three in stacks]

    return (one, two, stacks), run(one, two, stacks)


@pytest.mark.parametrize("cell", CELLS[:2])
def test_what_linen_is_given_without_a_template(cell):
    """A cell's own params, those of Bidirectional of RNN, and of Sequential."""
    xs, c, h = sequences(UNITS)
    (one, two, stacks), ours = without_a_template()

    @jax.jit
    def run(one, two, stacks):
        (after, _), y = cell(UNITS).apply({"params": one}, (c, h), xs[:, 0])
        every = [nn.Sequential([make(cell, None) for _ in range(3)]) for make in (rnn_of, two_ways_of)]
        ys = [module.apply({"params": three}, xs) for module, three in zip(every, stacks, strict=True)]
        return (y, after), two_ways_of(cell, INPUTS).apply({"params": two}, xs), ys

    compare(ours, run(to_flax(one), to_flax(two), [to_flax(three) for three in stacks]))


@pytest.mark.parametrize("cell", CELLS[2:])
def test_an_nnx_module_is_updated(cell):
    """Whole, abstract, with the streams of its cell, or a cell by itself; its state is as good as the module."""
    params = lstm.init(jax.random.key(0), INPUTS, UNITS)
    xs, *_ = sequences(UNITS)
    for keep in (False, True):
        with pytest.warns(UserWarning, match="keep_rngs") if keep else jax.numpy_rank_promotion("allow"):
            inner = cell(INPUTS, UNITS, keep_rngs=keep, rngs=nnx.Rngs(0))
        module = nnx.RNN(inner)
        nnx.update(module, to_flax(params, module))
        compare(lstm.apply(params, xs)[0], module(xs))
        for source in (module, nnx.state(module), nnx.to_pure_dict(nnx.state(module)), module.cell):
            compare(from_flax(source), params)
    abstract = nnx.eval_shape(lambda: cell(INPUTS, UNITS, rngs=nnx.Rngs(0)))
    same_bits(to_flax(params, abstract), to_flax(params, module.cell))


def test_layers_counted_in_strings():
    """As checkpoints of nnx have them."""
    params = stack.init(jax.random.key(0), INPUTS, (UNITS,) * 11)
    numbered = to_flax(params, nnx.Sequential(*(rnn_of(nnx.LSTMCell, UNITS if n else INPUTS) for n in range(11))))
    compare(from_flax({"layers": {str(key): layer for key, layer in numbered["layers"].items()}}), params)
    compare(from_flax(to_flax(params)), params)


def test_boxed_parameters():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ("rows", None))
    variables = nn.RNN(nn.LSTMCell(UNITS, kernel_init=init)).init(jax.random.key(0), jnp.ones((BATCH, TIME, INPUTS)))
    assert isinstance(variables["params"]["cell"]["ii"]["kernel"], nn.Partitioned)
    params = from_flax(variables)
    same_bits(to_flax(params, variables), nn.unbox(variables))


@pytest.mark.parametrize("bias", [False, True])
def test_all_biases_are_one_sum(bias):
    rng = np.random.default_rng(2)
    w_x, w_h, b, bias_h, offset = (
        rng.normal(size=size).astype(np.float32) for size in [(INPUTS, 4 * UNITS), (UNITS, 4 * UNITS), *[4 * UNITS] * 3]
    )
    params = lstm.LSTMParams(w_x, w_h, b if bias else None, bias_h=bias_h if bias else None, offset=offset)
    xs, *_ = sequences(UNITS)
    made = to_flax(params)
    compare(lstm.apply(params, xs)[0], nn.RNN(nn.LSTMCell(UNITS)).apply({"params": {"cell": made}}, xs))
    nothing = to_flax(lstm.LSTMParams(w_x, w_h, None))
    assert not nothing["hf"]["bias"].any()


@pytest.mark.parametrize(
    ("functions", "options"),
    [
        ({"gate_fn": nnx.hard_sigmoid}, LSTMOptions(recurrent_activation="hard_sigmoid")),
        ({"activation_fn": nnx.relu}, LSTMOptions(activation="relu")),
        (
            {"gate_fn": lambda x: jnp.clip(0.2 * x + 0.5, 0, 1), "activation_fn": lambda x: x / (1 + jnp.abs(x))},
            LSTMOptions(recurrent_activation="keras2_hard_sigmoid", activation="softsign"),
        ),
    ],
)
@pytest.mark.parametrize("cell", CELLS[2:])
def test_other_functions_need_the_options_that_name_them(cell, functions, options):
    module = nnx.RNN(cell(INPUTS, UNITS, rngs=nnx.Rngs(0), **functions))
    names = (
        [f"activation='{options.activation}'"]
        if "gate_fn" not in functions
        else [f"recurrent_activation='{options.recurrent_activation}'"]
    )
    with pytest.raises(ValueError, match=rf"source/cell has \w+=.*give options=LSTMOptions\({names[0]}\)"):
        from_flax(module)
    xs, *_ = sequences(UNITS)
    params = from_flax(module, options=options)
    compare(lstm.apply(params, xs, options=options)[0], module(xs))
    compare(from_flax(nnx.state(module)), params)
    with pytest.raises(ValueError, match="and options"):
        from_flax(rnn_of(cell, INPUTS), options=options)


def test_a_function_that_we_lack():
    with pytest.raises(ValueError, match=r"activation_fn=gelu.*no option of ours computes that"):
        from_flax(nnx.LSTMCell(2, 3, activation_fn=nnx.gelu, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="options output_activation='relu'"):
        from_flax(nnx.LSTMCell(2, 3, rngs=nnx.Rngs(0)), options=LSTMOptions(output_activation="relu"))


def test_a_dtype_to_compute_in():
    module = nnx.OptimizedLSTMCell(2, 3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"computes in bfloat16, not in float32: .*precision='bfloat16'"):
        from_flax(module)
    assert from_flax(module, options=LSTMOptions(precision="bfloat16")).w_x.dtype == jnp.float32
    assert from_flax(nnx.LSTMCell(2, 3, dtype=jnp.float32, rngs=nnx.Rngs(0))).units == 3


@pytest.mark.parametrize("cell", CELLS[2:])
def test_carries_that_do_not_begin_at_zero(cell):
    with pytest.warns(UserWarning, match="carry_init"):
        ones, zeros = (
            cell(2, 3, carry_init=init, rngs=nnx.Rngs(0)) for init in (nnx.initializers.ones, nnx.initializers.zeros)
        )
    assert from_flax(zeros).units == 3
    with pytest.raises(ValueError, match="source/cell has a carry_init other than zeros"):
        from_flax(nnx.RNN(ones))
    assert from_flax(nnx.state(nnx.RNN(ones))).units == 3


def cell_weights():
    return jax.tree.map(np.asarray, to_flax(lstm.init(jax.random.key(0), INPUTS, UNITS)))


def without(tree, *path):
    return {
        key: without(inner, *path[1:]) if key == path[0] else inner for key, inner in tree.items() if path != (key,)
    }


def replaced(array, name="if"):
    return cell_weights() | {name: {"kernel": array}}


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (lambda: without(cell_weights(), "hf"), ValueError, "source must have the weights of an LSTM"),
        (lambda: without(cell_weights(), "hf", "bias"), ValueError, "got hf/kernel, hg/bias"),
        (lambda: cell_weights() | {"extra": np.ones(3)}, ValueError, "got extra"),
        (lambda: {"encoder": {"cell": cell_weights()}}, ValueError, "Give the part of a model"),
        (lambda: {"params": {}}, ValueError, "source/params must have .*got none"),
        (lambda: {"cell": np.ones(3)}, ValueError, "source/cell must hold the weights of an LSTM, got ndarray"),
        (lambda: {"forward_rnn": {"cell": cell_weights()}}, ValueError, "source must have the weights"),
        (
            lambda: {"forward_rnn": {"cell": cell_weights()}, "backward_rnn": {"layers_0": {}, "layers_1": {}}},
            ValueError,
            "source/backward_rnn/layers_0 must have",
        ),
        (
            lambda: {
                "forward_rnn": cell_weights(),
                "backward_rnn": {"forward_rnn": cell_weights(), "backward_rnn": cell_weights()},
            },
            ValueError,
            "one LSTM in each direction",
        ),
        (lambda: {f"layers_{n}": {"cell": cell_weights()} for n in (0, 2)}, ValueError, r"layers \[0, 2\] alone"),
        (lambda: replaced(np.ones((3, 3), "f")), ValueError, r"source/if/kernel must have shape \(2, 3\)"),
        (lambda: replaced(np.ones((2, 3), "e")), ValueError, "source must have all of ii, if, ig, io in one dtype"),
        (lambda: replaced(np.ones((2, 3), int)), TypeError, "source/if/kernel must have a floating dtype"),
        (lambda: replaced(np.ones((3,), "f"), "ii"), ValueError, "source/ii/kernel must have shape"),
        (lambda: nn.LSTMCell(3), TypeError, "variables of a linen module"),
        (lambda: nnx.GRUCell(2, 3, rngs=nnx.Rngs(0)), ValueError, "source must have the weights of an LSTM"),
        (
            lambda: nnx.Sequential(rnn_of(nnx.LSTMCell, 2), jnp.tanh),
            ValueError,
            "source has functions among its layers",
        ),
        (
            lambda: nnx.Sequential(rnn_of(nnx.LSTMCell, 2), nnx.Linear(3, 3, rngs=nnx.Rngs(0))),
            ValueError,
            "source/layers/1 must have the weights of an LSTM",
        ),
        (lambda: nn.RNN(nn.GRUCell(3)).init(jax.random.key(0), jnp.ones((1, 2, 2))), ValueError, "source/params/cell"),
        (lambda: None, TypeError, "source must be an nnx module"),
    ],
)
def test_other_sources_are_refused(untyped, source, error, message):
    with pytest.raises(error, match=message):
        from_flax(source())


@pytest.mark.parametrize(
    ("options", "name"),
    [({"peepholes": True}, "w_peephole"), ({"projection": 2}, "w_projection"), ({"learned_state": True}, "initial")],
)
def test_parts_without_a_place_are_refused(options, name):
    with pytest.raises(ValueError, match=f"Flax has no place for params.{name}"):
        to_flax(lstm.init(jax.random.key(0), 2, 3, **options))


def test_a_template_that_does_not_fit_is_refused(untyped):
    params = lstm.init(jax.random.key(0), 2, 4)
    with pytest.raises(ValueError, match=r"like/cell/dense_i/kernel has shape \(2, 12\); params have \(2, 16\)"):
        to_flax(params, rnn_of(nnx.OptimizedLSTMCell, 2))
    with pytest.raises(ValueError, match=r"with directions \[1\] of each; it has \[2\]"):
        to_flax(params, two_ways_of(nnx.LSTMCell, 2))
    with pytest.raises(TypeError, match="like must be an nnx module"):
        to_flax(params, "nnx")
    with pytest.raises(ValueError, match="the dtype of params float64 needs 64-bit JAX"):
        to_flax(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params))
    with pytest.raises(TypeError, match="params must be LSTMParams"):
        to_flax(cell_weights())
