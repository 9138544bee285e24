"""Words of the treebank: numbered, read on, and measured in perplexity beside n-grams."""

import collections
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import language
from experiments.language import Words
from experiments.tasks import ptb

RNG = np.random.default_rng(0)
SAID = {name: [str(word) for word in RNG.choice(list("abcdefgh"), n)] for name, n in (("train", 900), ("test", 300))}
SAID["validation"] = SAID["test"][:250]
MODEL = Words(units=5)


@functools.cache
def built():
    return ptb.build(ptb.Options(steps=10), MODEL, 4, jax.random.key(0))


@pytest.fixture
def task(monkeypatch):
    monkeypatch.setattr(ptb.treebank, "load", lambda: SAID)
    return built()


def test_rows_are_stretches_of_the_words(task):
    vocabulary = sorted(set(SAID["train"]))
    read = np.asarray(task.splits["train"]["read"])
    assert task.epoch == len(read) == 899 // 40
    for row in range(4):
        said = [vocabulary[n] for n in read[:, row].ravel()]
        assert said == SAID["train"][row * len(said) : (row + 1) * len(said)]


def test_perplexity_is_that_of_one_reading(task):
    params = jax.jit(task.init)(jax.random.key(1))
    numbers = np.searchsorted(sorted(set(SAID["train"])), SAID["test"])
    state = language.initial_state(MODEL, params, 1)
    logits, _ = jax.jit(functools.partial(language.say, MODEL))(params, numbers[None, :-1].astype(np.int32), state)
    outputs = np.exp(np.asarray(logits, np.float64)[0])
    outputs /= outputs.sum(axis=-1, keepdims=True)
    expected = math.exp(-np.mean(np.log(outputs[np.arange(299), numbers[1:]])))
    figures = task.score(task.evaluate(params, task.splits["test"]), task.splits["test"])
    assert figures["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert list(figures) == ["perplexity", "loss", "accuracy"]


def test_units_are_dropped_in_training_alone_and_others_in_each_batch(task, monkeypatch):
    dropping = ptb.build(ptb.Options(steps=10), Words(units=5, scale=2.0, dropout=0.5), 4, jax.random.key(0))
    params = jax.jit(dropping.init)(jax.random.key(1))
    read = jax.jit(lambda split, steps: dropping.batches(split, jax.random.key(2), steps))
    batches = read(dropping.splits["train"], jnp.arange(2))
    one, other = (jax.tree.map(lambda column, n=n: column[n], batches) for n in range(2))
    state = dropping.carried(params)
    kept, drops = jax.jit(task.loss), jax.jit(dropping.loss)
    plain, dropped, again, anew = (
        float(loss(params, batch, state)[0])
        for loss, batch in ((kept, one), (drops, one), (drops, one), (drops, one | {"key": other["key"]}))
    )
    assert again == dropped
    assert abs(dropped - plain) > 1e-4
    assert abs(dropped - anew) > 1e-4
    both = jax.jit(lambda split: [built.evaluate(params, split)["loss"] for built in (dropping, task)])
    for name in ("validation", "test"):
        np.testing.assert_array_equal(*both(task.splits[name]))


def test_a_loss_beyond_all_numbers_is_an_infinite_perplexity(task):
    assert task.score({"loss": jnp.float32(1000), "accuracy": jnp.float32(0)}, None)["perplexity"] == math.inf


def test_unigrams_by_counting(task):
    counts = collections.Counter(SAID["train"])
    probability = {w: (counts[w] + 8 * (1 / 8)) / (len(SAID["train"]) + 8) for w in counts}  # Witten & Bell
    expected = math.exp(-np.mean([math.log(probability[w]) for w in SAID["test"][1:]]))
    baselines = task.baselines()
    assert baselines["unigram"]["perplexity"] == pytest.approx(expected, rel=1e-9)
    assert list(baselines)[-1].endswith("-gram, Witten-Bell")


def test_the_ngram_is_chosen_on_the_validation_words(task, monkeypatch):
    def probabilities(train, text, vocabulary, longest):
        of_each = {250: (0.1, 0.4, 0.2, 0.3), 300: (0.1, 0.2, 0.4, 0.3)}[len(text)]  # 2-grams; and 3-grams on the test
        return np.repeat(np.array(of_each)[:, None], len(text), axis=1)

    monkeypatch.setattr(ptb.ngram, "probabilities", probabilities)
    found = task.baselines()
    assert {name: figures["perplexity"] for name, figures in found.items()} == {
        "unigram": pytest.approx(10),
        "2-gram, Witten-Bell": pytest.approx(5),
    }


def test_too_little_text_and_no_steps_are_refused(task, monkeypatch):
    with pytest.raises(ValueError, match=r"train\.batch \* data\.steps is 90 \* 10; it must be below 900"):
        ptb.build(ptb.Options(steps=10), MODEL, 90, jax.random.key(0))
    with pytest.raises(ValueError, match=r"data\.steps is 0"):
        ptb.Options(steps=0)
