"""Trees of params and of options as JSON, and back: what a file tells of what its arrays are parts of.

A node is one of

    null    "array"    3    {"dict": {key: node}}    {"tuple": [node, ...]}    {"LSTMParams": {field: node}}
    {"key": "threefry2x32"}

and so on, with the kinds in `PARAMS` or `OPTIONS` and no others: names that a file brings are looked up there and never
imported. Other pytrees, such as optax's states, are

    {"like": [name of the type, {key: node}]}

and come back where `like` has one of that type: the name is compared and never imported. An array's name is its path,
such as `encoder/w_h`; numbers, and in options text, stand for themselves.
"""

import dataclasses
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from lstmjax import hierarchy, stack
from lstmjax._src.dropout_masks import Dropout
from lstmjax._src.lstm.options import LSTMOptions
from lstmjax.bidirectional import BidirectionalParams, BidirectionalState
from lstmjax.conv1d import Conv1DParams
from lstmjax.crf import Allowed, CRFParams
from lstmjax.dense import DenseParams
from lstmjax.embedding import EmbeddingParams
from lstmjax.hierarchy import HierarchyParams, LevelParams
from lstmjax.lstm import LSTMNorm, LSTMParams, LSTMState
from lstmjax.residual import ResidualParams
from lstmjax.stack import StackParams

DEEPEST = 64  # nodes from the root to a leaf
NUMBERS: dict[type, Any] = {bool: jnp.bool_, int: jnp.integer, float: jnp.floating}
KEYS = ("threefry2x32", "rbg", "unsafe_rbg")  # kinds of JAX's random keys, whose array is their data
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


class Foreign(NamedTuple):
    """A pytree of another library, as a file tells of it.

    Args:
        kind: the name of its type, which is compared with that of `like` alone.
        children: by their names.
    """

    kind: str
    children: dict[str, Any]


def describe(params: Any) -> tuple[Any, dict[str, Any]]:
    """The node of params, and their arrays by name; an error unless they fit each other."""
    arrays: dict[str, Any] = {}

    def leaf(where: tuple[str, ...], value: Any) -> Any:
        if type(value) in NUMBERS:
            return value
        narrower = isinstance(value, np.generic) and jax.dtypes.canonicalize_dtype(value.dtype) != value.dtype
        if narrower and type(value.item()) in NUMBERS:
            return value.item()
        if not isinstance(value, jax.Array | np.ndarray | np.generic):
            raise TypeError(
                f"{_named('params', where)} must be an array, a number, a dict, tuple, list, one of "
                f"{', '.join(PARAMS)}, or another pytree of arrays; got {type(value).__name__}."
            )
        if (name := "/".join(where)) in arrays:
            raise ValueError(f"params has {cut(name)!r}, which is the name of two arrays: choose another key.")
        if _is_key(value):
            if (kind := str(jax.random.key_impl(value))) not in KEYS:
                raise TypeError(f"{_named('params', where)} must be a key of {', '.join(KEYS)}; got one of {kind}.")
            arrays[name] = jax.random.key_data(value)
            return {"key": kind}
        arrays[name] = value
        return "array"

    node = _described(params, PARAMS, leaf, "params")
    _check(params)
    return node, arrays


def rebuild(node: Any, arrays: dict[str, Any]) -> Any:
    """Undo `describe`, trusting nothing; what is of no kind of ours is a `Foreign`."""
    arrays = dict(arrays)

    def leaf(where: tuple[str, ...], node: Any) -> Any:
        if type(node) in NUMBERS:
            return node
        if node != "array":
            raise ValueError(
                f"{_named('params', where)} must be described by an object, null or 'array', or be a number."
            )
        if (name := "/".join(where)) not in arrays:
            raise ValueError(f"the array {cut(name)!r} is missing, or is named twice.")
        return arrays.pop(name)

    params = _rebuilt(node, PARAMS, leaf, "params")
    if arrays:
        raise ValueError(f"it has arrays that its description does not: {listed(map(repr, arrays))}.")
    _check(params)
    return params


def fitted(found: Any, like: Any, where: tuple[str, ...] = ()) -> Any:
    """Give the result of `rebuild` the types of `like`, whose structure it has, or raise where it needs a like."""
    foreign = isinstance(found, Foreign)
    if foreign and like is None:
        raise ValueError(
            f"{_named('params', where)} is a {found.kind}, which no file makes: pass like=, a tree of the same "
            "structure, such as the state that it is to replace."
        )
    if found is None or hasattr(found, "dtype") or type(found) in NUMBERS:
        return found
    wanted = {} if like is None else _children(like)
    children = {key: fitted(child, wanted.get(key), (*where, key)) for key, child in _children(found).items()}
    if foreign or _is_foreign(like):
        [*_], tree = jax.tree_util.tree_flatten(like, is_leaf=lambda node: node is not like)
        return tree.unflatten([children[key] for key in wanted])
    kind = type(found)
    if kind in (tuple, list):
        return kind(children.values())
    return children if kind is dict else kind(**children, **_static(found))


def describe_options(options: Any) -> Any:
    """The node of options."""
    return _described(options, OPTIONS, _scalar, "options")


def rebuild_options(node: Any) -> Any:
    """Undo `describe_options`, trusting nothing."""
    return _rebuilt(node, OPTIONS, _scalar, "options")


def differences(found: Any, wanted: Any, where: tuple[str, ...] = ()) -> Iterator[str]:
    """In which structure, shapes and dtypes params differ from others."""
    if _told(found) != _told(wanted) and not _is_number(found, wanted):
        yield f"{_named('params', where)} is {_told(found)}, and in like {_told(wanted)}"
    elif found is not None and not hasattr(found, "dtype") and type(found) not in NUMBERS:
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
    """A tree as JSON, in which `leaf` makes the entry of a leaf."""
    if len(where) > DEEPEST:
        raise ValueError(f"{root} must be at most {DEEPEST} levels deep; {_named(root, where)} is deeper.")
    kind = dict if _is_frozen(value) else type(value)
    if value is None:
        return None
    foreign = kinds is PARAMS and _is_foreign(value) and not _is_frozen(value)
    if not foreign and kind not in (dict, tuple, list, *kinds.values()):
        return leaf(where, value)
    described = {}
    for key, child in _children(value).items():
        _check_key(root, where, key)
        described[key] = _described(child, kinds, leaf, root, (*where, key))
    if foreign:
        return {"like": [_told(value), described]}
    if kind in (tuple, list):
        return {kind.__name__: list(described.values())}
    optional = () if kind is dict else [name for name, default in _defaults(kind).items() if default is None]
    described = {key: node for key, node in described.items() if node is not None or key not in optional}
    told = {key: text for key, text in _static(value).items() if text != _defaults(kind)[key]}
    return {kind.__name__: described | told}


def _rebuilt(node: Any, kinds: dict[str, Any], leaf: Callable[..., Any], root: str, where: tuple[str, ...] = ()):
    """Undo `_described`, trusting nothing."""
    if len(where) > DEEPEST:
        raise ValueError(f"{root} must be at most {DEEPEST} levels deep; {_named(root, where)} is deeper.")
    if not isinstance(node, dict):
        return None if node is None else leaf(where, node)
    if len(node) != 1:
        raise ValueError(f"{_named(root, where)} must be of one kind; got {listed(map(repr, node))}.")
    [(kind, children)] = node.items()
    if kind == "like" and kinds is PARAMS:
        if not isinstance(children, list) or [type(part) for part in children] != [str, dict]:
            raise ValueError(f"{_named(root, where)} must be described by the name of a type and what it holds.")
        kind, children = children
        return Foreign(kind, _rebuilt({"dict": children}, kinds, leaf, root, where))
    if kind == "key" and kinds is PARAMS:
        if not isinstance(children, str) or children not in KEYS:
            raise ValueError(f"{_named(root, where)} must be a key of {', '.join(KEYS)}; got {reprlib.repr(children)}.")
        return jax.random.wrap_key_data(leaf(where, "array"), impl=children)
    if kind not in ("dict", "tuple", "list", *kinds):
        raise ValueError(
            f"{_named(root, where)} must be a dict, a tuple, a list or one of {', '.join(kinds)}; got "
            f"{reprlib.repr(kind)}, which this version does not know."
        )
    if not isinstance(children, list if kind in ("tuple", "list") else dict):
        raise ValueError(f"{_named(root, where)}, a {kind}, has as children a {type(children).__name__}.")
    given = dict(enumerate(children)) if isinstance(children, list) else children
    if kind in kinds:
        defaults = _defaults(kinds[kind])
        unknown = [key for key in given if key not in defaults]
        missing = [key for key, default in defaults.items() if key not in given and default is dataclasses.MISSING]
        if unknown or missing:
            raise ValueError(
                f"{_named(root, where)}, of {kind}, must have {', '.join(defaults)}; missing: {listed(missing)}, "
                f"unknown: {listed(map(repr, unknown))}."
            )
    built = {}
    for key, child in given.items():
        if kind == "dict":
            _check_key(root, where, key)
        elif kind in kinds and key in _static(kinds[kind]):
            if not isinstance(child, str):
                raise ValueError(f"{_named(root, (*where, key))} must be text; got {reprlib.repr(child)}.")
            built[key] = child
            continue
        built[key] = _rebuilt(child, kinds, leaf, root, (*where, str(key)))
    if kind in ("tuple", "list"):
        return tuple(built.values()) if kind == "tuple" else list(built.values())
    if kind == "LSTMOptions" and built.get("precision") not in PRECISIONS:
        raise ValueError(
            f"{_named(root, where)} must have a precision among {PRECISIONS}; got {reprlib.repr(built['precision'])}."
        )
    return built if kind == "dict" else kinds[kind](**built)


def _children(value: Any) -> dict[Any, Any]:
    """Children of a node, by the names that make paths."""
    if isinstance(value, Foreign):
        return value.children
    if type(value) is dict:
        return value
    if type(value) in (tuple, list):
        return {str(number): child for number, child in enumerate(value)}
    if _is_foreign(value):
        within, _ = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda node: node is not value)
        found = {jax.tree_util.keystr(path, simple=True): child for path, child in within}
        if len(found) < len(within):
            raise ValueError(f"params has a {_told(value)} with two children of one name.")
        return found
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


def _is_foreign(value: Any) -> bool:
    """True for a pytree of a kind that a file cannot make."""
    known = (dict, tuple, list, *PARAMS.values(), *OPTIONS.values(), Foreign, type(None))
    return type(value) not in known and not jax.tree_util.all_leaves([value])


def _is_key(value: Any) -> TypeGuard[jax.Array]:
    """True for a typed random key, or an array of them."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _is_frozen(value: Any) -> bool:
    """True for Flax's FrozenDict, which is written as a dict."""
    return type(value).__name__ == "FrozenDict" and isinstance(value, Mapping)


def _is_number(found: Any, wanted: Any) -> bool:
    """True for a number that `jax.eval_shape` made an array in `like`."""
    kind = NUMBERS.get(type(found))
    return kind is not None and getattr(wanted, "shape", None) == () and jnp.issubdtype(wanted.dtype, kind)


def _check_key(root: str, where: tuple[str, ...], key: Any) -> None:
    if type(key) is not str or any("\ud800" <= character <= "\udfff" for character in key):
        raise TypeError(f"{_named(root, where)} must have keys of text that UTF-8 can write; got {reprlib.repr(key)}.")


def _check(node: Any, where: tuple[str, ...] = ()) -> None:
    """Raise unless all params and states in a tree are such as this library can run, apart from leading axes.

    What optimisers and the like keep need not run: their trees may lack parts, and are left alone.
    """
    if node is None or hasattr(node, "dtype") or type(node) in NUMBERS:
        return
    if isinstance(node, Foreign) or (_is_foreign(node) and not _is_frozen(node)):
        return
    kind = type(node)
    for field, expected in PARTS.get(kind, {}).items():
        if not isinstance(getattr(node, field), expected):
            kinds = " or ".join("None" if one is type(None) else one.__name__ for one in expected)
            raise TypeError(f"{_named('params', (*where, field))} must be {kinds}; got {_told(getattr(node, field))}.")
    for key, child in _children(node).items():
        _check(child, (*where, key))
    if kind in AXES:
        _check_axes(node, _named("params", where))
    if kind in FITS:
        fits, leaves = FITS[kind], jax.tree.leaves(node)
        for _ in range(leaves[0].ndim - 2 if leaves else 0):
            fits = jax.vmap(fits)
        try:
            jax.eval_shape(fits, node)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{_named('params', where)} is no {kind.__name__} that runs: {error}") from error


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
    if isinstance(value, Foreign):
        return value.kind
    if _is_frozen(value):
        return "dict"
    if value is None:
        return "None"
    kind = type(value)
    if _is_foreign(value):
        return f"{kind.__module__}.{kind.__name__}"
    told = ", ".join(f"{name}={part!r}" for name, part in _static(value).items())
    return kind.__name__ + (f"({told})" if told else "")


def _named(root: str, where: tuple[str, ...]) -> str:
    return cut("/".join((root, *map(cut, where))), 150)
