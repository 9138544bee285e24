"""The adding problem as the paper states it, each sequence checked by hand in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import drawn
from experiments.models import Model
from experiments.task import Criterion
from experiments.tasks import adding

COUNT = 3000


@pytest.fixture(scope="module", params=[100, 50])
def drawn_sequences(request):
    length = request.param
    key = jax.random.key(5)
    batch = drawn.sequences(lambda k: adding.sequence(k, length), key, COUNT)
    return length, {name: np.asarray(column) for name, column in batch.items()}


def test_targets_are_the_sums_of_the_marked_values(drawn_sequences):
    _, batch = drawn_sequences
    for pairs, valid, target in zip(batch["pairs"], batch["length"], batch["target"], strict=True):
        total = sum(value for value, marker in pairs[:valid] if marker == 1.0)
        assert target == pytest.approx(0.5 + total / 4, abs=1e-6)


def test_two_pairs_are_marked_where_the_paper_says(drawn_sequences):
    length, batch = drawn_sequences
    seen = set()
    for pairs, valid in zip(batch["pairs"], batch["length"], strict=True):
        marked = np.flatnonzero(pairs[:, 1] == 1.0)
        assert len(marked) == 2
        assert marked[0] < 10
        assert marked[1] < length // 2
        ends = [t for t in (0, valid - 1) if t not in marked]
        np.testing.assert_array_equal(np.flatnonzero(pairs[:, 1] == -1.0), ends)
        if marked[0] == 0:
            assert pairs[0, 0] == 0.0
        seen |= set(marked)
    assert seen == set(range(length // 2))


def test_values_and_lengths_span_their_ranges(drawn_sequences):
    length, batch = drawn_sequences
    assert set(batch["length"]) == set(range(length, length + length // 10 + 1))
    values = np.concatenate([p[:n, 0] for p, n in zip(batch["pairs"], batch["length"], strict=True)])
    assert -1 <= values.min() < -0.999
    assert 0.999 < values.max() < 1
    assert values.var() == pytest.approx(1 / 3, abs=0.01)
    for pairs, valid in zip(batch["pairs"], batch["length"], strict=True):
        assert not pairs[valid:].any()


def test_figures_and_chance_recomputed():
    task = adding.build(adding.Options(length=30), Model(units=3), 4, jax.random.key(0))
    targets = np.asarray(task.splits["test"]["target"])
    errors = abs(0.5 - targets)
    chance = {name: float(value) for name, value in task.baselines()["always 0.5"].items()}
    assert len(targets) == 2560
    assert chance["wrong of 2560"] == sum(errors >= 0.04)
    assert chance["error"] == pytest.approx(errors.mean(), rel=1e-5)
    assert chance["mse"] == pytest.approx((errors**2).mean(), rel=1e-5)


def test_loss_gives_the_absolute_error_of_each_sequence():
    task = adding.build(adding.Options(length=30), Model(units=3), 4, jax.random.key(0))
    params = jax.jit(task.init)(jax.random.key(1))
    batch = jax.tree.map(lambda column: np.asarray(column)[:4], task.splits["test"])
    loss, (errors, _) = jax.jit(task.loss)(params, batch, None)
    assert errors.shape == (4,)
    assert float(loss) == pytest.approx(np.mean(np.asarray(errors) ** 2), rel=1e-5)


def test_criterion_is_that_of_section_5_4():
    """The average error below 0.01, and the 2,000 most recent sequences processed correctly: errors below 0.04."""
    task = adding.build(adding.Options(), Model(units=2), 4, jax.random.key(0))
    assert task.criterion == Criterion(each=0.04, mean=0.01, sequences=2000)
    assert adding._figures(jnp.array([0.0399, -0.0401, 0.0401]))["wrong of 2560"] == 2
