"""One step of the cell, and its equations."""

import jax

from lstmjax import lstm
from lstmjax._src import validation
from lstmjax.inspect.plot.diagram import (
    BAND,
    GATES,
    INK,
    MUTED,
    SKY,
    SMALL,
    TEXT,
    VERMILION,
    Axes,
    Diagram,
    tint,
    told,
    width_of,
)
from lstmjax.lstm import LSTMParams

C, H = 4.0, 1.25  # heights of the lines of c and of h
Z, PRODUCTS, PEEPHOLES = 2.2, 3.05, 1.66  # of the gates, of what they multiply, and of the peepholes' lines
COLUMNS = {"f": 2.3, "i": 3.2, "g": 4.1, "o": 5.0}  # f stands first, so that no lines cross
LEFT, OUT, RIGHT = 1.3, 5.9, 6.5  # the cell's edges, and where h is made
GATE_WIDTH, GATE_HEIGHT, DOT = 0.56, 0.36, 0.14


def cell(params: LSTMParams | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw one step: how x_t, h_{t-1} and c_{t-1} become h_t and c_t, beside the equations.

    Args:
        params: LSTMParams, of arrays or of `jax.ShapeDtypeStruct`, whose shapes are written, and whose peepholes,
            projection and coupled gates are drawn; None for the standard cell.
        ax: matplotlib Axes; None makes one.

    Returns:
        The Axes.

    Raises:
        TypeError: params is something else, or ax is no Axes of x and y.
        ImportError: matplotlib is not installed.

    >>> cell()
    <Axes: >
    """
    if params is not None:
        validation.instance("params", params, LSTMParams, "lstm.init")
        jax.eval_shape(lstm.check, params)
    equations, shapes = _equations(params), _shapes(params)
    beside = RIGHT + 1.3
    lines = [*((line, TEXT + 1) for line in equations), *((line, SMALL) for line in shapes)]
    diagram = Diagram(ax, beside + max(width_of(*line) for line in lines) + 0.3, 4.75)
    coupled, peepholes, projected = _parts(params)

    diagram.box((LEFT + RIGHT) / 2, 2.6, RIGHT - LEFT, 3.75, facecolor=BAND, edgecolor=MUTED, zorder=0, name="cell")
    gates = "igo" if coupled else "figo"
    _lines(diagram, params)
    for gate in gates:
        x = COLUMNS[gate]
        diagram.box(x, Z, GATE_WIDTH, GATE_HEIGHT, facecolor=tint(GATES[gate]), name="gate")
        diagram.text(x, Z, "tanh" if gate == "g" else r"$\sigma$", TEXT if gate == "g" else TEXT + 2)
        diagram.text(x + 0.17, Z + 0.36, f"${gate}_t$")
    f, i, g, o = (COLUMNS[gate] for gate in "figo")
    top = Z + GATE_HEIGHT / 2
    if coupled:
        diagram.wire((i, 2.75), (f, 2.75), (f, C - DOT))
        diagram.box(f, 3.3, 0.4, 0.28, name="pointwise")
        diagram.text(f, 3.3, "$1-$")
    else:
        diagram.wire((f, top), (f, C - DOT))
    diagram.wire((i, top), (i, PRODUCTS), (g - DOT, PRODUCTS))
    diagram.wire((g, top), (g, PRODUCTS - DOT))
    diagram.wire((g, PRODUCTS + DOT), (g, C - DOT))
    diagram.wire((o, top), (o, PRODUCTS), (OUT - DOT, PRODUCTS))
    for x, y, symbol in ((f, C, "×"), (g, C, "+"), (g, PRODUCTS, "×"), (OUT, PRODUCTS, "×")):
        diagram.dot(x, y, symbol)
    diagram.box(OUT, 3.56, 0.5, 0.26, name="pointwise")
    diagram.text(OUT, 3.56, "tanh")
    if peepholes:
        look = {"color": VERMILION, "linestyle": (0, (3, 2))}
        bottom, aside = Z - GATE_HEIGHT / 2, 0.17
        diagram.wire((1.75, C), (1.75, PEEPHOLES), (i - aside, PEEPHOLES), (i - aside, bottom), **look)
        diagram.wire((5.45, C), (5.45, PEEPHOLES), (o + aside, PEEPHOLES), (o + aside, bottom), **look)
        if not coupled:
            diagram.wire((f - aside, PEEPHOLES), (f - aside, bottom), **look)
        diagram.text(1.5, 2.6, "peepholes", SMALL, VERMILION, rotation=90)
    if projected:
        diagram.box(OUT, Z, 0.5, GATE_HEIGHT, facecolor=tint(SKY), name="projection")
        diagram.text(OUT, Z, "$W_p$")
    diagram.text((LEFT + RIGHT) / 2, 0.92, "tinted boxes have weights, all else acts unit by unit", SMALL, MUTED)
    y = 4.35
    for line, size in lines:
        diagram.text(beside, y, line, size, MUTED if size == SMALL else INK, ha="left")
        y -= 0.24 if size == SMALL else 0.34
    return diagram.ax


def _lines(diagram: Diagram, params: LSTMParams | None) -> None:
    """C along the top, h and x into the gates, h out, with their shapes."""
    outside = 0.85
    diagram.wire((LEFT - outside, C), (RIGHT + outside, C))
    diagram.wire((LEFT - outside, H), (COLUMNS["o"], H), (COLUMNS["o"], Z - GATE_HEIGHT / 2))
    coupled, *_ = _parts(params)
    for gate in "ig" if coupled else "fig":
        diagram.wire((COLUMNS[gate], H), (COLUMNS[gate], Z - GATE_HEIGHT / 2))
    diagram.wire((1.75, 0.36), (1.75, H), (2.05, H), head=False)
    diagram.wire((OUT, C), (OUT, PRODUCTS + DOT))
    diagram.wire((OUT, PRODUCTS - DOT), (OUT, H), (RIGHT + outside, H))
    units = "(units,)" if params is None else f"({params.units},)"
    outputs = "(units,)" if params is None else f"({params.outputs},)"
    ends = [
        (LEFT - outside / 2, C, "$c_{t-1}$", units),
        (LEFT - outside / 2, H, "$h_{t-1}$", outputs),
        (RIGHT + outside / 2, C, "$c_t$", units),
        (RIGHT + outside / 2, H, "$h_t$", outputs),
    ]
    for x, y, symbol, shape in ends:
        diagram.text(x, y + 0.13, symbol)
        diagram.text(x, y - 0.14, shape, SMALL, MUTED)
    diagram.text(1.75, 0.22, "$x_t$")
    diagram.text(1.95, 0.22, "(inputs,)" if params is None else f"({params.inputs},)", SMALL, MUTED, ha="left")


def _parts(params: LSTMParams | None) -> tuple[bool, bool, bool]:
    """Flags for coupled gates, peepholes and a projected h."""
    if params is None:
        return False, False, False
    return params.gates == 3, params.w_peephole is not None, params.w_projection is not None


def _equations(params: LSTMParams | None) -> list[str]:
    coupled, peepholes, projected = _parts(params)
    kind = "" if params is None or params.norm is None else params.norm.kind
    per_gate = kind.startswith("per_gate")
    biases = {"b": params is None or params.bias is not None}
    biases |= {} if params is None else {"b_h": params.bias_h is not None, "b_0": params.offset is not None}
    products = r"N(x_t W_x) + N(h_{t-1} W_h)" if kind.startswith("joint") else "x_t W_x + h_{t-1} W_h"
    added = "".join(f" + {bias}" for bias, there in biases.items() if there)

    def seen(gate: str, c: str | None = None) -> str:
        inside = f"z_{gate}" + (rf" + p_{gate} \odot {c}" if peepholes and c else "")
        shift = f" + b_{gate}" if any(biases.values()) else ""
        return f"N({inside}){shift}" if per_gate else inside

    shown = r"\tanh(N(c_t))" if kind == "joint" else r"\tanh(c_t)"
    c = r"f_t \odot c_{t-1} + i_t \odot g_t"
    h = rf"o_t \odot {shown}"
    lines = [
        f"z_t = {products}{'' if per_gate else added}",
        rf"i_t = \sigma({seen('i', 'c_{t-1}')})",
        "f_t = 1 - i_t" if coupled else rf"f_t = \sigma({seen('f', 'c_{t-1}')})",
        rf"g_t = \tanh({seen('g')})",
        rf"o_t = \sigma({seen('o', 'c_t')})",
        f"c_t = N({c})" if kind.endswith("_cell") else f"c_t = {c}",
        f"h_t = ({h})\\, W_p" if projected else f"h_t = {h}",
    ]
    return [f"${line}$" for line in lines]


def _shapes(params: LSTMParams | None) -> list[str]:
    """Shapes of all arrays: axes by their names where there are no params."""
    gates = "$z_i, z_g, z_o$" if _parts(params)[0] else "$z_i, z_f, z_g, z_o$"
    if params is None:
        return ["$W_x$ [inputs, 4·units]", "$W_h$ [units, 4·units]", "$b$ [4·units]", f"{gates} side by side in $z_t$"]
    arrays = {"W_x": params.w_x, "W_h": params.w_h, "b": params.bias, "b_h": params.bias_h, "b_0": params.offset}
    arrays |= {"p": params.w_peephole, "W_p": params.w_projection}
    told_ = [f"${name}$ {told(array)}" for name, array in arrays.items() if array is not None]
    rows = ["     ".join(told_[at : at + 3]) for at in range(0, len(told_), 3)]
    return [*rows, f"{gates} ({params.units},) each, side by side in $z_t$"]
