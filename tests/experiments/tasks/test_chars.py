"""Characters: read on and on in a carried state, counted once each, and beside n-grams."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import models
from experiments.data.files import DataError
from experiments.models import Model
from experiments.tasks import chars
from experiments.train import Hooks, Train, initial_state, train

WORDS = ["the ", "quick ", "brown ", "fox ", "jumps ", "over ", "a ", "lazy ", "dog.\n"]
TEXT = "".join(np.random.default_rng(0).choice(WORDS, 3000))
OPTIONS = Train(steps=60, batch=4, learning_rate=0.02, log_every=10, evaluate_every=20, save_every=20)


@pytest.fixture(autouse=True)
def text(tmp_path, monkeypatch):
    """A short text in the place of the real one."""
    path = tmp_path / "tinyshakespeare" / "input.txt"
    path.parent.mkdir()
    path.write_text(TEXT, encoding="ascii")
    monkeypatch.setenv("LSTMJAX_DATA", str(tmp_path))
    return path


@functools.cache
def built():
    return chars.build(chars.Options(steps=20), Model(units=12), OPTIONS.batch, jax.random.key(0))


@pytest.fixture
def task():
    return built()


@functools.cache
def params():
    return jax.jit(built().init)(jax.random.key(1))


@functools.cache
def loss():
    return jax.jit(built().loss)


every = jax.jit(functools.partial(models.every, Model(units=12)))


def ones(tokens):
    """One-hot vectors."""
    return np.eye(len(set(TEXT)), dtype=np.float32)[tokens]


def decode(tokens):
    alphabet = sorted(set(TEXT))
    return "".join(alphabet[token] for token in np.ravel(tokens))


def test_rows_are_stretches_of_the_first_nine_tenths(task):
    cut = len(TEXT) * 90 // 100
    read, following = task.splits["train"]["read"], task.splits["train"]["next"]
    assert read.shape[1:] == (4, 20)
    size = len(read) * 20
    for row in range(4):
        assert decode(read[:, row]) == TEXT[row * size : (row + 1) * size]
        assert decode(following[:, row]) == TEXT[row * size + 1 : (row + 1) * size + 1]
    assert cut - 80 <= 4 * size < cut


def test_held_out_text_is_read_once_from_beginning_to_end(task):
    cuts = [len(TEXT) * percent // 100 for percent in (90, 95, 100)]
    for name, start, end in (("validation", *cuts[:2]), ("test", *cuts[1:])):
        split = task.splits[name]
        counted = np.asarray(split["counts"]).ravel() == 1
        assert decode(np.asarray(split["read"]).ravel()[counted]) == TEXT[start : end - 1]
        assert decode(np.asarray(split["next"]).ravel()[counted]) == TEXT[start + 1 : end]


def test_batches_follow_one_another_and_the_text_begins_again(task):
    pieces = len(task.splits["train"]["read"])
    steps = jnp.arange(pieces - 2, pieces + 2)
    batches = task.batches(task.splits["train"], jax.random.key(0), steps)
    np.testing.assert_array_equal(batches["read"], task.splits["train"]["read"][steps % pieces])
    assert batches["first"].tolist() == [False, False, True, False]


def test_loss_is_bits_in_the_carried_state(task):
    """Of two batches one after another, what one reading of both says."""
    batches = task.batches(task.splits["train"], jax.random.key(0), jnp.arange(2))
    carried, losses = task.carried(params()), []
    for step in range(2):
        value, (accuracies, carried) = loss()(params(), jax.tree.map(lambda c, s=step: c[s], batches), carried)
        losses.append(float(value))
        assert accuracies.shape == (4,)
    both = {name: np.concatenate(list(batches[name]), axis=1) for name in ("read", "next")}
    logits = every(params(), ones(both["read"]))
    outputs = np.exp(np.asarray(logits, np.float64))
    outputs /= outputs.sum(axis=-1, keepdims=True)
    bits = -np.log2(np.take_along_axis(outputs, np.asarray(both["next"])[..., None], axis=-1))
    np.testing.assert_allclose(losses, [bits[:, :20].mean(), bits[:, 20:].mean()], rtol=1e-5)


def test_first_batch_of_a_reading_starts_afresh(task):
    batches = task.batches(task.splits["train"], jax.random.key(0), jnp.arange(2))
    batch = jax.tree.map(lambda column: column[0], batches)
    zeros = task.carried(params())
    full = jax.tree.map(np.ones_like, zeros)
    for first in (True, False):
        losses = [float(loss()(params(), batch | {"first": np.bool_(first)}, state)[0]) for state in (zeros, full)]
        assert (losses[0] == losses[1]) == first


def test_evaluation_is_one_reading_in_one_state(task):
    split = jax.tree.map(np.asarray, task.splits["test"])
    size = int(split["counts"].sum())
    outputs = np.exp(np.asarray(every(params(), ones(split["read"].reshape(1, -1)[:, :size])), np.float64))
    outputs /= outputs.sum(axis=-1, keepdims=True)
    following = split["next"].reshape(-1)[:size]
    expected = -np.log2(outputs[0, np.arange(size), following]).mean()
    assert float(jax.jit(task.evaluate)(params(), split)["loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_baselines_are_over_the_characters_that_the_lstm_is_measured_on(task):
    train, test = TEXT[: len(TEXT) * 90 // 100], TEXT[len(TEXT) * 95 // 100 :]
    unigram = {c: (train.count(c) + 1) / (len(train) + len(set(TEXT))) for c in set(TEXT)}  # next to no smoothing
    bits = -np.mean([math.log2(unigram[c]) for c in test[1:]])
    assert task.baselines()["unigram"]["loss"] == pytest.approx(bits, rel=1e-3)
    ((name, best),) = [item for item in task.baselines().items() if item[0] != "unigram"]
    assert name.endswith("-gram, Witten-Bell")
    assert best["loss"] < 2.0 < task.baselines()["unigram"]["loss"]


def test_the_ngram_is_chosen_on_the_validation_characters(monkeypatch):
    parts = {"train": np.zeros(50, int), "validation": np.zeros(20, int), "test": np.zeros(30, int)}
    of_each = {20: (2**-3, 2**-1, 2**-2), 30: (2**-5, 2**-4, 2**-2)}  # 2-grams; and 3-grams on the test characters

    def probabilities(train, text, symbols, longest):
        return np.repeat(np.array(of_each[len(text)])[:, None], len(text), axis=1)

    monkeypatch.setattr(chars.ngram, "probabilities", probabilities)
    assert chars.baselines(parts, 2) == {"unigram": {"loss": 5.0}, "2-gram, Witten-Bell": {"loss": 4.0}}


@pytest.mark.parametrize(("steps", "batch"), [(20, 1000), (20000, 1)])
def test_text_too_short_for_one_batch_is_refused(steps, batch):
    with pytest.raises(ValueError, match=rf"{batch} \* {steps}; it must be below \d+, which is how much text"):
        chars.build(chars.Options(steps=steps), Model(units=3), batch, jax.random.key(0))
    with pytest.raises(ValueError, match=r"data\.steps is 0"):
        chars.Options(steps=0)


@pytest.mark.parametrize("characters", [0, 1, 19, 39])
def test_text_of_which_nothing_can_be_held_out_is_refused(text, characters):
    text.write_text(TEXT[:characters], encoding="ascii")
    with pytest.raises(DataError, match=rf"input\.txt has {characters} characters; it should have 40 at least"):
        chars.build(chars.Options(steps=1), Model(units=3), 1, jax.random.key(0))


def test_shortest_text_is_held_out(text):
    text.write_text(TEXT[:40], encoding="ascii")
    splits = chars.build(chars.Options(steps=1), Model(units=3), 1, jax.random.key(0)).splits
    assert [float(splits[name]["counts"].sum()) for name in ("validation", "test")] == [1, 1]


def trained(task, options, state=None, stop=lambda: False):
    lines = []
    hooks = Hooks(log=lambda line, rate: lines.append(line), save=lambda state: None, stop=stop)
    return train(task, options, state or initial_state(task, options), hooks).state, lines


@pytest.mark.training
def test_short_text_is_learned_and_the_state_is_worth_carrying(task):
    options = dataclasses.replace(OPTIONS, steps=300, evaluate_every=100, save_every=100)
    state, lines = trained(task, options)
    assert lines[-1]["validation_loss"] < 0.6 * task.baselines()["unigram"]["loss"]
    split = task.splits["test"]
    whole, few = int(split["counts"].sum()) // 5, {name: column.reshape(-1, 1, 1, 5) for name, column in split.items()}
    evaluate = jax.jit(task.evaluate)
    afresh = [evaluate(state.params, jax.tree.map(lambda column, n=n: column[n], few)) for n in range(whole)]
    carried = float(evaluate(state.params, split)["loss"])
    assert carried < np.mean([figures["loss"] for figures in afresh]) - 0.1


@pytest.mark.training
def test_carried_state_is_resumed_bit_for_bit(task):
    whole, lines = trained(task, OPTIONS)
    first, head = trained(task, OPTIONS, stop=lambda: True)
    assert int(first.step) == 10
    assert np.abs(first.carried.h).max() > 0
    rest, tail = trained(task, OPTIONS, state=first)
    assert head + tail == lines
    for ours, other in zip(jax.tree.leaves(rest), jax.tree.leaves(whole), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(other).tobytes()
