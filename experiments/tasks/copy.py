"""Copy memory: read ten symbols, wait T steps, and say them again when asked.

Arjovsky, Shah & Bengio, Unitary Evolution Recurrent Neural Networks, 2016; Bai, Kolter & Koltun, An Empirical
Evaluation of Generic Convolutional and Recurrent Networks, 2018, section 5.2. The loss is averaged over all T + 20
steps; one that remembers nothing but knows when to speak has 10 ln 8 / (T + 20).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments import models
from experiments.data import drawn
from experiments.task import Carried, Published, Task

MODELS = ("lstm", "rnn")
TEST = 1000
COPIED = 10
KINDS = 8
BLANK, MARKER = 0, 9
CITED = (
    "Bai, Kolter & Koltun, An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence "
    "Modeling, arXiv:1803.01271, 2018. Theirs is shown the marker at each of the last eleven steps, here once and then "
    "blanks, as by Arjovsky, Shah & Bengio.",
)
PAPER = "Bai, Kolter & Koltun 2018"
PUBLISHED = (Published(f"LSTM, {PAPER}", {"loss": 0.0204}), Published(f"TCN, {PAPER}", {"loss": 3.5e-5}))


@dataclasses.dataclass(frozen=True)
class Options:
    blanks: int = 100
    """T: the steps between the last symbol read and the first one said."""

    def __post_init__(self):
        if self.blanks < 1:
            raise ValueError(f"data.blanks is {self.blanks}; it must be at least 1")


def build(options: Options, model: models.Model | models.RNN, batch: int, key: Array) -> Task:
    models.check_whole(model)
    draw = functools.partial(sequence, blanks=options.blanks)
    test = drawn.sequences(draw, key, TEST)
    chance = COPIED * math.log(KINDS) / (options.blanks + 2 * COPIED)
    return Task(
        init=functools.partial(models.init, inputs=10, outputs=9, model=model),
        batches=lambda train, key, steps: drawn.per_step(draw, key, steps, batch),
        loss=functools.partial(_loss, model),
        evaluate=functools.partial(_evaluate, model),
        splits={"test": test},
        metric="loss",
        measure="accuracy",
        baselines=lambda: {"no memory": {"loss": chance, "accuracy": 1 / KINDS}},
        published=PUBLISHED if options.blanks == 1000 else (),
    )


def sequence(key: Array, blanks: int) -> dict[str, Array]:
    """Ten symbols 1 to 8, T - 1 blanks, the marker, ten blanks; to be said: T + 10 blanks, the ten symbols."""
    symbols = jax.random.randint(key, (COPIED,), 1, KINDS + 1)
    silence = jnp.full(blanks - 1, BLANK)
    asked = jnp.array([MARKER] + [BLANK] * COPIED)
    return {
        "heard": jnp.concatenate([symbols, silence, asked]),
        "said": jnp.concatenate([jnp.full(blanks + COPIED, BLANK), symbols]),
    }


def _losses(model: models.Model | models.RNN, params: models.Params, batch: dict[str, Array]) -> tuple[Array, Array]:
    """Per sequence: the cross-entropy over all steps, and how many of the ten symbols are said right."""
    log_outputs = jax.nn.log_softmax(models.every(model, params, jax.nn.one_hot(batch["heard"], 10)))
    right = jnp.take_along_axis(log_outputs, batch["said"][..., None], axis=-1)[..., 0]
    said = jnp.argmax(log_outputs, axis=-1) == batch["said"]
    return -jnp.mean(right, axis=-1), jnp.mean(said[:, -COPIED:], axis=-1)


def _loss(model: models.Model | models.RNN, params: models.Params, batch: dict[str, Array], carried: Carried):
    losses, accuracies = _losses(model, params, batch)
    return jnp.mean(losses), (accuracies, carried)


def _evaluate(model: models.Model | models.RNN, params: models.Params, batch: dict[str, Array]):
    losses, accuracies = _losses(model, params, batch)
    return {"loss": jnp.mean(losses), "accuracy": jnp.mean(accuracies)}
