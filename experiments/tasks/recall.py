"""Recall over many updates: a symbol is shown once, and asked for until the next is shown, `data.episode` steps later.

A batch reads `data.steps` steps of each stream, and the next batch goes on in the state this one ended in. No
gradient is longer than a batch, so that what was shown many batches ago is known from the carried state or not at all:
with `data.carry` false every batch starts from zeros.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from experiments import models
from experiments.data import drawn
from experiments.task import Task
from lstmjax import LSTMState

KINDS = 8
ASKED = 0.05  # of the steps, besides the last one of each episode
EPISODES = 3  # of a stream, which begins with zeros for its state
STREAMS = 128  # to test on


@dataclasses.dataclass(frozen=True)
class Options:
    episode: int = 1000
    """Steps from one symbol that is shown to the next."""
    steps: int = 100
    """Steps in one batch, which is as far back as gradients go."""
    carry: bool = True
    """Whether a batch goes on in the state of the one before."""

    def __post_init__(self):
        if self.steps < 2 or self.episode < 2 * self.steps or self.episode % self.steps:
            raise ValueError(
                f"data.steps is {self.steps} and data.episode {self.episode}; steps must be at least 2, and the "
                f"episode two or more times that"
            )


def build(options: Options, model: models.Model, batch: int, key: Array) -> Task:
    models.check_whole(model)
    draw = functools.partial(episode, length=options.episode)
    streams = jax.vmap(lambda key: drawn.sequences(draw, key, STREAMS))(jax.random.split(key, EPISODES))
    return Task(
        init=functools.partial(models.init, inputs=KINDS + 1, outputs=KINDS, model=model),
        batches=functools.partial(_batches, draw, options, batch=batch),
        loss=functools.partial(_loss, model, options),
        evaluate=functools.partial(_evaluate, model, options),
        splits={"test": jax.vmap(lambda one: _pieces(one, options))(streams)},
        metric="accuracy",
        measure="accuracy",
        baselines=lambda: {
            "chance": {"accuracy": 1 / KINDS, "accuracy at the end": 1 / KINDS, "loss": math.log(KINDS)}
        },
        counted=lambda batch: jnp.broadcast_to(jnp.any(batch["asked"]), batch["asked"].shape[:1]),
        carried=functools.partial(models.initial_state, model, batch=batch),
    )


def episode(key: Array, length: int) -> dict[str, Array]:
    """One episode: what is shown [length, KINDS + 1], its last column where the symbol is asked for; and the symbol."""
    symbol_key, asked_key = jax.random.split(key)
    symbol = jax.random.randint(symbol_key, (), 0, KINDS)
    steps = jnp.arange(length)
    asked = (jax.random.bernoulli(asked_key, ASKED, (length,)) & (steps > 0)) | (steps == length - 1)
    shown = jnp.zeros((length, KINDS)).at[0, symbol].set(1.0)
    return {"xs": jnp.concatenate([shown, asked[:, None]], axis=-1), "symbol": jnp.full(length, symbol), "asked": asked}


def _pieces(episodes: dict[str, Array], options: Options) -> dict[str, Array]:
    """Cut [streams, length, ...] into pieces [pieces, streams, steps, ...]."""
    return jax.tree.map(lambda a: jnp.moveaxis(a.reshape(a.shape[0], -1, options.steps, *a.shape[2:]), 1, 0), episodes)


def _batches(draw, options: Options, train, key: Array, steps: Array, batch: int) -> dict[str, Array]:
    """The streams of a batch stand at different places of their episodes."""
    del train
    pieces = options.episode // options.steps

    def piece(row, step):
        whole = draw(jax.random.fold_in(jax.random.fold_in(key, row), (step + row) // pieces))
        first = (step + row) % pieces * options.steps
        read = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, first, options.steps), whole)
        return read | {"first": (step + row) % (pieces * EPISODES) == 0}

    return jax.vmap(lambda step: jax.vmap(lambda row: piece(row, step))(jnp.arange(batch)))(steps)


def _said(
    model: models.Model, options: Options, params: models.Params, piece: dict[str, Array], state: LSTMState
) -> tuple[Float[Array, "streams steps"], Float[Array, "streams steps"], LSTMState]:
    """Negative log-probability of each step's symbol, and 1 where it was the likeliest; the state."""
    state = state if options.carry else jax.tree.map(jnp.zeros_like, state)
    outputs, state = models.going_on(model, params, piece["xs"], state)
    log_outputs = jax.nn.log_softmax(outputs)
    right = jnp.take_along_axis(log_outputs, piece["symbol"][..., None], axis=-1)[..., 0]
    return -right, (jnp.argmax(outputs, axis=-1) == piece["symbol"]).astype(jnp.float32), state


def _loss(model: models.Model, options: Options, params: models.Params, batch: dict[str, Array], carried: LSTMState):
    begun = jax.tree.map(lambda leaf: jnp.where(batch["first"][:, None], jnp.zeros_like(leaf), leaf), carried)
    nats, correct, state = _said(model, options, params, batch, begun)
    asked = jnp.maximum(jnp.sum(batch["asked"]), 1)
    share = jnp.sum(correct, axis=1, where=batch["asked"]) * len(correct) / asked  # their mean is that of all asked
    return jnp.sum(nats, where=batch["asked"]) / asked, (share, state)


def _evaluate(model: models.Model, options: Options, params: models.Params, split: dict[str, Array]):
    """Figures of questions in later batches than the symbol was shown in."""
    pieces = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), split)
    start = models.initial_state(model, params, pieces["xs"].shape[1])

    def read(state, piece):
        nats, correct, state = _said(model, options, params, piece, state)
        return state, (nats, correct)

    _, (nats, correct) = jax.lax.scan(read, start, pieces)
    nats, correct = (a.reshape(split["asked"].shape)[:, 1:] for a in (nats, correct))
    asked = split["asked"][:, 1:]
    return {
        "accuracy": jnp.sum(correct, where=asked) / jnp.sum(asked),
        "accuracy at the end": jnp.mean(correct[:, -1, :, -1]),
        "loss": jnp.sum(nats, where=asked) / jnp.sum(asked),
    }
