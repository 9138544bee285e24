"""Numbers for tokens: the frequent first, and a place for unknown ones, where there is to be one."""

import pytest

from experiments.data import vocabulary

TOKENS = ["b", "a", "c", "a", "b", "d", "a"]


@pytest.mark.parametrize(("least", "kinds"), [(1, ("", "a", "b", "c", "d")), (2, ("", "a", "b")), (4, ("",))])
def test_known_are_the_frequent_ones(least, kinds):
    assert vocabulary.known(TOKENS, least) == kinds


def test_labels_of_held_out_data_come_last():
    assert vocabulary.labels(TOKENS, ["z", "a", "y", "z"]) == ("a", "b", "c", "d", "y", "z")


def test_what_is_not_known_has_a_place_or_is_refused():
    places = {token: place for place, token in enumerate(vocabulary.known(TOKENS, 2))}
    assert vocabulary.numbers(["b", "x", "a", "c"], places).tolist() == [2, 0, 1, 0]
    assert vocabulary.numbers([], places).tolist() == []
    with pytest.raises(KeyError):
        vocabulary.numbers(["x"], {"a": 0})
