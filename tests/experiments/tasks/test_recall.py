"""Recall: what is shown once and asked for later, in pieces that follow one another."""

import functools

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


@functools.cache
def built(carry):
    return recall.build(recall.Options(episode=40, steps=10, carry=carry), MODEL, 3, jax.random.key(0))


@functools.cache
def batches_of(carry):
    """Twelve batches from a step on."""
    task = built(carry)
    return jax.jit(lambda first: task.batches(None, jax.random.key(2), first + jnp.arange(12)))


@functools.cache
def params():
    return jax.jit(built(True).init)(jax.random.key(1))


going_on = jax.jit(functools.partial(models.going_on, MODEL))


@pytest.fixture(params=[True, False])
def carry(request):
    return request.param


def test_an_episode_shows_its_symbol_once_and_asks_for_it_at_its_end():
    draw = jax.jit(jax.vmap(lambda key: recall.episode(key, 40)))
    episodes = jax.tree.map(np.asarray, draw(jax.random.split(jax.random.key(1), 20)))
    for row in range(20):
        drawn = {name: column[row] for name, column in episodes.items()}
        assert drawn["xs"][:, :KINDS].sum() == 1
        assert drawn["xs"][0, drawn["symbol"][0]] == 1
        np.testing.assert_array_equal(drawn["xs"][:, KINDS], drawn["asked"])
        assert drawn["asked"][39]
        assert not drawn["asked"][0]
        assert len(set(drawn["symbol"])) == 1


def test_batches_of_a_stream_follow_one_another(carry):
    batches = jax.tree.map(np.asarray, batches_of(carry)(0))
    np.testing.assert_array_equal(np.argwhere(batches["first"]), [(0, 0), (10, 2), (11, 1)])
    for row in range(3):
        stream = np.asarray(batches["xs"][:, row]).reshape(-1, KINDS + 1)
        symbols = np.asarray(batches["symbol"][:, row]).ravel()
        shown = np.flatnonzero(stream[:, :KINDS].any(axis=1))
        np.testing.assert_array_equal(shown, np.arange(-10 * row % 40, 120, 40))
        for start in shown:
            assert stream[start, symbols[start]] == 1
            assert len(set(symbols[start : start + 40])) == 1
    later = batches_of(carry)(5)
    np.testing.assert_array_equal(np.asarray(later["xs"])[:7], batches["xs"][5:])


def test_loss_is_of_what_was_asked_in_the_carried_state_or_from_zeros(carry):
    task = built(carry)
    batches = jax.tree.map(np.asarray, batches_of(carry)(9))
    state, loss_of = task.carried(params()), jax.jit(task.loss)
    for number in range(3):
        batch = jax.tree.map(lambda column, n=number: column[n], batches)
        keep = carry & ~batch["first"]
        before = jax.tree.map(lambda leaf, keep=keep: np.asarray(leaf) * keep[:, None].astype(leaf.dtype), state)
        loss, (correct, state) = loss_of(params(), batch, state)
        logits, after = going_on(params(), batch["xs"], before)
        outputs = np.exp(np.asarray(logits, np.float64))
        outputs /= outputs.sum(axis=-1, keepdims=True)
        right = np.take_along_axis(outputs, np.asarray(batch["symbol"])[..., None], -1)[..., 0]
        asked = np.asarray(batch["asked"])
        assert float(loss) == pytest.approx(-np.log(right[asked]).mean(), rel=1e-5)
        said = outputs.argmax(axis=-1) == np.asarray(batch["symbol"])
        assert float(np.mean(correct)) == pytest.approx(float(said[asked].mean()), rel=1e-5)
        np.testing.assert_allclose(state.h, after.h, rtol=1e-6)


def test_measured_is_what_was_asked_in_later_batches(carry):
    task = built(carry)
    larger = jax.tree.map(lambda leaf: 4 * np.asarray(leaf), params())  # so that the state says something
    split = jax.tree.map(np.asarray, task.splits["test"])
    episodes, pieces, streams, steps = split["asked"].shape
    assert (episodes, pieces, streams, steps) == (3, 4, 128, 10)
    right, asked, ends, nats, zeros = 0, 0, 0, 0.0, models.initial_state(MODEL, larger, streams)
    state = zeros
    for e in range(episodes):
        for p in range(pieces):
            logits, state = going_on(larger, split["xs"][e, p], state if carry else zeros)
            correct = np.asarray(logits).argmax(axis=-1) == split["symbol"][e, p]
            if p:
                right += (correct & split["asked"][e, p]).sum()
                asked += split["asked"][e, p].sum()
                outputs = np.exp(np.asarray(logits, np.float64))
                outputs /= outputs.sum(axis=-1, keepdims=True)
                said = np.take_along_axis(outputs, split["symbol"][e, p][..., None], -1)[..., 0]
                nats -= np.log(said[split["asked"][e, p]]).sum()
        ends += correct[:, -1].sum()
    figures = jax.jit(task.evaluate)(larger, task.splits["test"])
    assert float(figures["accuracy"]) == pytest.approx(right / asked, rel=1e-6)
    assert float(figures["loss"]) == pytest.approx(nats / asked, rel=1e-5)
    assert float(figures["accuracy at the end"]) == pytest.approx(ends / (3 * 128), rel=1e-6)


@pytest.mark.parametrize(("episode", "steps"), [(40, 1), (40, 40), (45, 10)])
def test_episodes_that_are_no_pieces_are_refused(episode, steps):
    with pytest.raises(ValueError, match=rf"data\.steps is {steps} and data\.episode {episode}"):
        recall.Options(episode=episode, steps=steps)
