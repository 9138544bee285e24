"""Conversations whose utterances are labelled, one file each, one line an utterance: `speaker|text|tag`.

So is the Switchboard Dialogue Act corpus (Jurafsky, Shriberg & Biasca 1997) laid out, in the folders train, val and
test; where there is a folder `splits` beside them, its files of names decide, which for Switchboard are the 1,003, 112
and 19 conversations of Lee & Dernoncourt, Sequential Short-Text Classification with Recurrent and Convolutional Neural
Networks, NAACL 2016. The MRDA corpus has three tags to a line, `speaker|text|basic|general|full`.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from experiments.data import files, vocabulary
from experiments.data.files import DataError

SOURCE = (
    "a folder of conversations in the layout of https://github.com/NathanDuran/Switchboard-Corpus (its swda_data as "
    "swda) or https://github.com/NathanDuran/MRDA-Corpus (its mrda_data as mrda): train, val and test with a text file "
    "for each conversation, and splits/train.txt, valid.txt and test.txt with their names where the folders are not "
    "the splits"
)
FOLDERS = {"train": "train", "validation": "val", "test": "test"}
NAMES = {"train": "splits/train.txt", "validation": "splits/valid.txt", "test": "splits/test.txt"}
TAGS = {3: ("tag",), 5: ("basic", "general", "full")}
"""What the columns after speaker and text are called, by how many columns there are."""
SHA256 = "3afe194c8396dd1f734f037cc9f752374743281fbcb3e5bf7bd8b6374a8af691"
"""`files.digest` of Switchboard in the splits of Lee & Dernoncourt."""
WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Utterances in the order in which they were said; of one to be labelled, `tags` is empty."""

    name: str
    speakers: tuple[str, ...]
    texts: tuple[str, ...]
    tags: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)


def load(folder: str = "swda", column: str = "tag") -> dict[str, list[Conversation]]:
    """Load "train", "validation" and "test", each conversation labelled by the tags in `column`.

    A text may be empty: something was said that was not written down. A file without an utterance, and a split without
    a file, are refused.
    """
    root = files.required(folder, SOURCE, Path.is_dir)
    splits = {}
    for split, paths in _paths(root).items():
        if not paths:
            raise DataError(f"{root} has no conversations for {split}; it should be {SOURCE}")
        splits[split] = [_read(path, column) for path in paths]
    return splits


def sources(folder: str) -> Iterator[tuple[str, bytes]]:
    """Each file that `load` reads, by its name within the folder of data, and what it holds."""
    root = files.required(folder, SOURCE, Path.is_dir)
    named = [root / name for name in NAMES.values()] if (root / "splits").is_dir() else []
    for path in (*named, *itertools.chain.from_iterable(_paths(root).values())):
        yield f"{folder}/{path.relative_to(root).as_posix()}", files.content(path)


def published(splits: Mapping[str, Sequence[Conversation]]) -> bool:
    """True for Switchboard in the splits of Lee & Dernoncourt."""
    talks = {name: [(talk.speakers, talk.texts, talk.tags) for talk in of] for name, of in splits.items()}
    return files.digest(talks) == SHA256


def tags(splits: Mapping[str, Sequence[Conversation]]) -> tuple[str, ...]:
    """Every tag of a corpus, those most frequent in training first."""
    of = {split: [tag for conversation in found for tag in conversation.tags] for split, found in splits.items()}
    return vocabulary.labels(of["train"], itertools.chain.from_iterable(of.values()))


def words(text: str) -> list[str]:
    """The words and the marks of a text in lower case; what an apostrophe joins is one word, what a hyphen does is not.

    "Uh-huh, I don't" is uh - huh , i don't.
    """
    return WORD.findall(text.lower())


def plain(path: Path) -> Conversation:
    """A conversation to be labelled, of a text file with a line for each utterance.

    Lines are `speaker|text`, or whole lines of a corpus, whose tags are not looked at. In a file without any `|` every
    line is a text, and all are one speaker's.
    """
    return _read(path, None)


def _paths(root: Path) -> dict[str, list[Path]]:
    """The files of each split; names in `splits` are looked for in all three folders."""
    there = {split: sorted((root / folder).glob("*.txt")) for split, folder in FOLDERS.items()}
    if not (root / "splits").is_dir():
        return there
    by_name = {path.stem: path for paths in there.values() for path in paths}
    chosen, taken = {}, {}
    for split, file in NAMES.items():
        if not (root / file).is_file():
            raise DataError(f"{root}/splits has no {Path(file).name}; it should be {SOURCE}")
        names = [name for _, name in files.filled(root / file)]
        for name in names:
            if name not in by_name:
                name = files.shown(name)
                raise DataError(f"{root / file} names {name}, but none of {', '.join(FOLDERS.values())} has {name}.txt")
            if name in taken:
                raise DataError(f"{root / file} names {name}, which is in {taken[name]} already; splits share nothing")
            taken[name] = file
        chosen[split] = [by_name[name] for name in names]
    return chosen


def _read(path: Path, column: str | None) -> Conversation:
    """The conversation in a file, with the tags in `column`, or with none. Blank lines are not utterances."""
    split = [(number, line.split("|")) for number, line in files.filled(path)]
    if not split:
        raise DataError(f"{path} has no lines; each should be {_layouts(column)}")
    if column is None and all(len(parts) == 1 for _, parts in split):
        split = [(number, ["", text]) for number, (text,) in split]
    rows = [_columns(parts, path, number, column) for number, parts in split]
    speakers, texts, found = zip(*rows, strict=True)
    return Conversation(path.stem, speakers, texts, () if column is None else found)


def _columns(parts: list[str], path: Path, number: int, column: str | None) -> tuple[str, str, str]:
    """Speaker, text and the tag in `column`, "" without one."""
    names = () if column is None and len(parts) == 2 else TAGS.get(len(parts))
    place, line = f"{path}, line {number}", files.shown("|".join(parts))
    if names is None:
        raise DataError(f"{place}: {line!r} has {len(parts)} columns; it must be {_layouts(column)}")
    speaker, text, *rest = (part.strip(files.SPACES) for part in parts)
    if column is None:
        return speaker, text, ""
    if column not in names:
        raise DataError(f"{place}: column is {column!r}; a line of {len(parts)} columns has {' and '.join(names)}")
    tag = rest[names.index(column)]
    if not tag:
        raise DataError(f"{place}: {line!r} has no {column}; it must be {_layouts(column)}")
    return speaker, text, tag


def _layouts(column: str | None) -> str:
    labelled = " or ".join("|".join(("speaker", "text", *names)) for names in TAGS.values())
    return labelled if column else f"speaker|text, or a line of a corpus, {labelled}"
