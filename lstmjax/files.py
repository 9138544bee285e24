"""Weights on disk: one file in the safetensors format, which holds arrays and text, and nothing that could run.

The metadata tell in JSON what the arrays are parts of, as `lstmjax._src.serialization` has it, and the options; the
number of the format, the version of this library, and the SHA-256 of the whole file with the digits of that very sum as
zeros, so that no byte changes unseen, be it of the header. Who forges a file can compute that sum too: all that the
header tells is checked before it is used.
"""

import hashlib
import json
import os
import reprlib
import secrets
import shutil
import stat
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstmjax._src import keywords, serialization

FORMAT = 1
LONGEST_HEADER = 2**23  # bytes, enough for some 50,000 arrays; what a hostile header costs is bounded with it
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


class FileError(ValueError):
    """A file that is refused: its path, and the reason."""


@keywords.explained("files.save")
def save(path: str | os.PathLike[str], params: Any, options: Any = None) -> None:
    """Write params to a safetensors file, whole or not at all: what stood there before stands there until it is whole.

    Args:
        path: of the file.
        params: a tree of arrays, random keys of JAX, and numbers, among which are NumPy's of 64 bits where JAX has
            32: params and states of this library, in dicts with keys of text, tuples and
            lists. They may have leading axes in common, as those of an ensemble have. An array that stands in two
            places is written twice. Other pytrees, such as optax's states, come back with `load(path, like=...)` alone;
            Flax's FrozenDict comes back as a dict without.
        options: LSTMOptions; or anything of dicts with keys of text, lists, tuples, text, numbers, True, False, None,
            LSTMOptions and Dropout, such as {"encoder": LSTMOptions(), "labels": ["O", "B-NP"]}.

    Raises:
        ValueError: arrays that do not fit each other, a dtype that cannot be written, two arrays of one name, a tree
            that is too deep or has too many arrays; TypeError: something else than arrays, numbers and pytrees of them;
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

    tree, arrays = serialization.describe(params)
    if "__metadata__" in arrays:
        raise ValueError("params has '__metadata__', a name that safetensors keeps for itself: choose another key.")
    for name, array in arrays.items():
        _check_dtype(name, array.dtype)
    text = json.dumps(
        {
            "sha256": "0" * 64,
            "format": FORMAT,
            "version": __version__,
            "tree": tree,
            "options": serialization.describe_options(options),
        },
        separators=(",", ":"),
    )
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    content = bytearray(_safetensors().numpy.save(arrays, {"lstmjax": text}))
    if int.from_bytes(content[:8], "little") > LONGEST_HEADER:
        raise ValueError(
            f"params must have a header of at most {LONGEST_HEADER} bytes; {len(arrays)} arrays need more."
        )
    if content[8 : DIGITS.start] != START:
        raise RuntimeError(f"this version of safetensors begins a header as {bytes(content[8 : DIGITS.start])!r}.")
    content[DIGITS] = _sum(content)
    _write(Path(path).resolve(), content)


@keywords.explained("files.load")
def load(path: str | os.PathLike[str], *, like: Any = None) -> tuple[Any, Any]:
    """Read params and options, to the bit what `save` was given; nothing in the file is run.

    Args:
        path: of the file.
        like: a tree of arrays or of `jax.ShapeDtypeStruct` with which structure, shapes and dtypes have to agree, such
            as `jax.eval_shape` makes of an `init`; None takes whatever params the file has. Pytrees of other libraries
            are made anew from those of like, with whatever they hold beside arrays and numbers.

    Returns:
        The params, of JAX arrays and numbers, and the options.

    Raises:
        FileError: a file that is cut short, changed, foreign, of a newer format, without the params that `like` tells
            of, or with states of another library and no `like`, with the reason; FileNotFoundError: none at all;
            ImportError without safetensors.

    >>> import tempfile
    >>> from lstmjax import LSTMOptions, lstm
    >>> params = lstm.init(jax.random.key(0), inputs=2, units=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/lstm.safetensors", params, LSTMOptions(recurrent_activation="hard_sigmoid"))
    ...     params, options = load(f"{folder}/lstm.safetensors", like=params)
    >>> options.recurrent_activation
    'hard_sigmoid'
    """
    safetensors = _safetensors()
    try:
        document, content = _opened(path)
        arrays = {name: _array(name, found) for name, found in safetensors.deserialize(content)}
        params = serialization.rebuild(document["tree"], arrays)
        options = serialization.rebuild_options(document["options"])
        if like is not None and (differences := list(serialization.differences(params, like))):
            raise ValueError(f"its params are not as those of like: {serialization.listed(differences)}.")
        params = serialization.fitted(params, like)
    except (ValueError, TypeError, OverflowError, RecursionError, safetensors.SafetensorError) as error:
        raise FileError(f"{os.fspath(path)} is refused: {serialization.cut(str(error), 2000)}") from error
    return params, options


def _opened(path: Any) -> tuple[dict[str, Any], bytes]:
    """Read the metadata, and then the whole file if its header is ours."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"it is {'a directory' if os.path.isdir(path) else 'no regular file'}.")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise ValueError("it is empty.")
        start = file.read(8)
        length, left = int.from_bytes(start, "little"), size - 8
        if length > left:
            raise ValueError(
                f"it is no safetensors file, or cut short: its first 8 bytes tell of a header of {length} bytes, and "
                f"{max(0, left)} follow."
            )
        if length > LONGEST_HEADER:
            raise ValueError(f"its header must have at most {LONGEST_HEADER} bytes; it has {length}.")
        header = file.read(length)
        document, end = _parsed(header)
        if end != left - length:
            raise ValueError(
                f"it is cut short, or has more than its arrays: they end at {reprlib.repr(end)}, of {left - length}."
            )
        content = b"".join((start, header, file.read(left - length)))
    if content[DIGITS] != _sum(content):
        raise ValueError("it was changed after it was written, or cut short: its SHA-256 is not the one that it names.")
    return document, content


def _parsed(header: bytes) -> tuple[dict[str, Any], Any]:
    """The part of a header that `save` wrote, and where the last array ends; or an error that tells what it has."""
    tensors = _json("its header", header)
    metadata = tensors.pop("__metadata__", None) if isinstance(tensors, dict) else None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("lstmjax"), str):
        names = list(tensors) if isinstance(tensors, dict) else []
        raise ValueError(
            f"it was not written by lstmjax.files.save. It has {len(names)} arrays, "
            f"{serialization.listed(map(repr, names))}: "
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
        raise ValueError(
            f"its metadata must have just {sorted(expected)}; got {serialization.listed(map(repr, document))}."
        )
    try:
        return document, max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    except (TypeError, LookupError) as error:
        raise ValueError("its header has an array without data_offsets.") from error


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


def _array(name: str, found: dict[str, Any]) -> jax.Array:
    if found["dtype"] not in DTYPES:
        raise ValueError(f"params/{name} must have one of the dtypes {', '.join(DTYPES)}; got {found['dtype']}.")
    dtype = jnp.dtype(DTYPES[found["dtype"]])
    _check_dtype(name, dtype)
    array = np.frombuffer(found["data"], dtype).reshape(found["shape"])
    if dtype == np.bool_ and (array.view(np.uint8) > 1).any():
        raise ValueError(f"params/{name} must have 0 and 1 for False and True.")
    return jnp.array(array)


def _check_dtype(name: str, dtype: Any) -> None:
    if str(dtype) not in DTYPES.values():
        raise ValueError(f"params/{name} must have one of the dtypes {', '.join(DTYPES.values())}; got {dtype}.")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"params/{name} has dtype {dtype}, which needs 64-bit JAX: set jax_enable_x64.")


def _sum(content: bytes | bytearray) -> bytes:
    """The SHA-256 of a file, in hexadecimal digits, those in the file read as zeros."""
    view = memoryview(content)
    total = hashlib.sha256(view[: DIGITS.start])
    total.update(b"0" * 64)
    total.update(view[DIGITS.stop :])
    return total.hexdigest().encode()


def _write(path: Path, content: bytearray) -> None:
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")  # short, since the name may be as long as one can be
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
