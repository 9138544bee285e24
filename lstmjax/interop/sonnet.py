"""Sonnet 2: `snt.LSTM`, whose forget bias is in the weights.

w_x = w_i    w_h = w_h    bias = b    w_projection = projection
"""

from collections.abc import Mapping
from typing import Any

from lstmjax._src import keywords
from lstmjax.interop import gates
from lstmjax.lstm import LSTMParams


@keywords.explained("interop.from_sonnet")
def from_sonnet(source: Mapping[str, Any]) -> LSTMParams:
    """Take the variables of an `snt.LSTM`.

    Args:
        source: arrays by name, of which the last part counts: w_i, w_h, b, and projection where there is one, as
            {variable.name: variable.numpy() for variable in module.variables} has them.

    Returns:
        LSTMParams.

    Raises:
        ValueError: other names, or shapes that do not fit; TypeError: no mapping.

    >>> import numpy as np
    >>> weights = {"lstm/w_i:0": np.ones((2, 12), "f"), "lstm/w_h:0": np.ones((3, 12), "f")}
    >>> from_sonnet(weights | {"lstm/b:0": np.ones(12, "f")}).units
    3
    """
    parts = gates.by_last_name(source, "arrays of Sonnet")
    if set(parts) - {"projection"} != {"w_i", "w_h", "b"}:
        raise ValueError(f"source must have w_i, w_h, b, and may have projection; got {', '.join(source)}.")

    def part(which: str, *axes: int | None):
        name, value = parts[which]
        return gates.host(f"source[{name!r}]", value, *axes)

    w_x = part("w_i", None, None)
    width, units = w_x.shape[1], w_x.shape[1] // 4
    if "projection" not in parts:
        gates.four("source['w_h']", width, len(part("w_h", None, width)))
    projection = part("projection", units, None) if "projection" in parts else None
    w_h = part("w_h", units if projection is None else projection.shape[1], width)
    arrays = [gates.to_ours(array, "sonnet") for array in (w_x, w_h, part("b", width))]
    return gates.params(*arrays, w_projection=projection)
