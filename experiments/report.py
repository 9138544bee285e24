"""Output of a run: progress while it trains, a table and a picture when it is done."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from experiments.task import FAILED, Task

Rows = Mapping[str, Mapping[str, Any]]
"""Figures by their names, of each row of a table; of a baseline that failed the reason, as `FAILED`."""
SHARES = ("accuracy", "f1", "exact match")  # drawn on a linear scale, other figures by their logarithms

console = Console(
    highlight=False, markup=False, emoji=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160
)


@contextlib.contextmanager
def progress(steps: int, first: int) -> Iterator[Callable[[dict, float], None]]:
    """A bar on a terminal, ten plain lines elsewhere; call what it yields with each line of metrics."""
    if not console.is_terminal:
        tenth = first * 10 // steps

        def say(line: dict, rate: float) -> None:
            nonlocal tenth
            if line["step"] * 10 // steps > tenth:
                tenth = line["step"] * 10 // steps
                console.print(f"step {line['step']}/{steps}  {_figures(line)}  {rate:.3g} steps/s")

        yield say
        return

    columns = ("{task.completed:.0f}/{task.total:.0f}", "{task.fields[figures]}", "{task.fields[speed]}")
    shown = [BarColumn(), *map(TextColumn, columns), TimeRemainingColumn()]
    with Progress(*shown, console=console) as bar:
        job = bar.add_task("train", total=steps, completed=first, figures="compiling", speed="")

        def update(line: dict, rate: float) -> None:
            figures = f"loss {number(line['loss'])}"
            bar.update(job, completed=line["step"], figures=figures, speed=f"{rate:.3g} steps/s")

        yield update


def table(rows: Rows, baselines: Rows, title: str) -> Table:
    """Measured figures beside those of the baselines, on the test split; what errors say is no markup."""
    names = list(next(iter(rows.values())))
    shown = Table("test", *names, title=Text(title), title_justify="left")
    for row, figures in rows.items():
        shown.add_row(row, *(number(figures.get(name)) for name in names), style="bold")
    for row, figures in baselines.items():
        failed = [Text(f"{FAILED}: {figures[FAILED]}")] if FAILED in figures else []
        shown.add_row(Text(row), *failed, *(number(figures.get(name)) for name in names[len(failed) :]))
    return shown


def rising(name: str) -> bool:
    """True if larger values of this figure are better."""
    return name.startswith(SHARES)


def number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 10_000 else f"{float(value):.4g}"


def curve(path: Path, task: Task, lines: list[dict], rows: Rows, baselines: Rows, title: str) -> None:
    """Loss, and the task's metric or measure, over the training sequences, with baselines as level lines."""
    from matplotlib.figure import Figure  # takes a second

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    beside = task.metric if task.metric != "loss" else task.measure
    for axes, metric in ((left, "loss"), (right, beside)):
        _lines(axes, task, lines, rows, baselines, metric)
    figure.suptitle(title, parse_math=False)
    figure.savefig(path, dpi=120)


def logarithmic(axes) -> None:
    """Logarithms along y, and plain numbers beside them."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}" if high < 20 * low else "")


def _lines(axes, task: Task, lines: list[dict], rows: Rows, baselines: Rows, metric: str) -> None:
    names = dict.fromkeys(name for line in lines for name in line)
    for name in names:
        if name == metric or name.endswith(f"_{metric}"):
            points = [(line["sequences"], line[name]) for line in lines if name in line]
            label = "train_loss" if name == "loss" else name
            axes.plot(*zip(*points, strict=True), label=label.replace("_", " "), marker="." * (len(points) < 40))
    for color, (name, figures) in zip(("C4", "C5", "C6", "C7"), baselines.items(), strict=False):
        if metric in figures:
            value = figures[metric]
            axes.axhline(value, color=color, linestyle="--", label=f"{name} on test, {number(value)}")
    for name, figures in rows.items():
        if metric in figures:
            label = f"{name} on test, {number(figures[metric])}"
            axes.plot(lines[-1]["sequences"], figures[metric], "k*", markersize=10, label=label)
    if task.criterion and metric == task.measure:
        mean = task.criterion.mean
        axes.axhline(mean, color="grey", linestyle=":", label=f"criterion, mean below {mean}")
    if not rising(metric):
        logarithmic(axes)
    unit = f", {task.unit}" if task.unit and metric == task.metric else ""
    axes.set(xlabel="training sequences", ylabel=metric + unit)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)


def _figures(line: dict) -> str:
    shown = {k: v for k, v in line.items() if k not in ("step", "sequences")}
    return "  ".join(f"{name.replace('_', ' ')} {number(value)}" for name, value in shown.items())
