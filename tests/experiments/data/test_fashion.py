"""Fashion-MNIST: four files, known by their sums."""

import gzip
import hashlib
import struct

import numpy as np
import pytest

from experiments.data import fashion
from experiments.data.files import DataError


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A folder of small files in the published layout, taken for the real ones."""
    monkeypatch.setenv("LSTMJAX_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fashion, "VALIDATION", 2)
    (tmp_path / "fashion-mnist").mkdir()
    rng, arrays, sums = np.random.default_rng(0), [], {}
    for name, count, images in zip(fashion.SHA256, (5, 5, 3, 3), (True, False) * 2, strict=True):
        array = rng.integers(0, 256, (count, 28, 28) if images else count, dtype=np.uint8)
        head = struct.pack(">4i", 2051, count, 28, 28) if images else struct.pack(">2i", 2049, count)
        (tmp_path / name).write_bytes(gzip.compress(head + array.tobytes()))
        sums[name] = hashlib.sha256(head + array.tobytes()).hexdigest()
        arrays.append(array)
    monkeypatch.setattr(fashion, "SHA256", sums)
    return tmp_path, arrays


def test_arrays_come_back_as_written(written):
    _, (images, kinds, test_images, test_kinds) = written
    loaded = fashion.load()
    for name, pixels, truth in (
        ("train", images[:3], kinds[:3]),
        ("validation", images[3:], kinds[3:]),
        ("test", test_images, test_kinds),
    ):
        np.testing.assert_array_equal(loaded[name][0], pixels / 256)
        np.testing.assert_array_equal(loaded[name][1], truth)


def test_other_files_are_refused(written):
    folder, _ = written
    name = next(iter(fashion.SHA256))
    (folder / name).write_bytes(gzip.compress(b"another"))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz is not the known file"):
        fashion.load()
    (folder / name).write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz is no whole gzip file"):
        fashion.load()
    (folder / name).unlink()
    with pytest.raises(DataError, match=r"there is no fashion-mnist/train-images-idx3-ubyte.gz .*zalandoresearch"):
        fashion.load()
