"""The training state on disk, by Orbax: whole or not there at all, and read only if every byte is the one written."""

import hashlib
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from os import strerror
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments import mesh, runs
from experiments.runs import RunError
from experiments.train import TrainState

SUMS = "SHA256SUMS"
PARTIAL = ".partial"
ASIDE = ".corrupt"

# What goes wrong in Orbax's threads is raised here too; the logs would bury that under their tracebacks.
for name in ("absl", "asyncio"):
    logging.getLogger(name).setLevel(logging.CRITICAL)


class Checkpoints:
    """The newest few states of one run, each in a folder named by its step.

    Orbax keeps no sum of its data: a bit that flips there comes back as another number. So each folder holds
    the sums of its files, which `sha256sum -c SHA256SUMS` reads too, and has its name only once they are written. Of
    several processes each writes its part, and the leading one the sums and the name.
    """

    def __init__(self, folder: Path, keep: int = 3):
        self.folder = folder
        self._keep = keep
        self._orbax = ocp.Checkpointer(ocp.StandardCheckpointHandler())

    def save(self, state: TrainState) -> None:
        step = int(state.step)
        folder, partial = self.path(step), self.folder / f"{step}{PARTIAL}"

        def clear() -> None:
            with _writing(folder):
                self.folder.mkdir(exist_ok=True)
                for left in self.folder.glob(f"*{PARTIAL}*"):
                    shutil.rmtree(left)

        def name() -> None:
            with _writing(folder):
                (partial / SUMS).write_text(_sums(partial), encoding="utf-8")
                partial.rename(folder)
                for old in map(self.path, self.steps()[self._keep :]):
                    shutil.rmtree(old.rename(old.with_name(old.name + PARTIAL)))

        mesh.by_leader(clear)
        with _writing(folder):
            self._orbax.save(partial.absolute(), args=ocp.args.StandardSave(state))
        mesh.by_leader(name)

    def path(self, step: int) -> Path:
        return self.folder / str(step)

    def steps(self) -> list[int]:
        """Steps of all checkpoints that have their name, newest first."""
        return sorted((int(path.name) for path in self.folder.glob("*") if path.name.isdecimal()), reverse=True)

    def newest(self) -> tuple[int | None, dict[Path, str]]:
        """The step of the newest whole checkpoint, and what is wrong with each that is newer."""
        wrong: dict[Path, str] = {}
        for step in self.steps():
            fault = _fault(self.path(step))
            if fault is None:
                return step, wrong
            wrong[self.path(step)] = fault
        return None, wrong

    def latest(self) -> int | None:
        return self.newest()[0]

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Load that state onto the devices of `like`, which must be a state of the same run."""
        path = self.path(step)
        metadata: Any = self._orbax.metadata(path.absolute())
        _check_same(path, "the array", _arrays(metadata.item_metadata.tree), _arrays(like))
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored: Any = self._orbax.restore(path.absolute(), args=ocp.args.StandardRestore(shapes))
        _check_same(path, "the", _drawn(restored.key, restored.step), _drawn(like.key, step))
        return restored

    def set_aside(self, after: int) -> None:
        """Takes their names from those after a step, so that none is mistaken for what will be written there."""
        for path in (self.path(step) for step in self.steps() if step > after):
            aside = path.with_name(path.name + ASIDE)
            with runs.writing(aside):
                if aside.exists():
                    shutil.rmtree(aside)
                path.rename(aside)


def _sums(folder: Path) -> str:
    return "".join(f"{found}  {name}\n" for name, found in _digests(folder).items())


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / SUMS:
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _fault(folder: Path) -> str | None:
    """Which file is not as it was written."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
        found = _digests(folder)
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    written = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in sorted(written.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if found[name] != written.get(name):
            return f"{name} is not as {SUMS} has it"
    return None


def _arrays(tree: Any) -> dict[str, str]:
    paths = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(k, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}" for k, x in paths}


def _drawn(key: Any, step: Any) -> dict[str, str]:
    """State that decides which data comes next."""
    return {"key of the data, which is made of train.seed,": str(np.asarray(key).tolist()), "step": str(int(step))}


def _check_same(path: Path, what: str, there: dict[str, str], here: dict[str, str]) -> None:
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            found, expected = there.get(name, "not there"), here.get(name, "not there")
            raise RunError(f"{path} is not of this run: {what} {name} is {found}; in this run it is {expected}")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """As `runs.writing`, for Orbax too, which passes on what the system said as a ValueError."""
    with runs.writing(path):
        try:
            yield
        except ValueError as error:
            said = re.search(r"os_error_code='(\d+)'", str(error))
            if said is None:
                raise
            number = int(said[1])
            raise OSError(number, strerror(number)) from None
