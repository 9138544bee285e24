"""Bach's chorales: which of 88 notes sound at the next step, given all that sounded so far?

Every note of a step is a yes or no of its own. The loss of a step is the sum over the 88 notes of their binary
cross-entropies; that of a split is the mean over all its steps but each chorale's first, long and short chorales
together, which is how Bai, Kolter & Koltun (An Empirical Evaluation of Generic Convolutional and Recurrent Networks,
2018, section 5.2) average too.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special
from jaxtyping import Array, Float, Int

from experiments import models
from experiments.data import chorales
from experiments.data.order import shuffled
from experiments.task import Carried, Published, Task, each

MODELS = ("lstm", "rnn", "tcn")
CITED = (
    "Bai, Kolter & Koltun, An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence "
    "Modeling, arXiv:1803.01271, 2018.",
)
PAPER = "Bai, Kolter & Koltun 2018"
PUBLISHED = {
    "lstm": Published(f"LSTM, {PAPER}", {"nll": 8.45}),
    "rnn": Published(f"plain RNN, {PAPER}", {"nll": 8.91}),
    "tcn": Published(f"TCN, {PAPER}", {"nll": 8.10}),
}
PENALTY = 0.3  # of the logistic regression, chosen on the validation chorales


@dataclasses.dataclass(frozen=True)
class Options:
    pass


def sources(options: Options) -> Iterator[tuple[str, bytes]]:
    del options
    return chorales.sources()


def build(options: Options, model: models.Sequential, batch: int, key: Array) -> Task:
    del options, key
    rolls = chorales.load()
    return Task(
        init=functools.partial(models.init, inputs=chorales.NOTES, outputs=chorales.NOTES, model=model),
        batches=functools.partial(_batches, batch=batch),
        loss=functools.partial(_loss, model),
        evaluate=functools.partial(_evaluate, model),
        splits={name: _padded(split) for name, split in rolls.items()},
        metric="nll",
        unit="nats per step",
        measure="nll",
        baselines=functools.partial(baselines, rolls["train"], rolls["test"]),
        watch=("validation",),
        published=(PUBLISHED[model.kind], *(row for kind, row in PUBLISHED.items() if kind != model.kind)),
        epoch=len(rolls["train"]) // batch,
        counted=lambda batch: batch["length"] > 0,
    )


def baselines(train: list[np.ndarray], test: list[np.ndarray]) -> Mapping[str, Mapping[str, Any]]:
    """Each note as often as in training; as often as it follows itself, or its silence; and by a logistic regression.

    Frequencies are (yes + 1/2) / (all + 1), so that a note never heard in training is not impossible.
    """
    before, after = (np.concatenate([roll[part] for roll in train]) for part in (slice(-1), slice(1, None)))
    often, from_silence, from_sound = (
        (after.sum(axis=0, where=counted) + 0.5) / (counted.sum(axis=0) + 1)
        for counted in (np.ones_like(before, bool), before == 0, before == 1)
    )
    shown, truth = (np.concatenate([roll[part] for roll in test]) for part in (slice(-1), slice(1, None)))
    forecasts = {
        "note frequencies": lambda: often[None],
        "note transitions": lambda: np.where(shown == 1, from_sound, from_silence),
        "linear, the step before": lambda: scipy.special.expit(_ended(shown) @ linear(_ended(before), after)),
    }

    def nll(forecast):
        chances = forecast()
        return {"nll": float(-np.where(truth == 1, np.log(chances), np.log1p(-chances)).sum(axis=1).mean())}

    return each({name: functools.partial(nll, forecast) for name, forecast in forecasts.items()})


def linear(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Weights [inputs, notes] of a logistic regression for each note: the least of losses and PENALTY / 2 squares."""
    import scipy.optimize  # takes half a second

    shape = before.shape[1], after.shape[1]

    def loss(flat):
        weights = flat.reshape(shape)
        logits = before @ weights
        slope = before.T @ (scipy.special.expit(logits) - after) + PENALTY * weights
        return np.sum(np.logaddexp(0, logits) - after * logits) + PENALTY / 2 * np.sum(flat**2), slope.ravel()

    return scipy.optimize.minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B").x.reshape(shape)


def _ended(notes: np.ndarray) -> np.ndarray:
    """A column of ones behind the notes, for a bias."""
    return np.concatenate([notes, np.ones((len(notes), 1))], axis=1)


def _padded(rolls: list[np.ndarray]) -> dict[str, Array]:
    """Chords [chorales, time, 88], those that follow each, and the length of each chorale without its last step."""
    lengths = np.array([len(roll) - 1 for roll in rolls], np.int32)
    chords, following = np.zeros((2, len(rolls), lengths.max(), chorales.NOTES), np.float32)
    for row, (roll, length) in enumerate(zip(rolls, lengths, strict=True)):
        chords[row, :length], following[row, :length] = roll[:-1], roll[1:]
    return {"chords": jnp.asarray(chords), "next": jnp.asarray(following), "length": jnp.asarray(lengths)}


def _batches(train: dict[str, Array], key: Array, steps: Array, batch: int) -> dict[str, Array]:
    order, noise = jax.random.split(key)
    rows = shuffled(order, steps, examples=len(train["length"]), batch=batch)
    keys = jax.vmap(functools.partial(jax.random.fold_in, noise))(steps)
    return {name: column[rows] for name, column in train.items()} | {"key": keys}


def _nll(
    model: models.Sequential, params: models.Params, batch: dict[str, Array]
) -> tuple[Float[Array, " batch"], Int[Array, ""]]:
    """Negative log-likelihood of each chorale, summed over its steps and notes; and the steps of all."""
    outputs = models.every(model, params, batch["chords"], batch["length"], key=batch.get("key"))
    valid = (jnp.arange(outputs.shape[1])[None] < batch["length"][:, None])[..., None]
    losses = optax.sigmoid_binary_cross_entropy(outputs, jnp.where(valid, batch["next"], 0.0))
    return jnp.sum(losses, axis=(1, 2), where=valid), jnp.sum(batch["length"])


def _loss(model: models.Sequential, params: models.Params, batch: dict[str, Array], carried: Carried):
    sums, steps = _nll(model, params, batch)
    return jnp.sum(sums) / steps, (sums / jnp.maximum(batch["length"], 1), carried)


def _evaluate(model: models.Sequential, params: models.Params, split: dict[str, Array]):
    sums, steps = _nll(model, params, split)
    return {"nll": jnp.sum(sums) / steps}
