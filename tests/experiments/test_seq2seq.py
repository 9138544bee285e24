"""The encoder and the decoder: their equations by a NumPy loop, and decoding beside teacher forcing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from experiments import seq2seq
from experiments.seq2seq import Seq2Seq
from lstmjax import LSTMState

SYMBOLS, END = 5, 5
LENGTHS = jnp.array([6, 0, 3, 1])
TARGET_LENGTHS = jnp.array([2, 4, 0, 4])
SOURCE = jax.random.randint(jax.random.key(1), (4, 6), 0, SYMBOLS)
TARGET = jax.random.randint(jax.random.key(2), (4, 4), 0, SYMBOLS)


@pytest.fixture(params=[1, 2])
def made(request):
    model = Seq2Seq(embedding=3, units=4, layers=request.param)
    params = seq2seq.init(jax.random.key(0), SYMBOLS, model)
    # Probabilities that differ, and biases that do something.
    params = jax.tree.map(lambda leaf: leaf + 0.2 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)
    return model, params


def test_what_is_read_and_said_is_what_the_equations_say(made):
    model, params = made
    state = seq2seq.encode(model, params, SOURCE, LENGTHS)
    log_likelihood, correct = seq2seq.forced(model, params, state, TARGET, TARGET_LENGTHS)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    assert log_likelihood.shape == correct.shape == (4, 5)
    for row in range(4):
        read = np.asarray(SOURCE[row, : LENGTHS[row]])[None]
        ends = reference.stack(p["encoder"], p["read"].table[read], None)[1]
        for layer, end in zip(state, ends, strict=True):
            np.testing.assert_allclose(layer.h[row], end[0][0], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(layer.c[row], end[1][0], rtol=1e-5, atol=1e-6)
        begun = [LSTMState(*end) for end in ends]
        symbols = np.append(np.asarray(TARGET[row, : TARGET_LENGTHS[row]]), END)
        ys, _ = reference.stack(p["decoder"], p["said"].table[np.append(END, symbols[:-1])][None], begun)
        logits = ys[0] @ p["dense"].w + p["dense"].bias
        outputs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        steps = np.arange(len(symbols))
        np.testing.assert_allclose(log_likelihood[row, steps], np.log(outputs[steps, symbols]), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(correct[row, steps], outputs.argmax(axis=-1) == symbols)
        np.testing.assert_array_equal(log_likelihood[row, len(symbols) :], 0)
        np.testing.assert_array_equal(correct[row, len(symbols) :], 0)


@pytest.mark.parametrize("width", [None, 1, 3])
def test_what_is_decoded_is_as_likely_as_teacher_forcing_says(made, width):
    model, params = made
    state = seq2seq.encode(model, params, SOURCE, LENGTHS)
    found = seq2seq.decode(model, params, state, 9, width)
    ended = found.lengths < 9
    log_likelihood, correct = seq2seq.forced(model, params, state, found.symbols * (found.symbols < END), found.lengths)
    said = jnp.where(ended, jnp.sum(log_likelihood, axis=1), jnp.sum(log_likelihood[:, :9], axis=1))
    np.testing.assert_allclose(found.log_likelihood, said, rtol=1e-5)
    if width != 3:
        np.testing.assert_array_equal(jnp.sum(correct[:, :9], axis=1), jnp.minimum(found.lengths + 1, 9))


def test_a_wider_beam_here_finds_nothing_less_likely(made):
    model, params = made
    state = seq2seq.encode(model, params, SOURCE, LENGTHS)
    one, all_there_are = (seq2seq.decode(model, params, state, 3, width).log_likelihood for width in (1, 6**3))
    assert (all_there_are >= one - 1e-6).all()


def test_longer_padding_and_what_it_holds_change_nothing(made):
    model, params = made
    rng = np.random.default_rng(0)

    def padded(tokens, lengths):
        wide = rng.integers(0, SYMBOLS, (4, 11))
        for row, length in enumerate(lengths):
            wide[row, :length] = tokens[row, :length]
        return jnp.asarray(wide, tokens.dtype)

    def measured(source, target):
        state = seq2seq.encode(model, params, source, LENGTHS)
        log_likelihood, correct = seq2seq.forced(model, params, state, target, TARGET_LENGTHS)
        return state, log_likelihood[:, :5], correct[:, :5], seq2seq.decode(model, params, state, 6, 2)

    plain = measured(SOURCE, TARGET)
    other = measured(padded(SOURCE, LENGTHS), padded(TARGET, TARGET_LENGTHS))
    for one, same in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(one, same, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["embedding", "units", "layers", "beam"])
def test_sizes_are_at_least_one(name):
    with pytest.raises(ValueError, match=rf"model\.{name} is 0; it must be at least 1"):
        Seq2Seq(**{name: 0})
