"""Temporal order: in which order did X and Y come, many steps ago?

Hochreiter & Schmidhuber, Long Short-Term Memory, Neural Computation 9(8), 1997, section 5.6, tasks 6a and 6b.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments import models
from experiments.data import drawn
from experiments.task import Carried, Criterion, Published, Task

MODELS = ("lstm", "rnn")
TEST = 2560
RIGHT = 0.3  # a sequence is classified correctly when every output errs by less
SYMBOLS = "abcdXYEB"
SPANS = {"6a": ((10, 20), (50, 60)), "6b": ((10, 20), (33, 43), (66, 76))}
CITED = (
    "Hochreiter & Schmidhuber, Long Short-Term Memory, Neural Computation 9(8), 1997, section 5.6. Theirs has "
    "logistic outputs, here they are a softmax.",
)
PAPER = "Hochreiter & Schmidhuber 1997"
PUBLISHED = {
    "6a": Published(PAPER, {"sequences": 31_390, f"wrong of {TEST}": 1}),
    "6b": Published(PAPER, {"sequences": 571_100, f"wrong of {TEST}": 2}),
}


@dataclasses.dataclass(frozen=True)
class Options:
    variant: Literal["6a", "6b"] = "6a"
    """6a: two symbols, four classes; 6b: three symbols, eight classes."""


def build(options: Options, model: models.Model | models.RNN, batch: int, key: Array) -> Task:
    models.check_whole(model)
    spans = SPANS[options.variant]
    draw = functools.partial(sequence, spans=spans)
    test = drawn.sequences(draw, key, TEST)
    classes = 2 ** len(spans)
    return Task(
        init=functools.partial(models.init, inputs=len(SYMBOLS), outputs=classes, model=model),
        batches=lambda train, key, steps: drawn.per_step(draw, key, steps, batch),
        loss=functools.partial(_loss, model),
        evaluate=functools.partial(_evaluate, model),
        splits={"test": test},
        metric="error",
        measure="error",
        baselines=lambda: {"chance": _figures(jnp.full((TEST, classes), 1 / classes), test["class"])},
        criterion=Criterion(each=RIGHT, mean=0.1),
        published=(PUBLISHED[options.variant],),
    )


def sequence(key: Array, spans: tuple[tuple[int, int], ...]) -> dict[str, Array]:
    """One sequence of symbols: E, random a to d, B, with an X or Y somewhere in each of `spans`.

    The class counts in binary, X as 0 and Y as 1, first symbol first: XX, XY, YX, YY are 0, 1, 2, 3.
    """
    fill_key, picks_key = jax.random.split(key)
    steps = jnp.arange(110)
    ranges = jnp.array([(100, 110), *spans, *[(0, 1)] * len(spans)])
    picks = jax.random.randint(picks_key, (len(ranges),), ranges[:, 0], ranges[:, 1] + 1)
    length, places, kinds = picks[0], picks[1 : 1 + len(spans)], picks[1 + len(spans) :]
    symbols = jax.random.randint(fill_key, (110,), 0, 4)

    symbols = symbols.at[places].set(SYMBOLS.index("X") + kinds)
    symbols = symbols.at[0].set(SYMBOLS.index("E")).at[length - 1].set(SYMBOLS.index("B"))
    return {
        "symbols": jnp.where(steps < length, symbols, 0),
        "length": length,
        "class": jnp.sum(kinds * 2 ** jnp.arange(len(spans))[::-1]),
    }


def _logits(model: models.Model | models.RNN, params: models.Params, batch: dict[str, Array]) -> Array:
    one_hot = jax.nn.one_hot(batch["symbols"], len(SYMBOLS))
    return models.last(model, params, one_hot, batch["length"])


def _loss(model: models.Model | models.RNN, params: models.Params, batch: dict[str, Array], carried: Carried):
    log_outputs = jax.nn.log_softmax(_logits(model, params, batch))
    right = jnp.take_along_axis(log_outputs, batch["class"][:, None], axis=-1)
    return -jnp.mean(right), (_errors(jnp.exp(log_outputs), batch["class"]), carried)


def _evaluate(model: models.Model | models.RNN, params: models.Params, batch: dict[str, Array]):
    return _figures(jax.nn.softmax(_logits(model, params, batch)), batch["class"])


def _errors(outputs: Array, classes: Array) -> Array:
    """Largest error of an output, for each sequence."""
    targets = jax.nn.one_hot(classes, outputs.shape[-1])
    return jnp.max(jnp.abs(outputs - targets), axis=-1)


def _figures(outputs: Array, classes: Array) -> dict[str, Array]:
    errors = _errors(outputs, classes)
    return {
        "error": jnp.mean(errors),
        f"wrong of {TEST}": jnp.sum(errors >= RIGHT),
        "accuracy": jnp.mean(jnp.argmax(outputs, axis=-1) == classes),
    }
