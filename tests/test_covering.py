"""Rows of options against every pair of values, counted out."""

import itertools

import covering
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

OPTIONS = st.dictionaries(st.text("abcde", min_size=1, max_size=1), st.lists(st.integers(), max_size=4), max_size=4)


def marked(options):
    """The rows of `covering.parametrize`, and whether each is in the default suite."""
    names, rows = covering.parametrize(options).mark.args
    assert names == tuple(options)
    return [(row.values, not row.marks) for row in rows]


@settings(max_examples=100)
@given(OPTIONS)
def test_every_pair_of_values_occurs_and_no_row_is_idle(options):
    rows = covering.pairs(options)
    if not all(options.values()):
        assert rows == []
        return
    for (i, first), (j, second) in itertools.combinations(enumerate(options.values()), 2):
        assert {(row[i], row[j]) for row in rows} == set(itertools.product(first, second))
    for place, values in enumerate(options.values()):
        assert {row[place] for row in rows} == set(values)
    assert len(rows) <= len(list(itertools.product(*options.values())))
    assert rows == covering.pairs(dict(options))


@settings(max_examples=100)
@given(OPTIONS)
def test_parameters_are_the_whole_product_of_which_pairs_are_default(options):
    rows = marked(options)
    assert [row for row, _ in rows] == list(itertools.product(*options.values()))
    assert sorted(row for row, default in rows if default) == sorted(covering.pairs(options))


def test_far_fewer_rows_than_the_product():
    assert len(covering.pairs({name: [1, 2] for name in "abcdef"})) <= 8  # of 64
    assert len(covering.pairs({name: [1, 2, 3] for name in "abc"})) <= 11  # of 27; no fewer than 9 can do


def test_a_single_option_has_all_its_values():
    assert covering.pairs({"a": [3, 1, 2]}) == [(3,), (1,), (2,)]
    assert marked({"a": [3, 1, 2]}) == [((3,), True), ((1,), True), ((2,), True)]


def test_values_that_are_equal_or_cannot_be_compared_are_told_apart():
    """True equals 1, and an array equals nothing in one word."""
    options = {"a": [1, True], "b": [np.zeros(2), np.ones(2)], "c": [None, {}]}
    rows = marked(options)
    assert len(rows) == 8
    chosen = [row for row, default in rows if default]
    assert len(chosen) == len(covering.pairs(options)) < 8
    for values in options.values():
        for value in values:
            assert any(value is held for row in chosen for held in row)
