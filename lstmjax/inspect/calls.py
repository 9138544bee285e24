"""Which layers a function calls, and what they put out: the function is traced, and its calls are watched.

Layers know nothing of it. While JAX traces the function, a profile hook (`sys.setprofile`) looks at every call that
runs the code of a layer's public function, and reads the arguments and what is returned.
"""

import contextlib
import dataclasses
import inspect
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, UnionType
from typing import Any, NamedTuple

import jax
import jax.core
from jax.experimental.xla_metadata import set_xla_metadata
from jax.interpreters import partial_eval
from jax.tree_util import DictKey

from lstmjax import bidirectional, conv1d, crf, dense, embedding, hierarchy, lstm, residual, stack
from lstmjax.bidirectional import BidirectionalParams
from lstmjax.conv1d import Conv1DParams
from lstmjax.crf import CRFParams
from lstmjax.dense import DenseParams
from lstmjax.embedding import EmbeddingParams
from lstmjax.hierarchy import HierarchyParams
from lstmjax.inspect.layers import KINDS, Node, Path, nodes, outermost, titled, width
from lstmjax.lstm import LSTMParams
from lstmjax.stack import StackParams

_traced = itertools.count()


@dataclasses.dataclass
class Call:
    """A call of a layer.

    Args:
        title: the path of its params in the arguments, where that is known, and what it is.
        path: that path.
        params: those of the layer.
        output: the axes of what it returned, with their sizes.
        within: the calls of layers that it made.
    """

    title: str
    path: Path
    params: Any
    output: str = ""
    within: list["Call"] = dataclasses.field(default_factory=list)

    def look(self) -> Any:
        """What tells it from another call."""
        return self.title, self.output, [call.look() for call in self.within]


class Watched(NamedTuple):
    """What was seen of a function.

    Args:
        calls: of layers, in their order.
        unused: layers in the arguments on which nothing that is returned depends.
        params: all layers in the arguments, and those that the function brought along.
    """

    calls: list[Call]
    unused: list[Node]
    params: list[Any]


def watch(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Watched:
    """Trace a function with its arguments, of which what is no array stays as it is."""
    while isinstance(function, jax.stages.Wrapped):
        function = vars(function)["__wrapped__"]
    signature = inspect.signature(function)
    leaves, tree = jax.tree.flatten(dict(signature.bind(*args, **kwargs).arguments))
    is_array = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves]

    def filled(arrays: Iterable[Any]) -> inspect.BoundArguments:
        """The arguments, with other things in the places of arrays."""
        given = iter(arrays)
        mixed = [next(given) if array else leaf for leaf, array in zip(leaves, is_array, strict=True)]
        return inspect.BoundArguments(signature, jax.tree.unflatten(tree, mixed))

    recorder = _Recorder()

    def traced(*arrays: Any) -> Any:
        arguments = filled(arrays)
        for layer in _layers(arguments):
            recorder.learn(layer)
        with recorder.recording():
            return function(*arguments.args, **arguments.kwargs)

    arrays = [leaf for leaf, at in zip(leaves, is_array, strict=True) if at]
    # What JAX has traced before it does not trace again, but under metadata that are new to it.
    with set_xla_metadata(lstmjax_summary=next(_traced)):
        jaxpr = jax.make_jaxpr(traced)(*arrays).jaxpr
    _, reached = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    layers = list(_layers(filled(arrays)))
    used = {
        node.path: any(jax.tree.leaves(node.value))
        for layer in _layers(filled(reached))
        for node in nodes(layer.value, layer.path)
    }
    unused = [node for layer in layers for node in _unused(layer, used)]
    return Watched(recorder.calls, unused, [*(layer.value for layer in layers), *recorder.brought.values()])


def _layers(arguments: inspect.BoundArguments) -> list[Node]:
    """The outermost layers in arguments; only where several arguments have some do paths begin with their names."""
    found = {}
    for name, value in arguments.arguments.items():
        several = arguments.signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
        named = {f"{name}[{number}]": each for number, each in enumerate(value)} if several else {name: value}
        found |= {name: layers for name, each in named.items() if (layers := list(outermost((each,))))}
    return [
        Node((DictKey(name), *layer.path[1:]) if len(found) > 1 else layer.path[1:], layer.value)
        for name, layers in found.items()
        for layer in layers
    ]


def _unused(layer: Node, used: dict[Path, bool]) -> Iterator[Node]:
    if not used[layer.path]:
        yield layer
        return
    for part in outermost(layer.value, layer.path):
        yield from _unused(part, used)


@dataclasses.dataclass(frozen=True)
class _Function:
    """A layer's public function.

    Args:
        run: the function, whose first argument is params.
        of: the params that it takes as a layer of its own; it may take others, which it hands on.
        steps: the axes of what it returns between the batch axes and the last one, from its arguments.
        last: whether there is a last one.
        is_row: whether it is a layer by itself.
    """

    run: Callable[..., Any]
    of: type | UnionType
    steps: Callable[[dict[str, Any]], tuple[str, ...]] = lambda _: ()
    last: bool = True
    is_row: bool = True

    @property
    def does(self) -> str:
        """What to call it beside the name of the layer."""
        return "" if self.run.__name__ == "apply" else f" {self.run.__name__}"


def _in_time(arguments: dict[str, Any]) -> tuple[str, ...]:
    return ("time",) if arguments["return_sequences"] else ()


_FUNCTIONS = (
    _Function(lstm.apply, LSTMParams, _in_time),
    _Function(lstm.step, LSTMParams),
    _Function(bidirectional.apply, BidirectionalParams, _in_time),
    _Function(stack.apply, StackParams, _in_time),
    _Function(stack.step, StackParams),
    _Function(hierarchy.apply, HierarchyParams, _in_time),
    _Function(hierarchy.encode, LSTMParams | BidirectionalParams | StackParams, is_row=False),
    _Function(dense.apply, DenseParams),
    _Function(embedding.apply, EmbeddingParams),
    _Function(conv1d.apply, Conv1DParams, lambda _: ("steps",)),
    _Function(residual.apply, tuple, lambda _: ("steps",)),
    _Function(crf.log_likelihood, CRFParams, last=False),
    _Function(crf.log_partition, CRFParams, last=False),
    _Function(crf.marginals, CRFParams, lambda _: ("time", "tags"), last=False),
    _Function(crf.decode, CRFParams, lambda _: ("time",), last=False),
    _Function(crf.sample, CRFParams, lambda _: ("time",), last=False),
)
_WATCHED = {inspect.unwrap(function.run).__code__: function for function in _FUNCTIONS}


@dataclasses.dataclass
class _Open:
    """A call that has not returned: its frame, the function, and the level of a hierarchy that it is in."""

    frame: FrameType
    function: _Function
    call: Call
    level: Call | None
    axes: tuple[str, ...]


class _Recorder:
    """The calls of layers, as they are made."""

    def __init__(self):
        self.calls: list[Call] = []
        self.brought: dict[int, Any] = {}
        self._open: list[_Open] = []
        self._paths: dict[int, Path] = {}
        self._alike: dict[Any, set[Path]] = {}
        self._kept: list[Any] = []

    def learn(self, layer: Node) -> None:
        """Remember where the layers of a tree are."""
        self._kept.append(layer.value)  # so that no other object gets its id
        for node in nodes(layer.value, layer.path):
            if type(node.value) in KINDS:
                self._paths[id(node.value)] = node.path
                self._alike.setdefault(_look(node.value), set()).add(node.path)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Watch all calls."""
        before = sys.getprofile()
        if before is not None and not callable(before):
            raise RuntimeError("summary watches calls with sys.setprofile, which a profiler holds: run it outside.")
        sys.setprofile(lambda frame, event, result: frame.f_code in _WATCHED and self._see(frame, event, result))
        try:
            yield
        finally:
            sys.setprofile(before)

    def _see(self, frame: FrameType, event: str, result: Any) -> None:
        if event == "call":
            self._enter(frame, _WATCHED[frame.f_code])
        elif event == "return" and self._open and self._open[-1].frame is frame:
            self._leave(self._open.pop(), result)

    def _enter(self, frame: FrameType, function: _Function) -> None:
        params = frame.f_locals[frame.f_code.co_varnames[0]]
        if not isinstance(params, function.of):
            return
        path = self._path(params) or ()
        self.learn(Node(path, params))
        kind = KINDS[type(params)].name if type(params) in KINDS else "Residual blocks"
        call = Call(titled(Node(path, params).name, kind + function.does), path, params)
        beside, level = self._beside(path)
        if function.is_row:
            beside.append(call)
        axes = function.steps(frame.f_locals)
        last = width(params) if function.last else None
        self._open.append(_Open(frame, function, call, level, (*axes, last.names) if last else axes))
        concrete = [leaf for leaf in jax.tree.leaves(params) if not isinstance(leaf, jax.core.Tracer)]
        self.brought |= {id(leaf): leaf for leaf in concrete}

    def _leave(self, done: _Open, result: Any) -> None:
        if result is None:
            return
        outputs = result[0] if isinstance(result, tuple) else result
        done.call.output = " and ".join(_axes(array.shape, done.axes) for array in jax.tree.leaves(outputs))
        if done.level is not None:
            done.level.output = done.call.output

    def _path(self, params: Any) -> Path | None:
        """Where params are in the arguments; within `jax.jit` they are other objects, told by their shapes alone."""
        if type(params) not in KINDS:
            first = next(outermost(params))
            path = self._path(first.value)
            return path if path is None else path[: len(path) - len(first.path)]
        alike = self._alike.get(_look(params), set())
        return self._paths.get(id(params), next(iter(alike)) if len(alike) == 1 else None)

    def _beside(self, path: Path) -> tuple[list[Call], Call | None]:
        """The calls that a new one is put beside, and the level of a hierarchy, or the like, that it is in."""
        rows = [done.call for done in self._open if done.function.is_row]
        if not rows:
            return self.calls, None
        around, level = rows[-1], None
        for node in nodes(around.params, around.path):
            if type(node.value) in KINDS and len(around.path) < len(node.path) < len(path) and _starts(path, node.path):
                if not around.within or around.within[-1].path != node.path:
                    around.within.append(Call(titled(node.name, KINDS[type(node.value)].name), node.path, node.value))
                around = level = around.within[-1]
        return around.within, level


def _starts(path: Path, start: Path) -> bool:
    return path[: len(start)] == start


def _look(params: Any) -> Any:
    """What params look like: their structure and their shapes."""
    leaves, tree = jax.tree.flatten(params)
    return tree, tuple(leaf.shape for leaf in leaves)


def _axes(shape: tuple[int, ...], names: tuple[str, ...]) -> str:
    """The axes of an array with their sizes, of which the last have these names."""
    count = len(shape) - len(names)
    batch = [f"batch {' x '.join(map(str, shape[:count]))}"] if count else []
    return f"[{', '.join([*batch, *(f'{name} {size}' for name, size in zip(names, shape[count:], strict=True))])}]"
