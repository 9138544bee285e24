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

from lstmjax._src import chunking, mesh, pytrees, scan
from lstmjax._src.dropout_masks import Dropout, Masks
from lstmjax._src.lstm import cell
from lstmjax._src.lstm.options import LSTMOptions

TOGETHER = 4  # steps in one iteration, but on CPU


@partial(jax.custom_jvp, nondiff_argnums=(6, 7, 8))
def run(
    params: cell.LSTMParams,
    xs: Float[Array, "*batch time inputs"],
    state: cell.LSTMState,
    initial: cell.LSTMState,
    masks: Masks,
    clock: scan.Clock,
    options: LSTMOptions,
    dropout: Dropout,
    return_sequences: bool,
) -> tuple[Float[Array, "time *batch outputs"] | None, cell.LSTMState]:
    """Run the LSTM over time.

    Args:
        params: LSTMParams, in whose dtypes gradients add up; computed with in that of xs.
        xs: inputs [*batch, time, inputs], 0 on padding.
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
    d_params, d_state, d_initial = _tangents(d_params), *_instantiated((d_state, d_initial))
    d_xs = jnp.moveaxis(d_xs, -2, 0) if _given(d_xs) else None
    timed = (d_xs, saved, steps)
    d_state, d_initial, d_params, timed = mesh.varying_alike((d_state, d_initial, d_params, timed))
    params = cell.narrowed(params, xs)
    vectors = _vectors(params)

    def tick(d_before, now, constants):
        (d_z, d_h_product, d_h), saved, step = now
        masks, d_vectors = constants.at(step), cell.narrowed(_vectors(d_params), xs)
        d_h_product = _plus(cell.recurrent_product(params.w_h, d_before, masks, options.units_axis), d_h_product)
        recurred = partial(cell.recurred, options=options)
        d_z += _tangent(recurred, (vectors, saved.h_product), (d_vectors, d_h_product))
        d_z = jax.lax.optimization_barrier(d_z)  # else what is written is computed again
        pointwise = partial(cell.pointwise, options=options, masks=masks)
        d_m, d_c = _tangent(pointwise, (vectors, saved.z, saved.before.c), (d_vectors, d_z, d_before.c))
        d_h = _plus(cell.output_product(params.w_projection, d_m.astype(d_before.h.dtype), d_c.dtype), d_h)
        d_h = _tangent(partial(cell.clipped, bound=options.projection_clip), (saved.unclipped,), (d_h,))
        d_after = cell.LSTMState(h=d_h.astype(d_before.h.dtype), c=d_c)
        return cell.zoned_out(d_after, d_before, dropout, masks), None

    def ahead(xs, timed):
        d_xs, saved, steps = timed
        narrow = cell.narrowed(d_params, xs)
        return _ahead_of_the_loop(params, narrow, xs, d_xs, saved, constants, options), saved, steps

    d_ys, d_final, _ = scan.forward(
        tick,
        d_state,
        d_initial,
        xs,
        timed,
        constants,
        clock,
        return_sequences=return_sequences,
        ahead=ahead,
        block=chunking.behind(xs, params.w_x, params.w_h),
        together=TOGETHER,
        recompute=True,  # keep z alone, not every slope made from it
    )
    return (ys, final), (d_ys, d_final)


@pytrees.container
class _Saved:
    """What the loop keeps of each step; what nothing reads is not kept."""

    before: Any
    x_product: Any
    h_product: Any
    z: Any
    m: Any
    unclipped: Any


def _forward(params, xs, state, initial, masks, clock, options, dropout, return_sequences, *, save):
    """The loop, with x W_x ahead of each block of steps."""
    params = cell.narrowed(params, xs)

    def ahead(xs, steps):
        return cell.input_product(params.w_x, xs, state.c.dtype), steps

    def tick(before, now, constants):
        x_product, step = now
        masks = constants.at(step)
        h_product = cell.recurrent_product(params.w_h, before, masks, options.units_axis)
        z = cell.projected(params, x_product, options) + cell.recurred(params, h_product, options)
        m, c = cell.pointwise(params, z, before.c, options, masks)
        m = m.astype(before.h.dtype)
        unclipped = cell.output_product(params.w_projection, m, c.dtype)
        h = cell.clipped(unclipped, options.projection_clip)
        after = cell.zoned_out(cell.LSTMState(h=h.astype(before.h.dtype), c=c), before, dropout, masks)
        return after, _Saved(before, x_product, h_product, z, m, unclipped) if save else None

    shifted = save and return_sequences and clock.resets is None
    constants, steps = masks.in_loop()
    ys, final, saved = scan.forward(
        tick,
        state,
        initial,
        xs,
        steps,
        constants,
        clock,
        return_sequences=return_sequences and not shifted,
        ahead=ahead,
        block=chunking.ahead(xs, params.w_x),
        together=TOGETHER,
    )
    if shifted:
        ys = scan.where(clock.valid, jnp.concatenate([saved.before.h, final.h[None]])[1:])
    return ys, final, saved


def _ahead_of_the_loop(params, d_params, xs, d_xs, saved, constants, options):
    """The tangents of z_t, of h_{t-1} W_h where that is normalised, and of h_t, so far as no state has a part."""
    dtype = saved.z.dtype
    terms = [] if d_xs is None else [cell.input_product(params.w_x, d_xs, dtype)]
    terms += [cell.input_product(d_params.w_x, xs, dtype)] if d_params.w_x is not None else []
    d_x_product = sum(terms[1:], start=terms[0]) if terms else jnp.zeros_like(saved.x_product)
    projected = jax.checkpoint(partial(cell.projected, options=options))
    d_z = _tangent(projected, (_vectors(params), saved.x_product), (_vectors(d_params), d_x_product))
    d_h_product = d_h = None
    if d_params.w_h is not None:
        masks = jax.tree.map(lambda mask: jnp.broadcast_to(mask, (len(xs), *mask.shape)), constants)
        d_h_product = cell.recurrent_product(d_params.w_h, saved.before, masks, options.units_axis)
        if not cell.norms_products(params):
            d_z, d_h_product = d_z + d_h_product, None
    if d_params.w_projection is not None:
        d_h = cell.output_product(d_params.w_projection, saved.m, dtype)
    return d_z, d_h_product, d_h


def _tangents(d_params):
    """Those of matrices are None where they are zero, all others arrays."""
    names = "w_x", "w_h", "w_projection"
    given = {name: getattr(d_params, name) for name in names if _given(getattr(d_params, name))}
    return dataclasses.replace(_instantiated(_vectors(d_params)), **given)


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
