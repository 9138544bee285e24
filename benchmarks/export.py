"""What a call takes here, stored as StableHLO, and in ONNX Runtime: `python -m benchmarks.export [--rounds 50]`.

The same weights, each in a process of its own, from NumPy's inputs to NumPy's outputs with the threads that each takes
by itself. Rounds are interleaved; ratios to jitted `apply` are medians of ratios taken round by round, with their
quartiles. `pip install -e '.[peers]'` brings ONNX Runtime.
"""

import argparse
import importlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lstmjax import export, stack

SIZES = [(1, 1, 64, 128, 1, 1), (1, 50, 64, 128, 1, 1), (1, 200, 128, 256, 2, 2), (32, 50, 64, 128, 2, 1)]
NAMES = "batch, time, inputs, units, layers, directions"


def jitted(params: Any) -> Callable:
    return jax.jit(lambda xs: stack.apply(params, xs)[0])


def stored(params: Any) -> Callable:
    program = export.load(export.stablehlo(params))
    return jax.jit(lambda xs: program.call(xs)[0])


def onnx_runtime(params: Any) -> Callable:
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(export.onnx(params).SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda xs: session.run(["ys"], {"xs": xs})[0]


MODELS = {"jitted apply": jitted, "StableHLO, read back": stored, "ONNX Runtime": onnx_runtime}


def serve(name: str, size: tuple[int, ...], path: Path) -> None:
    """In its own process: leave the outputs in a file, then time a call for each line of standard input."""
    batch, steps, inputs, units, layers, directions = size
    params = stack.init(jax.random.key(0), inputs, (units,) * layers, bidirectional=directions == 2)
    xs = np.random.default_rng(0).normal(size=(batch, steps, inputs)).astype(np.float32)
    call = MODELS[name](params)
    np.save(path, call(xs))
    print("ready", flush=True)
    for _ in sys.stdin:
        np.asarray(call(xs))  # it wakes threads and fills caches
        start = time.perf_counter()
        np.asarray(call(xs))
        print(time.perf_counter() - start, flush=True)


def measure(size: tuple[int, ...], rounds: int) -> list[str]:
    """A cell for each model, and the largest difference between their outputs."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{number}.npy" for number, name in enumerate(MODELS)}
        processes: dict[str, Any] = {}
        for name, path in paths.items():
            command = [sys.executable, "-m", "benchmarks.export", "--serve", name, "--path", str(path)]
            command += ["--sizes", ",".join(map(str, size))]
            processes[name] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )

        def answer(name):
            line = processes[name].stdout.readline()
            if not line:
                raise RuntimeError(f"the process of {name} ended; its own words stand above")
            return line

        try:
            for name in processes:
                answer(name)
            times: dict[str, list[float]] = {name: [] for name in processes}
            names = list(processes)
            for turn in range(rounds):
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    print("call", file=processes[name].stdin, flush=True)
                    times[name].append(float(answer(name)))
            outputs = [np.load(path) for path in paths.values()]
        finally:
            for process in processes.values():
                process.stdin.close()
                process.wait()
    off = max(np.abs(each - outputs[0]).max() for each in outputs)
    return [*cells(times), f"{off:.1e}"]


def cells(times: dict[str, list[float]]) -> list[str]:
    first, *others = times.values()
    texts = [f"{1e3 * statistics.median(first):.3f} ms"]
    for taken in others:
        ratios = [a / b for a, b in zip(taken, first, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        texts.append(f"{1e3 * statistics.median(taken):.3f} ms, x {middle:.2f} ({low:.2f} to {high:.2f})")
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description="Calls here, stored as StableHLO, and in ONNX Runtime.")
    parser.add_argument("--rounds", type=int, default=50, help="timed rounds over all of a size, at least 2")
    parser.add_argument("--sizes", nargs="+", default=SIZES, type=sizes, help=NAMES.replace(", ", ","))
    parser.add_argument("--serve", choices=MODELS, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        return serve(given.serve, given.sizes[0], given.path)
    libraries = ", ".join(f"{name} {version(name)}" for name in ("jax", "onnxruntime"))
    print(f"{libraries}, {platform.processor() or platform.machine()}\n")
    print(f"| {NAMES} | " + " | ".join([*MODELS, "outputs apart"]) + " |\n| --- |" + " --- |" * (len(MODELS) + 1))
    for size in given.sizes:
        print(f"| {', '.join(map(str, size))} | " + " | ".join(measure(size, given.rounds)) + " |", flush=True)


def sizes(text: str) -> tuple[int, ...]:
    size = tuple(int(number) for number in text.split(","))
    if len(size) != 6:
        raise argparse.ArgumentTypeError(f"{NAMES}, such as 1,50,64,128,1,1; got {text!r}.")
    return size


if __name__ == "__main__":
    main()
