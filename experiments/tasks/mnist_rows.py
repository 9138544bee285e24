"""Pictures read row by row, handwritten digits or clothes: 28 steps of 28 pixels, then which of ten it is."""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments import models
from experiments.data import fashion, mnist
from experiments.data.order import shuffled
from experiments.task import Carried, Published, Task

MODELS = ("lstm", "rnn")
AT_ONCE = 1000
SETS = {"mnist": mnist, "fashion": fashion}
PUBLISHED = {
    "mnist": (Published("LSTM(128), TensorFlow-Examples, 128 test images", {"accuracy": 0.9766}),),
    "fashion": (),
}


@dataclasses.dataclass(frozen=True)
class Options:
    images: Literal["mnist", "fashion"] = "mnist"
    """MNIST's digits, or the clothes of Fashion-MNIST."""


def build(options: Options, model: models.Model | models.RNN, batch: int, key: Array) -> Task:
    models.check_whole(model)
    del key  # nothing is drawn
    splits = {
        name: {"rows": jnp.asarray(images), "digit": jnp.asarray(digits)}
        for name, (images, digits) in SETS[options.images].load().items()
    }
    return Task(
        init=functools.partial(models.init, inputs=28, outputs=10, model=model),
        batches=functools.partial(_batches, batch=batch),
        loss=functools.partial(_loss, model),
        evaluate=functools.partial(_evaluate, model),
        splits=splits,
        metric="accuracy",
        measure="accuracy",
        baselines=functools.partial(_baselines, splits),
        watch=("validation",),
        published=PUBLISHED[options.images],
        epoch=len(splits["train"]["digit"]) // batch,
    )


def _batches(train: dict[str, Array], key: Array, steps: Array, batch: int) -> dict[str, Array]:
    rows = shuffled(key, steps, examples=len(train["digit"]), batch=batch)
    return {name: column[rows] for name, column in train.items()}


def _losses(model: models.Model | models.RNN, params: models.Params, batch: dict[str, Array]) -> tuple[Array, Array]:
    log_outputs = jax.nn.log_softmax(models.last(model, params, batch["rows"]))
    right = jnp.take_along_axis(log_outputs, batch["digit"][:, None], axis=-1)[:, 0]
    return -right, (jnp.argmax(log_outputs, axis=-1) == batch["digit"]).astype(jnp.float32)


def _loss(model: models.Model | models.RNN, params: models.Params, batch: dict[str, Array], carried: Carried):
    losses, correct = _losses(model, params, batch)
    return jnp.mean(losses), (correct, carried)


def _evaluate(model: models.Model | models.RNN, params: models.Params, split: dict[str, Array]):
    pieces = jax.tree.map(lambda column: column.reshape(-1, AT_ONCE, *column.shape[1:]), split)
    losses, correct = jax.lax.map(functools.partial(_losses, model, params), pieces)
    return {"accuracy": jnp.mean(correct), "loss": jnp.mean(losses)}


def _baselines(splits: dict[str, dict[str, Array]]) -> dict[str, dict[str, float]]:
    """Always the commonest; and the one whose mean training image is nearest."""
    pixels, digits = (np.asarray(splits["train"][name]) for name in ("rows", "digit"))
    tested, truth = (np.asarray(splits["test"][name]) for name in ("rows", "digit"))
    commonest = np.bincount(digits).argmax()
    means = np.stack([pixels[digits == digit].mean(axis=0) for digit in range(10)]).reshape(10, -1)
    distances = (means**2).sum(axis=1)[None, :] - 2 * tested.reshape(len(tested), -1) @ means.T
    return {
        "commonest": {"accuracy": float(np.mean(truth == commonest))},
        "nearest mean image": {"accuracy": float(np.mean(truth == distances.argmin(axis=1)))},
    }
