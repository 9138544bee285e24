"""Vectors for token ids, and scores of tokens from vectors."""

from collections.abc import Callable
from typing import Any

import jax  # noqa: F401 - of the examples
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Integer

from lstmjax._src import keywords, pytrees, validation


@pytrees.container
class EmbeddingParams:
    """One vector for each token.

    Args:
        table: [vocabulary, features].
    """

    table: Any


@keywords.explained("embedding.init")
def init(
    key: Array,
    vocabulary: int,
    features: int,
    *,
    table_init: Callable[..., Array] = initializers.normal(1.0),
    dtype: DTypeLike = jnp.float32,
) -> EmbeddingParams:
    """Make the table: vocabulary * features numbers, standard normal unless `table_init` says otherwise.

    Args:
        key: a JAX random key.
        vocabulary: number of tokens; ids run from 0 to vocabulary - 1.
        features: length of one vector.
        table_init: initializer `(key, shape, dtype) -> array` of the table.
        dtype: of the table.

    Raises:
        ValueError: vocabulary or features is not a positive integer, or table_init returns another shape.
        TypeError: dtype is not floating.
    """
    shape = validation.positive_int("vocabulary", vocabulary), validation.positive_int("features", features)
    dtype = validation.floating_dtype("dtype", dtype)
    return EmbeddingParams(table=validation.drawn("table_init", table_init, validation.key(key), shape, dtype))


@keywords.explained("embedding.apply")
def apply(params: EmbeddingParams, tokens: Integer[ArrayLike, "*batch"]) -> Float[Array, "*batch features"]:
    """Look up each token's vector.

    Args:
        params: EmbeddingParams.
        tokens: integers from 0 to vocabulary - 1, any shape. Under jit their values cannot be read: one that
            is out of range then gives a vector of NaN.

    Returns:
        [*tokens.shape, features].

    Raises:
        ValueError: a token out of range; TypeError: tokens are not integers.

    >>> params = init(jax.random.key(0), vocabulary=10, features=4)
    >>> apply(params, jnp.array([[1, 2, 3], [4, 5, 0]])).shape
    (2, 3, 4)
    """
    validation.instance("params", params, EmbeddingParams, "embedding.init")
    table = validation.weights("params.table", params.table, "vocabulary", "features")
    tokens = validation.integers("tokens", tokens, 0, table.shape[0] - 1, "the vocabulary of params.table")
    return table.at[tokens].get(mode="fill", fill_value=np.nan, wrap_negative_indices=False)


@keywords.explained("embedding.attend")
def attend(params: EmbeddingParams, xs: Float[ArrayLike, "*batch features"]) -> Float[Array, "*batch vocabulary"]:
    """Score every token by its vector's product with x: an output layer whose matrix is the table, transposed.

    A language model with this tied head has one table for what it reads and for what it predicts (Press & Wolf, "Using
    the output embedding to improve language models", 2017; Inan, Khosravi & Socher, "Tying word vectors and word
    classifiers", 2017). A bias, where there is one, is added to the logits.

    Args:
        params: EmbeddingParams.
        xs: [*batch, features], floating; time may be one of the batch axes.

    Returns:
        Logits [*batch, vocabulary], in the common dtype of params and xs.

    Raises:
        ValueError: xs has another number of features; TypeError: xs is not floating.

    >>> params = init(jax.random.key(0), vocabulary=10, features=4)
    >>> attend(params, apply(params, jnp.array([[1, 2, 3], [4, 5, 0]]))).shape
    (2, 3, 10)
    """
    validation.instance("params", params, EmbeddingParams, "embedding.init")
    table = validation.weights("params.table", params.table, "vocabulary", "features")
    xs = validation.floating("xs", xs)
    validation.features("xs", xs, table.shape[1], "*batch, features", "params.table has that many columns")
    return xs @ table.T
