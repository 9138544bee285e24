"""Keras 3: `keras.layers.LSTM` and `Bidirectional`, from layers or their lists of weights.

w_x = kernel    w_h = recurrent_kernel    bias = bias
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lstmjax._src import keywords
from lstmjax._src.lstm.options import ACTIVATIONS, LSTMOptions
from lstmjax.interop import gates
from lstmjax.lstm import LSTMParams
from lstmjax.stack import StackParams


@keywords.explained("interop.from_keras")
def from_keras(source: Any, *, settings: bool = False, return_options: bool = False) -> Any:
    """Take the weights of an LSTM of Keras, or of several, one upon the other.

    Args:
        source: a layer: LSTM, RNN of LSTMCell or of several, Bidirectional or TimeDistributed of one of them, or a cell
            by itself; or the list of its weights as `get_weights` gives it, 3 arrays for one direction and 6 for two, 2
            and 4 without bias. A bias of 8 * units is that of the CuDNNLSTM of Keras 2, whose kernels are laid out
            otherwise. Several, as a list of either or as a Sequential of layers, are a stack.
        settings: give the arguments too that `apply` is to have.
        return_options: give the LSTMOptions too, and refuse layers that need other arguments.

    Returns:
        LSTMParams, BidirectionalParams or StackParams. With settings a pair of them and a dict of keyword arguments for
        their `apply`, empty where its defaults will do: `options`, which has the activations and the dtype policy;
        `merge` for merge_mode; `reverse` for go_backwards, where Keras gives outputs in the order of reading and ours
        are each at its own step, `ys[..., ::-1, :]` of theirs; `return_sequences=False` for a layer, or a last one,
        without. Without settings all layers give their weights alike, whatever their return_sequences, and the caller
        tells `apply` which outputs are meant. Dropouts, which act in training alone, are `Dropout`'s.

    Raises:
        ValueError: a layer that `apply` would not repeat with the arguments that come back, which without settings
            are none, but for return_sequences; a stateful one, a layer without weights yet, layers whose options
            differ, what no stack of ours does, shapes that do not fit;
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
    layers = [_unwrapped(part) for part in parts.values() if _is_layer(part)]
    if len(parts) > 1:
        _check_chain(layers)
    read = [_layer(_unwrapped(part), name) if _is_layer(part) else _weights(part, name) for name, part in parts.items()]
    options = {options for _, options in read}
    if len(options) > 1:
        raise ValueError(f"source must have layers of the same options, got {', '.join(map(str, options))}.")
    taken, (only,) = gates.gathered([halves for found, _ in read for halves in found]), options
    needed = ({} if only == LSTMOptions() else {"options": only}) | _arguments(layers)
    if settings:
        return taken, needed | _returns(layers)
    if return_options and not needed.keys() - {"options"}:
        return taken, only
    if needed:
        told = ", ".join(f"{name}={value!r}" for name, value in needed.items())
        how = "settings=True" if needed.keys() - {"options"} else "return_options=True or settings=True"
        raise ValueError(f"source is to run with {told}: take them with {how}, and pass them to apply.")
    return taken


@keywords.explained("interop.to_keras")
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


def _unwrapped(layer: Any) -> Any:
    """The layer within a TimeDistributed one, whose second axis of time is one of batch here."""
    return layer.layer if type(layer).__name__ == "TimeDistributed" else layer


def _halves_of(layer: Any) -> list[Any]:
    return [layer.forward_layer, layer.backward_layer] if hasattr(layer, "forward_layer") else [layer]


def _cells_of(layer: Any) -> list[Any]:
    """Cells of a layer in one direction, the lowest first, or a cell itself."""
    cell = getattr(layer, "cell", layer)
    return list(getattr(cell, "cells", [cell]))


def _layer(layer: Any, name: str) -> tuple[list[tuple[LSTMParams, ...]], LSTMOptions]:
    ops = gates.library("keras.ops")
    halves = _halves_of(layer)
    for half in halves:
        kinds = {type(cell).__name__ for cell in _cells_of(half)}
        if kinds != {"LSTMCell"} or type(half).__name__ not in ("LSTM", "RNN", "LSTMCell", "StackedRNNCells"):
            cells = f" of {', '.join(sorted(kinds))}" if kinds != {type(half).__name__} else ""
            raise TypeError(
                f"{name} must be an LSTM or a Bidirectional LSTM, got {type(half).__name__}{cells}; an RNN of LSTMCell "
                f"or a TimeDistributed one will do, too{_hint(half)}."
            )
        if getattr(half, "stateful", False):
            raise ValueError(
                f"{name} is stateful, which apply is not: set stateful to False, and pass the state of one call to the "
                "next."
            )
    if len(halves) > 1 and halves[0].go_backwards:
        raise ValueError(f"{name} has a forward_layer with go_backwards: exchange it with the backward_layer.")
    if len(halves) > 1 and len(_cells_of(halves[0])) > 1:
        raise ValueError(
            f"{name} is a Bidirectional layer of several cells, whose directions meet above the last of them alone: "
            "take its forward_layer and its backward_layer by themselves."
        )
    if not layer.built:
        raise ValueError(f"{name} has no weights yet: call it, or build(shape) it.")
    cells = [_cells_of(half) for half in halves]
    options, *others = {_options(cell, name) for half in cells for cell in half}
    if others:
        raise ValueError(f"{name} must have the same options throughout, got {options} and {others[0]}.")
    every = [
        [_half([ops.convert_to_numpy(weight.value) for weight in cell.weights], name, 0) for cell in half]
        for half in cells
    ]
    return list(zip(*every, strict=True)), options


def _hint(layer: Any) -> str:
    """The error for a layer that is no LSTM of Keras itself."""
    made_of = [kind.__name__ for part in (layer, *_cells_of(layer)) for kind in type(part).__mro__]
    if hasattr(layer, "layers"):
        return ": of a model give one of its layers, such as model.get_layer(name)"
    if "Dense" in made_of:
        return f": {gates.DENSE}"
    if other := next((kind for kind in made_of if kind in ("GRUCell", "SimpleRNNCell")), None):
        return f"; {other} has {gates.GATES[other]}, an LSTM has 4"
    if "LSTMCell" in made_of:
        return ". A subclass may compute something else: where it does not, give its get_weights()"
    return ""


def _returns(layers: Sequence[Any]) -> dict[str, Any]:
    """Arguments of `apply` for outputs of the same shape as those of the last layer."""
    last = [half for layer in layers[-1:] for half in _halves_of(layer)[:1]]
    return {"return_sequences": False} if any(not getattr(half, "return_sequences", True) for half in last) else {}


def _arguments(layers: Sequence[Any]) -> dict[str, Any]:
    """Arguments of `apply` beside options, which are the same for all layers."""
    merges = [layer.merge_mode for layer in layers if len(_halves_of(layer)) > 1]
    backwards = [getattr(layer, "go_backwards", False) for layer in layers if len(_halves_of(layer)) == 1]
    return ({"reverse": True} if any(backwards) else {}) | ({"merge": merges[0]} if set(merges) - {"concat"} else {})


def _check_chain(layers: Sequence[Any]) -> None:
    """Raise where layers that feed each other do what no `stack.apply` does."""
    if any(getattr(layer, "go_backwards", False) for layer in layers if len(_halves_of(layer)) == 1):
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


def _weights(weights: Any, name: str) -> tuple[list[tuple[LSTMParams, ...]], LSTMOptions]:
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
    return [tuple(halves)], LSTMOptions()


def _half(weights: Sequence[Any], name: str, first: int) -> LSTMParams:
    w_x = gates.host(f"{name}[{first}], kernel,", weights[0], None, None)
    inputs, width = w_x.shape
    if len(weights) == 2 and np.shape(weights[1]) == (width,):
        raise ValueError(f"{name} must be the weights of an LSTM; got a matrix and a vector: {gates.DENSE}.")
    w_h = gates.host(f"{name}[{first + 1}], recurrent_kernel,", weights[1], None, width)
    gates.four(f"{name}[{first + 1}], recurrent_kernel,", width, len(w_h))
    units = width // 4
    w_h = gates.host(f"{name}[{first + 1}], recurrent_kernel,", w_h, units, width)
    biases = []
    if len(weights) > 2:
        # The CuDNNLSTM of Keras 2 has both biases, each kernel of a gate as cuDNN lays out its transpose, and each
        # recurrent kernel of a gate as its transpose.
        is_cudnn = np.shape(weights[2]) == (8 * units,)
        bias = gates.host(f"{name}[{first + 2}], bias,", weights[2], 8 * units if is_cudnn else width)
        biases = np.split(bias, 2) if is_cudnn else [bias]
        if is_cudnn:
            w_x = np.hstack([kernel.reshape(units, inputs).T for kernel in np.split(w_x, 4, axis=1)])
            w_h = np.hstack([kernel.T for kernel in np.split(w_h, 4, axis=1)])
    w_x, w_h, *biases = (gates.to_ours(part, "keras") for part in (w_x, w_h, *biases))
    named = dict(zip(("bias", "bias_h"), biases, strict=False))
    return gates.params(w_x, w_h, **{"bias": None} | named)
