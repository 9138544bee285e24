"""The encoder and the decoder: their equations by a NumPy loop, and decoding beside teacher forcing."""

import functools

import jax
import numpy as np
import pytest
import reference

from experiments import seq2seq
from experiments.seq2seq import Seq2Seq
from lstmjax import LSTMState

SYMBOLS, END = 5, 5
LENGTHS = np.array([6, 0, 3, 1])
TARGET_LENGTHS = np.array([2, 4, 0, 4])
SOURCE = np.random.default_rng(1).integers(0, SYMBOLS, (4, 6), np.int32)
TARGET = np.random.default_rng(2).integers(0, SYMBOLS, (4, 4), np.int32)

encode = jax.jit(seq2seq.encode, static_argnums=0)
forced = jax.jit(seq2seq.forced, static_argnums=0)
decode = jax.jit(seq2seq.decode, static_argnums=(0, 3, 4))


@functools.cache
def random(layers):
    model = Seq2Seq(embedding=3, units=4, layers=layers)
    params = jax.jit(lambda key: seq2seq.init(key, SYMBOLS, model))(jax.random.key(0))
    # Probabilities that differ, and biases that do something.
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: np.asarray(leaf + 0.2 * rng.normal(size=leaf.shape), np.float32), params)


@pytest.fixture(params=[1, 2])
def made(request):
    return random(request.param)


def test_what_is_read_and_said_is_what_the_equations_say(made):
    model, params = made
    state = encode(model, params, SOURCE, LENGTHS)
    log_likelihood, correct = map(np.asarray, forced(model, params, state, TARGET, TARGET_LENGTHS))
    state = jax.tree.map(np.asarray, state)
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
    state = encode(model, params, SOURCE, LENGTHS)
    found = jax.tree.map(np.asarray, decode(model, params, state, 9, width))
    ended = found.lengths < 9
    log_likelihood, correct = forced(model, params, state, found.symbols * (found.symbols < END), found.lengths)
    log_likelihood, correct = np.asarray(log_likelihood), np.asarray(correct)
    said = np.where(ended, log_likelihood.sum(axis=1), log_likelihood[:, :9].sum(axis=1))
    np.testing.assert_allclose(found.log_likelihood, said, rtol=1e-5)
    if width != 3:
        np.testing.assert_array_equal(correct[:, :9].sum(axis=1), np.minimum(found.lengths + 1, 9))


def test_a_wider_beam_here_finds_nothing_less_likely(made):
    model, params = made
    state = encode(model, params, SOURCE, LENGTHS)
    one, all_there_are = (np.asarray(decode(model, params, state, 3, width).log_likelihood) for width in (1, 6**3))
    assert (all_there_are >= one - 1e-6).all()


def test_longer_padding_and_what_it_holds_change_nothing(made):
    model, params = made
    rng = np.random.default_rng(0)

    def padded(tokens, lengths):
        wide = rng.integers(0, SYMBOLS, (4, 11))
        for row, length in enumerate(lengths):
            wide[row, :length] = tokens[row, :length]
        return np.asarray(wide, tokens.dtype)

    def measured(source, target):
        state = encode(model, params, source, LENGTHS)
        log_likelihood, correct = map(np.asarray, forced(model, params, state, target, TARGET_LENGTHS))
        return state, log_likelihood[:, :5], correct[:, :5], decode(model, params, state, 9, 3)

    plain = measured(SOURCE, TARGET)
    other = measured(padded(SOURCE, LENGTHS), padded(TARGET, TARGET_LENGTHS))
    for one, same in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(one, same, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["embedding", "units", "layers", "beam"])
def test_sizes_are_at_least_one(name):
    with pytest.raises(ValueError, match=rf"model\.{name} is 0; it must be at least 1"):
        Seq2Seq(**{name: 0})
