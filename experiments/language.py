"""A language model of words: an embedding, a stack of LSTMs that goes on in its state, and a dense layer.

Zaremba, Sutskever & Vinyals, Recurrent Neural Network Regularization, 2014, drop units between layers, never from step
to step; here the same ones at all steps of a batch, as Gal & Ghahramani, A Theoretically Grounded Application of
Dropout in Recurrent Neural Networks, 2016.
"""

import dataclasses
from typing import Any, Literal

import jax
import tyro
from jaxtyping import Array, Float, Int

from experiments import mesh
from lstmjax import Dropout, dense, embedding, stack


@dataclasses.dataclass(frozen=True)
class Words:
    """Settings of a language model of words, [model] in a config."""

    kind: tyro.conf.Suppress[Literal["words"]] = "words"
    units: int = 200
    """Length of a word's vector, and of h and c of every layer."""
    layers: int = 2
    """LSTMs, each reading what the one before says."""
    forget_bias: float = 1.0
    """The forget gates' bias at the start."""
    scale: float = 0.1
    """All weights start out uniform from minus this to this."""
    dropout: float = 0.0
    """Rate at which units are dropped in training: of words, between layers, and of what is said."""
    tied: bool = False
    """Whether the dense layer's weights are the words' vectors."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the LSTMs compute in."""

    def __post_init__(self):
        for name in ("units", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        if not self.scale > 0:
            raise ValueError(f"model.scale is {self.scale}; it must be above 0")
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"model.dropout is {self.dropout}; it must be from 0 to 1")


def init(key: Array, vocabulary: int, model: Words) -> dict[str, Any]:
    def uniform(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -model.scale, model.scale)

    words, layers, head = jax.random.split(key, 3)
    units = (model.units,) * model.layers
    last = dense.init(head, model.units, vocabulary, w_init=uniform)
    return {
        "embedding": embedding.init(words, vocabulary, model.units, table_init=uniform),
        "lstm": stack.init(
            layers, model.units, units, w_x_init=uniform, w_h_init=uniform, forget_bias=model.forget_bias
        ),
        "dense": last.bias if model.tied else last,
    }


def initial_state(model: Words, params: dict[str, Any], batch: int) -> Any:
    layers = stack.initial_state(params["lstm"], (batch,))
    return tuple(dataclasses.replace(layer, h=layer.h.astype(model.precision)) for layer in layers)


def say(
    model: Words, params: dict[str, Any], tokens: Int[Array, "rows steps"], state: Any, key: Array | None = None
) -> tuple[Float[Array, "rows steps vocabulary"], Any]:
    """The logits of each next word, and the state after the last; units are dropped where there is a key."""
    before = between = after = dropout = None
    if key is not None and model.dropout:
        before, between, after = jax.random.split(key, 3)
        dropout = Dropout(between_layers=model.dropout) if model.layers > 1 else None
    xs = _dropped(embedding.apply(params["embedding"], tokens), model.dropout, before)
    ys, state = stack.apply(
        params["lstm"],
        xs,
        state,
        options=mesh.lstm_options(precision=model.precision),
        dropout=dropout,
        key=between if dropout else None,
    )
    ys = _dropped(ys, model.dropout, after)
    if model.tied:
        return embedding.attend(params["embedding"], ys) + params["dense"][None, None], state
    return dense.apply(params["dense"], ys), state


def _dropped(xs: Array, rate: float, key: Array | None) -> Array:
    if key is None:
        return xs
    return xs * jax.random.bernoulli(key, 1 - rate, (xs.shape[0], 1, xs.shape[2])) / ((1 - rate) or 1)
