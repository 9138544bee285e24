"""Pooling against NumPy over the valid steps alone."""

import itertools
import math
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
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


def example(seed, *axes):
    return np.random.default_rng(seed).normal(size=(*axes, FEATURES))


def pooled(xs, lengths=None):
    """What every pool gives; all in one program where this is compiled."""
    return {name: pool(xs, lengths=lengths) for name, (pool, _) in POOLS.items()}


jitted = jax.jit(pooled)


def expected_of(name, xs, lengths, steps):
    """[*batch, features], or [*batch, steps, features] with zeros behind the valid ones."""
    ys = np.zeros((*xs.shape[:-2], *steps, FEATURES))
    for row in np.ndindex(xs.shape[:-2]):
        y = POOLS[name][1](xs[row][: lengths[row]])
        ys[row][: len(y)] = y
    return ys


def assert_expected(ys, xs, lengths, **tolerance):
    """Compare each of `pooled` with its loop."""
    assert set(ys) == set(POOLS)
    for name, y in ys.items():
        steps = y.shape[xs.ndim - 2 : -1]
        expected = expected_of(name, np.float64(xs), lengths, steps)
        np.testing.assert_allclose(np.float64(y), expected, err_msg=name, **tolerance)


def test_of_the_valid_steps_alone():
    """Values, and slopes by differences: all is linear between ties, and there are none."""
    lengths = np.random.default_rng(0).permutation(TIME + 1)
    xs = example(0, len(lengths), TIME)
    padding = np.arange(TIME) >= lengths[:, None]
    xs[padding] = np.nan
    shapes = jax.eval_shape(pooled, xs.astype(np.float32))
    rng = np.random.default_rng(1)
    weights = {name: rng.normal(size=y.shape).astype(np.float32) for name, y in shapes.items()}

    @jax.jit
    def differentiated(xs, lengths):
        ys, pull = jax.vjp(lambda xs: pooled(xs, lengths), xs)
        each = {name: {n: w if n == name else 0 * w for n, w in weights.items()} for name in weights}
        return ys, {name: pull(cotangents)[0] for name, cotangents in each.items()}

    ys, slopes = jax.tree.map(np.asarray, differentiated(xs.astype(np.float32), lengths))
    assert_expected(ys, xs, lengths, rtol=2e-6, atol=2e-6)
    for name, (row, t), f in itertools.product(POOLS, np.argwhere(~padding), range(FEATURES)):
        moved = xs[row].copy()
        moved[t, f] += 1e-6
        steps = ys[name].shape[1:-1]
        one, other = (expected_of(name, x, lengths[row : row + 1], steps) for x in (xs[row : row + 1], moved[None]))
        slope = ((other - one) * weights[name][row]).sum() / 1e-6
        np.testing.assert_allclose(slopes[name][row, t, f], slope, rtol=1e-5, atol=1e-5, err_msg=name)
    for name, slope in slopes.items():
        np.testing.assert_array_equal(slope[padding], 0, err_msg=name)


@pytest.mark.parametrize("batch", [(), (2, 3), (2, 0)])
@pytest.mark.parametrize("time", [0, TIME])
def test_batch_axes_and_time(batch, time):
    xs = example(2, *batch, time).astype(np.float32)
    lengths = np.arange(math.prod(batch)).reshape(batch) % (time + 1)

    @jax.jit
    def run(xs, lengths):
        mapped = pooled
        for _ in batch:
            mapped = jax.vmap(mapped)
        return pooled(xs, lengths), pooled(xs), None if 0 in batch else mapped(xs)

    ys, whole, mapped = run(xs, lengths)
    assert_expected(ys, xs, lengths, rtol=2e-6, atol=2e-6)
    assert_expected(whole, xs, np.full(batch, time), rtol=2e-6, atol=2e-6)
    if 0 not in batch:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), whole, mapped)


def test_windows():
    cases = {str(case): over_windows(*case) for case in itertools.product([1, 2, 3, 9], [None, 1, 2, 4])}
    several = [example(9, time) for time in (1, 4, 7)]
    found = jax.jit(lambda several: {case: [pool(xs) for xs in several] for case, (pool, _) in cases.items()})(
        [xs.astype(np.float32) for xs in several]
    )
    for case, (_, expected) in cases.items():
        for ys, xs in zip(found[case], several, strict=True):
            np.testing.assert_allclose(ys, expected(xs), rtol=1e-6, err_msg=case)


def test_in_float64(x64):
    xs, lengths = example(3, 3, TIME), np.array([6, 2, 0])
    ys = jitted(xs, lengths)
    assert {y.dtype.name for y in ys.values()} == {"float64"}
    assert_expected(ys, xs, lengths, rtol=1e-12, atol=1e-12)
    check_grads(jax.jit(partial(pooled, lengths=lengths)), (xs,), order=1, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype):
    xs, lengths = example(4, 3, TIME).astype(dtype), np.array([6, 2, 0])
    ys = jitted(xs, lengths)
    assert {y.dtype for y in ys.values()} == {jnp.dtype(dtype)}
    assert_expected(ys, xs, lengths, rtol=float(jnp.finfo(dtype).eps), atol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_mean_adds_up_in_float32(dtype):
    assert np.asarray(jax.jit(pooling.global_mean)(np.full((5000, 1), 100, dtype)))[0] == 100


def test_non_finite_values_of_valid_steps_propagate():
    xs = np.zeros((2, TIME, FEATURES), np.float32)
    xs[0, 3], xs[1] = np.nan, -np.inf
    for name, ys in jitted(xs, np.array([4, 3])).items():
        ys = np.asarray(ys)
        assert np.isnan(ys[0]).any(), name
        assert np.isneginf(ys[1]).any(), name
        assert not np.isnan(ys[1]).any(), name


def test_lengths_above_time_count_as_time_under_jit():
    xs = example(5, 2, TIME).astype(np.float32)
    expected = jax.jit(pooled)(xs)
    jax.tree.map(np.testing.assert_array_equal, jitted(xs, np.array([TIME + 5, TIME])), expected)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.usefixtures("four_devices")
def test_batch_sharded_over_a_mesh(kind):
    xs, lengths = example(6, 8, TIME).astype(np.float32), np.arange(8, dtype=np.int32) % (TIME + 1)

    @jax.jit
    def run(xs, lengths):
        slopes = {
            name: jax.grad(lambda xs, pool=pool: (pool(xs, lengths=lengths) ** 2).sum())(xs)
            for name, (pool, _) in POOLS.items()
        }
        return pooled(xs, lengths), slopes, pooled(xs)

    expected = run(xs, lengths)
    rows = NamedSharding(jax.make_mesh((4,), ("data",), axis_types=(kind,)), PartitionSpec("data"))
    with jax.set_mesh(rows.mesh):
        actual = run(*jax.device_put((xs, lengths), rows))
    for name, ys in actual[0].items():
        assert ys.sharding.is_equivalent_to(rows, ys.ndim), name
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), actual, expected)


@pytest.mark.usefixtures("four_devices")
def test_shard_map_over_the_batch():
    xs, lengths = example(7, 8, TIME).astype(np.float32), np.arange(8, dtype=np.int32) % (TIME + 1)
    rows = PartitionSpec("data")
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.jit(jax.shard_map(pooled, mesh=mesh, in_specs=rows, out_specs=rows))
    jax.tree.map(np.testing.assert_array_equal, sharded(xs, lengths), jitted(xs, lengths))


def test_windows_over_a_strided_convolution():
    """Lengths through two layers that shorten time."""
    params = conv1d.init(jax.random.key(0), FEATURES, 2)
    xs, lengths = example(8, 3, 11).astype(np.float32), np.array([11, 6, 0])

    @jax.jit
    def run(xs, lengths):
        def pool(xs, lengths=None, inside=None):
            ys = conv1d.apply(params, xs, stride=2, lengths=lengths)
            return pooling.max_over_windows(ys, 3, stride=2, lengths=inside)

        alone = [pool(x[:length]) for x, length in zip(xs, (11, 6, 0), strict=True)]
        return pool(xs, lengths, conv1d.output_lengths(lengths, 2)), alone, conv1d.output_lengths(lengths, 4)

    pooled, each, counts = jax.tree.map(np.asarray, run(xs, lengths))
    for y, alone, count in zip(pooled, each, counts, strict=True):
        assert len(alone) == count
        np.testing.assert_allclose(y[: len(alone)], alone, rtol=1e-6)
        np.testing.assert_array_equal(y[len(alone) :], 0)


@pytest.mark.parametrize("pool", [pooling.global_max, partial(pooling.max_over_windows, window=2)])
def test_a_shared_maximum_shares_its_gradient(pool):
    slopes = jax.jit(jax.grad(lambda xs: pool(xs).sum()))(np.ones((2, 1), np.float32))
    np.testing.assert_array_equal(slopes, [[0.5], [0.5]])


@pytest.mark.usefixtures("nothing_cached")
def test_a_second_call_compiles_nothing():
    compilations = []

    def listen(event, duration, **_):
        del duration
        if "compile" in event:
            compilations.append(event)

    xs, lengths = example(10, 2, TIME + 1).astype(np.float32), np.array([5, 2])  # a shape of this test alone
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
    xs = example(11, 2, 5).astype(np.float32)

    @partial(jax.jit, static_argnums=0)
    def pools(window):
        return [pooling.max_over_windows(xs, window, stride=stride) for stride in (1, 2, None)]

    jax.tree.map(np.testing.assert_array_equal, pools(2**31 - 1), pools(6))


def test_8_bits_have_no_infinity_and_are_refused(untyped):
    with pytest.raises(TypeError, match="xs must have a dtype of at least 16 bits, got float8_e4m3fn"):
        pooling.global_max(np.ones((2, 3), jnp.float8_e4m3fn))


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


@pytest.mark.parametrize("stride", [None, 1, 3])
def test_operations_do_not_grow_with_the_window_or_time(stride):
    def count(window, time):
        def total(xs, lengths):
            return pooling.max_over_windows(xs, window, stride=stride, lengths=lengths).sum()

        xs, lengths = jax.ShapeDtypeStruct((2, time, 1), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
        return jax.jit(jax.grad(total)).lower(xs, lengths).as_text().count(" = ")

    assert count(7, 30) == count(300, 1000) == count(700, 3000)


@pytest.mark.parametrize("window", [1, 2, 5, 7, 8, 50])
def test_long_windows_share_gradients_as_short_ones(window):
    """Each window gives its whole gradient to the steps that share its maximum, and to no other step."""
    xs = np.random.default_rng(0).integers(0, 4, (2, 40, FEATURES)).astype(np.float32)
    xs[1, 9], lengths = -np.inf, np.array([40, 23])

    @jax.jit
    def run(xs, weights):
        pool = partial(pooling.max_over_windows, window=window, stride=2, lengths=lengths)
        return pool(xs), jax.jacrev(lambda xs: weights * jnp.where(jnp.isinf(pool(xs)), 0, pool(xs)))(xs)

    weights = np.random.default_rng(1).normal(size=(2, 20, FEATURES)).astype(np.float32)
    ys, slopes = map(np.asarray, run(xs, weights))
    for row, start, f in itertools.product(range(2), range(20), range(FEATURES)):
        inside = np.arange(2 * start, min(2 * start + window, lengths[row]))
        expected = xs[row, inside, f].max(initial=-np.inf) if len(inside) else 0
        assert ys[row, start, f] == expected
        shares = slopes[row, start, f].copy()
        top = inside[xs[row, inside, f] == expected]
        whole = weights[row, start, f] if np.isfinite(expected) and len(inside) else 0
        np.testing.assert_allclose(shares[row, top, f].sum(), whole, rtol=1e-6)
        assert (shares[row, top, f] * whole > 0).all() or not whole
        shares[row, top, f] = 0
        assert not shares.any()


def test_windows_of_a_batch_left_open_are_exported():
    pool = partial(pooling.max_over_windows, window=4, stride=3)
    (batch,) = jax.export.symbolic_shape("batch")
    stored = jax.export.export(jax.jit(pool))(jax.ShapeDtypeStruct((batch, 9, 1), jnp.float32)).serialize()
    xs = example(12, 5, 9)[..., :1].astype(np.float32)
    np.testing.assert_array_equal(jax.export.deserialize(bytearray(stored)).call(xs), pool(xs))
