"""Tiny Shakespeare, a character at a time: which one comes next?

The text is read on and on, see experiments/text.py: its first 90 % to train on, 5 % to choose by and 5 % to test on.
Losses are in bits per character.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array

from experiments import models, ngram, text
from experiments.data import files, shakespeare, vocabulary
from experiments.task import Published, Task
from lstmjax import LSTMState

LONGEST = 8  # n-grams to choose among
AT_ONCE = 500  # held-out characters in one piece
BIT = math.log(2)  # nats
CITED = ("Karpathy, nanoGPT, README of github.com/karpathy/nanoGPT: 1.88 nats after the training that suits a CPU.",)
PUBLISHED = (Published("nanoGPT on a CPU, 4 layers of 128, the last 10 %", {"loss": 1.88 / BIT}),)


@dataclasses.dataclass(frozen=True)
class Options:
    steps: int = 64
    """Characters of each row in one batch, which is as far back as gradients go."""

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"data.steps is {self.steps}; it must be at least 1")


def sources(options: Options) -> Iterator[tuple[str, bytes]]:
    del options
    return shakespeare.sources()


def build(
    options: Options, model: models.Model, batch: int, key: Array, kept: Mapping[str, Sequence[str]] | None = None
) -> Task:
    models.check_whole(model)
    del key  # nothing is drawn
    play = shakespeare.load()
    kept = kept or {"alphabet": sorted(set(play))}
    alphabet = kept["alphabet"]
    vocabulary.check_known(play, alphabet, "character")
    parts = split(np.searchsorted(alphabet, list(play)).astype(np.int32))
    held_out = {name: text.held_out(parts[name], AT_ONCE) for name in ("validation", "test")}
    say = functools.partial(_say, model, len(alphabet))
    return Task(
        init=functools.partial(models.init, inputs=len(alphabet), outputs=len(alphabet), model=model),
        batches=text.batches,
        loss=functools.partial(text.loss, say, per=BIT),
        evaluate=lambda params, split: text.evaluate(say, params, split, models.initial_state(model, params, 1), BIT),
        splits={"train": text.rows(parts["train"], batch, options.steps), **held_out},
        metric="loss",
        unit="bits per character",
        measure="accuracy",
        baselines=functools.partial(baselines, parts, len(alphabet)),
        carried=functools.partial(models.initial_state, model, batch=batch),
        watch=("validation",),
        published=PUBLISHED if files.digest(play) == shakespeare.SHA256 else (),
        kept=kept,
        epoch=(len(parts["train"]) - 1) // (batch * options.steps),
    )


def split(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """The first 90 % of the text, the 5 % after them, and the last 5 %."""
    cuts = [len(tokens) * percent // 100 for percent in (90, 95)]
    return dict(zip(("train", "validation", "test"), np.split(tokens, cuts), strict=True))


def baselines(parts: Mapping[str, np.ndarray], symbols: int) -> dict[str, ngram.Figures]:
    return ngram.baselines(parts, symbols, LONGEST, lambda found: {"loss": float(-np.log2(found).mean())})


def _say(model: models.Model, symbols: int, params: models.Params, tokens: Array, state: LSTMState, key: Array | None):
    del key  # nothing is dropped
    return models.going_on(model, params, jax.nn.one_hot(tokens, symbols), state)
