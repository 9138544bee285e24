"""Padding: steps that are not valid are set to 0, so that they never affect a result or a gradient."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def valid(lengths: Int[Array, "*batch"], time: int) -> Bool[Array, "*batch time"]:
    """Return the mask of the steps before each length."""
    return jax.lax.broadcasted_iota(jnp.int32, (*lengths.shape, time), lengths.ndim) < lengths[..., None]


def fill(
    xs: Float[Array, "*batch time features"],
    lengths: Int[Array, "*batch"] | None,
    value: float | int = 0,
    *,
    mask: Bool[Array, "*batch time"] | None = None,
) -> Float[Array, "*batch time features"]:
    """Set xs to `value` on padding, which lengths or a mask describe."""
    mask = valid_steps(lengths, mask, xs.shape[-2])
    return xs if mask is None else jnp.where(mask[..., None], xs, value)


def fill_time_major(
    xs: Float[Array, "time *batch features"], valid: Bool[Array, "time *batch"] | None
) -> Float[Array, "time *batch features"]:
    """Set xs to 0 on padding, of time-major arrays."""
    if valid is None:
        return xs
    return jnp.where(valid.reshape(*valid.shape, *[1] * (xs.ndim - valid.ndim)), xs, jnp.zeros((), xs.dtype))


def valid_steps(lengths: Any, mask: Any, time: int) -> Bool[Array, "*batch time"] | None:
    """Return the mask of valid steps that lengths or a mask describe; None where all are valid."""
    return mask if lengths is None else valid(lengths, time)
