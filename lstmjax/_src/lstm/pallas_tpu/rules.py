"""The derivatives of a kernel, which are those of the loop that it stands for.

    forward    a kernel, which keeps z_t and c_{t-1}
    tangent    ẋ_t W_x + x_t Ẇ_x + h_{t-1} Ẇ_h + ḃ of all steps; then a loop, which adds ḣ_{t-1} W_h
    reverse    JAX's transpose of the former, and of the loop a kernel

Where JAX differentiates a kernel itself, in forward mode and for second derivatives, it differentiates its loop.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lstmjax._src import custom_primitive, mesh, scan
from lstmjax._src.dropout_masks import Dropout, SequenceMasks, ZoneoutMasks
from lstmjax._src.lstm import cell, variants
from lstmjax._src.lstm.options import LSTMOptions
from lstmjax._src.lstm.pallas_tpu import tpu
from lstmjax._src.lstm.params import LSTMParams, LSTMState


def refusal(
    params: LSTMParams,
    xs: Array,
    options: LSTMOptions,
    dropout: Dropout,
    masks: SequenceMasks,
    stacked: scan.Stacked,
) -> str | None:
    """Why the kernel cannot compute this; None where it can."""
    if found := variants.departures(params, options, dropout, masks):
        return f"it computes the standard cell, without {', '.join(found)}"
    if stacked.states:
        return "it keeps no states: leave out return_states=True"
    if not all(isinstance(size, int) for size in xs.shape):
        return "it needs sizes that are known when it is traced"
    if jax.default_backend() == "tpu" and xs.dtype not in (jnp.bfloat16, jnp.float32):
        return f"a TPU has bfloat16 and float32, not {xs.dtype}"
    if jax.default_backend() not in ("cpu", "tpu"):
        return f"it is for TPUs, and interpreted on CPUs, not for {jax.default_backend()}"
    *batch, time, inputs = xs.shape
    wide = jnp.promote_types(xs.dtype, jnp.float32).itemsize
    shape = tpu.Shape(max(1, time), max(1, math.prod(batch)), inputs, params.units, xs.dtype.itemsize, wide)
    room = tpu.vmem()
    if any(tpu.plan(shape, backward=backward, save=True, vmem=room) is None for backward in (False, True)):
        weights = (inputs + params.units) * 4 * params.units * xs.dtype.itemsize
        return (
            f"weights of {weights / 2**20:.1f} MiB and a block of one step do not fit into "
            f"{room / 2**20:.0f} MiB of VMEM"
        )
    return None


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
    """Run the LSTM over time; as `fused.run`.

    Raises:
        ValueError: with the reason, where the kernel cannot compute this.
    """
    del zoneout, unroll  # there is no zoneout here, and the kernel has a number of its own
    if reason := refusal(params, xs, options, dropout, masks, stacked):
        raise ValueError(f"implementation='pallas_tpu' cannot run here: {reason}.")
    *batch, time, _ = xs.shape
    rows = math.prod(batch)

    def flat(array: Any) -> Any:
        return None if array is None else array.reshape(time, rows, *array.shape[1 + len(batch) :])

    xs, valid, resets = flat(jnp.moveaxis(xs, -2, 0)), flat(step_masks.valid), flat(step_masks.resets)
    order = None
    if step_masks.may_have_holes:
        # The kernel takes spans of valid steps: those of each row are brought together, in their order.
        order = jnp.argsort(~valid, axis=0, stable=True)
        xs, valid = _take(xs, order), _take(valid, order)
        resets = None if resets is None else _take(resets, order)
    state = jax.tree.map(lambda leaf: leaf.reshape(rows, leaf.shape[-1]), state)
    dtype, wide = xs.dtype, state.c.dtype
    params = variants.cast_params(params, xs)
    bias = jnp.zeros(params.w_x.shape[1], wide) if params.bias is None else params.bias.astype(wide)
    initial = LSTMState(h=initial.h.astype(dtype), c=initial.c.astype(wide))
    weights = tpu.Weights(params.w_x, params.w_h, bias, initial)
    spans = None if valid is None else tpu.Spans.of(valid)
    arguments = mesh.match_varying_axes((weights, tpu.Rows(state, spans), tpu.Steps(xs, resets)))
    compute: Callable = _kernel if xs.size and state.c.size else _loop_alone
    ys, state = compute(*arguments, stacked.outputs)
    if order is not None and ys is not None:
        ys = _take(ys, jnp.argsort(order, axis=0))
    ys, state = jax.tree.map(lambda leaf: leaf.reshape(*leaf.shape[:-2], *batch, leaf.shape[-1]), (ys, state))
    return state, ys, None


def _take(array, order):
    """Take the steps of each row of [time, rows, ...] in an order [time, rows]."""
    return jnp.take_along_axis(array, order.reshape(*order.shape, *[1] * (array.ndim - 2)), axis=0)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _kernel(weights, rows, steps, return_sequences):
    state, (ys, _) = _forward(weights, rows, steps, save=False, return_sequences=return_sequences)
    return ys, state


@_kernel.defjvp
def _kernel_jvp(return_sequences, primals, tangents):
    weights, rows, steps = primals
    d_weights, d_rows, d_steps = tangents
    final, (ys, (z, before_c)) = _forward(weights, rows, steps, save=True, return_sequences=True)
    before_h, wide = _before(ys, weights, rows, steps), before_c.dtype
    d_z = variants.input_product(weights.w_x, d_steps.xs, wide) + variants.input_product(d_weights.w_x, steps.xs, wide)
    d_z += variants.input_product(d_weights.w_h, before_h, wide)
    d_z += jnp.broadcast_to(d_weights.bias, d_z.shape)
    kept = weights.w_h, rows.spans, tpu.Kept(z, before_c, steps.resets)
    given = d_z.astype(z.dtype), d_rows.state, d_weights.initial
    kept, given = mesh.match_varying_axes((kept, given))
    loop, transpose = (partial(f, return_sequences=return_sequences) for f in (_tangent_loop, _transposed))
    return (ys if return_sequences else None, final), custom_primitive.linear(loop, transpose, kept, given)


def _before(ys, weights, rows, steps):
    """h before each valid step."""
    before = jnp.concatenate([rows.state.h[None], ys])[:-1]
    if rows.spans is not None:
        first = jax.vmap(lambda t: rows.spans.start == t)(jnp.arange(len(ys), dtype=jnp.int32))
        before = jnp.where(first[..., None], jnp.broadcast_to(rows.state.h, before.shape), before)
    if steps.resets is not None:
        before = jnp.where(steps.resets[..., None], jnp.broadcast_to(weights.initial.h, before.shape), before)
    return before


def _forward(weights, rows, steps, **how):
    kernel = _folded(_on_tpu(partial(tpu.forward, **how)))
    return custom_primitive.call(partial(_loop, **how), kernel, weights, rows, steps)


def _transposed(kept, cotangents, *, return_sequences):
    def kernel(kept, cotangents):
        w_h, spans, arrays = kept
        d_ys, d_final = cotangents
        rows, steps = tpu.Rows(d_final, spans), dataclasses.replace(arrays, d_ys=d_ys)
        (d_state, d_initial), d_z = _folded(_on_tpu(tpu.backward))(w_h, rows, steps)
        d_initial = jax.tree.map(lambda leaf: leaf.sum(0), d_initial)
        like = jax.tree.map(lambda leaf: leaf.dtype, d_final)
        return d_z, *(jax.tree.map(jnp.astype, tree, like) for tree in (d_state, d_initial))

    def loop(kept, cotangents):
        _, _, arrays = kept
        _, state = cotangents
        row = LSTMState(h=state.h.sum(0), c=state.c.sum(0))
        zeros = jax.tree.map(jnp.zeros_like, (arrays.z, state, row))
        _, pull = jax.vjp(lambda given: _tangent_loop(kept, given, return_sequences=return_sequences), zeros)
        return pull(cotangents)[0]

    return custom_primitive.call(loop, kernel, kept, cotangents)


def _loop_alone(weights, rows, steps, return_sequences):
    state, (ys, _) = _loop(weights, rows, steps, save=False, return_sequences=return_sequences)
    return ys, state


def _loop(weights, rows, steps, *, save, return_sequences):
    """The forward kernel as a scan."""
    wide = rows.state.c.dtype
    z_x = variants.input_product(weights.w_x, steps.xs, wide)
    z_x += jnp.broadcast_to(weights.bias, z_x.shape)

    def step(before, now, _):
        x, z_x = now
        z = z_x + variants.recurrent_product(weights.w_h, before, SequenceMasks())
        h, c = cell.standard_update(z, before.c)
        state = LSTMState(h=h.astype(before.h.dtype), c=c)
        return state, state.h, (z.astype(x.dtype), before.c) if save else None

    timed = steps.xs, z_x
    state, ys, saved = _over_time(step, rows.state, weights.initial, timed, rows.spans, steps.resets, return_sequences)
    return state, (ys, saved)


def _tangent_loop(kept, given, *, return_sequences):
    """The scan whose transpose the backward kernel computes."""
    w_h, spans, arrays = kept
    d_z, d_state, d_initial = given

    def step(d_before, now, _):
        d_z, z, before_c = now
        d_z = d_z.astype(before_c.dtype) + variants.recurrent_product(w_h, d_before, SequenceMasks())
        _, (d_h, d_c) = jax.jvp(cell.standard_update, (z.astype(before_c.dtype), before_c), (d_z, d_before.c))
        d_state = LSTMState(h=d_h.astype(d_before.h.dtype), c=d_c)
        return d_state, d_state.h, None

    timed = d_z, arrays.z, arrays.before_c
    d_final, d_ys, _ = _over_time(step, d_state, d_initial, timed, spans, arrays.resets, return_sequences)
    return d_ys, d_final


def _over_time(step, state, initial, timed, spans, resets, return_sequences):
    time = len(jax.tree.leaves(timed)[0])
    masks = scan.StepMasks(None if spans is None else spans.valid(time), resets)
    stacked = scan.Stacked(outputs=return_sequences)
    state, (ys, _, saved) = scan.scan(step, state, initial, timed, None, masks, batch_axes=1, stacked=stacked)
    return state, ys, saved


def _on_tpu(kernel: Callable) -> Callable:
    """Compiled on a TPU, and interpreted on a CPU."""

    def run(*arguments):
        interpreted = partial(kernel, interpret=True)
        return jax.lax.platform_dependent(*arguments, tpu=kernel, cpu=interpreted)

    return run


def _folded(kernel: Callable) -> Callable:
    """`kernel(weights, rows, steps)`, to which the axis that `jax.vmap` maps is more rows, unless it is of weights."""

    @jax.custom_batching.custom_vmap
    def run(weights, rows, steps):
        return kernel(weights, rows, steps)

    @run.def_vmap
    def _(size, mapped, weights, rows, steps):
        if any(jax.tree.leaves(mapped[0])):
            every = jax.tree.map(partial(_mapped, size), (weights, rows, steps), tuple(mapped))
            out = jax.lax.map(lambda arguments: run(*arguments), every)
        else:
            rows, steps = jax.tree.map(partial(_mapped, size), (rows, steps), tuple(mapped[1:]))
            rows = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows)
            steps = jax.tree.map(
                lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(leaf.shape[1], -1, *leaf.shape[3:]), steps
            )
            rows, steps = run(weights, rows, steps)
            rows = jax.tree.map(lambda leaf: leaf.reshape(size, -1, *leaf.shape[1:]), rows)
            steps = jax.tree.map(
                lambda leaf: jnp.moveaxis(leaf.reshape(len(leaf), size, -1, *leaf.shape[2:]), 1, 0), steps
            )
            out = rows, steps
        return out, jax.tree.map(lambda _: True, out)

    return run


def _mapped(size, leaf, mapped):
    return leaf if mapped else jnp.broadcast_to(leaf, (size, *leaf.shape))
