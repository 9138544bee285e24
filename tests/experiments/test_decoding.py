"""Greedy decoding and beam search, beside enumeration of every sequence there is."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import decoding

KINDS, END, STEPS, BATCH = 4, 3, 4, 5


@pytest.fixture(params=range(6))
def table(request):
    """Log-probabilities [batch, last symbol, symbols said so far, next symbol], in float64."""
    rng = np.random.default_rng(request.param)
    logits = rng.normal(size=(BATCH, KINDS, STEPS, KINDS)) * rng.choice([0.3, 1.0, 3.0])
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def step(table, last, state):
    """A model whose state is the number of the row and how many symbols it has said."""
    row, said = state
    return jnp.asarray(table, jnp.float32)[row, last, said], (row, said + 1)


def start():
    return (jnp.arange(BATCH), jnp.zeros(BATCH, int)), jnp.full(BATCH, END)


@jax.jit
def greedy(table):
    return decoding.greedy(functools.partial(step, table), *start(), END, STEPS)


@functools.partial(jax.jit, static_argnums=1)
def beam(table, width):
    return decoding.beam(functools.partial(step, table), *start(), END, STEPS, width)


def log_likelihood(table, row, symbols):
    lasts = (END, *symbols)
    return sum(table[row, last, at, symbol] for at, (last, symbol) in enumerate(zip(lasts, symbols, strict=False)))


@functools.cache
def sequences():
    """All that can be said: what ends within the steps, and what does not."""
    plain = range(END)
    ended = [(*said, END) for n in range(STEPS) for said in itertools.product(plain, repeat=n)]
    return [*ended, *itertools.product(plain, repeat=STEPS)]


def said(decoded, row):
    """The symbols of a row up to their end."""
    symbols = tuple(np.asarray(decoded.symbols[row]).tolist())
    length = int(decoded.lengths[row])
    assert symbols[length:] == (END,) * (STEPS - length)
    assert END not in symbols[:length]
    return symbols[: length + 1]


def test_a_beam_with_room_for_all_finds_what_enumeration_finds(table):
    found = beam(np.float32(table), len(sequences()))
    for row in range(BATCH):
        best = max(sequences(), key=lambda symbols, row=row: log_likelihood(table, row, symbols))
        assert said(found, row) == best
        assert float(found.log_likelihood[row]) == pytest.approx(log_likelihood(table, row, best), abs=1e-5)


def test_greedy_takes_the_likeliest_each_time(table):
    found = greedy(np.float32(table))
    for row in range(BATCH):
        symbols, last = [], END
        while len(symbols) < STEPS and END not in symbols:
            last = int(table[row, last, len(symbols)].argmax())
            symbols.append(last)
        assert said(found, row) == tuple(symbols)
        assert float(found.log_likelihood[row]) == pytest.approx(log_likelihood(table, row, symbols), abs=1e-5)


def test_a_beam_of_one_is_greedy(table):
    for one, other in zip(greedy(np.float32(table)), beam(np.float32(table), 1), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("width", [2, 3, 7])
def test_a_beam_keeps_the_likeliest_beginnings(table, width):
    found = beam(np.float32(table), width)
    for row in range(BATCH):
        kept = [()]
        for _ in range(STEPS):
            more = [(*symbols, kind) for symbols in kept for kind in range(KINDS) if END not in symbols or kind == END]
            kept = sorted(more, key=lambda s, row=row: -log_likelihood(table, row, until_end(s)))[:width]
        assert said(found, row) == until_end(kept[0])
        assert float(found.log_likelihood[row]) == pytest.approx(
            log_likelihood(table, row, until_end(kept[0])), abs=1e-5
        )


def until_end(symbols):
    return symbols[: symbols.index(END) + 1] if END in symbols else symbols


def test_what_can_never_be_said_is_not_said():
    """Log-probabilities of minus infinity, and an end that comes at once or never."""
    never = np.full((BATCH, KINDS, STEPS, KINDS), -np.inf)
    at_once, at_no_time = never.copy(), never.copy()
    at_once[..., END] = 0
    at_no_time[..., 1] = 0
    for table, expected in ((at_once, (END,)), (at_no_time, (1,) * STEPS)):
        for found in (greedy(np.float32(table)), beam(np.float32(table), 3)):
            assert {said(found, row) for row in range(BATCH)} == {expected}
            np.testing.assert_array_equal(found.log_likelihood, 0)


def test_no_steps_and_no_rows():
    table = np.zeros((BATCH, KINDS, STEPS, KINDS))
    model = functools.partial(step, table)
    for decode in (decoding.greedy, functools.partial(decoding.beam, width=2)):
        nothing = decode(model, *start(), END, 0)
        assert nothing.symbols.shape == (BATCH, 0)
        np.testing.assert_array_equal(nothing.lengths, 0)
        np.testing.assert_array_equal(nothing.log_likelihood, 0)
        nobody = decode(model, *jax.tree.map(lambda leaf: leaf[:0], start()), END, STEPS)
        assert nobody.symbols.shape == (0, STEPS)
        assert nobody.lengths.shape == nobody.log_likelihood.shape == (0,)
