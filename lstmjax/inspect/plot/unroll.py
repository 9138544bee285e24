"""The network over time: one cell, drawn at every step that uses it."""

import dataclasses
from typing import Any

import jax

from lstmjax import stack
from lstmjax._src import validation
from lstmjax.bidirectional import BidirectionalParams
from lstmjax.inspect.plot.diagram import BAND, FAINT, INK, MUTED, SMALL, TEXT, Axes, Diagram, shown, told, width_of
from lstmjax.lstm import LSTMParams
from lstmjax.stack import StackParams

CELL_WIDTH, CELL_HEIGHT = 0.78, 1.0
VALUE_WIDTH, VALUE_HEIGHT = 0.72, 0.46
BAND_HEIGHT, BETWEEN, RISE = 1.24, 0.14, 0.3
MARGIN, STATE = 0.15, 0.55
ASIDE = 0.27  # from the middle of a column to a cell of either direction


@dataclasses.dataclass(frozen=True)
class _Chain:
    """One LSTM over time: what to call it, its weights, whether it reads in reverse order, its place in a column."""

    name: str
    params: LSTMParams
    backward: bool
    aside: float


@dataclasses.dataclass(frozen=True)
class _Layer:
    """One chain, or the two of both directions, and the length of what they put out together."""

    chains: tuple[_Chain, ...]
    outputs: int


@dataclasses.dataclass(frozen=True)
class _Columns:
    """The steps that are drawn, 0 for a gap, and the middles of their columns."""

    steps: int
    middles: dict[int, float]
    pitch: float


def unrolled(
    params: LSTMParams | BidirectionalParams | StackParams,
    steps: int = 4,
    *,
    return_sequences: bool = True,
    reverse: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draw what `apply` does over time: the same cell at every step, h and c from each step to the next.

    Boxes and arrows have the shapes of their arrays, without batch axes. Steps count from 1, as in the equations; of
    more than eight the first three and the last are drawn.

    Args:
        params: LSTMParams, BidirectionalParams or StackParams, of arrays or of `jax.ShapeDtypeStruct`. Directions
            are concatenated, but where the next layer of a stack reads only as much as one of them.
        steps: number of time steps.
        return_sequences: False draws outputs that are not returned faint.
        reverse: read in reverse order.
        ax: matplotlib Axes; None makes one.

    Returns:
        The Axes.

    Raises:
        ValueError: steps is no positive integer, or layers do not fit each other.
        TypeError: params is something else, or ax is no Axes of x and y.
        ImportError: matplotlib is not installed.

    >>> import jax
    >>> from lstmjax import lstm
    >>> params = lstm.init(jax.random.key(0), inputs=2, units=3)
    >>> unrolled(params, steps=4)
    <Axes: >
    """
    steps = validation.positive_int("steps", steps)
    return_sequences = validation.boolean("return_sequences", return_sequences)
    layers = _layers(params, validation.boolean("reverse", reverse))
    names = _names(layers, steps, return_sequences)
    captions = [(line, SMALL) for layer in layers for chain in layer.chains for line in _captions(chain)]
    captions += [line for name, how in names for line in ((name, TEXT), (how, SMALL))]
    pitch, aside = (1.85, ASIDE) if any(len(layer.chains) > 1 for layer in layers) else (1.5, 0.0)
    left = 3 * MARGIN + max(width_of(*line) for line in captions if line[0]) + aside
    first = left + STATE + pitch - CELL_WIDTH / 2
    drawn = shown(steps)
    columns = _Columns(steps, {step: first + pitch * place for place, step in enumerate(drawn)}, pitch)
    width = first + pitch * len(drawn) - CELL_WIDTH / 2 + STATE + aside + MARGIN
    rises = [len(layer.chains) * (BAND_HEIGHT + BETWEEN) - BETWEEN + 2 * RISE + VALUE_HEIGHT for layer in layers]
    diagram = Diagram(ax, width, 2 * MARGIN + VALUE_HEIGHT + sum(rises))

    y = MARGIN + VALUE_HEIGHT / 2
    _values(diagram, columns, y, names[0], "x_{%s}", layers[0].chains[0].params.inputs)
    for number, (layer, rise) in enumerate(zip(layers, rises, strict=True), 1):
        top = number == len(layers)
        ends = _ends(layer, steps) if top and not return_sequences else None
        for place, chain in enumerate(layer.chains):
            middle = y + VALUE_HEIGHT / 2 + RISE + BAND_HEIGHT / 2 + place * (BAND_HEIGHT + BETWEEN)
            diagram.box(width / 2, middle, width - 2 * MARGIN, BAND_HEIGHT, **BANDED)
            _write(diagram, chain, middle)
            _carry(diagram, columns, chain, middle)
            _feed(diagram, columns, chain, (y, middle, y + rise), ends)
        y += rise
        symbol = "y_{%s}" if top else f"y^{{({number})}}_{{%s}}"
        _values(diagram, columns, y, names[number], symbol, layer.outputs, ends)
    return diagram.ax


BANDED = {"facecolor": BAND, "edgecolor": BAND, "zorder": 0}


def _layers(params: Any, reverse: bool) -> list[_Layer]:
    if not isinstance(params, LSTMParams | BidirectionalParams | StackParams):
        raise TypeError(
            f"params must be LSTMParams, BidirectionalParams or StackParams, as lstm.init, bidirectional.init and "
            f"stack.init make them; got {type(params).__name__}."
        )
    jax.eval_shape(stack.check, params)
    stacked = params.layers if isinstance(params, StackParams) else (params,)
    layers = []
    for number, layer in enumerate(stacked, 1):
        name = f"layer {number}" if len(stacked) > 1 else "LSTM"
        if isinstance(layer, LSTMParams):
            layers.append(_Layer((_Chain(name, layer, reverse, 0.0),), layer.outputs))
            continue
        name = "" if name == "LSTM" else f"{name}, "
        halves = (
            _Chain(f"{name}forward", layer.forward, reverse, -ASIDE),
            _Chain(f"{name}backward", layer.backward, not reverse, ASIDE),
        )
        above = stacked[number] if number < len(stacked) else None
        reads = above.forward.inputs if isinstance(above, BidirectionalParams) else getattr(above, "inputs", None)
        layers.append(_Layer(halves, stack.outputs(layer) if reads is None else reads))
    return layers


def _names(layers: list[_Layer], steps: int, return_sequences: bool) -> list[tuple[str, str]]:
    """Labels of the rows of values, the lowest first, and how they are computed."""
    names = [(f"xs {(steps, layers[0].chains[0].params.inputs)}", "the inputs of every step")]
    for number, layer in enumerate(layers, 1):
        top = number == len(layers)
        some = top and not return_sequences
        shape = (layer.outputs,) if some else (steps, layer.outputs)
        what = "h of the step read last" if some else "h of every step"
        merged = "" if len(layer.chains) == 1 else ", both directions"
        merged += " side by side" if merged and layer.outputs == sum(c.params.outputs for c in layer.chains) else ""
        names.append((f"{'ys' if top else f'outputs of layer {number}'} {shape}", what + merged))
    return names


def _captions(chain: _Chain) -> list[str]:
    params = chain.params
    weights = {"W_x": params.w_x, "W_h": params.w_h, "b": params.bias, "b_h": params.bias_h}
    weights |= {"p": params.w_peephole, "W_p": params.w_projection}
    shapes = [f"${name}$ {told(weight)}" for name, weight in weights.items() if weight is not None]
    rows = ["     ".join(shapes[at : at + 3]) for at in range(0, len(shapes), 3)]
    return ["one cell, the same weights at every step:", *rows]


def _write(diagram: Diagram, chain: _Chain, middle: float) -> None:
    """The name and the weights of a chain, in its band."""
    direction = "reads in reverse order" if chain.backward else "reads in order"
    lines = [(f"{chain.name}, {direction}", INK), *((line, MUTED) for line in _captions(chain))]
    for place, (line, color) in enumerate(lines):
        y = middle + 0.1 * (len(lines) - 1) - 0.2 * place
        diagram.text(2 * MARGIN, y, line, SMALL, color, ha="left", weight="normal" if place else "bold")


def _values(diagram, columns, y, name, symbol, size, ends=None) -> None:
    """A row of values, one for each step; where there are `ends`, those alone count, by their own symbols."""
    diagram.text(2 * MARGIN, y + 0.1, name[0], ha="left")
    diagram.text(2 * MARGIN, y - 0.12, name[1], SMALL, MUTED, ha="left")
    for step, x in columns.middles.items():
        if not step:
            diagram.text(x, y, "…", TEXT + 2, MUTED)
            continue
        here, length = (symbol % step, size) if ends is None else ends.get(step, (symbol % step, size))
        faint = ends is not None and step not in ends
        diagram.value(x, y, VALUE_WIDTH, VALUE_HEIGHT, f"${here}$", f"({length},)", faint=faint, name="value")


def _ends(layer: _Layer, steps: int) -> dict[int, tuple[str, int]]:
    """The outputs that are returned without sequences: of each chain that of the step it reads last."""
    last = {1 if chain.backward else steps: chain for chain in layer.chains}
    if len(last) < len(layer.chains) or len(last) == 1:
        return {step: (f"y_{{{step}}}", layer.outputs) for step in last}
    arrows = {True: r"\overleftarrow{h}", False: r"\overrightarrow{h}"}
    return {step: (f"{arrows[chain.backward]}_{{{step}}}", chain.params.outputs) for step, chain in last.items()}


def _carry(diagram: Diagram, columns: _Columns, chain: _Chain, y: float) -> None:
    """The cells of a chain, and h and c from each to the next."""
    params, onward = chain.params, -1 if chain.backward else 1
    places = {step: x + chain.aside for step, x in columns.middles.items()}
    for step, x in places.items():
        if not step:
            diagram.text(x, y, "…", TEXT + 4, MUTED)
            continue
        diagram.box(x, y, CELL_WIDTH, CELL_HEIGHT, name="cell", line=1.4)
        diagram.text(x, y + 0.1, "LSTM", weight="bold")
        diagram.text(x, y - 0.12, f"{params.units} unit{'s' if params.units > 1 else ''}", SMALL, MUTED)
    gap = columns.pitch - CELL_WIDTH
    read = list(places)[::onward]
    leaves = {step: x + onward * CELL_WIDTH / 2 for step, x in places.items()}
    start = leaves[read[0]] - onward * columns.pitch
    carried = [((1 - onward) // 2 * (columns.steps + 1), start)]
    for place, step in enumerate(read):
        carried.append((step or read[place + 1] - onward, leaves[step]))
    for step, x in carried:
        for symbol, length, height in (("c", params.units, 0.24), ("h", params.outputs, -0.24)):
            diagram.wire((x, y + height), (x + onward * gap, y + height))
            middle = x + onward * gap / 2 - chain.aside / 4
            diagram.text(middle, y + height + 0.1, f"${symbol}_{{{step}}}$")
            diagram.text(middle, y + height - 0.11, f"({length},)", SMALL, MUTED)
    diagram.text(
        start - onward * STATE / 2,
        y,
        "learned" if params.initial is not None else "zeros",
        SMALL,
        MUTED,
        style="italic",
    )
    diagram.text(leaves[read[-1]] + onward * (gap + STATE / 2), y, "final", SMALL, MUTED, style="italic")


def _feed(diagram, columns, chain, heights, ends) -> None:
    """From the values below into the cells of a chain, and from them to the values above."""
    below, middle, above = heights
    last = 1 if chain.backward else columns.steps
    for step, x in columns.middles.items():
        if not step:
            continue
        x += 0.75 * chain.aside
        faint = ends is not None and step != last
        look = {"color": FAINT, "linestyle": "--"} if faint else {}
        diagram.wire((x, below + VALUE_HEIGHT / 2), (x, middle - CELL_HEIGHT / 2))
        diagram.wire((x, middle + CELL_HEIGHT / 2), (x, above - VALUE_HEIGHT / 2), **look)
