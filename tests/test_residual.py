"""Residual stacks against a float64 loop, and their part of the contract of time."""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.nn import initializers
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from lstmjax import conv1d, residual

KEY = jax.random.key(0)
UNITS, STRIDES = (3, 4, 4), (1, 2, 1)  # from 3 inputs: only the second block's shortcut has weights

ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


def example(seed, *axes, units=UNITS, strides=STRIDES, kernel=2, dtype=jnp.float32):
    normal = initializers.normal(0.7)
    params = residual.init(jax.random.key(seed), 3, units, kernel=kernel, strides=strides, w_init=normal, dtype=dtype)
    params = jax.tree.map(lambda leaf: leaf + jnp.asarray(0.1, dtype), params)  # biases too
    return params, jax.random.normal(jax.random.key(seed + 1), (*axes, 3), dtype)


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
    for x, y in zip(np.float64(xs), ys, strict=True):
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
    for x, y, length in zip(xs, ys, lengths, strict=True):
        expected = loop(params, np.float64(x[:length]), (1, 2, 4), activation=activation)
        np.testing.assert_allclose(y[: len(expected)], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(y[len(expected) :], 0)
    zeros, _ = differentiated(activation)(params, np.where(padding[..., None], 0, xs), lengths)
    jax.tree.map(np.testing.assert_array_equal, slopes, zeros)
    np.testing.assert_array_equal(slopes[1][padding], 0)


def test_dropout_takes_whole_units_of_a_sequence():
    """One block whose convolutions are the identity shows its masks; the loop with the same masks gives the rest."""
    units, time, rate = 64, 6, 0.25
    one = conv1d.Conv1DParams(jnp.eye(units)[None], jnp.zeros(units))
    params = (residual.ResidualParams(one, one),)
    xs = jnp.ones((50, time, units))
    ys = residual.apply(params, xs, dropout=rate, key=KEY)
    assert (ys == ys[:, :1]).all()
    factors = np.asarray(ys[:, 0] - 1)  # 0, or both kept
    assert set(np.unique(factors.round(5))) == {0, np.float32(round((1 - rate) ** -2, 5))}
    assert abs((factors > 0).mean() - (1 - rate) ** 2) < 0.03
    assert abs(factors.mean() - 1) < 0.06
    assert len(np.unique(factors > 0, axis=0)) == 50
    np.testing.assert_array_equal(ys, residual.apply(params, xs, dropout=rate, key=KEY))
    assert (ys != residual.apply(params, xs, dropout=rate, key=jax.random.key(1))).any()


def test_elementwise_dropout_draws_anew_at_each_step():
    units, time, rate = 64, 6, 0.25
    one = conv1d.Conv1DParams(jnp.eye(units)[None], jnp.zeros(units))
    xs = jnp.ones((50, time, units))
    call = partial(residual.apply, (residual.ResidualParams(one, one),), xs, dropout=rate, dropout_kind="elementwise")
    factors = np.asarray(call(key=KEY) - 1)  # 0, or both kept
    assert set(np.unique(factors.round(5))) == {0, np.float32(round((1 - rate) ** -2, 5))}
    kept = factors > 0
    assert abs(kept.mean() - (1 - rate) ** 2) < 0.01
    assert len(np.unique(kept.reshape(-1, units), axis=0)) == 50 * time
    np.testing.assert_array_equal(call(key=KEY), factors + 1)
    assert (call(key=jax.random.key(1)) - 1 != factors).any()


def test_dropout_draws_anew_behind_every_convolution():
    """A second convolution that gives 1 whatever it reads shows its own mask, the identity the product of both."""
    eye = jnp.eye(32)
    copy, zero, one = (
        conv1d.Conv1DParams(w[None], jnp.full(32, bias)) for w, bias in ((eye, 0.0), (0 * eye, 0.0), (0 * eye, 1.0))
    )
    idle = residual.ResidualParams(zero, zero)

    def seen(first, second, block):
        params = [idle, idle]
        params[block] = residual.ResidualParams(first, second)
        return np.asarray(residual.apply(tuple(params), jnp.ones((1, 32)), dropout=0.5, key=KEY)[0] - 1)

    seconds = [seen(zero, one, block) for block in (0, 1)]
    products = [seen(copy, copy, block) for block in (0, 1)]
    for second, product in zip(seconds, products, strict=True):
        assert set(second) == {0, 2}
        assert set(product[second == 2]) == {0, 4}
        assert set(product[second == 0]) == {0}
    assert (seconds[0] != seconds[1]).any()
    seen_in_both = (seconds[0] == 2) & (seconds[1] == 2)
    assert (products[0] != products[1])[seen_in_both].any()


def test_no_dropout_without_a_key_or_a_rate():
    params, xs = example(5, 2, 9)
    expected = residual.apply(params, xs, strides=STRIDES)
    np.testing.assert_array_equal(residual.apply(params, xs, strides=STRIDES, dropout=0.5), expected)
    np.testing.assert_array_equal(residual.apply(params, xs, strides=STRIDES, key=KEY), expected)


@pytest.mark.parametrize("kind", residual.DROPOUT_KINDS)
def test_dropout_with_padding(kind):
    params, xs = example(6, 2, 8)
    lengths = np.array([8, 3])
    call = jax.jit(partial(residual.apply, params, strides=STRIDES, dropout=0.3, dropout_kind=kind, key=KEY))
    ys = call(jnp.where(np.arange(8)[:, None] >= lengths[:, None, None], jnp.nan, xs), lengths=lengths)
    np.testing.assert_allclose(ys[0], call(xs)[0], rtol=1e-6)
    np.testing.assert_allclose(ys[1, :2], call(xs)[1, :2], rtol=1e-6)
    np.testing.assert_array_equal(ys[1, 2:], 0)


@pytest.mark.parametrize("batch", [(), (2, 3), (0,)])
def test_batch_axes_are_vmap(batch):
    params, xs = example(7, *batch, 9)
    lengths = jnp.arange(np.prod(batch, dtype=int)).reshape(batch)
    call = jax.jit(partial(residual.apply, params, strides=STRIDES))
    mapped = lambda xs, lengths: call(xs, lengths=lengths)  # noqa: E731
    for _ in batch:
        mapped = jax.vmap(mapped)
    ys = call(xs, lengths=lengths)
    assert ys.shape == (*batch, 5, 4)
    if 0 not in batch:
        np.testing.assert_allclose(ys, mapped(xs, lengths), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 2**-7), (jnp.float16, 2**-10)])
def test_half_precision(dtype, tolerance):
    params, xs = example(8, 13, dtype=dtype)
    call = jax.jit(partial(residual.apply, strides=STRIDES, dropout=0.5))
    ys = call(params, xs)
    assert ys.dtype == jax.eval_shape(call, params, xs, key=KEY).dtype == dtype
    expected = loop(params, np.float64(xs), (1, 2, 4))
    error = np.linalg.norm(np.float64(ys) - expected) / np.linalg.norm(expected)
    assert error < tolerance


@pytest.mark.parametrize("kind", residual.DROPOUT_KINDS)
def test_derivatives(kind, x64):
    params, xs = example(9, 2, 5, units=(3, 4), strides=(1, 2), dtype=jnp.float64)
    call = partial(residual.apply, strides=(1, 2), activation="tanh", lengths=np.array([5, 4]), key=KEY)
    call = partial(call, dropout=0.5, dropout_kind=kind)
    check_grads(jax.jit(call), (params, xs), order=1, rtol=1e-6, atol=1e-6)


def test_a_second_call_compiles_nothing():
    compilations = []

    def listen(event, duration, **_):
        del duration
        if "compile" in event:
            compilations.append(event)

    params, xs = example(10, 2, 5)
    lengths = jnp.array([5, 2])
    static = ("dilations", "strides", "activation", "dropout", "dropout_kind")
    jitted = jax.jit(residual.apply, static_argnames=static)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        call = lambda: jitted(params, xs, strides=tuple(STRIDES), dropout=0.5, key=KEY, lengths=lengths)  # noqa: E731
        jax.block_until_ready(call())
        assert compilations
        compilations.clear()
        jax.block_until_ready(call())
        assert not compilations
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("dropout_kind", residual.DROPOUT_KINDS)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_batch_sharded_over_a_mesh(kind, dropout_kind):
    params, xs = example(11, 8, 6)
    lengths = jnp.array([6, 0, 1, 2, 3, 4, 5, 6])

    def loss(params, xs, lengths, key):
        dropped = {"dropout": 0.3, "dropout_kind": dropout_kind, "key": key}
        ys = residual.apply(params, xs, strides=STRIDES, lengths=lengths, **dropped)
        return (ys**2).sum(), ys

    differentiate = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    expected = differentiate(params, xs, lengths, KEY)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    with jax.set_mesh(mesh):
        actual = differentiate(params, *jax.device_put((xs, lengths), rows), KEY)
    assert actual[0][1].sharding.is_equivalent_to(rows, 3)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), actual, expected)


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
    with pytest.raises(ValueError, match=r"dropout must be a rate from 0 to below 1; got 1\.0"):
        residual.apply(params, xs, strides=STRIDES, dropout=1.0)
    with pytest.raises(ValueError, match=r"dropout_kind must be one of .*spatial.*elementwise.*got 'channels'"):
        residual.apply(params, xs, strides=STRIDES, dropout_kind="channels")
    with pytest.raises(ValueError, match=r"lengths must lie between 0 and 4"):
        residual.apply(params, xs, strides=STRIDES, lengths=5)
    with pytest.raises(ValueError, match=r"strides must be 3 integers, one for each block"):
        residual.receptive_field(3, (1, 2, 4), (1, 2))
