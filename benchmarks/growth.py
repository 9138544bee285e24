"""Growth of time and memory along one axis at a time: the shapes, the slopes, and what explains them."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks import race
from benchmarks.markdown import memory, origin, table, used
from benchmarks.peers import KINDS, operations

AXES = {
    "T": [(8, steps, 64, 64) for steps in (100, 316, 1000, 3162, 10000)],
    "B": [(batch, 100, 64, 64) for batch in (1, 4, 16, 64, 256, 1024)],
    "units": [(8, 100, units, units) for units in (32, 64, 128, 256, 512, 1024, 2048)],
}
PLACES = {"B": 0, "T": 1, "units": 3}
SHAPES = list(dict.fromkeys(shape for shapes in AXES.values() for shape in shapes))
LAST = 3  # points, where a range ends
WHY = {
    "T": """Every step does the same work with the same weights: time is proportional to T once the fixed costs of a
call are paid. So is memory, as inputs and outputs are put in the order of time, and a gradient keeps something of every
step; only copies of weights and their gradients are the same for every T.""",
    "B": """A step starts the same operations and reads the same weights however large the batch is: time grows more
slowly than B while those costs fill it, and in proportion where the arithmetic does, or somewhat faster where the
arrays of a step leave the caches. Memory is proportional to B but for copies of weights and their gradients.""",
    "units": """With as many inputs as units, weights and products grow with the square, what happens unit by unit in
proportion: time lies between, nearer to the square the more units there are, and above it where weights leave a cache
and every step reads them from further away. Memory likewise: what is kept of a step grows in proportion, copies of
weights and their gradients with the square.""",
}


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The power of its size with which a value grows: of a line through the logarithms, by least squares."""
    return statistics.linear_regression([math.log(size) for size in sizes], [math.log(v) for v in values]).slope


def section(results: dict[str, Any]) -> str:
    """A table for each axis, with the slopes below."""
    lines = [
        "## Growth",
        "",
        f"{origin(results)}. A slope is the power with which a figure grows: of a line through logarithms by least "
        f"squares, over all sizes and over the last {LAST}.",
    ]
    for axis, shapes in AXES.items():
        columns = _columns(results["cells"], shapes)
        sizes = [shape[PLACES[axis]] for shape in shapes]
        rows = [[str(size), *(text(values[n]) for text, values in columns.values())] for n, size in enumerate(sizes)]
        for title, start in (("slope", 0), (f"slope of the last {LAST}", -LAST)):
            rows.append([title, *(f"{slope(sizes[start:], values[start:]):.2f}" for _, values in columns.values())])
        fixed = ", ".join(f"{name} = {shapes[0][place]}" for name, place in PLACES.items() if name != axis)
        inputs = "as many inputs" if axis == "units" else f"{shapes[0][2]} inputs"
        lines += ["", f"### Against {axis}", "", f"{fixed}, {inputs}.", WHY[axis], "", *table([axis, *columns], rows)]
    return "\n".join([*lines, "", *used(results["cells"]), ""])


def _columns(cells: Sequence[dict[str, Any]], shapes: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """By title, how to write a figure, and the figures at these shapes."""
    found = {(tuple(cell["shape"]), cell["kind"], cell["peer"]): cell for cell in cells}
    peers = list(dict.fromkeys(cell["peer"] for cell in cells))
    counts = [operations(shape, "forward") for shape in shapes]
    columns: dict[str, Any] = {"operations, forward": ((lambda count: f"{count / 1e9:.2g} GF"), counts)}
    for kind in KINDS:
        for peer in peers:
            times = [statistics.median(found[shape, kind, peer]["seconds"]) for shape in shapes]
            columns[f"{peer}, {kind}"] = race.seconds, times
        for peer in peers:
            sizes = [found[shape, kind, peer]["temporary_bytes"] for shape in shapes]
            columns[f"memory of {peer}, {kind}"] = memory, sizes
    return columns
