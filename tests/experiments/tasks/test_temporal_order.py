"""Temporal order as the paper states it: the class read off the symbols again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import drawn
from experiments.models import Model
from experiments.task import Criterion
from experiments.tasks import temporal_order
from experiments.tasks.temporal_order import SPANS, SYMBOLS

CLASSES = {
    "6a": ["XX", "XY", "YX", "YY"],
    "6b": ["XXX", "XXY", "XYX", "XYY", "YXX", "YXY", "YYX", "YYY"],
}


@pytest.fixture(scope="module", params=["6a", "6b"])
def drawn_sequences(request):
    key = jax.random.key(5)
    batch = drawn.sequences(lambda k: temporal_order.sequence(k, SPANS[request.param]), key, 4000)
    columns = {name: np.asarray(column) for name, column in batch.items()}
    texts = ["".join(SYMBOLS[s] for s in row) for row in columns["symbols"]]
    return request.param, [t[:n] for t, n in zip(texts, columns["length"], strict=True)], columns


def test_class_is_the_order_of_x_and_y(drawn_sequences):
    variant, texts, columns = drawn_sequences
    for text, number in zip(texts, columns["class"], strict=True):
        assert "".join(s for s in text if s in "XY") == CLASSES[variant][number]
    assert set(columns["class"]) == set(range(len(CLASSES[variant])))


def test_symbols_stand_where_the_paper_says(drawn_sequences):
    variant, texts, _ = drawn_sequences
    assert {len(text) for text in texts} == set(range(100, 111))
    places = np.array([[i for i, s in enumerate(text) if s in "XY"] for text in texts])
    for column, (start, end) in zip(places.T, SPANS[variant], strict=True):
        assert set(column) == set(range(start, end + 1))
    for text in texts:
        assert (text[0], text[-1]) == ("E", "B")
        assert set(text[1:-1]) <= set("abcdXY")
    assert set("".join(texts)) == set(SYMBOLS)


def test_chance_is_wrong_everywhere_and_right_once_in_four():
    task = temporal_order.build(temporal_order.Options(), Model(units=3), 4, jax.random.key(0))
    chance = {name: float(value) for name, value in task.baselines()["chance"].items()}
    assert chance["wrong of 2560"] == 2560
    assert chance["error"] == 0.75
    assert chance["accuracy"] == pytest.approx(0.25, abs=0.03)


def test_error_of_a_sequence_is_that_of_its_worst_output():
    outputs = np.array([[0.7, 0.1, 0.1, 0.1], [0.05, 0.9, 0.03, 0.02], [0.1, 0.5, 0.35, 0.05]])
    errors = temporal_order._errors(jnp.asarray(outputs), jnp.array([0, 1, 2]))
    np.testing.assert_allclose(errors, [0.3, 0.1, 0.65], rtol=1e-6)


def test_loss_is_the_cross_entropy():
    task = temporal_order.build(temporal_order.Options(), Model(units=3), 4, jax.random.key(0))
    params = jax.jit(task.init)(jax.random.key(1))
    batch = jax.tree.map(lambda column: np.asarray(column)[:5], task.splits["test"])
    logits_of = functools.partial(temporal_order._logits, Model(units=3), params)
    (loss, (errors, _)), logits = jax.jit(lambda batch: (task.loss(params, batch, None), logits_of(batch)))(batch)
    logits = np.asarray(logits, np.float64)
    outputs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.asarray(batch["class"])
    assert float(loss) == pytest.approx(-np.mean(np.log(outputs[np.arange(5), truth])), rel=1e-5)
    np.testing.assert_allclose(errors, abs(outputs - np.eye(4)[truth]).max(axis=1), rtol=1e-5)


def test_criterion_is_that_of_section_5_6():
    """The average error below 0.1, and the 2,000 most recent sequences classified right, every output within 0.3."""
    task = temporal_order.build(temporal_order.Options(), Model(units=2), 4, jax.random.key(0))
    assert task.criterion == Criterion(each=0.3, mean=0.1, sequences=2000)
    outputs = jnp.array([[0.71, 0.29, 0, 0], [0.69, 0.31, 0, 0]])
    assert temporal_order._figures(outputs, jnp.zeros(2, int))["wrong of 2560"] == 1
