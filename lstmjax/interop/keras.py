"""Keras 3: `keras.layers.LSTM` and `Bidirectional`, from layers or their lists of weights.

w_x = kernel    w_h = recurrent_kernel    bias = bias
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lstmjax.interop import gates
from lstmjax.lstm import LSTMParams
from lstmjax.options import ACTIVATIONS, LSTMOptions
from lstmjax.stack import StackParams


def from_keras(source: Any, *, return_options: bool = False) -> Any:
    """Take the weights of an LSTM of Keras, or of several, one upon the other.

    Args:
        source: a layer, LSTM or Bidirectional of LSTM, or the list of its weights as `get_weights` gives it, 3 arrays
            for one direction and 6 for two, 2 and 4 without bias. Several, as a list of either or as a Sequential of
            layers, are a stack.
        return_options: give the LSTMOptions too, which the activations and the dtype policy of layers say; of weights,
            the standard ones.

    Returns:
        LSTMParams, BidirectionalParams or StackParams; with return_options a pair of them and LSTMOptions. What else a
        layer was made with is an argument of `apply`: `merge_mode` is merge, its dropouts are those of `Dropout`, and
        `go_backwards` of a single layer is reverse, but that Keras gives outputs in the order of reading.

    Raises:
        ValueError: a layer without weights yet, layers whose options differ, options that are not the standard ones
            without return_options or that LSTMOptions lacks, what no stack of ours does, shapes that do not fit;
        TypeError: another kind of source.

    >>> import numpy as np
    >>> from_keras([np.ones((2, 12), "f"), np.ones((3, 12), "f"), np.ones(12, "f")]).units
    3
    """
    source = source.layers if type(source).__name__ == "Sequential" else source
    if (
        isinstance(source, Sequence)
        and source
        and all(_is_layer(part) or isinstance(part, Sequence) for part in source)
    ):
        parts = {f"source[{number}]": part for number, part in enumerate(source)}
    else:
        parts = {"source": source}
    found = [_layer(part, name) if _is_layer(part) else _weights(part, name) for name, part in parts.items()]
    if len(found) > 1:
        _check_chain([part for part in parts.values() if _is_layer(part)])
    options = {options for _, options in found}
    if len(options) > 1:
        raise ValueError(f"source must have layers of the same options, got {', '.join(map(str, options))}.")
    (only,) = options
    taken = gates.gathered([halves for halves, _ in found])
    if return_options:
        return taken, only
    if only != LSTMOptions():
        raise ValueError(f"source is to run with {only}: take them with return_options=True, and pass them to apply.")
    return taken


def to_keras(params: gates.RECURRENT) -> list[Any]:
    """Make the list that `set_weights` of an LSTM, or of a Bidirectional one, takes; of a stack one for each layer.

    Args:
        params: LSTMParams, BidirectionalParams or StackParams.

    Returns:
        kernel, recurrent_kernel and bias, of the forward half first; without bias, `use_bias=False` is meant.

    Raises:
        ValueError: parts that Keras has no place for, or a bias in one half alone.

    >>> import jax
    >>> from lstmjax import lstm
    >>> [array.shape for array in to_keras(lstm.init(jax.random.key(0), inputs=2, units=3))]
    [(2, 12), (3, 12), (12,)]
    """
    lists = [_list([gates.only("Keras", half) for half in halves]) for halves in gates.layers(params)]
    return lists if isinstance(params, StackParams) else lists[0]


def _list(halves: Sequence[LSTMParams]) -> list[np.ndarray]:
    if len({gates.has_bias(half) for half in halves}) > 1:
        raise ValueError("Keras has a bias in both halves of a Bidirectional layer or in none; params has it in one.")
    weights = []
    for half in halves:
        weights += [gates.from_ours(half.w_x, "keras"), gates.from_ours(half.w_h, "keras")]
        weights += [gates.from_ours(gates.one_bias(half), "keras")] if gates.has_bias(half) else []
    return weights


def _is_layer(part: Any) -> bool:
    return hasattr(part, "get_weights")


def _halves_of(layer: Any) -> list[Any]:
    return [layer.forward_layer, layer.backward_layer] if hasattr(layer, "forward_layer") else [layer]


def _layer(layer: Any, name: str) -> tuple[tuple[LSTMParams, ...], LSTMOptions]:
    ops = gates.library("keras.ops")
    halves = _halves_of(layer)
    for half in halves:
        if type(half).__name__ != "LSTM":
            hint = f": {gates.DENSE}" if type(half).__name__ == "Dense" else ""
            raise TypeError(f"{name} must be an LSTM or a Bidirectional LSTM, got {type(half).__name__}{hint}.")
    if len(halves) > 1 and halves[0].go_backwards:
        raise ValueError(f"{name} has a forward_layer with go_backwards: exchange it with the backward_layer.")
    if not layer.built:
        raise ValueError(f"{name} has no weights yet: call it, or build(shape) it.")
    options, *others = {_options(half, name) for half in halves}
    if others:
        raise ValueError(f"{name} must have the same options in both directions, got {options} and {others[0]}.")
    numbers = [[ops.convert_to_numpy(weight.value) for weight in half.weights] for half in halves]
    return tuple(half for weights in numbers for half in _weights(weights, name)[0]), options


def _check_chain(layers: Sequence[Any]) -> None:
    """Raise where layers that feed each other do what no `stack.apply` does."""
    if any(layer.go_backwards for layer in layers if len(_halves_of(layer)) == 1):
        raise ValueError("a layer with go_backwards turns its outputs round, which no stack does: take it by itself.")
    merges = [layer.merge_mode for layer in layers if len(_halves_of(layer)) > 1]
    if len(set(merges)) > 1:
        raise ValueError(f"the layers of a stack have one merge; source has merge_mode {', '.join(map(str, merges))}.")


def _options(layer: Any, name: str) -> LSTMOptions:
    activations = gates.library("keras.activations")
    found: dict[str, Any] = {}
    for ours in ("activation", "recurrent_activation"):
        function = getattr(layer, ours)
        theirs = getattr(function, "__name__", repr(function))
        if theirs not in ACTIVATIONS or activations.get(theirs) is not function:
            known = ", ".join(kind for kind in ACTIVATIONS if kind != "keras2_hard_sigmoid")
            raise ValueError(f"{name}.{ours} is {function!r}; LSTMOptions has those of Keras called {known}.")
        found[ours] = theirs
    if layer.compute_dtype != layer.variable_dtype:
        found["precision"] = layer.compute_dtype
    return LSTMOptions(**found)


def _weights(weights: Any, name: str) -> tuple[tuple[LSTMParams, ...], LSTMOptions]:
    if not isinstance(weights, Sequence) or len(weights) not in (2, 3, 4, 6):
        what = f"{len(weights)} of them" if isinstance(weights, Sequence) else type(weights).__name__
        raise ValueError(
            f"{name} must be a layer of Keras or its weights: 3 of an LSTM, kernel, recurrent_kernel and bias, or 6 of "
            f"a Bidirectional one, without biases 2 or 4. Got {what}."
        )
    count = 1 if len(weights) < 4 else 2
    each = len(weights) // count
    halves = [_half(weights[first : first + each], name, first) for first in range(0, len(weights), each)]
    if len({half.inputs for half in halves}) > 1:
        raise ValueError(
            f"{name} has kernels of {halves[0].inputs} and {halves[1].inputs} inputs, which is no Bidirectional layer: "
            "give the weights of layers upon each other as a list of lists."
        )
    return tuple(halves), LSTMOptions()


def _half(weights: Sequence[Any], name: str, first: int) -> LSTMParams:
    w_x = gates.host(f"{name}[{first}], kernel,", weights[0], None, None)
    width = w_x.shape[1]
    if len(weights) == 2 and np.shape(weights[1]) == (width,):
        raise ValueError(f"{name} must be the weights of an LSTM; got a matrix and a vector: {gates.DENSE}.")
    w_h = gates.host(f"{name}[{first + 1}], recurrent_kernel,", weights[1], None, width)
    gates.four(f"{name}[{first + 1}], recurrent_kernel,", width, len(w_h))
    w_h = gates.host(f"{name}[{first + 1}], recurrent_kernel,", w_h, width // 4, width)
    bias = None if len(weights) == 2 else gates.host(f"{name}[{first + 2}], bias,", weights[2], width)
    w_x, w_h = gates.to_ours(w_x, "keras"), gates.to_ours(w_h, "keras")
    return gates.params(w_x, w_h, None if bias is None else gates.to_ours(bias, "keras"))
