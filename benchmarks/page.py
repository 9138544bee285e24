"""What a results file says, as Markdown."""

import json
import math
import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks import growth, overhead, race, stack
from benchmarks.markdown import memory, origin, sizes, table
from benchmarks.peers import KINDS, OURS, PEERS, operations

Results = dict[str, Any]
TITLES = {"forward": "Forward, for inference", "training": "Forward and backward: the gradients of x, W_x, W_h and b"}
SECTIONS = {"growth": growth.section, "overhead": overhead.section, "stack": stack.section}
HEAD = """# Speed

One layer of LSTM over [batch, time, features] in float32, here and in every library that is installed: the same
weights, the same arrays, each library in a process of its own. Rounds are interleaved, each in another order, since the
threads of some libraries go on spinning after a call; "Keras /" is the time of Keras over ours, the median of ratios
taken round by round, with its quartiles: above 1, ours is faster. PyTorch has as many threads as cores, pinned. Losses
are published like wins. From a clone of this repository, in a virtual environment:

```sh
python -m pip install -e '.[peers,flax]' && python -m benchmarks cpu
```

`python -m benchmarks gpu` does the same on a GPU, `growth` varies one axis at a time, `stack` runs two bidirectional
layers with lengths, and `overhead` calls from Python where there is nothing to compute; `compare` sets two results side
by side, and `page` made this page of those in [benchmarks/results](../benchmarks/results). No GPU and no TPU has been
timed. What the compilers of TPUs say of the kernel are estimates; they stand in
[design.md](design.md#the-tpu-kernel). Who has a TPU can measure it, in bfloat16 beside the other implementations, and
file what this writes, `tpu.json`:

```sh
python -m pip install -e . 'jax[tpu]' && python -m benchmarks tpu
```
"""


def page(files: Iterable[Results]) -> str:
    """docs/speed.md."""
    return "\n".join([HEAD, *map(section, files)]).rstrip()


def section(results: Results) -> str:
    """What the page says of one file."""
    return SECTIONS.get(results["grid"], tables)(results)


def stored(results: Results) -> str:
    """A results file: JSON with a line for each cell, times in four digits."""
    cells = [cell | {"seconds": [float(f"{t:.4g}") for t in cell["seconds"]]} for cell in results["cells"]]
    head = json.dumps(results | {"cells": []}, indent=1).removesuffix("[]\n}")
    return head + "[\n" + ",\n".join(map(json.dumps, cells)) + "\n]\n}\n"


def tables(results: Results) -> str:
    """All tables of one grid."""
    lines = [
        f"## The {results['grid']} grid",
        "",
        f"{origin(results)}; the fastest product of square matrices beside it ran at {results['peak'] / 1e9:.0f} GF/s.",
    ]
    lines += [f"{name} was not there." for name in results["left_out"]]
    for kind in KINDS:
        lines += ["", f"### {TITLES[kind]}", "", *times(results, kind), "", *summary(results, kind)]
    for title, field, text in (
        ("Compiling, from the Python function to the executable", "compile_seconds", race.seconds),
        ("Temporary memory, as the compiler reports it", "temporary_bytes", memory),
    ):
        lines += ["", f"### {title}", "", *figures(results, field, text)]
    lines += ["", "### The largest difference from float64, as a part of the largest number", "", *apart(results), ""]
    return "\n".join(lines)


def times(results: Results, kind: str) -> list[str]:
    """A row for each shape: ours, its speed, and how many times as long each of the others takes."""
    names = [name for name in _names(results) if any(cell["peer"] == name for cell in _of(results, kind))]
    others = [name for name in names if name != OURS]
    rows = []
    for shape, cells in _shapes(results, kind).items():
        base = cells[OURS]["seconds"]
        speed = operations(shape, kind) / statistics.median(base)
        row = [sizes(shape), race.seconds(statistics.median(base))]
        row.append(f"{speed / 1e9:.0f} GF/s, {speed / results['peak']:.0%}")
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


def figures(results: Results, field: str, text: Any) -> list[str]:
    """A row for each shape and kind, a column for each library that has such a figure."""
    cells = [cell for cell in results["cells"] if cell[field] is not None]
    names = [name for name in _names(results) if any(cell["peer"] == name for cell in cells)]
    rows = []
    for kind in KINDS:
        for shape, of in _shapes(results, kind).items():
            base = of[OURS][field]
            row = [f"{sizes(shape)}, {kind}", text(base)]
            for name in names[1:]:
                value = of[name][field]
                row.append(f"{text(value)}, x {value / base:.2f}" if base else text(value))
            rows.append(row)
    return table(["B, T, inputs, units", *names], rows)


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


def compared(first: Results, second: Results) -> str:
    """Two results side by side: median times of what both have, and their ratio."""
    before = {_key(cell): statistics.median(cell["seconds"]) for cell in first["cells"]}
    rows = []
    for cell in second["cells"]:
        if (was := before.get(_key(cell))) is not None:
            now = statistics.median(cell["seconds"])
            texts = race.seconds(was), race.seconds(now), f"x {now / was:.2f}"
            rows.append([sizes(cell["shape"]), cell["kind"], cell["peer"], *texts])
    return "\n".join(table(["B, T, inputs, units", "", "", "first", "second", "second / first"], rows))


def _key(cell: dict[str, Any]) -> tuple:
    return tuple(cell["shape"]), cell["kind"], cell["peer"]


def _names(results: Results) -> list[str]:
    return list(dict.fromkeys(cell["peer"] for cell in results["cells"]))


def _of(results: Results, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in results["cells"] if cell["kind"] == kind]


def _shapes(results: Results, kind: str) -> dict[tuple[int, ...], dict[str, dict[str, Any]]]:
    shapes: dict[tuple[int, ...], dict[str, dict[str, Any]]] = {}
    for cell in _of(results, kind):
        shapes.setdefault(tuple(cell["shape"]), {})[cell["peer"]] = cell
    return shapes
