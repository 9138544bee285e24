"""A table of functions beneath JAX: exported, dispatched, called again, under JAX's modes, and at their edges."""

import contextlib
import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fuzz.calls import CALLS, Call

import lstmjax
from lstmjax import bidirectional, conv1d, crf, dense, embedding, hierarchy, lstm, ragged, recurrent, residual, stack


def leaky(params, x, h):
    h = params * h + (1 - params) * x
    return jnp.tanh(h), h


RECURRENT = {name: CALLS["lstm.apply"].arguments[name] for name in ("xs", "lengths", "resets")}
MASKED = {name: CALLS["lstm.apply"].arguments[name] for name in ("params", "xs", "state", "resets")}
MASKED["mask"] = np.arange(MASKED["xs"].shape[1]) % 2 == np.arange(MASKED["xs"].shape[0])[:, None] % 2
TABLE = CALLS | {
    "recurrent.apply": Call(
        recurrent.apply,
        RECURRENT | {"step": leaky, "params": np.float32(0.7), "state": np.ones((2, RECURRENT["xs"].shape[-1]), "f4")},
    ),
    "lstm.apply with a mask": Call(lstm.apply, MASKED),
    "lstm.apply with states": Call(lstm.apply, MASKED | {"return_states": True}),
}
every_call = pytest.mark.parametrize("call", TABLE.values(), ids=TABLE)


def split(call):
    """The arguments that are arrays, and the function of them."""
    arrays = {name: _raw(value) for name, value in call.arguments.items() if _has_arrays(value)}
    rest = {name: value for name, value in call.arguments.items() if name not in arrays}
    return arrays, lambda arrays: jax.tree.leaves(call.function(**arrays, **rest))


def _raw(value):
    """Typed keys as numbers, since JAX flattens typed ones in Python at each call."""
    typed = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(value) if typed else value


def _has_arrays(value):
    return any(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(value))


@every_call
def test_exports_and_stays_on_the_fast_path(call):
    """A function under jit can be stored, and its calls reach no Python: an effect would prevent both."""
    arrays, function = split(call)
    arrays = jax.tree.map(jnp.asarray, arrays)
    jitted = jax.jit(function)
    leaves, tree = jax.tree.flatten(arrays)
    exported = jax.export.export(jax.jit(lambda *leaves: function(jax.tree.unflatten(tree, leaves))))(*leaves)
    stored = jax.export.deserialize(exported.serialize())
    for _ in range(3):
        expected = jax.block_until_ready(jitted(arrays))
    called = []
    sys.setprofile(lambda frame, event, _: called.append(frame.f_code) if event == "call" else None)
    try:
        jitted(arrays)
    finally:
        sys.setprofile(None)
    assert not called
    for actual, right in zip(stored.call(*leaves), expected, strict=True):
        np.testing.assert_array_equal(actual, right)


def gradient(call, *names):
    """Of all that is floating, in all arrays that are, or in those of these arguments."""
    arrays, function = split(call)
    leaves, tree = jax.tree.flatten_with_path(arrays)
    paths, leaves = zip(*leaves, strict=True)
    chosen = [not names or path[0].key in names for path in paths]
    floating = [k for k, leaf in enumerate(leaves) if chosen[k] and jnp.issubdtype(leaf.dtype, jnp.floating)]

    def loss(*given):
        put = dict(zip(floating, given, strict=True))
        results = function(jax.tree.unflatten(tree, [put.get(k, leaf) for k, leaf in enumerate(leaves)]))
        parts = [jnp.sum(leaf) for leaf in results if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return sum(parts[1:], parts[0])

    if floating and any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.eval_shape(function, arrays)):
        return jax.grad(loss, tuple(range(len(floating))))(*(leaves[k] for k in floating))


@pytest.mark.slow
@every_call
def test_an_error_passes_through_a_derivative(call):
    """The derivative of a checked function gives the error of that function."""
    arrays, function = split(call)
    arrays = jax.tree.map(jnp.asarray, arrays)
    is_floating = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)  # noqa: E731
    tangents = jax.tree.map(
        lambda leaf: jnp.ones_like(leaf) if is_floating(leaf) else np.zeros(leaf.shape, jax.dtypes.float0), arrays
    )
    run = jax.jit(lambda arrays: jax.jvp(lstmjax.checked(function), (arrays,), (tangents,))[0][0])
    assert run(arrays).get() is None


KEY = jax.random.key(0)
MADE = {
    "lstm.init": lambda: lstm.init(KEY, 2, 3, peepholes=True, projection=2, layer_norm=True, learned_state=True),
    "lstm.init, chrono": lambda: lstm.init(KEY, 2, 3, forget_bias=None, chrono=10),
    "lstm.initial_state": lambda: lstm.initial_state(lstm.init(KEY, 2, 3, learned_state=True), (2,)),
    "bidirectional.init": lambda: bidirectional.init(KEY, 2, 3),
    "stack.init": lambda: stack.init(KEY, 2, (3, 4), bidirectional=True),
    "stack.initial_state": lambda: stack.initial_state(stack.init(KEY, 2, (3, 4)), (2,)),
    "hierarchy.init": lambda: hierarchy.init(KEY, 2, (3, 4), vocabulary=5),
    "dense.init": lambda: dense.init(KEY, 2, 3),
    "embedding.init": lambda: embedding.init(KEY, 5, 3),
    "conv1d.init": lambda: conv1d.init(KEY, 2, 3, kernel=2),
    "residual.init": lambda: residual.init(KEY, 2, (3, 3)),
    "crf.init": lambda: crf.init(KEY, 3),
    "ragged.pad": lambda: ragged.pad([[1, 2], [3]]),
}


def check_second(run, event="/jax/core/compile"):
    """Nothing is traced or compiled the second time."""
    events = []

    def listen(name, _, **__):
        if name.startswith(event):
            events.append(name)

    jax.block_until_ready(run())
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.block_until_ready(run())
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not events


@every_call
def test_compiles_nothing_when_called_again(call):
    check_second(lambda: call.function(**call.arguments))


@every_call
def test_a_gradient_compiles_nothing_when_taken_again(call):
    check_second(lambda: gradient(call), "/jax/core/compile/backend_compile")


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_making_compiles_nothing_when_called_again(make):
    check_second(make)


def _none_in_padding(call):
    """The same call with NaN where lengths say that padding is."""
    arguments = dict(call.arguments)
    lengths, mask = arguments.get("lengths"), arguments.get("mask")
    for name in ("xs", "emissions"):
        if name in arguments and (mask is not None or isinstance(lengths, np.ndarray)):
            array = arguments[name].copy()
            valid = np.arange(array.shape[-2]) < lengths[:, None] if mask is None else mask
            array[~valid] = np.nan
            arguments[name] = array
    return dataclasses.replace(call, arguments=arguments)


MODES = {
    "debug_nans": lambda: jax.debug_nans(True),
    "strict": lambda: jax.numpy_dtype_promotion("strict"),
    "leaks": jax.checking_leaks,
    "no_jit": jax.disable_jit,
    "x64": lambda: jax.enable_x64(True),
}


@contextlib.contextmanager
def _careful():
    with MODES["debug_nans"](), MODES["strict"]():
        yield


def check_mode(call, mode, *names, dirty=False):
    """Values and gradients are those without the mode."""
    right = call.function(**call.arguments), gradient(call, *names)
    call = _none_in_padding(call) if dirty else call
    with mode():
        actual = call.function(**call.arguments), gradient(call, *names)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@every_call
def test_nan_in_padding_and_strict_dtypes(call):
    """Where JAX stops at the first NaN that is computed, padding may hold it."""
    check_mode(call, _careful, dirty=True)


@pytest.mark.slow
@every_call
@pytest.mark.parametrize("mode", MODES)
def test_modes(call, mode):
    check_mode(call, MODES[mode])


@pytest.mark.parametrize("name", ["lstm.apply", "stack.apply"])
def test_the_gradient_of_params_alone_leaks_no_tracer(name):
    """What has no derivative is no array there."""
    check_mode(CALLS[name], MODES["leaks"], "params")


@pytest.mark.slow
@every_call
def test_no_gradient_of_params_leaks_a_tracer(call):
    check_mode(call, MODES["leaks"], "params")


def cut(call, batch, time):
    """The same call with so many sequences, or steps; None where it has no such axis."""
    within = {"xs", "x", "emissions", "tokens", "state", "lengths", "mask", "resets", "tags"} & set(call.arguments)
    if not within or (time is not None and "x" in within):
        return None
    arguments = dict(call.arguments)
    for name in within:
        value = arguments[name]
        if batch is not None:
            value = jax.tree.map(lambda leaf: leaf[:batch], value)
        elif name in ("xs", "emissions"):
            value = value[..., :time, :]
        elif name in ("mask", "resets", "tags", "tokens"):
            value = value[..., :time]
        elif name == "lengths":
            lowest = np.minimum(value[0] if isinstance(value, tuple) else value, time)
            value = (lowest, *value[1:]) if isinstance(value, tuple) else lowest
        arguments[name] = value
    return dataclasses.replace(call, arguments=arguments)


EDGES = {"B = 0": (0, None), "B = 1": (1, None), "T = 0": (None, 0), "T = 1": (None, 1)}


@every_call
@pytest.mark.parametrize("edge", [pytest.param(e, marks=[pytest.mark.slow] * ("1" in e)) for e in EDGES])
def test_edges(call, edge):
    """No sequences or one, no steps or one: shapes as ever, values as by NumPy, and gradients that are finite."""
    small = cut(call, *EDGES[edge])
    if small is None:
        pytest.skip("has no such axis")
    results, whole = (each.function(**each.arguments) for each in (small, call))
    for leaf, like in zip(jax.tree.leaves(results), jax.tree.leaves(whole), strict=True):
        assert leaf.dtype == like.dtype
        assert leaf.ndim == like.ndim
        if edge == "B = 0":
            assert leaf.shape == (0, *like.shape[1:])
    right = small.expected(**small.arguments) if small.expected is not None and edge != "B = 0" else None
    if len(jax.tree.leaves(right)) == len(jax.tree.leaves(results)):  # some say less than all
        for one, other in zip(jax.tree.leaves(results), jax.tree.leaves(right), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    for leaf in jax.tree.leaves(gradient(small)):
        assert np.isfinite(leaf).all()
