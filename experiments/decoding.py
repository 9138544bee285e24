"""The likeliest sequences of a model that says one symbol after another: greedily, and by beam search."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Step = Callable[[Int[Array, " rows"], Any], tuple[Float[Array, "rows symbols"], Any]]
"""Takes the symbols said last and the state; returns the log-probabilities of what comes next, and the new state."""


class Decoded(NamedTuple):
    """Decoded symbols of each row of a batch.

    Args:
        symbols: integers [batch, steps]; `end` from the place on where it was said.
        lengths: integers [batch], the symbols before `end`.
        log_likelihood: [batch], of the symbols and of the `end` after them where there was room for it.
    """

    symbols: Int[Array, "batch steps"]
    lengths: Int[Array, " batch"]
    log_likelihood: Float[Array, " batch"]


def greedy(step: Step, state: Any, start: Int[Array, " batch"], end: int, steps: int) -> Decoded:
    """The likeliest symbol each time, until `end` is said or `steps` symbols are.

    Args:
        step: see `Step`.
        state: what `step` is given first, a pytree of arrays with axis batch first.
        start: what was said last before the beginning.
        end: the symbol that ends a sequence.
        steps: the longest sequence, with `end`.
    """

    def say(carry, _):
        last, done, total, state = carry
        log_outputs, state = step(last, state)
        said = jnp.where(done, end, jnp.argmax(log_outputs, axis=-1))
        gained = jnp.take_along_axis(log_outputs, said[:, None], axis=-1)[:, 0]
        return (said, done | (said == end), total + jnp.where(done, 0, gained), state), said

    first = (start, jnp.zeros(start.shape, bool), jnp.zeros(start.shape), state)
    (_, _, total, _), said = jax.lax.scan(say, first, length=steps)
    return _decoded(jnp.swapaxes(said, 0, 1), total, end)


def beam(step: Step, state: Any, start: Int[Array, " batch"], end: int, steps: int, width: int) -> Decoded:
    """The likeliest of those sequences whose every beginning was among the `width` likeliest of its length.

    Sequences are compared by their log-likelihood, as it is. With `width` 1 this is `greedy`; with room for all
    sequences it is an exhaustive search. The arguments are those of `greedy`.

    Args:
        width: the sequences kept for each row.
    """
    batch = start.shape[0]

    def rows(leaf):
        return leaf.reshape(batch * width, *leaf.shape[2:])

    def beams(leaf):
        return leaf.reshape(batch, width, *leaf.shape[1:])

    def say(carry, at):
        symbols, last, done, total, state = carry
        log_outputs, state = step(rows(last), jax.tree.map(rows, state))
        log_outputs = beams(log_outputs)
        kinds = log_outputs.shape[-1]
        ended = jnp.where(jnp.arange(kinds) == end, 0, -jnp.inf)[None, None]
        totals = total[..., None] + jnp.where(done[..., None], ended, log_outputs)
        total, chosen = jax.lax.top_k(totals.reshape(batch, width * kinds), width)
        parents, said = chosen // kinds, chosen % kinds
        kept = (symbols, done, jax.tree.map(beams, state))
        symbols, done, state = jax.tree.map(lambda leaf: jax.vmap(operator.getitem)(leaf, parents), kept)
        symbols = jnp.where(jnp.arange(steps)[None, None] == at, said[..., None], symbols)
        return (symbols, said, done | (said == end), total, state), None

    state = jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], width, axis=1), state)
    first = (
        jnp.full((batch, width, steps), end),
        jnp.repeat(start[:, None], width, axis=1),
        jnp.zeros((batch, width), bool),
        jnp.repeat(jnp.where(jnp.arange(width) == 0, 0, -jnp.inf)[None], batch, axis=0),  # all beams are alike as yet
        state,
    )
    (symbols, _, _, total, _), _ = jax.lax.scan(say, first, jnp.arange(steps))
    return _decoded(symbols[:, 0], total[:, 0], end)  # top_k has put the likeliest first


def _decoded(symbols: Int[Array, "batch steps"], total: Float[Array, " batch"], end: int) -> Decoded:
    return Decoded(symbols, jnp.sum(symbols != end, axis=1), total)
