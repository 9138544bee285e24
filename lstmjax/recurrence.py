"""The loop over time: padding, resets and direction, written once.

    before_t = initial              where resets_t, else state_{t-1}
    after_t  = cell(before_t, x_t)
    state_t  = after_t              where valid_t,  else state_{t-1}
    y_t      = state_t.h            where valid_t,  else 0

Inside this module arrays are time-major, [time, *batch, ...], and stand in the order in which they are read: what is
read last to first is turned before the loop (`in_order`) and its outputs after it, so that both directions are one
program, which is traced and compiled once. A cell is written for one step of one sequence and is mapped over the batch
axes here.
"""

import dataclasses
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lstmjax import placement


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["valid", "resets"],
    meta_fields=["unroll"],
)
@dataclasses.dataclass(frozen=True)
class Clock:
    """What the loop knows of each step beside its input.

    Args:
        valid: bool [time, *batch], False on padding; None where every step is valid.
        resets: bool [time, *batch], True where a step starts from the initial state; None for nowhere.
        unroll: steps in one iteration of the compiled loop; None for what suits where it runs.
    """

    valid: Any
    resets: Any
    unroll: int | None


def read_by(
    lengths: Int[Array, "*batch"] | None,
    resets: Bool[Array, "*batch time"] | None,
    time: int,
    *,
    reverse: bool,
    unroll: int | None,
) -> Clock:
    """Make the clock of sequences with `time` steps."""
    valid = None
    if lengths is not None:
        valid = jax.vmap(lambda t: t < lengths)(jnp.arange(time, dtype=jnp.int32))
    resets = None if resets is None else jnp.moveaxis(resets, -1, 0)
    valid, resets = in_order((valid, resets), reverse)
    return Clock(valid, resets, unroll)


def in_order(tree: Any, reverse: bool, axis: int = 0) -> Any:
    """Turn time, which is `axis` of every leaf, where it is read last to first."""
    return jax.tree.map(partial(jnp.flip, axis=axis), tree) if reverse else tree


def time_major(xs: Float[Array, "*batch time inputs"], clock: Clock) -> Float[Array, "time *batch inputs"]:
    """Put time first, and zeros where padding was, so that nothing read there can reach a gradient."""
    xs = jnp.moveaxis(xs, -2, 0)
    if clock.valid is None:
        return xs
    return _batched(lambda valid, x: _select(valid, x, jnp.zeros_like(x)), clock.valid.ndim)(clock.valid, xs)


def forward(
    cell: Callable[[Any, Any, Any], tuple[Any, Any]],
    state: Any,
    initial: Any,
    xs: Any,
    constants: Any,
    clock: Clock,
    *,
    return_sequences: bool,
    recompute: bool = False,
    accelerated: bool = False,
) -> tuple[Float[Array, "time *batch units"] | None, Any, Any]:
    """Run `cell(state, x, constant) -> (state, saved)` over time.

    Args:
        cell: one step of one sequence; its state has fields h, the output, and c.
        state: the state before the first step read, leaves [*batch, ...].
        initial: the state that a reset restores, leaves without batch axes.
        xs: inputs of the cell, a tree with leaves [time, *batch, ...].
        constants: what the cell is given at every step of a sequence, a tree with leaves [*batch, ...].
        clock: padding, resets and direction.
        return_sequences: whether h of every step is stacked.
        recompute: whether the gradient recomputes what lies inside a step instead of keeping it.
        accelerated: whether this is compiled for an accelerator, where a step is short beside what it waits for.

    Returns:
        ys [time, *batch, units] or None; the state after the last step read; what the cell saved,
        stacked over time.
    """

    def tick(state, now, constant):
        x, valid, reset = now
        if accelerated:
            # Else a step computes c of the one before again, which needs a copy of what the loop carries.
            state = dataclasses.replace(state, c=jax.lax.optimization_barrier(state.c))
        before = state if reset is None else _select(reset, initial, state)
        after, saved = cell(before, x, constant)
        if valid is not None:
            after = _select(valid, after, state)
        y = None
        if return_sequences:
            y = after.h if valid is None else _select(valid, after.h, jnp.zeros_like(after.h))
        return after, (y, saved)

    tick = _batched(tick, state.h.ndim - 1)
    if recompute:
        tick = jax.checkpoint(tick, prevent_cse=False)
    now = (xs, clock.valid, clock.resets)
    state, (ys, saved) = jax.lax.scan(
        lambda state, now: tick(state, now, constants),
        state,
        now,
        unroll=clock.unroll or (_together(jax.tree.leaves(now)) if accelerated else 1),
    )
    return ys, state, saved


def _together(leaves):
    """How many steps to compile as one body, dividing time if possible: the rest of a division is copied together."""
    time = leaves[0].shape[0] if leaves else 1
    return next((n for n in (4, 5, 6, 7, 8, 3, 2) if time % n == 0), 4) if isinstance(time, int) else 1


def in_segments(
    run: Callable[[Any, Any, Any, Clock], tuple[Any, Any]],
    state: Any,
    xs: Float[Array, "*batch time inputs"],
    timed: Any,
    clock: Clock,
    segments: int,
) -> tuple[Any, Any]:
    """Run `run(state, xs, timed, clock) -> (ys, state)` over time in pieces, and compute each again for its gradient.

    What a gradient keeps is the state before each piece; what it needs at a time is one piece (Chen et al., "Training
    deep nets with sublinear memory cost", 2016).

    Args:
        run: the loop over one piece; its ys are [*batch, time, ...], or None.
        state: the state before the first step read.
        xs: [*batch, time, inputs].
        timed: a tree with leaves [time, *batch, ...], cut like xs.
        clock: padding, resets and direction.
        segments: how many pieces, of equal length but for the last one read.

    Returns:
        ys [*batch, time, ...] or None, and the state after the last step read.
    """
    time = xs.shape[-2]
    size = -(-time // max(1, min(segments, time)))
    if time == 0:
        return run(state, xs, timed, clock)
    timed = (jnp.moveaxis(xs, -2, 0), timed, clock.valid, clock.resets)

    def piece(state, timed):
        xs, timed, valid, resets = timed
        return run(state, jnp.moveaxis(xs, 0, -2), timed, dataclasses.replace(clock, valid=valid, resets=resets))

    piece = jax.checkpoint(piece)

    def advance(carry, now):
        state, ys = carry
        start, timed = now
        y, state = piece(state, timed)
        write = lambda ys, y: jax.lax.dynamic_update_slice_in_dim(ys, y, start, axis=-2)  # noqa: E731
        return (state, jax.tree.map(write, ys, y)), None

    whole, rest = divmod(time, size)
    cut = jax.tree.map(lambda leaf: leaf[: whole * size].reshape(whole, size, *leaf.shape[1:]), timed)
    outputs, _ = jax.eval_shape(lambda: run(state, xs, timed[1], clock))
    ys = jax.tree.map(jnp.zeros_like, outputs)
    state, ys, _ = placement.varying_alike((state, ys, xs))
    carry, _ = jax.lax.scan(advance, (state, ys), (size * jnp.arange(whole), cut))
    if rest:
        carry, _ = advance(carry, (whole * size, jax.tree.map(lambda leaf: leaf[whole * size :], timed)))
    state, ys = carry
    return ys, state


def _select(condition: Bool[Array, ""], chosen: Any, other: Any) -> Any:
    return jax.tree.map(partial(jnp.where, condition), chosen, other)


def _batched(function: Callable, axes: int) -> Callable:
    return reduce(lambda f, _: jax.vmap(f), range(axes), function)
