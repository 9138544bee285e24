"""The standard cell with a backward pass of its own.

The loop against time emits only dz, the gradient of the gates' pre-activations; the gradients of all
parameters and inputs are then one matrix product each (a scan's own gradient would add a rank-`batch`
update of W_h at every step):

    dW_x = sum_t x_t^T dz_t    dW_h = sum_t h_{t-1}^T dz_t    db = sum_t dz_t    dx_t = dz_t W_x^T

Forward-mode differentiation (jax.jvp, jax.hessian) is not defined here: `implementation="scan"` has it.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lstmjax import recurrence


def refuses(options: Any) -> str | None:
    """Why the fused path cannot compute these options, or None."""
    differing = [
        f"{field.name}={getattr(options, field.name)!r}"
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != field.default
    ]
    return f"it computes the standard cell only, not {', '.join(differing)}" if differing else None


@partial(jax.custom_vjp, nondiff_argnums=(5,))
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
        initial: LSTMState [units] that a reset restores, taken as constant.
        clock: padding, resets and direction.
        return_sequences: whether outputs are stacked over time.

    Returns:
        ys [time, *batch, units] or None, and the final LSTMState.
    """
    ys, state, _ = _forward(params, xs, state, initial, clock, return_sequences, save=False)
    return ys, state


def _run_fwd(params, xs, state, initial, clock, return_sequences):
    ys, final, saved = _forward(params, xs, state, initial, clock, return_sequences, save=True)
    return (ys, final), (params, xs, clock, saved)


def _run_bwd(return_sequences, residuals, cotangents):
    del return_sequences
    params, xs, clock, saved = residuals
    d_ys, d_final = cotangents

    def cell_vjp(d_after, saved):
        before, (i, f, g, o) = saved
        tanh_c = jnp.tanh(f * before.c + i * g)
        d_h = d_after.h.astype(d_after.c.dtype)
        d_c = d_after.c + d_h * o * (1 - tanh_c**2)
        d_z = jnp.concatenate(
            [
                d_c * g * i * (1 - i),
                d_c * before.c * f * (1 - f),
                d_c * i * (1 - g**2),
                d_h * tanh_c * o * (1 - o),
            ]
        ).astype(xs.dtype)
        return dataclasses.replace(d_after, h=d_z @ params.w_h.T, c=d_c * f), d_z

    d_state, d_z = recurrence.backward(cell_vjp, d_final, d_ys, saved, clock)
    steps = tuple(range(d_z.ndim - 1))
    total = partial(jnp.tensordot, axes=(steps, steps), preferred_element_type=d_final.c.dtype)
    d_params = dataclasses.replace(
        params,
        w_x=total(xs, d_z).astype(xs.dtype),
        w_h=total(saved[0].h, d_z).astype(xs.dtype),
        bias=jnp.sum(d_z, axis=steps, dtype=d_final.c.dtype).astype(xs.dtype),
    )
    return d_params, d_z @ params.w_x.T, d_state, None, None


run.defvjp(_run_fwd, _run_bwd)


def _forward(params, xs, state, initial, clock, return_sequences, *, save):
    """The loop, with x W_x + b where it was measured to be fastest.

    One product ahead of the loop keeps an accelerator's matrix unit busy; on CPU its result
    (4 * units floats for every step) falls out of cache, and a product inside each step wins.
    """
    product = partial(jnp.matmul, preferred_element_type=state.c.dtype)

    def project(xs):
        projected = product(xs, params.w_x)
        return projected + jnp.broadcast_to(params.bias.astype(projected.dtype), projected.shape)

    def cell(state, z_x):
        i, f, g, o = jnp.split(z_x + product(state.h, params.w_h), 4)
        gates = i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        c = f * state.c + i * g
        h = (o * jnp.tanh(c)).astype(state.h.dtype)
        return dataclasses.replace(state, h=h, c=c), (state, gates) if save else None

    run = partial(recurrence.forward, clock=clock, return_sequences=return_sequences)
    return jax.lax.platform_dependent(
        state,
        initial,
        xs,
        cpu=lambda state, initial, xs: run(lambda s, x: cell(s, project(x)), state, initial, xs),
        default=lambda state, initial, xs: run(cell, state, initial, project(xs)),
    )
