"""Padding: steps that are not valid are set to 0, so that they never affect a result or a gradient."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def valid(lengths: Int[Array, "*batch"], time: Any) -> Bool[Array, "*batch time"]:
    """Return the mask of the steps before each length."""
    return jax.lax.broadcasted_iota(jnp.int32, (*lengths.shape, time), lengths.ndim) < lengths[..., None]


def fill(
    xs: Float[Array, "*batch time features"], lengths: Int[Array, "*batch"] | None
) -> Float[Array, "*batch time features"]:
    """Set xs to 0 at and after each length."""
    return fill_mask(xs, valid_steps(lengths, None, xs.shape[-2]))


def fill_mask(
    xs: Float[Array, "*batch time features"], valid: Bool[Array, "*batch time"] | None, value: float | int = 0
) -> Float[Array, "*batch time features"]:
    """Set xs to `value` where steps are not valid; `valid` is None where all are."""
    return xs if valid is None else jnp.where(valid[..., None], xs, value)


def fill_time_major(
    xs: Float[Array, "time *batch features"], valid: Bool[Array, "time *batch"] | None
) -> Float[Array, "time *batch features"]:
    """Set xs to 0 on padding, of time-major arrays."""
    if valid is None:
        return xs
    return jnp.where(valid.reshape(*valid.shape, *[1] * (xs.ndim - valid.ndim)), xs, jnp.zeros((), xs.dtype))


def valid_steps(lengths: Any, mask: Any, time: Any) -> Bool[Array, "*batch time"] | None:
    """Return the mask of valid steps that lengths or a mask describe; None where all are valid."""
    return mask if lengths is None else valid(lengths, time)
