"""Nested lists of whatever is in them become arrays that give the same lists back, or are refused."""

import itertools

import numpy as np
from fuzz import hostile
from fuzz.cases import check_refusal, fuzz
from hypothesis import strategies as st

from lstmjax import ragged

NUMBERS = st.integers(-(2**40), 2**40) | st.floats(width=32) | st.booleans() | st.sampled_from(hostile.JUNK)
STEPS = (
    st.lists(st.integers(-9, 9), max_size=4) | st.lists(st.floats(width=32), max_size=4) | st.lists(NUMBERS, max_size=3)
)
NESTED = st.lists(STEPS, max_size=4) | st.lists(st.lists(STEPS, max_size=3), max_size=3) | st.sampled_from(hostile.JUNK)
LEVELS = st.sampled_from([1, 1, 1, 2, 2, 3, 0, -1, 1.0, True, None, "one", 2**70])
FILLS = st.sampled_from([0, 0, 0, 1, -1, 0.5, np.nan, None, "text", [0], 2**40])
DTYPES = st.sampled_from([None, None, None, np.float32, np.int8, np.float16, bool, "bfloat16", "text", object, "M8[D]"])


def given_back(xs, counts):
    """The list of an array, given how many of its entries count at each level, highest first."""
    if not counts:
        return xs.tolist()
    count, *below = counts
    return [given_back(xs[t], [level[t] for level in below]) for t in range(count)]


@fuzz(percent=2, sequences=NESTED, levels=LEVELS, fill=FILLS, dtype=DTYPES)
def test_pad(sequences, levels, fill, dtype):
    try:
        xs, lengths = ragged.pad(sequences, levels=levels, fill=fill, dtype=dtype)
    except Exception as error:
        check_refusal(error, ["sequences", "levels", "fill", "dtype"])
        return
    assert len(lengths) == levels
    assert xs.shape[:levels] == lengths[0].shape
    tolerance = 1e-2 if xs.dtype.itemsize < 4 else 1e-6
    flat = [given_back(xs, [len(xs), *reversed(lengths)]), sequences]
    for _ in range(levels):
        assert [len(inner) for inner in flat[0]] == [len(inner) for inner in flat[1]]
        flat = [list(itertools.chain.from_iterable(lists)) for lists in flat]
    if flat[0]:
        np.testing.assert_allclose(np.array(flat[0], float), np.array(flat[1], float), rtol=tolerance, atol=tolerance)


@fuzz(
    percent=1,
    lengths=st.lists(st.integers(-1, 50), max_size=12) | st.sampled_from(hostile.JUNK),
    waste=st.sampled_from([0, 0.1, 0.25, 0.5, 0.99, 1, -0.1, np.nan, None, "a", True, 2**70]),
)
def test_widths(lengths, waste):
    try:
        found = ragged.bucket_boundaries(lengths, waste=waste)
    except Exception as error:
        check_refusal(error, ["lengths", "waste"])
        return
    lengths = np.asarray(lengths).ravel()
    assert list(found) == sorted(set(found))
    assert found[-1] == lengths.max()
    cells = sum(min(width for width in found if width >= length) for length in lengths)
    assert cells - lengths.sum() <= waste * cells + 1e-9
