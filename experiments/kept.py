"""Data that a run keeps, so that it is read in the same way later and other data is noticed.

`data.json` in the run's folder has the vocabulary, tags and scaling of the run, and what `files.described` says of each
file that was read. It is written when the run begins, and again when it goes on with other data: `files` are then those
that it was trained on last, and `changed` says what became of the first ones. It has a sum of its own.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from experiments import runs
from experiments.config import Config
from experiments.data.files import DataError, Prints, described, digest
from experiments.runs import Run, RunError
from experiments.task import Task
from experiments.tasks import TASKS

SHOWN = 5  # files in an error


def first(config: Config, task: Task) -> str | None:
    """Content of `data.json` for a run that begins now; None where the task draws its data."""
    return _text({"kept": dict(task.kept), "files": task.read}) if reads(config) else None


def reads(config: Config) -> bool:
    """True if the task reads data and does not draw it."""
    return hasattr(TASKS[config.task], "sources")


def prints(config: Config) -> Prints:
    """Size and sha256 of all data that the task reads now."""
    try:
        return {name: described(name, content) for name, content in TASKS[config.task].sources(config.data)}
    except DataError as error:
        raise RunError(str(error)) from None


def load(run: Run, config: Config) -> dict[str, Any]:
    """Load what a run keeps; an empty dictionary where the task draws its data."""
    if not reads(config):
        return {}
    try:
        found = json.loads(run.data.read_text(encoding="utf-8"))
        whole = found.pop("sha256") == digest(found)
    except FileNotFoundError:
        raise RunError(
            f"{run.folder} has no {run.data.name}: it began before runs kept their vocabulary, tags, scaling and the "
            f"hash of their data. Train again with `python -m experiments run {run.config}`"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else repr(error)
        raise RunError(f"{run.data} cannot be read: {reason}; train again with `run {run.config}`") from None
    if not whole:
        raise RunError(
            f"{run.data} is not as the run wrote it: its content has another sum than its sha256 says. Put the old "
            f"file back, or train again with `run {run.config}`"
        )
    return found


def check(run: Run, config: Config, found: Mapping[str, Any], accepted: bool, result: bool = False) -> list[str]:
    """Refuse data that is not what the run was trained on, unless that is accepted; returns what differs.

    To go on from a result, data must be what that is of: its baselines are of the same.
    """
    if not reads(config):
        if accepted:
            raise RunError(f"{run.folder}: the task {config.task} draws its data, so --data-changed means nothing")
        return []
    differing = differences(found["files"], prints(config))
    was = "was resumed with" if "changed" in found else "began with"
    if differing and result:
        raise RunError(
            f"{run.folder} has its result, but the data is not what the run {was}:{listed(differing)}\nPut that data "
            f"back: the baselines that are missing must be of the data that the result is of"
        )
    if differing and not accepted:
        raise RunError(
            f"{run.folder}: the data is not what the run {was}:{listed(differing)}\nPut the old data back, train "
            f"again with `run {run.config}`, or accept the new data with --data-changed: the run goes on reading it by "
            f"its own vocabulary, tags and scaling"
        )
    return differing


def accept(run: Run, found: Mapping[str, Any], differing: list[str], task: Task) -> None:
    """Write down that the run is trained on this data from here on, and no longer on what it was before."""
    changed = [*found.get("changed", ()), *differing]
    runs.write(run.data, _text({**found, "files": task.read, "changed": changed}))


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


def _text(found: Mapping[str, Any]) -> str:
    """As JSON, with a sum of all the rest."""
    found = dict(found) | {"files": dict(sorted(found["files"].items()))}
    return json.dumps(found | {"sha256": digest(found)}, indent=1) + "\n"


def _figures(found: Mapping[str, Any]) -> str:
    counts = [f"{found[unit]:,} {unit}" for unit in ("bytes", "lines") if unit in found]
    return f"{', '.join(counts)} and sha256 {found['sha256'][:16]}..."
