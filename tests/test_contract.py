"""The contract of time, which every implementation keeps: against the float64 loop, and as properties."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import checkify
from jax.sharding import PartitionSpec
from jax.test_util import check_grads

from lstmjax import LSTMParams, LSTMState, lstm

INPUTS, UNITS = 3, 4
BATCHES = [(), (3,), (2, 3), (2, 1, 3)]

every_implementation = pytest.mark.parametrize("implementation", list(lstm.IMPLEMENTATIONS))
long_for_a_kernel = pytest.mark.parametrize(
    "implementation",
    [pytest.param(name, marks=[pytest.mark.slow] * (name == "pallas_tpu")) for name in lstm.IMPLEMENTATIONS],
)


def example(seed, batch, time, *, lengths, resets, dtype=np.float32):
    """Float64 values that `dtype` represents: the arrays of a call, and its integer and bool arguments."""
    rng = np.random.default_rng(seed)

    def draw(*shape, scale=1.0):
        return rng.normal(scale=scale, size=shape).astype(dtype).astype(np.float64)

    arrays = {
        "w_x": draw(INPUTS, 4 * UNITS),
        "w_h": draw(UNITS, 4 * UNITS, scale=0.7),
        "bias": draw(4 * UNITS),
        "xs": draw(*batch, time, INPUTS),
        "h0": draw(*batch, UNITS, scale=0.5),
        "c0": draw(*batch, UNITS),
    }
    masks = {}
    if lengths:
        masks["lengths"] = rng.integers(0, time + 1, batch)
    if resets:
        masks["resets"] = rng.random((*batch, time)) < 0.3
    return arrays, masks


def cast(arrays, dtype):
    return {name: jnp.asarray(array, dtype) for name, array in arrays.items()}


def run(arrays, **arguments):
    params = LSTMParams(arrays["w_x"], arrays["w_h"], arrays["bias"])
    state = LSTMState(h=arrays["h0"], c=arrays["c0"])
    ys, state = lstm.apply(params, arrays["xs"], state, **arguments)
    return ys, state.h, state.c


def weighted(outputs, weights):
    """One number in which every output counts differently."""
    return sum((o * w).sum() for o, w in zip(outputs, weights, strict=True))


def weights_like(outputs, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=np.shape(o)).astype(np.float32) for o in outputs]


def gradients(arrays, weights, **arguments):
    return jax.grad(lambda arrays: weighted(run(arrays, **arguments), weights))(arrays)


def padding(lengths, time):
    return np.arange(time) >= np.asarray(lengths)[..., None]


masks = pytest.mark.parametrize(("lengths", "resets"), [(False, False), (True, False), (False, True), (True, True)])
directions = pytest.mark.parametrize("reverse", [False, True])


@every_implementation
@masks
@directions
@pytest.mark.parametrize("batch", [(), (2, 1, 3)])
def test_values_float32(implementation, lengths, resets, reverse, batch):
    arrays, times = example(0, batch, 9, lengths=lengths, resets=resets)
    expected = reference.apply(**arrays, **times, reverse=reverse)
    actual = run(cast(arrays, jnp.float32), **times, reverse=reverse, implementation=implementation)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, e, rtol=0, atol=2e-6)


@every_implementation
@masks
@directions
def test_values_and_gradients_float64(implementation, lengths, resets, reverse, x64):
    check_values_and_gradients_float64(implementation, 6, lengths, resets, reverse)


def check_values_and_gradients_float64(implementation, time, lengths, resets, reverse):
    arrays, times = example(1, (3,), time, lengths=lengths, resets=resets, dtype=np.float64)
    arguments = {**times, "reverse": reverse}
    expected = reference.apply(**arrays, **arguments)
    actual = run(cast(arrays, jnp.float64), **arguments, implementation=implementation)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == jnp.float64
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-12)

    weights = weights_like(expected)
    expected = reference.gradients(
        lambda *a: weighted(reference.apply(*a, **arguments), weights), list(arrays.values())
    )
    actual = gradients(cast(arrays, jnp.float64), weights, **arguments, implementation=implementation)
    for name, e in zip(arrays, expected, strict=True):
        np.testing.assert_allclose(actual[name], e, rtol=0, atol=1e-12 * np.abs(e).max(initial=1), err_msg=name)


@every_implementation
@masks
@directions
@pytest.mark.parametrize("batch", [(2, 3)])
def test_gradients_float32(implementation, lengths, resets, reverse, batch):
    arrays, times = example(2, batch, 5, lengths=lengths, resets=resets)
    arguments = {**times, "reverse": reverse}
    weights = weights_like(reference.apply(**arrays, **arguments))
    expected = reference.gradients(
        lambda *a: weighted(reference.apply(*a, **arguments), weights), list(arrays.values())
    )
    actual = gradients(cast(arrays, jnp.float32), weights, **arguments, implementation=implementation)
    assert np.abs(expected[0]).max() > 0
    for name, e in zip(arrays, expected, strict=True):
        np.testing.assert_allclose(actual[name], e, rtol=0, atol=1e-5 * np.abs(e).max(), err_msg=name)


@every_implementation
@pytest.mark.parametrize("return_sequences", [False, True])
def test_finite_differences(implementation, return_sequences, x64):
    arrays, times = example(3, (2,), 4, lengths=True, resets=True, dtype=np.float64)
    call = partial(run, **times, return_sequences=return_sequences, implementation=implementation)
    check_grads(call, (cast(arrays, jnp.float64),), order=1, modes=["rev"], atol=1e-7, rtol=1e-7)


@long_for_a_kernel
def test_forward_mode_and_second_order(implementation, x64):
    arrays, times = example(4, (2,), 4, lengths=True, resets=True, dtype=np.float64)
    call = partial(run, **times, implementation=implementation)
    check_grads(call, (cast(arrays, jnp.float64),), order=2, modes=["fwd", "rev"], atol=1e-6, rtol=1e-6)


@long_for_a_kernel
def test_second_order_through_segments(implementation, x64):
    arrays, times = example(4, (2,), 7, lengths=True, resets=True, dtype=np.float64)
    arrays = cast(arrays, jnp.float64)
    weights = weights_like(run(arrays, **times))

    def slopes(arrays, checkpoint):
        return gradients(arrays, weights, **times, implementation=implementation, checkpoint=checkpoint)

    for derivative in (jax.jacfwd, jax.jacrev):
        actual, expected = (derivative(partial(slopes, checkpoint=c))(arrays) for c in (3, False))
        assert np.abs(expected["xs"]["xs"]).max() > 0.1
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), actual, expected)


@every_implementation
def test_gradient_of_gradient(implementation, x64):
    arrays, times = example(4, (2,), 4, lengths=True, resets=True, dtype=np.float64)
    arrays = cast(arrays, jnp.float64)
    weights = weights_like(run(arrays, **times))

    def slope(arrays, implementation):
        return sum(jnp.sum(g**2) for g in gradients(arrays, weights, **times, implementation=implementation).values())

    expected = jax.grad(slope)(arrays, "scan")
    actual = jax.grad(slope)(arrays, implementation)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), actual, expected)


@long_for_a_kernel
@settings(max_examples=20)
@given(data=st.data())
def test_any_lengths_resets_direction_and_batch(implementation, data):
    batch = data.draw(st.sampled_from(BATCHES), label="batch")
    time = data.draw(st.sampled_from([1, 6]), label="time")
    reverse = data.draw(st.booleans(), label="reverse")
    size = int(np.prod(batch))
    lengths = data.draw(st.lists(st.integers(0, time), min_size=size, max_size=size), label="lengths")
    flags = data.draw(st.lists(st.booleans(), min_size=size * time, max_size=size * time), label="resets")
    arrays, _ = example(data.draw(st.integers(0, 99), label="seed"), batch, time, lengths=False, resets=False)
    times = {
        "lengths": np.array(lengths, np.int32).reshape(batch),
        "resets": np.array(flags, bool).reshape(*batch, time),
    }
    expected = reference.apply(**arrays, **times, reverse=reverse)

    poisoned = dict(arrays, xs=np.where(padding(times["lengths"], time)[..., None], np.nan, arrays["xs"]))
    arguments = {**times, "reverse": reverse, "implementation": implementation}
    ys, h, c = run(cast(poisoned, jnp.float32), **arguments)
    for a, e in zip((ys, h, c), expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=2e-6)
    assert not np.asarray(ys)[padding(times["lengths"], time)].any()
    empty = times["lengths"] == 0

    weights = weights_like(expected)
    slopes = gradients(cast(poisoned, jnp.float32), weights, **arguments)
    clean = list(arrays.values())
    expected = reference.gradients(lambda *a: weighted(reference.apply(*a, **times, reverse=reverse), weights), clean)
    for name, e in zip(arrays, expected, strict=True):
        np.testing.assert_allclose(slopes[name], e, rtol=0, atol=1e-5 * np.abs(e).max(), err_msg=name)

    np.testing.assert_array_equal(np.asarray(h)[empty], np.float32(arrays["h0"][empty]))
    np.testing.assert_array_equal(np.asarray(c)[empty], np.float32(arrays["c0"][empty]))


@every_implementation
@directions
@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30])
def test_padding_reaches_no_gradient(implementation, reverse, poison):
    arrays, times = example(5, (2, 4), 6, lengths=True, resets=True)
    padded = padding(times["lengths"], 6)
    assert padded.any()
    arguments = {**times, "reverse": reverse, "implementation": implementation}
    weights = weights_like(run(cast(arrays, jnp.float32), **arguments))
    clean = gradients(cast(arrays, jnp.float32), weights, **arguments)
    poisoned = dict(arrays, xs=np.where(padded[..., None], poison, arrays["xs"]))
    actual = gradients(cast(poisoned, jnp.float32), weights, **arguments)
    jax.tree.map(np.testing.assert_array_equal, actual, clean)
    assert not np.asarray(actual["xs"])[padded].any()


@every_implementation
def test_gradient_of_an_output_at_a_padded_step_is_zero(implementation):
    arrays, _ = example(6, (2,), 5, lengths=False, resets=False)
    arguments = {"lengths": np.array([2, 0]), "implementation": implementation}
    slopes = jax.grad(lambda a: run(a, **arguments)[0][:, 2:].sum())(cast(arrays, jnp.float32))
    assert all(not np.asarray(slope).any() for slope in slopes.values())


@every_implementation
@directions
def test_resets_stop_gradients(implementation, reverse):
    arrays, _ = example(7, (), 6, lengths=False, resets=False)
    resets = np.arange(6) == 3
    arguments = {"resets": resets, "reverse": reverse, "implementation": implementation}
    last = 0 if reverse else 5
    slopes = jax.grad(lambda a: run(a, **arguments)[0][last].sum())(cast(arrays, jnp.float32))
    before = slice(4, 6) if reverse else slice(0, 3)
    assert not np.asarray(slopes["xs"][before]).any()
    assert not np.asarray(slopes["h0"]).any()
    assert not np.asarray(slopes["c0"]).any()
    assert np.asarray(slopes["xs"][3]).any()


@every_implementation
def test_reset_equals_a_sequence_of_its_own(implementation):
    arrays, _ = example(8, (2,), 7, lengths=False, resets=False)
    arrays = cast(arrays, jnp.float32)
    resets = jnp.broadcast_to(jnp.arange(7) == 4, (2, 7))
    packed, *_ = run(arrays, resets=resets, implementation=implementation)
    first, *_ = run(dict(arrays, xs=arrays["xs"][:, :4]), implementation=implementation)
    zeros = jnp.zeros_like(arrays["h0"])
    second, *_ = run(dict(arrays, xs=arrays["xs"][:, 4:], h0=zeros, c0=zeros), implementation=implementation)
    np.testing.assert_allclose(packed, jnp.concatenate([first, second], axis=1), rtol=0, atol=1e-6)


@every_implementation
@directions
@pytest.mark.parametrize("cut", [0, 1, 4, 7])
def test_pieces_with_the_state_carried_equal_the_whole(implementation, reverse, cut):
    arrays, times = example(9, (2,), 7, lengths=False, resets=True)
    arrays, resets = cast(arrays, jnp.float32), times["resets"]
    whole = run(arrays, resets=resets, reverse=reverse, implementation=implementation)
    pieces = [(arrays["xs"][:, :cut], resets[:, :cut]), (arrays["xs"][:, cut:], resets[:, cut:])]
    h, c, ys = arrays["h0"], arrays["c0"], []
    for xs, piece_resets in reversed(pieces) if reverse else pieces:
        piece = dict(arrays, xs=xs, h0=h, c0=c)
        y, h, c = run(piece, resets=piece_resets, reverse=reverse, implementation=implementation)
        ys.append(y)
    ys = jnp.concatenate(ys[::-1] if reverse else ys, axis=1)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-6), (ys, h, c), whole)


@every_implementation
def test_steps_equal_apply(implementation):
    arrays, _ = example(10, (2, 3), 5, lengths=False, resets=False)
    arrays = cast(arrays, jnp.float32)
    ys, h, c = run(arrays, implementation=implementation)
    params = LSTMParams(arrays["w_x"], arrays["w_h"], arrays["bias"])
    state = LSTMState(h=arrays["h0"], c=arrays["c0"])
    for t in range(5):
        y, state = lstm.step(params, arrays["xs"][:, :, t], state)
        np.testing.assert_allclose(y, ys[:, :, t], rtol=0, atol=1e-6)
    np.testing.assert_allclose(state.h, h, rtol=0, atol=1e-6)
    np.testing.assert_allclose(state.c, c, rtol=0, atol=1e-6)


@every_implementation
@directions
def test_vmap_equals_batch_axes(implementation, reverse):
    arrays, times = example(11, (2, 3), 5, lengths=True, resets=True)
    arrays = cast(arrays, jnp.float32)
    weights = weights_like(run(arrays))

    def single(arrays, times):
        return run(arrays, **times, reverse=reverse, implementation=implementation)

    axes = {name: None if name in ("w_x", "w_h", "bias") else 0 for name in arrays}
    mapped = jax.vmap(jax.vmap(single, in_axes=(axes, 0)), in_axes=(axes, 0))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-6), mapped(arrays, times), single(arrays, times))
    by_vmap = jax.grad(lambda a: weighted(mapped(a, times), weights))(arrays)
    by_axes = jax.grad(lambda a: weighted(single(a, times), weights))(arrays)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), by_vmap, by_axes)


@every_implementation
def test_vmap_over_parameters(implementation):
    keys = jax.random.split(jax.random.key(0), 3)
    params = jax.vmap(partial(lstm.init, inputs=INPUTS, units=UNITS))(keys)
    xs = jax.random.normal(jax.random.key(1), (2, 5, INPUTS))
    together = jax.vmap(lambda p: lstm.apply(p, xs, implementation=implementation)[0])(params)
    for member in range(3):
        alone, _ = lstm.apply(jax.tree.map(lambda leaf: leaf[member], params), xs, implementation=implementation)  # noqa: B023
        np.testing.assert_allclose(together[member], alone, rtol=0, atol=1e-6)


@every_implementation
@masks
@pytest.mark.parametrize(("batch", "time"), [((2,), 0), ((), 0), ((0,), 5), ((2, 0), 5), ((0,), 0)])
def test_nothing_to_read(implementation, lengths, resets, batch, time):
    arrays, times = example(12, batch, time, lengths=lengths, resets=resets)
    arrays = cast(arrays, jnp.float32)
    ys, h, c = run(arrays, **times, implementation=implementation)
    assert ys.shape == (*batch, time, UNITS)
    np.testing.assert_array_equal(h, arrays["h0"])
    np.testing.assert_array_equal(c, arrays["c0"])
    slopes = jax.grad(lambda a: sum(o.sum() for o in run(a, **times, implementation=implementation)))(arrays)
    assert not any(np.asarray(slopes[name]).any() for name in ("w_x", "w_h", "bias"))
    np.testing.assert_array_equal(slopes["h0"], jnp.ones_like(arrays["h0"]))


@pytest.mark.parametrize("batch", [(0,), (2, 0), (0, 2)])
def test_vmap_over_nothing(batch):
    arrays, times = example(12, batch, 5, lengths=True, resets=True)
    arrays = cast(arrays, jnp.float32)
    axes = {name: None if name in ("w_x", "w_h", "bias") else 0 for name in arrays}
    call = lambda arrays, times: run(arrays, **times)  # noqa: E731
    for _ in batch:
        call = jax.vmap(call, in_axes=(axes, 0))
    ys, h, _ = call(arrays, times)
    assert (ys.shape, h.shape) == ((*batch, 5, UNITS), (*batch, UNITS))
    assert not jax.grad(lambda arrays: call(arrays, times)[0].sum())(arrays)["w_x"].any()


@pytest.mark.parametrize(("lengths", "reported"), [([5, 0], None), ([5, 6], "at mapped index 1: lengths must lie")])
def test_checkify_and_vmap(lengths, reported):
    params, xs = lstm.init(jax.random.key(0), INPUTS, UNITS), jnp.ones((2, 5, INPUTS))
    call = lambda xs, lengths: lstm.apply(params, xs, lengths=lengths)  # noqa: E731
    of_each, _ = jax.vmap(checkify.checkify(call))(xs, jnp.array(lengths))
    of_all, _ = checkify.checkify(jax.vmap(call))(xs, jnp.array(lengths))
    if reported is None:
        assert of_each.get() is of_all.get() is None
    else:
        assert of_each.get().startswith(reported)
        assert "lengths must lie between 0 and 5" in of_all.get()


@every_implementation
@directions
def test_without_sequences_the_final_h_is_returned(implementation, reverse):
    arrays, times = example(13, (2, 3), 6, lengths=True, resets=True)
    arguments = {**times, "reverse": reverse, "implementation": implementation}
    ys, h, c = run(cast(arrays, jnp.float32), **arguments, return_sequences=False)
    _, expected_h, expected_c = run(cast(arrays, jnp.float32), **arguments)
    np.testing.assert_array_equal(ys, h)
    np.testing.assert_array_equal(h, expected_h)
    np.testing.assert_array_equal(c, expected_c)
    weights = weights_like((ys, h, c))
    slopes = gradients(cast(arrays, jnp.float32), weights, **arguments, return_sequences=False)
    expected = reference.gradients(
        lambda *a: weighted((out := reference.apply(*a, **times, reverse=reverse))[1:2] + out[1:], weights),
        list(arrays.values()),
    )
    for name, e in zip(arrays, expected, strict=True):
        np.testing.assert_allclose(slopes[name], e, rtol=0, atol=1e-5 * np.abs(e).max(), err_msg=name)


@every_implementation
@pytest.mark.parametrize("return_sequences", [False, True])
def test_outputs_are_stacked_only_where_asked(implementation, return_sequences):
    params = lstm.init(jax.random.key(0), INPUTS, UNITS)
    call = partial(lstm.apply, return_sequences=return_sequences, implementation=implementation)
    program = str(jax.make_jaxpr(call)(params, jnp.ones((2, 1000, INPUTS))))
    assert (f"f32[1000,2,{UNITS}]" in program) == return_sequences


@masks
def test_the_gradient_takes_two_loops(lengths, resets):
    arrays, times = example(23, (2,), 5, lengths=lengths, resets=resets)
    slope = jax.grad(lambda a: run(a, **times, implementation="fused")[0].sum())
    program = jax.jit(slope).lower(cast(arrays, jnp.float32)).compile().as_text()
    assert program.count(" while(") == 2


@every_implementation
@pytest.mark.parametrize("unroll", [2, 100])
def test_unroll_changes_nothing(implementation, unroll):
    arrays, times = example(14, (2,), 7, lengths=True, resets=True)
    call = partial(run, cast(arrays, jnp.float32), **times, implementation=implementation)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-6), call(unroll=unroll), call())


@long_for_a_kernel
def test_remat_changes_nothing(implementation):
    arrays, times = example(15, (2,), 7, lengths=True, resets=True)
    arrays = cast(arrays, jnp.float32)
    weights = weights_like(run(arrays, **times))

    def loss(arrays):
        return weighted(run(arrays, **times, implementation=implementation), weights)

    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6),
        jax.grad(jax.checkpoint(loss))(arrays),
        jax.grad(loss)(arrays),
    )


@every_implementation
@masks
def test_shard_map_over_the_batch(implementation, lengths, resets):
    arrays, times = example(16, (8,), 5, lengths=lengths, resets=resets)
    arrays = cast(arrays, jnp.float32)
    xs = arrays["xs"]
    params = LSTMParams(arrays["w_x"], arrays["w_h"], arrays["bias"])
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = PartitionSpec("data"), PartitionSpec()

    def call(params, xs, times):
        return lstm.apply(params, xs, **times, implementation=implementation)

    # JAX interprets no kernel where it checks what varies over the mesh.
    check = implementation != "pallas_tpu"
    sharded = jax.jit(jax.shard_map(call, mesh=mesh, in_specs=(whole, rows, rows), out_specs=rows, check_vma=check))
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=0, atol=1e-6), sharded(params, xs, times), call(params, xs, times)
    )
    weights = weights_like(jax.tree.leaves(call(params, xs, times)))

    def loss(call, params, xs):
        return weighted(jax.tree.leaves(call(params, xs, times)), weights)

    slopes = jax.grad(partial(loss, sharded), argnums=(0, 1))(params, xs)
    expected = jax.grad(partial(loss, call), argnums=(0, 1))(params, xs)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), slopes, expected)


@every_implementation
@pytest.mark.parametrize("bias", [True, False])
def test_an_offset_is_a_bias_that_is_not_learned(implementation, bias):
    arrays = cast(example(23, (2,), 4, lengths=False, resets=False)[0], jnp.float32)
    offset = jnp.repeat(jnp.array([0.0, 1.0, 0.0, 0.0]), UNITS)
    params = LSTMParams(arrays["w_x"], arrays["w_h"], arrays["bias"] if bias else None, offset=offset)
    same = LSTMParams(arrays["w_x"], arrays["w_h"], offset + arrays["bias"] if bias else offset)

    def loss(params):
        ys, state = lstm.apply(params, arrays["xs"], implementation=implementation)
        return jnp.sum(ys**2) + jnp.sum(state.c), ys

    slopes, ys = jax.grad(loss, has_aux=True)(params)
    expected, expected_ys = jax.grad(loss, has_aux=True)(same)
    np.testing.assert_array_equal(ys, expected_ys)
    assert not slopes.offset.any()
    for name in ("w_x", "w_h", *(("bias",) if bias else ())):
        np.testing.assert_array_equal(getattr(slopes, name), getattr(expected, name))
    state = lstm.initial_state(params, (2,))
    y, _ = lstm.step(params, arrays["xs"][:, 0], state)
    np.testing.assert_allclose(y, ys[:, 0], rtol=0, atol=1e-6)


@every_implementation
@masks
@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_batch_sharded_over_a_mesh(implementation, lengths, resets, kind):
    arrays, times = example(22, (8,), 5, lengths=lengths, resets=resets)
    arrays = cast(arrays, jnp.float32)
    params = LSTMParams(arrays["w_x"], arrays["w_h"], arrays["bias"])
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    rows = jax.NamedSharding(mesh, PartitionSpec("data"))
    xs, sharded_times = jax.device_put((arrays["xs"], times), rows)

    def loss(params, xs, times):
        ys, state = lstm.apply(params, xs, **times, implementation=implementation)
        return (ys**2).sum() + state.c.sum(), (ys, state)

    differentiate = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    expected = differentiate(params, arrays["xs"], times)
    with jax.set_mesh(mesh):
        actual = jax.jit(differentiate)(params, xs, sharded_times)
        y, _ = lstm.step(params, xs[:, 0], lstm.initial_state(params, (8,)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), actual, expected)
    (_, (ys, state)), _ = actual
    assert all(array.sharding.is_equivalent_to(rows, array.ndim) for array in (ys, state.h, state.c, y))


@every_implementation
def test_a_second_call_compiles_nothing(implementation):
    compilations = []

    def listen(event, duration, **_):
        del duration
        if "compile" in event:
            compilations.append(event)

    arrays, times = example(17, (2,), 5, lengths=True, resets=True)
    arrays = cast(arrays, jnp.float32)

    def options():
        return lstm.LSTMOptions(activation="tanh")

    jitted = jax.jit(run, static_argnames=("options", "implementation"))
    loss = jax.grad(lambda a: run(a, **times, implementation=implementation)[0].sum())
    calls = [
        lambda: loss(arrays),
        lambda: jax.vmap(lambda xs: run(dict(arrays, xs=xs), implementation=implementation))(arrays["xs"][None]),
        lambda: run(arrays, **times, options=options(), implementation=implementation),
        lambda: jitted(arrays, **times, options=options(), implementation=implementation),
        lambda: lstm.step(
            LSTMParams(*list(arrays.values())[:3]), arrays["xs"][:, 0], LSTMState(arrays["h0"], arrays["c0"])
        ),
    ]
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for call in calls:
            jax.clear_caches()
            jax.block_until_ready(call())
            assert compilations
            compilations.clear()
            jax.block_until_ready(call())
            assert not compilations
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@every_implementation
def test_huge_inputs_saturate(implementation):
    arrays, _ = example(18, (2,), 5, lengths=False, resets=False)
    arrays = cast(dict(arrays, xs=np.sign(arrays["xs"]) * 1e30), jnp.float32)
    ys, h, c = run(arrays, implementation=implementation)
    assert all(np.isfinite(out).all() for out in (ys, h, c))
    slopes = jax.grad(lambda a: run(a, implementation=implementation)[0].sum())(arrays)
    assert all(np.isfinite(slope).all() for slope in slopes.values())


@every_implementation
def test_non_finite_inputs_of_valid_steps_propagate(implementation):
    arrays, _ = example(19, (2,), 4, lengths=False, resets=False)
    arrays["xs"][0, 2] = np.nan
    ys, h, _ = run(cast(arrays, jnp.float32), implementation=implementation)
    assert np.isfinite(ys[0, :2]).all()
    assert np.isfinite(ys[1]).all()
    assert np.isnan(ys[0, 2:]).all()
    assert np.isnan(h[0]).all()


@long_for_a_kernel
@pytest.mark.parametrize("checkpoint", [False, 250])
def test_half_precision_gradients_do_not_drift_with_time(implementation, checkpoint):
    """The weights' gradients add up over time in float32: their error is that of rounding the terms and the sum."""
    arrays, _ = example(21, (4,), 1000, lengths=False, resets=False, dtype=jnp.bfloat16)
    arrays["w_h"] /= 2  # a loop that forgets, so that the error of h is not amplified over time
    wide, narrow = cast(arrays, jnp.float32), cast(arrays, jnp.bfloat16)
    weights = weights_like(run(wide))
    expected = gradients(wide, weights, implementation=implementation)
    actual = gradients(narrow, weights, implementation=implementation, checkpoint=checkpoint)
    for name in ("w_x", "w_h", "bias"):
        error = np.linalg.norm(np.float64(actual[name]) - np.float64(expected[name]))
        assert error < 1e-2 * np.linalg.norm(expected[name]), name


@every_implementation
def test_a_reset_restores_the_learned_state_unrounded(implementation):
    params = lstm.init(jax.random.key(0), INPUTS, UNITS, learned_state=True)
    learned = LSTMState(h=jnp.full(UNITS, 0.1234567), c=jnp.full(UNITS, 0.7654321))
    params = dataclasses.replace(params, initial=learned)
    call = partial(lstm.apply, params, jnp.ones((2, 1, INPUTS)), implementation=implementation)
    options = lstm.LSTMOptions(precision="bfloat16")
    expected, actual = call(options=options), call(options=options, resets=jnp.ones((2, 1), bool))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@every_implementation
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 2**-7), (jnp.float16, 2**-10)])
def test_half_precision(implementation, dtype, tolerance):
    """h is rounded once a step, c stays in float32: the error stays a few units of the last place of h."""
    arrays, times = example(20, (3,), 20, lengths=True, resets=False, dtype=dtype)
    expected = reference.apply(**arrays, **times)
    ys, h, c = run(cast(arrays, dtype), **times, implementation=implementation)
    assert (ys.dtype, h.dtype, c.dtype) == (dtype, dtype, jnp.float32)
    for a, e in zip((ys, h, c), expected, strict=True):
        np.testing.assert_allclose(np.float64(a), e, rtol=tolerance, atol=3 * tolerance)

    weights = weights_like(expected)
    slopes = gradients(cast(arrays, dtype), weights, **times, implementation=implementation)
    expected = reference.gradients(lambda *a: weighted(reference.apply(*a, **times), weights), list(arrays.values()))
    for name, e in zip(arrays, expected, strict=True):
        assert slopes[name].dtype == dtype
        np.testing.assert_allclose(
            np.float64(slopes[name]), e, rtol=0, atol=6 * tolerance * np.abs(e).max(), err_msg=name
        )
