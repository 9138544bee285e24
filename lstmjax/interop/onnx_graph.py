"""LSTMs in the graph of an ONNX model: where their weights are, and if they are a stack."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lstmjax.interop import gates

MOVES = ("Dropout", "Identity", "Reshape", "Squeeze", "Transpose")  # what may stand between the LSTMs of a stack
# Operators by which a model may compute weights from those that it stores. All of them take memory and time for their
# inputs and outputs alone, and a model's are bounded: a file of some bytes could ask for any amount.
OPERATORS = (
    "Abs Add And Cast CastLike Ceil Clip Concat Constant ConstantOfShape CumSum DequantizeLinear Div Dropout Equal Exp "
    "Expand Flatten Floor Gather GatherElements GatherND Greater Identity Less Log Max Mean Min Mul Neg Not Or Pad Pow "
    "QuantizeLinear Range Reciprocal ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Round "
    "ScatterElements ScatterND Shape Sigmoid Sign Size Slice Softmax Split Sqrt Squeeze Sub Sum Tanh Tile Transpose "
    "Trilu Unsqueeze Where"
)
COMPUTED = frozenset(OPERATORS.split())
DEEPEST = 1_000  # nodes from a stored array to a weight
MOST_NODES = 2_000  # that compute weights
MOST_BYTES = 2**26  # of what is computed, and as many times what is stored:
MOST_TIMES = 16
MOST_INLINED = 1_000_000  # nodes of a model with its functions inlined
LONGEST_SHAPE = 64  # numbers in an array that can be a shape


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
        computed: the arrays of values, computed on demand.
    """

    lstms: list[Any]
    producers: Mapping[str, Any]
    weights: Mapping[str, Any]
    constants: frozenset[str]
    shapes: Mapping[str, list[int]]
    settled: frozenset[str]
    opsets: Mapping[str, int]
    computed: dict[str, Any] = dataclasses.field(default_factory=dict)

    def constant(self, name: str) -> Any:
        """The array of this name, which the model holds or computes from what it holds; else None."""
        return self._value(name) if name in self.constants else None

    def state(self, name: str) -> Any:
        """Likewise, of an array that may depend on the size of the batch: that for a batch of 1."""
        return self._value(name) if name in self.settled else None

    def _value(self, name: str) -> Any:
        """The array of a name, for which each node runs once, whichever how often it is read."""
        for node in self._path(name):
            taken = {given: self._read(given) for given in node.input if given}
            if node.op_type == "Shape" and node.input[0] not in self.settled:
                taken[node.input[0]] = np.broadcast_to(False, self.shapes[node.input[0]])
            self._check_size(node, taken)
            run: Any = gates.library("onnx.reference").ReferenceEvaluator(node, opsets=dict(self.opsets)).run
            kept = [output for output in node.output if output]
            with np.errstate(all="ignore"):
                self.computed.update(zip(kept, run(kept, taken), strict=True))
        return self._read(name)

    def _read(self, name: str) -> Any:
        if name in self.computed or name not in self.weights:
            return self.computed.get(name)
        value = self.weights[name]
        if isinstance(value, gates.library("onnx").TensorProto):
            value = _array(name, value)
        self.computed[name] = value
        return value

    def _path(self, name: str) -> list[Any]:
        """The nodes that are still to run for an array, each after those that it reads."""
        order: list[Any] = []
        depths: dict[str, int] = {}
        waiting = [name]
        while waiting:
            name = waiting[-1]
            node = None if name in self.computed or name in self.weights else self.producers.get(name)
            given = [] if node is None else [part for part in node.input if part in self.settled]
            unknown = [part for part in given if part not in depths]
            if name not in depths and unknown:
                waiting += unknown
                continue
            waiting.pop()
            if name in depths:
                continue
            depths[name] = 1 + max((depths[part] for part in given), default=0) if node is not None else 0
            if depths[name] > DEEPEST:
                raise ValueError(f"{name!r} of source must be computed by at most {DEEPEST} nodes after each other.")
            if node is not None:
                depths |= dict.fromkeys(filter(None, node.output), depths[name])
                order.append(node)
            if len(order) + len(self.computed) > MOST_NODES:
                raise ValueError(f"weights of source must be computed by at most {MOST_NODES} nodes; there are more.")
        return order

    def _check_size(self, node: Any, taken: Mapping[str, Any]) -> None:
        """Raise unless a node's outputs are small beside the weights that the model has, before any is allocated."""
        onnx, helper = gates.library("onnx"), gates.library("onnx.helper")
        who = f"{node.op_type} of {node.output[0]!r}"
        if node.domain not in ("", "ai.onnx") or node.op_type not in COMPUTED:
            raise ValueError(
                f"weights of source must be stored, or computed by one of {', '.join(sorted(COMPUTED))}; got {who}."
            )
        kinds = {
            name: helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in taken.items()
        }
        small = {
            name: gates.library("onnx.numpy_helper").from_array(array)
            for name, array in taken.items()
            if array.size <= LONGEST_SHAPE
        }
        version = self.opsets.get(node.domain, self.opsets.get("", 1))
        schema = onnx.defs.get_schema(node.op_type, version, "")
        try:
            told = gates.library("onnx.shape_inference").infer_node_outputs(schema, node, kinds, small)
        except (RuntimeError, ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ValueError(f"source has a node that cannot run, {who}: {error}") from error
        size = 0
        for output in filter(None, node.output):
            kind = told[output].tensor_type if output in told else None
            if kind is None or not all(side.HasField("dim_value") for side in kind.shape.dim):
                raise ValueError(f"source has {who}, whose size is not known before it runs: store its output instead.")
            item = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).itemsize
            size += item * math.prod(side.dim_value for side in kind.shape.dim)
        held = sum(getattr(value, "nbytes", 0) for name, value in self.computed.items() if name in self.weights)
        made = sum(getattr(value, "nbytes", 0) for name, value in self.computed.items() if name not in self.weights)
        if made + size > (most := MOST_BYTES + MOST_TIMES * held):
            raise ValueError(
                f"weights of source must be computed in at most {most} bytes, for the {held} that it stores; {who} "
                f"would make them {made + size}."
            )

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
        moves: list[Any] = []
        while (node := self.producers.get(name)) is not None and node.op_type in MOVES and len(moves) <= DEEPEST:
            moves.append(node)
            name = node.input[0]
        if node is None or not _is_lstm(node) or name != node.output[0]:
            return None
        axes = "BTDH" if attributes(node).get("layout") else "TDBH"
        for move in reversed(moves):
            axes = self._moved(move, axes, directions(node))
        return (node, axes) if axes else None

    def _moved(self, node: Any, axes: str, count: int) -> str:
        """The axes after a node, or none where they are mixed."""
        given = attributes(node)
        second = self.constant(node.input[1]) if len(node.input) > 1 else None
        if node.op_type == "Transpose":
            return "".join(axes[axis] for axis in given.get("perm", range(len(axes))[::-1])) if axes else ""
        if node.op_type == "Squeeze":
            gone = given.get("axes", second)
            return axes.replace("D", "") if axes and gone is not None and [axes[axis] for axis in gone] == ["D"] else ""
        if node.op_type == "Reshape":
            joined = "DH" in axes or ("D" in axes and count == 1)
            after = axes.replace("D", "")
            sure = second is not None and len(second) == 3 and _keeps(second, axes, after)
            return after if joined and sure else ""
        return axes


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
        if twice := sorted(outputs & producers.keys()):
            raise ValueError(f"source must compute each value once; {twice[0]!r} is the output of two nodes.")
        producers |= dict.fromkeys(outputs, node)
        if any(map(_is_lstm, _all_nodes(inner for graph in _inner(node) for inner in graph.node))):
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
    """Number of LSTMs of a node."""
    return 2 if attributes(node).get("direction") == b"bidirectional" else 1


def title(node: Any) -> str:
    """Name of a node in errors."""
    return f"LSTM {node.name or next(filter(None, node.output), '')!r}"


def _array(name: str, tensor: Any) -> np.ndarray:
    """The numbers of a TensorProto, which are there in full."""
    if gates.library("onnx.external_data_helper").uses_external_data(tensor):
        raise ValueError(f"{name} of source has its numbers in another file: give the path of the model.")
    try:
        return gates.library("onnx.numpy_helper").to_array(tensor)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} of source must have the numbers that its shape {list(tensor.dims)} needs.") from error


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
    if not source.functions:
        return source
    _check_functions(source)
    return gates.library("onnx.inliner").inline_local_functions(source)


def _check_functions(model: Any) -> None:
    """Raise where local functions, which may call each other, would become too many nodes."""
    functions = {(given.domain, given.name): list(_all_nodes(given.node)) for given in model.functions}
    sizes: dict[Any, int] = {}
    waiting: list[Any] = [*functions]
    within: set[Any] = set()
    while waiting:
        key = waiting[-1]
        called = [(node.domain, node.op_type) for node in functions[key] if (node.domain, node.op_type) in functions]
        unknown = [other for other in called if other not in sizes]
        if key not in sizes and unknown:
            if key in within:
                raise ValueError(f"source has a function {key[1]!r} that calls itself.")
            within.add(key)
            waiting += unknown
            continue
        waiting.pop()
        sizes.setdefault(key, len(functions[key]) + sum(sizes[other] for other in called if other in sizes))
    total = sum(sizes.get((node.domain, node.op_type), 1) for node in _all_nodes(model.graph.node))
    if total > MOST_INLINED:
        raise ValueError(f"source must have at most {MOST_INLINED} nodes with its functions inlined; it has {total}.")


def _all_nodes(nodes: Any) -> Iterator[Any]:
    """Nodes, and those of the graphs in them."""
    waiting = [*nodes]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [inner for graph in _inner(node) for inner in graph.node]


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
    """True if a Reshape to this shape must keep time and batch: the 0 of one leaves, of the size, the other."""
    copied = [old == new for size, old, new in zip(shape[:2], before, after, strict=False) if size == 0]
    return any(copied) and all(copied)


def _is_lstm(node: Any) -> bool:
    return node.op_type == "LSTM" and node.domain in ("", "ai.onnx")


def _inner(node: Any) -> list[Any]:
    """The graphs in a node, as those that branch or loop have them."""
    return [graph for given in node.attribute for graph in (given.g, *given.graphs) if graph.node]
