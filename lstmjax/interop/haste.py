"""Haste: `LSTM` and `LayerNormLSTM` of its PyTorch and TensorFlow packages; their forget bias is in the weights.

w_x = kernel    w_h = recurrent_kernel    bias = bias    norm = gamma[0], gamma[1], gamma_h, beta_h
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lstmjax._src import keywords
from lstmjax._src.lstm.params import LSTMNorm
from lstmjax.interop import gates
from lstmjax.lstm import LSTMParams

NORM = "gamma", "gamma_h", "beta_h"


@keywords.explained("interop.from_haste")
def from_haste(source: Mapping[str, Any]) -> LSTMParams:
    """Take the weights of an LSTM of Haste.

    Args:
        source: arrays by name, of which the last part counts: kernel, recurrent_kernel and bias, with layer norm gamma,
            gamma_h and beta_h too; without recurrent_kernel, the kernel has rows for x and for h, as in the TensorFlow
            package.

    Returns:
        LSTMParams. `zoneout` is Dropout(zoneout_h=...), `dropout` Dropout(recurrent_weights=...).

    Raises:
        ValueError: other names, or shapes that do not fit; TypeError: no mapping.

    >>> import numpy as np
    >>> kernels = {"kernel": np.ones((2, 12), "f"), "recurrent_kernel": np.ones((3, 12), "f")}
    >>> from_haste(kernels | {"bias": np.ones(12, "f")}).units
    3
    """
    parts = gates.by_last_name(source, "arrays of Haste")
    normed = set(NORM) & set(parts)
    expected = {"kernel", "bias"} | (set(NORM) if normed else set())
    if set(parts) - {"recurrent_kernel"} != expected:
        raise ValueError(f"source must have {', '.join(sorted(expected))}; got {', '.join(source)}.")

    def part(which: str, *axes: int | None) -> np.ndarray:
        name, value = parts[which]
        return gates.host(f"source[{name!r}]", value, *axes)

    w_x = part("kernel", None, None)
    width, units = w_x.shape[1], w_x.shape[1] // 4
    if "recurrent_kernel" in parts:
        gates.four("source['recurrent_kernel']", width, len(part("recurrent_kernel", None, width)))
        w_h = part("recurrent_kernel", units, width)
    elif w_x.shape[0] > units:
        w_x, w_h = w_x[:-units], w_x[-units:]
    else:
        raise ValueError(f"source['kernel'] must have rows for x and {units} for h, got shape {w_x.shape}.")
    norm = None
    if normed:
        x_scale, h_scale = gates.to_ours(part("gamma", 2, width), "haste")
        norm = LSTMNorm(x_scale, h_scale, part("gamma_h", units), part("beta_h", units))
    arrays = [gates.to_ours(array, "haste") for array in (w_x, w_h, part("bias", width))]
    return gates.params(*arrays, norm=norm)
