"""Data files: cut short, changed, empty, in another encoding, or none: read as they say, or refused."""

import gzip
import hashlib
import pickle
import re

import numpy as np
import pytest
from fuzz import cases
from fuzz.cases import fuzz
from hypothesis import strategies as st

from experiments.data import chorales, chunks, dialogues, files, mnist, shakespeare
from experiments.data.files import DataError

LONG = 10_000_000 if cases.LONG else 1_000_000  # characters
SENTENCES = b"a DT B-NP\nb NN I-NP\n\nc VB B-VP\n\nd DT B-NP\n\ne DT O\n"
TALK = b"A|Okay.|b\nB||%\nB|So, how are you?|qw\n"
PLAY = b"First Citizen:\nBefore we proceed any further, hear me speak.\n"
PARTS = [
    *(b"", b"\n", b"\r\n", b"\r", b" ", b"\t", b"|", b"||", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe2\x80\xa8"),
    *(
        "é".encode(),
        "é".encode("latin1"),
        "e\u0301".encode(),
        b"\xed\xa0\x80",
        b"\x1f\x8b\x08",
        b"B-",
        b"I-NP",
        b"E-NP",
    ),
    *(b"B-X Y", b"O", b" O ", b"A|", b"A|b|c|d|e|f", b"A|b|", b"A|b|c|d", b"x" * 300, b"-" * 4000),
]


@st.composite
def broken(draw, content):
    """Nearly this content: cut, with bytes changed or put between, lines doubled or lost; or any bytes at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(
            st.binary(max_size=60) | st.sampled_from([b"", gzip.compress(content), content.decode().encode("utf-16")])
        )
    for _ in range(draw(st.integers(0, 3))):
        at, to = sorted(draw(st.tuples(*[st.integers(0, len(content))] * 2)))
        kind = draw(st.sampled_from(["cut", "lost", "between", "between", "double", "byte"]))
        if kind == "cut":
            content = content[:at]
        elif kind == "lost":
            content = content[:at] + content[to:]
        elif kind == "double":
            content = content[:to] + content[at:]
        elif kind == "between":
            content = content[:at] + draw(st.sampled_from(PARTS)) + content[at:]
        else:
            content = content[:at] + bytes([draw(st.integers(0, 255))]) + content[at + 1 :]
    return content


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The folder of data, in which every loader but that of MNIST finds what is right."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("data")
        patch.setenv("LSTMJAX_DATA", str(root))
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        patch.setattr(chunks, "VALIDATION", 1)
        right = {f"swda/{folder}/1.txt": TALK for folder in dialogues.FOLDERS.values()}
        right |= dict.fromkeys(chunks.FILES.values(), SENTENCES) | {shakespeare.FILE: PLAY}
        for name, content in right.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        yield root


def text_of(content):
    return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def check_refusal(error, path):
    assert str(path) in str(error), f"refused without the file: {error}"
    assert len(str(error)) < 3000, "refused with all that was in the file"


@fuzz(percent=5, content=broken(SENTENCES))
def test_chunks(root, content):
    path = root / chunks.FILES["test"]
    path.write_bytes(content)
    try:
        found = chunks.load()["test"]
    except DataError as error:
        check_refusal(error, path)
        return
    rows = [re.findall(r"[^ \t]+", line) for line in text_of(content).split("\n")]
    rows = [row for row in rows if row and not row[0].startswith("-DOCSTART-")]
    assert [list(row) for s in found for row in zip(s.words, s.pos, s.chunks, strict=True)] == rows
    for sentence in found:
        for before, chunk in zip(("O", *sentence.chunks), sentence.chunks, strict=False):
            assert chunk == "O" or chunk.startswith("B-") or chunk == "I-" + before[2:]


@fuzz(percent=5, content=broken(TALK), column=st.sampled_from(["tag", "tag", "tag", "basic", "full", "none", ""]))
def test_dialogues(root, content, column):
    path = root / "swda/train/1.txt"
    path.write_bytes(content)
    try:
        found = dialogues.load("swda", column)["train"]
    except DataError as error:
        check_refusal(error, root / "swda")
        return
    finally:
        path.write_bytes(TALK)
    lines = [line for line in text_of(content).split("\n") if line.strip(" \t")]
    rows = [[part.strip(" \t") for part in line.split("|")] for line in lines]
    at = {"tag": 2, "basic": 2, "general": 3, "full": 4}[column]
    [talk] = found
    assert list(zip(talk.speakers, talk.texts, talk.tags, strict=True)) == [(r[0], r[1], r[at]) for r in rows]
    assert all(talk.tags)


@fuzz(percent=3, content=broken(TALK))
def test_lines_to_be_labelled(root, content):
    path = root / "talk.txt"
    path.write_bytes(content)
    try:
        talk = dialogues.plain(path)
    except DataError as error:
        check_refusal(error, path)
        return
    rows = [line.split("|") for line in text_of(content).split("\n") if line.strip(" \t")]
    alone = all(len(row) == 1 for row in rows)
    assert [*talk.texts] == [row[0 if alone else 1].strip(" \t") for row in rows]


@fuzz(percent=2, names=st.lists(broken(b"1\n"), min_size=3, max_size=3))
def test_names_of_splits(root, names):
    folder = root / "swda/splits"
    folder.mkdir(exist_ok=True)
    for file, content in zip(dialogues.NAMES.values(), names, strict=True):
        (root / "swda" / file).write_bytes(content)
    try:
        splits = dialogues.load()
    except DataError as error:
        check_refusal(error, root / "swda")
        return
    finally:
        for file in dialogues.NAMES.values():
            (root / "swda" / file).unlink()
        folder.rmdir()
    assert all(talk.name == "1" for talks in splits.values() for talk in talks)


@fuzz(percent=2, content=broken(PLAY))
def test_shakespeare(root, content):
    path = root / shakespeare.FILE
    path.write_bytes(content)
    try:
        text = shakespeare.load()
    except DataError as error:
        check_refusal(error, path)
        return
    assert text
    assert text == content.removeprefix(b"\xef\xbb\xbf").decode("ascii").replace("\r\n", "\n").replace("\r", "\n")


@st.composite
def cut_or_flipped(draw, whole):
    content = draw(st.sampled_from(whole))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        byte = bytes([draw(st.integers(0, 255))])
        content = draw(st.sampled_from([content[:at], content[:at] + byte + content[at + 1 :], content + byte]))
    return content


def images(*sizes, wide=784, kind=np.float32):
    return tuple((np.full((size, wide), 0.5, kind), np.arange(size) % 10) for size in sizes)


def pickled(value):
    return gzip.compress(pickle.dumps(value, protocol=3).replace(b"numpy._core", b"numpy.core"), mtime=0)


MNIST = [
    pickled(images(5, 3, 2)),
    pickled(images(5, 3)),
    pickled(images(5, 3, 2, wide=783)),
    pickled([1, 2, 3]),
    pickled(None),
    pickled("text"),
    pickled((((),) * 2,) * 3),
    gzip.compress(b""),
    gzip.compress(b"\x80\x02cos\nsystem\n."),
    gzip.compress(b"\x00" * LONG),
]


@fuzz(percent=2, content=cut_or_flipped(MNIST) | st.binary(max_size=100))
def test_mnist(root, content):
    """The first of them is taken for the published file."""
    path = root / mnist.FILE
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist, "SHA256", hashlib.sha256(MNIST[0]).hexdigest())
        try:
            splits = mnist.load()
        except DataError as error:
            check_refusal(error, path)
            return
    assert content == MNIST[0]
    assert set(splits) == {"train", "validation", "test"}
    for pixels, digits in splits.values():
        assert pixels.shape == (len(digits), 28, 28)
        assert digits.dtype == np.int32


HUGE = {
    "one word": b"x" * LONG,
    "words": b"a b " * (LONG // 4),
    "columns": b"|" * LONG,
    "a long text": b"A|" + b"word " * (LONG // 5) + b"|b",
    "no text": b"\xff" * LONG,
    "spaces": b" " * LONG,
    "a long chunk": b"a DT I-" + b"N" * LONG,
    "many lines": b"\n" * (LONG // 10),
}
LOADERS = {
    chunks.FILES["train"]: chunks.load,
    "swda/train/1.txt": dialogues.load,
    shakespeare.FILE: shakespeare.load,
    "talk.txt": lambda: dialogues.plain(files.required("talk.txt", "a talk")),
    chorales.FILE: chorales.load,
    mnist.FILE: mnist.load,
}


@pytest.mark.parametrize("name", LOADERS)
@fuzz(percent=0.05, kind=st.sampled_from(list(HUGE)))
def test_lines_of_megabytes(root, name, kind):
    path = root / name
    path.parent.mkdir(exist_ok=True, parents=True)
    before = path.read_bytes() if path.exists() else b""
    path.write_bytes(HUGE[kind])
    try:
        LOADERS[name]()
    except DataError as error:
        check_refusal(error, root)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("name", [name for name in LOADERS if name != mnist.FILE])
@pytest.mark.parametrize("there", ["nothing", "folder", "link to nothing"])
def test_what_is_no_file_is_refused(tmp_path, monkeypatch, name, there):
    monkeypatch.setenv("LSTMJAX_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if there == "folder":
        path.mkdir()
    elif there != "nothing":
        path.symlink_to(tmp_path / "none")
    with pytest.raises(DataError, match=r"LSTMJAX_DATA|swda"):
        LOADERS[name]()
