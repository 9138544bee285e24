"""Where training stands in a data set: a function of the step alone, so that a resumed run reads on in place."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


def shuffled(key: Array, steps: Int[Array, " steps"], examples: int, batch: int) -> Int[Array, "steps batch"]:
    """The rows of each of these consecutive steps: every epoch is a permutation of its own.

    An epoch is as many whole batches as there are; the few rows left over differ from epoch to epoch.
    """
    if batch > examples:
        raise ValueError(f"train.batch is {batch}; there are only {examples} training examples")
    per_epoch = examples // batch
    epochs = steps // per_epoch
    spanned = epochs[0] + jnp.arange((len(steps) - 1) // per_epoch + 2)
    orders = jax.vmap(lambda epoch: jax.random.permutation(jax.random.fold_in(key, epoch), examples))(spanned)
    orders = orders[:, : per_epoch * batch].reshape(len(spanned), per_epoch, batch)
    return orders[epochs - epochs[0], steps % per_epoch]
