"""Results files as Markdown."""

import json
import math
import statistics
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from benchmarks import against, growth, overhead, race, stack
from benchmarks.markdown import memory, origin, sizes, table, used, worked
from benchmarks.peers import KINDS, OURS, PEERS, operations

Results = dict[str, Any]
TITLES = {"forward": "Forward, for inference", "training": "Forward and backward: the gradients of x, W_x, W_h and b"}
SECTIONS = {
    "compare": against.section,
    "growth": growth.section,
    "overhead": overhead.section,
    "stack": stack.section,
}
HEAD = """# Speed

One layer of LSTM over [batch, time, features] in float32, here and in every library that is installed: the same
weights, the same arrays, each library in a process of its own. Every library may use all cores. How many worked is
measured, not read from a setting: a section shows, for each case, the CPU seconds that a process took in a second and
how many threads took them, which may have been in turn; or it says that the cores were not counted. A process is
stopped while another is timed, since the threads of some libraries spin after a call. Rounds are interleaved, each in
another order; "Keras /" is the time of Keras divided by ours, the median of ratios taken round by round, with its
quartiles: above 1, ours is faster. Shapes where we are slower are listed too. From a clone of this repository, in a
virtual environment:

```sh
python -m pip install -e '.[peers,flax]' && python -m benchmarks cpu
```

Every run of that grid ends with a check, which `python -m benchmarks check` runs by itself: at three shapes, each
library is timed in turn with the others and alone, in a fresh process that imports it, keeps its defaults and shares no
code with the grid. Times must agree within 7 %, and CPU seconds in a second within half a core.

`python -m benchmarks gpu` does the same on a GPU, `growth` varies one axis at a time, `stack` runs two bidirectional
layers with lengths, and `overhead` calls from Python where there is nothing to compute. `compare --against COMMIT`
times this tree against another commit, in turn, and `page` made this page of the files in
[benchmarks/results](../benchmarks/results). No GPU and no TPU has been timed. The estimates of TPUs' compilers for the
kernel are in [measured.md](measured.md#kernel). With a TPU you can measure it, in bfloat16 with the other
implementations, and file the result, `tpu.json`:

```sh
python -m pip install -e . 'jax[tpu]' && python -m benchmarks tpu
```
"""


def page(files: Iterable[Results]) -> str:
    """docs/speed.md."""
    return "\n".join([HEAD, *map(section, files)]).rstrip()


def section(results: Results) -> str:
    """The page's section on one file."""
    return SECTIONS.get(results["grid"], tables)(results)


def stored(results: Results) -> str:
    """A results file: JSON with a line for each cell, numbers of four digits there."""
    fields = []
    for name, value in results.items():
        text = json.dumps(value, indent=1)
        if isinstance(value, list):
            text = "[\n" + ",\n".join(json.dumps(_rounded(row)) for row in value) + "\n]"
        fields.append(f"{json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def tables(results: Results) -> str:
    """All tables of one grid."""
    lines = [f"## The {results['grid']} grid", "", f"{origin(results)}."]
    lines += [f"{name} was not installed." for name in results["left_out"]]
    if results["cells"]:
        lines += [_peak(results), *_cells(results)]
    if results["checks"]:
        lines += ["", "### In turn with the others, divided by alone", "", *checks(results)]
    return "\n".join([*lines, ""])


def _peak(results: Results) -> str:
    name, *others = sorted(results["peaks"], key=lambda name: -results["peaks"][name]["speed"])
    each = {name: f"{found['speed'] / 1e9:.0f} GF/s on {worked(found)}" for name, found in results["peaks"].items()}
    rest = f" (others: {', '.join(f'{other} {each[other]}' for other in others)})" if others else ""
    return f"The peak is the fastest product of square matrices, {each[name]} cores, by {name}{rest}."


def _cells(results: Results) -> list[str]:
    lines = []
    for kind in KINDS:
        lines += ["", f"### {TITLES[kind]}", "", *times(results, kind), "", *summary(results, kind)]
    for title, rows in (
        ("Cores", used(results["cells"])),
        (
            "Compiling, from the Python function to the executable",
            figures(results, partial(_relative, field="compile_seconds", text=race.seconds)),
        ),
        (
            "Temporary memory, as the compiler reports it",
            figures(results, partial(_relative, field="temporary_bytes", text=memory)),
        ),
        ("The largest difference from float64, as a part of the largest number", apart(results)),
    ):
        lines += ["", f"### {title}", "", *rows]
    return lines


def times(results: Results, kind: str) -> list[str]:
    """A row for each shape: ours, its speed, and how many times as long each of the others takes."""
    names = [name for name in _names(results) if any(cell["peer"] == name for cell in _of(results, kind))]
    others = [name for name in names if name != OURS]
    peak = max(found["speed"] for found in results["peaks"].values())
    rows = []
    for shape, cells in _shapes(results, kind).items():
        base = cells[OURS]["seconds"]
        speed = operations(shape, kind) / statistics.median(base)
        row = [sizes(shape), race.seconds(statistics.median(base))]
        row.append(f"{speed / 1e9:.0f} GF/s, {speed / peak:.0%}")
        for name in others:
            middle, low, high = race.ratio(cells[name]["seconds"], base)
            row.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        rows.append(row)
    return table(["B, T, inputs, units", OURS, "of the products, of the peak", *(f"{n} /" for n in others)], rows)


def summary(results: Results, kind: str) -> list[str]:
    """Means over shapes, and where ours is not the fastest."""
    shapes = _shapes(results, kind)
    lines = []
    for title, chosen in (
        ("The fastest other library in JAX", lambda name: not name.startswith(OURS) and PEERS[name].on_jax),
        *((name, name.__eq__) for name in PEERS if not PEERS[name].on_jax),
    ):
        best = {}
        for shape, cells in shapes.items():
            ratios = [race.ratio(cells[n]["seconds"], cells[OURS]["seconds"])[0] for n in cells if chosen(n)]
            if ratios:
                best[shape] = min(ratios)
        if not best:
            continue
        mean = math.exp(statistics.fmean(map(math.log, best.values())))
        lost = [f"{sizes(shape)} (x {ratio:.2f})" for shape, ratio in best.items() if ratio < 1]
        where = f"; faster than ours at {'; '.join(lost)}" if lost else ""
        lines.append(f"- {title} takes x {mean:.2f} as long, the geometric mean of {len(best)} shapes{where}.")
    return lines


def figures(results: Results, text: Callable[[dict[str, Any], dict[str, Any]], str]) -> list[str]:
    """A row for each shape and kind, and a column for each library with a `text(cell, our cell)`."""
    rows = {}
    for kind in KINDS:
        for shape, cells in _shapes(results, kind).items():
            row = {name: text(cell, cells[OURS]) for name, cell in cells.items()}
            rows[f"{sizes(shape)}, {kind}"] = row
    names = [name for name in _names(results) if any(row.get(name) for row in rows.values())]
    cells = [[head, *(row.get(name, "") for name in names)] for head, row in rows.items()]
    return table(["B, T, inputs, units", *names], cells)


def _relative(cell: dict[str, Any], base: dict[str, Any], field: str, text: Callable[[float], str]) -> str:
    """A figure, and how many times as large as ours; nothing where the library has none."""
    if cell[field] is None:
        return ""
    ratio = f", x {cell[field] / base[field]:.2f}" if cell is not base and base[field] else ""
    return text(cell[field]) + ratio


def checks(results: Results) -> list[str]:
    """A row for each library, shape and kind: times, their ratio, threads, and whether the check holds."""
    rows = []
    for check in results["checks"]:
        each = [check["inside"], check["alone"]]
        middle, low, high = check["ratio"]
        row = [check["peer"], f"{sizes(check['shape'])}, {check['kind']}"]
        row += [race.seconds(statistics.median(timing["seconds"])) for timing in each]
        row += [f"{middle:.2f} ({low:.2f} to {high:.2f})", *map(worked, each)]
        rows.append([*row, "yes" if check["holds"] else "**no**"])
    failed = [check for check in results["checks"] if not check["holds"]]
    named = "; ".join(
        f"{c['peer']} at {sizes(c['shape'])}, {c['kind']} "
        f"(x {c['ratio'][0]:.2f}, CPU {c['inside']['cpu']:.2f} and {c['alone']['cpu']:.2f})"
        for c in failed
    )
    count = f"{len(rows) - len(failed)} of {len(rows)} agree within 7 % and half a core"
    head = ["", "B, T, inputs, units", "in turn", "alone", "ratio", "cores (threads) in turn", "alone", "holds"]
    return [*table(head, rows), "", f"- {count}; these do not: {named}." if named else f"- {count}."]


def apart(results: Results) -> list[str]:
    """A row for each array, a column for each library: the worst of all shapes."""
    names = _names(results)
    rows = []
    for array in ("ys", "dx", "dw_x", "dw_h", "dbias"):
        worst = []
        for name in names:
            off = [c["off"][array] for c in results["cells"] if c["peer"] == name and array in c["off"]]
            worst.append(f"{max(off):.1e}" if off else "")
        rows.append([array, *worst])
    return table(["", *names], rows)


def _names(results: Results) -> list[str]:
    return list(dict.fromkeys(cell["peer"] for cell in results["cells"]))


def _of(results: Results, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in results["cells"] if cell["kind"] == kind]


def _shapes(results: Results, kind: str) -> dict[tuple[int, ...], dict[str, dict[str, Any]]]:
    shapes: dict[tuple[int, ...], dict[str, dict[str, Any]]] = {}
    for cell in _of(results, kind):
        shapes.setdefault(tuple(cell["shape"]), {})[cell["peer"]] = cell
    return shapes
