"""Time-major arrays, [time, *batch, ...], where a layer works on [*batch, time, ...]."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp

from lstmjax._src import validation

Function = TypeVar("Function", bound=Callable[..., Any])


def takes_time_major(apply: Function) -> Function:
    """Let `apply(params, xs, state, ...)` take `time_major=True`: arrays are then transposed before and after it."""

    @functools.wraps(apply)
    def run(params, xs, state=None, *, time_major=False, **arguments):
        if not validation.boolean("time_major", time_major):
            return apply(params, xs, state, **arguments)
        xs, moved = batch_major(xs, **arguments)
        try:
            ys, states = apply(params, xs, state, **moved)
        except (TypeError, ValueError) as error:
            error.add_note("time_major=True: shapes are told after time was moved behind the batch axes.")
            raise
        first = functools.partial(jax.tree.map, lambda leaf: jnp.moveaxis(leaf, -2, 0))
        ys = first(ys) if arguments.get("return_sequences", True) else ys
        return ys, first(states) if arguments.get("return_states", False) else states

    return cast(Function, run)


def batch_major(xs: Any, **arguments: Any) -> tuple[Any, dict[str, Any]]:
    """Transpose xs, and the mask and resets among the arguments, to [*batch, time, ...]."""
    masks = {name: time_to(-1, name, arguments[name]) for name in ("mask", "resets") if name in arguments}
    return time_to(-2, "xs", xs), arguments | masks


def time_to(axis: int, name: str, array: Any) -> Any:
    """Move the first axis of an array there, if it has so many; validation refuses others."""
    if array is None:
        return None
    array = validation.asarray(name, array)
    if array.ndim < -axis:
        return array
    with validation.nan_allowed():  # it may be in padding
        return jnp.moveaxis(array, 0, axis)
