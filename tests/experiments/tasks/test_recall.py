"""Recall: what is shown once and asked for later, in pieces that follow one another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import models
from experiments.models import Model
from experiments.tasks import recall
from experiments.tasks.recall import KINDS

MODEL = Model(units=6)
OPTIONS = recall.Options(episode=40, steps=10)


@pytest.fixture(params=[True, False])
def task(request):
    return recall.build(recall.Options(episode=40, steps=10, carry=request.param), MODEL, 3, jax.random.key(0))


def test_an_episode_shows_its_symbol_once_and_asks_for_it_at_its_end():
    for key in jax.random.split(jax.random.key(1), 20):
        drawn = jax.tree.map(np.asarray, recall.episode(key, 40))
        assert drawn["xs"][:, :KINDS].sum() == 1
        assert drawn["xs"][0, drawn["symbol"][0]] == 1
        np.testing.assert_array_equal(drawn["xs"][:, KINDS], drawn["asked"])
        assert drawn["asked"][39]
        assert not drawn["asked"][0]
        assert len(set(drawn["symbol"])) == 1


def test_batches_of_a_stream_follow_one_another(task):
    batches = task.batches(None, jax.random.key(2), jnp.arange(12))
    np.testing.assert_array_equal(np.argwhere(batches["first"]), [(0, 0), (10, 2), (11, 1)])
    for row in range(3):
        stream = np.asarray(batches["xs"][:, row]).reshape(-1, KINDS + 1)
        symbols = np.asarray(batches["symbol"][:, row]).ravel()
        shown = np.flatnonzero(stream[:, :KINDS].any(axis=1))
        np.testing.assert_array_equal(shown, np.arange(-10 * row % 40, 120, 40))
        for start in shown:
            assert stream[start, symbols[start]] == 1
            assert len(set(symbols[start : start + 40])) == 1
    later = task.batches(None, jax.random.key(2), jnp.arange(5, 6))
    np.testing.assert_array_equal(later["xs"][0], batches["xs"][5])


def test_loss_is_of_what_was_asked_in_the_carried_state_or_from_zeros(task, request):
    params = task.init(jax.random.key(1))
    carry = "True" in request.node.name
    batches = task.batches(None, jax.random.key(2), jnp.arange(9, 12))
    state = task.carried(params)
    for number in range(3):
        batch = jax.tree.map(lambda column, n=number: column[n], batches)
        keep = carry & ~batch["first"]
        before = jax.tree.map(lambda leaf, keep=keep: leaf * keep[:, None], state)
        loss, (correct, state) = task.loss(params, batch, state)
        logits, after = models.going_on(MODEL, params, batch["xs"], before)
        outputs = np.exp(np.asarray(logits, np.float64))
        outputs /= outputs.sum(axis=-1, keepdims=True)
        right = np.take_along_axis(outputs, np.asarray(batch["symbol"])[..., None], -1)[..., 0]
        asked = np.asarray(batch["asked"])
        assert float(loss) == pytest.approx(-np.log(right[asked]).mean(), rel=1e-5)
        said = outputs.argmax(axis=-1) == np.asarray(batch["symbol"])
        assert float(correct.mean()) == pytest.approx(float(said[asked].mean()), rel=1e-5)
        np.testing.assert_allclose(state.h, after.h, rtol=1e-6)


def test_measured_is_what_was_asked_in_later_batches(task, request):
    params = jax.tree.map(lambda leaf: 4 * leaf, task.init(jax.random.key(1)))  # so that the state says something
    split, carry = jax.tree.map(np.asarray, task.splits["test"]), "True" in request.node.name
    episodes, pieces, streams, steps = split["asked"].shape
    assert (episodes, pieces, streams, steps) == (3, 4, 128, 10)
    right, asked, ends, nats, state = 0, 0, 0, 0.0, models.initial_state(MODEL, params, streams)
    for e in range(episodes):
        for p in range(pieces):
            state = state if carry else models.initial_state(MODEL, params, streams)
            logits, state = models.going_on(MODEL, params, jnp.asarray(split["xs"][e, p]), state)
            correct = np.asarray(logits).argmax(axis=-1) == split["symbol"][e, p]
            if p:
                right += (correct & split["asked"][e, p]).sum()
                asked += split["asked"][e, p].sum()
                outputs = np.exp(np.asarray(logits, np.float64))
                outputs /= outputs.sum(axis=-1, keepdims=True)
                said = np.take_along_axis(outputs, split["symbol"][e, p][..., None], -1)[..., 0]
                nats -= np.log(said[split["asked"][e, p]]).sum()
        ends += correct[:, -1].sum()
    figures = task.evaluate(params, task.splits["test"])
    assert float(figures["accuracy"]) == pytest.approx(right / asked, rel=1e-6)
    assert float(figures["loss"]) == pytest.approx(nats / asked, rel=1e-5)
    assert float(figures["accuracy at the end"]) == pytest.approx(ends / (3 * 128), rel=1e-6)


@pytest.mark.parametrize(("episode", "steps"), [(40, 1), (40, 40), (45, 10)])
def test_episodes_that_are_no_pieces_are_refused(episode, steps):
    with pytest.raises(ValueError, match=rf"data\.steps is {steps} and data\.episode {episode}"):
        recall.Options(episode=episode, steps=steps)
