"""Tiny Shakespeare: 1,115,394 characters of plays in modern type, 65 of them different."""

from collections.abc import Iterator

from experiments.data import files
from experiments.data.files import DataError

SHORTEST = 40  # characters: a twentieth of them is held out, and is one to read and one to say
FILE = "tinyshakespeare/input.txt"
SOURCE = (
    "text in the public domain, in the repository of Karpathy's char-rnn, https://github.com/karpathy/char-rnn, as "
    "data/tinyshakespeare/input.txt"
)

SHA256 = "49ecf172ba7edd2874cfc8b806e5259ae45753d6169fbb99d0e13881fef2f470"  # `files.digest` of it


def sources() -> Iterator[tuple[str, bytes]]:
    return files.contents([FILE], SOURCE)


def load() -> str:
    path = files.required(FILE, SOURCE)
    text = files.text(path, "ascii")
    if len(text) < SHORTEST:
        raise DataError(f"{path} has {len(text)} characters; it should have {SHORTEST} at least, and be {SOURCE}")
    return text
