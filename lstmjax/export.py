"""Programs to deploy: StableHLO, which any JAX runs without this package, and ONNX."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from lstmjax import lstm, stack
from lstmjax._src import keywords, validation
from lstmjax._src.lstm.options import LSTMOptions
from lstmjax.bidirectional import BidirectionalState
from lstmjax.interop import gates
from lstmjax.interop.onnx import to_onnx
from lstmjax.lstm import LSTMState

PLATFORMS = ("cpu", "cuda", "tpu")
KNOWN = (*PLATFORMS, "rocm")  # JAX lowers for any name at all, and tells of a wrong one where the program is to run
SUM = 32  # bytes of a SHA-256


@keywords.explained("export.stablehlo", stack.apply, lstm.apply)
def stablehlo(
    source: gates.RECURRENT | Callable[..., Any],
    *examples: Any,
    shapes: str | Sequence[Any] | None = None,
    lengths: bool = False,
    state: bool = False,
    path: str | Path | None = None,
    platforms: Sequence[str] = PLATFORMS,
    **arguments: Any,
) -> bytes:
    """Compile a program for several platforms, with batch and time left open, into bytes that `load` reads.

    From params, the program holds the weights and computes `stack.apply`: call(xs), call(xs, lengths), call(xs, state)
    or call(xs, lengths, state) gives (ys, state), xs being [batch, time, inputs] in the dtype of the weights. States
    are plain: an LSTM's {"h": ..., "c": ...}, of two directions {"forward": ..., "backward": ...}, of a stack a tuple.
    As under jit, lengths above time count as time. There are no gradients in it. The bytes are those of `jax.export`,
    whose rules of compatibility hold: later JAX reads them for six months at least; and then the SHA-256 of those, 32
    bytes, which JAX does not read.

    Args:
        source: LSTMParams, BidirectionalParams or StackParams; or any function of arrays that jit takes.
        examples: for a function, arrays or `jax.ShapeDtypeStruct`s like those it will be called with.
        shapes: for a function, the axes of each example, those left open by a name, such as ["batch, time, _", None];
            "_" stands for what the example has there, None for all of its axes. Without shapes none is open.
        lengths: for params, whether the program takes lengths, int32 [batch].
        state: for params, whether it takes a state to start from.
        path: a file to write as well.
        platforms: those that it is to run on, among "cpu", "cuda", "tpu" and "rocm".
        arguments: for params, what else `stack.apply` takes, such as options, reverse or return_sequences; but for
            checkpoint, which is about gradients, and unroll, which needs to know the number of steps.

    Returns:
        The bytes.

    Raises:
        TypeError: examples or shapes for params, params' arguments for a function; ValueError: no platforms or unknown
        ones, checkpoint or unroll; ImportError: no flatbuffers, which the extra `export` installs; and what
        `stack.apply` or the function raises.

    >>> from lstmjax import lstm
    >>> params = lstm.init(jax.random.key(0), inputs=2, units=3)
    >>> program = load(stablehlo(params, lengths=True))  # doctest: +SKIP
    >>> ys, state = program.call(jnp.ones((8, 10, 2)), jnp.arange(8))  # doctest: +SKIP
    >>> ys.shape, state["h"].shape, program.platforms  # doctest: +SKIP
    ((8, 10, 3), (8, 3), ('cpu', 'cuda', 'tpu'))

    Of any function, with an axis left open:

    >>> program = load(stablehlo(lambda xs: xs.sum(axis=-1), jnp.ones((1, 2)), shapes=["batch, _"]))
    >>> program.call(jnp.ones((5, 2))).tolist()
    [2.0, 2.0, 2.0, 2.0, 2.0]
    """
    for name, value in {"lengths": lengths, "state": state}.items():
        validation.boolean(name, value)
    if not isinstance(platforms, tuple | list) or not platforms or any(name not in KNOWN for name in platforms):
        raise ValueError(f"platforms must be a tuple of some of {KNOWN}; got {platforms!r}.")
    if isinstance(source, gates.RECURRENT):
        if examples or shapes is not None:
            raise TypeError("params have their own shapes: examples and shapes are for a function.")
        function, specs = _of_params(source, lengths, state, arguments)
    elif callable(source):
        given = [*(name for name, on in {"lengths": lengths, "state": state}.items() if on), *arguments]
        if given:
            raise TypeError(f"{', '.join(given)} can be said of params alone; a function says by itself what it takes.")
        function = source
        specs = jax.export.symbolic_args_specs(examples, tuple(shapes) if isinstance(shapes, list) else shapes)
    else:
        raise TypeError(f"source must be params or a function; got {type(source).__name__}.")
    exported = jax.export.export(jax.jit(function), platforms=tuple(platforms))(*specs)
    program = bytes(exported.serialize())
    data = program + hashlib.sha256(program).digest()
    if path is not None:
        Path(path).write_bytes(data)
    return data


@keywords.explained("export.load")
def load(source: bytes | bytearray | str | Path) -> jax.export.Exported:
    """Read a program of `stablehlo`, whole and unchanged: of changed ones JAX takes many for good, and dies of some.

    Where this package is not installed, `jax.export.deserialize` reads the same bytes, unchecked. A program can call
    what JAX has registered, and whoever forges one can forge its sum: load none whose source you do not trust.

    Args:
        source: the bytes, or the path of a file of them.

    Returns:
        The program, to be run by its `call`, alone or inside a function under jit. It tells its `in_avals`,
        `out_avals` and `platforms`.

    Raises:
        ValueError: other bytes, or a program that this version of JAX cannot read; OSError: a file that cannot be
        read; ImportError as above.

    >>> program = load(stablehlo(jnp.tanh, jnp.ones(3)))
    >>> program.call(jnp.zeros(3)).tolist()
    [0.0, 0.0, 0.0]
    """
    name = "these bytes" if isinstance(source, bytes | bytearray) else source
    data = bytes(source) if isinstance(source, bytes | bytearray) else Path(source).read_bytes()
    program = data[:-SUM]
    if hashlib.sha256(program).digest() != data[-SUM:]:
        raise ValueError(
            f"source must be a program of export.stablehlo, whole and unchanged; the last {SUM} bytes of {name} are "
            "not the SHA-256 of the others. (jax.export.deserialize reads what jax.export alone wrote.)"
        )
    try:
        return jax.export.deserialize(bytearray(program))
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(f"{name} cannot be read by JAX {jax.__version__}, although nothing in it changed.") from error


@keywords.explained("export.onnx")
def onnx(
    params: gates.RECURRENT,
    path: str | Path | None = None,
    *,
    options: LSTMOptions = LSTMOptions(),
    reverse: bool = False,
    lengths: bool = False,
    state: bool = False,
) -> Any:
    """Make an ONNX model with `LSTM` nodes for any runtime of ONNX.

    Args:
        params: LSTMParams, BidirectionalParams or StackParams.
        path: a file to write as well.
        options: as in `interop.to_onnx`, which says what the inputs and outputs are.
        reverse: likewise.
        lengths: likewise.
        state: likewise.

    Returns:
        onnx.ModelProto.

    Raises:
        ValueError, TypeError, ImportError: what `interop.to_onnx` raises, which refuses what the node has no place for.

    >>> from lstmjax import lstm
    >>> params = lstm.init(jax.random.key(0), inputs=2, units=3)
    >>> model = onnx(params, "lstm.onnx", lengths=True)  # doctest: +SKIP
    """
    model = to_onnx(params, options, reverse=reverse, lengths=lengths, state=state)
    if path is not None:
        gates.library("onnx").save(model, path)
    return model


def _of_params(params, lengths, state, arguments):
    """A function of arrays in plain containers, and what it takes."""
    if arguments.get("checkpoint", False) is not False:
        raise ValueError("checkpoint is about gradients, of which a program has none: leave it out.")
    if arguments.get("unroll") not in (None, 1):
        raise ValueError(
            f"unroll={arguments['unroll']!r} needs the number of steps, which this program leaves open: leave it out, "
            "or export a function of examples whose time is not open."
        )
    batch, time = jax.export.symbolic_shape("batch, time")
    dtype = jnp.result_type(*jax.tree.leaves(params))
    xs = jax.ShapeDtypeStruct((batch, time, gates.layers(params)[0][0].inputs), dtype)
    like = jax.eval_shape(lambda xs: _plain(stack.apply(params, xs, **arguments)[1]), xs)
    optional = {"lengths": jax.ShapeDtypeStruct((batch,), jnp.int32), "state": like}
    names = [name for name, on in {"lengths": lengths, "state": state}.items() if on]

    def program(xs, *given):
        named = dict(zip(names, given, strict=True))
        if state:
            named["state"] = _state(named["state"])
        ys, after = stack.apply(params, xs, **named, **arguments)
        return ys, _plain(after)

    return program, (xs, *(optional[name] for name in names))


def _plain(state):
    if isinstance(state, BidirectionalState):
        return {"forward": _plain(state.forward), "backward": _plain(state.backward)}
    return {"h": state.h, "c": state.c} if isinstance(state, LSTMState) else tuple(map(_plain, state))


def _state(plain):
    if isinstance(plain, tuple):
        return tuple(map(_state, plain))
    if "forward" in plain:
        return BidirectionalState(_state(plain["forward"]), _state(plain["backward"]))
    return LSTMState(**plain)
