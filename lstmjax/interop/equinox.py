"""Equinox: `eqx.nn.LSTMCell`.

w_x = weight_ih^T    w_h = weight_hh^T    bias = bias
"""

from typing import Any

import jax
import jax.numpy as jnp

from lstmjax._src import keywords
from lstmjax.interop import gates
from lstmjax.lstm import LSTMParams
from lstmjax.stack import StackParams


@keywords.explained("interop.from_equinox")
def from_equinox(source: Any) -> gates.RECURRENT:
    """Take the weights of an `eqx.nn.LSTMCell`, or of a list of them, one upon the other.

    Args:
        source: the cell, or the list.

    Returns:
        LSTMParams, or StackParams of several.

    Raises:
        ValueError: shapes that do not fit; TypeError: no such cell.

    >>> import types
    >>> ones = jnp.ones
    >>> from_equinox(types.SimpleNamespace(weight_ih=ones((12, 2)), weight_hh=ones((12, 3)), bias=None)).units
    3
    """
    if isinstance(source, list | tuple) and source:
        return gates.gathered([(_params(cell, f"source[{number}]"),) for number, cell in enumerate(source)])
    return _params(source, "source")


@keywords.explained("interop.to_equinox")
def to_equinox(params: gates.RECURRENT) -> Any:
    """Make an `eqx.nn.LSTMCell` with these weights, or of a stack a list of them.

    Args:
        params: LSTMParams, or StackParams of them; Equinox has cells alone, so convert the halves of two directions by
            themselves.

    Raises:
        ValueError: parts that Equinox has no place for, two directions; ImportError without Equinox.

    >>> from lstmjax import lstm
    >>> to_equinox(lstm.init(jax.random.key(0), inputs=2, units=3)).weight_ih.shape  # doctest: +SKIP
    (12, 2)
    """
    found = gates.layers(params)
    if any(len(halves) > 1 for halves in found):
        raise ValueError("Equinox has cells alone: params has two directions, so convert each half by itself.")
    cells = [_cell(gates.only("Equinox", half)) for (half,) in found]
    return cells if isinstance(params, StackParams) else cells[0]


def _params(cell: Any, name: str) -> LSTMParams:
    if not all(hasattr(cell, part) for part in ("weight_ih", "weight_hh", "bias")):
        hint = f": {gates.DENSE}" if type(cell).__name__ == "Linear" else ""
        raise TypeError(f"{name} must be an eqx.nn.LSTMCell, got {type(cell).__name__}{hint}.")
    w_x = gates.host(f"{name}.weight_ih", cell.weight_ih, None, None)
    width = w_x.shape[0]
    w_h = gates.host(f"{name}.weight_hh", cell.weight_hh, width, None)
    gates.four(f"{name}.weight_hh", *w_h.shape)
    w_h = gates.host(f"{name}.weight_hh", w_h, width, width // 4)
    bias = None if cell.bias is None else gates.host(f"{name}.bias", cell.bias, width)
    w_x, w_h = (gates.to_ours(part, "equinox", 0).T for part in (w_x, w_h))
    return gates.params(w_x, w_h, None if bias is None else gates.to_ours(bias, "equinox"))


def _cell(params: LSTMParams) -> Any:
    equinox = gates.library("equinox")
    biased, key = gates.has_bias(params), jax.random.key(0)
    cell = equinox.nn.LSTMCell(params.inputs, params.units, use_bias=biased, dtype=params.w_x.dtype, key=key)
    parts = {
        "weight_ih": gates.from_ours(params.w_x, "equinox").T,
        "weight_hh": gates.from_ours(params.w_h, "equinox").T,
    }
    parts |= {"bias": gates.from_ours(gates.one_bias(params), "equinox")} if biased else {}
    return equinox.tree_at(
        lambda cell: [getattr(cell, name) for name in parts], cell, [jnp.asarray(part) for part in parts.values()]
    )
