"""The order of reading: each epoch a permutation, and the same whatever the chunks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import order

shuffled = jax.jit(order.shuffled, static_argnames=("examples", "batch"))
of_like_length = jax.jit(order.of_like_length, static_argnames="batch")

KEY = jax.random.key(3)
LENGTHS = jnp.array([3, 9, 3, 1, 9, 2, 3, 7, 7, 1, 3])


def test_each_epoch_reads_every_row_once():
    rows = np.asarray(shuffled(KEY, jnp.arange(15), examples=20, batch=4))
    epochs = rows.reshape(3, 20)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(20), (3, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_rows_left_over_are_not_read_twice():
    rows = np.asarray(shuffled(KEY, jnp.arange(8), examples=11, batch=5)).reshape(4, 10)
    assert all(len(set(epoch)) == 10 and epoch.max() < 11 for epoch in rows)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_order_is_a_function_of_the_step_alone(size):
    whole = shuffled(KEY, jnp.arange(21), examples=10, batch=3)
    pieces = [shuffled(KEY, jnp.arange(s, s + size), examples=10, batch=3) for s in range(0, 21, size)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    whole = of_like_length(KEY, jnp.arange(21), LENGTHS, batch=3)
    pieces = [of_like_length(KEY, jnp.arange(s, s + size), LENGTHS, batch=3) for s in range(0, 21, size)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match=r"train\.batch is 12; there are only 10"):
        shuffled(KEY, jnp.arange(2), examples=10, batch=12)
    with pytest.raises(ValueError, match=r"train\.batch is 12; there are only 11"):
        of_like_length(KEY, jnp.arange(2), LENGTHS, batch=12)


def test_batches_of_like_length_are_the_rows_of_an_epoch_in_order_of_length():
    steps = of_like_length(KEY, jnp.arange(60), LENGTHS, batch=3)
    epochs, lengths = np.asarray(steps).reshape(20, 3, 3), np.asarray(LENGTHS)
    for epoch in epochs:
        assert len(np.unique(epoch)) == 9
        spans = sorted((lengths[batch].min().item(), lengths[batch].max().item()) for batch in epoch)
        assert all(longest <= shortest for (_, longest), (shortest, _) in itertools.pairwise(spans))
    assert set(epochs.ravel().tolist()) == set(range(11))
    batches = {frozenset(batch) for epoch in epochs.tolist() for batch in epoch}
    assert len(batches) > 15
    assert len({tuple(lengths[epoch].max(axis=1)) for epoch in epochs}) > 3
