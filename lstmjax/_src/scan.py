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

from lstmjax._src import mesh, pytrees


@pytrees.container
class Clock:
    """What the loop knows of each step beside its input.

    Args:
        valid: bool [time, *batch], False on padding; None where every step is valid.
        resets: bool [time, *batch], True where a step starts from the initial state; None for nowhere.
        unroll: steps in one iteration of the compiled loop; None for what suits where it runs.
    """

    valid: Any
    resets: Any
    unroll: int | None = dataclasses.field(metadata={"static": True})


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


def where(valid: Any, xs: Float[Array, "time *batch features"]) -> Float[Array, "time *batch features"]:
    """Put zeros where padding is; `valid` is None where there is none."""
    if valid is None:
        return xs
    return _batched(lambda valid, x: _select(valid, x, jnp.zeros_like(x)), valid.ndim)(valid, xs)


def forward(
    cell: Callable[[Any, Any, Any], tuple[Any, Any]],
    state: Any,
    initial: Any,
    xs: Float[Array, "*batch time inputs"],
    timed: Any,
    constants: Any,
    clock: Clock,
    *,
    return_sequences: bool,
    ahead: Callable[[Any, Any], Any] = lambda *now: now,
    block: int | None = None,
    recompute: bool = False,
    together: int = 1,
) -> tuple[Float[Array, "time *batch units"] | None, Any, Any]:
    """Run `cell(state, x, constant) -> (state, saved)` over time, x being a step of `ahead(xs, timed)`.

    Args:
        cell: one step of one sequence; its state has fields h, the output, and c.
        state: the state before the first step read, leaves [*batch, ...].
        initial: the state that a reset restores, leaves without batch axes, in whose dtypes its gradient adds up.
        xs: inputs, 0 on padding, which `ahead` gets as [time, *batch, inputs].
        timed: what else belongs to each step, a tree with leaves [time, *batch, ...].
        constants: what the cell is given at every step of a sequence, a tree with leaves [*batch, ...].
        clock: padding, resets and direction.
        return_sequences: whether h of every step is stacked.
        ahead: what is computed of a block of steps before its loop, or of one step where a block has no more.
        block: steps in a block; None for all.
        recompute: whether the gradient recomputes what lies inside a step instead of keeping it.
        together: steps in one iteration of the loop, nearly, where the clock names no number; where there are several,
            that is of accelerators, whose blocks are of all steps, and `block` of CPU alone.

    Returns:
        ys [time, *batch, units] or None; the state after the last step read; what the cell saved,
        stacked over time.
    """

    def tick(state, now, constant):
        x, valid, reset = now
        if together > 1:
            # Else a step computes c of the one before again, which needs a copy of what the loop carries.
            state = dataclasses.replace(state, c=jax.lax.optimization_barrier(state.c))
        before = state if reset is None else _select(reset, _like(initial, state), state)
        after, saved = cell(before, x, constant)
        if valid is not None:
            after = _select(valid, after, state)
        y = None
        if return_sequences:
            y = after.h if valid is None else _select(valid, after.h, jnp.zeros_like(after.h))
        return after, (y, saved)

    again = partial(jax.checkpoint, prevent_cse=False) if recompute else lambda function, **_: function
    tick = jax.jit(again(_batched(tick, state.h.ndim - 1)), inline=True)  # traced once for all platforms
    timed, time = (timed, clock.valid, clock.resets), xs.shape[-2]

    def read(state, *, block, together):
        whole, each = (_as_they_are, ahead) if block == 1 else (ahead, _as_they_are)

        def run(size):
            def over(start, state, timed):
                timed, valid, resets = timed
                some = xs if size == time else jax.lax.dynamic_slice_in_dim(xs, start, size, axis=xs.ndim - 2)
                unroll = clock.unroll or (even(size, together) if together > 1 and isinstance(size, int) else 1)
                return jax.lax.scan(
                    lambda state, now: tick(state, (each(*now[0]), *now[1:]), constants),
                    state,
                    (whole(jnp.moveaxis(some, -2, 0), timed), valid, resets),
                    unroll=unroll,
                )

            # Not with static_argnums, of which JAX would keep this function, and the arrays it closes over, for good.
            return again(over)

        return run(time)(0, state, timed) if block in (None, 1) else _in_blocks(run, state, timed, time, block)

    on_cpu, elsewhere = partial(read, block=block, together=1), partial(read, block=None, together=together)
    if together == 1:
        state, (ys, saved) = on_cpu(state)
    else:
        state, (ys, saved) = jax.lax.platform_dependent(state, cpu=again(on_cpu), default=again(elsewhere))
    return ys, state, saved


def even(whole: int, part: int) -> int:
    """The size nearest to `part`, up to half and double of it, that divides `whole`; `part` itself if there is none."""
    sizes = [size for size in range(-(-part // 2), min(2 * part, whole) + 1) if whole % size == 0]
    return min(sizes, key=lambda size: abs(size - part), default=part)


def _in_blocks(run, state, timed, time, size):
    whole, rest = _cut(timed, time, size)
    starts = jnp.arange(0, time - time % size, size)
    run_block = run(size)
    state, outputs = jax.lax.scan(lambda state, now: run_block(now[0], state, now[1]), state, (starts, whole))
    outputs = jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0] * size, *leaf.shape[2:]), outputs)
    if rest is not None:
        state, last = run(time % size)(time - time % size, state, rest)
        outputs = jax.tree.map(lambda *parts: jnp.concatenate(parts), outputs, last)
    return state, outputs


def _as_they_are(*now):
    return now


def _cut(timed, time, size):
    """Pieces of `size` steps, [pieces, size, ...], and what is left, or None."""
    whole = time - time % size
    pieces = jax.tree.map(lambda leaf: leaf[:whole].reshape(whole // size, size, *leaf.shape[1:]), timed)
    return pieces, jax.tree.map(lambda leaf: leaf[whole:], timed) if whole < time else None


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

    whole, rest = _cut(timed, time, size)
    outputs, _ = jax.eval_shape(lambda: run(state, xs, timed[1], clock))
    ys = jax.tree.map(jnp.zeros_like, outputs)
    state, ys, _ = mesh.varying_alike((state, ys, xs))
    carry, _ = jax.lax.scan(advance, (state, ys), (size * jnp.arange(time // size), whole))
    if rest is not None:
        carry, _ = advance(carry, (time - time % size, rest))
    state, ys = carry
    return ys, state


def _select(condition: Bool[Array, ""], chosen: Any, other: Any) -> Any:
    return jax.tree.map(partial(jnp.where, condition), chosen, other)


def _like(tree: Any, other: Any) -> Any:
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), tree, other)


def _batched(function: Callable, axes: int) -> Callable:
    return reduce(lambda f, _: jax.vmap(f), range(axes), function)
