"""Small numbers that can be followed by hand, where the reader has no weights or data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lstmjax import lstm
from lstmjax.bidirectional import BidirectionalParams
from lstmjax.lstm import LSTMParams
from lstmjax.stack import StackParams

INPUTS, UNITS, STEPS, LAYERS = 4, 8, 12, 3  # the most that the page offers
DECIMALS = 2


def network(
    inputs: int, units: int, layers: int = 1, bidirectional: bool = False
) -> LSTMParams | BidirectionalParams | StackParams:
    """Weights of any size, cut from one table for each LSTM, so that weights stay the same when a size changes.

    >>> network(inputs=1, units=3).w_x.shape
    (1, 12)
    """
    made = []
    for layer in range(layers):
        halves = [cut(table(layer, half, inputs, units), inputs, units) for half in range(1 + bidirectional)]
        made.append(BidirectionalParams(*halves) if bidirectional else halves[0])
        inputs = units * len(halves)
    return StackParams(tuple(made)) if layers > 1 else made[0]


def table(layer: int, half: int, inputs: int = 0, units: int = 0) -> LSTMParams:
    """Weights as `lstm.init` makes them of a key for each LSTM, rounded, as large as the page or the reader needs."""
    most = 2 * UNITS if layer else INPUTS
    params = lstm.init(jax.random.key(2 * layer + half), max(inputs, most), max(units, UNITS))
    return jax.tree.map(lambda leaf: jnp.asarray(np.round(np.float64(leaf), DECIMALS), leaf.dtype), params)


def cut(params: LSTMParams, inputs: int, units: int) -> LSTMParams:
    """The first rows, and of each gate the first columns."""

    def columns(matrix):
        *rows, gates = matrix.shape
        return matrix.reshape(*rows, 4, gates // 4)[..., :units].reshape(*rows, 4 * units)

    return dataclasses.replace(
        params,
        w_x=columns(params.w_x[:inputs]),
        w_h=columns(params.w_h[:units]),
        bias=columns(params.bias),
    )


def data(steps: int, inputs: int) -> Float[np.ndarray, "steps inputs"]:
    """The first feature counts the steps; feature k, from 2, repeats 0 to k - 1.

    >>> data(steps=4, inputs=1).ravel().tolist()
    [1.0, 2.0, 3.0, 4.0]
    >>> data(steps=4, inputs=3).tolist()
    [[1.0, 0.0, 0.0], [2.0, 1.0, 1.0], [3.0, 0.0, 2.0], [4.0, 1.0, 0.0]]
    """
    t = np.arange(steps)
    features = [t + 1, *(t % k for k in range(2, inputs + 1))]
    return np.stack(features, axis=-1).astype(np.float64)
