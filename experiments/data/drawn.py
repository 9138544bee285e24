"""Sequences drawn as training goes: those of a step are a function of the key and the step alone."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Int


def per_step(draw: Callable[[Array], Any], key: Array, steps: Int[Array, " steps"], batch: int) -> Any:
    """`draw(key)` makes one sequence; the result has axes [steps, batch] before that sequence's own."""

    def of_step(step):
        return sequences(draw, jax.random.fold_in(key, step), batch)

    return jax.vmap(of_step)(steps)


@functools.partial(jax.jit, static_argnums=(0, 2))
def sequences(draw: Callable[[Array], Any], key: Array, count: int) -> Any:
    return jax.vmap(draw)(jax.random.split(key, count))
