"""The contract of time, for any cell and any state.

    before_t  = initial                  where resets_t, else state_{t-1}
    after, y  = step(before_t, x_t)
    state_t   = after                    where valid_t, else state_{t-1}
    ys_t      = y                        where valid_t, else 0

A step is written for one sequence; `scan` maps it over the batch axes. Arrays are time-major, [time, *batch, ...]. For
`reverse=True`, inputs are reversed in time before the scan and outputs after it, so that both directions are one
program, which is traced and compiled once.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from lstmjax._src import pytrees


@pytrees.container
class StepMasks:
    """Per-step validity and reset masks, bool [time, *batch]; None where all steps are valid, or none resets."""

    valid: Any
    resets: Any
    # Whether valid steps may have others between them, as those of `lengths` have not.
    may_have_holes: bool = dataclasses.field(default=False, metadata={"static": True})


class Stacked(NamedTuple):
    """Results stacked over time: the outputs y_t, and the states after each step."""

    outputs: bool = True
    states: bool = False


def step_masks(valid: Any, resets: Any, reverse: bool, may_have_holes: bool) -> StepMasks:
    """Make the masks in the order in which steps are read, of bool [*batch, time] or None."""
    time_major = jax.tree.map(lambda mask: jnp.moveaxis(mask, -1, 0), (valid, resets))
    valid, resets = reverse_time(time_major, reverse)
    return StepMasks(valid, resets, may_have_holes)


def reverse_time(tree: Any, reverse: bool, axis: int = 0) -> Any:
    """Reverse every leaf along time if `reverse`."""
    return jax.tree.map(partial(jnp.flip, axis=axis), tree) if reverse else tree


def mask_step(step: Callable, initial: Any, stacked: Stacked) -> Callable:
    """Add masks to `step(state, x, constants) -> (state, y, residuals)`, of one sequence."""

    def masked(state, x, constants, valid, reset):
        before = state if reset is None else select(reset, cast_like(initial, state), state)
        after, y, residuals = step(before, x, constants)
        y = y if stacked.outputs else None
        if valid is not None:
            after = select(valid, after, state)
            y = select(valid, y, jax.tree.map(jnp.zeros_like, y))
        return after, (y, after if stacked.states else None, residuals)

    return masked


def scan(
    step: Callable[[Any, Any, Any], tuple[Any, Any, Any]],
    state: Any,
    initial: Any,
    xs: Any,
    constants: Any,
    masks: StepMasks,
    *,
    batch_axes: int,
    stacked: Stacked = Stacked(),
    unroll: int = 1,
) -> tuple[Any, tuple[Any, Any, Any]]:
    """Run a step over time.

    Args:
        step: `step(state, x, constants) -> (state, y, residuals)`, of one sequence.
        state: before the first step, leaves [*batch, ...].
        initial: the state that a reset restores, leaves without batch axes.
        xs: inputs, leaves [time, *batch, ...].
        constants: what each step of a sequence is given, leaves [*batch, ...].
        masks: StepMasks.
        batch_axes: number of batch axes.
        stacked: what to stack over time.
        unroll: steps in one iteration of the compiled loop.

    Returns:
        The final state; and ys, states and residuals, stacked over time, of which what is not asked for is None.
    """
    body = jax.jit(over_batch(mask_step(step, initial, stacked), batch_axes), inline=True)
    timed = xs, masks.valid, masks.resets
    return jax.lax.scan(lambda state, now: body(state, now[0], constants, *now[1:]), state, timed, unroll=unroll)


def over_batch(function: Callable, axes: int) -> Callable:
    """Map a function of one sequence over batch axes, all of them leading."""
    for _ in range(axes):
        function = jax.vmap(function)
    return function


def select(condition: Bool[Array, ""], chosen: Any, other: Any) -> Any:
    """Choose one of two trees of one sequence."""
    return jax.tree.map(partial(jnp.where, condition), chosen, other)


def cast_like(tree: Any, other: Any) -> Any:
    """Cast every leaf to the dtype of the same leaf of another tree."""
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), tree, other)
