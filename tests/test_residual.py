"""Residual stacks against a float64 loop, and their part of the contract of time."""

import dataclasses
import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lstmjax import conv1d, residual

KEY = jax.random.key(0)
UNITS, STRIDES = (3, 4, 4), (1, 2, 1)  # from 3 inputs: only the second block's shortcut has weights

ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


def example(seed, *axes, units=UNITS, strides=STRIDES, kernel=2, dtype=jnp.float32):
    """Parameters in the shapes of `residual.init`, drawn by NumPy, biases too; and inputs."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: residual.init(key, 3, units, kernel=kernel, strides=strides), KEY)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.1, 0.7, leaf.shape), dtype), shapes)
    return params, jnp.asarray(rng.normal(size=(*axes, 3)), dtype)


def convolution(params, xs, stride, dilation):
    kernel, _, units = params.w.shape
    ys = np.zeros((-(-len(xs) // stride), units))
    for j in range(len(ys)):
        ys[j] = params.bias
        for k in range(kernel):
            t = j * stride - (kernel - 1 - k) * dilation
            if t >= 0:
                ys[j] += xs[t] @ params.w[k]
    return ys


def loop(params, xs, dilations, strides=STRIDES, activation="relu"):
    """One sequence without padding."""
    act = ACTIVATIONS[activation]
    params = jax.tree.map(np.float64, params)
    for block, dilation, stride in zip(params, dilations, strides, strict=True):
        f = act(convolution(block.first, xs, stride, dilation))
        f = act(convolution(block.second, f, 1, dilation))
        shortcut = xs if block.shortcut is None else xs[::stride] @ block.shortcut.w[0] + block.shortcut.bias
        xs = act(f + shortcut)
    return xs


@pytest.mark.parametrize(
    ("activation", "dilations"), [("relu", None), ("relu", (3, 2, 1)), ("tanh", None), ("sigmoid", None)]
)
@pytest.mark.parametrize("time", [0, 13])
def test_equals_the_loop(activation, dilations, time):
    params, xs = example(0, 2, time)
    call = partial(residual.apply, strides=STRIDES, activation=activation, dilations=dilations)
    ys = jax.jit(call)(params, xs)
    assert (ys.shape, ys.dtype) == ((2, -(-time // 2), 4), jnp.float32)
    for x, y in zip(np.float64(xs), np.asarray(ys), strict=True):
        expected = loop(params, x, dilations or (1, 2, 4), activation=activation)
        np.testing.assert_allclose(y, expected, rtol=2e-6, atol=2e-6 * max(1, np.abs(expected).max(initial=0)))


def test_equals_the_loop_in_float64(x64):
    params, xs = example(1, 13, dtype=jnp.float64)
    ys = jax.jit(partial(residual.apply, strides=STRIDES))(params, xs)
    np.testing.assert_allclose(ys, loop(params, np.float64(xs), (1, 2, 4)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kernel", "dilations", "strides"),
    [
        (2, (1, 2, 4), (1, 1, 1)),
        (3, (1, 3), (1, 1)),
        (2, (2, 1, 2), (2, 1, 2)),
        (3, (1, 2), (3, 1)),
        (1, (1, 2), (1, 1)),
    ],
)
def test_what_an_output_depends_on(kernel, dilations, strides):
    """The slope of the last output ends at its own step and begins one receptive field before, as far as there is."""
    time = 40
    params, xs = example(2, time, units=(4,) * len(strides), strides=strides, kernel=kernel)
    call = partial(residual.apply, params, dilations=dilations, strides=strides, activation="tanh")
    slopes = np.asarray(jax.jit(jax.jacrev(call))(xs))
    field = residual.receptive_field(kernel, dilations, strides)
    assert field < time - 5
    for j, row in enumerate(np.any(slopes != 0, axis=(1, 3))):
        now = j * math.prod(strides)
        depends = np.flatnonzero(row)
        assert depends[-1] == now
        assert now < field - 1 or depends[0] == now - field + 1


def test_receptive_fields():
    assert residual.receptive_field(3, (1, 2, 4, 8)) == 1 + 2 * 2 * 15
    assert residual.receptive_field(7, (1,)) == conv1d.receptive_field(7, (1, 1)) == 13
    assert residual.receptive_field(2, (1, 1), (2, 1)) == 1 + (1 + 2) + (2 + 2)


def test_a_shortcut_only_where_it_is_needed():
    def shapes(units, **arguments):
        return jax.eval_shape(lambda: residual.init(KEY, 3, units, **arguments))

    params = shapes(UNITS, strides=STRIDES)
    assert [block.shortcut is None for block in params] == [True, False, True]
    assert params[1].shortcut.w.shape == (1, 3, 4)
    assert [block.shortcut is None for block in shapes((3, 3), strides=(2, 1))] == [False, True]
    _, second = shapes([4, 5], kernel=7, dtype=jnp.bfloat16)
    assert (second.first.w.shape, second.second.w.shape) == ((7, 4, 5), (7, 5, 5))
    assert {leaf.dtype for leaf in jax.tree.leaves(second)} == {jnp.dtype(jnp.bfloat16)}


@cache
def differentiated(activation):
    def loss(params, xs, lengths):
        ys = residual.apply(params, xs, strides=STRIDES, activation=activation, lengths=lengths)
        return (ys**2).sum(), ys

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))


@settings(max_examples=25)
@given(st.tuples(*[st.integers(0, 7)] * 2), st.sampled_from(["relu", "sigmoid"]))
def test_padding_reaches_nothing(lengths, activation):
    lengths = np.array(lengths)
    params, xs = example(4, 2, 7)
    xs = np.array(xs)
    padding = np.arange(7) >= lengths[:, None]
    slopes, ys = differentiated(activation)(params, np.where(padding[..., None], np.nan, xs), lengths)
    for x, y, length in zip(xs, np.asarray(ys), lengths, strict=True):
        expected = loop(params, np.float64(x[:length]), (1, 2, 4), activation=activation)
        np.testing.assert_allclose(y[: len(expected)], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(y[len(expected) :], 0)
    zeros, _ = differentiated(activation)(params, np.where(padding[..., None], 0, xs), lengths)
    jax.tree.map(np.testing.assert_array_equal, slopes, zeros)
    np.testing.assert_array_equal(np.asarray(slopes[1])[padding], 0)


def identity(units):
    return conv1d.Conv1DParams(np.eye(units, dtype=np.float32)[None], np.zeros(units, np.float32))


def dropped(units, rate, kind="spatial"):
    """Outputs for ones of a block whose convolutions are the identity, as a function of the key."""
    params = (residual.ResidualParams(identity(units), identity(units)),)
    xs = np.ones((50, 6, units), np.float32)
    run = jax.jit(lambda key: residual.apply(params, xs, dropout=rate, dropout_kind=kind, key=key))
    return lambda key: np.asarray(run(key))


def test_dropout_takes_whole_units_of_a_sequence():
    """One block whose convolutions are the identity shows its masks; the loop with the same masks gives the rest."""
    units, rate = 64, 0.25
    call = dropped(units, rate)
    ys = call(KEY)
    assert (ys == ys[:, :1]).all()
    factors = ys[:, 0] - 1  # 0, or both kept
    assert set(np.unique(factors.round(5))) == {0, np.float32(round((1 - rate) ** -2, 5))}
    assert abs((factors > 0).mean() - (1 - rate) ** 2) < 0.03
    assert abs(factors.mean() - 1) < 0.06
    assert len(np.unique(factors > 0, axis=0)) == 50
    np.testing.assert_array_equal(ys, call(KEY))
    assert (ys != call(jax.random.key(1))).any()


def test_elementwise_dropout_draws_anew_at_each_step():
    units, rate = 64, 0.25
    call = dropped(units, rate, "elementwise")
    factors = call(KEY) - 1  # 0, or both kept
    assert set(np.unique(factors.round(5))) == {0, np.float32(round((1 - rate) ** -2, 5))}
    kept = factors > 0
    assert abs(kept.mean() - (1 - rate) ** 2) < 0.01
    assert len(np.unique(kept.reshape(-1, units), axis=0)) == 50 * 6
    np.testing.assert_array_equal(call(KEY), factors + 1)
    assert (call(jax.random.key(1)) - 1 != factors).any()


def test_dropout_draws_anew_behind_every_convolution():
    """A second convolution that gives 1 whatever it reads shows its own mask, the identity the product of both."""
    copy = identity(32)
    zero, one = (dataclasses.replace(copy, w=0 * copy.w, bias=copy.bias + bias) for bias in np.float32([0, 1]))
    idle = residual.ResidualParams(zero, zero)
    xs = np.ones((1, 32), np.float32)
    run = jax.jit(lambda params: residual.apply(params, xs, dropout=0.5, key=KEY))

    def seen(first, second, block):
        params = [idle, idle]
        params[block] = residual.ResidualParams(first, second)
        return np.asarray(run(tuple(params)))[0] - 1

    seconds = [seen(zero, one, block) for block in (0, 1)]
    products = [seen(copy, copy, block) for block in (0, 1)]
    for second, product in zip(seconds, products, strict=True):
        assert set(second) == {0, 2}
        assert set(product[second == 2]) == {0, 4}
        assert set(product[second == 0]) == {0}
    assert (seconds[0] != seconds[1]).any()
    seen_in_both = (seconds[0] == 2) & (seconds[1] == 2)
    assert (products[0] != products[1])[seen_in_both].any()


def test_no_dropout_where_deterministic_or_without_a_rate():
    params, xs = example(5, 2, 9)

    @jax.jit
    def outputs(params, xs, key):
        call = partial(residual.apply, params, xs, strides=STRIDES)
        return call(), call(dropout=0.5, key=key, deterministic=True), call(key=key)

    expected, deterministic, without_rate = outputs(params, xs, KEY)
    np.testing.assert_array_equal(deterministic, expected)
    np.testing.assert_array_equal(without_rate, expected)


@pytest.mark.parametrize("kind", residual.DROPOUT_KINDS)
def test_dropout_with_padding(kind):
    params, xs = example(6, 2, 8, units=(3, 4), strides=(1, 2))
    lengths = np.array([8, 3])
    run = jax.jit(partial(residual.apply, strides=(1, 2), dropout=0.3, dropout_kind=kind, key=KEY))
    spoilt = np.where(np.arange(8)[:, None] >= lengths[:, None, None], np.nan, xs)
    ys, whole = (np.asarray(run(params, given, lengths=n)) for given, n in ((spoilt, lengths), (xs, np.array([8, 8]))))
    np.testing.assert_allclose(ys[0], whole[0], rtol=1e-6)
    np.testing.assert_allclose(ys[1, :2], whole[1, :2], rtol=1e-6)
    np.testing.assert_array_equal(ys[1, 2:], 0)


@pytest.mark.parametrize("batch", [(), (2, 3), (0,)])
def test_batch_axes_are_vmap(batch):
    params, xs = example(7, *batch, 9)
    lengths = np.arange(np.prod(batch, dtype=int)).reshape(batch)
    call = mapped = lambda xs, lengths: residual.apply(params, xs, strides=STRIDES, lengths=lengths)
    for _ in batch:
        mapped = jax.vmap(mapped)
    ys, expected = jax.jit(lambda *given: (call(*given), None if 0 in batch else mapped(*given)))(xs, lengths)
    assert ys.shape == (*batch, 5, 4)
    if 0 not in batch:
        np.testing.assert_allclose(ys, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 2**-7), (jnp.float16, 2**-10)])
def test_half_precision(dtype, tolerance):
    params, xs = example(8, 13, dtype=dtype)
    call = jax.jit(partial(residual.apply, strides=STRIDES, dropout=0.5))
    ys = jax.jit(partial(residual.apply, strides=STRIDES, dropout=0.5, deterministic=True))(params, xs)
    assert ys.dtype == jax.eval_shape(call, params, xs, key=KEY).dtype == dtype
    expected = loop(params, np.float64(xs), (1, 2, 4))
    error = np.linalg.norm(np.float64(ys) - expected) / np.linalg.norm(expected)
    assert error < tolerance


@pytest.mark.parametrize("strides", [(2,), pytest.param((2, 1), marks=pytest.mark.slow)])
def test_derivatives(strides, x64):
    """Forward and reverse, of both kinds of dropout, against differences; by one block and by two."""
    given = example(9, 2, 5, units=(4,) * len(strides), strides=strides, dtype=jnp.float64)
    chosen = {"strides": strides, "dilations": (2, 1)[: len(strides)], "activation": "tanh", "dropout": 0.5}
    call = partial(residual.apply, lengths=np.array([5, 4]), key=KEY, **chosen)

    def both(params, xs):
        return jnp.stack([call(params, xs, dropout_kind=kind) for kind in residual.DROPOUT_KINDS])

    @jax.jit
    def derivatives(given, along, weights):
        ys, ahead = jax.jvp(both, given, along)
        return ys, ahead, jax.vjp(both, *given)[1](weights)

    rng, step = np.random.default_rng(3), 1e-5
    given = jax.tree.map(np.asarray, given)
    along, weights = jax.tree.map(lambda a: rng.normal(size=a.shape), given), rng.normal(size=(2, 2, 3, 4))
    before, after = (
        derivatives(jax.tree.map(lambda a, b, by=by: a + by * b, given, along), along, weights)[0]
        for by in (-step, step)
    )
    ys, ahead, slopes = jax.tree.map(np.asarray, derivatives(given, along, weights))
    assert ys.dtype == np.float64
    assert (ys[0] != ys[1]).any()
    change = (np.asarray(after) - np.asarray(before)) / (2 * step)
    np.testing.assert_allclose(ahead, change, rtol=1e-6, atol=1e-6)
    total = sum((a * b).sum() for a, b in zip(jax.tree.leaves(along), jax.tree.leaves(slopes), strict=True))
    np.testing.assert_allclose(total, (weights * change).sum(), rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("nothing_cached")
def test_a_second_call_compiles_nothing():
    compilations = []

    def listen(event, duration, **_):
        del duration
        if "compile" in event:
            compilations.append(event)

    params, xs = example(10, 2, 5, units=(4,), strides=(2,))
    lengths = jnp.array([5, 2])
    static = ("dilations", "strides", "activation", "dropout", "dropout_kind")
    jitted = jax.jit(residual.apply, static_argnames=static)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        call = lambda: jitted(params, xs, strides=(2,), dropout=0.5, key=KEY, lengths=lengths)  # noqa: E731
        jax.block_until_ready(call())
        assert compilations
        compilations.clear()
        jax.block_until_ready(call())
        assert not compilations
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@partial(jax.jit, static_argnums=0)
def value_and_slopes(dropout_kind, params, xs, lengths, key):
    def loss(params, xs):
        dropped = {"dropout": 0.3, "dropout_kind": dropout_kind, "key": key}
        ys = residual.apply(params, xs, strides=(2,), lengths=lengths, **dropped)
        return (ys**2).sum(), ys

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, xs)


@pytest.mark.parametrize("dropout_kind", residual.DROPOUT_KINDS)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.usefixtures("four_devices")
def test_batch_sharded_over_a_mesh(kind, dropout_kind):
    params, xs = example(11, 8, 6, units=(4,), strides=(2,))
    lengths = np.array([6, 0, 1, 2, 3, 4, 5, 6], np.int32)
    expected = value_and_slopes(dropout_kind, params, xs, lengths, KEY)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    with jax.set_mesh(mesh):
        actual = value_and_slopes(dropout_kind, params, *jax.device_put((xs, lengths), rows), KEY)
    assert actual[0][1].sharding.is_equivalent_to(rows, 3)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), actual, expected)


@pytest.mark.parametrize("dropout_kind", residual.DROPOUT_KINDS)
def test_a_rate_of_1_leaves_the_shortcuts_alone(dropout_kind):
    params, xs = example(13, 2, 7)

    @jax.jit
    def run(params, xs):
        def loss(params):
            ys = residual.apply(params, xs, strides=STRIDES, dropout=1.0, dropout_kind=dropout_kind, key=KEY)
            return ys.sum(), ys

        return jax.grad(loss, has_aux=True)(params)

    slopes, ys = run(params, xs)
    shortcut = params[1].shortcut
    expected = np.maximum(
        np.maximum(np.float64(xs), 0)[:, ::2] @ np.float64(shortcut.w[0]) + np.float64(shortcut.bias), 0
    )
    np.testing.assert_allclose(ys, expected, rtol=2e-6, atol=2e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def test_without_biases():
    """What biases of zero give, with a tree that has none."""
    make = partial(residual.init, KEY, 3, UNITS, kernel=2, strides=STRIDES)
    params, without = jax.jit(lambda: (make(), make(bias=False)))()
    assert [type(block.second.bias) for block in without] == [type(None)] * 3
    assert without[1].shortcut.bias is None
    _, xs = example(14, 2, 7)
    call = jax.jit(partial(residual.apply, strides=STRIDES))
    np.testing.assert_allclose(call(without, xs), call(params, xs), rtol=1e-6, atol=1e-6)


def test_refusals(untyped):
    params, xs = example(12, 4)
    with pytest.raises(ValueError, match=r"units must be integers, one for each block; got 25"):
        residual.init(KEY, 3, 25)
    with pytest.raises(ValueError, match=r"units must be integers, one for each block; got \(\)"):
        residual.init(KEY, 3, ())
    with pytest.raises(ValueError, match=r"units\[1\] must be an integer of at least 1, got 0"):
        residual.init(KEY, 3, (4, 0))
    with pytest.raises(ValueError, match=r"strides must be 2 integers, one for each block; got \(1,\)"):
        residual.init(KEY, 3, (4, 4), strides=(1,))
    with pytest.raises(TypeError, match=r"params must be tuple, as residual\.init makes it; got ResidualParams"):
        residual.apply(params[0], xs)
    with pytest.raises(TypeError, match=r"params\[0\] must be ResidualParams, as residual\.init makes it; got Conv1D"):
        residual.apply((params[0].first,), xs)
    with pytest.raises(ValueError, match=r"dilations must be 3 integers, one for each block; got 2"):
        residual.apply(params, xs, dilations=2)
    with pytest.raises(ValueError, match=r"params must have at least one block, got \(\)"):
        residual.apply((), xs)
    with pytest.raises(ValueError, match=r"params must have a shortcut in a block from 3 to 3 features with stride 2"):
        residual.apply(params, xs, strides=(2, 1, 1))
    with pytest.raises(
        ValueError, match=r"xs must have 3 features in its last axis, because params\[0\]\.first\.w has"
    ):
        residual.apply(params, xs[:, :2], strides=STRIDES)
    with pytest.raises(ValueError, match=r"activation must be one of 'tanh', .*; got 'gelu'"):
        residual.apply(params, xs, strides=STRIDES, activation="gelu")
    with pytest.raises(ValueError, match=r"dropout must be a rate from 0 to 1; got 1\.1"):
        residual.apply(params, xs, strides=STRIDES, dropout=1.1)
    with pytest.raises(ValueError, match=r"dropout_kind must be one of .*spatial.*elementwise.*got 'channels'"):
        residual.apply(params, xs, strides=STRIDES, dropout_kind="channels")
    with pytest.raises(ValueError, match=r"lengths must lie between 0 and 4"):
        residual.apply(params, xs, strides=STRIDES, lengths=5)
    with pytest.raises(ValueError, match=r"strides must be 3 integers, one for each block"):
        residual.receptive_field(3, (1, 2, 4), (1, 2))
