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
        axes = {"mask": -1, "resets": -1}
        moved = {name: time_to(axis, name, arguments.get(name)) for name, axis in axes.items()}
        ys, states = apply(params, time_to(-2, "xs", xs), state, **{**arguments, **moved})
        first = functools.partial(jax.tree.map, lambda leaf: jnp.moveaxis(leaf, -2, 0))
        ys = first(ys) if arguments.get("return_sequences", True) else ys
        return ys, first(states) if arguments.get("return_states", False) else states

    return cast(Function, run)


def time_to(axis: int, name: str, array: Any) -> Any:
    """Move the first axis of an array there, if it has so many; validation refuses others."""
    if array is None:
        return None
    array = validation.asarray(name, array)
    return jnp.moveaxis(array, 0, axis) if array.ndim >= -axis else array
