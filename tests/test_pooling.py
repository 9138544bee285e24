"""Pooling against NumPy over the valid steps alone."""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from lstmjax import conv1d, pooling

FEATURES, TIME = 3, 6


def windows(window, stride):
    def pool(x):
        rows = [x[t : t + window].max(axis=0) for t in range(0, len(x), stride)]
        return np.array(rows).reshape(-1, x.shape[1])

    return pool


def over_steps(function):
    return lambda x: function(x) if len(x) else np.zeros(x.shape[1])


def over_windows(window, stride):
    return partial(pooling.max_over_windows, window=window, stride=stride), windows(window, stride or window)


POOLS = {
    "global_max": (pooling.global_max, over_steps(lambda x: x.max(axis=0))),
    "global_mean": (pooling.global_mean, over_steps(lambda x: x.mean(axis=0))),
    "last": (pooling.last, over_steps(lambda x: x[-1])),
    "windows": over_windows(2, None),
    "overlapping": over_windows(3, 1),
    "apart": over_windows(2, 3),
}
every_pool = pytest.mark.parametrize("name", POOLS)


def example(seed, *axes):
    return np.random.default_rng(seed).normal(size=(*axes, FEATURES))


def expected_of(name, xs, lengths, steps):
    """[*batch, features], or [*batch, steps, features] with zeros behind the valid ones."""
    ys = np.zeros((*xs.shape[:-2], *steps, FEATURES))
    for row in np.ndindex(xs.shape[:-2]):
        y = POOLS[name][1](xs[row][: lengths[row]])
        ys[row][: len(y)] = y
    return ys


@cache
def differentiated(name):
    def loss(xs, lengths, weights):
        ys = POOLS[name][0](xs, lengths=lengths)
        return (ys * weights).sum(), ys

    return jax.jit(jax.grad(loss, has_aux=True))


@every_pool
@settings(max_examples=25)
@given(st.tuples(*[st.integers(0, TIME)] * 3))
def test_of_the_valid_steps_alone(name, lengths):
    """Values, and slopes by differences: all is linear between ties, and there are none."""
    lengths = np.array(lengths)
    xs = example(0, 3, TIME)
    padding = np.arange(TIME) >= lengths[:, None]
    xs[padding] = np.nan
    steps = jax.eval_shape(POOLS[name][0], jnp.asarray(xs, jnp.float32)).shape[1:-1]
    expected = expected_of(name, xs, lengths, steps)
    weights = np.random.default_rng(1).normal(size=expected.shape)
    slopes, ys = differentiated(name)(jnp.asarray(xs, jnp.float32), lengths, jnp.asarray(weights, jnp.float32))
    np.testing.assert_allclose(ys, expected, rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(slopes[padding], 0)
    for row, t in np.argwhere(~padding):
        for f in range(FEATURES):
            moved = xs.copy()
            moved[row, t, f] += 1e-6
            slope = ((expected_of(name, moved, lengths, steps) - expected) * weights).sum() / 1e-6
            np.testing.assert_allclose(slopes[row, t, f], slope, rtol=1e-5, atol=1e-5)


@every_pool
@pytest.mark.parametrize("batch", [(), (2, 3), (2, 0)])
@pytest.mark.parametrize("time", [0, TIME])
def test_batch_axes_and_time(name, batch, time):
    xs = example(2, *batch, time)
    lengths = np.arange(math.prod(batch)).reshape(batch) % (time + 1)
    pool = mapped = jax.jit(POOLS[name][0])
    ys = pool(jnp.asarray(xs, jnp.float32), lengths=lengths)
    steps = ys.shape[len(batch) : -1]
    np.testing.assert_allclose(ys, expected_of(name, xs, lengths, steps), rtol=2e-6, atol=2e-6)
    whole = pool(jnp.asarray(xs, jnp.float32))
    np.testing.assert_allclose(whole, expected_of(name, xs, np.full(batch, time), steps), rtol=2e-6, atol=2e-6)
    if 0 not in batch:
        for _ in batch:
            mapped = jax.vmap(mapped)
        np.testing.assert_allclose(whole, mapped(jnp.asarray(xs, jnp.float32)), rtol=1e-6)


@pytest.mark.parametrize("window", [1, 2, 3, 9])
@pytest.mark.parametrize("stride", [None, 1, 2, 4])
def test_windows(window, stride):
    pool, expected = over_windows(window, stride)
    for time in (1, 4, 7):
        xs = example(9, time)
        np.testing.assert_allclose(jax.jit(pool)(jnp.asarray(xs, jnp.float32)), expected(xs), rtol=1e-6)


@every_pool
def test_in_float64(name, x64):
    xs, lengths = example(3, 3, TIME), np.array([6, 2, 0])
    ys = POOLS[name][0](jnp.asarray(xs), lengths=lengths)
    assert ys.dtype == jnp.float64
    np.testing.assert_allclose(ys, expected_of(name, xs, lengths, ys.shape[1:-1]), rtol=1e-12, atol=1e-12)
    check_grads(jax.jit(partial(POOLS[name][0], lengths=lengths)), (jnp.asarray(xs),), order=1, rtol=1e-6, atol=1e-6)


@every_pool
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(name, dtype):
    xs, lengths = jnp.asarray(example(4, 3, TIME), dtype), np.array([6, 2, 0])
    ys = POOLS[name][0](xs, lengths=lengths)
    assert ys.dtype == dtype
    expected = expected_of(name, np.float64(xs), lengths, ys.shape[1:-1])
    np.testing.assert_allclose(np.float64(ys), expected, rtol=float(jnp.finfo(dtype).eps), atol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_mean_adds_up_in_float32(dtype):
    assert pooling.global_mean(jnp.full((5000, 1), 100, dtype))[0] == 100


@every_pool
def test_non_finite_values_of_valid_steps_propagate(name):
    xs = np.zeros((2, TIME, FEATURES), np.float32)
    xs[0, 3], xs[1] = np.nan, -np.inf
    ys = np.asarray(POOLS[name][0](jnp.asarray(xs), lengths=np.array([4, 3])))
    assert np.isnan(ys[0]).any()
    assert np.isneginf(ys[1]).any()
    assert not np.isnan(ys[1]).any()


@every_pool
def test_lengths_above_time_count_as_time_under_jit(name):
    xs = jnp.asarray(example(5, 2, 4), jnp.float32)
    ys = jax.jit(partial(POOLS[name][0], xs))(lengths=jnp.array([9, 4]))
    np.testing.assert_array_equal(ys, POOLS[name][0](xs))


@every_pool
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_batch_sharded_over_a_mesh(name, kind):
    xs, lengths = jnp.asarray(example(6, 8, TIME), jnp.float32), jnp.arange(8) % (TIME + 1)

    def loss(xs, lengths):
        ys = POOLS[name][0](xs, lengths=lengths)
        return (ys**2).sum(), ys

    differentiate = jax.jit(jax.grad(loss, has_aux=True))
    expected = differentiate(xs, lengths)
    rows = NamedSharding(jax.make_mesh((4,), ("data",), axis_types=(kind,)), PartitionSpec("data"))
    with jax.set_mesh(rows.mesh):
        slopes, ys = differentiate(*jax.device_put((xs, lengths), rows))
        assert POOLS[name][0](jax.device_put(xs, rows)).shape == ys.shape
    assert ys.sharding.is_equivalent_to(rows, ys.ndim)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), (slopes, ys), expected)


def test_shard_map_over_the_batch():
    xs, lengths = jnp.asarray(example(7, 8, TIME), jnp.float32), jnp.arange(8) % (TIME + 1)
    rows = PartitionSpec("data")
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))

    def pools(xs, lengths):
        return [pool(xs, lengths=lengths) for pool, _ in POOLS.values()]

    sharded = jax.jit(jax.shard_map(pools, mesh=mesh, in_specs=rows, out_specs=rows))
    jax.tree.map(np.testing.assert_array_equal, sharded(xs, lengths), pools(xs, lengths))


def test_windows_over_a_strided_convolution():
    """Lengths through two layers that shorten time."""
    params = conv1d.init(jax.random.key(0), FEATURES, 2)
    xs, lengths = jnp.asarray(example(8, 3, 11), jnp.float32), jnp.array([11, 6, 0])
    ys = conv1d.apply(params, xs, stride=2, lengths=lengths)
    pooled = pooling.max_over_windows(ys, 3, stride=2, lengths=conv1d.output_lengths(lengths, 2))
    for x, length, y in zip(xs, lengths, pooled, strict=True):
        alone = pooling.max_over_windows(conv1d.apply(params, x[:length], stride=2), 3, stride=2)
        assert len(alone) == conv1d.output_lengths(length, 4)
        np.testing.assert_allclose(y[: len(alone)], alone, rtol=1e-6)
        np.testing.assert_array_equal(y[len(alone) :], 0)


@pytest.mark.parametrize("pool", [pooling.global_max, partial(pooling.max_over_windows, window=2)])
def test_a_shared_maximum_shares_its_gradient(pool):
    slopes = jax.grad(lambda xs: pool(xs).sum())(jnp.ones((2, 1)))
    np.testing.assert_array_equal(slopes, [[0.5], [0.5]])


def test_a_second_call_compiles_nothing():
    compilations = []

    def listen(event, duration, **_):
        del duration
        if "compile" in event:
            compilations.append(event)

    xs, lengths = jnp.ones((2, TIME, FEATURES)), jnp.array([5, 2])
    jitted = jax.jit(lambda xs, lengths: [pool(xs, lengths=lengths) for pool, _ in POOLS.values()])
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.block_until_ready(jitted(xs, lengths))
        assert compilations
        compilations.clear()
        jax.block_until_ready(jitted(xs, lengths))
        assert not compilations
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_a_window_beyond_all_steps_needs_no_memory():
    xs = jax.random.normal(jax.random.key(0), (2, 5, 3))
    for stride in (1, 2, None):
        ys = pooling.max_over_windows(xs, 2**31 - 1, stride=stride)
        np.testing.assert_array_equal(ys, pooling.max_over_windows(xs, 6, stride=stride))


def test_8_bits_have_no_infinity_and_are_refused(untyped):
    with pytest.raises(TypeError, match="xs must have a dtype of at least 16 bits, got float8_e4m3fn"):
        pooling.global_max(jnp.ones((2, 3), jnp.float8_e4m3fn))


def test_refusals(untyped):
    xs = jnp.ones((2, TIME, FEATURES))
    for name in ("window", "stride"):
        with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got 0"):
            pooling.max_over_windows(xs, **{"window": 2, name: 0})
    for pool in (pooling.global_max, pooling.global_mean, pooling.last, partial(pooling.max_over_windows, window=2)):
        with pytest.raises(ValueError, match=r"xs must have axes \[\*batch, time, features\], at least 2 of them; got"):
            pool(jnp.ones(3))
        with pytest.raises(TypeError, match="xs must have a floating dtype, got int32"):
            pool(xs.astype(int))
        with pytest.raises(ValueError, match=r"lengths must lie between 0 and 6 .*; got values from 1 to 7"):
            pool(xs, lengths=np.array([7, 1]))
        with pytest.raises(ValueError, match=r"lengths must have shape \(2,\) \(the batch axes of xs\), got \(\)"):
            pool(xs, lengths=3)
