"""N-grams against the formula, written as a recursion over strings."""

from collections import Counter

import numpy as np
import pytest

from experiments import ngram

RNG = np.random.default_rng(0)
TRAIN, HELD_OUT = RNG.choice(4, 300, p=[0.5, 0.3, 0.15, 0.05]), RNG.integers(0, 5, 60)


def witten_bell(train, history, symbol, symbols):
    if history is None:
        return 1 / symbols
    size = len(history) + 1
    following = Counter(train[i + size - 1] for i in range(len(train) - size + 1) if train[i : i + size - 1] == history)
    shorter = witten_bell(train, history[1:] if history else None, symbol, symbols)
    total, kinds = sum(following.values()), len(following)
    return (following[symbol] + kinds * shorter) / (total + kinds) if total else shorter


def test_probabilities_are_those_of_the_formula():
    found = ngram.probabilities(TRAIN, HELD_OUT, symbols=5, longest=4)
    train, held_out = tuple(TRAIN.tolist()), tuple(HELD_OUT.tolist())
    for order in range(1, 5):
        for place, symbol in enumerate(held_out):
            history = held_out[max(0, place - order + 1) : place]
            expected = witten_bell(train, history, symbol, 5)
            assert found[order - 1, place] == pytest.approx(expected, rel=1e-12)


def test_probabilities_of_all_symbols_add_up_to_one():
    held_out = np.array([[*HELD_OUT[:3], symbol] for symbol in range(5)])
    found = [ngram.probabilities(TRAIN, row, symbols=5, longest=4)[:, 3] for row in held_out]
    np.testing.assert_allclose(np.sum(found, axis=0), 1)


def test_text_shorter_than_the_order_is_given_what_there_is():
    found = ngram.probabilities(TRAIN, HELD_OUT[:2], symbols=5, longest=4)
    np.testing.assert_array_equal(found[1], found[3])


def test_n_grams_that_cannot_be_numbered_are_refused():
    with pytest.raises(ValueError, match="longest is 12"):
        ngram.probabilities(TRAIN, HELD_OUT, symbols=65, longest=12)
