"""ONNX: `LSTM` nodes, their directions, peepholes and both biases, and what of their attributes is our options.

w_x = W^T    w_h = R^T    bias = Wb    bias_h = Rb    w_peephole = P
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstmjax._src import keywords, validation
from lstmjax._src.lstm.options import LSTMOptions
from lstmjax.interop import gates, onnx_graph
from lstmjax.interop.onnx_graph import title
from lstmjax.lstm import LSTMParams, LSTMState

INPUTS: tuple[str, ...] = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
ATTRIBUTES = (
    *("activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "input_forget"),
    *("layout", "output_sequence"),
)
# What ONNX calls each activation, then its alpha and beta where it has them.
ACTIVATIONS = {
    "tanh": ("Tanh",),
    "sigmoid": ("Sigmoid",),
    "relu": ("Relu",),
    "linear": ("Affine", 1.0, 0.0),
    "elu": ("Elu", 1.0),
    "softplus": ("Softplus",),
    "softsign": ("Softsign",),
    "hard_sigmoid": ("HardSigmoid", 1 / 6, 0.5),
    "keras2_hard_sigmoid": ("HardSigmoid", 0.2, 0.5),
}
SCALES = ("alpha", "beta")
# Affine is an operator no more, so that nothing says its defaults; ONNX Runtime's alpha is 0.
DEFAULTS = {"Affine": (np.nan, 0.0), "Elu": (1.0,), "HardSigmoid": (0.2, 0.5)}
KEPT = ("w_peephole", "initial", "coupled")  # of what only some formats have a place for
TYPES = {"float16": "float16", "bfloat16": "bfloat16", "float32": "float", "float64": "double"}

GRAPH = """lstmjax ({inputs}) => ({outputs}) {{
  xs_0 = Transpose<perm = [1, 0, 2]>(xs){layers}
}}"""
LEARNED = """
  shape = Shape(xs)
  batch = Gather(shape, zero)
  states = Concat<axis = 0>(one, batch, one)"""
EXPANDED = """
  {part}_{k} = Expand(initial_{part}_{k}, states)"""
LAYER = """
  ys_{k}, final_h_{k}, final_c_{k} = LSTM<{attributes}>(xs_{k}, {W}, {R}, {B}, {lengths}, {h}, {c}, {P})
  turned_{k} = Transpose<perm = {perm}>(ys_{k})
  {ys} = Reshape(turned_{k}, side_by_side_{k})"""


@keywords.explained("interop.from_onnx")
def from_onnx(
    source: Any, *, initializers: Mapping[str, Any] | None = None, reverse: bool = False
) -> tuple[gates.RECURRENT, LSTMOptions]:
    """Take the weights and the options of `LSTM` nodes.

    What a model has before its first LSTM and after its last is left alone. Lengths, and states that it does not hold
    but is given or computes, are for `apply`. The axes are ours, [batch, time, features], whatever the node's layout.

    Args:
        source: an onnx ModelProto, a path to one, or the NodeProto of an LSTM. Several LSTMs in a model must be a
            stack, each reading the outputs of the one before; if they are not, give each node by itself.
        initializers: for a NodeProto, the arrays or TensorProtos of its inputs W, R, B and P by the names it has for
            them; and of initial_h and initial_c if they are weights.
        reverse: whether the LSTMs have direction "reverse". Params do not tell, so that those are refused unless you
            say that you know, and will run them with `apply(..., reverse=True)`.

    Returns:
        LSTMParams, BidirectionalParams, or StackParams of either where there are several nodes; and LSTMOptions. Wb
        and Rb stay apart, as `bias` and `bias_h`. With input_forget the gates are coupled: what W, R, B and P have of
        the forget gate, which nothing reads, is left behind. An initial state other than 0 is `initial`.

    Raises:
        ValueError: activations or other attributes that go beyond LSTMOptions; nodes that are no stack or differ in
            their options; a direction that `reverse` does not say; weights that are missing or do not fit, or that the
            model computes by more than 2,000 nodes, 1,000 of them after each other, or in many times the bytes that it
            stores.
        TypeError: another kind of source, weights that are not floating; ImportError without onnx.

    >>> import onnx  # doctest: +SKIP
    >>> node = onnx.helper.make_node("LSTM", ["X", "W", "R"], ["Y"], hidden_size=3, clip=5.0)  # doctest: +SKIP
    >>> weights = {"W": np.ones((1, 12, 2), "f"), "R": np.ones((1, 12, 3), "f")}
    >>> params, options = from_onnx(node, initializers=weights)  # doctest: +SKIP
    >>> params.w_x.shape, options.preactivation_clip  # doctest: +SKIP
    ((2, 12), 5.0)
    """
    validation.boolean("reverse", reverse)
    if isinstance(source, gates.library("onnx").NodeProto):
        graph = onnx_graph.of_node(source, initializers)
    elif initializers is None:
        graph = onnx_graph.of_model(source)
    else:
        raise ValueError("initializers are for a NodeProto; a model has its own.")
    graph.check_stack()
    layers, options = zip(*[_layer(graph, node, reverse) for node in graph.lstms], strict=True)
    for number, (node, halves, other) in enumerate(zip(graph.lstms, layers, options, strict=True)):
        width = sum(half.outputs for half in layers[number - 1])
        if number and halves[0].inputs != width:
            raise ValueError(
                f"{title(node)} must have {width} inputs, the outputs of the one before; got {halves[0].inputs}."
            )
        if other != options[0]:
            raise ValueError(
                f"{title(node)} has {other}, where a stack has one LSTMOptions, those of its first layer, "
                f"{options[0]}: give each node by itself."
            )
    return gates.gathered(list(layers)), options[0]


@keywords.explained("interop.to_onnx")
def to_onnx(
    params: gates.RECURRENT,
    options: LSTMOptions = LSTMOptions(),
    *,
    reverse: bool = False,
    lengths: bool = False,
    state: bool = False,
) -> Any:
    """Make a model with one `LSTM` node for each layer, which computes what `stack.apply` does.

    Its input is `xs` [batch, time, inputs]. Its outputs are `ys` [batch, time, outputs], both directions side by side,
    and `final_h_k` and `final_c_k` [directions, batch, units] of each layer k, counted from 0. Batch and time are
    symbolic, and what is floating has the dtype of the weights. ONNX Runtime 1.31 runs float32 and float16 on CPU; it
    starts a sequence of length 0 from 0 whatever its state, leaves final_c of no steps unset, and dies of no batch.

    Args:
        params: LSTMParams, BidirectionalParams or StackParams, whose layers concatenate their directions.
        options: LSTMOptions; a clip is rounded to float32.
        reverse: whether the LSTMs read in reverse order, as with `apply(..., reverse=True)`.
        lengths: whether there is an input `lengths` [batch], int32, none of them above time.
        state: whether there are inputs `initial_h_k` and `initial_c_k` [directions, batch, units] instead of the
            learned states or 0.

    Returns:
        onnx.ModelProto of opset 14, or 22 for bfloat16. Both biases are given as they came; where there is one, or an
        offset, their sum is Wb, and Rb is 0. What coupled gates lack of the forget gate is 0.

    Raises:
        ValueError: what the node has no place for, which is projection, layer norm, silu, clips of c and of h, another
            precision than the dtype of the weights, directions that differ in units or in being coupled, and two of
            them with reverse; layers that do not fit on each other, weights of several dtypes.
        TypeError: params or options of another type; ImportError without onnx.

    >>> import jax
    >>> from lstmjax import lstm
    >>> model = to_onnx(lstm.init(jax.random.key(0), inputs=2, units=3), lengths=True)  # doctest: +SKIP
    >>> [given.name for given in model.graph.input]  # doctest: +SKIP
    ['xs', 'lengths']
    """
    import lstmjax

    helper, numpy_helper, parser = (gates.library(f"onnx.{part}") for part in ("helper", "numpy_helper", "parser"))
    for name, value in {"reverse": reverse, "lengths": lengths, "state": state}.items():
        validation.boolean(name, value)
    layers = [[gates.only("ONNX", half, *KEPT) for half in halves] for halves in gates.layers(params)]
    _check_layers(layers, reverse)
    dtype, attributes = _dtype(layers, options), _attributes(options)
    kind = TYPES[dtype.name]
    inputs, outputs = [f"{kind}[batch, time, {layers[0][0].inputs}] xs"], []
    if lengths:
        inputs.append("int32[batch] lengths")
    weights, text = {}, ""
    if not state and any(half.initial is not None for halves in layers for half in halves):
        weights, text = {"zero": np.zeros(1, np.int64), "one": np.ones(1, np.int64)}, LEARNED
    for k, halves in enumerate(layers):
        directions, units, last = len(halves), halves[0].units, k == len(layers) - 1
        arrays = {name: np.stack(parts) for name, parts in _inputs(halves).items()}
        names = {name: f"{name}_{k}" if name in arrays else '""' for name in ("W", "R", "B", "P")}
        for part in "hc":
            names[part] = '""'
            if state:
                arrays.pop(f"initial_{part}", None)
                inputs.append(f"{kind}[{directions}, batch, {units}] initial_{part}_{k}")
                names[part] = f"initial_{part}_{k}"
            elif f"initial_{part}" in arrays:
                text += EXPANDED.format(part=part, k=k)
                names[part] = f"{part}_{k}"
            outputs.append(f"{kind}[{directions}, batch, {units}] final_{part}_{k}")
        weights |= {f"{name}_{k}": array for name, array in arrays.items()}
        weights[f"side_by_side_{k}"] = np.array([0, 0, directions * units], np.int64)
        own = {name: value * directions if isinstance(value, list) else value for name, value in attributes.items()}
        own |= {"hidden_size": units, "input_forget": int(halves[0].gates == 3)}
        own["direction"] = "bidirectional" if directions == 2 else "reverse" if reverse else "forward"
        text += LAYER.format(
            k=k,
            attributes=", ".join(f"{name} = {json.dumps(value)}" for name, value in own.items()),
            lengths="lengths" if lengths else '""',
            perm=[2, 0, 1, 3] if last else [0, 2, 1, 3],
            ys="ys" if last else f"xs_{k + 1}",
            **names,
        )
    outputs.insert(0, f"{kind}[batch, time, {sum(half.units for half in layers[-1])}] ys")
    graph = parser.parse_graph(GRAPH.format(inputs=", ".join(inputs), outputs=", ".join(outputs), layers=text))
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    opset = [helper.make_opsetid("", 22 if dtype.name == "bfloat16" else 14)]
    return helper.make_model(
        graph,
        opset_imports=opset,
        ir_version=helper.find_min_ir_version_for(opset),
        producer_name="lstmjax",
        producer_version=lstmjax.__version__,
    )


def _layer(graph: onnx_graph.Graph, node: Any, reverse: bool) -> tuple[tuple[LSTMParams, ...], LSTMOptions]:
    who, attributes, names = title(node), onnx_graph.attributes(node), dict(zip(INPUTS, node.input, strict=False))
    if beyond := sorted(set(attributes) - set(ATTRIBUTES)):
        raise ValueError(f"{who} has {', '.join(beyond)}, which is no attribute of LSTM.")
    direction, count = attributes.get("direction", b"forward").decode(), onnx_graph.directions(node)
    if direction not in ("forward", "reverse", "bidirectional") or reverse != (direction == "reverse"):
        raise ValueError(
            f"{who} has direction {direction!r}, and reverse is {reverse}: reverse must be True for 'reverse', here "
            "and in apply, and False for 'forward' and 'bidirectional'."
        )

    def array(name, *axes):
        value = graph.constant(names.get(name, ""))
        if value is None:
            raise ValueError(
                f"{who} must have its {name}, {names.get(name, '')!r}, in the weights, among initializers."
            )
        return gates.host(f"{name} of {who}", value, count, *axes)

    w_x = array("W", None, None)
    w_h = array("R", w_x.shape[1], w_x.shape[1] // 4)
    units = w_h.shape[2]
    if attributes.get("hidden_size", units) != units:
        raise ValueError(f"{who} has hidden_size {attributes['hidden_size']}, but an R of {units} units.")
    if graph.constant(names.get("sequence_lens", "")) is not None:
        raise ValueError(f"{who} has its sequence_lens among the weights; params have no lengths: they are for apply.")
    bias = array("B", 8 * units) if names.get("B") else None
    peepholes = array("P", 3 * units) if names.get("P") else None
    halves = []
    for half in range(count):
        parts: dict[str, Any] = {"w_x": _ours(w_x[half].T), "w_h": _ours(w_h[half].T), "bias": None}
        if bias is not None:
            parts["bias"], parts["bias_h"] = map(_ours, np.split(bias[half], 2))
        if peepholes is not None:
            parts["w_peephole"] = gates.to_ours(peepholes[half], "onnx peepholes")
        if attributes.get("input_forget"):
            parts = {name: part if part is None else _without_forget(part, units) for name, part in parts.items()}
        halves.append(gates.params(**parts))
    initial = _initial(graph, node, names, np.zeros((count, 1, units), w_h.dtype))
    halves = [dataclasses.replace(half, initial=state) for half, state in zip(halves, initial, strict=True)]
    return tuple(halves), _options(who, attributes, count)


def _initial(graph: onnx_graph.Graph, node: Any, names: Mapping[str, str], zeros: np.ndarray) -> list[LSTMState | None]:
    """Initial state of each direction, where that is among the weights and not 0."""
    (count, _, units), turned, state = zeros.shape, onnx_graph.attributes(node).get("layout"), {}
    for part in "hc":
        given, who = names.get(f"initial_{part}", ""), f"initial_{part} of {title(node)}"
        value = graph.state(given) if given else zeros
        if value is None:
            continue
        value = gates.host(who, np.swapaxes(value, 0, 1) if given and turned else value, count, None, units)
        if (value != value[:, :1]).any():
            raise ValueError(
                f"{who} is another one for each of {value.shape[1]} sequences, where params have one for all: leave it "
                "out of the weights and hand it to apply."
            )
        state[part] = value[:, :1]
    learned = [any(value[direction].any() for value in state.values()) for direction in range(count)]
    if len(state) == 1 and any(learned):
        raise ValueError(
            f"{title(node)} has one of initial_h and initial_c among the weights and is given the other: leave both "
            "out of the weights and hand them to apply."
        )
    return [
        LSTMState(**{part: jnp.array(value[direction, 0]) for part, value in state.items()}) if has else None
        for direction, has in enumerate(learned)
    ]


def _options(who: str, attributes: Mapping[str, Any], count: int) -> LSTMOptions:
    given = [name.decode() for name in attributes.get("activations", [b"Sigmoid", b"Tanh", b"Tanh"] * count)]
    if len(given) != 3 * count:
        raise ValueError(f"{who} must have {3 * count} activations; got {', '.join(given)}.")
    spelled = {theirs.lower(): theirs for theirs, *_ in ACTIVATIONS.values()}
    scales = [iter(attributes.get(f"activation_{scale}", ())) for scale in SCALES]
    found = []
    for name in given:
        name = spelled.get(name.lower(), name)
        own = [next(values, default) for values, default in zip(scales, DEFAULTS.get(name, ()), strict=False)]
        equal = [
            ours
            for ours, (theirs, *numbers) in ACTIVATIONS.items()
            if theirs == name and np.array_equal(np.array(numbers, np.float32), np.array(own, np.float32))
        ]
        if not equal:
            known = ", ".join(_said(*entry) for entry in ACTIVATIONS.values())
            raise ValueError(f"{who} has activation {_said(name, *own)}, where LSTMOptions has {known}.")
        found += equal
    if found[:3] != found[-3:]:
        raise ValueError(f"{who} must have the same activations in both directions; got {', '.join(found)}.")
    gate, candidate, output = found[:3]
    clip = attributes.get("clip")
    return LSTMOptions(
        activation=candidate,
        recurrent_activation=gate,
        output_activation=None if output == candidate else output,
        preactivation_clip=None if clip is None else float(str(np.float32(clip))),
    )


def _said(name: str, *scales: float) -> str:
    return name + "".join(f" {scale} {value:g}" for scale, value in zip(SCALES, scales, strict=False))


def _attributes(options: LSTMOptions) -> dict[str, Any]:
    """Attributes as the text of a graph has them; lists are those of one direction."""
    validation.instance("options", options, LSTMOptions, "LSTMOptions(...)")
    for name in ("cell_clip", "projection_clip"):
        if getattr(options, name) is not None:
            raise ValueError(f"ONNX has no {name}, it clips what the gates see alone; got {getattr(options, name)}.")
    names = [options.recurrent_activation, options.activation, options.output_activation or options.activation]
    for name in names:
        validation.one_of("an activation for ONNX", name, ACTIVATIONS)
    scaled = [ACTIVATIONS[name] for name in names]
    attributes: dict[str, Any] = {"activations": [entry[0] for entry in scaled]}
    attributes["activation_alpha"] = [float(entry[1]) for entry in scaled if len(entry) > 1]
    attributes["activation_beta"] = [float(entry[2]) for entry in scaled if len(entry) > 2]
    if options.preactivation_clip is not None:
        attributes["clip"] = min(options.preactivation_clip, float(np.finfo(np.float32).max))
    return {name: value for name, value in attributes.items() if value != []}


def _dtype(layers: list[list[LSTMParams]], options: LSTMOptions) -> np.dtype:
    dtypes = sorted({jnp.result_type(leaf).name for leaf in jax.tree.leaves(layers)})
    if len(dtypes) > 1:
        raise ValueError(f"params must have one dtype for ONNX, which has one for a node; got {', '.join(dtypes)}.")
    if options.precision not in (None, dtypes[0]):
        raise ValueError(
            f"ONNX computes in the dtype of the weights, {dtypes[0]}: precision must be None; got {options.precision}."
        )
    return validation.floating_dtype("the dtype of params", dtypes[0])


def _check_layers(layers: list[list[LSTMParams]], reverse: bool) -> None:
    width = layers[0][0].inputs
    for number, halves in enumerate(layers):
        if len({(half.inputs, half.units, half.gates) for half in halves}) > 1:
            kinds = [(half.inputs, half.units, half.gates) for half in halves]
            raise ValueError(f"ONNX has one number of inputs, units and gates for both directions; got {kinds}.")
        if reverse and len(halves) > 1:
            raise ValueError("reverse=True has no place in ONNX where an LSTM has two directions.")
        if halves[0].inputs != width:
            raise ValueError(
                f"layer {number} of params must have {width} inputs, the outputs below; got {halves[0].inputs}."
            )
        width = sum(half.units for half in halves)


def _inputs(halves: list[LSTMParams]) -> dict[str, list[np.ndarray]]:
    """The weights of one node, those of each direction, by what ONNX calls them."""
    units, coupled, dtype = halves[0].units, halves[0].gates == 3, halves[0].w_x.dtype

    def theirs(array, format="onnx"):
        return gates.from_ours(_with_forget(array, units) if coupled else array, format)

    def state(half, part):
        return np.zeros((1, units), dtype) if half.initial is None else np.asarray(getattr(half.initial, part))[None]

    inputs = {"W": [theirs(half.w_x).T for half in halves], "R": [theirs(half.w_h).T for half in halves]}
    if any(gates.has_bias(half) for half in halves):
        inputs["B"] = [np.concatenate([theirs(part) for part in gates.two_biases(half)]) for half in halves]
    if any(half.w_peephole is not None for half in halves):
        none = np.zeros((2 if coupled else 3) * units, dtype)
        found = [none if half.w_peephole is None else half.w_peephole for half in halves]
        inputs["P"] = [theirs(part, "onnx peepholes") for part in found]
    if any(half.initial is not None for half in halves):
        inputs |= {f"initial_{part}": [state(half, part) for half in halves] for part in "hc"}
    return inputs


def _ours(array: np.ndarray) -> np.ndarray:
    return gates.to_ours(array, "onnx")


def _without_forget(array: np.ndarray, units: int) -> np.ndarray:
    return np.delete(array, np.s_[units : 2 * units], axis=-1)


def _with_forget(array: np.ndarray, units: int) -> np.ndarray:
    return np.insert(array, [units] * units, 0, axis=-1)
