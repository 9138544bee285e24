"""Fashion-MNIST: 50,000 pictures of clothes to train on, 10,000 to choose by, 10,000 to test on.

Xiao, Rasul & Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms, 2017. The
validation pictures are the last 10,000 of the training file.
"""

import gzip
import io
from collections.abc import Iterator

import numpy as np

from experiments.data import files
from experiments.data.files import DataError

SOURCE = (
    "one of the four files in the folder data/fashion of https://github.com/zalandoresearch/fashion-mnist, which the "
    "Debian package dataset-fashion-mnist installs in /usr/share/datasets"
)
SIDE = 28
VALIDATION = 10_000
SHA256 = {  # of what the files hold, unzipped
    "fashion-mnist/train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "fashion-mnist/train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "fashion-mnist/t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "fashion-mnist/t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
LONGEST = 16 + 60_000 * SIDE**2  # bytes of the largest of them


def sources() -> Iterator[tuple[str, bytes]]:
    return files.contents(SHA256, SOURCE)


def load() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images [n, 28, 28] from 0 to 255/256 and kinds [n], of "train", "validation" and "test"."""
    pixels, kinds, test_pixels, test_kinds = map(_unzipped, SHA256)
    images, kinds = _images(pixels), _kinds(kinds)
    cut = len(images) - VALIDATION
    return {
        "train": (images[:cut], kinds[:cut]),
        "validation": (images[cut:], kinds[cut:]),
        "test": (_images(test_pixels), _kinds(test_kinds)),
    }


def _unzipped(name: str) -> bytes:
    path = files.required(name, SOURCE)
    try:
        with gzip.open(io.BytesIO(files.content(path))) as file:
            content = file.read(LONGEST + 1)
    except (OSError, EOFError) as error:
        raise DataError(f"{path} is no whole gzip file: {error}") from None
    return files.known(content, str(path), SHA256[name], f"it should be {SOURCE}")


def _images(content: bytes) -> np.ndarray:
    """The pixels after a head of 16 bytes: the kind of file, and three sizes."""
    pixels = np.frombuffer(content, np.uint8, offset=16).reshape(-1, SIDE, SIDE)
    return pixels.astype(np.float32) / 256


def _kinds(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8, offset=8).astype(np.int32)
