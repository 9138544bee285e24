"""What is seen inside: the same as `apply` computes, and the equations between what is seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from test_variants import COMPOSITIONS, VARIANTS, cast, every_variant, example

from lstmjax import bidirectional, lstm, stack
from lstmjax.inspect import Trace, trace

ATOL = {"rtol": 0, "atol": 2e-6}


def test_every_gate_of_every_step_is_what_a_loop_over_the_equations_gives():
    rng = np.random.default_rng(0)
    params = lstm.init(jax.random.key(0), inputs=2, units=3)
    xs = rng.normal(size=(2, 5, 2)).astype("f")
    seen = trace(params, xs)
    w_x, w_h, bias = (np.float64(leaf) for leaf in (params.w_x, params.w_h, params.bias))
    h = c = np.zeros((2, 3))
    for t in range(5):
        z_i, z_f, z_g, z_o = np.split(np.float64(xs[:, t]) @ w_x + h @ w_h + bias, 4, axis=-1)
        i, f, g, o = reference.sigmoid(z_i), reference.sigmoid(z_f), np.tanh(z_g), reference.sigmoid(z_o)
        c = f * c + i * g
        h = o * np.tanh(c)
        for name, value in {"i": i, "f": f, "g": g, "o": o, "c": c, "h": h}.items():
            np.testing.assert_allclose(getattr(seen, name)[:, t], value, **ATOL)


@every_variant
@pytest.mark.parametrize("reverse", [False, True])
def test_h_and_c_are_those_of_apply_at_every_step(variant, reverse):
    """`apply` on a sequence cut short ends in the c of every step; the gates make it of the one before."""
    (params, xs, state), times = cast_example("fused", variant)
    arguments = variant.arguments() | times | {"reverse": reverse}
    seen = trace(params, xs, state, **arguments)
    ys, final = lstm.apply(params, xs, state, **arguments)
    np.testing.assert_allclose(seen.h, ys, **ATOL)
    _, time, _ = xs.shape
    for b, length in enumerate(times["lengths"]):
        last = 0 if reverse else length - 1
        np.testing.assert_allclose(seen.c[b, last], final.c[b], **ATOL)
        for leaf in jax.tree.leaves(seen):
            assert not np.any(leaf[b, length:])
    whole = arguments | {"lengths": None, "resets": None}
    seen = trace(params, xs, state, **whole)
    for steps in range(1, time + 1):
        some = xs[:, time - steps :] if reverse else xs[:, :steps]
        at = time - steps if reverse else steps - 1
        np.testing.assert_allclose(seen.c[:, at], lstm.apply(params, some, state, **whole)[1].c, **ATOL)
    if not variant.zoneout:
        before = np.concatenate([np.asarray(seen.c)[:, 1:], np.asarray(state.c)[:, None]], axis=1)
        if not reverse:
            before = np.concatenate([np.asarray(state.c)[:, None], np.asarray(seen.c)[:, :-1]], axis=1)
        bound = variant.options.get("cell_clip", np.inf)
        np.testing.assert_allclose(seen.c, np.clip(seen.f * before + seen.i * seen.g, -bound, bound), **ATOL)


@pytest.mark.parametrize("name", [name for name in COMPOSITIONS if name not in ("fused", "scan")])
def test_directions_and_layers(name):
    composition = COMPOSITIONS[name]
    (params, xs, state), times = cast_example(name, VARIANTS["standard"])
    asked = composition.apply.keywords
    seen = trace(params, xs, state, **times, **asked)
    ys, _ = composition.apply(params, xs, state, **times)
    layer = seen[-1] if name.endswith(("stack", "start")) else seen
    h = (
        layer.h
        if isinstance(layer, Trace)
        else bidirectional.MERGES[asked.get("merge", "concat")](layer[0].h, layer[1].h)
    )
    if "residual" not in name:
        np.testing.assert_allclose(h, ys, **ATOL)
        return
    below, _ = stack.apply(
        stack.StackParams(params.layers[:-1]),
        xs,
        state[:-1],
        **times,
        **asked | ({"residual_from": None} if asked["residual_from"] else {}),
    )
    np.testing.assert_allclose(h + below, ys, **ATOL)


def test_what_apply_refuses_is_refused():
    params = lstm.init(jax.random.key(0), inputs=2, units=3)
    with pytest.raises(ValueError, match="xs must have 2 features"):
        trace(params, jnp.ones((4, 5)))
    with pytest.raises(ValueError, match="residual_from=0 needs StackParams"):
        trace(params, jnp.ones((4, 2)), residual_from=0)


def test_nothing_of_padding_is_seen():
    params = lstm.init(jax.random.key(0), inputs=2, units=3)
    xs = jnp.ones((2, 4, 2)).at[1, 2:].set(jnp.nan)
    lengths = jnp.array([4, 2])
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(trace(params, xs, lengths=lengths)))
    assert trace(params, jnp.ones((2, 0, 2))).i.shape == (2, 0, 3)


def cast_example(name, variant):
    (params, xs, state), times = example(COMPOSITIONS[name], variant)
    return (cast(params, "float32"), jnp.asarray(xs, "float32"), cast(state, "float32")), times
