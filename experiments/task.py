"""The interface of a task: plain functions and arrays, all that the training loop needs to know."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from experiments.models import Params

Batch = Any
Carried = Any


@dataclasses.dataclass(frozen=True)
class Criterion:
    """Stop when the most recent `sequences` training sequences each err below `each`, and below `mean` on average.

    Hochreiter & Schmidhuber, Long Short-Term Memory, Neural Computation 9(8), 1997, sections 5.4 and 5.6.
    """

    each: float
    mean: float
    sequences: int = 2000

    def start(self) -> Float[Array, " sequences"]:
        """No sequence seen yet: infinite errors."""
        return jnp.full(self.sequences, jnp.inf)

    def push(self, recent: Float[Array, " sequences"], errors: Float[Array, " batch"]) -> Float[Array, " sequences"]:
        return jnp.concatenate([recent, errors])[-self.sequences :]

    def met(self, recent: Float[Array, " sequences"]) -> Bool[Array, ""]:
        return jnp.all(recent < self.each) & (jnp.mean(recent) < self.mean)


def figures(evaluated: Mapping[str, Array], split: Any) -> dict[str, float]:
    """Each array of `evaluate` is a figure."""
    del split
    return {name: float(value) for name, value in evaluated.items()}


FAILED = "failed"


def each(baselines: Mapping[str, Callable[[], Any]]) -> dict[str, Mapping[str, Any]]:
    """The figures of each baseline; of one that fails, the reason as `FAILED`, so that the others are shown."""
    return {name: attempted(compute) for name, compute in baselines.items()}


def attempted(compute: Callable[[], Any]) -> Mapping[str, Any]:
    """Computed figures or rows of them by their names; else the reason why there are none, as `FAILED`."""
    try:
        found = compute()
        if not isinstance(found, Mapping):
            raise TypeError(f"it gave {found!r}; it must give figures by their names")
        return found
    except Exception as error:
        return {FAILED: f"{type(error).__name__}: {error}".partition("\n")[0]}


class Labelled(NamedTuple):
    """A line, what it was found to be, and how probable that is."""

    line: str
    tag: str
    probability: float


class Published(NamedTuple):
    """A published result for this task: the model and where, and figures named as those of `score`.

    "sequences" are those trained on until the criterion was met.
    """

    source: str
    figures: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Task:
    """A task, ready to train.

    `loss` returns, beside the mean loss, one number per sequence, named by `measure`, which the criterion looks at; and
    what the next batch is given of this one. Where sequences go on from batch to batch that is the state they are in,
    and no gradient reaches the batches before; where every batch stands by itself it is None. `counted` tells the
    sequences of a batch whose number counts, all of them unless given: a slot without a sequence has none.
    `evaluate` returns named arrays of a whole split, and `score` makes of them, outside of JAX, the figures that are
    shown, `metric` among them: a figure each, where a task does not say otherwise. `baselines` computes the same
    figures of the test split for predictors that need no LSTM; that may take a minute, so it is called where they are
    shown, once. `label`, where lines of a text can be labelled, takes a file of them. `kept` is what a run must keep to
    read other data in the same way, as JSON: vocabulary, tags, scaling. `read` is what `files.described` says of each
    file that the task was made from.
    """

    init: Callable[[Array], Params]
    batches: Callable[[Any, Array, Int[Array, " steps"]], Batch]  # (train split, key, steps)
    loss: Callable[[Params, Batch, Carried], tuple[Float[Array, ""], tuple[Float[Array, " batch"], Carried]]]
    evaluate: Callable[[Params, Any], dict[str, Array]]
    splits: Mapping[str, Any]  # "test", "train" where data is given, not drawn, and others to watch
    metric: str
    measure: str
    baselines: Callable[[], Mapping[str, Mapping[str, Any]]]  # figures, or the reason as `FAILED`
    score: Callable[[Mapping[str, Array], Any], dict[str, float]] = figures  # (what `evaluate` returned, split)
    label: Callable[[Params, Path], list[Labelled]] | None = None
    kept: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    read: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    counted: Callable[[Batch], Bool[Array, " batch"]] | None = None
    carried: Callable[[Params], Carried] = lambda params: None  # what the first batch is given
    watch: tuple[str, ...] = ()  # splits evaluated while training
    unit: str = ""  # of `metric`
    criterion: Criterion | None = None
    published: tuple[Published, ...] = ()  # the first is of a model like this one
    epoch: int = 0  # steps that read the training split once; 0 where data is drawn
