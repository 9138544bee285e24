"""What is seen inside: the same as `apply` computes, and the equations between what is seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from test_variants import COMPOSITIONS, VARIANTS, example

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


# The cells that have all parts, and what these cannot show; with -m slow all others.
BY_DEFAULT = ("standard", "two biases", "clips", "zoneout", "all", "all but gates of their own")
BOTH_WAYS = ("zoneout", "all")


@pytest.mark.parametrize(
    ("name", "reverse"),
    [
        pytest.param(name, reverse, marks=[] if name in (BOTH_WAYS if reverse else BY_DEFAULT) else pytest.mark.slow)
        for name in VARIANTS
        for reverse in (False, True)
    ],
)
def test_h_and_c_are_those_of_apply_at_every_step(name, reverse):
    """`apply` on a sequence cut short ends in the c of every step; the gates make it of the one before."""
    variant = VARIANTS[name]
    (params, xs, state), times = cast_example("fused", variant)
    batch, time, _ = xs.shape
    with_times, whole, *cut = (slice(batch * n, batch * (n + 1)) for n in range(time + 2))  # rows of one call
    pieces = [np.roll(xs, steps, axis=1) if reverse else xs for steps in range(1, time + 1)]
    rows = np.concatenate([xs, xs, *pieces])
    lengths = np.repeat([0, time, *range(1, time + 1)], batch)
    resets = np.zeros(rows.shape[:2], bool)
    lengths[with_times], resets[with_times] = times["lengths"], times["resets"]
    tiled = jax.tree.map(lambda leaf: np.concatenate([leaf] * (time + 2)), state)

    @jax.jit
    def run(params, xs, state, **times):
        arguments = variant.arguments() | times | {"reverse": reverse}
        whole = lstm.apply(params, xs, state, **arguments)
        del arguments["deterministic"]  # as a trace always is
        return trace(params, xs, state, **arguments), whole

    seen, (ys, final) = jax.tree.map(np.asarray, run(params, rows, tiled, lengths=lengths, resets=resets))
    np.testing.assert_allclose(seen.h, ys, **ATOL)
    for row, length in enumerate(lengths):
        last = 0 if reverse else length - 1
        np.testing.assert_allclose(seen.c[row, last], final.c[row], **ATOL)
        for leaf in jax.tree.leaves(seen):
            assert not np.any(leaf[row, length:])
    for steps, some in enumerate(cut, start=1):
        at = time - steps if reverse else steps - 1
        np.testing.assert_allclose(seen.c[whole][:, at], final.c[some], **ATOL)
    if not variant.zoneout and "kept" not in name:  # whose c is normalised
        seen = jax.tree.map(lambda leaf: leaf[whole], seen)
        before = np.concatenate([seen.c[:, 1:], state.c[:, None]], axis=1)
        if not reverse:
            before = np.concatenate([state.c[:, None], seen.c[:, :-1]], axis=1)
        bound = variant.options.get("cell_clip", np.inf)
        np.testing.assert_allclose(seen.c, np.clip(seen.f * before + seen.i * seen.g, -bound, bound), **ATOL)


@pytest.mark.parametrize("name", [name for name in COMPOSITIONS if name not in ("fused", "scan")])
def test_directions_and_layers(name):
    composition = COMPOSITIONS[name]
    (params, xs, state), times = cast_example(name, VARIANTS["standard"])
    asked = composition.apply.keywords
    residual = "residual" in name

    @jax.jit
    def run(params, xs, state, times):
        seen, (ys, _) = trace(params, xs, state, **times, **asked), composition.apply(params, xs, state, **times)
        if not residual:
            return seen, ys, None
        lower = stack.StackParams(params.layers[:-1])
        only = asked | ({"residual_from": None} if asked["residual_from"] else {})
        return seen, ys, stack.apply(lower, xs, state[:-1], **times, **only)[0]

    seen, ys, below = run(params, xs, state, times)
    layer = seen[-1] if name.endswith(("stack", "start")) else seen
    h = (
        layer.h
        if isinstance(layer, Trace)
        else bidirectional.MERGES[asked.get("merge", "concat")](layer[0].h, layer[1].h)
    )
    np.testing.assert_allclose(h + below if residual else h, ys, **ATOL)


def test_what_apply_refuses_is_refused():
    params = lstm.init(jax.random.key(0), inputs=2, units=3)
    with pytest.raises(ValueError, match="xs must have 2 features"):
        trace(params, jnp.ones((4, 5)))
    with pytest.raises(ValueError, match="residual_from=0 needs StackParams"):
        trace(params, jnp.ones((4, 2)), residual_from=0)


def test_nothing_of_padding_is_seen():
    params = lstm.init(jax.random.key(0), inputs=2, units=3)
    xs = np.ones((2, 4, 2), np.float32)
    xs[1, 2:] = np.nan
    seen = jax.jit(trace)(params, xs, lengths=np.array([4, 2]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(seen))
    assert jax.jit(trace)(params, xs[:, :0]).i.shape == (2, 0, 3)


def cast_example(name, variant):
    trees, times = example(COMPOSITIONS[name], variant)
    return jax.tree.map(np.float32, trees), times
