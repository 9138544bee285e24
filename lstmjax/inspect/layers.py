"""Names, outputs and parameter formulas of each kind of layer."""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import jax

from lstmjax.bidirectional import BidirectionalParams
from lstmjax.conv1d import Conv1DParams
from lstmjax.crf import CRFParams
from lstmjax.dense import DenseParams
from lstmjax.embedding import EmbeddingParams
from lstmjax.hierarchy import HierarchyParams, LevelParams
from lstmjax.inspect.numbers import Number
from lstmjax.lstm import LSTMParams
from lstmjax.residual import ResidualParams
from lstmjax.stack import StackParams

Path = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Node:
    """A layer or an array in a tree of parameters."""

    path: Path
    value: Any

    @property
    def name(self) -> str:
        """Its path, such as `encoder/w_x`."""
        return jax.tree_util.keystr(self.path, simple=True, separator="/")


def nodes(tree: Any, path: Path = ()) -> Iterator[Node]:
    """All layers and arrays of a tree, each layer before what is in it."""
    if type(tree) in KINDS or jax.tree_util.all_leaves([tree]):
        yield Node(path, tree)
    for key, child in _children(tree):
        yield from nodes(child, (*path, *key))


def outermost(tree: Any, path: Path = ()) -> Iterator[Node]:
    """The layers in a tree that are in no other one there; in a layer those that make it up."""
    for key, child in _children(tree):
        if type(child) in KINDS:
            yield Node((*path, *key), child)
        else:
            yield from outermost(child, (*path, *key))


def titled(name: str, kind: str) -> str:
    """A path and what is there, such as `encoder (LSTM)`."""
    return f"{name} ({kind})" if name else kind


def count(tree: Any) -> int:
    """Number of parameters in a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def formula(params: Any) -> str | None:
    """Number of parameters of a layer, and why; None where its arrays are not such as the layer's `init` makes."""
    kind, total = KINDS.get(type(params)), count(params)
    if kind and not _has_matrices(params):
        return None
    computed = kind.count(params) if kind else _count_of_parts(params)
    for array, axes in tuple(kind.matrices.items())[:1] if kind else ():
        for copies in getattr(params, array).shape[:-axes]:
            computed = Number.named(str(copies), copies) * computed
    numbers = [] if computed.numbers == str(total) else [computed.numbers]
    return " = ".join([computed.names, *numbers, f"{total:,}"]) if computed.value == total else None


def width(params: Any) -> Number | None:
    """The last axis of what a layer puts out, where it has one of its own; of two directions side by side."""
    kind = KINDS.get(type(params))
    if kind is None:
        return _width_of_last(params)
    return kind.width(params) if _has_matrices(params) else None


def _children(tree: Any) -> list[tuple[Path, Any]]:
    """Direct children of a node of a tree; none of an array."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: node is not tree)
    return [(key, child) for key, child in found if key]


def _has_matrices(params: Any) -> bool:
    """True if the arrays that tell sizes are there."""
    matrices = KINDS[type(params)].matrices
    return all(len(getattr(getattr(params, array), "shape", ())) >= axes for array, axes in matrices.items())


def _size(name: str, array: Any, axis: int) -> Number:
    return Number.named(name, array.shape[axis])


def _inputs(params: DenseParams | Conv1DParams) -> Number:
    return _size("inputs", params.w, -2)


def _units(params: DenseParams | Conv1DParams) -> Number:
    return _size("units", params.w, -1)


def _affine_count(params: DenseParams | Conv1DParams, rows: Number) -> Number:
    return _units(params) * (rows if params.bias is None else rows + 1)


def _lstm_units(params: LSTMParams) -> Number:
    whole = params.w_projection is None
    return _size("units", params.w_h if whole else params.w_projection, -2)


def _lstm_outputs(params: LSTMParams) -> Number:
    return _size("units" if params.w_projection is None else "projection", params.w_h, -2)


def _lstm_count(params: LSTMParams) -> Number:
    inputs, units, outputs = _size("inputs", params.w_x, -2), _lstm_units(params), _lstm_outputs(params)
    gates = params.w_x.shape[-1] // units.value if units.value else 4
    rows = inputs + outputs
    for bias in (params.bias, params.bias_h, params.offset):
        rows = rows if bias is None else rows + 1
    rows = rows if params.norm is None else rows + (1 if params.norm.per_gate else 2)
    total = gates * units * rows
    if params.w_peephole is not None:
        total += (gates - 1) * units
    if params.w_projection is not None:
        total += units * outputs
    if params.norm is not None and params.norm.c_scale is not None:
        total += 2 * units
    if params.initial is not None:
        total += outputs + units
    return total


def _count_of_parts(params: Any) -> Number:
    parts = [Number.named(part.name, count(part.value)) for part in outermost(params)]
    return functools.reduce(operator.add, parts) if parts else Number.named("0", 0)


def _width_of_last(params: Any) -> Number | None:
    parts = list(outermost(params))
    return width(parts[-1].value) if parts else None


def _width_of_both(params: BidirectionalParams) -> Number | None:
    halves = [width(half) for half in (params.forward, params.backward)]
    sizes = [half.value for half in halves if half is not None]
    return Number(sum(sizes), "outputs", f"{sum(sizes)} (concat)") if len(sizes) == 2 else None


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of layer.

    Args:
        name: what to call it.
        steps: the axes of what it puts out, between the batch axes and the last one.
        width: the last one, from params; None where there is none.
        count: the number of parameters, from params.
        matrices: the arrays that tell these sizes, and how many axes each has; none where layers make up the layer.
    """

    name: str
    steps: tuple[str, ...]
    width: Callable[[Any], Number | None]
    count: Callable[[Any], Number] = _count_of_parts
    matrices: dict[str, int] = dataclasses.field(default_factory=dict)


KINDS: dict[type, Kind] = {
    LSTMParams: Kind("LSTM", ("time",), _lstm_outputs, _lstm_count, {"w_x": 2, "w_h": 2}),
    BidirectionalParams: Kind("Bidirectional", ("time",), _width_of_both),
    StackParams: Kind("Stack", ("time",), _width_of_last),
    HierarchyParams: Kind("Hierarchy", ("time",), _width_of_last),
    LevelParams: Kind("Hierarchy level", ("time",), lambda params: width(params.encoder)),
    ResidualParams: Kind("Residual", ("steps",), lambda params: width(params.second)),
    DenseParams: Kind("Dense", (), _units, lambda params: _affine_count(params, _inputs(params)), {"w": 2}),
    EmbeddingParams: Kind(
        "Embedding",
        (),
        lambda params: _size("features", params.table, -1),
        lambda params: _size("vocabulary", params.table, -2) * _size("features", params.table, -1),
        {"table": 2},
    ),
    Conv1DParams: Kind(
        "Conv1D",
        ("steps",),
        _units,
        lambda params: _affine_count(params, _size("kernel", params.w, -3) * _inputs(params)),
        {"w": 3},
    ),
    CRFParams: Kind(
        "CRF",
        ("time",),
        lambda _: None,
        lambda params: _size("tags", params.transitions, -1) * (_size("tags", params.transitions, -1) + 2),
        {"transitions": 2},
    ),
}
