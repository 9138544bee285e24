"""The adding problem: sum the two marked values of a long sequence, at its end.

Hochreiter & Schmidhuber, Long Short-Term Memory, Neural Computation 9(8), 1997, section 5.4.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments import models
from experiments.data import drawn
from experiments.task import Carried, Criterion, Published, Task

MODELS = ("lstm", "rnn")
TEST = 2560
RIGHT = 0.04  # a sequence is processed correctly when its absolute error is below this
CITED = ("Hochreiter & Schmidhuber, Long Short-Term Memory, Neural Computation 9(8), 1997, section 5.4.",)
PAPER = "Hochreiter & Schmidhuber 1997"
PUBLISHED = {
    100: (Published(PAPER, {"sequences": 74_000, f"wrong of {TEST}": 1}),),
    500: (Published(PAPER, {"sequences": 209_000, f"wrong of {TEST}": 0}),),
    1000: (Published(PAPER, {"sequences": 853_000, f"wrong of {TEST}": 1}),),
}


@dataclasses.dataclass(frozen=True)
class Options:
    length: int = 100
    """T: sequences have T to T + T/10 steps."""

    def __post_init__(self):
        if self.length < 22:
            raise ValueError(f"data.length is {self.length}; it must be at least 22")


def build(options: Options, model: models.Model | models.RNN, batch: int, key: Array) -> Task:
    models.check_whole(model)
    draw = functools.partial(sequence, length=options.length)
    test = drawn.sequences(draw, key, TEST)
    return Task(
        init=functools.partial(models.init, inputs=2, outputs=1, model=model),
        batches=lambda train, key, steps: drawn.per_step(draw, key, steps, batch),
        loss=functools.partial(_loss, model),
        evaluate=functools.partial(_evaluate, model),
        splits={"test": test},
        metric="error",
        measure="error",
        baselines=lambda: {"always 0.5": _figures(0.5 - test["target"])},
        criterion=Criterion(each=RIGHT, mean=0.01),
        published=PUBLISHED.get(options.length, ()),
    )


def sequence(key: Array, length: int) -> dict[str, Array]:
    """One sequence of (value, marker) pairs, padded to T + T/10 steps.

    The first marked pair is among the first ten, the second among the first T/2 - 1 others; the first and last
    markers are -1. Should the first pair be marked, its value is 0. The target is 0.5 + (X1 + X2)/4.
    """
    values_key, picks_key = jax.random.split(key)
    longest = length + length // 10
    steps = jnp.arange(longest)
    above = jnp.array([longest + 1, 10, length // 2 - 1])
    valid, first, second = jax.random.randint(picks_key, (3,), jnp.array([length, 0, 0]), above)
    second = jnp.where(second >= first, second + 1, second)

    marked = (steps == first) | (steps == second)
    ends = (steps == 0) | (steps == valid - 1)
    values = jax.random.uniform(values_key, (longest,), minval=-1.0, maxval=1.0)
    values = jnp.where(marked & (steps == 0), 0.0, values)
    pairs = jnp.stack([values, jnp.where(marked, 1.0, jnp.where(ends, -1.0, 0.0))], axis=-1)
    return {
        "pairs": jnp.where((steps < valid)[:, None], pairs, 0.0),
        "length": valid,
        "target": 0.5 + jnp.sum(values, where=marked) / 4,
    }


def _error(model: models.Model | models.RNN, params: models.Params, batch: dict[str, Array]) -> Array:
    return models.last(model, params, batch["pairs"], batch["length"])[:, 0] - batch["target"]


def _loss(model: models.Model | models.RNN, params: models.Params, batch: dict[str, Array], carried: Carried):
    error = _error(model, params, batch)
    return jnp.mean(error**2), (jnp.abs(error), carried)


def _evaluate(model: models.Model | models.RNN, params: models.Params, batch: dict[str, Array]):
    return _figures(_error(model, params, batch))


def _figures(error: Array) -> dict[str, Array]:
    return {
        "error": jnp.mean(jnp.abs(error)),
        f"wrong of {TEST}": jnp.sum(jnp.abs(error) >= RIGHT),
        "mse": jnp.mean(error**2),
    }
