"""cuDNN: the one vector that `jax.experimental.rnn.lstm` takes.

All weights and then all biases, layer by layer, in a layer the forward half first: weight_ih and weight_hh, row by row,
of each; then bias_ih and bias_hh of each.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstmjax._src import keywords, validation
from lstmjax.interop import gates


@keywords.explained("interop.from_cudnn")
def from_cudnn(
    source: Any, inputs: int, units: int, *, layers: int = 1, bidirectional: bool = False
) -> gates.RECURRENT:
    """Cut the vector into the weights of its layers and directions.

    Args:
        source: the vector, float32 [numbers].
        inputs: length of one input vector.
        units: of every layer, in each direction.
        layers: how many.
        bidirectional: whether each reads in both directions.

    Returns:
        LSTMParams, BidirectionalParams or StackParams; both biases are kept, `bias` and `bias_h`.

    Raises:
        ValueError: a vector of another length, a size that is not a positive integer; TypeError: not floating.

    >>> from_cudnn(jnp.ones(4 * 3 * (2 + 3 + 2)), inputs=2, units=3).bias_h.shape
    (12,)
    """
    inputs, units = validation.positive_int("inputs", inputs), validation.positive_int("units", units)
    layers = validation.positive_int("layers", layers)
    directions = 2 if validation.boolean("bidirectional", bidirectional) else 1
    lengths = [inputs, *(directions * units,) * (layers - 1)]
    every = [length for length in lengths for _ in range(directions)]
    shapes = [shape for length in every for shape in ((4 * units, length), (4 * units, units))]
    shapes += [(4 * units,)] * (2 * len(every))
    sizes = [int(np.prod(shape)) for shape in shapes]
    flat = gates.host("source", source, None)
    if flat.size != sum(sizes):
        raise ValueError(
            f"source must have {sum(sizes)} numbers, for {inputs} inputs and {layers} layers of {units} units in "
            f"{directions} directions; got {flat.size}."
        )
    pieces = np.split(flat, np.cumsum(sizes)[:-1])
    parts = [gates.to_ours(piece.reshape(shape), "cudnn", 0) for piece, shape in zip(pieces, shapes, strict=True)]
    weights, biases = parts[: 2 * len(every)], parts[2 * len(every) :]
    cells = [
        gates.params(weights[k].T, weights[k + 1].T, biases[k], bias_h=biases[k + 1])
        for k in range(0, 2 * len(every), 2)
    ]
    return gates.gathered([tuple(cells[k : k + directions]) for k in range(0, len(cells), directions)])


@keywords.explained("interop.to_cudnn")
def to_cudnn(params: gates.RECURRENT) -> jax.Array:
    """Make the vector of all weights.

    Args:
        params: LSTMParams, BidirectionalParams or StackParams, of one number of units and of directions throughout.

    Returns:
        float32 [numbers]; where there is one bias, or an offset, their sum is bias_ih and bias_hh is 0.

    Raises:
        ValueError: parts that cuDNN's vector has no place for, a dtype other than float32, layers of different units or
            that do not fit on each other.

    >>> from lstmjax import lstm
    >>> to_cudnn(lstm.init(jax.random.key(0), inputs=2, units=3)).shape
    (84,)
    """
    found = [[gates.only("cuDNN", half) for half in halves] for halves in gates.layers(params)]
    every = [half for halves in found for half in halves]
    if len({half.units for half in every}) > 1 or len({len(halves) for halves in found}) > 1:
        raise ValueError("cuDNN's vector has one number of units and of directions in all layers; params has several.")
    inputs = every[0].inputs
    weights, biases = [], []
    for number, halves in enumerate(found):
        for half in halves:
            if half.inputs != inputs:
                raise ValueError(f"layer {number} of params must have {inputs} inputs, got {half.inputs}.")
            if half.w_x.dtype != np.float32 or half.w_h.dtype != np.float32:
                raise ValueError(f"jax.experimental.rnn takes float32; params has {half.w_x.dtype}.")
            weights += [gates.from_ours(part, "cudnn").T.ravel() for part in (half.w_x, half.w_h)]
            biases += [gates.from_ours(part, "cudnn") for part in gates.two_biases(half)]
        inputs = len(halves) * halves[0].units
    return jnp.asarray(np.concatenate(weights + biases))
