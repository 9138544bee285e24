"""A grid of shapes through every library: what it took, what it took to compile, and how far off it was."""

import dataclasses
import importlib.metadata
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import growth, peers, race, stack
from benchmarks.peers import OURS, PEERS, Peer


@dataclasses.dataclass(frozen=True)
class Grid:
    """Shapes, libraries, the problem at a shape, and the arrays that solve it."""

    shapes: Sequence[tuple[int, ...]]
    libraries: Mapping[str, Peer]
    problem: Callable[..., Any] = peers.problem
    reference: Callable[[Any], dict[str, np.ndarray]] = peers.reference
    on: str = "cpu"


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
GRIDS = {
    "quick": Grid([(32, 50, 64, 128), (1, 100, 64, 64)], ON_CPU),
    "cpu": Grid([*FIVE, *SQUARE], ON_CPU),
    "gpu": Grid(PUBLISHED, ON_GPU, on="gpu"),
    "tpu": Grid([(b, 512, h, h) for b, h in ((8, 128), (32, 256), (128, 512), (32, 1024))], peers.ON_TPU, on="tpu"),
    "growth": Grid(growth.SHAPES, {name: PEERS[name] for name in (OURS, "Flax nnx")}),
    "stack": Grid(stack.SHAPES, stack.PEERS, stack.problem, stack.reference),
}
ROUNDS = 5, 31  # the fewest and the most
SHORT = 0.1  # seconds: what takes less is run once more ahead of the clock, which wakes threads and fills caches


def run(name: str, budget: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Every shape of a grid; `budget` are the seconds that the rounds of one shape and kind should take."""
    grid, start = GRIDS[name], time.perf_counter()
    absent = {
        peer: distribution
        for peer in grid.libraries
        if (distribution := race.missing(grid.libraries[peer].distributions))
    }
    for peer, distribution in absent.items():
        say(f"{peer} is left out: {distribution} is not installed")
    here = [peer for peer in grid.libraries if peer not in absent]
    platforms = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""} if grid.on == "cpu" else {}
    environments = {peer: grid.libraries[peer].environment | platforms for peer in here}
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        paths = {peer: Path(folder) / f"{number}.npz" for number, peer in enumerate(here)}
        commands = {peer: ["benchmarks.grid", name, peer, str(path)] for peer, path in paths.items()}
        with race.started(commands, environments) as processes:
            device = processes[OURS].ask("device")
            if (device == "cpu") != (grid.on == "cpu"):
                raise RuntimeError(f"the grid {name} is for {grid.on}; JAX found {device}")
            peak = processes[OURS].ask("peak")
            for shape in grid.shapes:
                reference = grid.reference(grid.problem(*shape))
                for kind in peers.KINDS:
                    say(f"{', '.join(map(str, shape))}: {kind}")
                    cells += _cells(processes, paths, shape, kind, reference, budget)
                peak = max(peak, processes[OURS].ask("peak"))
    distributions = {each for peer in here for each in grid.libraries[peer].distributions}
    return {
        "grid": name,
        **where(device, distributions),
        "left_out": absent,
        "peak": peak,
        "took_seconds": time.perf_counter() - start,
        "cells": cells,
    }


def where(device: str, distributions: Iterable[str]) -> dict[str, Any]:
    """The machine, and the versions of what ran on it."""
    machine = {"device": device, "processor": _processor(), "cores": len(os.sched_getaffinity(0))}
    return {
        "machine": machine | {"platform": platform.platform(), "python": platform.python_version()},
        "versions": {name: importlib.metadata.version(name) for name in sorted({"jaxlib", "numpy", *distributions})},
    }


def _cells(
    processes: dict[str, race.Process],
    paths: dict[str, Path],
    shape: tuple[int, ...],
    kind: str,
    reference: dict[str, np.ndarray],
    budget: float,
) -> list[dict[str, Any]]:
    """One for each peer that computes this kind at all."""
    made = {name: process.ask("prepare", kind, *shape) for name, process in processes.items()}
    able = {name: process for name, process in processes.items() if made[name] is not None}
    round_seconds = sum(times[0] for times in race.rounds(able, 1, "run").values())
    times = race.rounds(able, int(np.clip(budget / round_seconds, *ROUNDS)), "run")
    cells = []
    for name in able:
        arrays = np.load(paths[name])
        off = {key: _off(arrays[key], reference[key]) for key in arrays.files}
        cells.append({"shape": shape, "kind": kind, "peer": name, "seconds": times[name], "off": off} | made[name])
    return cells


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
        self._prepared: Any = None
        self._short = True

    def device(self) -> str:
        import jax

        return "cpu" if jax.default_backend() == "cpu" else jax.devices()[0].device_kind

    def peak(self) -> float:
        """Operations per second of the fastest of some products of square matrices in float32."""
        import jax

        fastest = 0.0
        for size in (512, 1024, 2048):
            square = jax.numpy.ones((size, size), jax.numpy.float32)
            product = jax.jit(jax.numpy.matmul).lower(square, square).compile()
            for _ in range(10):
                start = time.perf_counter()
                jax.block_until_ready(product(square, square))
                fastest = max(fastest, 2 * size**3 / (time.perf_counter() - start))
        return fastest

    def prepare(self, kind: str, *shape: int) -> dict[str, Any] | None:
        self._prepared = prepared = self._peer.prepare(kind, self._problem(*shape))
        if prepared is None:
            return None
        np.savez(self._path, **prepared.arrays(prepared.run()))
        self._short = True
        self._short = self.run() < SHORT
        return {"compile_seconds": prepared.compile_seconds, "temporary_bytes": prepared.temporary_bytes}

    def run(self) -> float:
        if self._short:
            self._prepared.run()
        start = time.perf_counter()
        self._prepared.run()
        return time.perf_counter() - start


if __name__ == "__main__":
    server = Server(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    race.serve({"device": server.device, "peak": server.peak, "prepare": server.prepare, "run": server.run})
