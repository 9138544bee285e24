"""The LSTM over time, with derivatives of its own.

The scan keeps z_t, and the tangent of a step is (ẋ and so on being tangents, N the norm, m the output before its
projection)

    ż_t = D[N](ẋ_t W_x + x_t Ẇ_x) + ḃ + D[N](h_{t-1} Ẇ_h + ḣ_{t-1} W_h)
    ṁ_t, ċ_t = D[pointwise](ż_t, ċ_{t-1})
    ḣ_t = ṁ_t W_p + m_t Ẇ_p

of which only ḣ_{t-1} W_h, ṁ_t W_p and the elementwise operations need a scan. JAX transposes this for reverse mode: the
backward scan computes only dz, the gradients of the pre-activations; one matrix product each then gives the gradients
of W_h, W_x, W_p and x, and one sum that of b. The gradient that JAX derives from a plain scan would instead add a
product of rank `batch` to the gradients of the matrices at every step.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from lstmjax._src import chunking, mesh, padding, pytrees, scan
from lstmjax._src.chunked_scan import chunked_scan
from lstmjax._src.dropout_masks import Dropout, SequenceMasks, ZoneoutMasks
from lstmjax._src.lstm import variants
from lstmjax._src.lstm.options import LSTMOptions
from lstmjax._src.lstm.params import LSTMParams, LSTMState

UNROLL_ELSEWHERE = 4  # steps in one iteration of the compiled loop on accelerators


@partial(jax.custom_jvp, nondiff_argnums=(7, 8, 9, 10))
def run(
    params: LSTMParams,
    xs: Float[Array, "*batch time inputs"],
    state: LSTMState,
    initial: LSTMState,
    step_masks: scan.StepMasks,
    masks: SequenceMasks,
    zoneout: ZoneoutMasks,
    options: LSTMOptions,
    dropout: Dropout,
    stacked: scan.Stacked,
    unroll: int | None,
) -> tuple[LSTMState, Any, Any]:
    """Run the LSTM over time.

    Args:
        params: LSTMParams in the dtypes in which gradients accumulate; products are computed in that of xs.
        xs: inputs [*batch, time, inputs], 0 on padding.
        state: LSTMState [*batch, units] before the first step read.
        initial: LSTMState [units] that a reset restores.
        step_masks: padding and resets.
        masks: those that a step needs, [*batch, ...]; constants to derivatives.
        zoneout: ZoneoutMasks, likewise.
        options: activations and clips.
        dropout: the rates of zoneout.
        stacked: what is stacked over time.
        unroll: steps in one iteration of the compiled loop; None for what suits the platform.

    Returns:
        The final LSTMState; ys [time, *batch, outputs] or None; LSTMState [time, *batch, ...] or None.
    """
    static = options, dropout, stacked, unroll
    final, ys, states, _ = _forward(params, xs, state, initial, step_masks, masks, zoneout, *static, save=False)
    return final, ys, states


@partial(run.defjvp, symbolic_zeros=True)
def _run_jvp(options, dropout, stacked, unroll, primals, tangents):
    params, xs, state, initial, step_masks, masks, zoneout = primals
    d_params, d_xs, d_state, d_initial, *_ = tangents
    static = options, dropout, stacked, unroll
    final, ys, states, saved = _forward(params, xs, state, initial, step_masks, masks, zoneout, *static, save=True)

    d_params, d_state, d_initial = _tangents(d_params), *_instantiate((d_state, d_initial))
    d_xs = jnp.moveaxis(d_xs, -2, 0) if _is_given(d_xs) else None
    timed = (d_xs, saved, zoneout)
    d_state, d_initial, d_params, timed = mesh.match_varying_axes((d_state, d_initial, d_params, timed))
    params = variants.cast_params(params, xs)
    vectors = _vectors(params)

    def step(d_before, now, masks):
        (d_z, d_h_product, d_h), saved, zoneout = now
        d_vectors = variants.cast_params(_vectors(d_params), xs)
        product = variants.recurrent_product(params.w_h, d_before, masks, options.units_axis)
        d_h_product = _plus(product, d_h_product)
        recurrent = partial(variants.recurrent_preactivations, options=options)
        d_z += _tangent(recurrent, (vectors, saved.h_product), (d_vectors, d_h_product))
        d_z = jax.lax.optimization_barrier(d_z)  # XLA would otherwise compute it again where it is stored
        pointwise = partial(variants.pointwise, options=options, masks=masks)
        d_m, d_c = _tangent(pointwise, (vectors, saved.z, saved.before.c), (d_vectors, d_z, d_before.c))
        d_h = _plus(variants.project_output(params.w_projection, d_m.astype(d_before.h.dtype), d_c.dtype), d_h)
        d_h = _tangent(partial(variants.clip, bound=options.projection_clip), (saved.unclipped,), (d_h,))
        d_after = LSTMState(h=d_h.astype(d_before.h.dtype), c=d_c)
        d_after = variants.apply_zoneout(d_after, d_before, dropout, zoneout)
        return d_after, d_after.h, None

    def prepare(xs, timed):
        d_xs, saved, zoneout = timed
        narrow = variants.cast_params(d_params, xs)
        return _before_scan(params, narrow, xs, d_xs, saved, masks, options), saved, zoneout

    d_final, (d_ys, d_states, _) = chunked_scan(
        step,
        d_state,
        d_initial,
        xs,
        timed,
        masks,
        step_masks,
        prepare=prepare,
        barrier=_barrier,
        chunk=chunking.grad_chunk(xs, params.w_x, params.w_h),
        unroll=unroll,
        unroll_elsewhere=UNROLL_ELSEWHERE,
        stacked=stacked,
        recompute=True,  # keep z alone, and none of the derivatives made from it
    )
    return (final, ys, states), (d_final, d_ys, d_states)


@pytrees.container
class _Saved:
    """Residuals of each step; those that nothing reads are not kept."""

    before: Any
    x_product: Any
    h_product: Any
    z: Any
    m: Any
    unclipped: Any


def _forward(params, xs, state, initial, step_masks, masks, zoneout, options, dropout, stacked, unroll, *, save):
    """The forward scan, with x W_x of each chunk of steps before it."""
    params = variants.cast_params(params, xs)

    def prepare(xs, zoneout):
        return variants.input_product(params.w_x, xs, state.c.dtype), zoneout

    def step(before, now, masks):
        x_product, zoneout = now
        h_product = variants.recurrent_product(params.w_h, before, masks, options.units_axis)
        z = variants.input_preactivations(params, x_product, options)
        z = z + variants.recurrent_preactivations(params, h_product, options)
        m, c = variants.pointwise(params, z, before.c, options, masks)
        m = m.astype(before.h.dtype)
        unclipped = variants.project_output(params.w_projection, m, c.dtype)
        h = variants.clip(unclipped, options.projection_clip).astype(before.h.dtype)
        after = variants.apply_zoneout(LSTMState(h=h, c=c), before, dropout, zoneout)
        return after, after.h, _Saved(before, x_product, h_product, z, m, unclipped) if save else None

    # The state after each step is saved as that before the next one, unless that was reset.
    shifted = save and any(stacked) and step_masks.resets is None
    final, (ys, states, saved) = chunked_scan(
        step,
        state,
        initial,
        xs,
        zoneout,
        masks,
        step_masks,
        prepare=prepare,
        barrier=_barrier,
        chunk=chunking.input_chunk(xs, params.w_x),
        unroll=unroll,
        unroll_elsewhere=UNROLL_ELSEWHERE,
        stacked=scan.Stacked(False, False) if shifted else stacked,
    )
    if shifted and stacked.outputs:
        ys = padding.fill_time_major(_append(saved.before.h, final.h), step_masks.valid)
    if shifted and stacked.states:
        states = jax.tree.map(_append, saved.before, final)
    return final, ys, states, saved


def _append(before, final):
    """From what was before each step to what is after it."""
    return jnp.concatenate([before, final[None]])[1:]


def _barrier(state):
    """XLA would otherwise compute the previous c again and copy what the loop carries."""
    return dataclasses.replace(state, c=jax.lax.optimization_barrier(state.c))


def _before_scan(params, d_params, xs, d_xs, saved, masks, options):
    """The parts of the tangents of z_t, of h_{t-1} W_h where that is normalised, and of h_t that need no state."""
    dtype = saved.z.dtype
    terms = [] if d_xs is None else [variants.input_product(params.w_x, d_xs, dtype)]
    terms += [variants.input_product(d_params.w_x, xs, dtype)] if d_params.w_x is not None else []
    d_x_product = sum(terms[1:], start=terms[0]) if terms else jnp.zeros_like(saved.x_product)
    projected = jax.checkpoint(partial(variants.input_preactivations, options=options))
    d_z = _tangent(projected, (_vectors(params), saved.x_product), (_vectors(d_params), d_x_product))
    d_h_product = d_h = None
    if d_params.w_h is not None:
        masks = jax.tree.map(lambda mask: jnp.broadcast_to(mask, (len(xs), *mask.shape)), masks)
        d_h_product = variants.recurrent_product(d_params.w_h, saved.before, masks, options.units_axis)
        if not variants.normalizes_products(params):
            d_z, d_h_product = d_z + d_h_product, None
    if d_params.w_projection is not None:
        d_h = variants.project_output(d_params.w_projection, saved.m, dtype)
    return d_z, d_h_product, d_h


def _tangents(d_params):
    """Symbolic-zero tangents of matrices become None; others are instantiated."""
    names = "w_x", "w_h", "w_projection"
    given = {name: getattr(d_params, name) for name in names if _is_given(getattr(d_params, name))}
    return dataclasses.replace(_instantiate(_vectors(d_params)), **given)


def _vectors(params):
    """The parameters that elementwise operations need."""
    return dataclasses.replace(params, w_x=None, w_h=None, w_projection=None, initial=None)


def _tangent(function, primals, tangents):
    return jax.jvp(function, primals, tangents)[1]


def _plus(tangent, other):
    return tangent if other is None else tangent + other


def _is_given(tangent):
    return tangent is not None and not isinstance(tangent, SymbolicZero)


def _instantiate(tangents):
    """Make arrays of symbolic zeros."""
    zero = lambda tangent: isinstance(tangent, SymbolicZero)  # noqa: E731
    return jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype) if zero(t) else t, tangents, is_leaf=zero)
