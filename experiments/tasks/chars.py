"""Tiny Shakespeare, a character at a time: which one comes next?

The text is read on and on: its first 90 % are cut into `train.batch` rows, a batch reads `data.steps` characters of
each row, and the next batch goes on in the state this one ended in. Gradients stop at the batch's start: truncated
backpropagation through time. Held-out text, 5 % to choose by and 5 % to test on, is read in the same way from its
beginning to its end, in one row. Losses are in bits per character.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments import models, ngram
from experiments.data import shakespeare
from experiments.task import Task
from lstmjax import LSTMState, windows

LONGEST = 8  # n-grams to choose among
AT_ONCE = 500  # held-out characters in one piece


@dataclasses.dataclass(frozen=True)
class Options:
    steps: int = 64
    """Characters of each row in one batch, which is as far back as gradients go."""

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"data.steps is {self.steps}; it must be at least 1")


def build(options: Options, model: models.Model, batch: int, key: Array) -> Task:
    del key  # nothing is drawn
    text = shakespeare.load()
    alphabet = sorted(set(text))
    parts = split(np.searchsorted(alphabet, list(text)).astype(np.int32))
    if len(parts["train"]) <= batch * options.steps:
        raise ValueError(
            f"train.batch * data.steps is {batch} * {options.steps}; it must be below {len(parts['train'])}, the "
            f"characters there are to train on"
        )
    held_out = {name: _held_out(parts[name]) for name in ("validation", "test")}
    return Task(
        init=functools.partial(models.init, inputs=len(alphabet), outputs=len(alphabet), model=model),
        batches=_batches,
        loss=functools.partial(_loss, model, symbols=len(alphabet)),
        evaluate=functools.partial(_evaluate, model, symbols=len(alphabet)),
        splits={"train": _rows(parts["train"], batch, options.steps), **held_out},
        metric="loss",
        unit="bits per character",
        measure="accuracy",
        baselines=functools.partial(baselines, parts, len(alphabet)),
        carried=functools.partial(models.initial_state, model, batch=batch),
        watch=("validation",),
        epoch=(len(parts["train"]) - 1) // (batch * options.steps),
    )


def split(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """The first 90 % of the text, the 5 % after them, and the last 5 %."""
    cuts = [len(tokens) * percent // 100 for percent in (90, 95)]
    return dict(zip(("train", "validation", "test"), np.split(tokens, cuts), strict=True))


def baselines(parts: dict[str, np.ndarray], symbols: int) -> dict[str, dict[str, float]]:
    """Unigrams, and the n-grams that did best on the validation text, over all test characters but the first."""
    validation, test = (
        -np.log2(ngram.probabilities(parts["train"], parts[name], symbols, LONGEST)[:, 1:]).mean(axis=1)
        for name in ("validation", "test")
    )
    best = int(validation.argmin())
    return {"unigram": {"loss": float(test[0])}, f"{best + 1}-gram, Witten-Bell": {"loss": float(test[best])}}


def _rows(tokens: np.ndarray, rows: int, steps: int) -> dict[str, Array]:
    """Batch after batch [pieces, rows, steps]; the fewer than rows * steps characters at the end are not read."""
    read, _ = windows.stateful_batches(tokens[:-1], rows, steps)
    following, _ = windows.stateful_batches(tokens[1:], rows, steps)
    return {"read": read, "next": following}


def _held_out(tokens: np.ndarray) -> dict[str, Array]:
    """One row in pieces [pieces, 1, AT_ONCE]; the last one is filled up with what does not count."""
    size = len(tokens) - 1
    filled = np.zeros((3, -(-size // AT_ONCE) * AT_ONCE), np.int32)
    filled[:, :size] = tokens[:-1], tokens[1:], np.ones(size)
    read, following, counts = (windows.stateful_batches(column, rows=1, steps=AT_ONCE)[0] for column in filled)
    return {"read": read, "next": following, "counts": counts}


def _batches(train: dict[str, Array], key: Array, steps: Array) -> dict[str, Array]:
    del key  # in the order of the text
    piece = steps % len(train["read"])
    return {name: column[piece] for name, column in train.items()} | {"first": piece == 0}


def _bits(
    model: models.Model, params: models.Params, batch: dict[str, Array], state: LSTMState, symbols: int
) -> tuple[Float[Array, "rows steps"], Float[Array, "rows steps"], LSTMState]:
    """Of each next character: -log2 of its probability, and 1 where it was the likeliest; then the state."""
    outputs, state = models.going_on(model, params, jax.nn.one_hot(batch["read"], symbols), state)
    log_outputs = jax.nn.log_softmax(outputs)
    right = jnp.take_along_axis(log_outputs, batch["next"][..., None], axis=-1)[..., 0]
    correct = jnp.argmax(log_outputs, axis=-1) == batch["next"]
    return -right / math.log(2), correct.astype(jnp.float32), state


def _loss(model: models.Model, params: models.Params, batch: dict[str, Array], carried: LSTMState, symbols: int):
    state = jax.tree.map(lambda leaf: jnp.where(batch["first"], jnp.zeros_like(leaf), leaf), carried)
    bits, correct, state = _bits(model, params, batch, state, symbols)
    return jnp.mean(bits), (jnp.mean(correct, axis=1), state)


def _evaluate(model: models.Model, params: models.Params, split: dict[str, Array], symbols: int):
    def read(state, piece):
        bits, correct, state = _bits(model, params, piece, state, symbols)
        return state, (jnp.sum(bits * piece["counts"]), jnp.sum(correct * piece["counts"]))

    _, (bits, correct) = jax.lax.scan(read, models.initial_state(model, params, batch=1), split)
    characters = jnp.sum(split["counts"])
    return {"loss": jnp.sum(bits) / characters, "accuracy": jnp.sum(correct) / characters}
