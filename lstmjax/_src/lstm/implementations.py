"""The implementations of the LSTM over time, and what all of them share: dtypes, biases, dropout masks, segments."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lstmjax._src import mesh, remat, scan, validation
from lstmjax._src.dropout_masks import Dropout, SequenceMasks, ZoneoutMasks
from lstmjax._src.lstm import fused, unit_parallel, variants
from lstmjax._src.lstm.initialization import start
from lstmjax._src.lstm.options import LSTMOptions
from lstmjax._src.lstm.params import LSTMParams, LSTMState


def plain_scan(params, xs, state, initial, step_masks, masks, zoneout, options, dropout, stacked, unroll):
    """Run the LSTM by `scan.scan`, whose gradient JAX derives; arguments and results as those of `fused.run`."""

    def step(state, now, masks):
        x, zoneout = now
        cast = variants.cast_params(params, x)
        after = variants.step(cast, x, state, options, dropout, masks, zoneout)
        return after, after.h, None

    timed = jnp.moveaxis(xs, -2, 0), zoneout
    axes = xs.ndim - 2
    state, (ys, states, _) = scan.scan(
        step, state, initial, timed, masks, step_masks, batch_axes=axes, stacked=stacked, unroll=unroll or 1
    )
    return state, ys, states


def _pallas_tpu(*arguments):
    from lstmjax._src.lstm.pallas_tpu import rules  # Pallas takes as long to load as all else

    return rules.run(*arguments)


# The TPU kernel has never run on its hardware, so that "auto" leaves it to those who name it.
AUTO = "fused"
IMPLEMENTATIONS = {"pallas_tpu": _pallas_tpu, "fused": fused.run, "scan": plain_scan}


def why_no_kernel(
    params: Any, xs: Any, options: LSTMOptions, dropout: Dropout, masks: SequenceMasks, stacked: scan.Stacked
) -> str:
    """Tell why "auto" does not take the kernel."""
    if jax.default_backend() != "tpu":
        return "there is no TPU here"
    from lstmjax._src.lstm.pallas_tpu import rules

    refused = rules.refusal(params, xs, options, dropout, masks, stacked)
    return refused or "nobody has timed it on a TPU; implementation='pallas_tpu' runs it"


def over_time(
    params: LSTMParams,
    xs: Array,
    state: LSTMState,
    step_masks: scan.StepMasks,
    masks: SequenceMasks,
    zoneout: ZoneoutMasks,
    *,
    options: LSTMOptions,
    dropout: Dropout,
    stacked: scan.Stacked,
    implementation: str,
    unroll: int | None,
    segments: int,
) -> tuple[LSTMState, Any, Any]:
    """Run the LSTM over xs [*batch, time, inputs], in the order in which they are read.

    Returns:
        The final LSTMState; ys [*batch, time, outputs] or None; LSTMState [*batch, time, ...] or None.
    """
    units_axis = mesh.units_axis(options.units_axis)
    if units_axis != options.units_axis:  # an axis of one device
        options = dataclasses.replace(options, units_axis=units_axis)
    initial = start(params)
    params, xs, state = promote_dtypes(params, xs, state, options)
    wide = state.c.dtype
    initial = LSTMState(h=initial.h.astype(xs.dtype).astype(wide), c=initial.c.astype(wide))
    # Weight gradients accumulate in the dtype of c, at least float32; each step casts to the compute dtype.
    params = variants.sum_biases(jax.tree.map(lambda leaf: leaf.astype(wide), params))
    if masks.recurrent_weights is not None:
        params = dataclasses.replace(params, w_h=params.w_h * masks.recurrent_weights.astype(wide))
    static = options, dropout, stacked, unroll

    def compute(*arguments):
        params, state, initial, masks, zoneout, xs, step_masks = mesh.match_varying_axes(arguments)

        def loop(state, timed):
            xs, zoneout, step_masks = timed
            xs = jnp.moveaxis(xs, 0, -2)
            if masks.inputs is not None:
                xs = xs * jnp.broadcast_to(jnp.expand_dims(masks.inputs.astype(xs.dtype), -2), xs.shape)
            run = IMPLEMENTATIONS[implementation]
            state, *stacks = run(params, xs, state, initial, step_masks, masks.of_steps(), zoneout, *static)
            return state, stacks

        timed = jnp.moveaxis(xs, -2, 0), zoneout, step_masks
        state, stacks = remat.in_segments(loop, state, timed, segments) if segments else loop(state, timed)
        return state, *jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -2), stacks)

    if xs.shape[-2] == 0:  # JAX runs no scan of no steps where jit is disabled
        state, *stacks = mesh.match_varying_axes((state, *_of_no_steps(xs, state, params.outputs, stacked)))
        return state, *stacks
    if options.units_axis is not None:
        stacks = xs if stacked.outputs else None, LSTMState(xs, xs) if stacked.states else None
        compute = unit_parallel.shard_units(compute, options.units_axis, (state, *stacks))
    sequence_masks = dataclasses.replace(masks, outputs=None, recurrent_weights=None)
    return compute(params, state, initial, sequence_masks, zoneout, xs, step_masks)


def _of_no_steps(xs, state, outputs, stacked):
    """Empty stacks, of no steps."""
    ys = jnp.zeros((*xs.shape[:-1], outputs), xs.dtype) if stacked.outputs else None
    empty = lambda leaf: jnp.zeros((*xs.shape[:-1], leaf.shape[-1]), leaf.dtype)  # noqa: E731
    return ys, jax.tree.map(empty, state) if stacked.states else None


def promote_dtypes(
    params: LSTMParams, x: Array, state: LSTMState, options: LSTMOptions
) -> tuple[LSTMParams, Array, LSTMState]:
    """Promote all to one dtype, the common one if options name none, and c to at least float32."""
    dtype = jnp.dtype(options.precision or jnp.result_type(x, state.h, *jax.tree.leaves(params)))
    wide = validation.at_least_float32(dtype)
    wide = wide if options.precision else jnp.result_type(state.c, wide)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)  # of NumPy too, where jit is disabled
    return params, x.astype(dtype), LSTMState(h=state.h.astype(dtype), c=state.c.astype(wide))
