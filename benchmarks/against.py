"""Ours in this tree and at another commit, in turn, each in a process of its own.

This tree's code times both (`benchmarks.tree`).
"""

import argparse
import io
import math
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import grid, race, tree
from benchmarks.grid import ROOT
from benchmarks.markdown import origin, sizes, table, used

NOW, THEN = "now", "then"
TINY = (1, 4, 8, 8)
ROUNDS = 15


def run(commit: str, shapes: Sequence[tuple[int, ...]], rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Time forward and training at every shape, and a call with lengths at a tiny one.

    Args:
        commit: its full name, as `commit` gives it.
        shapes: each a batch, steps, inputs and units.
        rounds: of each case.
        say: takes a line for each case.
    """
    start, where = time.perf_counter(), grid.where("cpu", ("jax", "lstmjax"))
    cases = [(TINY, tree.CALL), *((shape, kind) for shape in shapes for kind in ("forward", "training"))]
    cells = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        checkout(commit, folder)
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
        "commit": commit,
        **where,
        "took_seconds": time.perf_counter() - start,
        "cells": cells,
    }


def commit(name: str) -> str:
    """The full name of a commit that has the library, as argparse calls it."""
    for asked in (f"{name}^{{commit}}", f"{name}:lstmjax"):
        if not grid.git("rev-parse", "--verify", asked):
            raise argparse.ArgumentTypeError(
                f"git finds no {asked} in {ROOT}; name a commit that has lstmjax, as `git log --oneline` lists them"
            )
    return grid.git("rev-parse", "--verify", f"{name}^{{commit}}")


def checkout(commit: str, folder: Path) -> None:
    """Put the library of a commit and the benchmarks of this tree into a folder."""
    command = ["git", "archive", commit, "lstmjax"]
    packed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")


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
    head = f"{origin(results)}. {NOW} is the tree it ran in, {THEN} is {results['commit']}"
    head += "; ratios are medians of paired rounds."
    return "\n".join(["## Two trees", "", head, "", *lines, "", *used(results["cells"]), ""])


def mean(cases: Sequence[dict[str, list[float]]]) -> tuple[float, float, float]:
    """The geometric mean of the cases' ratios in each round: the median over rounds, with quartiles."""
    logs = [[math.log(a / b) for a, b in zip(times[NOW], times[THEN], strict=True)] for times in cases]
    return race.quartiles([math.exp(statistics.fmean(each)) for each in zip(*logs, strict=True)])


def _text(ratio: tuple[float, float, float]) -> str:
    middle, low, high = ratio
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"
