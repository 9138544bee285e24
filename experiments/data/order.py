"""Where training stands in a data set: a function of the step alone, so that a resumed run reads on in place."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


def shuffled(key: Array, steps: Int[Array, " steps"], examples: int, batch: int) -> Int[Array, "steps batch"]:
    """The rows of each of these consecutive steps: every epoch is a permutation of its own.

    An epoch is as many whole batches as there are; the few rows left over differ from epoch to epoch.
    """
    return _epochs(lambda key: jax.random.permutation(key, examples), key, steps, examples, batch)


def of_like_length(
    key: Array, steps: Int[Array, " steps"], lengths: Int[Array, " examples"], batch: int
) -> Int[Array, "steps batch"]:
    """As `shuffled`, but each batch has sequences of like length, so that little of it is padding.

    An epoch draws the rows that it reads, orders them by length, those of one length at random, cuts them into batches
    and reads these in an order of its own.
    """
    examples = len(lengths)

    def epoch(key):
        rows_key, batches_key = jax.random.split(key)
        rows = jax.random.permutation(rows_key, examples)[: examples // batch * batch]
        rows = rows[jnp.argsort(lengths[rows], stable=True)]
        return jax.random.permutation(batches_key, rows.reshape(-1, batch)).ravel()

    return _epochs(epoch, key, steps, examples, batch)


def _epochs(
    epoch: Callable[[Array], Int[Array, " rows"]], key: Array, steps: Int[Array, " steps"], examples: int, batch: int
) -> Int[Array, "steps batch"]:
    """The rows of each of these consecutive steps, where `epoch(key)` orders those of one epoch."""
    if batch > examples:
        raise ValueError(f"train.batch is {batch}; there are only {examples} training examples")
    per_epoch = examples // batch
    epochs = steps // per_epoch
    spanned = epochs[0] + jnp.arange((len(steps) - 1) // per_epoch + 2)
    orders = jax.vmap(lambda number: epoch(jax.random.fold_in(key, number)))(spanned)
    orders = orders[:, : per_epoch * batch].reshape(len(spanned), per_epoch, batch)
    return orders[epochs - epochs[0], steps % per_epoch]
