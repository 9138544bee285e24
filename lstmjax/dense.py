"""A dense layer on the last axis; every other axis is a batch axis, time among them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from lstmjax._src import keywords, pytrees, validation


@pytrees.container
class DenseParams:
    """The weights of a dense layer.

    Args:
        w: [inputs, units].
        bias: [units], or None.
    """

    w: Any
    bias: Any = None


@keywords.explained("dense.init")
def init(
    key: Array,
    inputs: int,
    units: int,
    *,
    bias: bool = True,
    w_init: Callable[..., Array] = initializers.glorot_uniform(),
    bias_init: Callable[..., Array] = initializers.zeros,
    dtype: DTypeLike = jnp.float32,
) -> DenseParams:
    """Make the parameters of a dense layer: units * (inputs + 1) numbers, units * inputs without a bias.

    Args:
        key: a JAX random key.
        inputs: length of one input vector.
        units: length of one output vector.
        bias: False leaves it out.
        w_init: initializer `(key, shape, dtype) -> array` of w.
        bias_init: likewise of bias.
        dtype: of both.

    Raises:
        ValueError: inputs or units is not a positive integer, or an initializer returns another shape.
        TypeError: dtype is not floating, or bias is not bool.

    >>> init(jax.random.key(0), inputs=32, units=2, bias=False).bias is None
    True
    """
    inputs, units = validation.positive_int("inputs", inputs), validation.positive_int("units", units)
    dtype = validation.floating_dtype("dtype", dtype)
    w_key, bias_key = jax.random.split(validation.key(key))
    w = validation.drawn("w_init", w_init, w_key, (inputs, units), dtype)
    if not validation.boolean("bias", bias):
        return DenseParams(w)
    return DenseParams(w, validation.drawn("bias_init", bias_init, bias_key, (units,), dtype))


@keywords.explained("dense.apply")
def apply(params: DenseParams, xs: Float[ArrayLike, "*batch inputs"]) -> Float[Array, "*batch units"]:
    """Compute y = x W + b on the last axis, or x W without a bias.

    Args:
        params: DenseParams.
        xs: [*batch, inputs], floating; time may be one of the batch axes.

    Returns:
        [*batch, units], in the common dtype of params and xs.

    Raises:
        ValueError: xs has another number of features; TypeError: xs is not floating.

    >>> params = init(jax.random.key(0), inputs=32, units=2)
    >>> apply(params, jnp.ones((8, 10, 32))).shape
    (8, 10, 2)
    """
    validation.instance("params", params, DenseParams, "dense.init")
    w = validation.weights("params.w", params.w, "inputs", "units")
    xs = validation.floating("xs", xs)
    validation.features("xs", xs, w.shape[0], "*batch, inputs", "params.w has that many rows")
    ys = xs @ w
    if params.bias is None:
        return ys
    bias = validation.weights("params.bias", params.bias, "units")
    validation.shape("params.bias", bias, w.shape[1:], "units, the columns of params.w")
    return ys + jnp.broadcast_to(bias, ys.shape)
