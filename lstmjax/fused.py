"""The standard cell with derivatives of its own.

The loop keeps the gates, and the tangent of a step is (ẋ and so on being tangents)

    ż_t = ẋ_t W_x + x_t Ẇ_x + h_{t-1} Ẇ_h + ḃ + ḣ_{t-1} W_h       only the last product needs the loop
    ċ_t = ḟ c_{t-1} + f ċ_{t-1} + i̇ g + i ġ
    ḣ_t = ȯ tanh(c_t) + o (1 - tanh²(c_t)) ċ_t

JAX transposes this for reverse mode: a loop against time that emits only the gradient of z_t, then one matrix
product each for W_h, W_x and x, and one sum for b. A scan's own gradient would instead add a product of rank
`batch` to the gradients of W_h and W_x at every step.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from lstmjax import placement, recurrence


def refuses(options: Any) -> str | None:
    """Why the fused path cannot compute these options, or None."""
    differing = [
        f"{field.name}={getattr(options, field.name)!r}"
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != field.default
    ]
    return f"it computes the standard cell only, not {', '.join(differing)}" if differing else None


@partial(jax.custom_jvp, nondiff_argnums=(5,))
def run(
    params: Any,
    xs: Float[Array, "time *batch inputs"],
    state: Any,
    initial: Any,
    clock: recurrence.Clock,
    return_sequences: bool,
) -> tuple[Float[Array, "time *batch units"] | None, Any]:
    """Run the standard LSTM over time-major inputs.

    Args:
        params: LSTMParams in the dtype of xs.
        xs: inputs [time, *batch, inputs], 0 on padding.
        state: LSTMState [*batch, units] before the first step read.
        initial: LSTMState [units] that a reset restores.
        clock: padding, resets and direction.
        return_sequences: whether outputs are stacked over time.

    Returns:
        ys [time, *batch, units] or None, and the final LSTMState.
    """
    ys, state, _ = _forward(params, xs, state, initial, clock, return_sequences, save=False)
    return ys, state


@partial(run.defjvp, symbolic_zeros=True)
def _run_jvp(return_sequences, primals, tangents):
    params, xs, state, initial, clock = primals
    d_params, d_xs, d_state, d_initial, _ = tangents
    ys, final, saved = _forward(params, xs, state, initial, clock, return_sequences, save=True)
    befores, _ = saved

    terms = [_product(d_xs, params.w_x, state)] if _given(d_xs) else []
    terms += [_weighted(xs, d_params.w_x, state)] if _given(d_params.w_x) else []
    terms += [_weighted(befores.h, d_params.w_h, state)] if _given(d_params.w_h) else []
    d_z = sum(terms, start=jnp.zeros((*xs.shape[:-1], 4 * befores.h.shape[-1]), state.c.dtype))
    if _given(d_params.bias):
        d_z += jnp.broadcast_to(d_params.bias.astype(d_z.dtype), d_z.shape)

    def cell(d_state, now):
        d_z, (before, (i, f, g, o)) = now
        tanh_c = jnp.tanh(f * before.c + i * g)
        d_z_i, d_z_f, d_z_g, d_z_o = jnp.split(d_z + _product(d_state.h, params.w_h, state), 4)
        d_i, d_f, d_o = i * (1 - i) * d_z_i, f * (1 - f) * d_z_f, o * (1 - o) * d_z_o
        d_g = (1 - g**2) * d_z_g
        d_c = d_f * before.c + f * d_state.c + d_i * g + i * d_g
        d_h = d_o * tanh_c + o * (1 - tanh_c**2) * d_c
        return dataclasses.replace(d_state, h=d_h.astype(d_state.h.dtype), c=d_c), None

    d_state, d_initial = jax.tree.map(_instantiate, (d_state, d_initial), is_leaf=lambda d: not _given(d))
    d_state, d_initial, now = placement.varying_alike((d_state, d_initial, (d_z, saved)))
    d_ys, d_final, _ = recurrence.forward(
        cell,
        d_state,
        d_initial,
        now,
        clock,
        return_sequences=return_sequences,
        recompute=True,  # keep the gates alone, not every slope made from them
    )
    return (ys, final), (d_ys, d_final)


def _forward(params, xs, state, initial, clock, return_sequences, *, save):
    """The loop, with x W_x + b where it was measured to be fastest.

    One product ahead of the loop keeps an accelerator's matrix unit busy; on CPU its result
    (4 * units floats for every step) falls out of cache, and a product inside each step wins.
    """

    def project(xs):
        projected = _product(xs, params.w_x, state)
        return projected + jnp.broadcast_to(params.bias.astype(projected.dtype), projected.shape)

    def cell(before, projected):
        z_i, z_f, z_g, z_o = jnp.split(projected + _product(before.h, params.w_h, state), 4)
        gates = i, f, g, o = jax.nn.sigmoid(z_i), jax.nn.sigmoid(z_f), jnp.tanh(z_g), jax.nn.sigmoid(z_o)
        c = f * before.c + i * g
        h = o * jnp.tanh(c)
        after = dataclasses.replace(before, h=h.astype(before.h.dtype), c=c)
        return after, (before, gates) if save else None

    run = partial(recurrence.forward, clock=clock, return_sequences=return_sequences)
    return jax.lax.platform_dependent(
        state,
        initial,
        xs,
        cpu=lambda state, initial, xs: run(lambda s, x: cell(s, project(x)), state, initial, xs),
        default=lambda state, initial, xs: run(cell, state, initial, project(xs)),
    )


def _product(xs, weights, state):
    """xs @ weights, accumulated as widely as c is kept."""
    return jnp.matmul(xs, weights, preferred_element_type=state.c.dtype)


def _weighted(xs, d_weights, state):
    """xs @ d_weights, linear in d_weights, whose transpose is the product of all steps' xs and dz.

    That product comes out as [gates, features]; without the barrier XLA folds the transposition into it, which
    is slower on CPU (`python -m benchmarks.choices`).
    """
    transposed = jax.lax.optimization_barrier(d_weights.T)
    contract = ((xs.ndim - 1,), (1,)), ((), ())
    return jax.lax.dot_general(xs, transposed, contract, preferred_element_type=state.c.dtype)


def _given(tangent):
    return not isinstance(tangent, SymbolicZero)


def _instantiate(tangent):
    return tangent if _given(tangent) else jnp.zeros(tangent.shape, tangent.dtype)
