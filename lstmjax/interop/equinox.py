"""Equinox: `eqx.nn.LSTMCell`.

w_x = weight_ih^T    w_h = weight_hh^T    bias = bias
"""

from typing import Any

import jax
import jax.numpy as jnp

from lstmjax.interop import gates
from lstmjax.lstm import LSTMParams


def from_equinox(source: Any) -> LSTMParams:
    """Take the weights of an `eqx.nn.LSTMCell`.

    Args:
        source: the cell.

    Raises:
        ValueError: shapes that do not fit; TypeError: no such cell.

    >>> import types
    >>> ones = jnp.ones
    >>> from_equinox(types.SimpleNamespace(weight_ih=ones((12, 2)), weight_hh=ones((12, 3)), bias=None)).units
    3
    """
    if not all(hasattr(source, name) for name in ("weight_ih", "weight_hh", "bias")):
        raise TypeError(f"source must be an eqx.nn.LSTMCell, got {type(source).__name__}.")
    w_x = gates.host("source.weight_ih", source.weight_ih, None, None)
    width = w_x.shape[0]
    w_h = gates.host("source.weight_hh", source.weight_hh, width, width // 4)
    bias = None if source.bias is None else gates.host("source.bias", source.bias, width)
    w_x, w_h = (gates.to_ours(part, "equinox", 0).T for part in (w_x, w_h))
    return gates.params(w_x, w_h, None if bias is None else gates.to_ours(bias, "equinox"))


def to_equinox(params: LSTMParams) -> Any:
    """Make an `eqx.nn.LSTMCell` with these weights.

    Args:
        params: LSTMParams; Equinox has cells alone, so convert each layer and direction by itself.

    Raises:
        ValueError: parts that Equinox has no place for; TypeError: several LSTMs; ImportError without Equinox.

    >>> from lstmjax import lstm
    >>> to_equinox(lstm.init(jax.random.key(0), inputs=2, units=3)).weight_ih.shape  # doctest: +SKIP
    (12, 2)
    """
    import equinox

    params = gates.only("Equinox", gates.single("Equinox", params))
    biased = gates.has_bias(params)
    cell = equinox.nn.LSTMCell(
        params.inputs, params.units, use_bias=biased, dtype=params.w_x.dtype, key=jax.random.key(0)
    )
    parts = {
        "weight_ih": gates.from_ours(params.w_x, "equinox").T,
        "weight_hh": gates.from_ours(params.w_h, "equinox").T,
        "bias": gates.from_ours(gates.one_bias(params), "equinox") if biased else None,
    }
    arrays = {name: None if part is None else jnp.asarray(part) for name, part in parts.items()}
    present = [name for name, part in arrays.items() if part is not None]
    return equinox.tree_at(
        lambda cell: [getattr(cell, name) for name in present], cell, [arrays[name] for name in present]
    )
