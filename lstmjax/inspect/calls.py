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
from types import FrameType
from typing import Any, NamedTuple

import jax
import jax.core
from jax.experimental.xla_metadata import set_xla_metadata
from jax.interpreters import partial_eval
from jax.tree_util import DictKey

from lstmjax.inspect import functions
from lstmjax.inspect.layers import KINDS, Node, Path, nodes, outermost, titled, width

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
        """Key that tells it from another call."""
        own = self.path or tuple(map(id, jax.tree.leaves(self.params)))
        return self.title, self.output, own, [call.look() for call in self.within]


class Watched(NamedTuple):
    """Layers and calls seen in a function.

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
    marked = _layers(filled(True if hit else array for array, hit in zip(arrays, reached, strict=True)))
    params = [*(layer.value for layer in _layers(filled(arrays))), *recorder.brought.values()]
    return Watched(recorder.calls, [node for layer in marked for node in _unused(layer)], params)


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


def _unused(layer: Node) -> Iterator[Node]:
    """The largest layers in one that have no array which is marked as used."""
    if not any(leaf is True for leaf in jax.tree.leaves(layer.value)):
        yield layer
        return
    for part in outermost(layer.value, layer.path):
        yield from _unused(part)


@dataclasses.dataclass
class _Open:
    """A call that has not returned: its frame, the function, and the level of a hierarchy that it is in."""

    frame: FrameType
    function: functions.Function
    call: Call
    level: Call | None
    axes: tuple[str, ...]


class _Recorder:
    """The calls of layers, in their order."""

    def __init__(self):
        self.calls: list[Call] = []
        self.brought: dict[int, Any] = {}
        self._open: list[_Open] = []
        self._known: dict[int, Node] = {}  # by the id of the layer, which no other object gets while it is here
        self._alike: dict[Any, set[Path]] = {}

    def learn(self, layer: Node) -> None:
        """Remember where the layers of a tree are."""
        for node in nodes(layer.value, layer.path):
            if type(node.value) in KINDS:
                self._known[id(node.value)] = node
                self._alike.setdefault(_look(node.value), set()).add(node.path)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Watch all calls."""
        before = sys.getprofile()
        if before is not None and not callable(before):
            raise RuntimeError("summary watches calls with sys.setprofile, which a profiler holds: run it outside.")
        sys.setprofile(
            lambda frame, event, result: frame.f_code in functions.WATCHED and self._see(frame, event, result)
        )
        try:
            yield
        finally:
            sys.setprofile(before)

    def _see(self, frame: FrameType, event: str, result: Any) -> None:
        if event == "call":
            self._enter(frame, functions.WATCHED[frame.f_code])
        elif event == "return" and self._open and self._open[-1].frame is frame:
            self._leave(self._open.pop(), result)

    def _enter(self, frame: FrameType, function: functions.Function) -> None:
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
        axes = function.steps(dict(frame.f_locals))
        last = width(params) if function.last else None
        self._open.append(_Open(frame, function, call, level, (*axes, last.names) if last else axes))
        self.brought |= {id(leaf): leaf for leaf in _concrete(params)}

    def _leave(self, done: _Open, result: Any) -> None:
        if result is None:
            return
        outputs = result[0] if isinstance(result, tuple) else result
        done.call.output = " and ".join(functions.told(array.shape, done.axes) for array in jax.tree.leaves(outputs))
        if done.level is not None:
            done.level.output = done.call.output

    def _path(self, params: Any) -> Path | None:
        """Where params are in the arguments; within `jax.jit` they are other objects, told by their shapes alone."""
        if type(params) not in KINDS:
            first = next(outermost(params))
            path = self._path(first.value)
            return path if path is None else path[: len(path) - len(first.path)]
        if id(params) in self._known:
            return self._known[id(params)].path
        alike = set() if _concrete(params) else self._alike.get(_look(params), set())
        return next(iter(alike)) if len(alike) == 1 else None

    def _beside(self, path: Path) -> tuple[list[Call], Call | None]:
        """The calls that a new one is put beside, and the level of a hierarchy, or the like, that it is in."""
        rows = [done.call for done in self._open if done.function.is_row]
        if not rows:
            return self.calls, None
        around, level = rows[-1], None
        for node in nodes(around.params, around.path):
            is_above = len(around.path) < len(node.path) < len(path) and path[: len(node.path)] == node.path
            if is_above and type(node.value) in KINDS:
                if not around.within or around.within[-1].path != node.path:
                    around.within.append(Call(titled(node.name, KINDS[type(node.value)].name), node.path, node.value))
                around = level = around.within[-1]
        return around.within, level


def _concrete(params: Any) -> list[Any]:
    """The arrays that are no arguments of the function, nor computed from them."""
    return [leaf for leaf in jax.tree.leaves(params) if not isinstance(leaf, jax.core.Tracer)]


def _look(params: Any) -> Any:
    """Structure and shapes of params."""
    leaves, tree = jax.tree.flatten(params)
    return tree, tuple(leaf.shape for leaf in leaves)
