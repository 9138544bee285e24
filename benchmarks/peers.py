"""One layer of LSTM in every library: the same weights in, the same outputs and gradients out.

"forward" is inference, ys [batch, time, units]; "training" is the gradient of sum(ys * dy) in xs, w_x, w_h and bias.
Weights and gradients go through `lstmjax.interop`, so that all can be compared number by number.
"""

import dataclasses
import importlib
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import CORES
from lstmjax import LSTMParams, interop

KINDS = ("forward", "training")


@dataclasses.dataclass(frozen=True)
class Problem:
    """The arrays of one shape in float32: weights, inputs, and the gradient of the outputs."""

    params: LSTMParams
    xs: np.ndarray
    dy: np.ndarray


def problem(batch: int, steps: int, inputs: int, units: int) -> Problem:
    rng = np.random.default_rng(0)

    def draw(*shape, scale=1.0):
        return rng.normal(scale=scale, size=shape).astype(np.float32)

    params = LSTMParams(
        w_x=draw(inputs, 4 * units, scale=inputs**-0.5),
        w_h=draw(units, 4 * units, scale=units**-0.5),
        bias=draw(4 * units, scale=0.1),
    )
    return Problem(params, draw(batch, steps, inputs), draw(batch, steps, units))


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A program ready to run: `run` returns when all is computed, `arrays` gives what it computed by name."""

    run: Callable[[], Any]
    arrays: Callable[[Any], dict[str, Any]]
    compile_seconds: float | None = None
    temporary_bytes: int | None = None


def operations(shape: tuple[int, ...], kind: str) -> int:
    """Multiplications and additions in products with matrices; the gradient takes twice as many again."""
    batch, steps, inputs, units = shape
    return 8 * batch * steps * units * (inputs + units) * (1 if kind == "forward" else 3)


def compiled(arrays: Callable[[Any], dict[str, Any]], function: Callable, *arguments: Any) -> Prepared:
    """A function of JAX with its arguments."""
    import jax

    arguments = jax.device_put(arguments)
    jax.clear_caches()
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    taken = time.perf_counter() - start
    memory = program.memory_analysis()

    def run():
        return jax.block_until_ready(program(*arguments))

    return Prepared(run, arrays, taken, None if memory is None else memory.temp_size_in_bytes)


def _named(dx: Any, gradient: Any) -> dict[str, Any]:
    return {"dx": dx, "dw_x": gradient.w_x, "dw_h": gradient.w_h, "dbias": gradient.bias}


def _on_jax(
    kind: str, given: Problem, weights: Any, apply: Callable[[Any, Any], Any], back: Callable[[Any], Any]
) -> Prepared:
    """`apply(weights, xs) -> ys`, compiled; `back` takes gradients of `weights` to those of LSTMParams."""
    import jax

    def loss(weights, xs, dy):
        return (apply(weights, xs) * dy).sum()

    def arrays(result):
        if kind == "forward":
            return {"ys": np.asarray(result)}
        return {name: np.asarray(array) for name, array in _named(result[1], back(result[0])).items()}

    if kind == "forward":
        return compiled(arrays, apply, weights, given.xs)
    return compiled(arrays, jax.grad(loss, argnums=(0, 1)), weights, given.xs, given.dy)


def ours(implementation: str, precision: str | None = None) -> Callable[[str, Problem], Prepared]:
    def prepare(kind, given):
        from lstmjax import LSTMOptions, lstm

        def apply(params, xs):
            options = LSTMOptions(precision=precision)
            return lstm.apply(params, xs, options=options, implementation=implementation)[0].astype(xs.dtype)

        return _on_jax(kind, given, given.params, apply, lambda gradient: gradient)

    return prepare


def flax_nnx(kind: str, given: Problem) -> Prepared:
    nnx: Any = importlib.import_module("flax.nnx")
    inputs, units = given.params.inputs, given.params.units
    module = nnx.RNN(nnx.OptimizedLSTMCell(inputs, units, rngs=nnx.Rngs(0)))
    nnx.update(module, interop.to_flax(given.params, module))
    graph, weights, rest = nnx.split(module, nnx.Param, ...)

    def apply(weights, xs):
        return nnx.merge(graph, weights, rest, copy=True)(xs)

    return _on_jax(kind, given, weights, apply, interop.from_flax)


def flax_linen(kind: str, given: Problem) -> Prepared:
    linen: Any = importlib.import_module("flax.linen")
    module = linen.RNN(linen.OptimizedLSTMCell(given.params.units))
    weights = {"params": {"cell": interop.to_flax(given.params)}}
    return _on_jax(kind, given, weights, module.apply, interop.from_flax)


def keras(kind: str, given: Problem) -> Prepared:
    os.environ["KERAS_BACKEND"] = "jax"  # read at the import
    keras: Any = importlib.import_module("keras")
    layer = keras.layers.LSTM(given.params.units, return_sequences=True)
    layer.build(given.xs.shape)
    layer.set_weights(interop.to_keras(given.params))
    rest = [v.value for v in layer.non_trainable_variables]

    def apply(weights, xs):
        return layer.stateless_call(weights, rest, xs)[0]

    return _on_jax(kind, given, [v.value for v in layer.trainable_variables], apply, interop.from_keras)


def haiku(kind: str, given: Problem) -> Prepared:
    hk: Any = importlib.import_module("haiku")

    def unrolled(xs):
        core = hk.LSTM(given.params.units)
        return hk.dynamic_unroll(core, xs, core.initial_state(len(xs)), time_major=False)[0]

    apply = hk.without_apply_rng(hk.transform(unrolled)).apply
    return _on_jax(kind, given, interop.to_haiku(given.params), apply, interop.from_haiku)


def equinox(kind: str, given: Problem) -> Prepared:
    import jax

    units = given.params.units

    def apply(cell, xs):
        def one(xs):
            zero = jax.numpy.zeros(units)
            _, ys = jax.lax.scan(lambda state, x: ((after := cell(x, state)), after[0]), (zero, zero), xs)
            return ys

        return jax.vmap(one)(xs)

    return _on_jax(kind, given, interop.to_equinox(given.params), apply, interop.from_equinox)


def cudnn(kind: str, given: Problem) -> Prepared:
    """`jax.experimental.rnn`, which runs on GPU alone."""
    import jax

    rnn: Any = importlib.import_module("jax.experimental.rnn")
    batch, steps, inputs = given.xs.shape
    units = given.params.units

    def apply(weights, xs):
        state = jax.numpy.zeros((1, batch, units))
        lengths = jax.numpy.full(batch, steps, jax.numpy.int32)
        return rnn.lstm(xs, state, state, weights, lengths, inputs, units, 1, 0.0, False)[0]

    def back(gradient):
        return interop.from_cudnn(gradient, inputs, units)

    return _on_jax(kind, given, interop.to_cudnn(given.params), apply, back)


def torch(kind: str, given: Problem) -> Prepared:
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(CORES)
    torch.backends.cudnn.allow_tf32 = False  # else cuDNN multiplies 11 bits of float32
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = torch.nn.LSTM(given.params.inputs, given.params.units, batch_first=True)
    module.load_state_dict(interop.to_torch(given.params))
    module = module.to(device)
    xs, dy = (torch.from_numpy(array).to(device) for array in (given.xs, given.dy))
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def forward():
        with torch.inference_mode():
            ys, _ = module(xs)
        wait()
        return ys

    leaf = xs.clone().requires_grad_()
    learned = dict(module.named_parameters())

    def training():
        ys, _ = module(leaf)
        gradients = torch.autograd.grad(ys, [leaf, *learned.values()], dy)
        wait()
        return gradients

    def arrays(result):
        if kind == "forward":
            return {"ys": result.cpu().numpy()}
        dx, *gradients = (gradient.cpu() for gradient in result)
        return _named(dx.numpy(), interop.from_torch(dict(zip(learned, gradients, strict=True))))

    return Prepared(forward if kind == "forward" else training, arrays)


def onnx_runtime(kind: str, given: Problem) -> Prepared | None:
    if kind == "training":
        return None
    from lstmjax import export

    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = CORES
    model = export.onnx(given.params).SerializeToString()
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return Prepared(lambda: session.run(["ys"], {"xs": given.xs})[0], lambda ys: {"ys": ys})


@dataclasses.dataclass(frozen=True)
class Peer:
    """A library: how it is prepared, the distributions it needs, and where it runs."""

    prepare: Callable[[str, Any], Prepared | None]
    distributions: tuple[str, ...]
    on: tuple[str, ...] = ("cpu", "gpu")
    on_jax: bool = True


OURS = "lstmjax"
PEERS = {
    OURS: Peer(ours("auto"), ("lstmjax", "jax")),
    "lstmjax, scan": Peer(ours("scan"), ("lstmjax", "jax")),
    "Flax nnx": Peer(flax_nnx, ("flax",)),
    "Flax linen": Peer(flax_linen, ("flax",)),
    "Keras": Peer(keras, ("keras",)),
    "Haiku": Peer(haiku, ("dm-haiku",)),
    "Equinox": Peer(equinox, ("equinox",)),
    "cuDNN": Peer(cudnn, ("jax",), on=("gpu",)),
    "PyTorch": Peer(torch, ("torch",), on_jax=False),
    "ONNX Runtime": Peer(onnx_runtime, ("onnxruntime", "onnx"), on=("cpu",), on_jax=False),
}
ON_TPU = {
    OURS: Peer(ours("pallas_tpu", "bfloat16"), ("lstmjax", "jax")),
    "lstmjax, fused": Peer(ours("fused", "bfloat16"), ("lstmjax", "jax")),
    "lstmjax, scan": Peer(ours("scan", "bfloat16"), ("lstmjax", "jax")),
}


def reference(given: Problem) -> dict[str, np.ndarray]:
    """Outputs and gradients in float64, by the equations and their derivatives, one step after another."""
    w_x, w_h, bias = (np.asarray(w, np.float64) for w in (given.params.w_x, given.params.w_h, given.params.bias))
    xs, dy = given.xs.astype(np.float64), given.dy.astype(np.float64)
    batch, steps, _ = xs.shape
    units = len(w_h)
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    hs, cs = np.zeros((steps + 1, batch, units)), np.zeros((steps + 1, batch, units))
    gates = np.empty((steps, 4, batch, units))
    for t in range(steps):
        i, f, g, o = np.split(xs[:, t] @ w_x + hs[t] @ w_h + bias, 4, axis=-1)
        gates[t] = i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        cs[t + 1] = f * cs[t] + i * g
        hs[t + 1] = o * np.tanh(cs[t + 1])
    dz = np.empty((steps, batch, 4 * units))
    dh = dc = np.zeros((batch, units))
    for t in reversed(range(steps)):
        i, f, g, o = gates[t]
        dh = dh + dy[:, t]
        tanh = np.tanh(cs[t + 1])
        dc = dc + dh * o * (1 - tanh**2)
        slopes = dc * g * i * (1 - i), dc * cs[t] * f * (1 - f), dc * i * (1 - g**2), dh * tanh * o * (1 - o)
        dz[t] = np.concatenate(slopes, axis=-1)
        dh, dc = dz[t] @ w_h.T, dc * f
    return {
        "ys": np.moveaxis(hs[1:], 0, 1),
        "dx": np.moveaxis(dz @ w_x.T, 0, 1),
        "dw_x": np.einsum("bti,tbg->ig", xs, dz, optimize=True),
        "dw_h": np.einsum("tbh,tbg->hg", hs[:-1], dz, optimize=True),
        "dbias": dz.sum((0, 1)),
    }
