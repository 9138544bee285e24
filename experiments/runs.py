"""The folder of one run: what was asked, on what machine, and what came out."""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax

PACKAGES = ("lstmjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class RunError(RuntimeError):
    exit_code = 1


@dataclass(frozen=True)
class Run:
    """Paths of a run. `metrics` and `result` hold only what the config and the machine determine; times are apart."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    @property
    def environment(self) -> Path:
        return self.folder / "environment.json"

    @property
    def data(self) -> Path:
        """Data that the run keeps; missing where it is drawn. See experiments/kept.py."""
        return self.folder / "data.json"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def timings(self) -> Path:
        return self.folder / "timings.jsonl"

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    @property
    def curve(self) -> Path:
        return self.folder / "curve.png"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def lock(self) -> Path:
        return self.folder / "lock"


def create(out: str, name: str, config: str, data: str | None = None) -> Run:
    """A new folder `out/name-NNN` with the resolved config, the environment and what is kept of the data in it."""
    parent, described = Path(out), {"config_sha256": _sha256(config.encode())} | environment()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        run = _fresh(parent, name)
    except OSError as error:
        raise RunError(f"no folder for the run can be made in {out}: {error}") from None
    write(run.environment, json.dumps(described, indent=2) + "\n")
    if data is not None:
        write(run.data, data)
    write(run.config, config)  # last: a folder that has it has all
    return run


def find(folder: str) -> Run:
    run = Run(Path(folder))
    if not run.config.is_file():
        known = ", ".join(str(r.folder) for r in all_runs(run.folder.parent)) or "none"
        raise RunError(f"{folder} is not a run: it has no config.toml; runs beside it: {known}")
    if json.loads(run.environment.read_text())["config_sha256"] != _sha256(run.config.read_bytes()):
        raise RunError(f"{run.config} was changed after the run began; to train what it says now, `run` that file")
    return run


@contextlib.contextmanager
def alone(run: Run) -> Iterator[None]:
    """Within, no other process trains in the folder. The system ends this with the process, however that ends."""
    with writing(run.lock):
        file = run.lock.open("a+", encoding="utf-8")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another process"
            raise RunError(
                f"{run.folder} is being trained by {holder}; it can go on here when that has ended"
            ) from None
        except OSError as error:
            raise RunError(
                f"{run.lock} cannot be locked: {error.strerror}; --out must name a folder where files can be, so that "
                f"no two processes train in one run"
            ) from None
        with writing(run.lock):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
        yield


def differences(run: Run) -> dict[str, tuple]:
    """Differences of the machine since the run began: resuming there need not be bit for bit."""
    then, now = json.loads(run.environment.read_text()), environment()
    keys = ("python", "packages", "device", "devices", "git")
    return {key: (then[key], now[key]) for key in keys if then[key] != now[key]}


def all_runs(parent: Path) -> list[Run]:
    return [Run(path.parent) for path in sorted(parent.glob("*/config.toml"))]


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Where the system cannot write what is written within, the error names the path and the reason."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from None


def write(path: Path, text: str) -> None:
    """Replaces the whole file at once, so that a kill leaves the old or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)


def result(run: Run) -> dict | None:
    """Result of a run, None before there is one; without "baselines" until these are computed too."""
    return json.loads(run.result.read_text(encoding="utf-8")) if run.result.exists() else None


def append(path: Path, line: dict) -> None:
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read(path: Path) -> list[dict]:
    """The lines of a .jsonl file; a last line that a kill tore in two is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def truncate(path: Path, step: int) -> None:
    """Drops the metrics written after `step`: the run goes through those steps again."""
    kept = [line for line in read(path) if line["step"] <= step]
    write(path, "".join(json.dumps(line) + "\n" for line in kept))


def environment() -> dict:
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "backend": device.platform,
        "argv": sys.argv,
        "git": _git(),
    }


def _fresh(parent: Path, name: str) -> Run:
    number = 1
    while True:
        folder = parent / f"{name}-{number:03d}"
        try:
            folder.mkdir()
            return Run(folder)
        except FileExistsError:
            number += 1


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None  # run from a clone that is not installed


def _git() -> dict | None:
    """The commit of this source tree and whether it was changed since; None outside a clone."""
    here = Path(__file__).parent
    try:
        commit, changes = (
            subprocess.run(["git", *command], cwd=here, capture_output=True, text=True, check=True)
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(changes.stdout.strip())}
