"""Say the symbols that were read in another order: reversed, or sorted.

Sutskever, Vinyals & Le, Sequence to Sequence Learning with Neural Networks, NIPS 2014, for the model. Multiples of
`data.unseen` below `data.longest` are never trained on, nor are lengths above it; a test sequence has one of these.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments import seq2seq
from experiments.data import drawn
from experiments.models import Params
from experiments.seq2seq import Seq2Seq
from experiments.task import Carried, Task

MODELS = ("seq2seq",)
TEST, VALIDATION = 2000, 500
FURTHER = 1.5  # times `longest`: the longest sequence that is tested


@dataclasses.dataclass(frozen=True)
class Options:
    order: Literal["reverse", "sort"] = "reverse"
    """The order in which symbols are to be said."""
    symbols: int = 10
    """Kinds of symbols."""
    longest: int = 20
    """The longest sequence to train on."""
    unseen: int = 4
    """Multiples of this, below `longest`, are no length to train on."""

    def __post_init__(self):
        for name, least in (("symbols", 2), ("unseen", 2), ("longest", 1 + self.unseen)):
            if getattr(self, name) < least:
                raise ValueError(f"data.{name} is {getattr(self, name)}; it must be at least {least}")


def build(options: Options, model: Seq2Seq, batch: int, key: Array) -> Task:
    seen, unseen, longer = lengths(options)
    draw = functools.partial(sequence, options, seen, options.longest)
    validation = drawn.sequences(
        functools.partial(sequence, options, unseen, options.longest), jax.random.fold_in(key, 1), VALIDATION
    )
    test = drawn.sequences(functools.partial(sequence, options, unseen + longer, max(longer)), key, TEST)
    return Task(
        init=functools.partial(seq2seq.init, symbols=options.symbols, model=model),
        batches=lambda train, key, steps: drawn.per_step(draw, key, steps, batch),
        loss=functools.partial(_loss, model),
        evaluate=functools.partial(_evaluate, model, options),
        splits={"validation": validation, "test": test},
        watch=("validation",),
        metric="exact match",
        measure="accuracy",
        baselines=functools.partial(baselines, options, test),
    )


def lengths(options: Options) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Lengths trained on, lengths between them that are not, and longer ones."""
    inside = range(1, options.longest + 1)
    unseen = tuple(n for n in inside if n % options.unseen == 0 and n < options.longest)
    longer = range(options.longest + 1, max(int(options.longest * FURTHER), options.longest + 1) + 1)
    return tuple(n for n in inside if n not in unseen), unseen, tuple(longer)


def sequence(options: Options, among: tuple[int, ...], width: int, key: Array) -> dict[str, Array]:
    """Symbols [width], what is to be said of them [width], and how many there are: one of `among`."""
    length_key, symbols_key = jax.random.split(key)
    length = jax.random.choice(length_key, jnp.array(among))
    steps = jnp.arange(width)
    source = jnp.where(steps < length, jax.random.randint(symbols_key, (width,), 0, options.symbols), 0)
    if options.order == "sort":
        target = jnp.sort(jnp.where(steps < length, source, options.symbols))
    else:
        target = source[length - 1 - steps]
    return {"source": source, "target": jnp.where(steps < length, target, 0), "length": length}


def baselines(options: Options, test: dict[str, Array]) -> dict[str, dict[str, float]]:
    """Figures of copying the input, and of a uniform guess."""
    source, target, length = (np.asarray(test[name]) for name in ("source", "target", "length"))
    inside = length <= options.longest
    same = (source == target).all(axis=1)
    chance = float(options.symbols) ** -length
    return {
        "in the order read": {"exact match": same[inside].mean(), "exact match, longer": same[~inside].mean()},
        "chance": {"exact match": chance[inside].mean(), "exact match, longer": chance[~inside].mean()},
    }


def _loss(model: Seq2Seq, params: Params, batch: dict[str, Array], carried: Carried):
    state = seq2seq.encode(model, params, batch["source"], batch["length"])
    log_likelihood, correct = seq2seq.forced(model, params, state, batch["target"], batch["length"])
    said = batch["length"] + 1
    return -jnp.sum(log_likelihood) / jnp.sum(said), (jnp.sum(correct, axis=1) / said, carried)


def _evaluate(model: Seq2Seq, options: Options, params: Params, split: dict[str, Array]):
    """Exact matches of what is said greedily and by beam search, and the loss, on lengths inside those trained on."""
    source, target, length = split["source"], split["target"], split["length"]
    inside = length <= options.longest
    state = seq2seq.encode(model, params, source, length)
    width = target.shape[1]
    valid = jnp.arange(width)[None] < length[:, None]
    log_likelihood, _ = seq2seq.forced(model, params, state, target, length)

    def exact(beam):
        said = seq2seq.decode(model, params, state, width + 1, beam)
        return (said.lengths == length) & jnp.all((said.symbols[:, :width] == target) | ~valid, axis=1)

    greedy, beam = exact(None), exact(model.beam)
    figures = {
        "exact match": jnp.mean(greedy, where=inside),
        "by beam search": jnp.mean(beam, where=inside),
        "loss": -jnp.sum(log_likelihood, where=inside[:, None]) / jnp.sum(length + 1, where=inside),
    }
    if width > options.longest:
        figures |= {
            "exact match, longer": jnp.mean(greedy, where=~inside),
            "by beam search, longer": jnp.mean(beam, where=~inside),
        }
    return figures
