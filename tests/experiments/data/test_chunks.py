"""Chunks: sentences come back as written, the last ones are kept to choose by, and what is none is refused."""

import pytest

from experiments.data import chunks, files
from experiments.data.chunks import Sentence
from experiments.data.files import DataError

TRAIN = "Confidence NN B-NP\nin IN B-PP\n\nBut CC O\n\n\n. . O\n\n"
SENTENCES = [
    Sentence(("Confidence", "in"), ("NN", "IN"), ("B-NP", "B-PP")),
    Sentence(("But",), ("CC",), ("O",)),
    Sentence((".",), (".",), ("O",)),
]


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setenv("LSTMJAX_DATA", str(tmp_path))
    monkeypatch.setattr(chunks, "VALIDATION", 2)
    (tmp_path / "conll2000").mkdir()

    def write(train, test):
        for name, content in (("train", train), ("test", test)):
            (tmp_path / chunks.FILES[name]).write_text(content)

    return write


def test_sentences_come_back_as_written(write):
    write(TRAIN, "Who WP B-NP\n's VBZ B-VP")
    splits = chunks.load()
    assert splits["train"] == SENTENCES[:1]
    assert splits["validation"] == SENTENCES[1:]
    assert splits["test"] == [Sentence(("Who", "'s"), ("WP", "VBZ"), ("B-NP", "B-VP"))]
    assert [len(sentence) for sentence in splits["validation"]] == [1, 1]


@pytest.mark.parametrize("line", ["But CC", "But CC O O", "But CC NP", "But CC B-", "But CC E-NP"])
def test_malformed_line_is_refused_with_its_place(write, line):
    write(TRAIN, f"Who WP B-NP\n\n{line}\n")
    with pytest.raises(DataError) as refused:
        chunks.load()
    for words in ("test.txt, line 3", repr(line), "B-NP, I-NP or O", "https://www.clips.uantwerpen.be/"):
        assert words in str(refused.value)


@pytest.mark.parametrize("before", ["", "But CC O\n", "ran VB B-VP\n", "a DT B-NP\n\n"])
def test_chunk_that_does_not_begin_is_refused(write, before):
    write(TRAIN, f"a DT B-NP\nb NN I-NP\n\n{before}c NN I-NP\n")
    line = 4 + before.count("\n")
    with pytest.raises(DataError, match=rf"test\.txt, line {line}: 'c NN I-NP' goes on .* must begin with B-NP"):
        chunks.load()


def test_too_few_sentences_are_refused(write):
    write("a DT B-NP\n\nb NN B-NP\n", TRAIN)
    with pytest.raises(DataError, match="has 2 sentences; there must be more than the 2 that are kept"):
        chunks.load()
    write(TRAIN, "\n\n")
    with pytest.raises(DataError, match=r"test\.txt has no sentences"):
        chunks.load()


@pytest.mark.slow
def test_real_files_if_they_are_here():
    if files.locate(chunks.FILES["train"]) is None:
        pytest.skip("CoNLL-2000 is not on this machine: LSTMJAX_DATA names no folder that has it")
    splits = chunks.load()
    counts = {split: (len(found), sum(map(len, found))) for split, found in splits.items()}
    assert counts == {"train": (7936, 188059), "validation": (1000, 23668), "test": (2012, 47377)}
    assert len({chunk for found in splits.values() for sentence in found for chunk in sentence.chunks}) == 23
