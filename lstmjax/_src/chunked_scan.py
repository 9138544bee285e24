"""A scan over chunks of time, for any cell: what needs no state is computed for a whole chunk, before its scan.

On CPU a chunk is as long as fits into the cache; on accelerators it is the whole sequence, and several steps share one
iteration of the compiled loop.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lstmjax._src import chunking
from lstmjax._src.scan import Stacked, StepMasks, mask_step, over_batch


def chunked_scan(
    step: Callable[[Any, Any, Any], tuple[Any, Any, Any]],
    state: Any,
    initial: Any,
    xs: Float[Array, "*batch time inputs"],
    timed: Any,
    constants: Any,
    masks: StepMasks,
    *,
    prepare: Callable[[Any, Any], Any],
    barrier: Callable[[Any], Any],
    chunk: int | None,
    unroll: int | None,
    unroll_elsewhere: int,
    stacked: Stacked,
    recompute: bool = False,
) -> tuple[Any, tuple[Any, Any, Any]]:
    """Run `step` over time, as `scan.scan` does, on `prepare(xs, timed)`.

    Args:
        step: `step(state, x, constants) -> (state, y, residuals)`, of one sequence.
        state: before the first step, leaves [*batch, ...].
        initial: the state that a reset restores, leaves without batch axes.
        xs: inputs, 0 on padding, which `prepare` gets as [time, *batch, inputs].
        timed: what else belongs to each step, leaves [time, *batch, ...].
        constants: what each step of a sequence is given, leaves [*batch, ...].
        masks: StepMasks.
        prepare: applied to a chunk of inputs before its scan, e.g. the input projection; to one step if `chunk` is 1.
        barrier: applied to the state before each step, where XLA would otherwise compute a part of it again.
        chunk: steps in a chunk on CPU; None for all.
        unroll: steps in one iteration of the compiled loop; None for 1 on CPU and `unroll_elsewhere` on accelerators.
        unroll_elsewhere: the divisor of the number of steps nearest to this is taken.
        stacked: what to stack over time.
        recompute: whether the gradient recomputes what lies inside a step instead of keeping it.

    Returns:
        The final state; and ys, states and residuals, stacked over time, of which what is not asked for is None.
    """
    batch_axes, time = xs.ndim - 2, xs.shape[-2]
    masked = mask_step(step, initial, stacked)
    single = lambda state, *now: masked(barrier(state), *now)  # noqa: E731
    body = over_batch(single, batch_axes)
    body = jax.jit(_remat(body) if recompute else body, inline=True)  # traced once for both platforms

    def run(state, *, chunk, unroll_up_to):
        of_chunk, of_step = (_pair, prepare) if chunk == 1 else (prepare, _pair)

        def scan(size):
            def over(start, state, timed):
                timed, valid, resets = timed
                part = xs if size == time else jax.lax.dynamic_slice_in_dim(xs, start, size, axis=xs.ndim - 2)
                return jax.lax.scan(
                    lambda state, now: body(state, of_step(*now[0]), constants, *now[1:]),
                    state,
                    (of_chunk(jnp.moveaxis(part, -2, 0), timed), valid, resets),
                    unroll=unroll or _unroll(size, unroll_up_to),
                )

            # Not with static_argnums, of which JAX would keep this function, and the arrays it closes over, for good.
            return _remat(over) if recompute else over

        timed_masks = timed, masks.valid, masks.resets
        if chunk in (None, 1):
            return scan(time)(0, state, timed_masks)
        return _over_chunks(scan, state, timed_masks, time, chunk)

    on_cpu = partial(run, chunk=chunk, unroll_up_to=1)
    elsewhere = partial(run, chunk=None, unroll_up_to=unroll_elsewhere)
    if recompute:
        on_cpu, elsewhere = _remat(on_cpu), _remat(elsewhere)
    return jax.lax.platform_dependent(state, cpu=on_cpu, default=elsewhere)


def cut(timed: Any, time: int, size: int) -> tuple[Any, Any]:
    """Cut leaves [time, ...] into chunks [chunks, size, ...], and what is left, or None."""
    whole = time - time % size
    chunks = jax.tree.map(lambda leaf: leaf[:whole].reshape(whole // size, size, *leaf.shape[1:]), timed)
    return chunks, jax.tree.map(lambda leaf: leaf[whole:], timed) if whole < time else None


def _over_chunks(scan, state, timed, time, size):
    """Scan over the chunks, whose steps are scanned in turn; then over the steps that are left."""
    chunks, rest = cut(timed, time, size)
    starts = jnp.arange(0, time - time % size, size)
    run_chunk = scan(size)
    state, outputs = jax.lax.scan(lambda state, now: run_chunk(now[0], state, now[1]), state, (starts, chunks))
    outputs = jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0] * size, *leaf.shape[2:]), outputs)
    if rest is not None:
        state, last = scan(time % size)(time - time % size, state, rest)
        outputs = jax.tree.map(lambda *parts: jnp.concatenate(parts), outputs, last)
    return state, outputs


# prevent_cse=False, since XLA cannot merge computations of two scans anyway.
_remat = partial(jax.checkpoint, prevent_cse=False)


def _unroll(size, at_most):
    return chunking.nearest_divisor(size, at_most) if at_most > 1 and isinstance(size, int) else 1


def _pair(*now):
    return now
