"""Weights and gates as heat maps."""

from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Float

from lstmjax import lstm
from lstmjax._src import validation
from lstmjax.bidirectional import BidirectionalParams
from lstmjax.inspect.plot.diagram import (
    BAND,
    DIVERGING,
    FAINT,
    MUTED,
    SEQUENTIAL,
    SMALL,
    TEXT,
    Axes,
    Diagram,
    told,
)
from lstmjax.inspect.traces import BidirectionalTrace, Trace
from lstmjax.lstm import LSTMParams
from lstmjax.stack import StackParams

MEANINGS = {
    "i": "input gate",
    "f": "forget gate",
    "g": "candidate",
    "o": "output gate",
    "c": "cell state",
    "h": "hidden state",
}


def connections(params: LSTMParams, *, ax: Axes | None = None) -> Axes:
    """Draw every weight between x_t, h_{t-1}, c and the gates, one column for each gate of each unit.

    Rows of W_x and W_h are full: every gate of every unit sees the whole x_t and the whole h_{t-1}. A peephole is one
    number for each unit, a diagonal: c is private to its unit.

    Args:
        params: LSTMParams.
        ax: matplotlib Axes; None makes one.

    Returns:
        The Axes.

    Raises:
        TypeError: params is something else; the message says which of its elements to take. Or ax is no Axes
            of x and y.
        ImportError: matplotlib is not installed.

    >>> import jax
    >>> from lstmjax import lstm
    >>> params = lstm.init(jax.random.key(0), inputs=2, units=3, peepholes=True)
    >>> connections(params)
    <Axes: >
    """
    _check_params(params)
    units, names = params.units, "ifgo" if params.gates == 4 else "igo"
    parts = [
        (np.asarray(params.w_x, np.float32), "$x_t$", f"$W_x$ {told(params.w_x)}", "w_x"),
        (np.asarray(params.w_h, np.float32), "$h_{t-1}$", f"$W_h$ {told(params.w_h)}", "w_h"),
    ]
    if params.w_peephole is not None:
        parts.append((_diagonal(params), "$c$", f"$p$ {told(params.w_peephole)}", "w_peephole"))
    bound = _bound(*(array for array, *_ in parts)) or 1.0

    block = float(np.clip(0.2 * units, 0.9, 3.2))
    heights = [float(np.clip(0.2 * len(array), 0.34, 3.2)) for array, *_ in parts]
    left, right, top, between, bottom, gap = 1.5, 1.0, 0.5, 0.34, 0.62, 0.08
    across = len(names) * block + (len(names) - 1) * gap
    height = bottom + sum(heights) + between * (len(parts) - 1) + top
    diagram = Diagram(ax, left + across + right, height)
    y = height - top
    for place, gate in enumerate(names):
        middle = left + place * (block + gap) + block / 2
        diagram.text(middle, y + 0.28, f"${gate}$", TEXT + 2)
    image: Any = None
    for number, ((array, symbol, shape, name), tall) in enumerate(zip(parts, heights, strict=True)):
        y -= tall
        diagram.text(0.15, y + tall / 2 + 0.1, symbol, ha="left")
        diagram.text(0.15, y + tall / 2 - 0.12, shape, SMALL, MUTED, ha="left")
        for place, gate in enumerate(names):
            panel = diagram.panel(left + place * (block + gap), y, block, tall)
            columns = array[:, place * units : (place + 1) * units]
            image = _picture(panel, columns, DIVERGING, (-bound, bound), name=f"{name} {gate}")
            _number(panel.yaxis, len(array), tall, 0.17, place == 0)
            _number(panel.xaxis, units, block, 0.2, number == len(parts) - 1)
        y -= between
    private = "" if params.w_peephole is None else ", of $c$ its own alone"
    reads = f"unit of the gate: each reads all of $x_t$ and $h_{{t-1}}${private}"
    diagram.text(left + across / 2, 0.2, reads, SMALL, MUTED)
    _bar(diagram, image, left + across + 0.2, bottom, height - top - bottom)
    return diagram.ax


def gates(
    trace: Trace,
    xs: Float[ArrayLike, "time inputs"] | None = None,
    *,
    length: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw what every gate of every unit does at every step, with c, h and the input.

    Args:
        trace: a Trace of one sequence, [time, units].
        xs: the input that it read [time, inputs]; None leaves it out.
        length: valid steps of the sequence; later ones are padding and are hatched. None where all are valid.
        ax: matplotlib Axes; None makes one.

    Returns:
        The Axes.

    Raises:
        ValueError: a trace with batch axes or without steps, another number of steps in xs, or a length beyond them.
        TypeError: trace is that of a stack or of two directions; the message says which of its elements to take. Or ax
            is no Axes of x and y.
        ImportError: matplotlib is not installed.

    >>> import jax
    >>> from lstmjax import lstm
    >>> from lstmjax.inspect import trace
    >>> xs = jax.random.normal(jax.random.key(1), (12, 2))
    >>> seen = trace(lstm.init(jax.random.key(0), inputs=2, units=3), xs)
    >>> gates(seen, xs)
    <Axes: >
    """
    _check_trace(trace)
    time = trace.c.shape[0]
    inputs = None if xs is None else np.asarray(validation.floating("xs", xs), np.float32)
    if inputs is not None and (inputs.ndim != 2 or len(inputs) != time):
        raise ValueError(f"xs must be [time, inputs] with the {time} steps of trace; got shape {inputs.shape}.")
    padding = np.arange(time) >= (time if length is None else validation.positive_int("length", length))
    if length is not None and length > time:
        raise ValueError(f"length must be at most the {time} steps of trace; got {length}.")
    arrays = {name: np.where(padding, np.nan, np.asarray(getattr(trace, name), np.float32).T) for name in "ifogch"}
    inputs = None if inputs is None else np.where(padding[:, None], np.nan, inputs)
    groups = [(SEQUENTIAL, "ifo"), (DIVERGING, "gch")]
    bound = max(1.0, _bound(*(arrays[name] for name in "gch")))
    opened = [arrays[name] for name in "ifo"]  # below 0 or above 1 with an activation such as linear or relu
    closed = _bound(*(np.minimum(array, 0) for array in opened))
    limits = {SEQUENTIAL: (0.0 - closed, max(1.0, _bound(*opened))), DIVERGING: (-bound, bound)}

    across = float(np.clip(0.22 * time, 3.0, 8.0))
    tall = {name: float(np.clip(0.18 * len(array), 0.5, 1.4)) for name, array in arrays.items()}
    tall_x = 0.0 if inputs is None else float(np.clip(0.18 * inputs.shape[1], 0.5, 1.4))
    left, right, bottom, top, between = 1.75, 1.0, 0.6, 0.2, 0.12
    height = bottom + top + sum(tall.values()) + 5 * between + 0.1 + (tall_x + between + 0.1 if tall_x else 0)
    diagram = Diagram(ax, left + across + right, height)
    y, panels = height - top, []
    for colors, names in groups:
        start = y
        image = None
        for name in names:
            y -= tall[name]
            panel = diagram.panel(left, y, across, tall[name])
            image = _picture(panel, arrays[name], colors, limits[colors], name=name)
            _number(panel.yaxis, len(arrays[name]), tall[name], 0.17, True)
            diagram.text(0.15, y + tall[name] / 2 + 0.1, f"${name}$", ha="left")
            diagram.text(0.15, y + tall[name] / 2 - 0.12, MEANINGS[name], SMALL, MUTED, ha="left")
            panels.append(panel)
            y -= between
        _bar(diagram, image, left + across + 0.2, y + between, start - y - between)
        y -= 0.1
    if inputs is not None:
        y -= tall_x
        panel = diagram.panel(left, y, across, tall_x)
        diagram.text(0.15, y + tall_x / 2 + 0.1, "$x$", ha="left")
        diagram.text(0.15, y + tall_x / 2 - 0.12, "input", SMALL, MUTED, ha="left")
        extent = _bound(inputs) or 1.0
        image = _picture(panel, inputs.T, DIVERGING, (-extent, extent), name="x")
        _number(panel.yaxis, inputs.shape[1], tall_x, 0.17, True)
        _bar(diagram, image, left + across + 0.2, y, tall_x)
        panels.append(panel)
    for panel in panels:
        _number(panel.xaxis, time, across, 0.3, panel is panels[-1])
    diagram.text(left + across / 2, 0.2, "step", SMALL, MUTED)
    return diagram.ax


def _picture(panel: Any, values: np.ndarray, colors: str, limits: tuple[float, float], name: str) -> Any:
    low, high = limits
    panel.set_facecolor(BAND)
    panel.patch.set(hatch="////", edgecolor=FAINT, linewidth=0)  # seen where there is no number
    return panel.imshow(values, cmap=colors, vmin=low, vmax=high, aspect="auto", interpolation="nearest", gid=name)


def _bound(*arrays: np.ndarray) -> float:
    """The largest of all finite numbers, whatever its sign."""
    return max(float(np.max(np.abs(array), initial=0, where=np.isfinite(array))) for array in arrays)


def _bar(diagram: Diagram, image: Any, x: float, y: float, height: float) -> None:
    panel = diagram.panel(x, y, 0.14, height)
    bar = diagram.ax.figure.colorbar(image, cax=panel)
    bar.outline.set(linewidth=0.7 * diagram.scale, edgecolor=MUTED)
    low, high = image.get_clim()
    bar.set_ticks([low, (low + high) / 2, high], labels=[f"{value:.3g}" for value in (low, (low + high) / 2, high)])
    diagram.trim(panel)


def _number(axis: Any, count: int, inches: float, apart: float, labelled: bool) -> None:
    """Numbers from 1, as many as have room."""
    strides = (digit * 10**power for power in range(10) for digit in (1, 2, 5))
    stride = next(stride for stride in strides if inches / count * stride >= apart or stride >= count)
    numbers = range(stride, count + 1, stride) if stride < count else (count,)
    axis.set_ticks([number - 1 for number in numbers], labels=map(str, numbers) if labelled else [])


def _diagonal(params: LSTMParams) -> np.ndarray:
    """The peepholes as a matrix from c to the gates, NaN where there is no weight."""
    units, seen = params.units, [place for place in range(params.gates) if place != params.gates - 2]
    matrix = np.full((units, params.gates * units), np.nan, np.float32)
    for weights, gate in zip(np.split(np.asarray(params.w_peephole), len(seen)), seen, strict=True):
        matrix[np.arange(units), gate * units + np.arange(units)] = weights
    return matrix


def _check_params(params: Any) -> None:
    if isinstance(params, BidirectionalParams):
        raise TypeError("params has two directions: take params.forward or params.backward.")
    if isinstance(params, StackParams):
        raise TypeError(f"params has {len(params.layers)} layers: take one, such as params.layers[0].")
    validation.instance("params", params, LSTMParams, "lstm.init")
    lstm.check(params)


def _check_trace(trace: Any) -> None:
    if isinstance(trace, BidirectionalTrace):
        raise TypeError("trace has two directions: take trace.forward or trace.backward.")
    if isinstance(trace, tuple):
        raise TypeError(f"trace has {len(trace)} layers: take one, such as trace[0].")
    validation.instance("trace", trace, Trace, "lstmjax.inspect.trace")
    shape = trace.c.shape
    if len(shape) != 2:
        index = ", ".join("0" * (len(shape) - 2))
        raise ValueError(
            f"trace must be of one sequence, [time, units]; got {shape}: index its batch axes, such as "
            f"jax.tree.map(lambda leaf: leaf[{index}], trace)."
        )
    if not shape[0]:
        raise ValueError(f"trace must have at least 1 step; got shape {shape}.")
