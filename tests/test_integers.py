"""Integers that do not fit 32 bits: where values cannot be read, none becomes another valid length, token or tag."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax.flax
from lstmjax import bidirectional, conv1d, crf, embedding, hierarchy, inspect, lstm, pooling, residual, stack, windows

KEY, TIME = jax.random.key(0), 4
RNG = np.random.default_rng(0)
XS = RNG.normal(size=(6, TIME, 2)).astype(np.float32)
LSTM, BOTH, STACK = lstm.init(KEY, 2, 2), bidirectional.init(KEY, 2, 2), stack.init(KEY, 2, (2, 2))
CHAIN, TABLE = crf.init(KEY, 2, transitions_init=jax.nn.initializers.normal()), embedding.init(KEY, 7, 2)
LEVEL, LEVELS = (hierarchy.init(KEY, 2, (2,) * count, vocabulary=7) for count in (1, 2))
PATH, PAST = np.array([0, 1, 1, 0] * 6).reshape(6, TIME), np.zeros((6, TIME, 3), int)
MODULE = lstmjax.flax.LSTM.from_params(LSTM)

OF_LENGTHS = {
    "lstm.apply": lambda n: lstm.apply(LSTM, XS, lengths=n),
    "scan, reversed": lambda n: lstm.apply(LSTM, XS, lengths=n, reverse=True, implementation="scan"),
    "final": lambda n: lstm.apply(LSTM, XS, lengths=n, return_sequences=False, checkpoint=2),
    "bidirectional.apply": lambda n: bidirectional.apply(BOTH, XS, lengths=n),
    "stack.apply": lambda n: stack.apply(STACK, XS, lengths=n, residual_from=0, return_sequences=False),
    "hierarchy.encode": lambda n: hierarchy.encode(LSTM, XS, lengths=n, code="max"),
    "hierarchy.apply": lambda n: hierarchy.apply(LEVEL, PATH, lengths=(n,)),
    "words": lambda n: hierarchy.apply(LEVELS, PAST, lengths=(jnp.stack([n] * TIME, 1), None)),
    "utterances": lambda n: hierarchy.apply(LEVELS, PAST, lengths=(None, n)),
    "conv1d.apply": lambda n: conv1d.apply(
        conv1d.Conv1DParams(jnp.ones((3, 2, 1)), jnp.ones(1)), XS, lengths=n, stride=2
    ),
    "residual.apply": lambda n: residual.apply(residual.init(KEY, 2, (2,)), XS, lengths=n),
    "pooling.last": lambda n: pooling.last(XS, lengths=n),
    "pooling.global_max": lambda n: pooling.global_max(XS, lengths=n),
    "pooling.global_mean": lambda n: pooling.global_mean(XS, lengths=n),
    "pooling.max_over_windows": lambda n: pooling.max_over_windows(XS, 2, lengths=n),
    "windows.truncated_bptt": lambda n: windows.truncated_bptt(lstm.apply, 2)(LSTM, XS, lengths=n, reverse=True),
    "crf.log_likelihood": lambda n: crf.log_likelihood(CHAIN, XS, PATH, lengths=n),
    "crf.log_partition": lambda n: crf.log_partition(CHAIN, XS, lengths=n),
    "crf.marginals": lambda n: crf.marginals(CHAIN, XS, lengths=n),
    "crf.decode": lambda n: crf.decode(CHAIN, XS, lengths=n),
    "crf.sample": lambda n: crf.sample(CHAIN, XS, lengths=n, key=KEY),
    "flax.LSTM": lambda n: MODULE(XS, lengths=n, reverse=True),
    "inspect.trace": lambda n: inspect.trace(LSTM, XS, lengths=n),
}
OF_TOKENS = {
    "embedding.apply": lambda tokens: embedding.apply(TABLE, tokens),
    "hierarchy.apply": lambda tokens: hierarchy.apply(LEVEL, tokens[:, None]),
    "crf.log_likelihood": lambda tokens: crf.log_likelihood(CHAIN, XS[:, :1], tokens[:, None]),
}
BAD = {
    "int32": [9, -1, 2**31 - 1, -(2**31), 1, 0],
    "uint32": [2**31 + 1, 2**32 - 1, 2**31, 9, 1, 0],
    "int64": [2**32 + 1, -(2**32) + 1, 2**63 - 1, -(2**63), 1, 0],
    "uint64": [2**32 + 1, 2**63 + 1, 2**64 - 1, 2**64 - 2**32 + 1, 1, 0],
    "int8": [9, -1, 127, -128, 1, 0],
}


@cache
def everything(dtype):
    """One program with all functions, which sees integers of a dtype; and what it gives for the integers in range."""
    values = np.array(BAD[dtype], dtype)
    with jax.enable_x64(values.dtype.itemsize == 8):
        run = jax.jit(
            lambda values: [
                {name: function(values) for name, function in functions.items()}
                for functions in (OF_LENGTHS, OF_TOKENS)
            ]
        )
        found = jax.tree.map(np.asarray, run(values))
        # clipped by Python, which has one kind of integer
        expected = jax.tree.map(np.asarray, run(np.array([min(max(value, 0), TIME) for value in BAD[dtype]], dtype)))
    return found, expected


@pytest.mark.parametrize("dtype", BAD)
@pytest.mark.parametrize("name", OF_LENGTHS)
def test_a_length_out_of_range_is_0_or_time(name, dtype):
    (found, _), (expected, _) = everything(dtype)
    jax.tree.map(np.testing.assert_array_equal, found[name], expected[name])


@pytest.mark.parametrize("dtype", BAD)
@pytest.mark.parametrize("name", OF_TOKENS)
def test_a_token_out_of_range_is_nan(name, dtype):
    (_, found), _ = everything(dtype)
    right = found[name].reshape(6, -1)
    assert np.isnan(right).all(axis=1).tolist() == [True] * 4 + [False] * 2


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint64"])
def test_lengths_count_outputs_from_0(dtype):
    values = np.array(BAD[dtype], dtype)
    with jax.enable_x64(values.dtype.itemsize == 8):
        found = jax.jit(lambda lengths: conv1d.output_lengths(lengths, 2))(values)
    expected = [-(-min(max(value, 0), 2**31 - 1) // 2) for value in BAD[dtype]]
    assert found.tolist() == expected


WIDE = np.array([[2**32 + 1, 1, 1, 2**32 + 1]] * 6)
CONSTANTS = {
    "hierarchy.apply": lambda n, tokens: hierarchy.apply(LEVEL, tokens, lengths=(n,)),
    "crf.log_likelihood": lambda n, tokens: crf.log_likelihood(CHAIN, XS, tokens, lengths=n),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_of_64_bits_meet_traced_lengths(name):
    """NumPy's integers are 64 bits wide whatever JAX's are; only the length tells whether one is padding."""
    found = jax.jit(lambda n: CONSTANTS[name](n, WIDE))(jnp.full(6, 3))
    assert np.isnan(found).any()
    clean = jax.jit(lambda n: CONSTANTS[name](n, np.roll(WIDE, -1, axis=1)))(jnp.full(6, 2))
    assert np.isfinite(clean).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: embedding.apply(TABLE, WIDE), "tokens must lie between 0 and 6 .* from 1 to 4294967297"),
        (lambda: embedding.apply(TABLE, WIDE.tolist()), "tokens must hold numbers that fit: .*4294967297"),
        (lambda: lstm.apply(LSTM, XS, lengths=WIDE[:, 0]), "lengths must lie between 0 and 4 .* to 4294967297"),
        (lambda: lstm.apply(LSTM, XS[0], lengths=2**32 + 1), "lengths must hold numbers that fit: .*4294967297"),
    ],
)
def test_constants_of_64_bits_are_read_under_jit(call, words, untyped):
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(call)
