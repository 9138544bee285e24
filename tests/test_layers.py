"""The small layers: dense, embedding, time_distributed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax import dense, embedding, lstm, time_distributed

KEY = jax.random.key(0)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3), (0,), (2, 0)])
def test_dense_is_a_matrix_product(batch):
    params = dense.init(KEY, inputs=3, units=2, bias_init=jax.nn.initializers.normal(1.0))
    xs = np.random.default_rng(0).normal(size=(*batch, 3)).astype(np.float32)
    expected = np.einsum("...i,iu->...u", np.float64(xs), np.float64(params.w)) + np.float64(params.bias)
    np.testing.assert_allclose(jax.jit(dense.apply)(params, xs), expected, atol=2e-6)


@pytest.mark.parametrize("batch", [(), (2, 3), (2, 0)])
def test_dense_without_a_bias(batch):
    params = dense.init(KEY, inputs=3, units=2, bias=False)
    assert params.bias is None
    np.testing.assert_array_equal(params.w, dense.init(KEY, 3, 2).w)
    xs = np.random.default_rng(0).normal(size=(*batch, 3)).astype(np.float32)
    np.testing.assert_allclose(jax.jit(dense.apply)(params, xs), np.float64(xs) @ np.float64(params.w), atol=2e-6)


@pytest.mark.parametrize("batch", [(), (2, 3), (2, 0)])
def test_a_tied_head_is_the_table_transposed(batch):
    """Its gradient and that of the look-up add up in one table."""
    params = embedding.init(KEY, vocabulary=5, features=3)
    rng = np.random.default_rng(0)
    xs, tokens = rng.normal(size=(*batch, 3)).astype(np.float32), rng.integers(0, 5, batch)
    table = np.float64(params.table)

    @jax.jit
    def run(params, xs):
        tied = lambda params: (embedding.attend(params, embedding.apply(params, tokens)) ** 2).sum()  # noqa: E731
        return embedding.attend(params, xs), jax.grad(tied)(params).table

    logits, slope = run(params, xs)
    assert logits.shape == (*batch, 5)
    np.testing.assert_allclose(logits, np.float64(xs) @ table.T, atol=2e-6)
    read = np.eye(5)[tokens.reshape(-1)]
    error = 2 * read @ table @ table.T
    np.testing.assert_allclose(slope, error.T @ read @ table + read.T @ error @ table, rtol=1e-5, atol=1e-5)


def test_the_dtype_of_a_tied_head_is_the_common_one():
    params = embedding.init(KEY, 5, 3, dtype=jnp.bfloat16)
    assert embedding.attend(params, jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.bfloat16
    assert embedding.attend(params, jnp.ones((2, 3))).dtype == jnp.float32


def test_dense_counts():
    """LSTM(32) over 10 steps into Dense(2): on the last output 66 weights, on all of them flattened 642."""
    for inputs, count in ((32, 66), (320, 642)):
        params = jax.eval_shape(lambda key, inputs=inputs: dense.init(key, inputs, 2), KEY)
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_embedding_looks_up_rows():
    params = embedding.init(KEY, vocabulary=10, features=4)
    tokens = np.array([[0, 9, 3], [3, 3, 1]])
    gradient = jax.jit(jax.grad(lambda params: embedding.apply(params, tokens).sum()))
    np.testing.assert_array_equal(embedding.apply(params, tokens), np.asarray(params.table)[tokens])
    slope = gradient(params).table
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
    with pytest.raises(ValueError, match=r"xs must have 4 features in its last axis, because params\.table has that"):
        embedding.attend(embedding.init(KEY, 10, 4), jnp.ones((2, 10)))
    with pytest.raises(TypeError, match="xs must have a floating dtype, got int32"):
        embedding.attend(embedding.init(KEY, 10, 4), jnp.ones((2, 4), int))
    with pytest.raises(TypeError, match=r"params must be EmbeddingParams, as embedding\.init makes it; got ndarray"):
        embedding.attend(np.ones((10, 4)), jnp.ones((2, 4)))
    with pytest.raises(TypeError, match="bias must be True or False"):
        dense.init(KEY, 3, 2, bias=None)
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


SIZES = (0, 2), (2, 0), (1, 1), (3, 2)


@pytest.mark.parametrize(
    ("batch", "time"),
    [
        pytest.param(*sizes, marks=[] if sizes in SIZES else pytest.mark.slow)
        for sizes in itertools.product(range(4), repeat=2)
    ],
)
def test_time_distributed_is_vmap_over_time(batch, time):
    xs = np.arange(batch * time * 5, dtype=np.float32).reshape(batch, time, 5)
    ids = np.arange(batch * time).reshape(batch, time)

    def function(xs, ids):
        return {"sum": xs.sum(axis=-1) + ids, "pair": (jnp.cumsum(xs, axis=-1), ids)}

    @jax.jit
    def both(xs, ids):
        return time_distributed(function)(xs, ids), jax.vmap(function, in_axes=1, out_axes=1)(xs, ids)

    jax.tree.map(np.testing.assert_array_equal, *both(xs, ids))


def test_time_distributed_encoder_equals_a_python_loop():
    """[conversation, utterance, word, features] -> [conversation, utterance, units], empty utterances included."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: lstm.init(key, inputs=4, units=3), KEY)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    words = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
    lengths = np.array([[5, 0, 2], [1, 4, 3]])

    @jax.jit
    def both(words, lengths_given):
        def encode(words, lengths=None):
            return lstm.apply(params, words, lengths=lengths, return_sequences=False)[0]

        alone = {(c, u): encode(words[c, u, : lengths[c, u]]) for c, u in np.ndindex(2, 3)}
        return time_distributed(encode)(words, lengths_given), list(alone.values())

    codes, alone = both(words, lengths)
    for code, expected in zip(np.reshape(codes, (6, 3)), alone, strict=True):
        np.testing.assert_allclose(code, expected, atol=1e-6)


def test_public_names():
    for name in ("lstm", "dense", "embedding", "time_distributed", "summary", "LSTMParams", "LSTMState", "LSTMOptions"):
        assert hasattr(lstmjax, name)
