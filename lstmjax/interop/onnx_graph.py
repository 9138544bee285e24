"""What the graph of an ONNX model says of its LSTMs: where their weights are, and whether they are a stack."""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lstmjax.interop import gates

MOVES = ("Dropout", "Identity", "Reshape", "Squeeze", "Transpose")  # what may stand between the LSTMs of a stack


@dataclasses.dataclass(frozen=True)
class Graph:
    """The LSTMs of a model and where what they read comes from.

    Args:
        lstms: the nodes, in the order of the graph.
        producers: of each value, the node that computes it.
        weights: arrays or TensorProtos by name.
        constants: the weights, and what is computed from them alone.
        shapes: of values, their sizes, 1 for those left open.
        settled: the constants, and what is computed from them and from shapes alone.
        opsets: version of each domain's operators.
    """

    lstms: list[Any]
    producers: Mapping[str, Any]
    weights: Mapping[str, Any]
    constants: frozenset[str]
    shapes: Mapping[str, list[int]]
    settled: frozenset[str]
    opsets: Mapping[str, int]

    def constant(self, name: str) -> Any:
        """The array of this name, which the model holds or computes from what it holds; else None."""
        return self._value(name) if name in self.constants else None

    def state(self, name: str) -> Any:
        """Likewise, of an array that may depend on the size of the batch: that for a batch of 1."""
        return self._value(name) if name in self.settled else None

    def _value(self, name):
        if name in self.weights:
            value = self.weights[name]
            if not isinstance(value, gates.library("onnx").TensorProto):
                return value
            if gates.library("onnx.external_data_helper").uses_external_data(value):
                raise ValueError(f"{name} of source has its numbers in another file: give the path of the model.")
            return gates.library("onnx.numpy_helper").to_array(value)
        node = self.producers[name]
        of_shape = node.op_type == "Shape" and node.input[0] not in self.settled
        inputs = {
            given: np.broadcast_to(False, self.shapes[given]) if of_shape else self._value(given)
            for given in node.input
            if given
        }
        run: Any = gates.library("onnx.reference").ReferenceEvaluator(node, opsets=dict(self.opsets)).run
        return run([name], inputs)[0]

    def check_stack(self) -> None:
        """Raise unless each LSTM reads all that the one before it puts out, directions side by side, to its lengths."""
        for below, node in itertools.pairwise(self.lstms):
            found = self._sequences(node.input[0])
            axes = "BTH" if attributes(node).get("layout") else "TBH"
            if found is None or found[0].output[0] != below.output[0] or found[1] != axes:
                raise ValueError(
                    f"source must have one LSTM, or a stack of them; {title(node)} reads {node.input[0]!r}, which is "
                    f"not the outputs of {title(below)}, directions side by side: give each node by itself."
                )
            if any(node.input[4:5]) != any(below.input[4:5]):
                has, other = ("", "none") if any(node.input[4:5]) else ("no ", "them")
                raise ValueError(
                    f"{title(node)} has {has}sequence_lens, {title(below)} has {other}, where a stack has the same "
                    "lengths in every layer: give each node by itself."
                )

    def _sequences(self, name):
        """The LSTM whose Y this is, where nothing but axes has changed since, and its axes now; else None.

        Y has the axes T, D, B, H: time, directions, batch and units.
        """
        node = self.producers.get(name)
        if node is None:
            return None
        given = attributes(node)
        if _is_lstm(node):
            return (node, "BTDH" if given.get("layout") else "TDBH") if name == node.output[0] else None
        found = self._sequences(node.input[0]) if node.op_type in MOVES else None
        if found is None:
            return None
        lstm, axes = found
        second = self.constant(node.input[1]) if len(node.input) > 1 else None
        if node.op_type == "Transpose":
            axes = "".join(axes[axis] for axis in given.get("perm", range(len(axes))[::-1]))
        elif node.op_type == "Squeeze":
            gone = given.get("axes", second)
            axes = axes.replace("D", "") if gone is not None and [axes[axis] for axis in gone] == ["D"] else ""
        elif node.op_type == "Reshape":
            joined = "DH" in axes or ("D" in axes and directions(lstm) == 1)
            after = axes.replace("D", "")
            sure = second is not None and len(second) == 3 and _keeps(second, axes, after)
            axes = after if joined and sure else ""
        return (lstm, axes) if axes else None


def of_node(node: Any, weights: Any) -> Graph:
    """The graph of one node whose weights are given."""
    if not isinstance(weights, Mapping):
        raise TypeError(f"initializers must map names of the node's inputs to arrays; got {type(weights).__name__}.")
    if not _is_lstm(node):
        raise ValueError(f"source must be an LSTM; got a node of {node.op_type}.")
    names = frozenset(weights)
    return Graph([node], {}, weights, names, {}, names, {})


def of_model(source: Any) -> Graph:
    """The graph of a model, or of the file of one."""
    model = _model(source)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    producers, constants, settled, shapes = {}, set(weights), set(weights), _shapes(model)
    for node in model.graph.node:
        outputs = set(filter(None, node.output))
        producers |= dict.fromkeys(outputs, node)
        if any(_has_lstm(graph) for graph in _inner(node)):
            raise ValueError(
                f"source has an LSTM inside of {node.op_type} {node.name!r}, where params cannot say what it reads: "
                "give the node of the LSTM by itself."
            )
        for known in (constants, settled):
            if known.issuperset(filter(None, node.input)) and not _is_lstm(node) and not _inner(node):
                known |= outputs
        if node.op_type == "Shape" and node.input[0] in shapes:
            settled |= outputs
    lstms = [node for node in model.graph.node if _is_lstm(node)]
    if not lstms:
        kinds = ", ".join(sorted({node.op_type for node in model.graph.node})) or "none"
        raise ValueError(f"source must have a node of LSTM; those that it has are {kinds}.")
    opsets = {given.domain: given.version for given in model.opset_import}
    return Graph(lstms, producers, weights, frozenset(constants), shapes, frozenset(settled), opsets)


def attributes(node: Any) -> dict[str, Any]:
    """The attributes of a node by name."""
    helper = gates.library("onnx.helper")
    return {given.name: helper.get_attribute_value(given) for given in node.attribute}


def directions(node: Any) -> int:
    """How many LSTMs a node has."""
    return 2 if attributes(node).get("direction") == b"bidirectional" else 1


def title(node: Any) -> str:
    """What errors call a node."""
    return f"LSTM {node.name or next(filter(None, node.output), '')!r}"


def _model(source: Any) -> Any:
    onnx = gates.library("onnx")
    if isinstance(source, str | Path):
        try:
            source = onnx.load(source)
        except (gates.library("google.protobuf.message").DecodeError, onnx.checker.ValidationError) as error:
            raise ValueError(
                f"source must be the path of an ONNX model, whole; {source} cannot be read: {error}"
            ) from error
    if not isinstance(source, onnx.ModelProto):
        raise TypeError(
            f"source must be an onnx ModelProto, a path to one or an LSTM's NodeProto; got {type(source).__name__}."
        )
    return gates.library("onnx.inliner").inline_local_functions(source) if source.functions else source


def _shapes(model: Any) -> dict[str, list[int]]:
    """The sizes of all values of which ONNX can tell how many there are, 1 for those left open."""
    if all(node.op_type != "Shape" for node in model.graph.node):
        return {}
    graph = gates.library("onnx.shape_inference").infer_shapes(model).graph
    types = {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info, *graph.output)}
    return {
        name: [size.dim_value or 1 for size in given.shape.dim]
        for name, given in types.items()
        if given.HasField("shape")
    }


def _keeps(shape: Any, before: str, after: str) -> bool:
    """Whether a Reshape to this shape must keep time and batch: the 0 of one leaves, of the size, the other."""
    copied = [old == new for size, old, new in zip(shape[:2], before, after, strict=False) if size == 0]
    return any(copied) and all(copied)


def _is_lstm(node: Any) -> bool:
    return node.op_type == "LSTM" and node.domain in ("", "ai.onnx")


def _inner(node: Any) -> list[Any]:
    """The graphs in a node, as those that branch or loop have them."""
    return [graph for given in node.attribute for graph in (given.g, *given.graphs) if graph.node]


def _has_lstm(graph: Any) -> bool:
    return any(_is_lstm(node) or any(map(_has_lstm, _inner(node))) for node in graph.node)
