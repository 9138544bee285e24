"""Tiny Shakespeare: 1,115,394 characters of plays in modern type, 65 of them different."""

from experiments.data import files
from experiments.data.files import DataError

FILE = "tinyshakespeare/input.txt"
SOURCE = (
    "text in the public domain, in the repository of Karpathy's char-rnn, https://github.com/karpathy/char-rnn, as "
    "data/tinyshakespeare/input.txt"
)


def load() -> str:
    path = files.required(FILE, SOURCE)
    text = files.text(path, "ascii")
    if not text:
        raise DataError(f"{path} is empty; it should be {SOURCE}")
    return text
