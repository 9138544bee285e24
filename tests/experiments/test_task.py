"""The stopping criterion against a plain loop over the paper's words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.task import Criterion


def stops_after(errors, each, mean, sequences):
    """The first count of sequences at which the most recent ones are all right and right enough on average."""
    for seen in range(sequences, len(errors) + 1):
        recent = errors[seen - sequences : seen]
        if all(error < each for error in recent) and sum(recent) / sequences < mean:
            return seen
    return None


# How errors fall: to which level, with how rare an outlier.
FALLS = {"good": (0.004, 0), "mean too high": (0.03, 0), "outliers": (0.004, 9), "rare outliers": (0.004, 300)}


@pytest.mark.parametrize("fall", FALLS)
@pytest.mark.parametrize("batch", [1, 4])
def test_criterion_stops_where_the_loop_stops(fall, batch):
    level, outlier = FALLS[fall]
    rng = np.random.default_rng(1)
    errors = np.where(np.arange(1200) < 100, 0.5, level) * rng.uniform(0.5, 1.0, 1200)
    if outlier:
        errors[::outlier] = 0.05
    errors = errors.astype(np.float32)
    criterion = Criterion(each=0.04, mean=0.01, sequences=40)
    expected = stops_after(errors, 0.04, 0.01, 40)

    @jax.jit
    def push(recent, errors):
        recent = criterion.push(recent, errors)
        return recent, criterion.met(recent)

    recent, stopped = criterion.start(), None
    for seen in range(batch, len(errors) + 1, batch):
        recent, met = push(recent, errors[seen - batch : seen])
        if met:
            stopped = seen
            break
    if expected is None:
        assert stopped is None
    else:
        assert 0 <= stopped - expected < batch
    assert (expected is None) == (fall in ("mean too high", "outliers"))


def test_fewer_sequences_than_the_window_never_meet_it():
    criterion = Criterion(each=1.0, mean=1.0, sequences=10)
    recent = criterion.push(criterion.start(), jnp.zeros(9))
    assert not criterion.met(recent)
    assert criterion.met(criterion.push(recent, jnp.zeros(1)))


def test_batch_longer_than_the_window():
    criterion = Criterion(each=1.0, mean=1.0, sequences=3)
    np.testing.assert_array_equal(criterion.push(criterion.start(), jnp.arange(5.0)), [2.0, 3.0, 4.0])
