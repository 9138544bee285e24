"""Weights on disk: one file in the safetensors format, which holds arrays and text, and nothing that could run.

An array's name is its path, such as `encoder/w_h`. What the arrays are parts of is told in the metadata, as JSON of

    null    "array"    {"dict": {key: node}}    {"tuple": [node, ...]}    {"LSTMParams": {field: node}}

and so on, with the kinds in `PARAMS` and no others: names that a file brings are looked up there and never imported.
Beside that description stand the options, the number of the format, the version of this library, and the SHA-256 of
the whole file with the digits of that very sum as zeros, so that no byte changes unseen, be it of the header. Who
forges a file can compute that sum too: all that the header tells is checked before it is used.
"""

import dataclasses
import hashlib
import json
import os
import reprlib
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
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

FORMAT = 1
LONGEST_HEADER = 2**23  # bytes, enough for some 50,000 arrays; what a hostile header costs is bounded with it
LONGEST_KEY = 200  # characters, so that a name, of at most DEEPEST of them, is soon made
DEEPEST = 64  # nodes from the root to a leaf
START = b'{"__metadata__":{"lstmjax":"{\\"sha256\\":\\"'  # of every header, and then the digits of the sum
DIGITS = slice(8 + len(START), 8 + len(START) + 64)

DTYPES = {
    "BOOL": "bool",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}
PRECISIONS = (None, "bfloat16", "float16", "float32", "float64")

# What parts of params may be, where nothing below says so.
PARTS: dict[type, dict[str, tuple[Any, ...]]] = {
    BidirectionalParams: {"forward": (LSTMParams,), "backward": (LSTMParams,)},
    BidirectionalState: {"forward": (LSTMState,), "backward": (LSTMState,)},
    ResidualParams: {"first": (Conv1DParams,), "second": (Conv1DParams,), "shortcut": (Conv1DParams, type(None))},
    LevelParams: {
        "encoder": (LSTMParams, BidirectionalParams, StackParams),
        "embedding": (EmbeddingParams, type(None)),
    },
}
# The last axes of arrays, of which those of one name are of one size; those before are common to all.
TAGS = {"start": ("tags",), "transitions": ("tags", "tags"), "end": ("tags",)}
AXES: dict[type, dict[str, tuple[str, ...]]] = {
    LSTMState: {"h": ("outputs",), "c": ("units",)},
    LSTMNorm: {"x_scale": ("gates",), "h_scale": ("gates",), "c_scale": ("units",), "c_bias": ("units",)},
    DenseParams: {"w": ("inputs", "units"), "bias": ("units",)},
    EmbeddingParams: {"table": ("vocabulary", "features")},
    Conv1DParams: {"w": ("kernel", "inputs", "units"), "bias": ("units",)},
    CRFParams: TAGS,
    Allowed: TAGS,
}
PARAMS: dict[str, Any] = {kind.__name__: kind for kind in (LSTMParams, StackParams, HierarchyParams, *PARTS, *AXES)}
OPTIONS: dict[str, Any] = {kind.__name__: kind for kind in (LSTMOptions, Dropout)}


class FileError(ValueError):
    """A file that is refused: its path, and the reason."""


def save(path: str | os.PathLike[str], params: Any, options: Any = None) -> None:
    """Write params to a safetensors file, whole or not at all: what stood there before stands there until it is whole.

    Args:
        path: of the file.
        params: a tree of arrays: params and states of this library, in dicts with keys of text, tuples and lists. They
            may have leading axes in common, as those of an ensemble have. An array that stands in two places is
            written twice.
        options: LSTMOptions; or anything of dicts with keys of text, lists, tuples, text, numbers, True, False, None,
            LSTMOptions and Dropout, such as {"encoder": LSTMOptions(), "labels": ["O", "B-NP"]}.

    Raises:
        ValueError: arrays that do not fit each other, a dtype that cannot be written, two arrays of one name, a tree
            that is too deep or has too many arrays; TypeError: something else than arrays, or another container;
            ImportError without safetensors.

    >>> import tempfile
    >>> from lstmjax import lstm
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/tagger.safetensors", {"encoder": lstm.init(jax.random.key(0), inputs=2, units=3)})
    ...     params, options = load(f"{folder}/tagger.safetensors")
    >>> params["encoder"].w_x.shape, options
    ((2, 12), None)
    """
    from lstmjax import __version__

    arrays: dict[str, np.ndarray] = {}

    def array(where: tuple[str, ...], value: Any) -> str:
        name = "/".join(where)
        if not isinstance(value, jax.Array | np.ndarray | np.generic):
            raise TypeError(
                f"{_named('params', where)} must be an array, or a dict, tuple, list, or one of {', '.join(PARAMS)}, "
                f"not of a subclass; got {type(value).__name__}."
            )
        _check_dtype(_named("params", where), value.dtype)
        if name in arrays or name == "__metadata__":
            taken = "is the name of two arrays" if name in arrays else "is a name that safetensors keeps for itself"
            raise ValueError(f"params has {name!r}, which {taken}: choose another key.")
        arrays[name] = np.asarray(value, order="C")
        return "array"

    tree = _described(params, PARAMS, array, "params")
    _check(params, "params")
    text = json.dumps(
        {
            "sha256": "0" * 64,
            "format": FORMAT,
            "version": __version__,
            "tree": tree,
            "options": _described(options, OPTIONS, _scalar, "options"),
        },
        separators=(",", ":"),
    )
    content = bytearray(_safetensors().numpy.save(arrays, {"lstmjax": text}))
    if int.from_bytes(content[:8], "little") > LONGEST_HEADER:
        raise ValueError(
            f"params must have a header of at most {LONGEST_HEADER} bytes; {len(arrays)} arrays need more."
        )
    if content[8 : DIGITS.start] != START:
        raise RuntimeError(f"this version of safetensors begins a header as {bytes(content[8 : DIGITS.start])!r}.")
    content[DIGITS] = _sum(content)
    _write(Path(path).resolve(), content)


def load(path: str | os.PathLike[str], *, like: Any = None) -> tuple[Any, Any]:
    """Read params and options, to the bit what `save` was given; nothing in the file is run.

    Args:
        path: of the file.
        like: a tree of arrays or of `jax.ShapeDtypeStruct` with which structure, shapes and dtypes have to agree, such
            as `jax.eval_shape` makes of an `init`; None takes whatever params the file has.

    Returns:
        The params, of JAX arrays, and the options.

    Raises:
        FileError: a file that is cut short, changed, foreign, of a newer format, or without the params that `like`
            tells of, with the reason; FileNotFoundError: none at all; ImportError without safetensors.

    >>> import tempfile
    >>> from lstmjax import lstm
    >>> params = lstm.init(jax.random.key(0), inputs=2, units=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/lstm.safetensors", params, LSTMOptions(recurrent_activation="hard_sigmoid"))
    ...     params, options = load(f"{folder}/lstm.safetensors", like=params)
    >>> options.recurrent_activation
    'hard_sigmoid'
    """
    safetensors = _safetensors()
    try:
        return _read(path, like, safetensors)
    except (ValueError, TypeError, OverflowError, RecursionError, safetensors.SafetensorError) as error:
        raise FileError(f"{os.fspath(path)} is refused: {_cut(str(error), 2000)}") from error


def _read(path: Any, like: Any, safetensors: Any) -> tuple[Any, Any]:
    document, content = _opened(path)
    if content[DIGITS] != _sum(content):
        raise ValueError("it was changed after it was written, or cut short: its SHA-256 is not the one that it names.")
    arrays = {name: _array(name, found) for name, found in safetensors.deserialize(content)}

    def array(where: tuple[str, ...], node: Any) -> jax.Array:
        if node != "array":
            raise ValueError(f"{_named('params', where)} must be described by an object, null or 'array'.")
        if (name := "/".join(where)) not in arrays:
            raise ValueError(f"the array {name!r} is missing, or is named twice.")
        return jnp.asarray(arrays.pop(name))

    params = _rebuilt(document["tree"], PARAMS, array, "params")
    if arrays:
        raise ValueError(f"it has arrays that its description does not: {_listed(map(repr, arrays))}.")
    options = _rebuilt(document["options"], OPTIONS, _scalar, "options")
    _check(params, "params")
    if like is not None and (differences := list(_differences(params, like, ()))):
        raise ValueError(f"its params are not as those of like: {_listed(differences)}.")
    return params, options


def _opened(path: Any) -> tuple[dict[str, Any], bytes]:
    """What the metadata tell, and all of the file, which is read no further than its header if that is not ours."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"it is {'a directory' if os.path.isdir(path) else 'no regular file'}.")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise ValueError("it is empty.")
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if size < 8 or length > size - 8:
            raise ValueError(
                f"it is no safetensors file, or cut short: its first 8 bytes tell of a header of {length} bytes, and "
                f"{max(0, size - 8)} follow."
            )
        if length > LONGEST_HEADER:
            raise ValueError(f"its header must have at most {LONGEST_HEADER} bytes; it has {length}.")
        header = file.read(length)
        document = _document(header)
        if (ends := _end(header)) != size - 8 - length:
            raise ValueError(
                f"it is cut short, or has more than its arrays: they end at {ends}, of {size - 8 - length}."
            )
        return document, b"".join((start, header, file.read(size - 8 - length)))


def _document(header: bytes) -> dict[str, Any]:
    """The part of a header that `save` wrote, or an error that tells what the file has instead."""
    parsed = _json("its header", header)
    metadata = parsed.get("__metadata__") if isinstance(parsed, dict) else None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("lstmjax"), str):
        names = [name for name in parsed if name != "__metadata__"] if isinstance(parsed, dict) else []
        raise ValueError(
            f"it was not written by lstmjax.files.save. It has {len(names)} arrays, {_listed(map(repr, names))}: "
            "safetensors.numpy.load_file reads them, and lstmjax.interop makes params of what other libraries wrote."
        )
    document = _json("its metadata", metadata["lstmjax"].encode())
    number = document.get("format") if isinstance(document, dict) else None
    if type(number) is not int or number < 1:
        raise ValueError(f"its metadata must have a format, a number of at least 1; got {reprlib.repr(number)}.")
    if number > FORMAT:
        raise ValueError(
            f"its format is {reprlib.repr(number)}, of lstmjax {reprlib.repr(document.get('version'))}, and this "
            f"version reads {FORMAT}: upgrade lstmjax."
        )
    expected = {"sha256", "format", "version", "tree", "options"}
    if set(document) != expected:
        raise ValueError(f"its metadata must have just {sorted(expected)}; got {_listed(map(repr, document))}.")
    return document


def _end(header: bytes) -> int:
    """Where, counted from the header, the last array ends by what the header tells."""
    arrays = [array for name, array in json.loads(header).items() if name != "__metadata__" and isinstance(array, dict)]
    offsets = [array.get("data_offsets") for array in arrays]
    return max((end for pair in offsets if isinstance(pair, list) for end in pair if type(end) is int), default=0)


def _json(name: str, text: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError(f"an object in {name} has one key twice.")
        return found

    try:
        return json.loads(text.decode(), object_pairs_hook=unique)
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{name} is no JSON: {error}.") from error


def _array(name: str, found: dict[str, Any]) -> np.ndarray:
    if found["dtype"] not in DTYPES:
        raise ValueError(f"the array {name!r} must be of one of {', '.join(DTYPES)}; got {found['dtype']}.")
    dtype = jnp.dtype(DTYPES[found["dtype"]])
    _check_dtype(f"the array {name!r}", dtype)
    array = np.frombuffer(found["data"], dtype).reshape(found["shape"])
    if dtype == np.bool_ and (array.view(np.uint8) > 1).any():
        raise ValueError(f"the array {name!r} must have 0 and 1 for False and True.")
    return array


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
    return {kind.__name__: {key: node for key, node in described.items() if node is not None or key not in optional}}


def _rebuilt(node: Any, kinds: dict[str, Any], leaf: Callable[..., Any], root: str, where: tuple[str, ...] = ()):
    """Undo `_described`, trusting nothing."""
    if not isinstance(node, dict):
        return None if node is None else leaf(where, node)
    name = _named(root, where)
    if len(where) > DEEPEST:
        raise ValueError(f"{root} must be at most {DEEPEST} levels deep; {name} is deeper.")
    if len(node) != 1:
        raise ValueError(f"{name} must be of one kind; got {_listed(map(repr, node))}.")
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
                f"{name}, of {kind}, must have {', '.join(defaults)}; missing: {_listed(missing)}, unknown: "
                f"{_listed(map(repr, unknown))}."
            )
    built = {}
    for key, child in given.items():
        if kind == "dict":
            _check_key(name, key)
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
    return {name: getattr(value, name) for name in _defaults(type(value))}


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


def _check_dtype(name: str, dtype: Any) -> None:
    if str(dtype) not in DTYPES.values():
        raise ValueError(f"{name} must have one of the dtypes {', '.join(DTYPES.values())}; got {dtype}.")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"{name} has dtype {dtype}, which needs 64-bit JAX: set jax_enable_x64.")


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
    if kind in FITTING:
        fits, leaves = FITTING[kind], jax.tree.leaves(node)
        for _ in range(leaves[0].ndim - 2 if leaves else 0):
            fits = jax.vmap(fits)
        try:
            jax.eval_shape(fits, node)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name} is no {kind.__name__} that runs: {error}") from error


def _check_axes(node: Any, name: str) -> None:
    sizes: dict[str, Any] = {}
    dtype, called = (jnp.bool_, "bool") if isinstance(node, Allowed) else (jnp.floating, "floating")
    for field, axes in AXES[type(node)].items():
        array, told = getattr(node, field), f"[{', '.join(axes)}]; got {_told(getattr(node, field))}."
        if not hasattr(array, "dtype") or not jnp.issubdtype(array.dtype, dtype) or array.ndim < len(axes):
            raise ValueError(f"{name}/{field} must be a {called} array {told}")
        before = array.ndim - len(axes)
        for axis, size in zip(("the axes before", *axes), (array.shape[:before], *array.shape[before:]), strict=True):
            if sizes.setdefault(axis, size) != size:
                raise ValueError(f"{name}/{field} must have {sizes[axis]} for {axis}, as others have, in {told}")


FITTING: dict[Any, Callable[..., Any]] = {
    LSTMParams: stack.check,
    BidirectionalParams: stack.check,
    StackParams: stack.check,
    HierarchyParams: hierarchy._check,
}


def _differences(found: Any, wanted: Any, where: tuple[str, ...]) -> Iterator[str]:
    if _told(found) != _told(wanted):
        yield f"{_named('params', where)} is {_told(found)}, and in like {_told(wanted)}"
    elif found is not None and not hasattr(found, "dtype"):
        has, needs = _children(found), _children(wanted)
        yield from (f"{_named('params', (*where, key))} is not in like" for key in has if key not in needs)
        yield from (f"{_named('params', (*where, str(key)))} is missing" for key in needs if key not in has)
        for key in [key for key in has if key in needs]:
            yield from _differences(has[key], needs[key], (*where, key))


def _told(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} {tuple(value.shape)}"
    return "None" if value is None else type(value).__name__


def _named(root: str, where: tuple[str, ...]) -> str:
    return _cut("/".join((root, *where)), 200)


def _listed(items: Any, most: int = 8) -> str:
    items = [_cut(item, 200) for item in items]
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more if items else "none"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def _sum(content: bytes | bytearray) -> bytes:
    """The SHA-256 of a file, in hexadecimal digits, those in the file read as zeros."""
    view = memoryview(content)
    total = hashlib.sha256(view[: DIGITS.start])
    total.update(b"0" * 64)
    total.update(view[DIGITS.stop :])
    return total.hexdigest().encode()


def _write(path: Path, content: bytearray) -> None:
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("lstmjax.files needs safetensors: python -m pip install 'lstmjax[files]'.") from error
    return safetensors
