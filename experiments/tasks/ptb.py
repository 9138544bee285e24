"""The Penn Treebank, a word at a time: which one comes next?

The text is read on and on, see experiments/text.py. Perplexity is the exponential of the mean loss in nats over all
words of a split but its first, <eos> included.

Zaremba, Sutskever & Vinyals, Recurrent Neural Network Regularization, 2014.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array

from experiments import language, ngram, text
from experiments.data import treebank, vocabulary
from experiments.task import Published, Task

MODELS = ("words",)
LONGEST = 4  # n-grams to choose among
AT_ONCE = 200  # held-out words in one piece
CITED = ("Zaremba, Sutskever & Vinyals, Recurrent Neural Network Regularization, arXiv:1409.2329, 2014, table 1.",)
PUBLISHED = (Published("2 x 200 LSTM, Zaremba, Sutskever & Vinyals 2014", {"perplexity": 114.5}),)


@dataclasses.dataclass(frozen=True)
class Options:
    steps: int = 20
    """Words of each row in one batch, which is as far back as gradients go."""

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"data.steps is {self.steps}; it must be at least 1")


def sources(options: Options) -> Iterator[tuple[str, bytes]]:
    del options
    return treebank.sources()


def build(
    options: Options, model: language.Words, batch: int, key: Array, kept: Mapping[str, Sequence[str]] | None = None
) -> Task:
    del key  # nothing is drawn
    said = treebank.load()
    kept = kept or {"words": sorted(set(said["train"]))}
    vocabulary.check_known(itertools.chain.from_iterable(said.values()), kept["words"], "word")
    numbers = {word: number for number, word in enumerate(kept["words"])}
    parts = {name: np.array([numbers[word] for word in words], np.int32) for name, words in said.items()}
    train = text.rows(parts["train"], batch, options.steps)
    say, begin = (functools.partial(function, model) for function in (language.say, language.initial_state))
    return Task(
        init=functools.partial(language.init, vocabulary=len(numbers), model=model),
        batches=text.batches,
        loss=functools.partial(text.loss, say),
        evaluate=lambda params, split: text.evaluate(say, params, split, begin(params, 1)),
        splits={"train": train} | {name: text.held_out(parts[name], AT_ONCE) for name in ("validation", "test")},
        metric="perplexity",
        measure="accuracy",
        baselines=functools.partial(baselines, parts, len(numbers)),
        score=score,
        carried=functools.partial(begin, batch=batch),
        watch=("validation",),
        published=PUBLISHED,
        kept=kept,
        epoch=len(train["read"]),
    )


def score(evaluated: Mapping[str, Array], split: Any) -> dict[str, float]:
    """Perplexity beside the rest; infinite where it is beyond float64."""
    del split
    found = {name: float(value) for name, value in evaluated.items()}
    with np.errstate(over="ignore"):
        return {"perplexity": float(np.exp(found["loss"]))} | found


def baselines(parts: Mapping[str, np.ndarray], vocabulary: int) -> dict[str, ngram.Figures]:
    def figures(found: np.ndarray) -> dict[str, float]:
        loss = float(-np.log(found).mean())
        return {"perplexity": math.exp(loss), "loss": loss}

    return ngram.baselines(parts, vocabulary, LONGEST, figures)
