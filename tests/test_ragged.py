"""Padding and buckets against brute force, and against the lists that went in."""

import itertools
import tracemalloc

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstmjax import hierarchy, ragged

SEQUENCES = st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=9), max_size=12)
WASTES = st.sampled_from([0, 0.1, 0.25, 0.29, 0.5, 0.9]) | st.floats(0, 0.99)
LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=25)


def nested(levels, step):
    return step if not levels else st.lists(nested(levels - 1, step), max_size=4)


def unpadded(xs, lengths):
    """The nested lists that lengths, lowest level first, say are in xs."""
    return [_within(x, [own[row] for own in lengths]) for row, x in enumerate(xs)]


def _within(x, lengths):
    *below, count = lengths
    return [_within(x[at], [own[at] for own in below]) if below else x[at].tolist() for at in range(count)]


def padding(lengths, chosen):
    return sum(min(width for width in chosen if width >= length) - length for length in lengths)


def share(lengths, chosen):
    spare = padding(lengths, chosen)
    return spare / max(spare + sum(lengths), 1)


def by_brute_force(lengths, waste):
    """The number of widths needed, and the least padding of as many."""
    *values, top = sorted(set(lengths))
    for count in range(len(values) + 1):
        choices = [(*some, top) for some in itertools.combinations(values, count)]
        if any(share(lengths, chosen) <= waste for chosen in choices):
            return count + 1, min(padding(lengths, chosen) for chosen in choices)
    raise AssertionError("a width for each length has no padding")


@hypothesis.given(st.lists(st.integers(0, 30), min_size=1, max_size=9), WASTES)
@hypothesis.example([0, 0], 0)
@hypothesis.example([71, 100], 0.145)
def test_widths_are_the_fewest_and_of_as_many_the_tightest(lengths, waste):
    chosen = ragged.bucket_boundaries(lengths, waste=waste)
    assert (len(chosen), padding(lengths, chosen)) == by_brute_force(lengths, waste)
    assert list(chosen) == sorted(set(chosen))
    assert set(chosen) <= set(lengths)


@hypothesis.given(LENGTHS, WASTES)
def test_widths_keep_the_bound(lengths, waste):
    assert share(lengths, ragged.bucket_boundaries(lengths, waste=waste)) <= waste
    assert ragged.bucket_boundaries(lengths, waste=0) == tuple(sorted(set(lengths)))


def by_all_pairs(lengths, waste):
    """The same by dynamic programming over all pairs of different lengths, for each number of widths."""
    values, counts = np.unique(lengths, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    cells, cuts = values * below[1:].astype(float), []
    while (cells[-1] - sum(lengths)) / max(cells[-1], 1) > waste:
        more = cells[:, None] + values * (below[None, 1:] - below[1:, None])
        more[np.tril_indices(len(values))] = np.inf
        cuts.append(np.argmin(more, axis=0))
        cells = np.minimum(cells, more.min(axis=0))
    chosen = [len(values) - 1]
    for cut in reversed(cuts):
        chosen.append(cut[chosen[-1]])
    return tuple(values[chosen[::-1]].tolist())


@hypothesis.given(LENGTHS, WASTES | st.sampled_from([0.001, 0.02]))
@hypothesis.settings(max_examples=300)
def test_widths_are_those_of_a_search_over_all_pairs(lengths, waste):
    """Of several choices that are as good, too."""
    assert ragged.bucket_boundaries(lengths, waste=waste) == by_all_pairs(lengths, waste)


@pytest.mark.parametrize(("waste", "count"), [(0.25, 3), (0.001, 800)])
def test_widths_of_many_lengths_take_memory_in_proportion(waste, count):
    """A table of all pairs of 4,000 lengths has 128 MB."""
    tracemalloc.start()
    try:
        assert len(ragged.bucket_boundaries(np.arange(1, 4_001), waste=waste)) == count
        assert tracemalloc.get_traced_memory()[1] < 3e6
    finally:
        tracemalloc.stop()


def test_widths_of_100_000_lengths():
    """A table of all pairs has 80 GB."""
    assert ragged.bucket_boundaries(np.arange(1, 100_001)) == (33_333, 66_666, 100_000)


def test_a_width_for_each_of_many_lengths_is_not_searched_for():
    lengths = np.random.default_rng(0).permutation(50_000)  # the search would compare 2.5e9 pairs for each width
    assert ragged.bucket_boundaries(lengths, waste=0) == tuple(range(50_000))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.uint64])
def test_widths_count_beyond_the_dtype_of_lengths(dtype):
    lengths = np.array([[3, 100, 100], [100, 120, 120]], dtype)
    assert (
        ragged.bucket_boundaries(lengths, waste=0.1)
        == (3, 120)
        == ragged.bucket_boundaries(lengths.tolist(), waste=0.1)
    )


def test_a_share_of_padding_that_is_just_the_bound_is_allowed():
    assert share([42, 100], [100]) == 0.29  # 0.29 * 200 is 57.99999999999999
    assert ragged.bucket_boundaries([42, 100], waste=0.29) == (100,)


@hypothesis.given(st.data(), st.integers(1, 3))
def test_every_step_comes_back_through_the_lengths(data, levels):
    sequences = data.draw(nested(levels + 1, st.integers(-(2**31), 2**31 - 1)))
    xs, lengths = ragged.pad(sequences, levels=levels, fill=-7, dtype=np.int32)
    assert xs.ndim == levels + 1 == len(lengths) + 1
    assert unpadded(xs, lengths) == sequences
    assert xs.size == 0 or (xs == -7).sum() >= xs.size - lengths[0].sum()
    for below, own in enumerate(lengths):
        assert own.dtype == np.int32
        assert own.shape == xs.shape[: levels - below]
        assert own.max(initial=0) == xs.shape[levels - below]
        np.testing.assert_array_equal(own, np.where(np.vectorize(bool, otypes=[bool])(own), own, 0))


@pytest.mark.parametrize(
    ("sequences", "shape", "lengths"),
    [
        ([], (0, 0, 0), (np.zeros((0, 0)), np.zeros(0))),
        ([[], []], (2, 0, 0), (np.zeros((2, 0)), np.zeros(2))),
        ([[[], []], []], (2, 2, 0), (np.zeros((2, 2)), np.array([2, 0]))),
        (([[1]], ([2, 3], np.array([4]))), (2, 2, 2), (np.array([[1, 0], [2, 1]]), np.array([1, 2]))),
    ],
)
def test_empty_lists_and_other_containers(sequences, shape, lengths):
    xs, got = ragged.pad(sequences, levels=2)
    assert xs.shape == shape
    jax.tree.map(np.testing.assert_array_equal, got, lengths)


@pytest.mark.parametrize("features", [(2,), (2, 3), (0,)])
@pytest.mark.parametrize("as_array", [False, True])
def test_steps_with_features(features, as_array):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(time, *features)).astype(np.float32) for time in (3, 0, 5, 1)]
    sequences = arrays if as_array else [list(array) for array in arrays]
    xs, (lengths,) = ragged.pad(sequences, fill=np.nan)
    assert xs.shape == (4, 5, *features)
    for x, length, array in zip(xs, lengths, arrays, strict=True):
        np.testing.assert_array_equal(x[:length], array)
        assert np.isnan(x[length:]).all()
    made = ragged.buckets(sequences, waste=0, fill=np.nan)
    assert [bucket.xs.shape for bucket in made] == [(1, time, *features) for time in (0, 1, 3, 5)]


def test_arrays_tell_their_features_without_steps():
    xs, (lengths,) = ragged.pad([np.zeros((0, 3))] * 2)
    assert xs.shape == (2, 0, 3)
    assert lengths.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("steps", "dtype"),
    [
        ([True, False], np.bool_),
        ([1, 2], np.int32),
        ([True, 2], np.int32),
        (np.array([1, 2], np.int64), np.int32),
        (np.array([1, 2], np.uint8), np.int32),
        ([1.5, 2], np.float32),
        (np.array([1.5, np.inf, np.nan]), np.float32),
        (np.array([1.5, 2], np.float16), np.float32),
        (np.array([1.5, 2], jnp.bfloat16), np.float32),
        (list(jnp.array([1, 2])), np.int32),
        ([], np.float32),
    ],
)
def test_dtype_suits_the_steps(steps, dtype):
    made = [ragged.pad([steps])[0], ragged.buckets([steps])[0].xs]
    for xs in made:
        assert xs.dtype == dtype
        np.testing.assert_array_equal(xs[0], np.asarray(steps))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, jnp.bfloat16, np.dtype("int16"), "float64"])
def test_a_named_dtype_is_the_arrays(dtype):
    assert ragged.pad([[1], [2, 3]], dtype=dtype)[0].dtype == dtype
    assert all(bucket.xs.dtype == dtype for bucket in ragged.buckets([[1], [2, 3]], dtype=dtype, waste=0))
    assert ragged.pad([[]], dtype=dtype)[0].dtype == dtype


def test_wide_integers_stay_themselves_where_the_dtype_is_named():
    wide = np.array([2**31, -(2**62)])
    np.testing.assert_array_equal(ragged.pad([wide], dtype=np.int64)[0][0], wide)


@pytest.mark.parametrize(
    ("steps", "dtype", "got"),
    [
        (np.array([1, 2**31]), None, "2147483648"),
        ([2**31], None, "2147483648"),
        (np.array([2**64 - 1], np.uint64), None, "18446744073709551615"),
        ([-1], np.uint8, "-1"),
        ([2], np.bool_, "2"),
        ([2.5], np.int32, "2.5"),
        ([np.nan], np.int32, "nan"),
        ([1e39], None, "1e\\+39"),
        ([2**24 + 1], np.float32, "16777217"),
    ],
)
@pytest.mark.parametrize("make", [ragged.pad, ragged.buckets])
def test_a_value_that_the_dtype_would_change_is_refused(make, steps, dtype, got):
    with pytest.raises(ValueError, match=rf"sequences must fit {np.dtype(dtype or '?').name if dtype else ''}.*{got}"):
        make([steps], dtype=dtype)


@pytest.mark.parametrize(("fill", "steps"), [(0.5, [1]), (np.nan, [1]), (2, [True]), (2**31, [1])])
@pytest.mark.parametrize("make", [ragged.pad, ragged.buckets])
def test_a_fill_that_the_dtype_would_change_is_refused(make, fill, steps):
    with pytest.raises(ValueError, match=r"fill must fit (int32|bool)"):
        make([steps], fill=fill)


@hypothesis.given(SEQUENCES, WASTES)
def test_buckets_hold_every_sequence_once_in_order(sequences, waste):
    made = ragged.buckets(sequences, waste=waste, fill=-7, dtype=np.int32)
    back = {}
    for bucket in made:
        assert bucket.rows.tolist() == sorted(bucket.rows.tolist())
        assert bucket.xs.shape == (len(bucket.rows), bucket.lengths.max())
        real = np.arange(bucket.xs.shape[1]) < bucket.lengths[:, None]
        assert (bucket.xs[~real] == -7).all()
        back |= {row: x[:n].tolist() for row, x, n in zip(bucket.rows.tolist(), bucket.xs, bucket.lengths, strict=True)}
    assert sum(len(bucket.rows) for bucket in made) == len(sequences)
    assert [back[row] for row in range(len(sequences))] == sequences
    cells = sum(bucket.xs.size for bucket in made)
    assert (cells - sum(map(len, sequences))) / max(cells, 1) <= waste
    if sequences:
        sizes = [len(sequence) for sequence in sequences]
        assert tuple(bucket.xs.shape[1] for bucket in made) == ragged.bucket_boundaries(sizes, waste=waste)


def test_codes_by_buckets_put_back_are_those_of_one_padded_array():
    rng = np.random.default_rng(0)
    sizes = [[3, 0, 7], [], [2, 7, 1], [0]]
    params = hierarchy.init(jax.random.key(0), 3, (4, 5))
    talk = [[rng.normal(size=(n, 3)).astype(np.float32) for n in conversation] for conversation in sizes]
    xs, lengths = ragged.pad(talk, levels=2)
    expected = jax.jit(hierarchy.apply)(params, xs, lengths=lengths)

    lower, upper = params.levels
    made = ragged.buckets([utterance for conversation in talk for utterance in conversation], waste=0.1)
    assert [bucket.xs.shape for bucket in made] == [(2, 0, 3), (1, 1, 3), (2, 3, 3), (2, 7, 3)]
    encode = jax.jit(hierarchy.encode)
    codes = np.concatenate([encode(lower.encoder, bucket.xs, lengths=bucket.lengths) for bucket in made])
    codes = codes[np.argsort(np.concatenate([bucket.rows for bucket in made]))]
    whole = np.zeros((*xs.shape[:2], codes.shape[-1]), np.float32)
    whole[np.arange(xs.shape[1]) < lengths[1][:, None]] = codes
    got = jax.jit(hierarchy.apply)(hierarchy.HierarchyParams((upper,)), whole, lengths=lengths[1:])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [ragged.pad, ragged.buckets])
@pytest.mark.parametrize(
    ("sequences", "error", "message"),
    [
        (3, ValueError, r"sequences must have a list or an array outermost; got 3"),
        (np.array(3), ValueError, r"sequences must have a list or an array outermost"),
        ([[1], 2], ValueError, r"sequences must have a list or an array in list 1 from outside; got 2"),
        (["ab"], ValueError, r"sequences must have a list or an array in list 1 from outside; got 'ab'"),
        ([[1], [[2, 3]]], ValueError, r"sequences must hold steps of one shape; got \[\(\), \(2,\)\]"),
        ([np.zeros((1, 2)), np.zeros((0, 3))], ValueError, r"sequences must hold steps of one shape"),
        ([[[[1], [2, 3]]]], ValueError, r"sequences must hold steps that are numbers or arrays; got a list of lists"),
        ([["a"]], TypeError, r"sequences must hold bools, integers or floats; got str"),
        ([[1j]], TypeError, r"sequences must hold bools, integers or floats; got complex128"),
        ([[None]], TypeError, r"sequences must hold bools, integers or floats; got object"),
        ([[jax.random.key(0)]], TypeError, r"sequences must hold steps that are numbers or arrays of them"),
        ([[1, 2], [0, jax.random.key(0)]], TypeError, r"sequences must hold steps that are numbers or arrays of them"),
        ([[2**70]], TypeError, r"sequences must hold bools, integers or floats; got object"),
    ],
)
def test_sequences_that_are_none_are_refused(untyped, make, sequences, error, message):
    with pytest.raises(error, match=message):
        make(sequences)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ragged.pad([[1]], levels=0), ValueError, r"levels must be an integer of at least 1, got 0"),
        (lambda: ragged.pad([[1]], levels=2), ValueError, r"sequences must have a list or an array in list 2"),
        (lambda: ragged.pad([[1]], fill="a"), TypeError, r"fill must hold bools, integers or floats; got str"),
        (lambda: ragged.bucket_boundaries([]), ValueError, r"lengths must be at least one, each at least 0"),
        (lambda: ragged.bucket_boundaries([1, -1]), ValueError, r"lengths must be at least one, each at least 0"),
        (lambda: ragged.bucket_boundaries([1.0]), TypeError, r"lengths must be integers; got float64"),
        (lambda: ragged.bucket_boundaries([True]), TypeError, r"lengths must be integers; got bool"),
        (lambda: ragged.bucket_boundaries([1], waste=1), ValueError, r"waste must be a rate from 0 to below 1; got 1"),
        (lambda: ragged.buckets([], waste=-0.1), ValueError, r"waste must be a rate from 0 to below 1; got -0.1"),
        (lambda: ragged.buckets([[1]], waste="0"), TypeError, r"waste must be a number, got '0'"),
    ],
)
def test_arguments_are_refused_by_name(untyped, call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_no_sequences_make_no_buckets():
    assert ragged.buckets([]) == []
