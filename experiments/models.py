"""The models: one LSTM and a dense layer, read at the last valid step or at every step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lstmjax import dense, lstm

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
    """What [model] in a config may say."""

    units: int = 32
    """Length of h and of c."""
    forget_bias: float = 1.0
    """The forget gate's bias at the start."""
    chrono: int = 0
    """Where above 0, gates start out set to remember for 1 to this many steps, and `forget_bias` says nothing."""

    def __post_init__(self):
        if self.units < 1:
            raise ValueError(f"model.units is {self.units}; it must be at least 1")
        if self.chrono != 0 and self.chrono < 3:
            raise ValueError(f"model.chrono is {self.chrono}; it must be 0, for none, or at least 3")


def init(key: Array, inputs: int, outputs: int, model: Model) -> Params:
    lstm_key, dense_key, chrono_key = jax.random.split(key, 3)
    recurrent = lstm.init(lstm_key, inputs, model.units, forget_bias=model.forget_bias)
    if model.chrono:
        bias = chrono_bias(chrono_key, model.units, model.chrono)
        recurrent = dataclasses.replace(recurrent, bias=bias)
    return {"lstm": recurrent, "dense": dense.init(dense_key, model.units, outputs)}


def chrono_bias(key: Array, units: int, longest: int) -> Float[Array, " gates"]:
    """Forget biases log U(1, longest - 1), and input biases that are their negatives.

    Tallec & Ollivier, Can Recurrent Neural Networks Warp Time?, 2018. Hochreiter & Schmidhuber 1997 likewise start
    with input gates nearly closed.
    """
    forget = jnp.log(jax.random.uniform(key, (units,), minval=1.0, maxval=longest - 1.0))
    return jnp.concatenate([-forget, forget, jnp.zeros(2 * units)])


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
