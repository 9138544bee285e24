"""Times of a call here, stored as StableHLO, and in ONNX Runtime: `python -m benchmarks.export [--rounds 50]`.

The same weights, each in a process of its own, from NumPy's inputs to NumPy's outputs with the threads that each takes
by itself. Rounds are interleaved; ratios to jitted `apply` are medians of ratios taken round by round, with their
quartiles. `pip install -e '.[peers]'` brings ONNX Runtime.
"""

import argparse
import importlib
import platform
import statistics
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import race
from benchmarks.markdown import used
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
    """In its own process: leave the outputs in a file, then time calls."""
    batch, steps, inputs, units, layers, directions = size
    params = stack.init(jax.random.key(0), inputs, (units,) * layers, bidirectional=directions == 2)
    xs = np.random.default_rng(0).normal(size=(batch, steps, inputs)).astype(np.float32)
    call = MODELS[name](params)
    np.save(path, call(xs))

    race.serve({"run": race.Timer(lambda: np.asarray(call(xs)), *race.INSIDE)})


def measure(size: tuple[int, ...], rounds: int) -> tuple[list[str], list[dict[str, Any]]]:
    """A cell for each model and the largest difference between their outputs; and the timings of each."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{number}.npy" for number, name in enumerate(MODELS)}
        told = ["--sizes", ",".join(map(str, size))]
        commands = {n: ["benchmarks.export", "--serve", n, "--path", str(path), *told] for n, path in paths.items()}
        with race.started(commands) as processes:
            found = {name: race.summary(each) for name, each in race.rounds(processes, rounds, "run").items()}
            outputs = [np.load(path) for path in paths.values()]
    off = max(np.abs(each - outputs[0]).max() for each in outputs)
    first, *others = (timing["seconds"] for timing in found.values())
    cells = [race.seconds(statistics.median(first)), *(race.beside(taken, first) for taken in others), f"{off:.1e}"]
    return cells, [timing | {"case": ", ".join(map(str, size)), "peer": name} for name, timing in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description="Calls here, stored as StableHLO, and in ONNX Runtime.")
    parser.add_argument("--rounds", type=race.count, default=50, help="timed rounds over all of a size, at least 2")
    parser.add_argument("--sizes", nargs="+", default=SIZES, type=sizes, help=NAMES.replace(", ", ","))
    parser.add_argument("--serve", choices=MODELS, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        return serve(given.serve, given.sizes[0], given.path)
    libraries = ", ".join(f"{name} {version(name)}" for name in ("jax", "onnxruntime"))
    print(f"{libraries}, {platform.processor() or platform.machine()}\n")
    print(f"| {NAMES} | " + " | ".join([*MODELS, "outputs apart"]) + " |\n| --- |" + " --- |" * (len(MODELS) + 1))
    timings = []
    for size in given.sizes:
        cells, found = measure(size, given.rounds)
        timings += found
        print(f"| {', '.join(map(str, size))} | " + " | ".join(cells) + " |", flush=True)
    print("", *used(timings), sep="\n")


def sizes(text: str) -> tuple[int, ...]:
    size = tuple(int(number) for number in text.split(","))
    if len(size) != 6:
        raise argparse.ArgumentTypeError(f"{NAMES}, such as 1,50,64,128,1,1; got {text!r}.")
    return size


if __name__ == "__main__":
    main()
