"""Where data files are looked for: the folder that LSTMJAX_DATA names, then the user's cache."""

import codecs
import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Prints = dict[str, dict[str, Any]]
LONGEST = 200  # characters of a line in an error
SPACES = " \t"  # what parts columns and is cut off their ends; any other space, such as U+00A0, is part of a column
_noting: list[Prints] = []  # what is being noted of the files that are read


class DataError(RuntimeError):
    pass


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lstmjax"


def locate(name: str, found: Callable[[Path], bool] = Path.is_file) -> Path | None:
    """The file `name`, such as "mnist/mnist.pkl.gz", or None where it is in neither folder."""
    return next((folder / name for folder in _folders() if found(folder / name)), None)


def _folders() -> list[Path]:
    return [*([Path(os.environ["LSTMJAX_DATA"])] if "LSTMJAX_DATA" in os.environ else []), cache()]


def required(name: str, source: str, found: Callable[[Path], bool] = Path.is_file) -> Path:
    """The file `name`, or with `Path.is_dir` the folder, or an error that says where it comes from."""
    path = locate(name, found)
    if path is None:
        given = os.environ.get("LSTMJAX_DATA")
        where = "LSTMJAX_DATA is not set" if given is None else f"LSTMJAX_DATA is {given}"
        raise DataError(
            f"there is no {name} in the folder that LSTMJAX_DATA names ({where}) nor in {cache()}; put it into one of "
            f"them. It is {source}"
        )
    return path


def content(path: Path) -> bytes:
    """Content of a file, which `noted` records."""
    try:
        found = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    name = next((path.relative_to(of) for of in _folders() if path.is_relative_to(of)), path).as_posix()
    if _noting:
        note({name: described(name, found)})
    return found


@contextlib.contextmanager
def noted() -> Iterator[Prints]:
    """Record `described` of each file that is read within, by its name: of the very bytes that were read."""
    prints: Prints = {}
    _noting.append(prints)
    try:
        yield prints
    finally:
        _noting.pop()


def note(prints: Prints) -> None:
    """Tells `noted` of what was read before, or is no file."""
    for of in _noting:
        of.update(prints)


def described(name: str, content: bytes) -> dict[str, Any]:
    """Size and sha256 of a file; those of a text are of it as it is read, see `unified`, and it has lines too."""
    lines = {}
    if name.endswith(".txt"):
        content = unified(content)
        lines = {"lines": content.count(b"\n") + (content[-1:] not in (b"", b"\n"))}
    return {"bytes": len(content)} | lines | {"sha256": hashlib.sha256(content).hexdigest()}


def unified(content: bytes) -> bytes:
    """A text without its byte order mark, with \\n at the end of each line: with other ones it is the same text."""
    return content.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def contents(names: Iterable[str], source: str) -> Iterator[tuple[str, bytes]]:
    """Each file of these names, and what it holds."""
    for name in names:
        yield name, content(required(name, source))


def digest(data: Any) -> str:
    """The sha256 of data as it was parsed, which a byte order mark or other ends of lines do not change."""
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def finite(values: np.ndarray, name: str) -> np.ndarray:
    """These numbers, if all of them are finite; the error names the first that is not, by its place in each axis."""
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        place = tuple(np.argwhere(~np.isfinite(values))[0].tolist())
        axes = zip(("row", "column", "place", "place"), place, strict=False)
        raise DataError(
            f"{name}: the data is {values[place]} in {', '.join(f'{axis} {at}' for axis, at in axes)}; it must be "
            f"finite, so correct it or leave it out"
        )
    return values


def known(content: bytes, name: str, sha256: str, remedy: str) -> bytes:
    """These bytes, if they are the ones with this sum."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise DataError(f"{name} is not the known file: its sha256 is {digest}, and should be {sha256}; {remedy}")
    return content


def text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file, see `unified`."""
    try:
        return unified(content(path)).decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in {encoding.upper()}: {error}") from None


def lines(path: Path) -> list[str]:
    """The lines of a text file, without their ends; an empty file has none.

    Only \\n, \\r\\n and \\r end a line: `str.splitlines` would also cut at a form feed, U+0085 or U+2028.
    """
    whole = text(path)
    return whole.removesuffix("\n").split("\n") if whole else []


def filled(path: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, stripped of `SPACES`, each with its number in the file."""
    stripped = ((number, line.strip(SPACES)) for number, line in enumerate(lines(path), 1))
    return [(number, line) for number, line in stripped if line]


def columns(line: str) -> list[str]:
    """The tokens of a line, between runs of `SPACES`."""
    return [token for token in line.replace("\t", " ").split(" ") if token]


def shown(line: str) -> str:
    """Quote a line in an error: the beginning of a long one."""
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
