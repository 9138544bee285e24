"""A grid of shapes through every library: what it took, what it took to compile, and how far off it was."""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import CORES, alone, growth, peak, peers, race, stack
from benchmarks.peers import OURS, PEERS, Peer


@dataclasses.dataclass(frozen=True)
class Grid:
    """Shapes, libraries, the problem at a shape, the arrays that solve it, and the shapes timed alone as well."""

    shapes: Sequence[tuple[int, ...]]
    libraries: Mapping[str, Peer]
    problem: Callable[..., Any] = peers.problem
    reference: Callable[[Any], dict[str, np.ndarray]] = peers.reference
    on: str = "cpu"
    checked: Sequence[tuple[int, ...]] = ()


ON_CPU, ON_GPU = ({name: peer for name, peer in PEERS.items() if on in peer.on} for on in ("cpu", "gpu"))
FIVE = [(32, 50, 64, 128), (64, 100, 256, 256), (16, 200, 512, 512), (128, 28, 28, 128), (1, 500, 64, 128)]
PUBLISHED = [
    *((b, 1024, 768, 768) for b in (2, 16, 64, 256)),  # FlashRNN
    *((b, 25, h, h) for b, h in ((16, 512), (32, 1024), (128, 1024), (64, 2048))),  # DeepBench, likewise the next
    *((8, 50, 1536, 1536), (16, 150, 256, 256)),
    *((32, 1000, 1024, 1024), (64, 100, 1024, 1024), (32, 336, 64, 128)),  # speech, characters, forecasts
    *((62, 100, 168, 168), (32, 100, 1000, 1000)),  # odd sizes
]
SQUARE = [(b, t, h, h) for b in (1, 32) for t in (100, 336) for h in (64, 128, 256, 512)]
CHECKED = [(1, 336, 64, 64), (32, 50, 64, 128), (64, 100, 256, 256)]
GRIDS = {
    "quick": Grid([(32, 50, 64, 128), (1, 100, 64, 64)], ON_CPU),
    "cpu": Grid([*FIVE, *SQUARE], ON_CPU, checked=CHECKED),
    "check": Grid([], ON_CPU, checked=CHECKED),
    "gpu": Grid(PUBLISHED, ON_GPU, on="gpu"),
    "tpu": Grid([(b, 512, h, h) for b, h in ((8, 128), (32, 256), (128, 512), (32, 1024))], peers.ON_TPU, on="tpu"),
    "growth": Grid(growth.SHAPES, {name: PEERS[name] for name in (OURS, "Flax nnx")}),
    "stack": Grid(stack.SHAPES, stack.PEERS, stack.problem, stack.reference),
}
ENVIRONMENTS = {
    "cpu": {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "KERAS_BACKEND": "jax"},
    # Products of all 24 bits of float32, by default of 11 there; and memory on demand, or the first process takes most
    "gpu": {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
    "tpu": {},
}
ROUNDS = 5, 31  # the fewest and the most
CHECKS = 11  # rounds of the check
TOLERANCE = 0.07  # of the time alone
APART = 0.5  # of one core: a thread fewer or more takes a whole one
ROOT = Path(__file__).parents[1]
LOAD = os.getloadavg()[0]  # of other programs, at the start


def run(name: str, budget: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Every shape of a grid, and its check; `budget` are the seconds that the rounds of one shape and kind take."""
    grid, start = GRIDS[name], time.perf_counter()
    absent = {
        peer: distribution
        for peer in grid.libraries
        if (distribution := race.missing(grid.libraries[peer].distributions))
    }
    for peer, distribution in absent.items():
        say(f"{peer} is left out: {distribution} is not installed")
    if LOAD > CORES / 4:
        say(f"other programs take {LOAD:.1f} of {CORES} cores: threads that wait for each other suffer most")
    here = [peer for peer in grid.libraries if peer not in absent]
    environment = ENVIRONMENTS[grid.on]
    cells, checks, peaks = [], [], {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as opened:
        paths = {peer: Path(folder) / f"{number}.npz" for number, peer in enumerate(here)}
        commands = {peer: ["benchmarks.grid", name, peer, str(path)] for peer, path in paths.items()}
        processes = opened.enter_context(race.started(commands, environment))
        device = processes[OURS].ask("device")
        if (device == "cpu") != (grid.on == "cpu"):
            raise RuntimeError(f"the grid {name} is for {grid.on}; JAX found {device}")
        described = where(device, {each for peer in here for each in grid.libraries[peer].distributions})
        if grid.shapes:
            products = opened.enter_context(race.started(peak.commands(grid.on), environment))
            say("the peak")
            peaks = peak.measure(products, grid.on)
            for shape in grid.shapes:
                reference = grid.reference(grid.problem(*shape))
                for kind in peers.KINDS:
                    say(f"{', '.join(map(str, shape))}: {kind}")
                    cells += _cells(processes, paths, shape, kind, reference, budget)
            peaks = peak.measure(products, grid.on, peaks)
        if grid.checked:
            for shape, kind in itertools.product(grid.checked, peers.KINDS):
                say(f"{', '.join(map(str, shape))}: {kind}, in turn with the others and alone")
                checks += _checks(processes, environment, shape, kind)
    return {
        "grid": name,
        **described,
        "left_out": absent,
        "peaks": peaks,
        "took_seconds": time.perf_counter() - start,
        "checks": checks,
        "cells": cells,
    }


def where(device: str, distributions: Iterable[str]) -> dict[str, Any]:
    """The machine, the versions of what runs on it, and the commit of this tree."""
    machine = {"device": device, "processor": _processor(), "cores": CORES, "load_before": LOAD}
    return {
        "machine": machine | {"platform": platform.platform(), "python": platform.python_version()},
        "versions": {name: importlib.metadata.version(name) for name in sorted({"jaxlib", "numpy", *distributions})},
        "tree": tree(),
    }


def tree() -> dict[str, Any] | None:
    """The commit of this tree, and whether the library or the benchmarks differ from it; None outside of a clone."""
    commit = git("rev-parse", "--verify", "HEAD")
    changed = git("status", "--porcelain", "--", "lstmjax", "benchmarks", ":!benchmarks/results")
    return {"commit": commit, "changed": bool(changed)} if commit else None


def git(*command: str) -> str:
    """Output of git for this tree; nothing where it is refused or not installed."""
    if shutil.which("git") is None:
        return ""
    ran = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True)
    return "" if ran.returncode else ran.stdout.strip()


def _cells(
    processes: dict[str, race.Process],
    paths: dict[str, Path],
    shape: tuple[int, ...],
    kind: str,
    reference: dict[str, np.ndarray],
    budget: float,
) -> list[dict[str, Any]]:
    """One for each peer that computes this kind at all."""
    able, made = _prepared(processes, kind, shape)
    start = time.perf_counter()
    race.rounds(able, 1, "run")
    round_seconds = time.perf_counter() - start
    times = race.rounds(able, int(np.clip(budget / round_seconds, *ROUNDS)), "run")
    cells = []
    for name in able:
        arrays = np.load(paths[name])
        off = {key: _off(arrays[key], reference[key]) for key in arrays.files}
        cells.append({"shape": shape, "kind": kind, "peer": name, **race.summary(times[name]), "off": off} | made[name])
    return cells


def _checks(
    processes: dict[str, race.Process], environment: Mapping[str, str], shape: tuple[int, ...], kind: str
) -> list[dict[str, Any]]:
    """Times of each library in turn with the others, and of `benchmarks.alone` in a fresh process for this case.

    A check holds if the times agree, and if as many cores worked: where threads do not help, too few of them take as
    long.
    """
    able, _ = _prepared(processes, kind, shape)
    with race.started({name: alone.command(name, kind, shape) for name in able}, environment) as fresh:
        timed = {("inside", name): partial(process.ask, "run") for name, process in able.items()}
        timed |= {("alone", name): partial(process.ask, "run") for name, process in fresh.items()}
        times = race.turns(timed, CHECKS)
    checks = []
    for name in able:
        inside, apart = race.summary(times["inside", name]), race.summary(times["alone", name])
        ratio = race.ratio(inside["seconds"], apart["seconds"])
        holds = abs(ratio[0] - 1) <= TOLERANCE and abs(inside["cpu"] - apart["cpu"]) <= APART
        found = {"inside": inside, "alone": apart, "ratio": ratio, "holds": holds}
        checks.append({"shape": shape, "kind": kind, "peer": name} | found)
    return checks


def _prepared(
    processes: dict[str, race.Process], kind: str, shape: tuple[int, ...]
) -> tuple[dict[str, race.Process], dict[str, dict[str, Any]]]:
    """The processes of the libraries that compute this kind at all, and what preparing took."""
    made = {name: process.ask("prepare", kind, *shape) for name, process in processes.items()}
    made = {name: found for name, found in made.items() if found is not None}
    for name, found in made.items():
        if (cores := found.pop("cores")) != CORES:
            raise RuntimeError(
                f"{name} may run on {cores} of {CORES} cores: the environment binds its threads, as OMP_PROC_BIND, "
                "OMP_PLACES, GOMP_CPU_AFFINITY and KMP_AFFINITY do; unset them"
            )
    return {name: processes[name] for name in made}, made


def _off(array: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference from float64, as a part of the largest number there."""
    return float(np.abs(array - reference).max() / np.abs(reference).max())


def _processor() -> str:
    """The name that Linux gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class Server:
    """One library in its own process."""

    def __init__(self, grid: str, name: str, path: Path):
        self._peer, self._problem, self._path = GRIDS[grid].libraries[name], GRIDS[grid].problem, path
        self._timer: race.Timer

    def device(self) -> str:
        import jax

        return "cpu" if jax.default_backend() == "cpu" else jax.devices()[0].device_kind

    def prepare(self, kind: str, *shape: int) -> dict[str, Any] | None:
        prepared = self._peer.prepare(kind, self._problem(*shape))
        if prepared is None:
            return None
        np.savez(self._path, **prepared.arrays(prepared.run()))
        self._timer = race.Timer(prepared.run, *race.INSIDE)
        return {
            "cores": len(os.sched_getaffinity(0)),
            "compile_seconds": prepared.compile_seconds,
            "temporary_bytes": prepared.temporary_bytes,
        }

    def run(self) -> dict[str, Any]:
        return self._timer()


if __name__ == "__main__":
    server = Server(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    race.serve({"device": server.device, "prepare": server.prepare, "run": server.run})
