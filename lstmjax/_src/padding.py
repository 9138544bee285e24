"""What `lengths` means to a layer without a loop: steps at and after them hold zeros, and pass no gradient."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def valid(lengths: Int[Array, "*batch"], time: int) -> Bool[Array, "*batch time"]:
    """Tell the steps before each length from the padding after it."""
    return jax.lax.broadcasted_iota(jnp.int32, (*lengths.shape, time), lengths.ndim) < lengths[..., None]


def fill(
    xs: Float[Array, "*batch time features"], lengths: Int[Array, "*batch"] | None, value: float = 0
) -> Float[Array, "*batch time features"]:
    """Put `value` where padding was, so that nothing there can reach a result or a gradient."""
    return xs if lengths is None else jnp.where(valid(lengths, xs.shape[-2])[..., None], xs, value)
