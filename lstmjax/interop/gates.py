"""The order of the gates in every format, and what all conversions share.

A conversion is made on the host, in NumPy, in the dtype that the numbers came in: what goes there and back is the same
to the bit. Ours are the gates i, f, g, o side by side, of which a coupled cell lacks f.
"""

import dataclasses
import importlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstmjax import lstm, stack
from lstmjax._src import validation
from lstmjax.bidirectional import BidirectionalParams
from lstmjax.lstm import LSTMParams
from lstmjax.stack import StackParams

OURS = "ifgo"
ORDERS = {
    "cudnn": "ifgo",
    "equinox": "ifgo",
    "flax": "ifgo",
    "haiku": "igfo",
    "haste": "igfo",
    "keras": "ifgo",
    "onnx": "iofg",
    "onnx peepholes": "iof",
    "sonnet": "ifgo",
    "tensorflow": "igfo",
    "torch": "ifgo",
}
RECURRENT = LSTMParams | BidirectionalParams | StackParams


def to_ours(array: np.ndarray, format: str, axis: int = -1) -> np.ndarray:
    """Put a format's gates, side by side along an axis, into our order."""
    theirs = _order(array, format, axis)
    return _reordered(array, theirs, "".join(gate for gate in OURS if gate in theirs), axis)


def from_ours(array: np.ndarray, format: str, axis: int = -1) -> np.ndarray:
    """Put our gates into a format's order."""
    theirs = _order(array, format, axis)
    return _reordered(array, "".join(gate for gate in OURS if gate in theirs), theirs, axis)


def _order(array: np.ndarray, format: str, axis: int) -> str:
    order = ORDERS[format]
    if array.shape[axis] % len(order):
        raise ValueError(
            f"weights of {format} must have the {len(order)} gates side by side along axis {axis}; got shape "
            f"{array.shape}."
        )
    return order


def _reordered(array: np.ndarray, before: str, after: str, axis: int) -> np.ndarray:
    blocks = dict(zip(before, np.split(array, len(before), axis), strict=True))
    return np.concatenate([blocks[gate] for gate in after], axis)


# What other layers than an LSTM have, which has 4.
GATES = {"GRU": "3 gates", "GRUCell": "3 gates", "RNN": "1 gate", "RNNCell": "1 gate", "SimpleRNNCell": "1 gate"}
DENSE = "of a dense layer they are dense.DenseParams(w, bias), w being [inputs, units]"


def four(name: str, width: int, units: int) -> None:
    """Raise where a matrix from h to the gates has as many as a GRU or a simple RNN."""
    other = {3 * units: "3 gates, as a GRU", units: "1 gate, as a simple RNN"}.get(width)
    if other and units:
        raise ValueError(f"{name} has {other}, of {units} units each: an LSTM has 4.")


def host(name: str, value: Any, *axes: int | None) -> np.ndarray:
    """A floating NumPy array of what a framework holds, or an error unless it has these axes; None is any size."""
    try:
        array = np.asarray(_of_tensor(value))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise TypeError(f"{name} must be an array, got {type(value).__name__}.") from error
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must have a floating dtype, got {array.dtype} {array.shape}.")
    if array.ndim != len(axes) or any(size not in (None, had) for size, had in zip(axes, array.shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in axes)
        raise ValueError(f"{name} must have shape ({wanted}), got {array.shape}.")
    return array


def _of_tensor(value: Any) -> Any:
    """The numbers of a tensor of PyTorch, whichever device has them; bfloat16, which its bridge lacks, by the bits."""
    if not hasattr(value, "detach"):
        return value
    value = value.detach().cpu().resolve_neg()
    if str(value.dtype) != "torch.bfloat16":
        return value.numpy()
    import ml_dtypes

    return value.contiguous().view(library("torch").int16).numpy().view(ml_dtypes.bfloat16)


def library(name: str) -> Any:
    """A module of another library, imported where it is needed and not before."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        raise ImportError(f"this needs {package}: python -m pip install {package}.") from error


def named(name: str, source: Any, what: str) -> dict[str, Any]:
    """A mapping from names, or an error that says what the source should be."""
    if not isinstance(source, Mapping) or not source or not all(isinstance(name, str) for name in source):
        raise TypeError(f"{name} must be {what}, by name; got {source!r:.80}.")
    return dict(source)


def by_last_name(source: Any, what: str) -> dict[str, tuple[str, Any]]:
    """Values by the last part of each name, with the whole name; an error where two end alike."""
    given = named("source", source, what)
    parts = {re.split(r"[/.]", name.removesuffix(":0"))[-1]: (name, value) for name, value in given.items()}
    if len(parts) != len(given):
        raise ValueError(f"source must have {what} of one LSTM, and each name once; got {', '.join(given)}.")
    return parts


def params(w_x: np.ndarray, w_h: np.ndarray, bias: np.ndarray | None, **optional: Any) -> LSTMParams:
    """`LSTMParams` of JAX arrays of the same dtypes, copies of these; an error where JAX has no such dtype enabled."""
    parts = LSTMParams(w_x, w_h, bias, **optional)
    for path, leaf in jax.tree.leaves_with_path(parts):
        validation.floating_dtype(f"the dtype of {jax.tree_util.keystr(path)[1:]}", leaf.dtype)
    return jax.tree.map(jnp.array, parts)


def layers(given: RECURRENT) -> list[tuple[LSTMParams, ...]]:
    """The LSTMs of each layer, of one direction or of two."""
    stack.check(given)
    every = given.layers if isinstance(given, StackParams) else (given,)
    return [(layer.forward, layer.backward) if isinstance(layer, BidirectionalParams) else (layer,) for layer in every]


def gathered(found: list[tuple[LSTMParams, ...]]) -> RECURRENT:
    """Undo `layers`: one layer is no stack, and one direction no pair; an error where they do not fit on each other."""
    every = [BidirectionalParams(*halves) if len(halves) == 2 else halves[0] for halves in found]
    whole = StackParams(tuple(every)) if len(every) > 1 else every[0]
    stack.check(whole)
    return whole


def only(format: str, given: LSTMParams, *may: str) -> LSTMParams:
    """The params with NumPy's arrays, or an error where they have a part that the format has no place for."""
    lstm.check(given)
    parts = {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
    for name in ("w_peephole", "w_projection", "norm", "initial"):
        if parts[name] is not None and name not in may:
            raise ValueError(f"{format} has no place for params.{name}; it must be None.")
    if given.gates == 3 and "coupled" not in may:
        raise ValueError(f"{format} has no coupled gates: params must have a forget gate of their own.")
    return LSTMParams(**{name: part if name in ("norm", "initial") else _array(part) for name, part in parts.items()})


def one_bias(given: LSTMParams, forget_bias: float = 0.0) -> np.ndarray:
    """The sum of all biases, for a format that has one, to which it adds `forget_bias` at run time.

    Where that is the offset, the bias is the learned one to the bit.
    """
    size, units = given.w_x.shape[1], given.units
    added = offset(given.w_x.dtype, units, forget_bias)
    if given.offset is not None and np.array_equal(given.offset, added):
        added, given = np.zeros_like(added), dataclasses.replace(given, offset=None)
    parts = [part for part in (given.bias, given.bias_h, given.offset) if part is not None]
    if len(parts) == 1 and not added.any():
        return parts[0]
    total = sum((np.asarray(part, np.float64) for part in parts), np.zeros(size)) - np.asarray(added, np.float64)
    return total.astype(given.w_x.dtype)


def two_biases(given: LSTMParams) -> tuple[np.ndarray, np.ndarray]:
    """As they came from a format with two; else the sum of what there is, and zeros."""
    zeros = np.zeros(given.w_x.shape[1], given.w_x.dtype)
    if given.offset is None and given.bias_h is not None:
        return zeros if given.bias is None else given.bias, given.bias_h
    return one_bias(given), zeros


def has_bias(given: LSTMParams) -> bool:
    """True if there is any bias."""
    return any(part is not None for part in (given.bias, given.bias_h, given.offset))


def offset(dtype: Any, units: int, forget_bias: float) -> np.ndarray:
    """`forget_bias` for the forget gate and 0 for the others, in our order."""
    return np.repeat(np.array([0, forget_bias, 0, 0], dtype), units)


def _array(part: Any) -> np.ndarray | None:
    return None if part is None else np.asarray(part)
