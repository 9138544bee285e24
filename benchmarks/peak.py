"""The fastest product of square matrices in float32, in every library that is there, each with all cores."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks import CORES, race

SIZES = {"cpu": (512, 1024, 2048), "gpu": (2048, 4096, 8192), "tpu": (2048, 4096, 8192)}
ROUNDS = 3
SECONDS = 0.1, 0.1  # of calls ahead of the clock, and of timed ones


def jax(size: int) -> Callable[[], Any]:
    jax: Any = importlib.import_module("jax")
    square = jax.numpy.ones((size, size), jax.numpy.float32)
    product = jax.jit(jax.numpy.matmul).lower(square, square).compile()
    return lambda: jax.block_until_ready(product(square, square))


def numpy(size: int) -> Callable[[], Any]:
    square = np.ones((size, size), np.float32)
    return lambda: square @ square


def torch(size: int) -> Callable[[], Any]:
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(CORES)
    cuda = torch.cuda.is_available()
    square = torch.ones(size, size, device="cuda" if cuda else "cpu")

    def product():
        torch.mm(square, square)
        if cuda:
            torch.cuda.synchronize()

    return product


def onnx_runtime(size: int) -> Callable[[], Any]:
    onnx: Any = importlib.import_module("onnx")
    runtime: Any = importlib.import_module("onnxruntime")
    kind = onnx.TensorProto.FLOAT
    a, b, c = (onnx.helper.make_tensor_value_info(name, kind, (size, size)) for name in "abc")
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["a", "b"], ["c"])], "product", [a, b], [c])
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = CORES
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    square = np.ones((size, size), np.float32)
    return lambda: session.run(["c"], {"a": square, "b": square})


# By name: the product, the distributions that it needs, and where it runs.
PRODUCTS: dict[str, tuple[Callable[[int], Callable[[], Any]], tuple[str, ...], tuple[str, ...]]] = {
    "JAX": (jax, ("jax",), ("cpu", "gpu", "tpu")),
    "NumPy": (numpy, ("numpy",), ("cpu",)),
    "PyTorch": (torch, ("torch",), ("cpu", "gpu")),
    "ONNX Runtime": (onnx_runtime, ("onnxruntime", "onnx"), ("cpu",)),
}


def commands(on: str) -> dict[str, list[str]]:
    """A process for each library that is installed and runs there."""
    return {
        name: ["benchmarks.peak", name]
        for name, (_, distributions, places) in PRODUCTS.items()
        if on in places and race.missing(distributions) is None
    }


def measure(
    processes: Mapping[str, race.Process], on: str, before: Mapping[str, dict[str, float]] | None = None
) -> dict[str, dict[str, float]]:
    """By library, the most operations per second, now or before, and the threads and CPU seconds in a second there."""
    best = dict(before or {})
    for size in SIZES[on]:
        for name, rounds in race.rounds(processes, ROUNDS, "product", size).items():
            for one in rounds:
                found = {"speed": 2 * size**3 / one["seconds"], "threads": one["threads"], "cpu": one["cpu"]}
                best[name] = max(best.get(name, found), found, key=lambda each: each["speed"])
    return best


if __name__ == "__main__":
    made = PRODUCTS[sys.argv[1]][0]
    race.serve({"product": lambda size: race.timed(made(size), *SECONDS)})
