"""The standard LSTM, one step of one sequence.

    z_t        = x_t W_x + b + h_{t-1} W_h           the gates i, f, g, o side by side
    i, f, g, o = sigmoid(z_i), sigmoid(z_f), tanh(z_g), sigmoid(z_o)
    c_t        = f * c_{t-1} + i * g
    h_t        = o * tanh(c_t)

Hochreiter & Schmidhuber, "Long short-term memory" (1997), with the forget gate of Gers, Schmidhuber & Cummins,
"Learning to forget" (2000). Everything else that a cell may have is in variants.py.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lstmjax._src.lstm.params import LSTMParams, LSTMState


def step(params: LSTMParams, x: Float[Array, " inputs"], state: LSTMState) -> LSTMState:
    """Compute one step, params, x and h in one dtype; sums and c are as wide as `state.c`."""
    z = jnp.matmul(x, params.w_x, preferred_element_type=state.c.dtype)
    z = z if params.bias is None else z + params.bias.astype(z.dtype)
    z = z + jnp.matmul(state.h, params.w_h, preferred_element_type=z.dtype)
    h, c = standard_update(z, state.c)
    return LSTMState(h=h.astype(x.dtype), c=c)


def standard_update(
    z: Float[Array, " gates"], c: Float[Array, " units"]
) -> tuple[Float[Array, " units"], Float[Array, " units"]]:
    """Compute h and c from the pre-activations and the previous c."""
    i, f, g, o = gate_activations(z, c.size)
    c = f * c + i * g
    return o * jnp.tanh(c), c


def gate_activations(z: Float[Array, " gates"], units: int) -> list[Float[Array, " units"]]:
    """Compute sigmoid(z) for every gate but the second last, g, and tanh(z) for g.

    One sigmoid serves all gates, since XLA vectorises a pass over the whole of z and not one over a part of it. It is
    accurate relative to its value for closed gates too, which (1 + tanh(z / 2)) / 2 is not.
    """
    # Not a NumPy array: under a gradient, checkify loses its error where a custom_jvp function holds a constant.
    sizes, factors = (z.size - 2 * units, units, units), (1, 2, 1)
    twice_g = jnp.concatenate([jnp.full(size, factor, z.dtype) for size, factor in zip(sizes, factors, strict=True)])
    *gates, g, o = jnp.split(jax.nn.sigmoid(z * twice_g), z.size // units)
    # tanh(z) = 2 sigmoid(2z) - 1, and so is its derivative; its value, which cancels for small z, comes from tanh.
    g = 2 * g - 1
    return [*gates, g + jax.lax.stop_gradient(jnp.tanh(z[-2 * units : -units]) - g), o]
