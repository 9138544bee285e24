"""Where data files are looked for: the folder that LSTMJAX_DATA names, then the user's cache."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

LONGEST = 200  # characters of a line in an error


class DataError(RuntimeError):
    pass


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lstmjax"


def locate(name: str, found: Callable[[Path], bool] = Path.is_file) -> Path | None:
    """The file `name`, such as "mnist/mnist.pkl.gz", or None where it is in neither folder."""
    folders = [Path(os.environ["LSTMJAX_DATA"])] if "LSTMJAX_DATA" in os.environ else []
    return next((folder / name for folder in [*folders, cache()] if found(folder / name)), None)


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
    """What a file holds."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def known(content: bytes, name: str, sha256: str, remedy: str) -> bytes:
    """These bytes, if they are the ones with this sum."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise DataError(f"{name} is not the known file: its sha256 is {digest}, and should be {sha256}; {remedy}")
    return content


def text(path: Path, encoding: str) -> str:
    """What a text file says."""
    try:
        return content(path).decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in {encoding.removesuffix('-sig').upper()}: {error}") from None


def lines(path: Path) -> list[str]:
    """The lines of a text file, without their ends; an empty file has none."""
    whole = text(path, "utf-8-sig")
    return whole.removesuffix("\n").split("\n") if whole else []


def shown(line: str) -> str:
    """What an error quotes of a line: the beginning of a long one."""
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
