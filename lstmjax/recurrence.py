"""The loop over time: padding, resets and direction, written once.

    before_t = initial              where resets_t, else state_{t-1}
    after_t  = cell(before_t, x_t)
    state_t  = after_t              where valid_t,  else state_{t-1}
    y_t      = state_t.h            where valid_t,  else 0

With `reverse`, t runs from the last step to the first and t-1 is the step read before it. Inside this
module arrays are time-major, [time, *batch, ...]; a cell is written for one step of one sequence and
is mapped over the batch axes here.
"""

import dataclasses
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["valid", "resets"],
    meta_fields=["reverse", "unroll"],
)
@dataclasses.dataclass(frozen=True)
class Clock:
    """What the loop knows of each step beside its input.

    Args:
        valid: bool [time, *batch], False on padding; None where every step is valid.
        resets: bool [time, *batch], True where a step starts from the initial state; None for nowhere.
        reverse: whether time runs from the last step to the first.
        unroll: steps in one iteration of the compiled loop.
    """

    valid: Any
    resets: Any
    reverse: bool
    unroll: int


def time_major(
    xs: Float[Array, "*batch time inputs"],
    lengths: Int[Array, "*batch"] | None,
    resets: Bool[Array, "*batch time"] | None,
    *,
    reverse: bool,
    unroll: int,
) -> tuple[Float[Array, "time *batch inputs"], Clock]:
    """Put time first, and zeros where padding was, so that nothing read there can reach a gradient."""
    xs = jnp.moveaxis(xs, -2, 0)
    valid = None
    if lengths is not None:
        valid = jax.vmap(lambda t: t < lengths)(jnp.arange(xs.shape[0], dtype=jnp.int32))
        xs = _batched(lambda valid, x: _select(valid, x, jnp.zeros_like(x)), valid.ndim)(valid, xs)
    if resets is not None:
        resets = jnp.moveaxis(resets, -1, 0)
    return xs, Clock(valid, resets, reverse, unroll)


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

    Returns:
        ys [time, *batch, units] or None; the state after the last step read; what the cell saved,
        stacked over time.
    """

    def tick(state, now, constant):
        x, valid, reset = now
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
        reverse=clock.reverse,
        unroll=clock.unroll,
    )
    return ys, state, saved


def in_segments(
    run: Callable[[Any, Any, Clock], tuple[Any, Any]],
    state: Any,
    xs: Any,
    clock: Clock,
    segments: int,
) -> tuple[Any, Any]:
    """Run `run(state, xs, clock) -> (ys, state)` over time in pieces, of which a gradient keeps the first state alone.

    What lies inside a piece is computed again for it: twice the forward arithmetic, and the memory of `segments`
    states and one piece (Chen et al., "Training deep nets with sublinear memory cost", 2016).

    Args:
        run: the loop over one piece; ys has leaves [time, *batch, ...], or none.
        state: the state before the first step read.
        xs: a tree with leaves [time, *batch, ...].
        clock: padding, resets and direction.
        segments: how many pieces, of equal length but for the last one read; 0 for no pieces and no recomputation.
    """
    time = jax.tree.leaves(xs)[0].shape[0]
    if time == 0 or segments == 0:
        return run(state, xs, clock)
    size = -(-time // segments)
    whole, rest = divmod(time, size)
    run = jax.checkpoint(run)
    timed = (xs, clock.valid, clock.resets)

    def piece(state, timed):
        xs, valid, resets = timed
        ys, state = run(state, xs, dataclasses.replace(clock, valid=valid, resets=resets))
        return state, ys

    start = rest if clock.reverse else 0
    pieces = jax.tree.map(
        lambda leaf: leaf[start : start + whole * size].reshape(whole, size, *leaf.shape[1:]),
        timed,
    )
    state, ys = jax.lax.scan(piece, state, pieces, reverse=clock.reverse)
    ys = jax.tree.map(lambda leaf: leaf.reshape(whole * size, *leaf.shape[2:]), ys)
    if rest:
        state, last = piece(state, jax.tree.map(lambda leaf: leaf[:rest] if clock.reverse else leaf[-rest:], timed))
        order = (last, ys) if clock.reverse else (ys, last)
        ys = jax.tree.map(lambda *parts: jnp.concatenate(parts), *order)
    return ys, state


def _select(condition: Bool[Array, ""], chosen: Any, other: Any) -> Any:
    return jax.tree.map(partial(jnp.where, condition), chosen, other)


def _batched(function: Callable, axes: int) -> Callable:
    return reduce(lambda f, _: jax.vmap(f), range(axes), function)
