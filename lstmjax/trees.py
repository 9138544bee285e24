"""Trees of params and of options as JSON, and back: what a file tells of what its arrays are parts of.

A node is one of

    null    "array"    {"dict": {key: node}}    {"tuple": [node, ...]}    {"LSTMParams": {field: node}}

and so on, with the kinds in `PARAMS` or `OPTIONS` and no others: names that a file brings are looked up there and never
imported. An array's name is its path, such as `encoder/w_h`; in options, text and numbers stand for themselves.
"""

import dataclasses
import reprlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstmjax import hierarchy, stack
from lstmjax.bidirectional import BidirectionalParams, BidirectionalState
from lstmjax.conv1d import Conv1DParams
from lstmjax.crf import Allowed, CRFParams
from lstmjax.dense import DenseParams
from lstmjax.embedding import EmbeddingParams
from lstmjax.hierarchy import HierarchyParams, LevelParams
from lstmjax.lstm import LSTMNorm, LSTMParams, LSTMState
from lstmjax.options import LSTMOptions
from lstmjax.regularize import Dropout
from lstmjax.residual import ResidualParams
from lstmjax.stack import StackParams

DEEPEST = 64  # nodes from the root to a leaf
LONGEST_KEY = 200  # characters, so that a name, of at most DEEPEST of them, is soon made
PRECISIONS = (None, "bfloat16", "float16", "float32", "float64")

# What fits is told by a function of the params of one model,
FITS: dict[type, Callable[[Any], Any]] = {
    LSTMParams: stack.check,
    BidirectionalParams: stack.check,
    StackParams: stack.check,
    HierarchyParams: hierarchy._check,
}
# by the kinds that parts are of,
PARTS: dict[type, dict[str, tuple[Any, ...]]] = {
    LSTMParams: {
        **dict.fromkeys((field.name for field in dataclasses.fields(LSTMParams)), (jax.Array, np.ndarray, type(None))),
        **{"norm": (LSTMNorm, type(None)), "initial": (LSTMState, type(None))},
    },
    BidirectionalState: {"forward": (LSTMState,), "backward": (LSTMState,)},
    ResidualParams: {"first": (Conv1DParams,), "second": (Conv1DParams,), "shortcut": (Conv1DParams, type(None))},
    LevelParams: {
        "encoder": (LSTMParams, BidirectionalParams, StackParams),
        "embedding": (EmbeddingParams, type(None)),
    },
}
# or by the last axes of arrays, of which those of one name are of one size; those before are common to all.
TAGS = {"start": ("tags",), "transitions": ("tags", "tags"), "end": ("tags",)}
AXES: dict[type, dict[str, tuple[str, ...]]] = {
    LSTMState: {"h": ("outputs",), "c": ("units",)},
    LSTMNorm: {
        **dict.fromkeys(("x_scale", "h_scale", "z_scale"), ("gates",)),
        **dict.fromkeys(("c_scale", "c_bias"), ("units",)),
    },
    DenseParams: {"w": ("inputs", "units"), "bias": ("units",)},
    EmbeddingParams: {"table": ("vocabulary", "features")},
    Conv1DParams: {"w": ("kernel", "inputs", "units"), "bias": ("units",)},
    CRFParams: TAGS,
    Allowed: TAGS,
}
PARAMS: dict[str, Any] = {kind.__name__: kind for kind in (*FITS, *PARTS, *AXES)}
OPTIONS: dict[str, Any] = {kind.__name__: kind for kind in (LSTMOptions, Dropout)}


def describe(params: Any) -> tuple[Any, dict[str, Any]]:
    """The node of params, and their arrays by name; an error unless they fit each other."""
    arrays: dict[str, Any] = {}

    def leaf(where: tuple[str, ...], value: Any) -> str:
        if not isinstance(value, jax.Array | np.ndarray | np.generic):
            raise TypeError(
                f"{_named('params', where)} must be an array, or a dict, tuple, list, or one of {', '.join(PARAMS)}, "
                f"not of a subclass; got {type(value).__name__}."
            )
        if (name := "/".join(where)) in arrays:
            raise ValueError(f"params has {name!r}, which is the name of two arrays: choose another key.")
        arrays[name] = value
        return "array"

    node = _described(params, PARAMS, leaf, "params")
    _check(params, "params")
    return node, arrays


def rebuild(node: Any, arrays: dict[str, Any]) -> Any:
    """Undo `describe`, trusting nothing."""
    arrays = dict(arrays)

    def leaf(where: tuple[str, ...], node: Any) -> Any:
        if node != "array":
            raise ValueError(f"{_named('params', where)} must be described by an object, null or 'array'.")
        if (name := "/".join(where)) not in arrays:
            raise ValueError(f"the array {name!r} is missing, or is named twice.")
        return arrays.pop(name)

    params = _rebuilt(node, PARAMS, leaf, "params")
    if arrays:
        raise ValueError(f"it has arrays that its description does not: {listed(map(repr, arrays))}.")
    _check(params, "params")
    return params


def describe_options(options: Any) -> Any:
    """The node of options."""
    return _described(options, OPTIONS, _scalar, "options")


def rebuild_options(node: Any) -> Any:
    """Undo `describe_options`, trusting nothing."""
    return _rebuilt(node, OPTIONS, _scalar, "options")


def differences(found: Any, wanted: Any, where: tuple[str, ...] = ()) -> Iterator[str]:
    """In which structure, shapes and dtypes params differ from others."""
    if _told(found) != _told(wanted):
        yield f"{_named('params', where)} is {_told(found)}, and in like {_told(wanted)}"
    elif found is not None and not hasattr(found, "dtype"):
        has, needs = _children(found), _children(wanted)
        yield from (f"{_named('params', (*where, key))} is not in like" for key in has if key not in needs)
        yield from (f"{_named('params', (*where, str(key)))} is missing" for key in needs if key not in has)
        for key in [key for key in has if key in needs]:
            yield from differences(has[key], needs[key], (*where, key))


def listed(items: Iterable[str], most: int = 8) -> str:
    """Some of them, none of which is long."""
    items = [cut(item) for item in items]
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more if items else "none"


def cut(text: str, most: int = 200) -> str:
    """The text, or the beginning of a long one."""
    return text if len(text) <= most else text[: most - 3] + "..."


def _described(value: Any, kinds: dict[str, Any], leaf: Callable[..., Any], root: str, where: tuple[str, ...] = ()):
    """A tree as JSON, in which `leaf` says what stands for a leaf."""
    if len(where) > DEEPEST:
        raise ValueError(f"{root} must be at most {DEEPEST} levels deep; {_named(root, where)} is deeper.")
    kind = type(value)
    if value is None:
        return None
    if kind is not dict and kind not in (tuple, list, *kinds.values()):
        return leaf(where, value)
    described = {}
    for key, child in _children(value).items():
        _check_key(_named(root, where), key)
        described[key] = _described(child, kinds, leaf, root, (*where, key))
    if kind in (tuple, list):
        return {kind.__name__: list(described.values())}
    optional = () if kind is dict else [name for name, default in _defaults(kind).items() if default is None]
    described = {key: node for key, node in described.items() if node is not None or key not in optional}
    told = {key: text for key, text in _static(value).items() if text != _defaults(kind)[key]}
    return {kind.__name__: described | told}


def _rebuilt(node: Any, kinds: dict[str, Any], leaf: Callable[..., Any], root: str, where: tuple[str, ...] = ()):
    """Undo `_described`, trusting nothing."""
    name = _named(root, where)
    if len(where) > DEEPEST:
        raise ValueError(f"{root} must be at most {DEEPEST} levels deep; {name} is deeper.")
    if not isinstance(node, dict):
        return None if node is None else leaf(where, node)
    if len(node) != 1:
        raise ValueError(f"{name} must be of one kind; got {listed(map(repr, node))}.")
    [(kind, children)] = node.items()
    if kind not in ("dict", "tuple", "list", *kinds):
        raise ValueError(
            f"{name} must be a dict, a tuple, a list or one of {', '.join(kinds)}; got {reprlib.repr(kind)}, "
            "which this version does not know."
        )
    if not isinstance(children, list if kind in ("tuple", "list") else dict):
        raise ValueError(f"{name}, a {kind}, has as children a {type(children).__name__}.")
    given = dict(enumerate(children)) if isinstance(children, list) else children
    if kind in kinds:
        defaults = _defaults(kinds[kind])
        unknown = [key for key in given if key not in defaults]
        missing = [key for key, default in defaults.items() if key not in given and default is dataclasses.MISSING]
        if unknown or missing:
            raise ValueError(
                f"{name}, of {kind}, must have {', '.join(defaults)}; missing: {listed(missing)}, unknown: "
                f"{listed(map(repr, unknown))}."
            )
    built = {}
    for key, child in given.items():
        if kind == "dict":
            _check_key(name, key)
        elif kind in kinds and key in _static(kinds[kind]):
            if not isinstance(child, str):
                raise ValueError(f"{name}/{key} must be text; got {reprlib.repr(child)}.")
            built[key] = child
            continue
        built[key] = _rebuilt(child, kinds, leaf, root, (*where, str(key)))
    if kind in ("tuple", "list"):
        return tuple(built.values()) if kind == "tuple" else list(built.values())
    if kind == "LSTMOptions" and built.get("precision") not in PRECISIONS:
        raise ValueError(f"{name} must have a precision among {PRECISIONS}; got {reprlib.repr(built['precision'])}.")
    return built if kind == "dict" else kinds[kind](**built)


def _children(value: Any) -> dict[Any, Any]:
    """What a node holds, by the names that make paths."""
    if isinstance(value, dict):
        return value
    if type(value) in (tuple, list):
        return {str(number): child for number, child in enumerate(value)}
    return {name: getattr(value, name) for name in _defaults(type(value)) if name not in _static(value)}


def _static(value: Any) -> dict[str, Any]:
    """The fields of a dataclass, or of an instance of one, that are text and no arrays, such as the kind of a norm."""
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    return {field.name: getattr(value, field.name, None) for field in fields if field.metadata.get("static")}


def _defaults(kind: Any) -> dict[str, Any]:
    """The fields of a dataclass or a NamedTuple, and their defaults."""
    if dataclasses.is_dataclass(kind):
        return {field.name: field.default for field in dataclasses.fields(kind)}
    return dict.fromkeys(kind._fields, dataclasses.MISSING)


def _scalar(where: tuple[str, ...], value: Any) -> Any:
    if type(value) not in (str, bool, int, float):
        raise TypeError(
            f"{_named('options', where)} must be text, a number, True, False, None, a dict, a tuple, a list or one of "
            f"{', '.join(OPTIONS)}; got {type(value).__name__}."
        )
    return value


def _check_key(name: str, key: Any) -> None:
    if type(key) is not str or any("\ud800" <= character <= "\udfff" for character in key):
        raise TypeError(f"{name} must have keys of text that UTF-8 can write; got {reprlib.repr(key)}.")
    if len(key) > LONGEST_KEY:
        raise ValueError(f"{name} must have keys of at most {LONGEST_KEY} characters; got one of {len(key)}.")


def _check(node: Any, name: str) -> None:
    """Raise unless all params and states in a tree are such as this library can run, apart from leading axes."""
    if node is None or hasattr(node, "dtype"):
        return
    kind = type(node)
    for field, expected in PARTS.get(kind, {}).items():
        if not isinstance(getattr(node, field), expected):
            kinds = " or ".join("None" if one is type(None) else one.__name__ for one in expected)
            raise TypeError(f"{name}/{field} must be {kinds}; got {_told(getattr(node, field))}.")
    for key, child in _children(node).items():
        _check(child, f"{name}/{key}")
    if kind in AXES:
        _check_axes(node, name)
    if kind in FITS:
        fits, leaves = FITS[kind], jax.tree.leaves(node)
        for _ in range(leaves[0].ndim - 2 if leaves else 0):
            fits = jax.vmap(fits)
        try:
            jax.eval_shape(fits, node)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name} is no {kind.__name__} that runs: {error}") from error


def _check_axes(node: Any, name: str) -> None:
    sizes: dict[str, Any] = {}
    dtype, called = (jnp.bool_, "bool") if isinstance(node, Allowed) else (jnp.floating, "floating")
    optional = {name for name, default in _defaults(type(node)).items() if default is None}
    for field, axes in AXES[type(node)].items():
        if field in optional and getattr(node, field) is None:
            continue
        array, told = getattr(node, field), f"[{', '.join(axes)}]; got {_told(getattr(node, field))}."
        if not hasattr(array, "dtype") or not jnp.issubdtype(array.dtype, dtype) or array.ndim < len(axes):
            raise ValueError(f"{name}/{field} must be a {called} array {told}")
        before = array.ndim - len(axes)
        for axis, size in zip(("the axes before", *axes), (array.shape[:before], *array.shape[before:]), strict=True):
            if sizes.setdefault(axis, size) != size:
                raise ValueError(f"{name}/{field} must have {sizes[axis]} for {axis}, as others have, in {told}")


def _told(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} {tuple(value.shape)}"
    told = ", ".join(f"{name}={part!r}" for name, part in _static(value).items())
    return "None" if value is None else type(value).__name__ + (f"({told})" if told else "")


def _named(root: str, where: tuple[str, ...]) -> str:
    return cut("/".join((root, *where)))
