"""A function of this package called as Flax calls an RNN: its order of axes, of outputs, and of (c, h)."""

from typing import Any

import jax
import jax.numpy as jnp

from lstmjax._src import padding, validation
from lstmjax.bidirectional import BidirectionalParams, BidirectionalState
from lstmjax.lstm import LSTMParams, LSTMState
from lstmjax.stack import StackParams


def settings(module: Any, names: Any, **told: Any) -> dict[str, Any]:
    """Settings a module was made with, except those that a call gives."""
    return {name: getattr(module, name) for name in names} | {
        name: value for name, value in told.items() if value is not None
    }


def run(
    apply,
    params,
    xs,
    carry,
    *,
    lengths,
    seq_lengths,
    resets,
    return_carry,
    time_major,
    reverse,
    keep_order,
    return_sequences,
    key,
    **arguments,
) -> Any:
    """Call a function of ours in the manner of Flax, whose modules draw no key where they are deterministic."""
    if lengths is not None and seq_lengths is not None:
        raise ValueError("seq_lengths is Flax's name of lengths: give one of them.")
    if time_major:
        xs, resets = jnp.moveaxis(xs, 0, -2), None if resets is None else jnp.moveaxis(resets, 0, -1)
    if seq_lengths is not None:
        lengths = seq_lengths
        if jnp.ndim(xs) > 1:  # what has fewer axes, apply refuses
            *batch, time, _ = jnp.shape(xs)
            told = "the number of time steps of inputs", "the batch axes of inputs"
            lengths = validation.steps("seq_lengths", seq_lengths, tuple(batch), time, *told)
    ys, after = apply(
        params,
        promoted(params, "inputs", xs),
        None if carry is None else state(params, carry),
        lengths=lengths,
        resets=resets,
        reverse=reverse,
        return_sequences=return_sequences,
        key=key,
        deterministic=key is None,
        **arguments,
    )
    if return_sequences and reverse and not keep_order:
        ys = jax.tree.map(lambda half: _as_read(half, lengths), ys)
    if return_sequences and time_major:
        ys = jax.tree.map(lambda half: jnp.moveaxis(half, -2, 0), ys)
    return (carry_of(after), ys) if return_carry else ys


def promoted(params: Any, name: str, array: Any) -> Any:
    """Integers and booleans in the dtype of params, as Flax's modules take them; any other array as it is."""
    array = array if hasattr(array, "dtype") else validation.asarray(name, array)
    if jnp.issubdtype(array.dtype, jnp.integer) or array.dtype == jnp.bool_:
        return array.astype(jnp.result_type(*jax.tree.leaves(params)))
    return array


def state(params: Any, carry: Any) -> Any:
    """The state that a carry of Flax is."""
    count = len(params.layers) if isinstance(params, StackParams) else 2
    if not isinstance(carry, tuple | list) or len(carry) != count:
        wanted = "(c, h)" if isinstance(params, LSTMParams) else f"a tuple of {count} carries"
        raise TypeError(f"initial_carry must be {wanted}, got {type(carry).__name__}.")
    if isinstance(params, LSTMParams):
        return LSTMState(*(promoted(params, "initial_carry", part) for part in (carry[1], carry[0])))
    if isinstance(params, BidirectionalParams):
        return BidirectionalState(state(params.forward, carry[0]), state(params.backward, carry[1]))
    return tuple(map(state, params.layers, carry))


def carry_of(state: Any) -> Any:
    """The carry of Flax that a state is."""
    return (state.c, state.h) if isinstance(state, LSTMState) else tuple(map(carry_of, state))


def _as_read(ys, lengths):
    """Outputs of valid steps in reverse order, with the padding, which is 0, left at the end."""
    if lengths is None:
        return jnp.flip(ys, axis=-2)
    *batch, time, _ = ys.shape
    lengths = validation.lengths(lengths, tuple(batch), time)
    order = jnp.maximum(lengths[..., None] - 1 - jax.lax.broadcasted_iota(lengths.dtype, (*batch, time), len(batch)), 0)
    return padding.fill(jnp.take_along_axis(ys, order[..., None], axis=-2), lengths)
