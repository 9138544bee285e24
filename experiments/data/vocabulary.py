"""Numbers for words, characters and labels."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from experiments.data.files import DataError

UNKNOWN = ""
SHOWN = 10  # of what is unknown, in an error


@dataclasses.dataclass(frozen=True)
class Kinds:
    """Numbered kinds: the number is the place here."""

    words: tuple[str, ...]
    characters: tuple[str, ...]
    tags: tuple[str, ...]

    @classmethod
    def kept(cls, lists: Mapping[str, Sequence[str]]) -> "Kinds":
        """From what a run keeps: the fields, as lists."""
        return cls(*(tuple(lists[field.name]) for field in dataclasses.fields(cls)))


def known(tokens: Iterable[str], least: int = 1) -> tuple[str, ...]:
    """Kinds that occur at least so many times, the most frequent first, after one place for all else."""
    counts = Counter(tokens)
    return (UNKNOWN, *sorted((t for t in counts if counts[t] >= least), key=lambda token: (-counts[token], token)))


def labels(train: Iterable[str], held_out: Iterable[str]) -> tuple[str, ...]:
    """Every label of a data set, those most frequent in training first.

    A label that is in held-out data alone is among them too: which labels there are is given with the data, and to
    leave out what bears it would flatter the figures. A model never learns to say it.
    """
    counts = Counter(train)
    return tuple(sorted({*counts, *held_out}, key=lambda label: (-counts[label], label)))


def check_known(found: Iterable[str], known: Iterable[str], kind: str) -> None:
    """Raise a DataError that names what the data has of a kind, such as "tag", and a run does not know."""
    if unknown := sorted({*found} - {*known}):
        shown = ", ".join(map(repr, unknown[:SHOWN])) + ", ..." * (len(unknown) > SHOWN)
        raise DataError(
            f"the data has {len(unknown)} {kind}s that the run was not trained on: {shown}; a model cannot say what it "
            f"has no {kind} for: take them out of the data, or train again"
        )


def numbers(tokens: Sequence[str], places: dict[str, int]) -> Int[np.ndarray, " tokens"]:
    """The place of each token; that of `UNKNOWN` for one without a place, or an error where unknown ones have none."""
    return np.array([places[t] if t in places else places[UNKNOWN] for t in tokens], np.int32)


def ends(word: str, characters: int) -> str:
    """A word of at most so many characters, or as many from its ends."""
    return word if len(word) <= characters else word[: characters // 2] + word[-(characters // 2) :]
