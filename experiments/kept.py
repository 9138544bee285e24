"""What a run keeps of its data, so that it is read in the same way later, and so that other data is noticed.

`data.json` in the run's folder has the vocabulary, tags and scaling of the run, and of each file that was read its size
and sha256; the text files among them also say how many lines they have. It is written when the run begins.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from experiments import runs
from experiments.config import Config
from experiments.data.files import DataError
from experiments.runs import Run, RunError
from experiments.task import Task
from experiments.tasks import TASKS

Prints = dict[str, dict[str, Any]]
SHOWN = 5  # files in an error


def described(config: Config, task: Task) -> dict[str, Any] | None:
    """What `data.json` says of a run that begins now; None where the task draws its data."""
    return {"kept": dict(task.kept), "files": prints(config)} if reads(config) else None


def reads(config: Config) -> bool:
    """Whether the task reads data and does not draw it."""
    return hasattr(TASKS[config.task], "sources")


def prints(config: Config) -> Prints:
    """Size and sha256 of all data that the task reads now."""
    try:
        return {name: _print(name, content) for name, content in TASKS[config.task].sources(config.data)}
    except DataError as error:
        raise RunError(str(error)) from None


def load(run: Run, config: Config) -> dict[str, Any]:
    """What a run keeps; an empty dictionary where the task draws its data."""
    if not reads(config):
        return {}
    try:
        found = json.loads(run.data.read_text(encoding="utf-8"))
        return found | {"kept": {**found["kept"]}, "files": {**found["files"]}}
    except FileNotFoundError:
        raise RunError(
            f"{run.folder} has no {run.data.name}: it began before runs kept their vocabulary, tags, scaling and the "
            f"hash of their data. Train again with `python -m experiments run {run.config}`"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{run.data} cannot be read: {error!r}; train again with `run {run.config}`") from None


def check(run: Run, config: Config, found: Mapping[str, Any], accepted: bool) -> list[str]:
    """Refuse data that is not what the run began with, unless that is accepted; returns what differs."""
    if not reads(config):
        if accepted:
            raise RunError(f"{run.folder}: the task {config.task} draws its data, so --data-changed means nothing")
        return []
    differing = differences(found["files"], prints(config))
    if differing and not accepted:
        raise RunError(
            f"{run.folder}: the data is not what the run began with:{listed(differing)}\nPut the old data back, train "
            f"again with `run {run.config}`, or accept the new data with --data-changed: the run goes on reading it by "
            f"its own vocabulary, tags and scaling"
        )
    return differing


def accept(run: Run, found: Mapping[str, Any], differing: list[str]) -> None:
    """Write down that the run was trained on other data than it began with."""
    runs.write(run.data, json.dumps({**found, "changed": differing}, indent=1) + "\n")


def differences(before: Prints, now: Prints) -> list[str]:
    """A line for each file that is not as it was."""
    told = []
    for name in sorted(before.keys() | now.keys()):
        if name not in now:
            told.append(f"{name} is not there")
        elif name not in before:
            told.append(f"{name} is new: {_figures(now[name])}")
        elif before[name] != now[name]:
            told.append(f"{name} has {_figures(now[name])}; it had {_figures(before[name])}")
    return told


def listed(differing: Iterable[str]) -> str:
    """The first of these lines, each after a line break, and how many more there are."""
    lines = [*differing]
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "".join(f"\n  {line}" for line in [*lines[:SHOWN], *more])


def _print(name: str, content: bytes) -> dict[str, Any]:
    lines = {"lines": content.count(b"\n")} if name.endswith(".txt") else {}
    return {"bytes": len(content)} | lines | {"sha256": hashlib.sha256(content).hexdigest()}


def _figures(found: Mapping[str, Any]) -> str:
    counts = [f"{found[unit]:,} {unit}" for unit in ("bytes", "lines") if unit in found]
    return f"{', '.join(counts)} and sha256 {found['sha256'][:16]}..."
