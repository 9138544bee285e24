"""The contract of time, which every implementation keeps: against the float64 loop, and as properties."""

import dataclasses
import functools
import itertools
from functools import partial

import covering
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec
from jax.test_util import check_vjp

import lstmjax
from lstmjax import LSTMParams, LSTMState, lstm
from lstmjax._src.lstm.pallas_tpu import tpu

pytestmark = pytest.mark.versions

slow = pytest.mark.slow

INPUTS, UNITS = 3, 4
BATCH, TIME = (2, 2), 5  # of most tests, so that they share their programs

every_implementation = pytest.mark.parametrize("implementation", list(lstm.IMPLEMENTATIONS))
long_for_a_kernel = pytest.mark.parametrize(
    "implementation",
    [pytest.param(name, marks=[pytest.mark.slow] * (name == "pallas_tpu")) for name in lstm.IMPLEMENTATIONS],
)


long_but_for_fused = pytest.mark.parametrize(
    "implementation", [pytest.param(name, marks=[slow] * (name != "fused")) for name in lstm.IMPLEMENTATIONS]
)


@pytest.fixture(scope="module", autouse=True)
def two_steps_an_iteration_of_the_kernel():
    """Which gives it several iterations, and shorter programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tpu, "UNROLLED", 2)
        jax.clear_caches()
        yield
    jax.clear_caches()


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
    return {name: jnp.asarray(array.astype(dtype)) for name, array in arrays.items()}  # by NumPy, in no program


def run(arrays, **arguments):
    params = LSTMParams(arrays["w_x"], arrays["w_h"], arrays["bias"])
    state = LSTMState(h=arrays["h0"], c=arrays["c0"]) if "h0" in arrays else None
    ys, state = lstm.apply(params, arrays["xs"], state, **arguments)
    return ys, state.h, state.c


def weighted(outputs, weights):
    """One number in which every output counts differently."""
    return sum((o * w).sum() for o, w in zip(outputs, weights, strict=True))


def weights_like(outputs, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=np.shape(o)).astype(np.float32) for o in outputs]


STATIC = "implementation", "reverse", "return_sequences", "unroll", "checkpoint", "options"


@partial(jax.jit, static_argnames=STATIC)
def values(arrays, times, **static):
    return run(arrays, **times, **static)


def differentiate(arrays, weights, times, **static):
    """What comes out, and the gradient of it with `weights` in every array."""

    def loss(arrays):
        outputs = run(arrays, **times, **static)
        return weighted(outputs, weights), outputs

    slopes, outputs = jax.grad(loss, has_aux=True)(arrays)
    return outputs, slopes


differentiated = jax.jit(differentiate, static_argnames=STATIC)


def gradients(arrays, weights, **arguments):
    return differentiate(arrays, weights, {}, **arguments)[1]


def padding(lengths, time):
    return np.arange(time) >= np.asarray(lengths)[..., None]


AUTO, EXPLICIT = jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit
MASKS = [(False, False), (True, False), (False, True), (True, True)]
masks = pytest.mark.parametrize(("lengths", "resets"), MASKS)
directions = pytest.mark.parametrize("reverse", [False, True])


@functools.cache
def expected(seed, batch, time, lengths, resets, reverse, dtype=np.float32):
    """Of the example with these arguments: what comes out by the loop, weights for it, and the gradients."""
    arrays, times = example(seed, batch, time, lengths=lengths, resets=resets, dtype=dtype)
    apply = partial(reference.apply, **times, reverse=reverse)
    outputs = apply(**arrays)
    weights = weights_like(outputs)
    slopes = reference.gradients(lambda *a: weighted(apply(*a), weights), list(arrays.values()))
    return outputs, weights, dict(zip(arrays, slopes, strict=True))


def close(actual, expected, tolerance, *, at_least=0):
    """Gradients by name, whose error is measured by the greatest entry of each."""
    for name, e in expected.items():
        atol = tolerance * np.abs(e).max(initial=at_least)
        np.testing.assert_allclose(actual[name], e, rtol=0, atol=atol, err_msg=name)


def check_values_and_gradients(implementation, dtype, seed, batch, time, lengths, resets, reverse):
    wide = dtype == jnp.float64
    exact = np.float64 if wide else np.float32  # what is rounded to float32 on the way shows
    arrays, times = example(seed, batch, time, lengths=lengths, resets=resets, dtype=exact)
    right, weights, right_slopes = expected(seed, batch, time, lengths, resets, reverse, exact)
    with jax.enable_x64(wide):
        outputs, slopes = differentiated(
            cast(arrays, dtype), weights, times, reverse=reverse, implementation=implementation
        )
    for a, e in zip(outputs, right, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-12 if wide else 2e-6)
    assert not np.any(times.get("lengths", time)) or np.abs(right_slopes["w_x"]).max() > 0
    close(slopes, right_slopes, 1e-12 if wide else 1e-5, at_least=int(wide))


FLOATS = [jnp.float32, jnp.float64]
CASES = [  # any two of their values meet; the programs of the first four serve other tests too
    (jnp.float32, False, False, False),
    (jnp.float32, True, True, False),
    (jnp.float32, True, True, True),
    (jnp.float64, True, True, False),
    (jnp.float64, True, False, True),
    (jnp.float64, False, True, True),
]
BY_DEFAULT = {"fused": CASES, "scan": CASES[:4], "pallas_tpu": [*CASES[:3], CASES[4]]}


@pytest.mark.parametrize(
    ("implementation", "dtype", "lengths", "resets", "reverse"),
    [
        pytest.param(name, *case, marks=[] if case in BY_DEFAULT[name] else slow)
        for name in lstm.IMPLEMENTATIONS
        for case in itertools.product(FLOATS, [False, True], [False, True], [False, True])
    ],
)
def test_values_and_gradients(implementation, dtype, lengths, resets, reverse):
    check_values_and_gradients(implementation, dtype, 1, BATCH, TIME, lengths, resets, reverse)


@pytest.mark.parametrize(
    ("implementation", "batch", "time", "lengths", "resets", "reverse"),
    [
        *covering.pairs(
            {
                "implementation": ["fused", "scan"],
                "batch": [(), (2, 1, 2)],
                "time": [1, 6],
                "lengths": [False, True],
                "resets": [False, True],
                "reverse": [False, True],
            }
        ),
        ("pallas_tpu", (2, 1, 2), 6, False, True, True),
    ],
)
def test_other_batches(implementation, batch, time, lengths, resets, reverse):
    check_values_and_gradients(implementation, jnp.float32, 0, batch, time, lengths, resets, reverse)


@slow
@every_implementation
@pytest.mark.parametrize("batch", [(), (2, 1, 3)])
def test_values_of_other_batches(implementation, batch):
    """All masks and directions, in one program."""
    cases = [(*case, reverse) for case in MASKS for reverse in (False, True)]
    made = [example(0, batch, 9, lengths=lengths, resets=resets) for lengths, resets, _ in cases]

    @jax.jit
    def together(made):
        return [
            run(arrays, **times, reverse=reverse, implementation=implementation)
            for (arrays, times), (*_, reverse) in zip(made, cases, strict=True)
        ]

    actual = together([(cast(arrays, jnp.float32), times) for arrays, times in made])
    for (arrays, times), (*_, reverse), outputs in zip(made, cases, actual, strict=True):
        right = reference.apply(**arrays, **times, reverse=reverse)
        for a, e in zip(outputs, right, strict=True):
            assert a.dtype == jnp.float32
            np.testing.assert_allclose(a, e, rtol=0, atol=2e-6)


@long_for_a_kernel
@pytest.mark.parametrize("return_sequences", [pytest.param(False, marks=slow), True])
def test_finite_differences(implementation, return_sequences, x64):
    arrays, times = example(3, BATCH, TIME, lengths=True, resets=True, dtype=np.float64)
    static = {"implementation": implementation, "reverse": False}
    static |= {} if return_sequences else {"return_sequences": False}
    call = partial(values, times=times, **static)

    def pulled(arrays):
        return call(arrays), lambda weights: (differentiated(arrays, weights, times, **static)[1],)

    # A difference is off by about 6 eps², so that of the default step, 1e-4, by as much as is tolerated.
    check_vjp(call, pulled, (cast(arrays, jnp.float64),), atol=1e-7, rtol=1e-7, eps=1e-5)


def second_derivatives(arrays, times, weights, direction, *, implementation, every):
    """The derivative of the gradient along `direction`, forward and in reverse, and that along time in segments."""

    def slopes(checkpoint):
        return partial(gradients, weights=weights, **times, implementation=implementation, checkpoint=checkpoint)

    def along(arrays):
        """The derivative of the loss along `direction`, forward."""
        loss = lambda arrays: weighted(run(arrays, **times, implementation=implementation), weights)  # noqa: E731
        return jax.jvp(loss, (arrays,), (direction,))[1]

    found = [jax.jvp(slopes(3), (arrays,), (direction,))[1], jax.vjp(slopes(False), arrays)[1](direction)[0]]
    if every:
        found += [jax.jvp(slopes(False), (arrays,), (direction,))[1], jax.vjp(slopes(3), arrays)[1](direction)[0]]
        found += [jax.grad(along)(arrays)]
    forward_over_forward = jax.jvp(along, (arrays,), (direction,))
    return found, forward_over_forward


@pytest.mark.parametrize(
    ("implementation", "every"),
    [("fused", False), *(pytest.param(name, True, marks=slow) for name in lstm.IMPLEMENTATIONS)],
)
def test_second_order(implementation, every, x64):
    """Whichever way it is taken, against differences of the gradient; through segments too."""
    arrays, times = example(4, BATCH, TIME, lengths=True, resets=True, dtype=np.float64)
    arrays = cast(arrays, jnp.float64)
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), arrays)
    weights = weights_like(expected(1, BATCH, TIME, True, True, False)[0])
    static = {"implementation": implementation, "reverse": False}

    def moved(step):
        return differentiated(jax.tree.map(lambda a, d: a + step * d, arrays, direction), weights, times, **static)

    def difference(part):
        return jax.tree.map(lambda high, low: (high - low) / 2e-5, moved(1e-5)[part], moved(-1e-5)[part])

    second = jax.jit(partial(second_derivatives, implementation=implementation, every=every))
    found, (first, twice) = second(arrays, times, weights, direction)
    right = difference(1)
    assert all(np.abs(slope).max() > 0.1 for slope in right.values())
    exact, *_ = found
    for actual in found:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), actual, right)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), actual, exact)
    inner = sum(np.sum(direction[name] * exact[name]) for name in arrays)
    np.testing.assert_allclose(twice, inner, rtol=1e-9)
    np.testing.assert_allclose(first, weighted(difference(0), weights), rtol=1e-6)


@pytest.mark.parametrize(
    "implementations", [["fused", "scan"], pytest.param(["pallas_tpu"], marks=slow)], ids=["of XLA", "kernel"]
)
@settings(max_examples=12)
@given(data=st.data())
def test_any_lengths_resets_and_direction(implementations, data):
    reverse = data.draw(st.booleans(), label="reverse")
    size = int(np.prod(BATCH))
    lengths = data.draw(st.lists(st.integers(0, TIME), min_size=size, max_size=size), label="lengths")
    flags = data.draw(st.lists(st.booleans(), min_size=size * TIME, max_size=size * TIME), label="resets")
    arrays, _ = example(data.draw(st.integers(0, 99), label="seed"), BATCH, TIME, lengths=False, resets=False)
    lengths, resets = np.array(lengths).reshape(BATCH), np.array(flags, bool).reshape(*BATCH, TIME)
    apply = partial(reference.apply, lengths=lengths, resets=resets, reverse=reverse)
    right = apply(**arrays)
    weights = weights_like(right)
    right_slopes = reference.gradients(lambda *a: weighted(apply(*a), weights), list(arrays.values()))

    padded, empty = padding(lengths, TIME), lengths == 0
    poisoned = cast(dict(arrays, xs=np.where(padded[..., None], np.nan, arrays["xs"])), jnp.float32)
    times = {"lengths": lengths, "resets": resets}
    for name in implementations:
        (ys, h, c), slopes = differentiated(poisoned, weights, times, reverse=reverse, implementation=name)
        for a, e in zip((ys, h, c), right, strict=True):
            np.testing.assert_allclose(a, e, rtol=0, atol=2e-6)
        assert not np.asarray(ys)[padded].any()
        close(slopes, dict(zip(arrays, right_slopes, strict=True)), 1e-5)
        np.testing.assert_array_equal(np.asarray(h)[empty], np.float32(arrays["h0"][empty]))
        np.testing.assert_array_equal(np.asarray(c)[empty], np.float32(arrays["c0"][empty]))


@every_implementation
@directions
@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30])
def test_padding_reaches_no_gradient(implementation, reverse, poison):
    arrays, times = example(5, BATCH, TIME, lengths=True, resets=True)
    padded = padding(times["lengths"], TIME)
    assert padded.any()
    weights = expected(1, BATCH, TIME, True, True, reverse)[1]
    slopes = partial(differentiated, weights=weights, times=times, reverse=reverse, implementation=implementation)
    _, clean = slopes(cast(arrays, jnp.float32))
    poisoned = dict(arrays, xs=np.where(padded[..., None], poison, arrays["xs"]))
    _, actual = slopes(cast(poisoned, jnp.float32))
    jax.tree.map(np.testing.assert_array_equal, actual, clean)
    assert not np.asarray(actual["xs"])[padded].any()


NO_RESETS = np.zeros((*BATCH, TIME), bool)
NO_PADDING = np.full(BATCH, TIME)


@every_implementation
def test_gradient_of_an_output_at_a_padded_step_is_zero(implementation):
    arrays, _ = example(6, BATCH, TIME, lengths=False, resets=False)
    times = {"lengths": np.array([[2, 0], [1, 2]]), "resets": NO_RESETS}
    ys, h, c = (np.zeros_like(w) for w in expected(1, BATCH, TIME, True, True, False)[1])
    ys[:, :, 2:] = 1
    static = {"reverse": False, "implementation": implementation}
    _, slopes = differentiated(cast(arrays, jnp.float32), [ys, h, c], times, **static)
    assert all(not np.asarray(slope).any() for slope in slopes.values())


@every_implementation
@directions
def test_resets_stop_gradients(implementation, reverse):
    arrays, _ = example(7, BATCH, TIME, lengths=False, resets=False)
    reset = 2
    times = {"lengths": NO_PADDING, "resets": np.broadcast_to(np.arange(TIME) == reset, (*BATCH, TIME))}
    ys, h, c = (np.zeros_like(w) for w in expected(1, BATCH, TIME, True, True, reverse)[1])
    ys[:, :, 0 if reverse else TIME - 1] = 1
    static = {"reverse": reverse, "implementation": implementation}
    _, slopes = differentiated(cast(arrays, jnp.float32), [ys, h, c], times, **static)
    before = slice(reset + 1, TIME) if reverse else slice(0, reset)
    assert not np.asarray(slopes["xs"][:, :, before]).any()
    assert not np.asarray(slopes["h0"]).any()
    assert not np.asarray(slopes["c0"]).any()
    assert np.asarray(slopes["xs"][:, :, reset]).any()


def outputs_of(arrays, times, reverse, implementation):
    """By the program that most tests share."""
    weights = expected(1, BATCH, TIME, True, True, reverse)[1]
    arrays = cast(arrays, jnp.float32)
    return differentiated(arrays, weights, times, reverse=reverse, implementation=implementation)[0]


@every_implementation
def test_reset_equals_a_sequence_of_its_own(implementation):
    arrays, _ = example(8, BATCH, TIME, lengths=False, resets=False)
    call = partial(outputs_of, reverse=False, implementation=implementation)
    packed, *_ = call(arrays, {"lengths": NO_PADDING, "resets": NO_RESETS | (np.arange(TIME) == 3)})
    first, *_ = call(arrays, {"lengths": NO_PADDING - 2, "resets": NO_RESETS})
    zeros = np.zeros_like(arrays["h0"])
    own = dict(arrays, xs=np.roll(arrays["xs"], -3, axis=-2), h0=zeros, c0=zeros)
    second, *_ = call(own, {"lengths": NO_PADDING - 3, "resets": NO_RESETS})
    pieces = np.concatenate([first[:, :, :3], second[:, :, :2]], axis=2)
    np.testing.assert_allclose(packed, pieces, rtol=0, atol=1e-6)


@every_implementation
@directions
@pytest.mark.parametrize("cut", [0, 1, 3, TIME])
def test_pieces_with_the_state_carried_equal_the_whole(implementation, reverse, cut):
    """Pieces that padding fills up."""
    arrays, times = example(9, BATCH, TIME, lengths=False, resets=True)
    call = partial(outputs_of, reverse=reverse, implementation=implementation)
    whole = call(arrays, {"lengths": NO_PADDING, **times})
    h, c, ys = arrays["h0"], arrays["c0"], {}
    for start, stop in reversed([(0, cut), (cut, TIME)]) if reverse else [(0, cut), (cut, TIME)]:
        xs, resets = np.roll(arrays["xs"], -start, axis=-2), np.roll(times["resets"], -start, axis=-1)
        lengths = np.full(BATCH, stop - start)
        y, h, c = call(dict(arrays, xs=xs, h0=h, c0=c), {"lengths": lengths, "resets": resets})
        ys[start, stop] = y[:, :, : stop - start]
    ys = np.concatenate([ys[0, cut], ys[cut, TIME]], axis=2)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-6), (ys, h, c), whole)


@long_but_for_fused
@pytest.mark.parametrize("reverse", [False, pytest.param(True, marks=slow)])
def test_pieces_of_any_length(implementation, reverse):
    """The same of arrays of that length, all in one program."""
    arrays, times = example(9, (2,), 7, lengths=False, resets=True)

    @jax.jit
    def by_cut(arrays, resets):
        call = partial(run, reverse=reverse, implementation=implementation)
        found = [call(arrays, resets=resets)]
        for cut in (0, 1, 4, 7):
            pieces = [(arrays["xs"][:, :cut], resets[:, :cut]), (arrays["xs"][:, cut:], resets[:, cut:])]
            h, c, ys = arrays["h0"], arrays["c0"], []
            for xs, piece_resets in reversed(pieces) if reverse else pieces:
                y, h, c = call(dict(arrays, xs=xs, h0=h, c0=c), resets=piece_resets)
                ys.append(y)
            found.append((jnp.concatenate(ys[::-1] if reverse else ys, axis=1), h, c))
        return found

    whole, *found = by_cut(cast(arrays, jnp.float32), times["resets"])
    for pieces in found:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-6), pieces, whole)


@every_implementation
def test_steps_equal_apply(implementation):
    arrays, _ = example(10, BATCH, TIME, lengths=False, resets=False)
    ys, h, c = outputs_of(arrays, {}, False, implementation)
    arrays = cast(arrays, jnp.float32)
    params = LSTMParams(arrays["w_x"], arrays["w_h"], arrays["bias"])
    state = LSTMState(h=arrays["h0"], c=arrays["c0"])
    for t in range(TIME):
        y, state = lstm.step(params, arrays["xs"][:, :, t], state)
        np.testing.assert_allclose(y, ys[:, :, t], rtol=0, atol=1e-6)
    np.testing.assert_allclose(state.h, h, rtol=0, atol=1e-6)
    np.testing.assert_allclose(state.c, c, rtol=0, atol=1e-6)


forward_but_for_fused = pytest.mark.parametrize(
    ("implementation", "reverse"),
    [
        pytest.param(name, reverse, marks=[slow] * (name != "fused" and reverse))
        for name in lstm.IMPLEMENTATIONS
        for reverse in (False, True)
    ],
)


@forward_but_for_fused
def test_vmap_equals_batch_axes(implementation, reverse):
    arrays, times = example(11, BATCH, TIME, lengths=True, resets=True)
    arrays = cast(arrays, jnp.float32)
    weights = expected(1, BATCH, TIME, True, True, reverse)[1]

    def single(arrays, times):
        return run(arrays, **times, reverse=reverse, implementation=implementation)

    axes = {name: None if name in ("w_x", "w_h", "bias") else 0 for name in arrays}
    mapped = jax.vmap(jax.vmap(single, in_axes=(axes, 0)), in_axes=(axes, 0))

    def loss(arrays, times):
        outputs = mapped(arrays, times)
        return weighted(outputs, weights), outputs

    by_vmap, outputs = jax.jit(jax.grad(loss, has_aux=True))(arrays, times)
    right, by_axes = differentiated(arrays, weights, times, reverse=reverse, implementation=implementation)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-6), outputs, right)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), by_vmap, by_axes)


@every_implementation
def test_vmap_over_parameters(implementation):
    rng = np.random.default_rng(0)
    params = jax.eval_shape(partial(lstm.init, inputs=INPUTS, units=UNITS), jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.float32(rng.normal(size=(3, *leaf.shape))), params)
    xs = np.float32(rng.normal(size=(2, TIME, INPUTS)))

    def call(params):
        return lstm.apply(params, xs, implementation=implementation)[0]

    together, alone = jax.jit(jax.vmap(call))(params), jax.jit(call)
    for member in range(3):
        right = alone(jax.tree.map(lambda leaf: leaf[member], params))  # noqa: B023
        np.testing.assert_allclose(together[member], right, rtol=0, atol=1e-6)


@covering.parametrize(
    {
        "implementation": list(lstm.IMPLEMENTATIONS),
        "lengths": [False, True],
        "resets": [False, True],
        "sizes": [((2,), 0), ((), 0), ((0,), 5), ((2, 0), 5), ((0,), 0)],
    }
)
def test_nothing_to_read(implementation, lengths, resets, sizes):
    batch, time = sizes
    arrays, times = example(12, batch, time, lengths=lengths, resets=resets)
    arrays = cast(arrays, jnp.float32)
    weights = [np.ones((*batch, time, UNITS)), np.ones((*batch, UNITS)), np.ones((*batch, UNITS))]
    weights = [np.float32(w) for w in weights]
    (ys, h, c), slopes = differentiated(arrays, weights, times, implementation=implementation)
    assert ys.shape == (*batch, time, UNITS)
    np.testing.assert_array_equal(h, arrays["h0"])
    np.testing.assert_array_equal(c, arrays["c0"])
    assert not any(np.asarray(slopes[name]).any() for name in ("w_x", "w_h", "bias"))
    np.testing.assert_array_equal(slopes["h0"], np.ones((*batch, UNITS)))


@pytest.mark.parametrize("batch", [(0,), (2, 0), (0, 2)])
def test_vmap_over_nothing(batch):
    arrays, times = example(12, batch, 5, lengths=True, resets=True)
    arrays = cast(arrays, jnp.float32)
    axes = {name: None if name in ("w_x", "w_h", "bias") else 0 for name in arrays}
    call = lambda arrays, times: run(arrays, **times)  # noqa: E731
    for _ in batch:
        call = jax.vmap(call, in_axes=(axes, 0))
    loss = lambda arrays: ((outputs := call(arrays, times))[0].sum(), outputs)  # noqa: E731
    slopes, (ys, h, _) = jax.jit(jax.grad(loss, has_aux=True))(arrays)
    assert (ys.shape, h.shape) == ((*batch, 5, UNITS), (*batch, UNITS))
    assert not slopes["w_x"].any()


@jax.jit
def reports(params, xs, lengths):
    """What is reported of the lengths, inside vmap and around it."""
    call = lambda xs, lengths: lstm.apply(params, xs, lengths=lengths)  # noqa: E731
    of_each, _ = jax.vmap(lstmjax.checked(call))(xs, lengths)
    of_all, _ = lstmjax.checked(jax.vmap(call))(xs, lengths)
    return of_each, of_all


@pytest.mark.parametrize(("lengths", "reported"), [([5, 0], None), ([5, 6], "at mapped index 1: lengths must lie")])
def test_checked_and_vmap(lengths, reported):
    params, xs = lstm.init(jax.random.key(0), INPUTS, UNITS), jnp.ones((2, 5, INPUTS))
    of_each, of_all = reports(params, xs, jnp.array(lengths))
    if reported is None:
        assert of_each.get() is of_all.get() is None
    else:
        assert of_each.get().startswith(reported)
        assert "lengths must lie between 0 and 5" in of_all.get()


@forward_but_for_fused
def test_without_sequences_the_final_h_is_returned(implementation, reverse):
    arrays, times = example(1, BATCH, TIME, lengths=True, resets=True)
    _, (_, *weights), _ = expected(1, BATCH, TIME, True, True, reverse)
    weights = [weights[1], *weights]
    (ys, h, c), slopes = differentiated(
        cast(arrays, jnp.float32),
        weights,
        times,
        reverse=reverse,
        implementation=implementation,
        return_sequences=False,
    )
    _, expected_h, expected_c = outputs_of(arrays, times, reverse, implementation)
    np.testing.assert_array_equal(ys, h)
    np.testing.assert_array_equal(h, expected_h)
    np.testing.assert_array_equal(c, expected_c)
    right = reference.gradients(
        lambda *a: weighted((out := reference.apply(*a, **times, reverse=reverse))[1:2] + out[1:], weights),
        list(arrays.values()),
    )
    close(slopes, dict(zip(arrays, right, strict=True)), 1e-5)


@every_implementation
@pytest.mark.parametrize("return_sequences", [False, True])
def test_outputs_are_stacked_only_where_asked(implementation, return_sequences):
    params = lstm.init(jax.random.key(0), INPUTS, UNITS)
    call = partial(lstm.apply, return_sequences=return_sequences, implementation=implementation)
    program = str(jax.make_jaxpr(call)(params, jnp.ones((2, 1000, INPUTS))))
    assert (f"f32[1000,2,{UNITS}]" in program) == return_sequences


@masks
def test_the_gradient_takes_two_loops(lengths, resets):
    arrays, times = example(23, BATCH, TIME, lengths=lengths, resets=resets)
    weights = expected(1, BATCH, TIME, True, True, False)[1]
    arguments = cast(arrays, jnp.float32), weights, times
    program = differentiated.lower(*arguments, implementation="fused", reverse=False).compile().as_text()
    assert program.count(" while(") == 2


@long_for_a_kernel
@pytest.mark.parametrize("unroll", [2, 100])
def test_unroll_changes_nothing(implementation, unroll):
    arrays, times = example(14, BATCH, TIME, lengths=True, resets=True)
    actual = values(cast(arrays, jnp.float32), times, unroll=unroll, implementation=implementation)
    right = outputs_of(arrays, times, False, implementation)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-6), actual, right)


@long_for_a_kernel
def test_remat_changes_nothing(implementation):
    arrays, times = example(15, BATCH, TIME, lengths=True, resets=True)
    arrays = cast(arrays, jnp.float32)
    weights = expected(1, BATCH, TIME, True, True, False)[1]

    def loss(arrays):
        return weighted(run(arrays, **times, implementation=implementation), weights)

    _, right = differentiated(arrays, weights, times, reverse=False, implementation=implementation)
    slopes = jax.jit(jax.grad(jax.checkpoint(loss)))(arrays)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), slopes, right)


@functools.cache
def expected_of_rows(lengths, resets):
    """An example of eight rows without a state, and what comes of it."""
    arrays, times = example(16, (8,), 3, lengths=lengths, resets=resets)
    arrays = {name: array for name, array in arrays.items() if name not in ("h0", "c0")}
    outputs = reference.apply(**arrays, **times)
    weights = weights_like(outputs)
    slopes = reference.gradients(lambda *a: weighted(reference.apply(*a, **times), weights), list(arrays.values()))
    return arrays, times, weights, outputs, dict(zip(arrays, slopes, strict=True))


SHARDED = [("fused", False, True), ("scan", True, False), ("pallas_tpu", True, True)]
MESHED = [("fused", True, True, EXPLICIT), ("fused", False, False, AUTO), ("scan", True, False, AUTO)]


@pytest.mark.parametrize(
    ("implementation", "lengths", "resets"),
    [
        pytest.param(name, *case, marks=[] if (name, *case) in SHARDED else slow)
        for name in lstm.IMPLEMENTATIONS
        for case in MASKS
    ],
)
@pytest.mark.usefixtures("four_devices")
def test_shard_map_over_the_batch(implementation, lengths, resets):
    arrays, times, weights, right, right_slopes = expected_of_rows(lengths, resets)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AUTO,))
    rows, whole = PartitionSpec("data"), PartitionSpec()
    specs = {name: rows if name == "xs" else whole for name in arrays}

    def call(arrays, times):
        return run(arrays, **times, implementation=implementation)

    # JAX interprets no kernel where it checks what varies over the mesh.
    check = implementation != "pallas_tpu"
    sharded = jax.shard_map(call, mesh=mesh, in_specs=(specs, rows), out_specs=rows, check_vma=check)

    def loss(arrays):
        outputs = sharded(arrays, times)
        return weighted(outputs, weights), outputs

    slopes, outputs = jax.jit(jax.grad(loss, has_aux=True))(cast(arrays, jnp.float32))
    for a, e in zip(outputs, right, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=2e-6)
    close(slopes, right_slopes, 1e-5)


@long_but_for_fused
@pytest.mark.parametrize("bias", [True, False])
def test_an_offset_is_a_bias_that_is_not_learned(implementation, bias):
    arrays = cast(example(23, (2,), 4, lengths=False, resets=False)[0], jnp.float32)
    offset = jnp.repeat(jnp.array([0.0, 1.0, 0.0, 0.0]), UNITS)
    params = LSTMParams(arrays["w_x"], arrays["w_h"], arrays["bias"] if bias else None, offset=offset)
    same = LSTMParams(arrays["w_x"], arrays["w_h"], offset + arrays["bias"] if bias else offset)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def differentiated(params):
        ys, state = lstm.apply(params, arrays["xs"], implementation=implementation)
        return jnp.sum(ys**2) + jnp.sum(state.c), ys

    slopes, ys = differentiated(params)
    right, right_ys = differentiated(same)
    np.testing.assert_array_equal(ys, right_ys)
    assert not slopes.offset.any()
    for name in ("w_x", "w_h", *(("bias",) if bias else ())):
        np.testing.assert_array_equal(getattr(slopes, name), getattr(right, name))
    state = lstm.initial_state(params, (2,))
    y, _ = lstm.step(params, arrays["xs"][:, 0], state)
    np.testing.assert_allclose(y, ys[:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("implementation", "lengths", "resets", "kind"),
    [
        pytest.param(*case, kind, marks=[] if (*case, kind) in MESHED else slow)
        for case in ((name, *case) for name in lstm.IMPLEMENTATIONS for case in MASKS)
        for kind in (AUTO, EXPLICIT)
    ],
)
@pytest.mark.usefixtures("four_devices")
def test_batch_sharded_over_a_mesh(implementation, lengths, resets, kind):
    arrays, times, weights, right, right_slopes = expected_of_rows(lengths, resets)
    arrays = cast(arrays, jnp.float32)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    rows = jax.NamedSharding(mesh, PartitionSpec("data"))
    xs, times, weights = jax.device_put((arrays["xs"], times, weights), rows)
    params = LSTMParams(arrays["w_x"], arrays["w_h"], arrays["bias"])
    with jax.set_mesh(mesh):
        outputs, slopes = differentiated(dict(arrays, xs=xs), weights, times, implementation=implementation)
        y, _ = lstm.step(params, xs[:, 0], lstm.initial_state(params, (8,)))
    for a, e in zip(outputs, right, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=2e-6)
    close(slopes, right_slopes, 1e-5)
    assert all(array.sharding.is_equivalent_to(rows, array.ndim) for array in (*outputs, y))


@long_but_for_fused
@pytest.mark.usefixtures("nothing_cached")
def test_a_second_call_compiles_nothing(implementation):
    compilations = []

    def listen(event, duration, **_):
        del duration
        if "compile" in event:
            compilations.append(event)

    rows = 5 + list(lstm.IMPLEMENTATIONS).index(implementation)  # which no other test has: the first call compiles
    arrays, times = example(17, (rows,), 5, lengths=True, resets=True)
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
            jax.block_until_ready(call())
            assert compilations
            compilations.clear()
            jax.block_until_ready(call())
            assert not compilations
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@every_implementation
def test_huge_inputs_saturate(implementation):
    arrays, _ = example(18, BATCH, TIME, lengths=False, resets=False)
    arrays = cast(dict(arrays, xs=np.sign(arrays["xs"]) * 1e30), jnp.float32)
    ys, h, c = (np.zeros_like(w) for w in expected(1, BATCH, TIME, True, True, False)[1])
    static = {"reverse": False, "implementation": implementation}
    outputs, slopes = differentiated(arrays, [ys + 1, h, c], {}, **static)
    assert all(np.isfinite(out).all() for out in outputs)
    assert all(np.isfinite(slope).all() for slope in slopes.values())


def gate_alone(name, z):
    """Inputs, the z of all four gates, and a c before, such that one step leaves f, i or g in c, or o in h."""
    inputs = np.zeros((len(z), 1, 4))
    inputs[..., 0] = 80 if name == "g" else 0
    inputs[..., 2] = 80 if name == "i" else 0
    inputs[:, 0, "ifgo".index(name)] = z
    return inputs, {"f": 1.0, "o": 80.0}.get(name, 0.0)


ACCURACY = {"float32": 4e-7, "bfloat16": 4e-7, "float64": 1e-15}  # c is carried in at least float32


@pytest.mark.parametrize("dtype", ACCURACY)
@long_for_a_kernel
def test_closed_gates_are_as_accurate_as_open_ones(implementation, dtype):
    """Relative to their value, and so are their derivatives, which stay above 0: a closed gate can open again."""
    small = np.geomspace(1e-3, 1, 16)
    drawn = np.concatenate([np.linspace(-80, 80, 320), small, -small])
    with jax.enable_x64(dtype == "float64"):
        z = drawn.astype(jnp.dtype(dtype)).astype(np.float64)
        sequences, before = zip(*(gate_alone(name, z) for name in "ifgo"), strict=True)
        xs = jnp.asarray(np.concatenate(sequences), dtype)
        c0 = jnp.repeat(jnp.array(before), len(z))[:, None].astype("float64" if dtype == "float64" else "float32")
        arrays = {"w_x": jnp.eye(4, dtype=dtype), "w_h": jnp.zeros((1, 4), dtype), "bias": jnp.zeros(4, dtype)}
        arrays |= {"xs": xs, "h0": jnp.zeros((len(xs), 1), dtype), "c0": c0}

        def shown(xs):
            _, h, c = run(dict(arrays, xs=xs), implementation=implementation)
            return h.astype(c.dtype), c

        (h, c), pull = jax.vjp(jax.jit(shown), xs)
        only = jnp.arange(len(xs))[:, None] >= 3 * len(z)
        (d_xs,) = pull((jnp.where(only, 1, 0).astype(h.dtype), jnp.where(only, 0, 1).astype(c.dtype)))
    sigmoid, tanh = 1 / (1 + np.exp(-z)), np.tanh(z)
    found = [*np.split(np.float64(c)[: 3 * len(z), 0], 3), np.float64(h)[3 * len(z) :, 0]]
    slopes = np.float64(d_xs)[:, 0].reshape(4, len(z), 4)
    rounded = ACCURACY[dtype] if dtype != "bfloat16" else 2**-8
    for k, (value, right) in enumerate(zip(found, (sigmoid, sigmoid, tanh, sigmoid), strict=True)):
        off = np.abs(value - right) / np.abs(right)
        assert off.max() <= (rounded if k == 3 else ACCURACY[dtype]), "ifgo"[k]
        derivative = 1 - tanh**2 if k == 2 else sigmoid * (1 / (1 + np.exp(z)))
        slope = slopes[k, :, k]
        assert np.isfinite(slope).all()
        closed = (z <= 0) & (k != 2)
        np.testing.assert_allclose(slope[closed], derivative[closed], rtol=4 * rounded, err_msg="ifgo"[k])
        np.testing.assert_allclose(slope, derivative, rtol=0, atol=4 * rounded, err_msg="ifgo"[k])


@every_implementation
def test_non_finite_inputs_of_valid_steps_propagate(implementation):
    arrays, _ = example(19, BATCH, TIME, lengths=False, resets=False)
    arrays["xs"][0, 1, 2] = np.nan
    ys, h, _ = outputs_of(arrays, {}, False, implementation)
    assert np.isfinite(ys[0, 0]).all()
    assert np.isfinite(ys[1]).all()
    assert np.isfinite(ys[0, 1, :2]).all()
    assert np.isnan(ys[0, 1, 2:]).all()
    assert np.isnan(h[0, 1]).all()


@long_but_for_fused
@pytest.mark.parametrize("checkpoint", [False, 250])
def test_half_precision_gradients_do_not_drift_with_time(implementation, checkpoint):
    """The weights' gradients add up over time in float32: their error is that of rounding the terms and the sum."""
    arrays, _ = example(21, (4,), 1000, lengths=False, resets=False, dtype=jnp.bfloat16)
    arrays["w_h"] /= 2  # a loop that forgets, so that the error of h is not amplified over time
    wide, narrow = cast(arrays, jnp.float32), cast(arrays, jnp.bfloat16)
    weights = weights_like([np.empty((4, 1000, UNITS)), np.empty((4, UNITS)), np.empty((4, UNITS))])
    _, right = differentiated(wide, weights, {}, implementation=implementation)
    _, actual = differentiated(narrow, weights, {}, implementation=implementation, checkpoint=checkpoint)
    for name in ("w_x", "w_h", "bias"):
        error = np.linalg.norm(np.float64(actual[name]) - np.float64(right[name]))
        assert error < 1e-2 * np.linalg.norm(right[name]), name


@every_implementation
def test_a_reset_restores_the_learned_state_unrounded(implementation):
    params = lstm.init(jax.random.key(0), INPUTS, UNITS, learned_state=True)
    learned = LSTMState(h=jnp.full(UNITS, 0.1234567), c=jnp.full(UNITS, 0.7654321))
    params = dataclasses.replace(params, initial=learned)
    options = lstm.LSTMOptions(precision="bfloat16")

    @jax.jit
    def call(params, xs, resets):
        return lstm.apply(params, xs, resets=resets, implementation=implementation, options=options)

    xs = jnp.ones((2, 1, INPUTS))
    expected, actual = call(params, xs, None), call(params, xs, jnp.ones((2, 1), bool))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize(
    ("implementation", "dtype", "tolerance"),
    [
        pytest.param(
            name,
            dtype,
            tolerance,
            marks=[] if name == "fused" or (name, dtype) == ("pallas_tpu", jnp.bfloat16) else slow,
        )
        for name in lstm.IMPLEMENTATIONS
        for dtype, tolerance in ((jnp.bfloat16, 2**-7), (jnp.float16, 2**-10))
    ],
)
def test_half_precision(implementation, dtype, tolerance):
    """h is rounded once a step, c stays in float32: the error stays a few units of the last place of h."""
    arrays, times = example(20, (2,), 20, lengths=True, resets=False, dtype=dtype)
    right, weights, right_slopes = expected(20, (2,), 20, True, False, False, dtype)
    (ys, h, c), slopes = differentiated(cast(arrays, dtype), weights, times, implementation=implementation)
    assert (ys.dtype, h.dtype, c.dtype) == (dtype, dtype, jnp.float32)
    for a, e in zip((ys, h, c), right, strict=True):
        np.testing.assert_allclose(np.float64(a), e, rtol=tolerance, atol=3 * tolerance)
    assert all(slope.dtype == dtype for slope in slopes.values())
    close({name: np.float64(slope) for name, slope in slopes.items()}, right_slopes, 6 * tolerance)
