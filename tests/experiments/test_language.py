"""The language model of words: its equations by a NumPy loop, and what dropping and tying change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from experiments import language
from experiments.language import Words
from lstmjax import Dropout, stack

VOCABULARY = 7
TOKENS = np.random.default_rng(1).integers(0, VOCABULARY, (3, 5), np.int32)
say = jax.jit(language.say, static_argnums=0)


@functools.partial(jax.jit, static_argnames=("vocabulary", "model"))
def init(key, vocabulary, model):
    return language.init(key, vocabulary, model)


@pytest.mark.parametrize("tied", [False, True])
def test_words_are_embedded_read_and_said(tied):
    model = Words(units=4, layers=2, tied=tied, forget_bias=0.5)
    params = init(jax.random.key(0), VOCABULARY, model)
    state = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.3), language.initial_state(model, params, 3))
    logits, after = say(model, params, TOKENS, state)
    p, s = (jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree) for tree in (params, state))
    ys, ends = reference.stack(p["lstm"], p["embedding"].table[np.asarray(TOKENS)], s)
    expected = ys @ p["embedding"].table.T + p["dense"] if tied else ys @ p["dense"].w + p["dense"].bias
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    for layer, end in zip(after, ends, strict=True):
        np.testing.assert_allclose(layer.h, end[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(layer.c, end[1], rtol=1e-5, atol=1e-6)


def test_precision_is_that_of_the_computation():
    wide, narrow = (Words(units=4, layers=2, scale=0.5, precision=precision) for precision in ("float32", "bfloat16"))
    params = init(jax.random.key(0), VOCABULARY, wide)
    expected, logits = (
        np.asarray(say(model, params, TOKENS, language.initial_state(model, params, 3))[0]) for model in (wide, narrow)
    )
    assert 1e-5 < np.abs(logits - expected).max() < 3e-2
    before = language.initial_state(narrow, params, 3)
    _, after = say(narrow, params, TOKENS, before)
    assert [a.dtype for a in jax.tree.leaves(after)] == [a.dtype for a in jax.tree.leaves(before)]
    assert [layer.h.dtype for layer in after] == [jnp.bfloat16] * 2


def test_weights_start_in_the_range_asked_for():
    model = Words(units=20, layers=1, scale=0.05, forget_bias=0.0)
    params = init(jax.random.key(0), VOCABULARY, model)
    (layer,) = params["lstm"].layers
    for weights in (params["embedding"].table, layer.w_x, layer.w_h, params["dense"].w):
        assert 0.045 < np.abs(weights).max() <= 0.05
    assert not layer.bias.any()
    tied = init(jax.random.key(0), VOCABULARY, Words(units=20, layers=1, tied=True))
    assert sum(leaf.size for leaf in jax.tree.leaves(tied)) == VOCABULARY * 21 + 4 * 20 * (20 + 20 + 1)


@pytest.mark.parametrize("layers", [1, 2])
def test_what_is_dropped_is_dropped_at_all_steps_and_only_with_a_key(layers):
    xs = np.ones((2, 6, 50), np.float32)
    dropped = np.asarray(language._dropped(xs, 0.4, jax.random.key(0)))
    np.testing.assert_array_equal(dropped, np.repeat(dropped[:, :1], 6, axis=1))
    assert set(np.unique(dropped)) == {0, np.float32(1 / np.float32(0.6))}
    assert 0.3 < np.mean(dropped == 0) < 0.5
    model = Words(units=4, layers=layers, scale=0.5, dropout=0.5)
    params = init(jax.random.key(0), VOCABULARY, model)
    state = language.initial_state(model, params, 3)
    still, _ = say(Words(units=4, layers=layers, scale=0.5), params, TOKENS, state)
    without, _ = say(model, params, TOKENS, state)
    one, other = (np.asarray(say(model, params, TOKENS, state, jax.random.key(k))[0]) for k in (1, 2))
    np.testing.assert_array_equal(without, still)
    assert np.abs(one - still).max() > 1e-4
    assert np.abs(one - other).max() > 1e-4


@pytest.mark.parametrize("layers", [1, 2])
def test_words_what_is_said_and_what_goes_between_layers_are_dropped(layers):
    model = Words(units=4, layers=layers, scale=0.5, dropout=0.5)
    params = init(jax.random.key(0), VOCABULARY, model)
    state, key = language.initial_state(model, params, 3), jax.random.key(1)
    logits, _ = say(model, params, TOKENS, state, key)
    before, between, after = jax.random.split(key, 3)
    first, last = (np.asarray(language._dropped(jnp.ones((3, 5, 4)), 0.5, part)) for part in (before, after))
    xs = params["embedding"].table[TOKENS] * first
    dropped = {"dropout": Dropout(between_layers=0.5), "key": between} if layers > 1 else {}
    ys, _ = stack.apply(params["lstm"], xs, state, **dropped)
    expected = (np.asarray(ys, np.float64) * last) @ params["dense"].w + params["dense"].bias[None, None]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "value"), [("units", 0), ("layers", 0), ("scale", 0.0), ("dropout", 1.1), ("dropout", -0.1)]
)
def test_options_that_make_no_model_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"model\.{name} is {value}"):
        Words(**{name: value})
