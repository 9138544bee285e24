"""Vectors of words from the company they keep: a factorisation of how much more often two words meet than by chance.

    M[w, v] = max(0, log(p(w, v) / (p(w) q(v))))      q(v) ~ count(v)^SMOOTHING      M ~ U S V^T      words = U S^1/2

Levy, Goldberg & Dagan, Improving Distributional Similarity with Lessons Learned from Word Embeddings, TACL 2015.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

WINDOW = 5  # words on either side; one at distance d counts 1/d
SMOOTHING = 0.75
Sparse = Any  # a matrix in rows; annotations of SciPy are no more exact


def vectors(texts: Iterable[Int[np.ndarray, " _"]], words: int, length: int) -> Float[np.ndarray, "words length"]:
    """Vectors of the words in these texts, with a standard deviation of 1 over all entries."""
    from sklearn.utils.extmath import randomized_svd  # takes a second

    if length > words:
        raise ValueError(f"length is {length}; {words} words have vectors of at most that length")
    joint = counts(texts, words).tocoo()
    total, beside = (np.asarray(joint.sum(axis=axis)).ravel() for axis in (1, 0))
    chance = beside**SMOOTHING / np.sum(beside**SMOOTHING)
    information = np.log(joint.data / (total[joint.row] * chance[joint.col]))
    kept = information > 0
    places = joint.row[kept], joint.col[kept]
    matrix = scipy.sparse.csr_matrix((information[kept], places), shape=(words, words))
    left, scale, _ = randomized_svd(matrix, length, random_state=0)
    found = left * np.sqrt(scale)
    return (found / max(float(found.std()), np.finfo(found.dtype).tiny)).astype(np.float32)


def counts(texts: Iterable[Int[np.ndarray, " _"]], words: int) -> Sparse:
    """Number of times that each word is near each other one, within a text."""
    rows, columns, weights = [], [], []
    for text in texts:
        for distance in range(1, min(WINDOW, len(text) - 1) + 1):
            before, after = text[:-distance], text[distance:]
            rows += [before, after]
            columns += [after, before]
            weights.append(np.full(2 * len(before), 1 / distance))
    if not rows:
        raise ValueError("there is no text of two words or more to count in")
    places = np.concatenate(rows), np.concatenate(columns)
    return scipy.sparse.coo_matrix((np.concatenate(weights), places), shape=(words, words)).tocsr()
