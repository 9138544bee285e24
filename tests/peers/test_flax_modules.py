"""`lstmjax.flax`: its modules against Flax's own with the same weights, and against the functions under them.

Where the two are compared lengths are at least 1: for 0 Flax gives the state after the last step of the padding.
"""

import functools
import operator

import covering
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.versions

pytest.importorskip("flax", reason="Flax comes with lstmjax[tests]")
optax = pytest.importorskip("optax", reason="optax comes with lstmjax[tests]")
import flax.linen as nn  # noqa: E402
from flax import nnx  # noqa: E402
from flax.errors import InvalidRngError  # noqa: E402

from lstmjax import Dropout, LSTMOptions, LSTMState, bidirectional, crf, lstm, stack  # noqa: E402
from lstmjax import flax as ours  # noqa: E402
from lstmjax.interop.flax import from_flax, to_flax  # noqa: E402

BATCH, TIME, INPUTS, UNITS = 4, 6, 2, 3
LENGTHS = np.array([4, 6, 2, 1])
MASK = np.arange(TIME) < LENGTHS[:, None]
SHORT = np.array([0, 6, 2, 1])
DRAWN = np.random.default_rng(0)
XS = DRAWN.normal(size=(BATCH, TIME, INPUTS)).astype(np.float32)
C, H = (DRAWN.normal(size=(BATCH, UNITS)).astype(np.float32) for _ in "ch")
RESETS = DRAWN.random((BATCH, TIME)) < 0.3


@pytest.fixture(autouse=True)
def rank_promotion():
    """Flax adds vectors to matrices."""
    with jax.numpy_rank_promotion("allow"):
        yield


def close(ours, theirs, atol=1e-6):
    for a, e in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=atol * max(1, float(np.abs(e).max(initial=0))))


def same(one, other):
    """To the bit, and of the same structure."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, e in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, e)


def valid(ys):
    return np.where(MASK[..., None], ys, 0)


def flipped(ys, counts):
    return np.stack([np.concatenate([row[:n][::-1], row[n:]]) for row, n in zip(np.asarray(ys), counts, strict=True)])


def spread(seed, tree):
    """Weights of some size, so that nothing passes by being near 0."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.asarray(rng.normal(scale=0.5, size=leaf.shape), leaf.dtype), tree)


LAYERS = {
    "LSTM": (lambda **how: ours.LSTM(in_features=INPUTS, hidden_features=UNITS, **how), lstm.apply),
    "Bidirectional": (lambda **how: ours.Bidirectional(INPUTS, UNITS, **how), bidirectional.apply),
    "Stack": (lambda **how: ours.Stack(INPUTS, (UNITS, UNITS), **how), stack.apply),
    "Stack of two directions": (
        lambda **how: ours.Stack(INPUTS, (UNITS, UNITS), bidirectional=True, merge="sum", residual_from=None, **how),
        lambda *args, **how: stack.apply(*args, merge="sum", **how),
    ),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    make, apply = LAYERS[request.param]
    return lambda **how: make(**{"rngs": nnx.Rngs(0)} | how), apply


# A stack of two directions holds what the two layers between these hold.
the_least_and_the_most = pytest.mark.parametrize(
    "layer",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ("Bidirectional", "Stack"))) for name in LAYERS],
    indirect=True,
)


# nnx: the modules are the functions


HOWS = {
    "plain": {},
    "lengths": {"lengths": SHORT},
    "resets": {"lengths": SHORT, "resets": RESETS},
    "reverse": {"lengths": SHORT, "reverse": True, "keep_order": True},
    "resets in reverse": {"lengths": SHORT, "resets": RESETS, "reverse": True, "keep_order": True},
    "last": {"lengths": SHORT, "return_sequences": False},
    "scan": {"implementation": "scan", "unroll": 2},
    "checkpoint": {"checkpoint": True},
}
OF_EVERY_LAYER = ("plain", "resets in reverse", "last")


@pytest.mark.parametrize(
    ("layer", "how"),
    [
        pytest.param(layer, how, marks=[] if layer == "LSTM" or how in OF_EVERY_LAYER else pytest.mark.slow)
        for layer in LAYERS
        for how in HOWS
    ],
    indirect=["layer"],
)
def test_a_module_is_its_function(layer, how):
    (make, apply), how = layer, HOWS[how]
    made = {name: how[name] for name in ("implementation", "unroll", "checkpoint") if name in how}
    module = make(learned_state=True, options=LSTMOptions(recurrent_activation="hard_sigmoid"), **made)
    params = spread(1, module.params)
    nnx.update(module, {"weights": nnx.to_pure_dict(nnx.state(type(module).from_params(params)))["weights"]})
    same(module.params, params)
    of_function = {name: value for name, value in how.items() if name != "keep_order"}
    how = {name: value for name, value in how.items() if name not in made}
    ys, state = apply(params, XS, options=module.options, **of_function)
    same(module(XS, **how), ys)
    carry, again = module(XS, return_carry=True, **how)
    same(again, ys)
    states = [leaf for leaf in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, LSTMState))]
    assert [a.tolist() for a in jax.tree.leaves(carry)] == [a.tolist() for s in states for a in (s.c, s.h)]
    ys, _ = apply(params, XS, state, options=module.options, **of_function)
    same(module(XS, initial_carry=carry, **how), ys)


def test_padding_reaches_nothing(layer):
    make, _ = layer
    module = make()
    spoilt = np.where(np.arange(TIME)[:, None] < SHORT[:, None, None], XS, np.nan)

    def total(module, xs):
        ys, of_flax = module(xs, lengths=SHORT), module(xs, seq_lengths=SHORT)
        return jnp.sum(ys**2), (ys, of_flax)

    run = nnx.jit(nnx.grad(total, has_aux=True))
    grads, (ys, of_flax) = run(module, spoilt)
    same((of_flax, ys), run(module, XS)[1])
    assert not np.asarray(ys)[np.arange(TIME) >= SHORT[:, None]].any()
    assert not np.asarray(ys[0]).any()
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_options_of_init_and_params_that_come_and_go():
    module = ours.LSTM(INPUTS, UNITS, peepholes=True, forget_bias=2, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(3))
    expected = lstm.init(nnx.Rngs(3).params(), INPUTS, UNITS, peepholes=True, forget_bias=2, dtype=jnp.bfloat16)
    same(module.params, expected)
    settings = {"options": LSTMOptions(cell_clip=0.1), "merge": "mul"}
    params = bidirectional.init(jax.random.key(0), INPUTS, UNITS, layer_norm=True)
    module = ours.Bidirectional.from_params(params, **settings)
    same(module.params, params)
    same(module(XS), bidirectional.apply(params, XS, **settings)[0])
    unequal = jax.eval_shape(lambda: ours.Stack(INPUTS, (4, UNITS), rngs=nnx.Rngs(3)).params)
    expected = jax.eval_shape(lambda: stack.init(nnx.Rngs(3).params(), INPUTS, (4, UNITS)))
    assert [leaf.shape for leaf in jax.tree.leaves(unequal)] == [leaf.shape for leaf in jax.tree.leaves(expected)]
    mixed = stack.StackParams((params, lstm.init(jax.random.key(0), 2 * UNITS, 2 * UNITS)))
    module = ours.Stack.from_params(mixed, residual_from=1)
    same(module(XS), stack.apply(mixed, XS, residual_from=1)[0])


def test_both_halves_by_themselves():
    module = ours.Bidirectional(INPUTS, UNITS, merge=None, rngs=nnx.Rngs(0))
    forward, backward = module(XS, lengths=SHORT, time_major=False)
    same((forward, backward), bidirectional.apply(module.params, XS, lengths=SHORT, merge=None)[0])
    moved = module(XS.swapaxes(0, 1), lengths=SHORT, time_major=True)
    same(moved, (forward.swapaxes(0, 1), backward.swapaxes(0, 1)))


def test_crf_is_its_functions():
    chain = ours.CRF(tags=3, transitions_init=jax.nn.initializers.normal(1.0), rngs=nnx.Rngs(0))
    params, emissions = chain.params, DRAWN.normal(size=(BATCH, TIME, 3)).astype(np.float32)
    tags, key, how = DRAWN.integers(0, 3, (BATCH, TIME)), jax.random.key(5), {"lengths": SHORT}
    assert np.asarray(params.transitions).std() > 0.1

    def by_module(chain, emissions, key):
        def loss(chain):
            score = chain(emissions, tags, **how)
            return -score.sum(), score

        grads, score = nnx.grad(loss, has_aux=True)(chain)
        rest = chain.log_partition(emissions, **how), chain.marginals(emissions, **how), chain.decode(emissions, **how)
        return grads, (score, *rest, chain.sample(emissions, key=key, **how))

    def by_functions(params, emissions, key):
        def loss(params):
            score = crf.log_likelihood(params, emissions, tags, **how)
            return -score.sum(), score

        grads, score = jax.grad(loss, has_aux=True)(params)
        rest = (function(params, emissions, **how) for function in (crf.log_partition, crf.marginals, crf.decode))
        return grads, (score, *rest, crf.sample(params, emissions, key=key, **how))

    @nnx.jit
    def by_both(chain, params, *data):
        return by_module(chain, *data), by_functions(params, *data)

    (grads, values), (wanted, expected) = by_both(chain, params, emissions, key)
    same(values, expected)
    zeros = jax.tree.map(np.zeros_like, params)
    close(ours.CRF.from_params(zeros).params, zeros)
    for name in ("start", "transitions", "end"):
        close(grads["weights"][name], getattr(wanted, name))


# nnx: what Flax does with its own modules


def test_split_merge_and_state(layer):
    make, _ = layer
    module = make(dropout=Dropout(inputs=0.5))
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    assert len(jax.tree.leaves(params)) == len(jax.tree.leaves(module.params))
    assert {type(leaf) for leaf in jax.tree.leaves(rest, is_leaf=lambda x: isinstance(x, nnx.Variable))} == {
        nnx.RngKey,
        nnx.RngCount,
    }
    whole = nnx.merge(graph, params, rest)
    same(whole.params, module.params)
    same(whole(XS, deterministic=True), module(XS, deterministic=True))
    other = make(rngs=nnx.Rngs(1), dropout=Dropout(inputs=0.5))
    assert nnx.split(other)[0] == nnx.split(make(dropout=Dropout(inputs=0.5)))[0]
    nnx.update(other, nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    same(other.params, module.params)
    same(nnx.clone(module).params, module.params)


def test_scan_over_layers_with_streams_of_their_own():
    make = nnx.vmap(lambda rngs: ours.LSTM(UNITS, UNITS, dropout=Dropout(inputs=0.5), rngs=rngs))
    layers = nnx.jit(nnx.split_rngs(splits=2)(make))(nnx.Rngs(0))
    run = nnx.jit(nnx.scan(lambda xs, layer: layer(xs), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry))
    xs = np.ones((BATCH, TIME, UNITS), np.float32)
    assert not np.array_equal(run(xs, layers), run(xs, layers))
    layers.eval()
    both = jax.tree.map(np.asarray, layers.params)
    first, second = (jax.tree.map(operator.itemgetter(number), both) for number in range(2))
    close(run(xs, layers), stack.apply(stack.StackParams((first, second)), xs)[0])


def test_sharding_is_metadata_of_a_weight():
    module = ours.LSTM(INPUTS, UNITS, rngs=nnx.Rngs(0))
    module.weights.w_x.set_metadata(out_sharding=(None, "model"))
    again = nnx.merge(*nnx.split(module))
    specs = nnx.get_partition_spec(nnx.state(again))["weights"]
    assert tuple(specs["w_x"].get_value()) == (None, "model")
    same(again(XS), module(XS))


@the_least_and_the_most
def test_a_state_is_saved_and_restored(layer, tmp_path):
    """By Orbax, into an abstract module; dropout goes on where it stood."""
    checkpoints = pytest.importorskip("orbax.checkpoint")
    make, _ = layer
    make_again = lambda: make(dropout=Dropout(inputs=0.5))  # noqa: E731
    module = make_again()
    module(XS)
    with checkpoints.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state(module))
        checkpointer.wait_until_finished()
        graph, abstract = nnx.split(nnx.eval_shape(make_again))
        restored = nnx.merge(graph, checkpointer.restore(tmp_path / "state", abstract))
    same(restored(XS), module(XS))


def test_jit_compiles_once(layer):
    make, _ = layer
    module, traces = make(), []

    @nnx.jit
    def run(module, xs):
        traces.append(1)
        return module(xs)

    close(run(module, XS), module(XS))
    close(run(make(rngs=nnx.Rngs(1)), XS), make(rngs=nnx.Rngs(1))(XS))
    assert len(traces) == 1


@the_least_and_the_most
def test_vmap_over_modules(layer):
    make, _ = layer
    keys = jax.random.split(jax.random.key(0), 3)
    every = nnx.jit(nnx.vmap(lambda key: make(rngs=nnx.Rngs(key))))(keys)
    ys = nnx.jit(nnx.vmap(lambda module, xs: module(xs), in_axes=(0, None)))(every, XS)
    close(ys, np.stack([make(rngs=nnx.Rngs(key))(XS) for key in keys]))


@the_least_and_the_most
def test_training_is_that_of_the_functions(layer):
    """Five steps of optax on the module, and on its params."""
    make, apply = layer
    module = make()
    params, tx = module.params, optax.adam(0.01)
    optimizer, state = nnx.Optimizer(module, tx, wrt=nnx.Param), tx.init(params)

    @nnx.jit
    def train(module, optimizer):
        loss, grads = nnx.value_and_grad(lambda module: jnp.mean((module(XS, lengths=SHORT) - 1) ** 2))(module)
        optimizer.update(module, grads)
        return loss

    @jax.jit
    def expected(params, state):
        loss, grads = jax.value_and_grad(lambda params: jnp.mean((apply(params, XS, lengths=SHORT)[0] - 1) ** 2))(
            params
        )
        updates, state = tx.update(grads, state)
        return loss, optax.apply_updates(params, updates), state

    losses = []
    for _ in range(5):
        loss, params, state = expected(params, state)
        losses.append(float(train(module, optimizer)))
        np.testing.assert_allclose(losses[-1], loss, rtol=1e-5)
    assert losses[-1] < losses[0]
    close(module.params, params, atol=1e-5)


def test_an_offset_is_not_learned():
    """Not by weight decay either, which a gradient of 0 does not keep away."""
    params = lstm.init(jax.random.key(0), INPUTS, UNITS, forget_bias=0)
    params = lstm.LSTMParams(params.w_x, params.w_h, params.bias, offset=np.repeat(np.float32([0, 1, 0, 0]), UNITS))
    module = ours.LSTM.from_params(params)
    optimizer = nnx.Optimizer(module, optax.adamw(0.1, weight_decay=0.5), wrt=nnx.Param)

    @nnx.jit
    def train(module, optimizer):
        optimizer.update(module, nnx.grad(lambda module: jnp.sum(module(XS) ** 2))(module))

    train(module, optimizer)
    same(module.params.offset, params.offset)
    assert (np.asarray(module.params.bias) != np.asarray(params.bias)).all()


# What each kind drops in a layer is tested with the functions; here every layer draws, and the LSTM every kind.
DRAWN_BY = {"Bidirectional": "recurrent", "Stack": "outputs", "Stack of two directions": "inputs"}


@pytest.mark.parametrize(
    ("layer", "where"),
    [
        pytest.param(layer, where, marks=[] if DRAWN_BY.get(layer, where) == where else pytest.mark.slow)
        for where in ("inputs", "recurrent", "outputs", "zoneout_h", "recurrent_weights")
        for layer in LAYERS
    ],
    indirect=["layer"],
)
def test_dropout_is_drawn_anew_in_training_alone(layer, where):
    make, apply = layer
    module = make(dropout=Dropout(**{where: 0.5}))
    first, second = module(XS), module(XS)
    assert not np.array_equal(first, second)
    expected, _ = apply(module.params, XS, dropout=Dropout(**{where: 0.5}), deterministic=True)
    module.eval()
    same(module(XS), module(XS))
    same(module(XS), expected)
    module.train()
    same(module(XS, deterministic=True), expected)
    assert not np.array_equal(module(XS), expected)
    again = make(dropout=Dropout(**{where: 0.5}))
    same((again(XS), again(XS)), (first, second))


def test_dropout_with_given_keys():
    dropout = Dropout(inputs=0.5)
    module, key = ours.LSTM(INPUTS, UNITS, dropout=dropout, rngs=nnx.Rngs(0)), jax.random.key(7)
    expected, _ = lstm.apply(module.params, XS, dropout=dropout, key=key)
    same(module(XS, rngs=key), expected)
    expected, _ = lstm.apply(module.params, XS, dropout=dropout, key=nnx.Rngs(dropout=3).dropout())
    same(module(XS, rngs=nnx.Rngs(dropout=3)), expected)
    same(module(XS, rngs=nnx.Rngs(dropout=3).dropout), expected)
    same(
        ours.LSTM.from_params(module.params, dropout=dropout, rngs=nnx.Rngs(dropout=3).fork())(XS, rngs=key),
        module(XS, rngs=key),
    )
    run = nnx.jit(lambda module: module(XS))
    assert not np.array_equal(run(module), run(module))
    assert nnx.view(module, deterministic=True).deterministic
    assert not module.deterministic


# nnx: against Flax's own


@covering.parametrize(
    {
        "order": [{}, {"reverse": True, "keep_order": True}, {"reverse": True, "keep_order": None}],
        "time_major": [False, True],
        "cell": [nnx.LSTMCell, nnx.OptimizedLSTMCell],
    }
)
def test_lstm_is_called_as_nnx_rnn(cell, time_major, order):
    theirs = nnx.RNN(cell(INPUTS, UNITS, rngs=nnx.Rngs(0)))
    mine = ours.LSTM.from_params(from_flax(theirs))
    xs, mask = (XS.swapaxes(0, 1), MASK.T) if time_major else (XS, MASK)
    how = {"initial_carry": (C, H), "seq_lengths": LENGTHS, "return_carry": True, "time_major": time_major, **order}
    (expected_carry, expected), (carry, ys) = theirs(xs, **how), mine(xs, **how)
    close(carry, expected_carry)
    close(ys, np.where(mask[..., None], expected, 0))
    close(mine(XS, **order), theirs(XS, **order))


def test_the_arguments_of_nnx_rnn_are_defaults(layer):
    """In the constructor, and in `from_params`; a call has the last word, and None leaves it to the constructor."""
    make, apply = layer
    told = {"return_carry": True, "time_major": True, "reverse": True, "keep_order": True}
    ran = {"implementation": "scan", "unroll": 2, "checkpoint": 2}
    module, xs = make(**told, **ran), XS.swapaxes(0, 1)
    expected = module(xs, **told)
    ys, _ = apply(module.params, XS, reverse=True, **ran)
    same(expected[1], ys.swapaxes(0, 1))
    merge = {"merge": module.merge} if hasattr(module, "merge") else {}
    for other in (module, type(module).from_params(module.params, **told, **ran, **merge)):
        same(other(xs), expected)
        same(other(xs, **dict.fromkeys(told)), expected)
        same(other(xs, return_carry=False), expected[1])
        same(other(XS, **dict.fromkeys(told, False)), make()(XS, reverse=False))


@pytest.mark.parametrize("dropout", [None, Dropout(inputs=0.5)])
def test_halves_of_nnx_bidirectional(dropout):
    cells = [nnx.LSTMCell(INPUTS, UNITS, rngs=nnx.Rngs(seed)) for seed in range(2)]
    theirs = nnx.Bidirectional(*map(nnx.RNN, cells))
    halves = [ours.LSTM.from_params(from_flax(cell), dropout=dropout, rngs=nnx.Rngs(9)) for cell in cells]
    mine = nnx.Bidirectional(*halves)
    drawn = np.asarray(mine(XS))
    mine.eval()
    how = {"seq_lengths": LENGTHS, "return_carry": True}
    (carry, ys), (expected_carry, expected) = mine(XS, **how), theirs(XS, **how)
    close(carry, expected_carry)
    close(ys, valid(expected))
    close(ours.Bidirectional.from_params(from_flax(theirs))(XS, **how), (carry, ys))
    if dropout is not None:
        key = nnx.Rngs(9).dropout.fork()()
        expected, _ = lstm.apply(halves[0].params, XS, dropout=dropout, key=key)
        same(drawn[..., :UNITS], expected)


# linen


@pytest.mark.parametrize("theirs", [nn.LSTMCell, nn.OptimizedLSTMCell])
def test_linen_draws_the_parameters_of_linen(theirs):
    """The same tree, and with the same forget bias the same numbers from the same key."""
    key = jax.random.key(0)
    expected = nn.RNN(theirs(UNITS)).init(key, XS)
    same(ours.RNN(ours.LSTMCell(UNITS, forget_bias=0)).init(key, XS), expected)
    same(nn.RNN(ours.LSTMCell(UNITS, forget_bias=0)).init(key, XS), expected)
    bias = ours.RNN(ours.LSTMCell(UNITS)).init(key, XS)["params"]["cell"]["hf"]["bias"]
    same(bias, jnp.ones(UNITS))


def test_linen_names_within_a_module():
    class Model(nn.Module):
        rnn: type
        cell: type

        @nn.compact
        def __call__(self, xs):
            return self.rnn(self.cell(UNITS))(self.rnn(self.cell(UNITS), name="first")(xs))

    key = jax.random.key(0)
    theirs, mine = Model(nn.RNN, nn.LSTMCell), Model(ours.RNN, ours.LSTMCell)
    variables = spread(6, jax.eval_shape(theirs.init, key, XS))
    assert jax.tree.structure(variables) == jax.tree.structure(jax.eval_shape(mine.init, key, XS))
    close(mine.apply(variables, XS), theirs.apply(variables, XS))


def test_linen_names_of_the_optimised_cell():
    """Linen names a cell after its class where it is made in a compact method."""

    class Model(nn.Module):
        ours: bool

        @nn.compact
        def __call__(self, xs):
            if self.ours:
                return ours.RNN(ours.LSTMCell(UNITS, name="OptimizedLSTMCell_0"))(xs)
            return nn.RNN(nn.OptimizedLSTMCell(UNITS))(xs)

    variables = spread(6, jax.eval_shape(Model(False).init, jax.random.key(0), XS))
    close(Model(True).apply(variables, XS), Model(False).apply(variables, XS))


def outputs_and_gradients(run, *arguments):
    def total(*arguments):
        out = run(*arguments)
        weights = [np.sin(np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape) for leaf in jax.tree.leaves(out)]
        return sum(jnp.sum(w * leaf) for w, leaf in zip(weights, jax.tree.leaves(out), strict=True)), out

    return jax.jit(jax.grad(total, tuple(range(len(arguments))), has_aux=True))(*arguments)


ORDERS = {"forwards": {}, "kept": {"reverse": True, "keep_order": True}, "as read": {"reverse": True}}


@functools.cache
def of_linen(order, time_major, made_by=nn.RNN, cell=nn.OptimizedLSTMCell):
    """Outputs, carries and gradients, of the same variables each time."""
    module = made_by(cell(UNITS))
    variables = spread(2, jax.eval_shape(nn.RNN(nn.OptimizedLSTMCell(UNITS)).init, jax.random.key(0), XS))
    xs, mask = (XS.swapaxes(0, 1), MASK.T) if time_major else (XS, MASK)
    how = {"seq_lengths": LENGTHS, "return_carry": True, "time_major": time_major, **ORDERS[order]}

    def run(variables, xs, carry):
        carry, ys = module.apply(variables, xs, initial_carry=carry, **how)
        return carry, jnp.where(mask[..., None], ys, 0)

    return outputs_and_gradients(run, variables, xs, (C, H))


@covering.parametrize({"order": list(ORDERS), "time_major": [False, True], "made_by": [ours.RNN, nn.RNN]})
def test_linen_against_linen(made_by, order, time_major):
    """The cell in either RNN: outputs, carries and gradients."""
    close(of_linen(order, time_major, made_by, ours.LSTMCell), of_linen(order, time_major))


def test_the_attributes_of_rnn_are_defaults():
    cell, key = ours.LSTMCell(UNITS), jax.random.key(0)
    variables = ours.RNN(cell).init(key, XS)
    set_, told = (
        ours.RNN(cell, return_carry=True, reverse=True, keep_order=True, time_major=True, unroll=2, checkpoint=2),
        {"return_carry": True, "reverse": True, "keep_order": True, "time_major": True},
    )
    close(set_.apply(variables, XS), ours.RNN(cell).apply(variables, XS, **told))
    same(set_.apply(variables, XS, return_carry=False), set_.apply(variables, XS)[1])


def test_linen_bidirectional():
    theirs = nn.Bidirectional(nn.RNN(nn.LSTMCell(UNITS)), nn.RNN(nn.LSTMCell(UNITS)))
    mine = nn.Bidirectional(ours.RNN(ours.LSTMCell(UNITS)), ours.RNN(ours.LSTMCell(UNITS)))
    shapes, found = (jax.eval_shape(module.init, jax.random.key(0), XS) for module in (theirs, mine))
    variables = spread(3, shapes)
    assert jax.tree.structure(found) == jax.tree.structure(variables)
    how = {"seq_lengths": LENGTHS, "return_carry": True}
    (carry, ys), (expected_carry, expected) = (module.apply(variables, XS, **how) for module in (mine, theirs))
    close(carry, expected_carry)
    close(ys, valid(expected))
    short = mine.apply(
        variables, np.where(np.arange(TIME)[:, None] < SHORT[:, None, None], XS, np.nan), seq_lengths=SHORT
    )
    same(short, bidirectional.apply(from_flax(variables), XS, lengths=SHORT)[0])


@pytest.mark.parametrize(
    "how", [{"lengths": SHORT, "resets": RESETS}, {"seq_lengths": SHORT, "return_sequences": False}]
)
def test_linen_rnn_is_the_function(how):
    options = LSTMOptions(recurrent_activation="hard_sigmoid", cell_clip=0.2)
    rnn = ours.RNN(ours.LSTMCell(UNITS, options=options), return_carry=True, implementation="scan")
    params = spread(4, lstm.init(jax.random.key(0), INPUTS, UNITS))
    variables = {"params": {"cell": to_flax(params)}}
    ys, state = lstm.apply(
        params, XS, options=options, implementation="scan", **{key.removeprefix("seq_"): how[key] for key in how}
    )
    same(rnn.apply(variables, XS, **how), ((state.c, state.h), ys))
    moved = {"time_major": True, "resets": RESETS.T, "lengths": SHORT}
    ys, _ = lstm.apply(params, XS, options=options, lengths=SHORT, resets=RESETS, implementation="scan")
    same(rnn.apply(variables, XS.swapaxes(0, 1), **moved)[1], ys.swapaxes(0, 1))


def test_linen_order_of_reading():
    rnn = ours.RNN(ours.LSTMCell(UNITS), reverse=True)
    variables = spread(5, jax.eval_shape(rnn.init, jax.random.key(0), XS))

    @jax.jit
    def run(variables, lengths):
        return rnn.apply(variables, XS, lengths=lengths, keep_order=True), rnn.apply(variables, XS, lengths=lengths)

    kept, turned = run(variables, SHORT)
    same(turned, flipped(kept, SHORT))
    same(run(variables, np.array([9, 6, 2, -1])), run(variables, np.array([6, 6, 2, 0])))
    none = rnn.apply(variables, XS[:, :0], lengths=np.zeros(BATCH, int))
    assert none.shape == (BATCH, 0, UNITS)
    with jax.numpy_rank_promotion("raise"):
        jax.eval_shape(lambda: rnn.apply(variables, XS, lengths=SHORT))


@pytest.mark.parametrize("batch", [(), (2, 2), (0,)])
def test_any_batch_axes(batch):
    xs = np.resize(XS, (*batch, TIME, INPUTS))
    lengths = np.full(batch, 4)
    rnn, module = ours.RNN(ours.LSTMCell(UNITS), reverse=True), ours.LSTM(INPUTS, UNITS, rngs=nnx.Rngs(0))

    @nnx.jit
    def run(module, key, xs, lengths):
        variables = rnn.init(key, xs)
        kept, turned = (rnn.apply(variables, xs, lengths=lengths, keep_order=keep) for keep in (True, False))
        return kept, turned, module(xs, lengths=lengths)

    kept, turned, ys = map(np.asarray, run(module, jax.random.key(0), xs, lengths))
    same(turned[..., :4, :], kept[..., 3::-1, :])
    assert ys.shape == (*batch, TIME, UNITS)


def test_linen_dropout():
    rnn = ours.RNN(ours.LSTMCell(UNITS), dropout=Dropout(inputs=0.5))
    variables = rnn.init(jax.random.key(0), XS, deterministic=True)
    run = lambda seed: rnn.apply(variables, XS, deterministic=False, rngs={"dropout": jax.random.key(seed)})  # noqa: E731
    same(run(0), run(0))
    assert not np.array_equal(run(0), run(1))
    same(rnn.apply(variables, XS, deterministic=True), ours.RNN(ours.LSTMCell(UNITS)).apply(variables, XS))
    with pytest.raises(InvalidRngError, match="dropout"):
        rnn.apply(variables, XS, deterministic=False)
    with pytest.raises(ValueError, match="deterministic"):
        rnn.apply(variables, XS)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_linen_in_short_dtypes(dtype):
    """Parameters are drawn, which Flax's own cells cannot in bfloat16; h is short and c is not."""
    cell, short = (
        ours.LSTMCell(UNITS, param_dtype=dtype),
        ours.LSTMCell(UNITS, options=LSTMOptions(precision=jnp.dtype(dtype).name)),
    )

    @jax.jit
    def run(key, xs):
        variables, full = nn.RNN(cell).init(key, xs.astype(dtype)), nn.RNN(ours.LSTMCell(UNITS)).init(key, xs)
        ran = [rnn.apply(variables, xs.astype(dtype), return_carry=True) for rnn in (nn.RNN(cell), ours.RNN(cell))]
        return variables, full, ran, [rnn.apply(full, xs) for rnn in (nn.RNN(short), ours.RNN(short))]

    variables, full, ran, in_short = run(jax.random.key(0), XS)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(dtype)}
    same(variables, jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), full))
    for (c, h), ys in ran:
        assert (c.dtype, h.dtype, ys.dtype) == (jnp.float32, dtype, dtype)
    same(*in_short)


SHORT_CELLS = {
    "params and precision": {"param_dtype": jnp.bfloat16, "options": LSTMOptions(precision="bfloat16")},
    "precision": {"options": LSTMOptions(precision="bfloat16")},
    "params": {"param_dtype": jnp.bfloat16},
    "neither": {},
}
OF_RNN = [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32, jnp.uint8, jnp.bool_]


@pytest.mark.parametrize("how", SHORT_CELLS.values(), ids=SHORT_CELLS)
def test_nn_rnn_carries_what_the_cell_makes(how):
    """Whatever the dtype of the inputs; and a carry of one's own in its dtypes."""
    rnn = nn.RNN(ours.LSTMCell(UNITS, **how))

    def run(key, xs, carry):
        variables = rnn.init(key, xs)
        return rnn.apply(variables, xs, return_carry=True), rnn.apply(
            variables, xs, initial_carry=carry, return_carry=True
        )

    for dtype in OF_RNN:
        carry = tuple(jax.ShapeDtypeStruct((BATCH, UNITS), how.get("param_dtype", jnp.float32)) for _ in "ch")
        xs = jax.ShapeDtypeStruct((BATCH, TIME, INPUTS), dtype)
        (made, ys), (kept, _) = jax.eval_shape(run, jax.random.key(0), xs, carry)
        assert jnp.issubdtype(ys.dtype, jnp.floating)
        assert [leaf.dtype for leaf in kept] == [leaf.dtype for leaf in carry]
        assert made[0].dtype == jnp.float32


def test_an_integer_is_the_size_of_a_batch():
    same(ours.LSTMCell(UNITS).initialize_carry(None, BATCH), ours.LSTMCell(UNITS).initialize_carry(None, (BATCH, 2)))


WHOLE = np.random.default_rng(3).integers(-2, 3, (BATCH, TIME, INPUTS))


@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "bool"])
def test_integers_are_promoted_to_the_dtype_of_params(dtype, param_dtype):
    xs = WHOLE.astype(dtype)
    for make, _ in LAYERS.values():
        module = make(param_dtype=param_dtype, rngs=nnx.Rngs(0))
        shape = jax.eval_shape(module, xs)
        assert jax.tree.leaves(shape)[0].dtype == param_dtype
    module = lstm_module(param_dtype=param_dtype)
    same(module(xs), module(jnp.asarray(xs, param_dtype)))
    for rnn in (ours.RNN(ours.LSTMCell(UNITS, param_dtype=param_dtype)), nn.RNN(ours.LSTMCell(UNITS))):
        variables = rnn.init(jax.random.key(0), xs)
        same(rnn.apply(variables, xs), rnn.apply(variables, xs.astype(jnp.dtype(param_dtype))))
    carry = (np.ones((BATCH, UNITS), int), np.zeros((BATCH, UNITS), int))
    same(
        module(xs, initial_carry=carry),
        module(xs, initial_carry=[part.astype(jnp.dtype(param_dtype)) for part in carry]),
    )


def test_integers_above_32_bits_are_rounded_and_do_not_wrap():
    module, xs = lstm_module(), np.full((1, 1, INPUTS), 2**40)
    same(module(xs), module(xs.astype(np.float32)))


def test_emissions_of_integers():
    chain = ours.CRF(tags=INPUTS, rngs=nnx.Rngs(0))
    tags, score = chain.decode(WHOLE)
    same((tags, score), chain.decode(WHOLE.astype(np.float32)))
    assert score.dtype == jnp.float32


def test_linen_partitioned_parameters():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ("rows", None))
    rnn = ours.RNN(ours.LSTMCell(UNITS, kernel_init=init))
    variables = rnn.init(jax.random.key(0), XS)
    assert variables["params"]["cell"]["ii"]["kernel"].names == ("rows", None)
    same(rnn.apply(variables, XS), rnn.apply(nn.unbox(variables), XS))


# What is refused


def lstm_module(**how):
    return ours.LSTM(INPUTS, UNITS, **{"rngs": nnx.Rngs(0)} | how)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lstm_module(dtype=jnp.bfloat16), TypeError, "dtype is two things here: param_dtype="),
        (lambda: lstm_module(rngs=0), TypeError, r"rngs must be Rngs, as nnx.Rngs\(0\) makes it; got int"),
        (lambda: lstm_module(gate_fn=nnx.relu), TypeError, "lstmjax.flax.LSTM takes options=LSTMOptions"),
        (lambda: lstm_module(dropout=0.5), TypeError, "dropout must be Dropout"),
        (lambda: lstm_module(options="relu"), TypeError, "options must be LSTMOptions"),
        (lambda: lstm_module()(XS, lengths=LENGTHS, seq_lengths=LENGTHS), ValueError, "give one of them"),
        (lambda: lstm_module()(XS, seq_lengths=[2**32 + 1, 2]), ValueError, "^seq_lengths must"),
        (lambda: lstm_module()(XS, seq_lengths=LENGTHS * 100), ValueError, "^seq_lengths must lie between 0 and"),
        (lambda: lstm_module()(XS, seq_lengths=np.ones(XS.shape[:2])), TypeError, "^seq_lengths must be integers"),
        (
            lambda: ours.RNN(ours.LSTMCell(3)).init(jax.random.key(0), XS, seq_lengths=LENGTHS - 100),
            ValueError,
            "^seq_lengths must lie between 0 and",
        ),
        (lambda: lstm_module()(XS, initial_carry=LSTMState(H, C)), TypeError, r"initial_carry must be \(c, h\)"),
        (lambda: lstm_module()(XS, initial_carry=(H,)), TypeError, r"initial_carry must be \(c, h\)"),
        (
            lambda: ours.Stack(INPUTS, (UNITS,) * 3, rngs=nnx.Rngs(0))(XS, initial_carry=(C, H)),
            TypeError,
            "a tuple of 3 carries",
        ),
        (lambda: lstm_module()(XS, resets=LENGTHS), TypeError, "resets must be bool"),
        (lambda: lstm_module()(XS[..., :1]), ValueError, "xs must have 2 features"),
        (lambda: lstm_module()(XS, unknown=1), TypeError, "unknown"),
        (lambda: lstm_module(dropout=Dropout(between_layers=0.5))(XS), ValueError, "needs layers"),
        (
            lambda: ours.LSTM.from_params(lstm_module().params, dropout=Dropout(inputs=0.5))(XS),
            ValueError,
            "dropout needs rngs",
        ),
        (
            lambda: ours.LSTM.from_params(stack.init(jax.random.key(0), INPUTS, (UNITS,))),
            TypeError,
            "params must be LSTMParams",
        ),
        (lambda: ours.CRF.from_params(lstm_module().params), TypeError, "as crf.init makes it"),
        (lambda: ours.LSTM.from_params(lstm_module().params, peepholes=True), TypeError, "peepholes"),
        (lambda: ours.RNN(nn.LSTMCell(3)).init(jax.random.key(0), XS), TypeError, "cell must be LSTMCell"),
        (lambda: ours.RNN(ours.LSTMCell(0)).init(jax.random.key(0), XS), ValueError, "features must be"),
        (
            lambda: ours.RNN(ours.LSTMCell(3, forget_bias="1")).init(jax.random.key(0), XS),
            TypeError,
            "forget_bias must be a number",
        ),
        (
            lambda: ours.RNN(ours.LSTMCell(3, param_dtype=int)).init(jax.random.key(0), XS),
            TypeError,
            "param_dtype must be a floating type",
        ),
    ],
)
def test_what_is_refused(untyped, call, error, message):
    with pytest.raises(error, match=message):
        call()
