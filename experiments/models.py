"""The models: one LSTM and a dense layer, read at the last valid step or at every step."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from lstmjax import dense, lstm

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
    """What [model] in a config may say."""

    units: int = 32
    """Length of h and of c."""
    forget_bias: float = 1.0
    """The forget gate's bias at the start; the longer the gap to bridge, the larger."""

    def __post_init__(self):
        if self.units < 1:
            raise ValueError(f"model.units is {self.units}; it must be at least 1")


def init(key: Array, inputs: int, outputs: int, model: Model) -> Params:
    lstm_key, dense_key = jax.random.split(key)
    return {
        "lstm": lstm.init(lstm_key, inputs, model.units, forget_bias=model.forget_bias),
        "dense": dense.init(dense_key, model.units, outputs),
    }


def last(
    params: Params,
    xs: Float[Array, "batch time inputs"],
    lengths: Int[Array, " batch"] | None = None,
) -> Float[Array, "batch outputs"]:
    """What the model says once it has read each sequence to its end."""
    h, _ = lstm.apply(params["lstm"], xs, lengths=lengths, return_sequences=False)
    return dense.apply(params["dense"], h)


def every(params: Params, xs: Float[Array, "batch time inputs"]) -> Float[Array, "batch time outputs"]:
    """What the model says at each step."""
    ys, _ = lstm.apply(params["lstm"], xs)
    return dense.apply(params["dense"], ys)
