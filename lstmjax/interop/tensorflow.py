"""TensorFlow 1: `BasicLSTMCell` and `LSTMCell`, which add `forget_bias` to the forget gate's bias at run time.

kernel = [w_x; w_h]    bias = bias    offset = 0, forget_bias, 0, 0    w_peephole = w_i_diag, w_f_diag, w_o_diag

Its `LayerNormBasicLSTMCell` has a gamma and a beta for each gate in place of biases, which are z_scale and bias. The
`LayerNormLSTMCell` of TensorFlow Addons is Keras' cell with layer norm, whose biases and betas add up to one bias. The
operator of TensorFlow Lite has a matrix for each gate; where it has none for the input gate, i = 1 - f, and as
1 - sigmoid(z) = sigmoid(-z), what makes f with its sign turned makes our i.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from lstmjax._src import keywords, validation
from lstmjax.interop import gates
from lstmjax.lstm import LSTMNorm, LSTMParams

PEEPHOLES = "w_i_diag", "w_f_diag", "w_o_diag"  # in our order, as all of these
NORMED = "input", "forget", "transform", "output"  # by LayerNormBasicLSTMCell
LITE = "input", "forget", "cell", "output"
PROJECTION = ("projection/kernel",)
VARIABLE = re.compile(
    rf"(?:(.+?)/)?(projection/kernel|kernel|recurrent_kernel|bias|{'|'.join(PEEPHOLES)}"
    rf"|(?:{'|'.join(NORMED)}|state|kernel_norm|recurrent_norm|state_norm)/(?:gamma|beta)"
    rf"|(?:input|recurrent|cell)_to_(?:{'|'.join(LITE)})_weights|(?:{'|'.join(LITE)})_gate_bias"
    rf"|(?:{'|'.join(LITE)})_layer_norm_coefficients|projection_weights)(?::0)?"
)
LAYER = re.compile(r"(?:^|/)cell_(\d+)(?:/|$)")
DIRECTION = re.compile(r"(?:^|/)(fw|bw)(?:/|$)")


@keywords.explained("interop.from_tensorflow")
def from_tensorflow(variables: Mapping[str, Any], forget_bias: float | int | None = None) -> gates.RECURRENT:
    """Take the variables of `BasicLSTMCell` or `LSTMCell`; before TensorFlow 1.2 theirs were weights and biases.

    Args:
        variables: arrays by name, such as "rnn/lstm_cell/kernel": kernel and bias, w_f_diag, w_i_diag and w_o_diag
            with peepholes, and projection/kernel with a projection. Those of `LayerNormBasicLSTMCell` are kernel and
            input/gamma, input/beta, ..., state/gamma, state/beta; those of the `LayerNormLSTMCell` of TensorFlow Addons
            kernel, recurrent_kernel, bias and kernel_norm/gamma, ..., state_norm/beta; those of TensorFlow Lite's
            operator, with layer norm or without, as its documentation names them: input_to_input_weights, ...,
            input_gate_bias, ..., input_layer_norm_coefficients, ..., projection_weights. Several cells are those of a
            `MultiRNNCell` (cell_0, cell_1, ...), of a bidirectional loop (fw, bw), or of a stack of the latter.
        forget_bias: that a cell of TensorFlow 1 was made with, 1 unless it was told otherwise. It is in no variable:
            here it is `offset`, not learned either. In all others it is in the bias: leave it out.

    Returns:
        LSTMParams, BidirectionalParams or StackParams. The cell's clips are options: `cell_clip`, `proj_clip` is
        projection_clip. So is the epsilon of layer norm: `LSTMOptions(norm_epsilon=1e-12)` is TensorFlow 1's, 1e-3
        that of Addons unless it was told otherwise, and 1e-8 TensorFlow Lite's.

    Raises:
        ValueError: a variable that is none of these cells', one that is missing, shapes that do not fit;
        TypeError: no mapping.

    >>> import numpy as np
    >>> params = from_tensorflow({"kernel": np.ones((5, 12), "f"), "bias": np.zeros(12, "f")})
    >>> params.inputs, params.units
    (2, 3)
    """
    variables = gates.named("variables", variables, "variables of TensorFlow")
    forget_bias = None if forget_bias is None else validation.number("forget_bias", forget_bias)
    cells: dict[str, dict[str, Any]] = {}
    for name, value in variables.items():
        match = VARIABLE.fullmatch(name)
        if match is None:
            raise ValueError(
                f"variables has {name!r}, which is no variable of an LSTM cell: kernel, bias, projection/kernel, "
                f"{', '.join(PEEPHOLES)}, or of layer norm. Leave out what is of other layers and of optimisers."
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


@keywords.explained("interop.to_tensorflow")
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
    forget_bias = validation.number("forget_bias", forget_bias)
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


def _cell(name: str, parts: dict[str, Any], forget_bias: float | None) -> LSTMParams:
    def part(which: str, *axes: int | None) -> np.ndarray:
        return gates.host(f"variables[{f'{name}/{which}' if name else which!r}]", parts[which], *axes)

    for mark, make in (("recurrent_kernel", _of_addons), ("forget_gate_bias", _of_lite)):
        if mark in parts:
            if forget_bias is not None:
                raise ValueError(f"forget_bias={forget_bias!r} is in the bias of {name!r} already: leave it out.")
            return make(name, parts, part)
    forget_bias = 1.0 if forget_bias is None else forget_bias
    normed = any(which.endswith(("gamma", "beta")) for which in parts)
    diagonal = [] if normed else [which for which in PEEPHOLES if which in parts]
    needed = [f"{where}/{which}" for where in (*NORMED, "state") for which in ("gamma", "beta")] if normed else ["bias"]
    _check_parts(name, parts, {"kernel", *needed, *(PEEPHOLES if diagonal else ())}, () if normed else PROJECTION)
    kernel = part("kernel", None, None)
    units = kernel.shape[1] // 4
    projection = part("projection/kernel", units, None) if "projection/kernel" in parts else None
    outputs = units if projection is None else projection.shape[1]
    if kernel.shape[0] <= outputs:
        raise ValueError(f"kernel of {name!r} must have rows for x and {outputs} for h, got shape {kernel.shape}.")
    norm = None
    if normed:
        scale, bias = (
            np.concatenate([part(f"{gate}/{which}", units) for gate in NORMED]) for which in ("gamma", "beta")
        )
        norm = LSTMNorm(None, None, part("state/gamma", units), part("state/beta", units), scale, "per_gate_cell")
    else:
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
        norm=norm,
        offset=offset,
    )


def _of_addons(name: str, parts: dict[str, Any], part: Callable[..., np.ndarray]) -> LSTMParams:
    norms = [f"{where}_norm/{which}" for where in ("kernel", "recurrent", "state") for which in ("gamma", "beta")]
    _check_parts(name, parts, {"kernel", "recurrent_kernel", *norms}, {"bias"})
    kernel = part("kernel", None, None)
    width, units = kernel.shape[1], kernel.shape[1] // 4
    biases = [part(which, width) for which in ("bias", "kernel_norm/beta", "recurrent_norm/beta") if which in parts]
    scales = part("kernel_norm/gamma", width), part("recurrent_norm/gamma", width)
    norm = LSTMNorm(*scales, part("state_norm/gamma", units), part("state_norm/beta", units), kind="joint_cell")
    return gates.params(kernel, part("recurrent_kernel", units, width), sum(biases[1:], biases[0]), norm=norm)


def _of_lite(name: str, parts: dict[str, Any], part: Callable[..., np.ndarray]) -> LSTMParams:
    coupled = "input_to_input_weights" not in parts
    order = LITE[1:] if coupled else LITE
    seeing = [gate for gate in order if gate != "cell"]
    kinds = {kind: [f"{kind}_to_{gate}_weights" for gate in order] for kind in ("input", "recurrent")}
    kinds["cell"] = [f"cell_to_{gate}_weights" for gate in seeing]
    kinds["bias"] = [f"{gate}_gate_bias" for gate in order]
    kinds["norm"] = [f"{gate}_layer_norm_coefficients" for gate in order]
    given = {kind: any(which in parts for which in kinds[kind]) for kind in kinds}
    needed = [which for kind in kinds if given[kind] or kind in ("input", "recurrent", "bias") for which in kinds[kind]]
    _check_parts(name, parts, set(needed), {"projection_weights"})
    units = part(f"{order[0]}_gate_bias", None).shape[0]
    projection = part("projection_weights", None, units).T if "projection_weights" in parts else None
    outputs = units if projection is None else projection.shape[1]
    axes = {"input": (units, None), "recurrent": (units, outputs), "cell": (units,), "bias": (units,), "norm": (units,)}

    def together(kind: str) -> np.ndarray:
        found = [part(which, *axes[kind]).T for which in kinds[kind]]
        if coupled and kind != "norm":
            found[0] = -found[0]
        return np.concatenate(found, axis=-1)

    return gates.params(
        together("input"),
        together("recurrent"),
        together("bias"),
        w_peephole=together("cell") if given["cell"] else None,
        w_projection=projection,
        norm=LSTMNorm(z_scale=together("norm"), kind="per_gate") if given["norm"] else None,
    )


def _check_parts(name: str, parts: dict[str, Any], needed: Collection[str], may: Collection[str]) -> None:
    """Raise unless a cell has all of these variables, and no others than those that it may have."""
    missing, others = sorted(set(needed) - set(parts)), sorted(set(parts) - set(needed) - set(may))
    if missing:
        raise ValueError(f"variables must have {', '.join(missing)} beside {', '.join(parts)} of {name!r}.")
    if others:
        raise ValueError(f"variables has {', '.join(others)} of {name!r}, which no cell has beside its others.")
