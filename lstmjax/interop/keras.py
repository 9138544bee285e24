"""Keras 3: `keras.layers.LSTM` and `Bidirectional`, from the layer or its list of weights.

w_x = kernel    w_h = recurrent_kernel    bias = bias
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lstmjax.bidirectional import BidirectionalParams
from lstmjax.interop import gates
from lstmjax.lstm import LSTMParams
from lstmjax.options import ACTIVATIONS, LSTMOptions

MERGES = ("concat", "sum", "mul", "ave", None)


def from_keras(source: Any, *, return_options: bool = False) -> Any:
    """Take the weights of an LSTM of Keras.

    Args:
        source: a layer, LSTM or Bidirectional of LSTM; a list of its weights as `get_weights` gives it, 3 arrays for
            one direction and 6 for two, 2 and 4 without bias; or a list of such layers, one upon the other.
        return_options: give the LSTMOptions of the layer back too, which its activations say; of weights, the
            standard ones.

    Returns:
        LSTMParams, BidirectionalParams or StackParams; with return_options a pair of them and LSTMOptions. What
        else a layer was made with is an argument of `apply`: `go_backwards` is reverse, `merge_mode` is merge, its
        dropouts are those of `Dropout`.

    Raises:
        ValueError: a layer without weights yet, other activations without return_options or that LSTMOptions lacks,
            layers of different activations, shapes that do not fit; TypeError: another kind of source.

    >>> import numpy as np
    >>> from_keras([np.ones((2, 12), "f"), np.ones((3, 12), "f"), np.ones(12, "f")]).units
    3
    """
    if isinstance(source, Sequence) and source and all(hasattr(layer, "get_weights") for layer in source):
        found = [_layer(layer, f"source[{number}]") for number, layer in enumerate(source)]
    elif isinstance(source, Sequence):
        found = [(_halves(source), LSTMOptions())]
    else:
        found = [_layer(source, "source")]
    every = {options for _, options in found}
    if len(every) > 1:
        raise ValueError(f"source must have layers of the same activations, got {', '.join(map(str, every))}.")
    (options,) = every
    taken = gates.gathered([halves for halves, _ in found])
    if return_options:
        return taken, options
    if options != LSTMOptions():
        raise ValueError(
            f"source has activations that are options of ours, {options}: take them with return_options=True, and pass "
            "them to apply."
        )
    return taken


def to_keras(params: LSTMParams | BidirectionalParams) -> list[np.ndarray]:
    """Make the list that `set_weights` of an LSTM, or of a Bidirectional one, takes.

    Args:
        params: LSTMParams or BidirectionalParams; the layers of a stack are layers of Keras, each with its own list.

    Returns:
        kernel, recurrent_kernel and bias, of the forward half first; without bias, `use_bias=False` is meant.

    Raises:
        ValueError: parts that Keras has no place for, or a bias in one half alone; TypeError: a stack.

    >>> import jax
    >>> from lstmjax import lstm
    >>> [array.shape for array in to_keras(lstm.init(jax.random.key(0), inputs=2, units=3))]
    [(2, 12), (3, 12), (12,)]
    """
    if not isinstance(params, LSTMParams | BidirectionalParams):
        raise TypeError(
            "params must be LSTMParams or BidirectionalParams; of a stack, convert each of params.layers, which is a "
            f"layer of Keras. Got {type(params).__name__}."
        )
    (halves,) = gates.layers(params)
    halves = [gates.only("Keras", half) for half in halves]
    if len({gates.has_bias(half) for half in halves}) > 1:
        raise ValueError("Keras has a bias in both halves of a Bidirectional layer or in none; params has it in one.")
    weights = []
    for half in halves:
        weights += [gates.from_ours(half.w_x, "keras"), gates.from_ours(half.w_h, "keras")]
        weights += [gates.from_ours(gates.one_bias(half), "keras")] if gates.has_bias(half) else []
    return weights


def _layer(layer: Any, name: str) -> tuple[tuple[LSTMParams, ...], LSTMOptions]:
    if not hasattr(layer, "get_weights"):
        raise TypeError(f"{name} must be a layer of Keras or a list of weights, got {type(layer).__name__}.")
    wrapped = hasattr(layer, "forward_layer")
    parts = [layer.forward_layer, layer.backward_layer] if wrapped else [layer]
    for part in parts:
        if type(part).__name__ != "LSTM":
            raise TypeError(f"{name} must be an LSTM or a Bidirectional LSTM, got {type(part).__name__}.")
    if not layer.built:
        raise ValueError(f"{name} has no weights yet: call it, or build(shape) it.")
    options, *others = {_options(part, name) for part in parts}
    if others:
        raise ValueError(f"{name} must have the same activations in both directions, got {options} and {others[0]}.")
    from keras import ops

    numbers = [[ops.convert_to_numpy(weight.value) for weight in part.weights] for part in parts]
    return tuple(half for weights in numbers for half in _halves(weights)), options


def _options(layer: Any, name: str) -> LSTMOptions:
    activations = {}
    for ours in ("activation", "recurrent_activation"):
        activation = getattr(layer, ours)
        theirs = getattr(activation, "__name__", repr(activation))
        if theirs not in ACTIVATIONS:
            raise ValueError(f"{name}.{ours} is {theirs}; LSTMOptions has {', '.join(ACTIVATIONS)}.")
        activations[ours] = theirs
    return LSTMOptions(**activations)


def _halves(weights: Sequence[Any]) -> tuple[LSTMParams, ...]:
    if len(weights) not in (2, 3, 4, 6):
        raise ValueError(
            "source must be the 3 weights of an LSTM, kernel, recurrent_kernel and bias, or the 6 of a Bidirectional "
            f"one, without biases 2 or 4; got {len(weights)}. Give the layers of a stack as a list of layers."
        )
    count = 1 if len(weights) < 4 else 2
    each = len(weights) // count
    return tuple(_half(weights[each * number : each * (number + 1)], each * number) for number in range(count))


def _half(weights: Sequence[Any], first: int) -> LSTMParams:
    w_x = gates.host(f"source[{first}], kernel,", weights[0], None, None)
    width = w_x.shape[1]
    w_h = gates.host(f"source[{first + 1}], recurrent_kernel,", weights[1], width // 4, width)
    bias = None if len(weights) == 2 else gates.host(f"source[{first + 2}], bias,", weights[2], width)
    w_x, w_h = gates.to_ours(w_x, "keras"), gates.to_ours(w_h, "keras")
    return gates.params(w_x, w_h, None if bias is None else gates.to_ours(bias, "keras"))
