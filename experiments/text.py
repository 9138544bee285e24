"""Text read on and on: rows of it in pieces, a state that goes from piece to piece, and the loss of what comes next.

The training text is cut into rows, a batch reads some steps of each row, and the next batch goes on in the state this
one ended in. Gradients stop at the batch's start: truncated backpropagation through time. Held-out text is read in the
same way from its beginning to its end, in one row.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lstmjax import windows

Say = Callable[..., tuple[Array, Any]]
"""Takes params, tokens [rows, steps], the state and a key or None; returns logits of what comes next, and the state."""


def rows(tokens: np.ndarray, batch: int, steps: int) -> dict[str, Array]:
    """Batch after batch [pieces, batch, steps]; the fewer than batch * steps tokens at the end are not read."""
    if len(tokens) <= batch * steps:
        raise ValueError(
            f"train.batch * data.steps is {batch} * {steps}; it must be below {len(tokens)}, which is how much text "
            f"there is to train on"
        )
    read, _ = windows.stateful_batches(tokens[:-1], batch, steps)
    following, _ = windows.stateful_batches(tokens[1:], batch, steps)
    return {"read": read, "next": following}


def held_out(tokens: np.ndarray, at_once: int) -> dict[str, Array]:
    """One row in pieces [pieces, 1, at_once]; the last one is filled up with what does not count."""
    size = len(tokens) - 1
    filled = np.zeros((3, -(-size // at_once) * at_once), np.int32)
    filled[:, :size] = tokens[:-1], tokens[1:], np.ones(size)
    read, following, counts = (windows.stateful_batches(column, rows=1, steps=at_once)[0] for column in filled)
    return {"read": read, "next": following, "counts": counts}


def batches(train: dict[str, Array], key: Array, steps: Array) -> dict[str, Array]:
    """The pieces of these steps, in the order of the text; `first` where it begins again."""
    piece = steps % len(train["read"])
    keys = jax.vmap(lambda step: jax.random.fold_in(key, step))(steps)
    return {name: column[piece] for name, column in train.items()} | {"first": piece == 0, "key": keys}


def losses(
    say: Say, params: Any, batch: dict[str, Array], state: Any, key: Array | None = None
) -> tuple[Float[Array, "rows steps"], Float[Array, "rows steps"], Any]:
    """Negative log-probability of each next token, and 1 where it was the likeliest; then the state."""
    logits, state = say(params, batch["read"], state, key)
    log_outputs = jax.nn.log_softmax(logits)
    right = jnp.take_along_axis(log_outputs, batch["next"][..., None], axis=-1)[..., 0]
    correct = jnp.argmax(log_outputs, axis=-1) == batch["next"]
    return -right, correct.astype(jnp.float32), state


def loss(say: Say, params: Any, batch: dict[str, Array], carried: Any, per: float = 1.0):
    """The loss of a `Task`, in units of `per` nats."""
    state = jax.tree.map(lambda leaf: jnp.where(batch["first"], jnp.zeros_like(leaf), leaf), carried)
    nats, correct, state = losses(say, params, batch, state, batch["key"])
    return jnp.mean(nats) / per, (jnp.mean(correct, axis=1), state)


def evaluate(say: Say, params: Any, split: dict[str, Array], state: Any, per: float = 1.0) -> dict[str, Array]:
    """Mean loss and accuracy over a split, read on from `state`."""

    def read(state, piece):
        nats, correct, state = losses(say, params, piece, state)
        return state, (jnp.sum(nats * piece["counts"]), jnp.sum(correct * piece["counts"]))

    _, (nats, correct) = jax.lax.scan(read, state, split)
    tokens = jnp.sum(split["counts"])
    return {"loss": jnp.sum(nats) / tokens / per, "accuracy": jnp.sum(correct) / tokens}
