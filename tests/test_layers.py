"""The small layers: dense, embedding, time_distributed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lstmjax
from lstmjax import dense, embedding, lstm, time_distributed

KEY = jax.random.key(0)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3), (0,), (2, 0)])
def test_dense_is_a_matrix_product(batch):
    params = dense.init(KEY, inputs=3, units=2, bias_init=jax.nn.initializers.normal(1.0))
    xs = np.random.default_rng(0).normal(size=(*batch, 3)).astype(np.float32)
    expected = np.einsum("...i,iu->...u", np.float64(xs), np.float64(params.w)) + np.float64(params.bias)
    np.testing.assert_allclose(dense.apply(params, xs), expected, atol=2e-6)


def test_dense_counts():
    """LSTM(32) over 10 steps into Dense(2): on the last output 66 weights, on all of them flattened 642."""
    assert sum(a.size for a in jax.tree.leaves(dense.init(KEY, 32, 2))) == 66
    assert sum(a.size for a in jax.tree.leaves(dense.init(KEY, 320, 2))) == 642


def test_embedding_looks_up_rows():
    params = embedding.init(KEY, vocabulary=10, features=4)
    tokens = np.array([[0, 9, 3], [3, 3, 1]])
    np.testing.assert_array_equal(embedding.apply(params, tokens), np.asarray(params.table)[tokens])
    slope = jax.grad(lambda p: embedding.apply(p, tokens).sum())(params).table
    np.testing.assert_array_equal(slope, np.bincount(tokens.ravel(), minlength=10)[:, None] * np.ones((10, 4)))


def test_narrow_parameters_are_drawn_in_float32():
    """Some initializers, orthogonal among them, cannot draw bfloat16 themselves."""
    orthogonal = jax.nn.initializers.orthogonal()
    wide, narrow = (dense.init(KEY, 8, 8, w_init=orthogonal, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    assert narrow.w.dtype == narrow.bias.dtype == jnp.bfloat16
    np.testing.assert_array_equal(narrow.w, wide.w.astype(jnp.bfloat16))
    assert embedding.init(KEY, 8, 8, table_init=orthogonal, dtype=jnp.bfloat16).table.dtype == jnp.bfloat16


@pytest.mark.parametrize("token", [10, -1])
def test_embedding_never_gives_a_wrong_row(token, untyped):
    params = embedding.init(KEY, vocabulary=10, features=4)
    with pytest.raises(ValueError, match=r"tokens must lie between 0 and 9 \(the vocabulary of params\.table\)"):
        embedding.apply(params, jnp.array([1, token]))
    vectors = jax.jit(embedding.apply)(params, jnp.array([1, token]))
    assert np.isfinite(vectors[0]).all()
    assert np.isnan(vectors[1]).all()


def test_refusals(untyped):
    with pytest.raises(TypeError, match=r"tokens must be integers, got float32 \(3,\)"):
        embedding.apply(embedding.init(KEY, 10, 4), jnp.ones(3))
    with pytest.raises(ValueError, match="tokens must lie between 0 and 9"):
        embedding.apply(embedding.init(KEY, 10, 4), np.array([2**32 + 3]))
    with pytest.raises(ValueError, match=r"params\.bias must have shape \(4,\) \(units, the columns of params\.w\)"):
        dense.apply(dense.DenseParams(jnp.ones((3, 4)), jnp.ones(1)), jnp.ones((2, 3)))
    with pytest.raises(TypeError, match=r"params\.table must be an array, got NoneType"):
        embedding.apply(embedding.EmbeddingParams(None), jnp.array([1]))
    with pytest.raises(ValueError, match="vocabulary must be an integer of at least 1, got 0"):
        embedding.init(KEY, 0, 4)
    with pytest.raises(ValueError, match=r"xs must have 3 features in its last axis, because params\.w has"):
        dense.apply(dense.init(KEY, 3, 2), jnp.ones((4, 2)))
    with pytest.raises(TypeError, match=r"params must be DenseParams, as dense\.init makes it; got LSTMParams"):
        dense.apply(lstm.init(KEY, 3, 2), jnp.ones((4, 3)))
    with pytest.raises(TypeError, match="xs must have a floating dtype, got int32"):
        dense.apply(dense.init(KEY, 3, 2), jnp.ones((4, 3), int))
    with pytest.raises(ValueError, match=r"arguments must all begin with the same axes \[batch, time\]; got shapes"):
        time_distributed(lambda a, b: a)(jnp.ones((2, 3, 4)), jnp.ones((2, 4)))
    with pytest.raises(ValueError, match=r"axes \[batch, time\]; got shapes \[\(3,\)\]"):
        time_distributed(lambda a: a)(jnp.ones(3))


@given(st.integers(0, 3), st.integers(0, 3))
def test_time_distributed_is_vmap_over_time(batch, time):
    xs = jnp.arange(batch * time * 5.0).reshape(batch, time, 5)
    ids = jnp.arange(batch * time).reshape(batch, time)

    def function(xs, ids):
        return {"sum": xs.sum(axis=-1) + ids, "pair": (jnp.cumsum(xs, axis=-1), ids)}

    expected = jax.vmap(function, in_axes=1, out_axes=1)(xs, ids)
    jax.tree.map(np.testing.assert_array_equal, time_distributed(function)(xs, ids), expected)


def test_time_distributed_encoder_equals_a_python_loop():
    """[conversation, utterance, word, features] -> [conversation, utterance, units], empty utterances included."""
    params = lstm.init(KEY, inputs=4, units=3)
    words = jax.random.normal(KEY, (2, 3, 5, 4))
    lengths = np.array([[5, 0, 2], [1, 4, 3]])

    def encode(words, lengths):
        return lstm.apply(params, words, lengths=lengths, return_sequences=False)[0]

    codes = time_distributed(encode)(words, lengths)
    for c, u in np.ndindex(2, 3):
        alone, _ = lstm.apply(params, words[c, u, : lengths[c, u]], return_sequences=False)
        np.testing.assert_allclose(codes[c, u], alone, atol=1e-6)


def test_public_names():
    for name in ("lstm", "dense", "embedding", "time_distributed", "summary", "LSTMParams", "LSTMState", "LSTMOptions"):
        assert hasattr(lstmjax, name)
