"""Pictures read row by row, handwritten digits or clothes: 28 steps of 28 pixels, then which of ten it is."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments import models
from experiments.data import fashion, mnist
from experiments.data.order import shuffled
from experiments.task import Carried, Published, Task, each

MODELS = ("lstm", "rnn")
AT_ONCE = 1000
PENALTY, TOLERANCE = 0.1, 1e-3  # of the logistic regression; the first was chosen on the validation images
SETS = {"mnist": mnist, "fashion": fashion}
CITED = (
    "Damien, TensorFlow-Examples, github.com/aymericdamien/TensorFlow-Examples, its recurrent network.",
    "Xiao, Rasul & Vollgraf, Fashion-MNIST, README of github.com/zalandoresearch/fashion-mnist, benchmarks.",
)
PUBLISHED = {
    "mnist": (Published("LSTM(128), TensorFlow-Examples, 128 test images", {"accuracy": 0.9766}),),
    "fashion": (
        Published(
            "GRU with dropout, and an SVM, A. F. Agarap, benchmark of zalandoresearch/fashion-mnist",
            {"accuracy": 0.897},
        ),
    ),
}


@dataclasses.dataclass(frozen=True)
class Options:
    images: Literal["mnist", "fashion"] = "mnist"
    """MNIST's digits, or the clothes of Fashion-MNIST."""
    mirror: bool = False
    """Whether half of the pictures are mirrored in training, others each time."""


def sources(options: Options) -> Iterator[tuple[str, bytes]]:
    return SETS[options.images].sources()


def build(options: Options, model: models.Model | models.RNN, batch: int, key: Array) -> Task:
    del key  # nothing is drawn
    splits = {
        name: {"rows": jnp.asarray(images), "digit": jnp.asarray(digits)}
        for name, (images, digits) in SETS[options.images].load().items()
    }
    return Task(
        init=functools.partial(models.init, inputs=28, outputs=10, model=model),
        batches=functools.partial(_batches, options, batch=batch),
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


def _batches(options: Options, train: dict[str, Array], key: Array, steps: Array, batch: int) -> dict[str, Array]:
    (order, noise), sides = jax.random.split(key), jax.random.fold_in(key, 2)
    rows = shuffled(order, steps, examples=len(train["digit"]), batch=batch)
    keys, tosses = (jax.vmap(functools.partial(jax.random.fold_in, each))(steps) for each in (noise, sides))
    read = {name: column[rows] for name, column in train.items()}
    if options.mirror:
        heads = jax.vmap(lambda toss: jax.random.bernoulli(toss, shape=(batch,)))(tosses)
        read["rows"] = jnp.where(heads[..., None, None], read["rows"][..., ::-1], read["rows"])
    return read | {"key": keys}


def _losses(model: models.Model | models.RNN, params: models.Params, batch: dict[str, Array]) -> tuple[Array, Array]:
    log_outputs = jax.nn.log_softmax(models.last(model, params, batch["rows"], key=batch.get("key")))
    right = jnp.take_along_axis(log_outputs, batch["digit"][:, None], axis=-1)[:, 0]
    return -right, (jnp.argmax(log_outputs, axis=-1) == batch["digit"]).astype(jnp.float32)


def _loss(model: models.Model | models.RNN, params: models.Params, batch: dict[str, Array], carried: Carried):
    losses, correct = _losses(model, params, batch)
    return jnp.mean(losses), (correct, carried)


def _evaluate(model: models.Model | models.RNN, params: models.Params, split: dict[str, Array]):
    pieces = jax.tree.map(lambda column: column.reshape(-1, AT_ONCE, *column.shape[1:]), split)
    losses, correct = jax.lax.map(functools.partial(_losses, model, params), pieces)
    return {"accuracy": jnp.mean(correct), "loss": jnp.mean(losses)}


def _baselines(splits: dict[str, dict[str, Array]]) -> Mapping[str, Mapping[str, Any]]:
    """Always the commonest; the one whose mean training image is nearest; and logistic regression of all pixels."""
    (pixels, digits), (tested, truth) = (
        (np.asarray(split["rows"]).reshape(len(split["rows"]), -1), np.asarray(split["digit"]))
        for split in (splits["train"], splits["test"])
    )

    def nearest():
        means = np.stack([pixels[digits == digit].mean(axis=0) for digit in range(10)])
        return ((means**2).sum(axis=1)[None, :] - 2 * tested @ means.T).argmin(axis=1)

    def linear():
        from sklearn.linear_model import LogisticRegression  # takes a second

        return LogisticRegression(C=PENALTY, tol=TOLERANCE, max_iter=1000).fit(pixels, digits).predict(tested)

    def accuracy(said):
        return {"accuracy": float(np.mean(truth == said()))}

    foreseen = {
        "commonest": lambda: np.bincount(digits).argmax(),
        "nearest mean image": nearest,
        "linear, all pixels": linear,
    }
    return each({name: functools.partial(accuracy, said) for name, said in foreseen.items()})
