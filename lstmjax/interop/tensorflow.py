"""TensorFlow 1: `BasicLSTMCell` and `LSTMCell`, which add `forget_bias` to the forget gate's bias at run time.

kernel = [w_x; w_h]    bias = bias    offset = 0, forget_bias, 0, 0    w_peephole = w_i_diag, w_f_diag, w_o_diag
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lstmjax import checks
from lstmjax.interop import gates
from lstmjax.lstm import LSTMParams

PEEPHOLES = "w_i_diag", "w_f_diag", "w_o_diag"  # in our order
VARIABLE = re.compile(rf"(?:(.+?)/)?(projection/kernel|kernel|bias|{'|'.join(PEEPHOLES)})(?::0)?")
LAYER = re.compile(r"(?:^|/)cell_(\d+)(?:/|$)")
DIRECTION = re.compile(r"(?:^|/)(fw|bw)(?:/|$)")


def from_tensorflow(variables: Mapping[str, Any], forget_bias: float = 1.0) -> gates.RECURRENT:
    """Take the variables of `BasicLSTMCell` or `LSTMCell`; before TensorFlow 1.2 theirs were weights and biases.

    Args:
        variables: arrays by name, such as "rnn/lstm_cell/kernel": kernel and bias, w_f_diag, w_i_diag and w_o_diag
            with peepholes, and projection/kernel with a projection. Several cells are those of a `MultiRNNCell`
            (cell_0, cell_1, ...), of a bidirectional loop (fw, bw), or of a stack of the latter.
        forget_bias: that the cell was made with. It is in no variable: here it is `offset`, not learned either.

    Returns:
        LSTMParams, BidirectionalParams or StackParams. The cell's clips are options: `cell_clip`, `proj_clip` is
        projection_clip.

    Raises:
        ValueError: a variable that is none of these cells', one that is missing, shapes that do not fit;
        TypeError: no mapping.

    >>> import numpy as np
    >>> params = from_tensorflow({"kernel": np.ones((5, 12), "f"), "bias": np.zeros(12, "f")})
    >>> params.inputs, params.units
    (2, 3)
    """
    variables = gates.named("variables", variables, "variables of TensorFlow")
    forget_bias = checks.number("forget_bias", forget_bias)
    cells: dict[str, dict[str, Any]] = {}
    for name, value in variables.items():
        match = VARIABLE.fullmatch(name)
        if match is None:
            raise ValueError(
                f"variables has {name!r}, which is no variable of an LSTM cell: kernel, bias, projection/kernel, "
                f"{', '.join(PEEPHOLES)}. Leave out what is of other layers and of optimisers."
            )
        cells.setdefault(match[1] or "", {})[match[2]] = value
    if len(cells) == 1:
        ((name, parts),) = cells.items()
        return _cell(name, parts, forget_bias)
    places = {name: _place(name) for name in cells}
    parents = {DIRECTION.split(LAYER.split(name)[0])[0] for name in cells}
    directions = sorted({direction for _, direction in places.values()}, reverse=True)
    expected = {(layer, direction) for layer in range(len(cells) // len(directions)) for direction in directions}
    if len(parents) > 1 or len(places) != len(set(places.values())) or set(places.values()) != expected:
        raise ValueError(
            "variables must be of one cell, or of cells that are the layers (cell_0, cell_1, ...) and directions (fw, "
            f"bw) of one stack; got {', '.join(sorted(cells))}."
        )
    by_place = {place: _cell(name, cells[name], forget_bias) for name, place in places.items()}
    layers = range(len(expected) // len(directions))
    return gates.gathered([tuple(by_place[layer, direction] for direction in directions) for layer in layers])


def to_tensorflow(params: gates.RECURRENT, forget_bias: float = 1.0) -> dict[str, np.ndarray]:
    """Make the variables of an `LSTMCell`, or of a `BasicLSTMCell` where there are kernel and bias alone.

    Args:
        params: LSTMParams, BidirectionalParams or StackParams.
        forget_bias: that the cell will be made with; the bias is less by it.

    Returns:
        Arrays by name: "kernel", "bias", ..., under "cell_0/" in a stack, and under "fw/" and "bw/" in two directions.

    Raises:
        ValueError: parts that TensorFlow has no place for; TypeError: forget_bias is no number.

    >>> import jax
    >>> from lstmjax import lstm
    >>> {name: v.shape for name, v in to_tensorflow(lstm.init(jax.random.key(0), inputs=2, units=3)).items()}
    {'kernel': (5, 12), 'bias': (12,)}
    """
    forget_bias = checks.number("forget_bias", forget_bias)
    found, variables = gates.layers(params), {}
    for layer, halves in enumerate(found):
        for half, direction in zip(halves, ("fw/", "bw/"), strict=False):
            prefix = (f"cell_{layer}/" if len(found) > 1 else "") + (direction if len(halves) > 1 else "")
            cell = gates.only("TensorFlow", half, "w_peephole", "w_projection")
            kernel = np.concatenate([gates.from_ours(part, "tensorflow") for part in (cell.w_x, cell.w_h)])
            bias = gates.from_ours(gates.one_bias(cell, forget_bias), "tensorflow")
            parts = {"kernel": kernel, "bias": bias}
            if cell.w_peephole is not None:
                parts |= dict(zip(PEEPHOLES, np.split(cell.w_peephole, 3), strict=True))
            if cell.w_projection is not None:
                parts["projection/kernel"] = cell.w_projection
            variables |= {prefix + name: part for name, part in parts.items()}
    return variables


def _place(name: str) -> tuple[int, str]:
    layer, direction = LAYER.search(name), DIRECTION.search(name)
    if layer and direction and direction.start() < layer.start():
        raise ValueError(
            f"{name} is of a stack in one direction, which meets that of the other in its last layer alone: convert "
            "each direction by itself."
        )
    return int(layer[1]) if layer else 0, direction[1] if direction else "fw"


def _cell(name: str, parts: dict[str, Any], forget_bias: float) -> LSTMParams:
    def part(which: str, *axes: int | None) -> np.ndarray:
        return gates.host(f"variables[{f'{name}/{which}' if name else which!r}]", parts[which], *axes)

    diagonal = [which for which in PEEPHOLES if which in parts]
    missing = {"kernel", "bias"} - set(parts) or (set(PEEPHOLES) - set(diagonal) if diagonal else set())
    if missing:
        raise ValueError(f"variables must have {', '.join(sorted(missing))} beside {', '.join(parts)} of {name!r}.")
    kernel = part("kernel", None, None)
    units = kernel.shape[1] // 4
    projection = part("projection/kernel", units, None) if "projection/kernel" in parts else None
    outputs = units if projection is None else projection.shape[1]
    if kernel.shape[0] <= outputs:
        raise ValueError(f"kernel of {name!r} must have rows for x and {outputs} for h, got shape {kernel.shape}.")
    bias = gates.to_ours(part("bias", kernel.shape[1]), "tensorflow")
    kernel = gates.to_ours(kernel, "tensorflow")
    peepholes = np.concatenate([part(which, units) for which in PEEPHOLES]) if diagonal else None
    offset = gates.offset(bias.dtype, units, forget_bias) if forget_bias else None
    return gates.params(
        kernel[:-outputs],
        kernel[-outputs:],
        bias,
        w_peephole=peepholes,
        w_projection=projection,
        offset=offset,
    )
