"""The cell with derivatives of its own.

The loop keeps z_t, and the tangent of a step is (ẋ and so on being tangents, N the norm, m the output before its
projection)

    ż_t = D[N](ẋ_t W_x + x_t Ẇ_x) + ḃ + D[N](h_{t-1} Ẇ_h + ḣ_{t-1} W_h)
    ṁ_t, ċ_t = D[pointwise](ż_t, ċ_{t-1})
    ḣ_t = ṁ_t W_p + m_t Ẇ_p

of which only ḣ_{t-1} W_h, ṁ_t W_p and what works unit by unit need the loop. JAX transposes this for reverse mode: a
loop against time that emits only the gradient of z_t, then one matrix product each for W_h, W_x, W_p and x, and one
sum for b. A scan's own gradient would instead add a product of rank `batch` to the gradients of the matrices at every
step.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from lstmjax import cell, placement, recurrence
from lstmjax.options import LSTMOptions
from lstmjax.regularize import Dropout, Masks


@partial(jax.custom_jvp, nondiff_argnums=(6, 7, 8))
def run(
    params: cell.LSTMParams,
    xs: Float[Array, "time *batch inputs"],
    state: cell.LSTMState,
    initial: cell.LSTMState,
    masks: Masks,
    clock: recurrence.Clock,
    options: LSTMOptions,
    dropout: Dropout,
    return_sequences: bool,
) -> tuple[Float[Array, "time *batch outputs"] | None, cell.LSTMState]:
    """Run the LSTM over time-major inputs.

    Args:
        params: LSTMParams in the dtype of xs.
        xs: inputs [time, *batch, inputs], 0 on padding.
        state: LSTMState [*batch, units] before the first step read.
        initial: LSTMState [units] that a reset restores.
        masks: those that the loop needs, [*batch, ...] or [time, *batch, ...]; constants to derivatives.
        clock: padding, resets and direction.
        options: activations and clips.
        dropout: the rates of zoneout.
        return_sequences: whether outputs are stacked over time.

    Returns:
        ys [time, *batch, outputs] or None, and the final LSTMState.
    """
    static = options, dropout, return_sequences
    ys, state, _ = _forward(params, xs, state, initial, masks, clock, *static, save=False)
    return ys, state


@partial(run.defjvp, symbolic_zeros=True)
def _run_jvp(options, dropout, return_sequences, primals, tangents):
    params, xs, state, initial, masks, clock = primals
    d_params, d_xs, d_state, d_initial, _, _ = tangents
    static = options, dropout, return_sequences
    ys, final, saved = _forward(params, xs, state, initial, masks, clock, *static, save=True)

    constants, steps = masks.in_loop()
    vectors = _vectors(params)
    d_vectors, d_state, d_initial = _instantiated((_vectors(d_params), d_state, d_initial))
    ahead = _ahead_of_the_loop(params, d_params, d_vectors, xs, d_xs, saved, constants)
    varying = placement.varying_alike((d_state, d_initial, d_vectors, (ahead, saved, steps)))
    d_state, d_initial, d_vectors, now = varying

    def tick(once, d_before, now, constants):
        (d_z, d_h_product, d_h), saved, step = now
        masks = constants.at(step)
        d_h_product = _plus(cell.recurrent_product(params.w_h, d_before, masks), d_h_product)
        d_z = once(d_z + _tangent(cell.recurred, (vectors, saved.h_product), (d_vectors, d_h_product)))
        pointwise = partial(cell.pointwise, options=options, masks=masks)
        d_m, d_c = _tangent(pointwise, (vectors, saved.z, saved.before.c), (d_vectors, d_z, d_before.c))
        d_h = _plus(cell.output_product(params.w_projection, d_m.astype(d_before.h.dtype), d_c.dtype), d_h)
        d_h = _tangent(partial(cell.clipped, bound=options.projection_clip), (saved.unclipped,), (d_h,))
        d_after = cell.LSTMState(h=d_h.astype(d_before.h.dtype), c=d_c)
        return cell.zoned_out(d_after, d_before, dropout, masks), None

    def loop(once, accelerated):
        return partial(
            recurrence.forward,
            partial(tick, once),
            clock=clock,
            return_sequences=return_sequences,
            recompute=True,  # keep z alone, not every slope made from it
            accelerated=accelerated,
        )

    d_ys, d_final, _ = jax.lax.platform_dependent(
        d_state,
        d_initial,
        now,
        constants,
        cpu=loop(lambda d_z: d_z, accelerated=False),
        default=loop(jax.lax.optimization_barrier, accelerated=True),  # else dz is computed again to be written
    )
    return (ys, final), (d_ys, d_final)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Saved:
    """What the loop keeps of each step; what nothing reads is not kept."""

    before: Any
    x_product: Any
    h_product: Any
    z: Any
    m: Any
    unclipped: Any


def _forward(params, xs, state, initial, masks, clock, options, dropout, return_sequences, *, save):
    """The loop, with x W_x where it was measured to be fastest.

    One product ahead of the loop keeps an accelerator's matrix unit busy; on CPU its result
    (4 * units floats for every step) falls out of cache, and a product inside each step wins.
    """

    def product(xs):
        return cell.input_product(params.w_x, xs, state.c.dtype)

    def tick(before, now, constants):
        x_product, step = now
        masks = constants.at(step)
        h_product = cell.recurrent_product(params.w_h, before, masks)
        z = cell.projected(params, x_product) + cell.recurred(params, h_product)
        m, c = cell.pointwise(params, z, before.c, options, masks)
        m = m.astype(before.h.dtype)
        unclipped = cell.output_product(params.w_projection, m, c.dtype)
        h = cell.clipped(unclipped, options.projection_clip)
        after = cell.zoned_out(cell.LSTMState(h=h.astype(before.h.dtype), c=c), before, dropout, masks)
        return after, _Saved(before, x_product, h_product, z, m, unclipped) if save else None

    def inside(before, now, constants):
        x, step = now
        return tick(before, (product(x), step), constants)

    loop = partial(recurrence.forward, clock=clock, return_sequences=return_sequences)
    constants, steps = masks.in_loop()
    return jax.lax.platform_dependent(
        state,
        initial,
        (xs, steps),
        constants,
        cpu=partial(loop, inside),
        default=lambda state, initial, now, constants: loop(
            tick, state, initial, (product(now[0]), now[1]), constants, accelerated=True
        ),
    )


def _ahead_of_the_loop(params, d_params, d_vectors, xs, d_xs, saved, constants):
    """The tangents of z_t, of h_{t-1} W_h where that is normalised, and of h_t, so far as no state has a part."""
    dtype, befores = saved.z.dtype, saved.before
    terms = [cell.input_product(params.w_x, d_xs, dtype)] if _given(d_xs) else []
    terms += [cell.input_product(_apart(d_params.w_x), xs, dtype)] if _given(d_params.w_x) else []
    d_x_product = sum(terms[1:], start=terms[0]) if terms else jnp.zeros_like(saved.x_product)
    d_z = _tangent(jax.checkpoint(cell.projected), (_vectors(params), saved.x_product), (d_vectors, d_x_product))
    d_h_product = d_h = None
    if _given(d_params.w_h):
        masks = jax.tree.map(lambda mask: jnp.broadcast_to(mask, (len(xs), *mask.shape)), constants)
        d_h_product = cell.recurrent_product(_apart(d_params.w_h), befores, masks)
        if params.norm is None:
            d_z, d_h_product = d_z + d_h_product, None
    if _given(d_params.w_projection):
        d_h = cell.output_product(_apart(d_params.w_projection), saved.m, dtype)
    return d_z, d_h_product, d_h


def _apart(d_weights):
    """The same weights, whose gradient is one product that comes out as [columns, rows].

    Without the barrier XLA folds its transposition into it, which is slower on CPU (`python -m benchmarks.choices`).
    """
    return jax.lax.optimization_barrier(d_weights.T).T


def _vectors(params):
    """What the pointwise part reads of the parameters."""
    return dataclasses.replace(params, w_x=None, w_h=None, w_projection=None, initial=None)


def _tangent(function, primals, tangents):
    return jax.jvp(function, primals, tangents)[1]


def _plus(tangent, other):
    return tangent if other is None else tangent + other


def _given(tangent):
    return tangent is not None and not isinstance(tangent, SymbolicZero)


def _instantiated(tangents):
    """With zeros as arrays."""
    zero = lambda tangent: isinstance(tangent, SymbolicZero)  # noqa: E731
    return jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype) if zero(t) else t, tangents, is_leaf=zero)
