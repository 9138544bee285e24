"""Flax, linen and nnx: `LSTMCell`, `OptimizedLSTMCell`, and `RNN`, `Bidirectional` and `Sequential` of them.

    w_x = [ii, if, ig, io]    w_h = [hi, hf, hg, ho]    bias = that of hi, hf, hg, ho

Both cells of linen have one layout; the optimised one of nnx keeps the gates side by side, `dense_i` and `dense_h`.
Flax adds nothing to the forget gate, neither at run time nor when it draws weights.
"""

import functools
import operator
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstmjax._src import keywords, validation
from lstmjax._src.lstm.options import ACTIVATIONS, LSTMOptions
from lstmjax.interop import gates
from lstmjax.lstm import LSTMParams

# Names of the kernels on the side of x, then on that of h, where the bias is.
LAYOUTS = (
    (("ii", "if", "ig", "io"), ("hi", "hf", "hg", "ho")),
    (("ii", "if_", "ig", "io"), ("hi", "hf", "hg", "ho")),
    (("dense_i",), ("dense_h",)),
)
PROBES = np.concatenate([np.linspace(-8, 8, 321), [-1e4, -50, 50, 1e4]]).astype(np.float32)

Path = tuple[Any, ...]
Names = tuple[str, ...]
Layout = tuple[Names, Names]


@keywords.explained("interop.from_flax")
def from_flax(source: Any, *, options: LSTMOptions = LSTMOptions()) -> gates.RECURRENT:
    """Take the weights of an LSTM of Flax.

    What a call of Flax's is told, such as reverse or time_major, is no part of the weights: tell `apply`. An nnx module
    that was made with reverse, time_major or a merge_fn is refused; its state, `nnx.state(module)`, has the weights.

    Args:
        source: an nnx module, its state or pure dict; or the variables of a linen module, with or without "params".
            Of a larger model the part that is the LSTM, such as variables["params"]["encoder"].
        options: what the params are to run with; the functions and the dtype of an nnx module must be those. A linen
            module keeps them apart from its variables, so that they cannot be compared.

    Returns:
        LSTMParams of a cell or an RNN, BidirectionalParams of a Bidirectional, StackParams of a Sequential of several.

    Raises:
        ValueError: other weights than those of an LSTM, shapes that do not fit each other, a module that computes
            otherwise than the options say; TypeError: another kind of source, a dtype that is not floating.

    >>> from flax import nnx
    >>> cell = nnx.OptimizedLSTMCell(2, 3, rngs=nnx.Rngs(0))
    >>> params = from_flax(nnx.RNN(cell))
    >>> params.w_x.shape, bool((params.w_x == cell.dense_i.kernel[...]).all())
    ((2, 12), True)
    """
    tree = _tree("source", source, options)
    places = _cells("source", tree)
    return gates.gathered([tuple(_read("source", tree, path) for path in paths) for paths in places])


@keywords.explained("interop.to_flax")
def to_flax(params: gates.RECURRENT, like: Any = None) -> dict[Any, Any]:
    """Make the weights that Flax takes.

    Args:
        params: LSTMParams, BidirectionalParams or StackParams.
        like: what the result is to fit: an nnx module or its state, abstract ones too, or linen's variables; whatever
            `from_flax` takes. None is the params of linen's cells, of its `Bidirectional` of two `RNN`, or of its
            `Sequential` of either.

    Returns:
        Nested dicts of arrays, of the dtype of params: for `cell.apply({"params": to_flax(params)}, ...)`, or
        `nnx.update(module, to_flax(params, module))`. All biases and the offset are one sum, and 0 where there is none.

    Raises:
        ValueError: parts that Flax has no place for, other layers, directions or shapes than those of `like`;
        TypeError: another kind of params or of `like`.

    >>> import jax
    >>> from lstmjax import lstm
    >>> weights = to_flax(lstm.init(jax.random.key(0), inputs=2, units=3))
    >>> sorted(weights), weights["ii"]["kernel"].shape
    (['hf', 'hg', 'hi', 'ho', 'if', 'ig', 'ii', 'io'], (2, 3))
    """
    layers = [tuple(gates.only("Flax", half) for half in halves) for halves in gates.layers(params)]
    tree = None if like is None else _tree("like", like)
    places = _linen(layers) if tree is None else _cells("like", tree)
    wanted, had = [len(halves) for halves in layers], [len(paths) for paths in places]
    if wanted != had:
        raise ValueError(
            f"like must have the layers of params, with directions {wanted} of each; it has {had}. None is linen's."
        )
    made: dict[Any, Any] = {}
    for paths, halves in zip(places, layers, strict=True):
        for path, half in zip(paths, halves, strict=True):
            cell = None if tree is None else _at(tree, path)
            for name, kind, part in _written(half, LAYOUTS[0] if cell is None else _layout(cell)):
                inner = made
                for key in (*path, name):
                    inner = inner.setdefault(key, {})
                validation.floating_dtype("the dtype of params", part.dtype)
                inner[kind] = jnp.array(part)
                if cell is not None and (shape := tuple(_value(cell[name][kind]).shape)) != part.shape:
                    raise ValueError(f"{_name('like', *path, name, kind)} has shape {shape}; params have {part.shape}.")
    return made


def _tree(name: str, given: Any, options: LSTMOptions | None = None) -> Mapping[Any, Any]:
    """The weights of a module, after a look at what else it has, or what is a tree already."""
    if isinstance(given, Mapping):
        return given
    from flax import nnx

    if not isinstance(given, nnx.Module):
        raise TypeError(
            f"{name} must be an nnx module, its state, or the variables of a linen module, as its init gives them; "
            f"got {type(given).__name__}."
        )
    for path, module in nnx.iter_modules(given):
        if isinstance(module, nnx.Sequential) and not all(isinstance(layer, nnx.Module) for layer in module.layers):
            raise ValueError(f"{_name(name, *path)} has functions among its layers: convert each layer by itself.")
        if options is not None and isinstance(module, nnx.LSTMCell | nnx.OptimizedLSTMCell):
            _check_functions(_name(name, *path), module, options)
        if options is not None and isinstance(module, nnx.RNN | nnx.Bidirectional):
            _check_reading(_name(name, *path), module, is_backward=path[-1:] == ("backward_rnn",))
    return nnx.state(given)


def _check_reading(name: str, module: Any, is_backward: bool) -> None:
    """Raise where a module reads or merges otherwise than `apply` does unless it is told."""
    alone = f"The weights alone are in nnx.state({name.partition('/')[0]})."
    if getattr(module, "time_major", False):
        raise ValueError(f"{name} has time_major=True, where apply has time second to last: move axes. {alone}")
    if getattr(module, "reverse", False) and not is_backward:  # which Bidirectional tells itself
        order = "" if module.keep_order else ", whose outputs are in the order of keep_order=True"
        raise ValueError(f"{name} has reverse=True: give apply reverse=True{order}. {alone}")
    merge = getattr(module, "merge_fn", None)
    if merge is not None and not np.array_equal(merge(PROBES, -PROBES), np.concatenate([PROBES, -PROBES])):
        raise ValueError(f"{name} has a merge_fn other than its default: give apply merge=, where it has one. {alone}")


def _check_functions(name: str, cell: Any, options: LSTMOptions) -> None:
    """Raise unless the options compute what the cell does."""
    alone = "The weights alone are in nnx.state(source)."
    last = "output_activation" if options.output_activation else "activation"
    for attribute, field in (
        ("gate_fn", "recurrent_activation"),
        ("activation_fn", "activation"),
        ("activation_fn", last),
    ):
        function, chosen = getattr(cell, attribute), getattr(options, field)
        if not _same(function, ACTIVATIONS[chosen]):
            known = [key for key, ours in ACTIVATIONS.items() if _same(function, ours)]
            remedy = f"give options=LSTMOptions({field}={known[0]!r})" if known else "no option of ours computes that"
            theirs = getattr(function, "__name__", function)
            raise ValueError(f"{name} has {attribute}={theirs}, and options {field}={chosen!r}: {remedy}. {alone}")
    if cell.carry_init is not None and np.any(cell.carry_init(jax.random.key(0), (1, 8), cell.param_dtype)):
        raise ValueError(
            f"{name} has a carry_init other than zeros: carries that apply is to begin with are state=. {alone}"
        )
    ours = options.precision or jnp.dtype(cell.param_dtype).name
    theirs = ours if cell.dtype is None else jnp.dtype(cell.dtype).name
    if theirs != ours:
        remedy = f"give options=LSTMOptions(precision={theirs!r})"
        raise ValueError(f"{name} computes in {theirs}, not in {ours}: {remedy}. {alone}")


def _same(function: Any, ours: Any) -> bool:
    return function is ours or np.allclose(function(PROBES), ours(PROBES), rtol=1e-6, atol=1e-6)


def _cells(name: str, tree: Any, path: Path = ()) -> list[tuple[Path, ...]]:
    """The paths to the cells of each layer: one, or that of the forward and that of the backward half."""
    if not isinstance(tree, Mapping):
        raise ValueError(f"{_name(name, *path)} must hold the weights of an LSTM, got {type(_value(tree)).__name__}.")
    keys = set(tree) - {"rngs"}
    if "params" in keys:
        return _cells(name, tree["params"], (*path, "params"))
    if keys in ({"cell"}, {"layers"}):
        return _cells(name, tree[key := keys.pop()], (*path, key))
    if keys == {"forward_rnn", "backward_rnn"}:
        halves = [_cells(name, tree[key], (*path, key)) for key in ("forward_rnn", "backward_rnn")]
        if [[len(paths) for paths in half] for half in halves] != [[1], [1]]:
            raise ValueError(f"{_name(name, *path)} must have one LSTM in each direction.")
        return [(halves[0][0][0], halves[1][0][0])]
    numbered = {int(match[1]): key for key in keys if (match := re.fullmatch(r"(?:layers_)?(\d+)", str(key)))}
    if keys and len(numbered) == len(keys):
        if sorted(numbered) != list(range(len(keys))):
            raise ValueError(
                f"{_name(name, *path)} has weights in layers {sorted(numbered)} alone, so that there is something else "
                "among them: convert each layer by itself."
            )
        every = [_cells(name, tree[key], (*path, key)) for _, key in sorted(numbered.items())]
        return [paths for layer in every for paths in layer]
    if "hn" in keys or (isinstance(dense := tree.get("dense_h"), Mapping) and _is_of_three(dense)):
        raise ValueError(
            f"{_name(name, *path)} must have the weights of an LSTM, of 4 gates; got the 3 gates of a GRU."
        )
    if keys <= {"kernel", "bias"} and "kernel" in keys:
        raise ValueError(f"{_name(name, *path)} must have the weights of an LSTM; got a kernel alone: {gates.DENSE}.")
    if _layout(tree) is None:
        raise ValueError(
            f"{_name(name, *path)} must have the weights of an LSTM, {' or '.join(map(_listed, LAYOUTS))}; got "
            f"{', '.join(sorted(_name(*part) for part in _parts(tree))) or 'none'}. Give the part of a model that is "
            "the LSTM."
        )
    return [(path,)]


def _is_of_three(dense: Mapping[Any, Any]) -> bool:
    """True if the optimised cell is a GRU."""
    shape = jnp.shape(_value(dense["kernel"])) if "kernel" in dense else ()
    return len(shape) == 2 and shape[1] == 3 * shape[0]


def _linen(layers: list[tuple[LSTMParams, ...]]) -> list[tuple[Path, ...]]:
    if len(layers) == 1 and len(layers[0]) == 1:
        return [((),)]
    halves = {1: [("cell",)], 2: [("forward_rnn", "cell"), ("backward_rnn", "cell")]}
    return [
        tuple((f"layers_{number}", *path) if len(layers) > 1 else path for path in halves[len(layer)])
        for number, layer in enumerate(layers)
    ]


def _read(name: str, tree: Any, path: Path) -> LSTMParams:
    cell = _at(tree, path)
    of_x, of_h = _layout(cell)

    def part(names: Names, kind: str, *axes: int | None) -> np.ndarray:
        arrays = [gates.host(_name(name, *path, key, kind), _value(cell[key][kind]), *axes) for key in names]
        if len({array.dtype for array in arrays}) > 1:
            raise ValueError(f"{_name(name, *path)} must have all of {', '.join(names)} in one dtype.")
        return gates.to_ours(np.concatenate(arrays, axis=-1), "flax")

    units = len(gates.host(_name(name, *path, of_h[0], "kernel"), _value(cell[of_h[0]]["kernel"]), None, None))
    inputs = len(gates.host(_name(name, *path, of_x[0], "kernel"), _value(cell[of_x[0]]["kernel"]), None, None))
    width = 4 * units // len(of_h)
    return gates.params(
        part(of_x, "kernel", inputs, width), part(of_h, "kernel", units, width), part(of_h, "bias", width)
    )


def _written(given: LSTMParams, layout: Layout) -> Iterator[tuple[str, str, np.ndarray]]:
    of_x, of_h = layout
    for names, kind, array in (
        (of_x, "kernel", given.w_x),
        (of_h, "kernel", given.w_h),
        (of_h, "bias", gates.one_bias(given)),
    ):
        parts = np.split(gates.from_ours(array, "flax"), len(names), axis=-1)
        yield from ((name, kind, part) for name, part in zip(names, parts, strict=True))


def _layout(cell: Mapping[Any, Any]) -> Any:
    """The layout of an LSTM, or None."""
    return next((layout for layout in LAYOUTS if set(_parts(cell)) == _expected(layout)), None)


def _expected(layout: Layout) -> set[Path]:
    of_x, of_h = layout
    return {(name, "kernel") for name in of_x + of_h} | {(name, "bias") for name in of_h}


def _parts(cell: Mapping[Any, Any]) -> set[Path]:
    """Attributes of a cell, two levels deep."""
    return {
        (key, kind) if isinstance(inner, Mapping) else (key,)
        for key, inner in cell.items()
        if key != "rngs"
        for kind in (inner if isinstance(inner, Mapping) else (None,))
    }


def _listed(layout: Layout) -> str:
    of_x, of_h = layout
    return f"[{', '.join(of_x)}]/kernel with [{', '.join(of_h)}]/[kernel, bias]"


def _name(*path: Any) -> str:
    return "/".join(map(str, path))


def _at(tree: Any, path: Path) -> Any:
    return functools.reduce(operator.getitem, path, tree)


def _value(leaf: Any) -> Any:
    """The array in a variable of nnx, or in a box of linen, such as `nn.with_partitioning` makes."""
    for method in ("get_value", "unbox"):
        if hasattr(leaf, method):
            return getattr(leaf, method)()
    return leaf
