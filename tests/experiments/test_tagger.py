"""The tagger: what its options make, and what it says with and without a CRF."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import tagger
from experiments.tagger import Tagger
from lstmjax import crf

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(3, 4, 5)).astype(np.float32)
TAGS = RNG.integers(0, 5, (3, 4), np.int32)
LENGTHS = np.array([4, 0, 2])
nll = jax.jit(tagger.nll, static_argnums=0)
decode = jax.jit(tagger.decode, static_argnums=0)


def test_levels_are_those_the_options_name():
    model = Tagger(embedding=6, units=7, context=3, characters=4)
    sizes = {"tags": 5, "characters": 9, "cases": 2, "features": 1}
    made = jax.eval_shape(lambda key: tagger.init(key, model, words=jnp.ones((20, 6)), **sizes), KEY)
    levels = made["hierarchy"].levels
    assert [level.encoder.forward.inputs for level in levels] == [4, 6 + 2 + 2 * 4, 1 + 2 * 7]
    assert levels[0].embedding.table.shape == (9, 4)
    assert made["dense"].w.shape == (6, 5)
    assert made["crf"].transitions.shape == (5, 5)
    plain = Tagger(embedding=6, units=7, crf=False)
    plain = jax.eval_shape(lambda key: tagger.init(key, plain, words=jnp.ones((20, 6)), tags=5), KEY)
    assert "crf" not in plain
    assert [level.encoder.forward.inputs for level in plain["hierarchy"].levels] == [6]


def test_features_are_dropped_at_each_step_anew():
    xs = jnp.ones((20, 30, 40))
    model = Tagger(dropout=0.25)
    assert tagger.dropped(model, xs, None) is xs
    ys = np.asarray(tagger.dropped(model, xs, KEY))
    assert set(np.unique(ys)) == {0, np.float32(1 / 0.75)}
    assert abs(np.mean(ys) - 1) < 0.02
    assert all((np.ptp(ys, axis=axis) > 0).mean() > 0.99 for axis in range(3))


def test_nll_without_a_crf_is_that_of_each_tag_by_itself():
    found = nll(Tagger(crf=False), {}, SCORES, TAGS, LENGTHS)
    chances = np.exp(np.asarray(SCORES, np.float64))
    chances /= chances.sum(axis=-1, keepdims=True)
    expected = [
        -sum(np.log(chances[row, step, TAGS[row, step]]) for step in range(length))
        for row, length in enumerate(LENGTHS.tolist())
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_crf_without_transitions_says_the_same():
    params = {"crf": crf.init(KEY, 5)}
    both = [nll(Tagger(crf=on), params if on else {}, SCORES, TAGS, LENGTHS) for on in (False, True)]
    np.testing.assert_allclose(*both, rtol=1e-5, atol=1e-6)
    real = np.arange(4) < np.asarray(LENGTHS)[:, None]
    (alone, chance), (together, marginal) = (
        decode(Tagger(crf=on), params if on else {}, SCORES, LENGTHS) for on in (False, True)
    )
    np.testing.assert_array_equal(np.asarray(alone)[real], np.asarray(together)[real])
    np.testing.assert_allclose(np.asarray(chance)[real], np.asarray(marginal)[real], rtol=1e-5)


def test_words_are_taken_for_unknown_ones_at_their_rate_and_only_with_a_key():
    model = Tagger(word_dropout=0.25)
    words = jnp.ones((100, 400), jnp.int32)
    assert np.all(np.asarray(tagger.some_unknown(model, words, None)) == 1)
    unknown = np.asarray(tagger.some_unknown(model, words, KEY)) == 0
    assert abs(np.mean(unknown) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / words.size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": 0}, r"model.units is 0; it must be at least 1"),
        ({"context": -1}, r"model.context is -1; it must be at least 0"),
        ({"dropout": 1.1}, r"model.dropout is 1.1; it must be from 0 to 1"),
        ({"word_dropout": -0.1}, r"model.word_dropout is -0.1"),
    ],
)
def test_options_say_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        Tagger(**options)
