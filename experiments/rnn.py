"""The plain recurrent network, to compare with: h_t = tanh(x_t W_x + h_{t-1} W_h + b)."""

import dataclasses
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class RNN:
    """Settings of a plain recurrent network, [model] in a config."""

    kind: tyro.conf.Suppress[Literal["rnn"]] = "rnn"
    units: int = 32
    """Length of h."""

    def __post_init__(self):
        if self.units < 1:
            raise ValueError(f"model.units is {self.units}; it must be at least 1")


@flax.struct.dataclass
class RNNParams:
    w_x: Float[Array, "inputs units"]
    w_h: Float[Array, "units units"]
    bias: Float[Array, " units"]


def init(key: Array, inputs: int, units: int) -> RNNParams:
    x_key, h_key = jax.random.split(key)
    w_x = jax.nn.initializers.glorot_uniform()(x_key, (inputs, units))
    w_h = jax.nn.initializers.orthogonal()(h_key, (units, units))
    return RNNParams(w_x, w_h, jnp.zeros(units))


def apply(
    params: RNNParams, xs: Float[Array, "batch time inputs"], lengths: Int[Array, " batch"] | None = None
) -> Float[Array, "batch time units"]:
    """h of every step, zeros in padding."""
    valid = jnp.ones(xs.shape[:2], bool) if lengths is None else jnp.arange(xs.shape[1])[None] < lengths[:, None]
    xs = jnp.where(valid[..., None], xs, 0)

    def step(h, x):
        h = jnp.tanh(x @ params.w_x + h @ params.w_h + params.bias[None])
        return h, h

    h = jnp.zeros((xs.shape[0], params.bias.size), xs.dtype)
    _, ys = jax.lax.scan(step, h, jnp.swapaxes(xs, 0, 1))
    return jnp.where(valid[..., None], jnp.swapaxes(ys, 0, 1), 0)
