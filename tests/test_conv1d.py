"""conv1d against a float64 loop, and its part of the contract of time."""

from functools import partial

import covering
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from lstmjax import conv1d, time_distributed
from lstmjax.conv1d import Conv1DParams

KEY = jax.random.key(0)
INPUTS, UNITS = 3, 2

STATIC = ("stride", "dilation", "groups", "causal")
jitted = jax.jit(conv1d.apply, static_argnames=STATIC)
geometries = covering.parametrize(
    {"kernel": [1, 2, 3], "stride": [1, 2, 3], "dilation": [1, 3], "causal": [True, False]}
)


def example(seed, *axes, kernel=3):
    rng = np.random.default_rng(seed)
    shapes = (kernel, INPUTS, UNITS), (UNITS,), (*axes, INPUTS)
    w, bias, xs = (rng.normal(size=shape) for shape in shapes)
    return Conv1DParams(w, bias), xs


def cast(tree, dtype):
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)


def grouped(seed, *axes, groups, bias):
    """Of 4 inputs and 8 units, in single precision, with biases drawn or none."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: conv1d.init(KEY, 4, 8, groups=groups, bias=bias))
    params = jax.tree.map(lambda leaf: np.float32(rng.normal(size=leaf.shape)), shapes)
    return params, np.float32(rng.normal(size=(*axes, 4)))


def steps_read(j, kernel, stride, dilation, causal):
    """The steps that output j reads, first to last, whether or not the sequence has them."""
    outside = (kernel - 1) * dilation
    before = outside if causal else outside // 2
    return [j * stride - before + k * dilation for k in range(kernel)]


def loop(params, xs, stride=1, dilation=1, causal=True, lengths=None, groups=1):
    *batch, time, _ = xs.shape
    kernel, _, units = params.w.shape
    inputs, outputs = xs.shape[-1] // groups, units // groups
    ys = np.zeros((*batch, -(-time // stride), units))
    for row in np.ndindex(*batch):
        length = time if lengths is None else lengths[row]
        for j in range(ys.shape[-2]):
            if j * stride < length:
                ys[row][j] = 0 if params.bias is None else params.bias
                for k, t in enumerate(steps_read(j, kernel, stride, dilation, causal)):
                    for group in range(groups if 0 <= t < length else 0):
                        seen = slice(group * inputs, (group + 1) * inputs)
                        made = slice(group * outputs, (group + 1) * outputs)
                        ys[row][j][made] += xs[row][t][seen] @ params.w[k][:, made]
    return ys


@geometries
def test_equals_the_loop(kernel, stride, dilation, causal):
    params, xs = example(0, 2, 8, kernel=kernel)
    geometry = {"stride": stride, "dilation": dilation, "causal": causal}
    ys = jitted(cast(params, jnp.float32), cast(xs, jnp.float32), **geometry)
    assert ys.dtype == jnp.float32
    np.testing.assert_allclose(ys, loop(params, xs, **geometry), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("groups", "bias"), [(1, False), (2, True), (2, False), (4, False)])
def test_groups_and_no_bias_equal_the_loop(groups, bias):
    """With padding; and the gradients those of XLA's own grouped convolution."""
    params, xs = grouped(17, 2, 8, groups=groups, bias=bias)
    assert params.w.shape == (3, 4 // groups, 8)
    geometry = {"stride": 2, "dilation": 2, "groups": groups}
    lengths = np.array([8, 5])

    def theirs(params, xs):
        ys = jax.lax.conv_general_dilated(
            xs,
            params.w,
            window_strides=(2,),
            padding=[(4, 0)],
            rhs_dilation=(2,),
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=groups,
        )
        return ys + params.bias[None, None] if bias else ys

    @jax.jit
    def run(params, xs, lengths):
        ours = partial(conv1d.apply, **geometry)
        slopes = [
            jax.grad(lambda *arrays, call=call: (call(*arrays) ** 2).sum(), argnums=(0, 1))(params, xs)
            for call in (ours, theirs)
        ]
        return ours(params, xs, lengths=lengths), ours(params, xs), theirs(params, xs), slopes

    padded, ys, expected, slopes = run(params, xs, lengths)
    exact = jax.tree.map(np.float64, (params, xs))
    np.testing.assert_allclose(padded, loop(*exact, **geometry, lengths=lengths), rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(ys, expected, rtol=2e-6, atol=2e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), *slopes)


@pytest.mark.parametrize("causal", [True, False])
def test_equals_the_loop_in_float64(causal, x64):
    params, xs = example(1, 2, 9)
    geometry = {"stride": 2, "dilation": 2, "causal": causal}
    ys = jitted(cast(params, jnp.float64), cast(xs, jnp.float64), **geometry)
    np.testing.assert_allclose(ys, loop(params, xs, **geometry), rtol=1e-12, atol=1e-12)


@geometries
def test_what_an_output_depends_on(kernel, stride, dilation, causal):
    """The Jacobian is zero but at the steps of the equation; causal ones end at t * stride and begin exactly
    one receptive field before."""
    time = 10
    params, xs = cast(example(2, time, kernel=kernel), jnp.float32)
    geometry = {"stride": stride, "dilation": dilation, "causal": causal}
    slopes = jax.jit(jax.jacrev(partial(conv1d.apply, params, **geometry)))(xs)
    depends = np.any(np.asarray(slopes) != 0, axis=(1, 3))
    for j, row in enumerate(depends):
        expected = [t for t in steps_read(j, kernel, stride, dilation, causal) if 0 <= t < time]
        np.testing.assert_array_equal(np.flatnonzero(row), expected)
        if causal:
            now, field = j * stride, conv1d.receptive_field(kernel, (dilation,))
            assert row[now]
            assert not row[now + 1 :].any()
            assert not row[: max(now - field + 1, 0)].any()
            assert now < field - 1 or row[now - field + 1]


def test_the_odd_step_of_a_centred_kernel_goes_to_the_right():
    params = Conv1DParams(np.float32([1, 10, 100, 1000])[:, None, None], np.zeros(1, np.float32))
    ys = jitted(params, np.float32([0, 0, 1, 0, 0])[:, None], causal=False)
    np.testing.assert_array_equal(np.asarray(ys)[:, 0], [1000, 100, 10, 1, 0])


@partial(jax.jit, static_argnames=STATIC)
def differentiated(params, xs, lengths, **geometry):
    def loss(params, xs):
        ys = conv1d.apply(params, xs, lengths=lengths, **geometry)
        return (ys**2).sum(), ys

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, xs)


@settings(max_examples=50)
@given(st.tuples(*[st.integers(0, 6)] * 3), st.integers(1, 2), st.integers(1, 2), st.booleans())
def test_padding_reaches_nothing(lengths, stride, dilation, causal):
    geometry = {"stride": stride, "dilation": dilation, "causal": causal}
    lengths = np.array(lengths)
    params, xs = example(3, 3, 6)
    padding = np.arange(6) >= lengths[:, None]
    xs[padding] = np.nan
    slopes, ys = differentiated(*cast((params, xs), jnp.float32), lengths, **geometry)

    np.testing.assert_allclose(ys, loop(params, xs, **geometry, lengths=lengths), rtol=2e-6, atol=2e-6)
    outputs = -(-lengths // stride)
    np.testing.assert_array_equal(np.asarray(ys)[np.arange(ys.shape[1]) >= outputs[:, None]], 0)

    zeros = np.where(padding[..., None], 0, xs)
    expected, _ = differentiated(*cast((params, zeros), jnp.float32), lengths, **geometry)
    jax.tree.map(np.testing.assert_array_equal, slopes, expected)
    np.testing.assert_array_equal(np.asarray(slopes[1])[padding], 0)


@pytest.mark.parametrize("causal", [True, False])
def test_a_padded_sequence_equals_the_sequence_alone(causal):
    params, xs = cast(example(4, 9), jnp.float32)

    @jax.jit
    def both(params, xs, length):
        call = partial(conv1d.apply, params, stride=2, causal=causal)
        return call(xs, lengths=length), {steps: call(xs[:steps]) for steps in (1, 4, 5)}

    for length in (1, 4, 5):
        padded, alone = jax.tree.map(np.asarray, both(params, xs, length))
        alone = alone[length]
        np.testing.assert_allclose(padded[: len(alone)], alone, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(padded[len(alone) :], 0)


@pytest.mark.parametrize("batch", [(), (2, 3), (2, 0)])
@pytest.mark.parametrize("time", [0, 5])
def test_batch_axes_are_vmap(batch, time):
    params, xs = cast(example(5, *batch, time), jnp.float32)
    lengths = np.arange(np.prod(batch, dtype=int)).reshape(batch) % (time + 1)

    @jax.jit
    def run(params, xs, lengths):
        call = lambda params, xs, lengths: conv1d.apply(params, xs, stride=2, lengths=lengths)  # noqa: E731
        mapped = call
        for _ in batch:
            mapped = jax.vmap(mapped, in_axes=(None, 0, 0))
        slopes = jax.grad(lambda params: conv1d.apply(params, xs, lengths=lengths).sum())(params)
        return call(params, xs, lengths), None if 0 in batch else mapped(params, xs, lengths), slopes

    ys, mapped, slopes = run(params, xs, lengths)
    assert ys.shape == (*batch, -(-time // 2), UNITS)
    if 0 not in batch:
        np.testing.assert_allclose(ys, mapped, rtol=1e-6, atol=1e-6)
    assert np.isfinite(slopes.w).all()
    np.testing.assert_array_equal(slopes.bias, lengths.sum())


def test_stacked_parameters_map():
    models = jax.jit(jax.vmap(lambda key: conv1d.init(key, INPUTS, UNITS)))(jax.random.split(KEY, 4))
    models = jax.tree.map(np.asarray, models)
    _, xs = cast(example(6, 2, 5), jnp.float32)
    ys = jax.jit(jax.vmap(conv1d.apply, in_axes=(0, None)))(models, xs)
    for w, bias, y in zip(models.w, models.bias, np.asarray(ys), strict=True):
        np.testing.assert_allclose(y, jitted(Conv1DParams(w, bias), xs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("dtype", "epsilon"), [(jnp.bfloat16, 2**-8), (jnp.float16, 2**-11)])
def test_half_precision_rounds_once(dtype, epsilon):
    params, xs = cast(example(7, 2, 12), dtype)
    exact = jax.tree.map(np.float64, params)
    ys = jitted(params, xs, dilation=2, lengths=np.array([12, 5]))
    assert ys.dtype == dtype
    expected = loop(exact, np.float64(xs), dilation=2, lengths=np.array([12, 5]))
    np.testing.assert_allclose(np.float64(ys), expected, rtol=1.01 * epsilon, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_sums_in_float32(dtype):
    """5000 products of 1: a sum in bfloat16 stops at 256, one in float16 at 2048."""
    params = Conv1DParams(np.ones((1, 5000, 1), dtype), np.zeros(1, dtype))
    assert np.asarray(jitted(params, np.ones((1, 5000), dtype)))[0, 0] == np.asarray(5000, dtype)
    params = Conv1DParams(np.ones((1, 1, 1), dtype), np.zeros(1, dtype))
    xs = np.ones((5000, 1), dtype)
    slopes = jax.jit(jax.grad(lambda p: conv1d.apply(p, xs).sum(dtype=jnp.float32)))(params)
    assert np.asarray(slopes.w)[0, 0, 0] == np.asarray(slopes.bias)[0] == np.asarray(5000, dtype)


def test_the_dtype_is_the_common_one():
    params, xs = cast(example(8, 5), jnp.float32)
    shape = partial(jax.eval_shape, conv1d.apply)
    assert shape(cast(params, jnp.bfloat16), xs).dtype == jnp.float32
    assert shape(params, xs.astype(jnp.float16)).dtype == jnp.float32
    mixed = Conv1DParams(params.w.astype(jnp.bfloat16), params.bias.astype(jnp.float16))
    assert shape(mixed, xs.astype(jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("causal", [True, False])
def test_derivatives(causal, x64):
    params, xs = cast(example(9, 2, 7), jnp.float64)
    call = partial(conv1d.apply, stride=2, dilation=2, causal=causal, lengths=np.array([7, 4]))
    check_grads(jax.jit(call), (params, xs), order=1, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("nothing_cached")
def test_a_second_call_compiles_nothing():
    compilations = []

    def listen(event, duration, **_):
        del duration
        if "compile" in event:
            compilations.append(event)

    params, xs = cast(example(10, 2, 53), jnp.float32)  # a shape that no other test has compiled
    lengths = jnp.array([5, 2])
    calls = [
        lambda: jitted(params, xs, lengths=lengths, dilation=2),
        lambda: conv1d.apply(params, xs, lengths=lengths, dilation=2),
        lambda: jax.grad(lambda p: conv1d.apply(p, xs, lengths=lengths).sum())(params),
    ]
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for call in calls:
            jax.block_until_ready(call())
            assert compilations
            compilations.clear()
            jax.block_until_ready(call())
            assert not compilations
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.usefixtures("four_devices")
def test_batch_sharded_over_a_mesh(kind):
    params, xs = cast(example(11, 8, 6), jnp.float32)
    lengths = np.array([6, 0, 1, 2, 3, 4, 5, 6], np.int32)

    def loss(params, xs, lengths):
        ys = conv1d.apply(params, xs, dilation=2, lengths=lengths)
        return (ys**2).sum(), ys

    differentiate = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    expected = differentiate(params, xs, lengths)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    with jax.set_mesh(mesh):
        actual = differentiate(params, *jax.device_put((xs, lengths), rows))
    assert actual[0][1].sharding.is_equivalent_to(rows, 3)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), actual, expected)


@pytest.mark.usefixtures("four_devices")
def test_shard_map_over_the_batch():
    params, xs = cast(example(12, 8, 6), jnp.float32)
    lengths = np.array([6, 0, 1, 2, 3, 4, 5, 6], np.int32)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = PartitionSpec("data"), PartitionSpec()

    def call(params, xs, lengths):
        return conv1d.apply(params, xs, dilation=2, lengths=lengths)

    sharded = jax.shard_map(call, mesh=mesh, in_specs=(whole, rows, rows), out_specs=rows)

    @partial(jax.jit, static_argnums=0)
    def values_and_slopes(call, params, xs, lengths):
        def loss(params, xs):
            ys = call(params, xs, lengths)
            return (ys**2).sum(), ys

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, xs)

    actual, expected = (values_and_slopes(f, params, xs, lengths) for f in (sharded, call))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), actual, expected)


def test_time_distributed_over_features_is_a_loop_over_features():
    _, xs = cast(example(15, 2, 5), jnp.float32)
    filters = conv1d.init(KEY, 1, UNITS)
    alone = np.swapaxes(xs, 1, 2)[..., None]
    apply = partial(conv1d.apply, filters)

    @jax.jit
    def several_ways(alone):
        by_loop = jnp.stack([apply(alone[:, f]) for f in range(INPUTS)], axis=1)
        return time_distributed(apply)(alone), by_loop, apply(alone), jax.jacobian(time_distributed(apply))(alone)

    ys, by_loop, whole, slopes = several_ways(alone)
    np.testing.assert_allclose(ys, by_loop, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ys, whole, rtol=1e-6, atol=1e-6)
    sees = np.any(np.asarray(slopes) != 0, axis=(0, 2, 3, 4, 6, 7))
    np.testing.assert_array_equal(sees, np.eye(INPUTS, dtype=bool))


def test_lengths_above_time_count_as_time_under_jit():
    params, xs = cast(example(13, 2, 4), jnp.float32)
    ys = jitted(params, xs, lengths=np.array([9, 4]))
    np.testing.assert_allclose(ys, jitted(params, xs, lengths=np.array([4, 4])), rtol=1e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_a_dilation_beyond_all_steps_needs_no_memory(causal):
    several = [cast(example(16, 4, kernel=kernel), jnp.float32) for kernel in (2, 3, 4)]

    @partial(jax.jit, static_argnums=0)
    def outputs(dilation):
        return [conv1d.apply(params, xs, dilation=dilation, causal=causal) for params, xs in several]

    jax.tree.map(np.testing.assert_array_equal, outputs(2**31 - 1), outputs(8))


def test_init():
    make = partial(conv1d.init, inputs=300, units=200, kernel=5, dtype=jnp.bfloat16)
    params = jax.tree.map(np.asarray, jax.jit(make)(KEY))
    assert params.w.shape == (5, 300, 200)
    assert params.w.dtype == params.bias.dtype == jnp.bfloat16
    bound = np.sqrt(6 / (5 * 300 + 5 * 200))  # Glorot's, over all that an output reads and an input reaches
    assert 0.98 * bound < np.abs(np.float32(params.w)).max() < 1.01 * bound
    np.testing.assert_array_equal(params.bias, 0)


@pytest.mark.parametrize("stride", [1, 2, 3, 7])
def test_output_lengths_are_those_of_the_outputs(stride):
    lengths = np.arange(10, dtype=np.uint8)
    assert conv1d.output_lengths(lengths, stride).tolist() == [len(range(0, length, stride)) for length in range(10)]
    assert conv1d.output_lengths(np.uint8(255), 2) == 128


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), max_size=4),
)
def test_receptive_field_by_walking_back(kernel, layers):
    first = last = 0
    for dilation, stride in reversed(layers):
        first, last = first * stride - (kernel - 1) * dilation, last * stride
    dilations, strides = [d for d, _ in layers], [s for _, s in layers]
    assert conv1d.receptive_field(kernel, dilations, strides) == last - first + 1
    assert conv1d.receptive_field(kernel, dilations) == 1 + (kernel - 1) * sum(dilations)


def test_refusals(untyped):
    params, xs = jax.tree.map(np.float32, example(14, 2, 4))
    with pytest.raises(ValueError, match="kernel must be an integer of at least 1, got 0"):
        conv1d.init(KEY, 3, 2, kernel=0)
    with pytest.raises(ValueError, match=r"w_init must return shape \(3, 3, 2\), which it was called with; got \(2,\)"):
        conv1d.init(KEY, 3, 2, w_init=lambda *_: jnp.zeros(2))
    with pytest.raises(ValueError, match="groups must divide inputs, 3, and units, 2; got 2"):
        conv1d.init(KEY, 3, 2, groups=2)
    with pytest.raises(ValueError, match=r"groups must divide the units of params\.w, 2; got 4"):
        conv1d.apply(params, xs, groups=4)
    with pytest.raises(ValueError, match=r"xs must have 6 features .*second axis, for each of 2 groups; got shape"):
        conv1d.apply(params, xs, groups=2)
    with pytest.raises(TypeError, match="bias must be True or False"):
        conv1d.init(KEY, 3, 2, bias=0)
    with pytest.raises(TypeError, match=r"dtype must be a floating type such as jnp\.float32, got int32"):
        conv1d.init(KEY, 3, 2, dtype=jnp.int32)
    with pytest.raises(TypeError, match=r"params must be Conv1DParams, as conv1d\.init makes it; got ndarray"):
        conv1d.apply(np.ones(3), xs)
    with pytest.raises(ValueError, match=r"params\.w must have axes \[kernel, inputs, units\], got shape \(3, 2\)"):
        conv1d.apply(Conv1DParams(params.w[0], params.bias), xs)
    with pytest.raises(ValueError, match=r"params\.w must have a kernel of at least 1 step; got shape \(0, 3, 2\)"):
        conv1d.apply(Conv1DParams(params.w[:0], params.bias), xs)
    with pytest.raises(ValueError, match=r"params\.bias must have shape \(2,\) \(units, the last axis of params\.w\)"):
        conv1d.apply(Conv1DParams(params.w, np.ones(3, np.float32)), xs)
    with pytest.raises(ValueError, match=r"xs must have 3 features in its last axis, because params\.w has that many"):
        conv1d.apply(params, np.swapaxes(xs, 0, 1)[..., :2])
    with pytest.raises(ValueError, match=r"xs must have axes \[\*batch, time, inputs\], at least 2 of them"):
        conv1d.apply(params, xs[0, 0])
    with pytest.raises(TypeError, match="xs must have a floating dtype, got int32"):
        conv1d.apply(params, xs.astype(np.int32))
    for name in ("stride", "dilation", "groups"):
        with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got 0"):
            conv1d.apply(params, xs, **{name: 0})
    with pytest.raises(TypeError, match="causal must be True or False"):
        conv1d.apply(params, xs, causal="same")
    with pytest.raises(ValueError, match=r"lengths must lie between 0 and 4 .*; got values from 2 to 5"):
        conv1d.apply(params, xs, lengths=np.array([5, 2]))
    with pytest.raises(ValueError, match=r"lengths must have shape \(2,\) \(the batch axes of xs\), got \(3,\)"):
        conv1d.apply(params, xs, lengths=np.array([4, 2, 1]))
    with pytest.raises(TypeError, match="lengths must be integers, got float32"):
        conv1d.output_lengths(np.ones(2, np.float32), 2)
    with pytest.raises(ValueError, match="strides must be 3 numbers, one for each dilation; got"):
        conv1d.receptive_field(3, (1, 2, 4), (1, 2))
    with pytest.raises(ValueError, match="each of dilations must be an integer of at least 1, got 0"):
        conv1d.receptive_field(3, (1, 0))
