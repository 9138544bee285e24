"""Dropout in all the places where an LSTM can have it, and the masks it draws.

Masks are drawn once, ahead of the loop, from one key, so that every implementation drops the same. A value that is
kept is divided by the rate of keeping, so that nothing has to change where nothing is dropped.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lstmjax._src import keywords, pytrees, validation

RECURRENT_KINDS = ("tied", "per_gate", "candidate")
BETWEEN_LAYERS_KINDS = ("sequence", "step")


@keywords.explained("Dropout")
@pytrees.static
class Dropout:
    """Dropout and zoneout rates in [0, 1], drawn from the key that `apply` gets in training.

    Args:
        inputs: features of x, the same at every step of a sequence (Gal & Ghahramani, "A theoretically grounded
            application of dropout in recurrent neural networks", 2016).
        recurrent: units of h on their way into the gates, the same at every step of a sequence; see recurrent_kind.
        recurrent_kind: "tied", one mask of h for all gates; "per_gate", one for each (both Gal & Ghahramani);
            "candidate", units of the candidate g instead, so that c is never dropped (Semeniuta, Severyn & Barth,
            "Recurrent dropout without memory loss", 2016).
        outputs: units of the outputs, the same at every step of a sequence; the state is not touched.
        between_layers: units of each layer's outputs on their way into the next layer of a stack; see
            between_layers_kind.
        between_layers_kind: "sequence", the same at every step of a sequence; "step", drawn anew at every step, as
            PyTorch's LSTM does.
        zoneout_h: units whose h stays what it was, drawn anew at every step (Krueger et al., "Zoneout", 2017).
            With deterministic=True h is the expectation, zoneout_h * h_{t-1} + (1 - zoneout_h) * h_t.
        zoneout_c: units whose c stays what it was, likewise; h_t is computed from the c that would have been.
        recurrent_weights: single weights of W_h, the same for all sequences and steps (DropConnect; Merity, Keskar &
            Socher, "Regularizing and optimizing LSTM language models", 2018).

    Raises:
        ValueError: a rate outside [0, 1], or an unknown recurrent_kind; TypeError: a rate that is no number.

    >>> Dropout(inputs=0.2, zoneout_h=0.1).zoneout_h
    0.1
    """

    inputs: float | int = 0
    recurrent: float | int = 0
    outputs: float | int = 0
    between_layers: float | int = 0
    zoneout_h: float | int = 0
    zoneout_c: float | int = 0
    recurrent_weights: float | int = 0
    recurrent_kind: str = "tied"
    between_layers_kind: str = "sequence"

    def __post_init__(self):
        for name in RATES:
            object.__setattr__(self, name, validation.probability(name, getattr(self, name)))
        validation.one_of("recurrent_kind", self.recurrent_kind, RECURRENT_KINDS)
        validation.one_of("between_layers_kind", self.between_layers_kind, BETWEEN_LAYERS_KINDS)

    @property
    def drops(self) -> bool:
        """True if any rate is above 0."""
        return any(getattr(self, name) for name in RATES)


RATES = tuple(field.name for field in dataclasses.fields(Dropout) if not field.name.endswith("_kind"))
NONE = Dropout()


def key_of(dropout: Any, key: Array | None, deterministic: bool) -> Array | None:
    """Return the key to draw masks from, None for none, or raise unless a call says which of the two it means.

    Args:
        dropout: Dropout or None; or whether there is any.
        key: a JAX random key, or None.
        deterministic: True for no key, given or not.
    """
    deterministic = validation.boolean("deterministic", deterministic)
    drops = dropout.drops if isinstance(dropout, Dropout) else dropout is True
    if drops and key is None and not deterministic:
        raise ValueError(
            "dropout needs key=, a JAX random key, in training; or deterministic=True in evaluation, where zoneout "
            "counts by its expectation and nothing is dropped."
        )
    return None if deterministic and dropout is not None else key


@pytrees.container
class SequenceMasks:
    """Masks that are constant over a sequence: 0, or 1 / (1 - rate); None for what is not dropped.

    Args:
        inputs: [*batch, inputs].
        recurrent: [*batch, outputs], or [*batch, gates, outputs].
        candidate: [*batch, units].
        outputs: [*batch, outputs].
        recurrent_weights: of the shape of W_h.
    """

    inputs: Any = None
    recurrent: Any = None
    candidate: Any = None
    outputs: Any = None
    recurrent_weights: Any = None

    def of_steps(self) -> "SequenceMasks":
        """Return those that a step needs; the others are applied before or after the loop."""
        return SequenceMasks(recurrent=self.recurrent, candidate=self.candidate)


@pytrees.container
class ZoneoutMasks:
    """Masks that change at each step: True where a unit keeps its state; None without zoneout or in expectation.

    Args:
        h: bool [time, *batch, outputs].
        c: bool [time, *batch, units].
    """

    h: Any = None
    c: Any = None


NAMES = "inputs", "recurrent", "candidate", "outputs", "zoneout_h", "zoneout_c", "recurrent_weights"


def draw(
    dropout: Dropout, key: Array | None, params: Any, batch: tuple[int, ...], time: int
) -> tuple[SequenceMasks, ZoneoutMasks]:
    """Draw the masks of one call; none without a key. Each depends on the key and its own rate alone.

    Args:
        dropout: the rates.
        key: a JAX random key, or None.
        params: LSTMParams, for the shapes.
        batch: the batch axes of the sequences.
        time: the number of steps.

    Returns:
        The masks; None for what is not dropped.
    """
    if key is None:
        return SequenceMasks(), ZoneoutMasks()
    keys = dict(zip(NAMES, jax.random.split(key, len(NAMES)), strict=True))
    outputs = (*batch, params.outputs)
    recurrent, candidate = outputs, dropout.recurrent_kind == "candidate"
    if dropout.recurrent_kind == "per_gate":
        recurrent = (*batch, params.gates, params.outputs)

    def factor(name, rate, shape):
        return factors(keys[name], rate, shape) if rate else None

    def zoneout(name, rate, units):
        return _drawn(keys[name], rate, (time, *batch, units)) if rate else None

    masks = SequenceMasks(
        inputs=factor("inputs", dropout.inputs, (*batch, params.inputs)),
        recurrent=None if candidate else factor("recurrent", dropout.recurrent, recurrent),
        candidate=factor("candidate", dropout.recurrent, (*batch, params.units)) if candidate else None,
        outputs=factor("outputs", dropout.outputs, outputs),
        recurrent_weights=factor("recurrent_weights", dropout.recurrent_weights, params.w_h.shape),
    )
    return masks, ZoneoutMasks(
        h=zoneout("zoneout_h", dropout.zoneout_h, params.outputs),
        c=zoneout("zoneout_c", dropout.zoneout_c, params.units),
    )


def factors(key: Array, rate: float, shape: tuple[int, ...]) -> Float[Array, "*shape"]:
    """0 with probability `rate`, else 1 / (1 - rate)."""
    kept = _drawn(key, 1 - rate, shape)
    return kept.astype(float) / ((1 - rate) or 1)  # a rate of 1 keeps nothing: not 0 / 0


def _drawn(key: Array, rate: float, shape: tuple[int, ...]) -> Bool[Array, "*shape"]:
    """True with probability `rate`: drawn from float32, so that masks are the same where JAX has 64 bits."""
    return jax.random.bernoulli(key, jnp.float32(rate), shape)
