"""Many steps into fewer, or into one, without weights.

    max_over_windows    y_j = max(x_{j*stride}, ..., x_{j*stride + window - 1})
    global_max          y = max_t x_t           Collobert et al., "Natural language processing (almost) from
    global_mean         y = mean_t x_t          scratch" (2011), has both as a sentence's summary
    last                y = x_{length - 1}

t runs over the valid steps alone: padding reaches no value and no gradient, whatever it contains. Of no steps at
all each of them is 0.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Integer

from lstmjax._src import keywords, padding, validation


@keywords.explained("pooling.max_over_windows")
def max_over_windows(
    xs: Float[ArrayLike, "*batch time features"],
    window: int,
    *,
    stride: int | None = None,
    lengths: Integer[ArrayLike, "*batch"] | None = None,
    mask: Bool[ArrayLike, "*batch time"] | None = None,
) -> Float[Array, "*batch steps features"]:
    """Take each feature's maximum over windows of time.

    Where a sequence ends inside a window, the maximum is over the steps that there are; Keras's "valid" drops
    such windows, and keeps the first (time - window) // stride + 1. Steps that share a maximum share its gradient.

    Args:
        xs: sequences [*batch, time, features], floating; any number of batch axes, none included.
        window: steps in a window.
        stride: steps from the start of one window to that of the next; None for the window's own size.
        lengths: valid steps of each sequence, integers [*batch] from 0 to time; None where all are valid. Those
            of the outputs are `conv1d.output_lengths(lengths, stride)`.
        mask: bool [*batch, time], True where a step is valid, in any pattern; in place of lengths. The mask of the
            outputs is `max_over_windows(mask[..., None].astype(float), window, stride=stride)[..., 0] > 0`.

    Returns:
        [*batch, ceil(time / stride), features], 0 where no step of a window is valid.

    Raises:
        ValueError: shapes or values that do not fit; TypeError: xs is not floating, or lengths are not integers.

    >>> xs = jnp.array([[1.0], [3.0], [2.0], [0.0], [-1.0]])
    >>> max_over_windows(xs, 2)[:, 0]
    Array([ 3.,  2., -1.], dtype=float32)
    >>> max_over_windows(xs, 2, stride=1, lengths=3)[:, 0]
    Array([3., 3., 2., 0., 0.], dtype=float32)
    """
    xs, valid = _check(xs, lengths, mask)
    window = validation.positive_int("window", window)
    stride = window if stride is None else validation.positive_int("stride", stride)
    ys = _over_windows(padding.fill_mask(xs, valid, -jnp.inf), window, stride)
    if valid is None:
        return ys
    some = _over_windows(valid[..., None].astype(xs.dtype), window, stride)[..., 0] > 0
    return padding.fill_mask(ys, some, 0)


@keywords.explained("pooling.global_max")
def global_max(
    xs: Float[ArrayLike, "*batch time features"],
    *,
    lengths: Integer[ArrayLike, "*batch"] | None = None,
    mask: Bool[ArrayLike, "*batch time"] | None = None,
) -> Float[Array, "*batch features"]:
    """Take each feature's maximum over time, y = max_t x_t. Steps that share a maximum share its gradient.

    Args:
        xs: sequences [*batch, time, features], floating; any number of batch axes, none included.
        lengths: valid steps of each sequence, integers [*batch] from 0 to time; None where all are valid.
        mask: bool [*batch, time], True where a step is valid, in any pattern; in place of lengths.

    Returns:
        [*batch, features], 0 for a sequence without steps.

    Raises:
        ValueError: shapes or values that do not fit; TypeError: xs is not floating, or lengths are not integers.

    >>> xs = jnp.array([[1.0, -3.0], [2.0, -1.0], [9.0, 9.0]])
    >>> global_max(xs, lengths=2)
    Array([ 2., -1.], dtype=float32)
    """
    xs, valid = _check(xs, lengths, mask)
    ys = jnp.max(padding.fill_mask(xs, valid, -jnp.inf), axis=-2, initial=-jnp.inf)
    return jnp.where(_count(xs, valid) > 0, ys, 0)


@keywords.explained("pooling.global_mean")
def global_mean(
    xs: Float[ArrayLike, "*batch time features"],
    *,
    lengths: Integer[ArrayLike, "*batch"] | None = None,
    mask: Bool[ArrayLike, "*batch time"] | None = None,
) -> Float[Array, "*batch features"]:
    """Take each feature's mean over time, y = mean_t x_t, adding up in at least float32.

    Args:
        xs: sequences [*batch, time, features], floating; any number of batch axes, none included.
        lengths: valid steps of each sequence, integers [*batch] from 0 to time; None where all are valid.
        mask: bool [*batch, time], True where a step is valid, in any pattern; in place of lengths.

    Returns:
        [*batch, features], 0 for a sequence without steps.

    Raises:
        ValueError: shapes or values that do not fit; TypeError: xs is not floating, or lengths are not integers.

    >>> xs = jnp.array([[1.0, -3.0], [2.0, -1.0], [9.0, 9.0]])
    >>> global_mean(xs, lengths=2)
    Array([ 1.5, -2. ], dtype=float32)
    """
    xs, valid = _check(xs, lengths, mask)
    total = jnp.sum(padding.fill_mask(xs, valid, 0), axis=-2, dtype=validation.at_least_float32(xs.dtype))
    return (total / jnp.maximum(_count(xs, valid), 1).astype(total.dtype)).astype(xs.dtype)


@keywords.explained("pooling.last")
def last(
    xs: Float[ArrayLike, "*batch time features"],
    *,
    lengths: Integer[ArrayLike, "*batch"] | None = None,
    mask: Bool[ArrayLike, "*batch time"] | None = None,
) -> Float[Array, "*batch features"]:
    """Take the last valid step of each sequence, y = x_{length - 1}.

    Args:
        xs: sequences [*batch, time, features], floating; any number of batch axes, none included.
        lengths: valid steps of each sequence, integers [*batch] from 0 to time; None where all are valid.
        mask: bool [*batch, time], True where a step is valid, in any pattern; in place of lengths.

    Returns:
        [*batch, features], 0 for a sequence without steps.

    Raises:
        ValueError: shapes or values that do not fit; TypeError: xs is not floating, or lengths are not integers.

    >>> xs = jnp.array([[1.0, -3.0], [2.0, -1.0], [9.0, 9.0]])
    >>> last(xs, lengths=2)
    Array([ 2., -1.], dtype=float32)
    """
    xs, valid = _check(xs, lengths, mask)
    if valid is None:
        return jnp.sum(xs[..., -1:, :], axis=-2, dtype=xs.dtype)  # of one step, or of none
    steps = jax.lax.broadcasted_iota(jnp.int32, valid.shape, valid.ndim - 1)
    final = jnp.max(jnp.where(valid, steps, -1), axis=-1, keepdims=True, initial=-1)
    return jnp.sum(padding.fill_mask(xs, steps == final, 0), axis=-2, dtype=xs.dtype)


def _over_windows(xs: Array, window: int, stride: int) -> Array:
    """Compute the maximum over windows; what is beyond the end counts as -inf."""
    time, axis = xs.shape[-2], xs.ndim - 2
    window, stride = min(window, max(time, 1)), min(stride, max(time, 1))
    if window > stride:
        return jax.lax.slice_in_dim(_over_every_window(xs, window), 0, time, stride, axis=axis)
    steps = -(-time // stride)
    ends = [(0, 0)] * axis + [(0, steps * stride - time), (0, 0)]
    apart = jnp.pad(xs, ends, constant_values=-jnp.inf).reshape(*xs.shape[:-2], steps, stride, xs.shape[-1])
    return jnp.max(apart[..., :window, :], axis=-2)


@partial(jax.jit, static_argnames="window")
def _over_every_window(xs: Array, window: int) -> Array:
    """Compute the maximum over the window that starts at each step; `window` is at most time.

    Windows double in a scan, so that neither the program nor its memory grows with their length as a maximum over so
    many shifted copies would. Its derivative is that of `jnp.maximum`, unlike that of `lax.reduce_window`, which gives
    the gradient of a shared maximum to one step alone.
    """
    reach, shifts = 1, []
    while reach < window:
        shifts.append(min(reach, window - reach))  # the last two halves may overlap
        reach += shifts[-1]
    if not shifts:
        return xs
    ends = [(0, 0)] * (xs.ndim - 2) + [(0, max(shifts)), (0, 0)]

    def widened(ys: Array, shift: Array) -> tuple[Array, None]:
        after = jnp.pad(ys, ends, constant_values=-jnp.inf)
        return jnp.maximum(ys, jax.lax.dynamic_slice_in_dim(after, shift, ys.shape[-2], ys.ndim - 2)), None

    return jax.lax.scan(widened, xs, jnp.array(shifts, jnp.int32))[0]


def _check(xs, lengths, mask) -> tuple[Array, Array | None]:
    """Return xs and the mask of valid steps, None where all are."""
    xs = validation.floating("xs", xs)
    if xs.ndim < 2:
        raise ValueError(f"xs must have axes [*batch, time, features], at least 2 of them; got shape {xs.shape}.")
    lengths, mask, _ = validation.of_time(lengths, mask, None, xs.shape[:-2], xs.shape[-2])
    return xs, padding.valid_steps(lengths, mask, xs.shape[-2])


def _count(xs: Array, valid: Array | None) -> Int[Array, "*batch 1"]:
    """The number of valid steps, next to the features."""
    if valid is None:
        return jnp.full((*xs.shape[:-2], 1), xs.shape[-2], jnp.int32)
    return jnp.sum(valid, axis=-1, keepdims=True, dtype=jnp.int32)
