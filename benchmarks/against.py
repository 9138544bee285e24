"""Ours in this tree and at another commit, in turn, each in a process of its own.

This tree's code times both (`benchmarks.tree`).
"""

import io
import math
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import grid, race, tree
from benchmarks.markdown import origin, sizes, table, threads

ROOT = Path(__file__).parents[1]
NOW, THEN = "now", "then"
TINY = (1, 4, 8, 8)
ROUNDS = 15


def run(commit: str, shapes: Sequence[tuple[int, ...]], rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Time forward and training at every shape, and a call with lengths at a tiny one."""
    start = time.perf_counter()
    cases = [(TINY, tree.CALL), *((shape, kind) for shape in shapes for kind in ("forward", "training"))]
    cells = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        found = checkout(commit, folder)
        folders = {NOW: ROOT, THEN: folder}
        commands = {which: ["benchmarks.tree"] for which in folders}
        with race.started(commands, grid.ENVIRONMENTS["cpu"], folders) as processes:
            for which, process in processes.items():
                if not Path(imported := process.ask("imported")).is_relative_to(folders[which]):
                    raise RuntimeError(f"the process in {folders[which]} imported {imported}")
            for shape, kind in cases:
                say(f"{sizes(shape)}: {kind}")
                race.rounds(processes, 1, "prepare", kind, *shape)
                for which, times in race.rounds(processes, rounds, "run").items():
                    cells.append({"shape": shape, "kind": kind, "peer": which, **race.summary(times)})
    return {
        "grid": "compare",
        "commit": found,
        **grid.where("cpu", ("jax", "lstmjax")),
        "took_seconds": time.perf_counter() - start,
        "cells": cells,
    }


def checkout(commit: str, folder: Path) -> str:
    """Put the library of a commit and the benchmarks of this tree into a folder, and return the commit's full name."""
    git = partial(subprocess.run, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    found = git(["git", "rev-parse", "--verify", f"{commit}^{{commit}}"]).stdout.decode().strip()
    with tarfile.open(fileobj=io.BytesIO(git(["git", "archive", found, "lstmjax"]).stdout)) as archive:
        archive.extractall(folder, filter="data")
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    return found


def section(results: dict[str, Any]) -> str:
    """A row for each case: both times and their ratio; and the geometric means of the ratios."""
    found: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for cell in results["cells"]:
        found.setdefault((tuple(cell["shape"]), cell["kind"]), {})[cell["peer"]] = cell["seconds"]
    rows = []
    for (shape, kind), times in found.items():
        texts = [race.seconds(statistics.median(times[which])) for which in (THEN, NOW)]
        rows.append([sizes(shape), kind, *texts, _text(race.ratio(times[NOW], times[THEN]))])
    lines = [*table(["B, T, inputs, units", "", THEN, NOW, f"{NOW} / {THEN}"], rows), ""]
    for title, kinds in (("forward", ["forward"]), ("training", ["training"]), ("both", ["forward", "training"])):
        chosen = [times for (_, kind), times in found.items() if kind in kinds]
        if chosen:
            lines.append(f"- The geometric mean of {NOW} / {THEN}, {title}: {_text(mean(chosen))}.")
    head = f"{origin(results)}. {NOW} is this tree, {THEN} is {results['commit']}; ratios are medians of paired rounds"
    return "\n".join(["## Two trees", "", f"{head}. {threads(results['cells'])}", "", *lines, ""])


def mean(cases: Sequence[dict[str, list[float]]]) -> tuple[float, float, float]:
    """The geometric mean of the cases' ratios in each round: the median over rounds, with quartiles."""
    logs = [[math.log(a / b) for a, b in zip(times[NOW], times[THEN], strict=True)] for times in cases]
    return race.quartiles([math.exp(statistics.fmean(each)) for each in zip(*logs, strict=True)])


def _text(ratio: tuple[float, float, float]) -> str:
    middle, low, high = ratio
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"
