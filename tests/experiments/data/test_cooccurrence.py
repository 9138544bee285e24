"""Vectors of words: counted and factorised as a dense matrix by hand, and alike where words keep like company."""

import numpy as np
import pytest

from experiments.data import cooccurrence

RNG = np.random.default_rng(0)
TEXTS = [RNG.integers(0, 7, size) for size in (30, 1, 0, 12, 2, 4)]


def by_hand(texts, words):
    joint = np.zeros((words, words))
    for text in texts:
        for i, one in enumerate(text):
            for j, other in enumerate(text):
                if 0 < abs(i - j) <= 5:
                    joint[one, other] += 1 / abs(i - j)
    return joint


def test_counts_are_those_of_a_loop_over_pairs():
    np.testing.assert_allclose(cooccurrence.counts(TEXTS, 7).toarray(), by_hand(TEXTS, 7), rtol=1e-12)


def test_vectors_are_the_factors_of_the_positive_information():
    joint = by_hand(TEXTS, 7)
    share = joint / joint.sum()
    smoothed = share.sum(axis=0) ** 0.75 / np.sum(share.sum(axis=0) ** 0.75)
    with np.errstate(divide="ignore"):
        information = np.maximum(np.log(share / (share.sum(axis=1, keepdims=True) * smoothed[None])), 0)
    found = cooccurrence.vectors(TEXTS, 7, 3).astype(float)
    assert found.std() == pytest.approx(1)
    left, scale, _ = np.linalg.svd(information)
    expected = left[:, :3] * np.sqrt(scale[:3])
    expected *= np.sign(np.sum(expected * found, axis=0, keepdims=True))
    np.testing.assert_allclose(found, expected / expected.std(), atol=1e-5)


def test_words_in_like_company_are_alike():
    texts = [np.array([animal, 2, 3, fruit, 6, 7]) for animal in (0, 1) for fruit in (4, 5) for _ in range(5)]
    found = cooccurrence.vectors(texts, 9, 4)
    apart = np.linalg.norm(found[:, None] - found[None], axis=-1)
    assert apart[0, 1] < 0.1 * apart[0, 4]
    assert apart[4, 5] < 0.1 * apart[0, 4]
    assert not found[8].any()


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"length is 8; 7 words have vectors of at most that length"):
        cooccurrence.vectors(TEXTS, 7, 8)
    with pytest.raises(ValueError, match=r"there is no text of two words"):
        cooccurrence.vectors([np.array([1]), np.array([], int)], 7, 2)
