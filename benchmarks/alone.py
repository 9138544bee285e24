"""One layer of LSTM as a user of each library writes it: the other side of the check of the grid.

A process for one library at one shape, with the library's own defaults: no setting, no weight and no code of
`benchmarks.peers`, so that a mistake there cannot be made here too. `python -m benchmarks.alone NAME KIND B T INPUTS
UNITS` answers to `benchmarks.race`.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import race

SECONDS = 0.1, 0.1  # of calls ahead of the clock, and of timed ones
Call = Callable[[], Any]


def command(name: str, kind: str, shape: tuple[int, ...]) -> list[str]:
    return ["benchmarks.alone", name, kind, *map(str, shape)]


def call(name: str, kind: str, shape: tuple[int, ...]) -> Call:
    """The timed call: it returns the outputs, or their gradients, when all is computed."""
    batch, steps, inputs, units = shape
    rng = np.random.default_rng(0)
    xs, dy = (rng.normal(size=(batch, steps, size)).astype(np.float32) for size in (inputs, units))
    return LIBRARIES[name](kind, xs, dy)


def _jitted(kind: str, weights: Any, apply: Callable[[Any, Any], Any], xs: np.ndarray, dy: np.ndarray) -> Call:
    import jax

    def loss(weights, xs, dy):
        return (apply(weights, xs) * dy).sum()

    weights, xs, dy = jax.tree.map(jax.numpy.asarray, (weights, xs, dy))
    if kind == "forward":
        forward = jax.jit(apply)
        return lambda: jax.block_until_ready(forward(weights, xs))
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return lambda: jax.block_until_ready(gradient(weights, xs, dy))


def ours(implementation: str) -> Callable[[str, np.ndarray, np.ndarray], Call]:
    def made(kind, xs, dy):
        import jax

        from lstmjax import lstm

        params = lstm.init(jax.random.key(0), xs.shape[-1], dy.shape[-1])
        return _jitted(kind, params, lambda p, xs: lstm.apply(p, xs, implementation=implementation)[0], xs, dy)

    return made


def flax_nnx(kind: str, xs: np.ndarray, dy: np.ndarray) -> Call:
    nnx: Any = importlib.import_module("flax.nnx")
    module = nnx.RNN(nnx.OptimizedLSTMCell(xs.shape[-1], dy.shape[-1], rngs=nnx.Rngs(0)))
    graph, weights, rest = nnx.split(module, nnx.Param, ...)
    return _jitted(kind, weights, lambda w, xs: nnx.merge(graph, w, rest, copy=True)(xs), xs, dy)


def flax_linen(kind: str, xs: np.ndarray, dy: np.ndarray) -> Call:
    import jax

    linen: Any = importlib.import_module("flax.linen")
    module = linen.RNN(linen.OptimizedLSTMCell(dy.shape[-1]))
    return _jitted(kind, module.init(jax.random.key(0), xs), module.apply, xs, dy)


def keras(kind: str, xs: np.ndarray, dy: np.ndarray) -> Call:
    keras: Any = importlib.import_module("keras")
    layer = keras.layers.LSTM(dy.shape[-1], return_sequences=True)
    layer.build(xs.shape)
    weights, rest = ([v.value for v in each] for each in (layer.trainable_variables, layer.non_trainable_variables))
    return _jitted(kind, weights, lambda w, xs: layer.stateless_call(w, rest, xs)[0], xs, dy)


def haiku(kind: str, xs: np.ndarray, dy: np.ndarray) -> Call:
    import jax

    hk: Any = importlib.import_module("haiku")

    def unrolled(xs):
        core = hk.LSTM(dy.shape[-1])
        return hk.dynamic_unroll(core, xs, core.initial_state(len(xs)), time_major=False)[0]

    module = hk.without_apply_rng(hk.transform(unrolled))
    return _jitted(kind, module.init(jax.random.key(0), xs), module.apply, xs, dy)


def equinox(kind: str, xs: np.ndarray, dy: np.ndarray) -> Call:
    import jax

    eqx: Any = importlib.import_module("equinox")
    units = dy.shape[-1]

    def apply(cell, xs):
        def one(xs):
            zero = jax.numpy.zeros(units)
            _, ys = jax.lax.scan(lambda state, x: ((after := cell(x, state)), after[0]), (zero, zero), xs)
            return ys

        return jax.vmap(one)(xs)

    return _jitted(kind, eqx.nn.LSTMCell(xs.shape[-1], units, key=jax.random.key(0)), apply, xs, dy)


def torch(kind: str, xs: np.ndarray, dy: np.ndarray) -> Call:
    torch: Any = importlib.import_module("torch")
    module = torch.nn.LSTM(xs.shape[-1], dy.shape[-1], batch_first=True)
    inputs, slopes = torch.from_numpy(xs), torch.from_numpy(dy)

    def forward():
        with torch.inference_mode():
            return module(inputs)[0]

    leaf = inputs.clone().requires_grad_()
    leaves = [leaf, *module.parameters()]
    return forward if kind == "forward" else lambda: torch.autograd.grad(module(leaf)[0], leaves, slopes)


def onnx_runtime(kind: str, xs: np.ndarray, dy: np.ndarray) -> Call:
    """The model that `lstmjax.export.onnx` writes, which is NumPy alone."""
    if kind != "forward":
        raise ValueError("ONNX Runtime computes no gradients")
    runtime: Any = importlib.import_module("onnxruntime")
    from lstmjax import LSTMParams, export

    inputs, units = xs.shape[-1], dy.shape[-1]
    shapes = (inputs, 4 * units), (units, 4 * units), (4 * units,)
    rng = np.random.default_rng(1)
    params = LSTMParams(*(rng.normal(scale=units**-0.5, size=shape).astype(np.float32) for shape in shapes))
    session = runtime.InferenceSession(export.onnx(params).SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda: session.run(["ys"], {"xs": xs})[0]


LIBRARIES: dict[str, Callable[[str, np.ndarray, np.ndarray], Call]] = {
    "lstmjax": ours("auto"),
    "lstmjax, scan": ours("scan"),
    "Flax nnx": flax_nnx,
    "Flax linen": flax_linen,
    "Keras": keras,
    "Haiku": haiku,
    "Equinox": equinox,
    "PyTorch": torch,
    "ONNX Runtime": onnx_runtime,
}


if __name__ == "__main__":
    timer = race.Timer(call(sys.argv[1], sys.argv[2], tuple(map(int, sys.argv[3:]))), *SECONDS)
    race.serve({"run": timer})
