"""Vectors for token ids."""

from collections.abc import Callable
from typing import Any

import jax  # noqa: F401 - of the examples
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Integer

from lstmjax import checks, keywords, pytrees


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
    shape = checks.positive_int("vocabulary", vocabulary), checks.positive_int("features", features)
    dtype = checks.floating_dtype("dtype", dtype)
    return EmbeddingParams(table=checks.drawn("table_init", table_init, checks.key(key), shape, dtype))


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
    checks.instance("params", params, EmbeddingParams, "embedding.init")
    table = checks.weights("params.table", params.table, "vocabulary", "features")
    tokens = checks.integers("tokens", tokens, 0, table.shape[0] - 1, "the vocabulary of params.table")
    return table.at[tokens].get(mode="fill", fill_value=np.nan, wrap_negative_indices=False)
