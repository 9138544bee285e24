"""CoNLL-2000 chunking: sentences of the Wall Street Journal, each word with its part of speech and its chunk.

Tjong Kim Sang & Buchholz, Introduction to the CoNLL-2000 Shared Task: Chunking, 2000. A line is `word POS chunk`, where
a chunk begins with B-NP, goes on with I-NP and ends before anything else, and O is a word in none; a blank line ends a
sentence, and so does a line that begins with -DOCSTART-, which parts documents. The shared task keeps no sentences to
choose by; here they are the last 1,000 of its training file, in one piece, so that at most one article is in both.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from experiments.data import files
from experiments.data.files import DataError

FILES = {"train": "conll2000/train.txt", "test": "conll2000/test.txt"}
SOURCE = (
    "a file of the CoNLL-2000 shared task, https://www.clips.uantwerpen.be/conll2000/chunking/, unpacked with gunzip"
)
VALIDATION = 1000
CHUNK = re.compile(r"O|[BI]-.+")
SHA256 = "4a11f598f51050a5355dcdcddde66a30c84debcbdb98ecb0fbcf5fdd69141bcc"  # `files.digest` of them
BOUNDARY = "-DOCSTART-"


@dataclasses.dataclass(frozen=True)
class Sentence:
    words: tuple[str, ...]
    pos: tuple[str, ...]
    chunks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.words)


def load() -> dict[str, list[Sentence]]:
    """The sentences of "train", "validation" and "test"."""
    paths = {split: files.required(name, SOURCE) for split, name in FILES.items()}
    train, test = (_read(path) for path in paths.values())
    if len(train) <= VALIDATION:
        raise DataError(
            f"{paths['train']} has {len(train)} sentences; there must be more than the {VALIDATION} that are kept to "
            f"choose by. It should be {SOURCE}"
        )
    return {"train": train[:-VALIDATION], "validation": train[-VALIDATION:], "test": test}


def sources() -> Iterator[tuple[str, bytes]]:
    return files.contents(FILES.values(), SOURCE)


def published(splits: Mapping[str, Sequence[Sentence]]) -> bool:
    """True for the sentences of the shared task, in the splits of `load`."""
    return files.digest({name: [(s.words, s.pos, s.chunks) for s in of] for name, of in splits.items()}) == SHA256


def _read(path: Path) -> list[Sentence]:
    sentences, rows = [], []
    for number, line in enumerate([*files.lines(path), ""], 1):
        tokens = files.columns(line)
        if tokens and not tokens[0].startswith(BOUNDARY):
            rows.append(_checked(tokens, line, path, number))
            before, chunk = rows[-2][2] if rows[1:] else "O", rows[-1][2]
            if chunk.startswith("I-") and chunk[2:] != before[2:]:
                raise DataError(
                    f"{path}, line {number}: {files.shown(line)!r} goes on with a chunk, but {files.shown(before)} "
                    f"comes before it; a chunk must begin with B-{files.shown(chunk[2:])}. It should be {SOURCE}"
                )
        elif rows:
            sentences.append(Sentence(*map(tuple, zip(*rows, strict=True))))
            rows = []
    if not sentences:
        raise DataError(f"{path} has no sentences; it should be {SOURCE}")
    return sentences


def _checked(tokens: list[str], line: str, path: Path, number: int) -> list[str]:
    if len(tokens) != 3 or not CHUNK.fullmatch(tokens[2]):
        raise DataError(
            f"{path}, line {number}: {files.shown(line)!r} must be a word, its part of speech and its chunk, such "
            f"as B-NP, I-NP or O, with spaces between; it should be {SOURCE}"
        )
    return tokens
