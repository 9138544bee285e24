"""A long series as inputs of a recurrent layer: windows, stateful batches, truncated gradients.

A series of samples has axes [samples, features]. Either every window of `look_back` samples is a sequence of its own,
or the series is read on and on, a piece at a time, and the state continues from piece to piece.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Integer, Shaped

from lstmjax._src import keywords, layout, padding, validation
from lstmjax.bidirectional import BidirectionalState


@keywords.explained("windows.look_back")
def look_back(
    series: Shaped[ArrayLike, "*batch samples features"],
    steps: int,
    *,
    horizon: int = 1,
    stride: int = 1,
) -> tuple[Shaped[Array, "*batch windows steps features"], Shaped[Array, "*batch windows features"]]:
    """Cut every window of `steps` samples out of a series, each with the sample `horizon` after its last one.

    Samples become time steps, and features stay features. Tutorials that reshape a window of one feature to
    (1, look_back) show the layer a single step of look_back features, so that nothing recurs; it is (look_back, 1).

    Args:
        series: [*batch, samples, features], of any dtype; no window spans two entries of the batch axes.
        steps: samples in one window.
        horizon: how many samples after the window's last one the target is; 1 is the next.
        stride: samples between the starts of consecutive windows.

    Returns:
        windows [*batch, n, steps, features] and targets [*batch, n, features], for all n windows whose target is
        still in the series: n = 1 + (samples - steps - horizon) // stride.

    Raises:
        ValueError: a series without a feature axis or too short for one window and its target; steps, horizon or
            stride is not a positive integer.

    >>> windows, targets = look_back(jnp.arange(6.0)[:, None], steps=3)
    >>> windows.shape, targets.shape
    ((3, 3, 1), (3, 1))
    >>> windows[0, :, 0].tolist(), targets[0].tolist()
    ([0.0, 1.0, 2.0], [3.0])
    """
    steps, horizon = validation.positive_int("steps", steps), validation.positive_int("horizon", horizon)
    stride = validation.positive_int("stride", stride)
    series = validation.asarray("series", series)
    if series.ndim < 2:
        raise ValueError(
            f"series must have axes [*batch, samples, features], got shape {series.shape}. For a single feature add "
            "its axis: series[:, None]."
        )
    samples = series.shape[-2]
    if samples < steps + horizon:
        raise ValueError(
            f"series must have at least steps + horizon = {steps} + {horizon} samples, got {samples} in shape "
            f"{series.shape}, read as [*batch, samples, features]."
        )
    starts = jnp.arange(0, samples - steps - horizon + 1, stride)
    within = jnp.arange(steps)
    windows = jnp.take(series, jax.vmap(lambda start: start + within)(starts), axis=-2)
    return windows, jnp.take(series, starts + (steps - 1 + horizon), axis=-2)


@keywords.explained("windows.stateful_batches")
def stateful_batches(
    sequence: Shaped[ArrayLike, "samples *rest"], rows: int, steps: int
) -> tuple[Shaped[Array, "pieces rows steps *rest"], Shaped[Array, "left *rest"]]:
    """Lay one long sequence out in rows, read `steps` at a time: batch k's row r goes on where batch k-1's row r ended.

    So the state after one batch is the state to begin the next with, row by row. To predict each next sample, lay out
    `sequence[:-1]` as inputs and `sequence[1:]` as targets.

    Args:
        sequence: [samples, ...], of any dtype, tokens [samples] among them.
        rows: rows of a batch, each a stretch of its own of the sequence.
        steps: samples of each row in one batch.

    Returns:
        pieces [n, rows, steps, ...] with n = samples // (rows * steps), the batches in order; and what is left of the
        end of the sequence [samples - n * rows * steps, ...], which goes on where the last row ends.

    Raises:
        ValueError: a sequence too short for one batch; rows or steps is not a positive integer.

    150 characters as 3 rows of 50, ten at a time:

    >>> pieces, left = stateful_batches(jnp.arange(150), rows=3, steps=10)
    >>> pieces.shape, left.shape
    ((5, 3, 10), (0,))
    >>> pieces[:2, :, 0].tolist()
    [[0, 50, 100], [10, 60, 110]]
    """
    rows, steps = validation.positive_int("rows", rows), validation.positive_int("steps", steps)
    sequence = validation.asarray("sequence", sequence)
    if sequence.ndim < 1 or len(sequence) < rows * steps:
        raise ValueError(
            f"sequence must have at least rows * steps = {rows} * {steps} samples in its first axis, got shape "
            f"{sequence.shape}."
        )
    pieces = len(sequence) // (rows * steps)
    read, left = jnp.split(sequence, [pieces * rows * steps])
    return jnp.moveaxis(read.reshape(rows, pieces, steps, *sequence.shape[1:]), 0, 1), left


@keywords.explained("windows.truncated_bptt")
def truncated_bptt(apply: Callable[..., tuple[Array, Any]], steps: int) -> Callable[..., tuple[Array, Any]]:
    """Make a recurrent `apply` whose values are the same and whose gradients stop at every `steps`-th step.

    Truncated backpropagation through time: wherever a sequence goes on past time step k * steps, the state is carried
    over and its gradient is not, in either direction of reading. A sequence that ends before keeps the gradient of its
    final state. Time is read in one compiled loop over pieces of `steps`, and what is left of it in one call more.

    Args:
        apply: `apply(params, xs, state, **options) -> (ys, state)` as `lstm.apply`, which takes lengths, resets,
            reverse and return_sequences where the result is to take them; leaves of its state begin with the batch
            axes of xs. A bidirectional layer, whose halves read towards each other, cannot be cut.
        steps: time steps of one piece.

    Returns:
        A function of the same arguments and results as `apply`. It is compiled once for each `apply`, which must be
        hashable, and for the values of those arguments that are no arrays: make `apply` once, not at each call.
        Options, a key for dropout among them, reach every piece alike: masks of a whole sequence stay, those of single
        steps come again.

    Raises:
        ValueError: steps is not a positive integer, or `apply` is bidirectional; and what `apply` raises.

    >>> from lstmjax import lstm
    >>> params = lstm.init(jax.random.key(0), inputs=1, units=3)
    >>> xs = jnp.ones((40, 1))
    >>> gradient = jax.grad(lambda xs: truncated_bptt(lstm.apply, 10)(params, xs)[0][-1].sum())(xs)
    >>> gradient[:30].any().item(), gradient[30:].all().item()
    (False, True)
    """
    steps = validation.positive_int("steps", steps)

    @layout.takes_time_major
    def apply_in_pieces(
        params: Any,
        xs: Float[ArrayLike, "*batch time inputs"],
        state: Any = None,
        *,
        lengths: Integer[ArrayLike, "*batch"] | None = None,
        mask: Bool[ArrayLike, "*batch time"] | None = None,
        resets: Bool[ArrayLike, "*batch time"] | None = None,
        reverse: bool = False,
        return_sequences: bool = True,
        **options: Any,
    ) -> tuple[Array, Any]:
        xs = validation.asarray("xs", xs)
        if options.get("return_states"):
            raise ValueError("return_states=True is not for truncated_bptt, which carries the state between pieces.")
        reverse = validation.boolean("reverse", reverse)
        return_sequences = validation.boolean("return_sequences", return_sequences)
        if xs.ndim < 2:
            raise ValueError(f"xs must have axes [*batch, time, inputs], at least 2 of them; got shape {xs.shape}.")
        *batch, time, _ = xs.shape
        batch = tuple(batch)
        lengths, mask, resets = validation.of_time(lengths, mask, resets, batch, time)
        arrays = {name: value for name, value in options.items() if any(map(_is_array, jax.tree.leaves(value)))}
        static = tuple(sorted((name, value) for name, value in options.items() if name not in arrays))
        given = (
            params,
            padding.fill_mask(xs, padding.valid_steps(lengths, mask, time)),
            state,
            lengths,
            mask,
            resets,
            arrays,
        )
        how = {"apply": apply, "steps": steps, "reverse": reverse, "return_sequences": return_sequences}
        try:
            return _in_pieces(given, **how, static=static)
        except (TypeError, ValueError, OverflowError):
            apply(params, xs[..., :0, :], state, **options)  # which names the argument at fault, if jit met it first
            raise

    return apply_in_pieces


@partial(jax.jit, static_argnames=("apply", "steps", "reverse", "return_sequences", "static"))
def _in_pieces(given, *, apply, steps, reverse, return_sequences, static):
    """The result of `truncated_bptt`, as one program, since a loop compiles anew at each call outside of one."""
    params, xs, state, lengths, mask, resets, arrays = given
    time = xs.shape[-2]
    options = arrays | dict(static)
    options |= {"reverse": True} if reverse else {}
    options |= {} if return_sequences else {"return_sequences": False}
    begins, ends = 0, time if lengths is None else lengths
    if mask is not None:
        number = 1 + jax.lax.broadcasted_iota(jnp.int32, mask.shape, mask.ndim - 1)
        begins = jnp.min(jnp.where(mask, number - 1, time), axis=-1, initial=time)
        ends = jnp.max(jnp.where(mask, number, 0), axis=-1, initial=0)  # after the last valid step

    def read(carry, piece):
        state, last = carry
        start, xs, mask, resets = piece
        span, timed = xs.shape[-2], {}
        boundary = start + span if reverse else start
        goes_on = (begins < boundary) & (boundary < ends)  # valid steps on both sides
        state = jax.tree.map(partial(_stopped, goes_on), state)
        if lengths is not None:
            timed["lengths"] = jnp.clip(lengths - start, 0, span)
        if mask is not None:
            timed["mask"] = mask
        if resets is not None:
            timed["resets"] = resets
        ys, state = apply(params, xs, state, **timed, **options)
        if return_sequences:
            return (state, last), ys
        if lengths is not None or mask is not None:  # the last output of a sequence without valid steps here was before
            valid = timed["lengths"] > 0 if mask is None else mask.any(-1)
            ys = jnp.where(jnp.expand_dims(valid, -1), ys, last)
        return (state, ys), None

    # Reading no step gives the state to begin with, in the dtype and on the devices in which it will be carried.
    ys, state = apply(params, xs[..., :0, :], state, **options)
    if any(map(_reads_back, jax.tree.leaves(state, is_leaf=_reads_back))):
        raise ValueError(
            "apply must read in one direction, so that its state can be carried from piece to piece; its state is "
            f"{type(state).__name__} with a half that reads backward. A bidirectional layer cannot be cut."
        )
    whole = time - time % steps
    parts = [part for part in ((0, whole, steps), (whole, time, time - whole)) if part[0] < part[1]]
    carry, outputs = (state, ys), [ys]
    for first, last, span in reversed(parts) if reverse else parts:
        pieces = (
            jnp.arange(first, last, span),
            _cut(xs[..., first:last, :], span, -2),
            *(None if each is None else _cut(each[..., first:last], span, -1) for each in (mask, resets)),
        )
        carry, ys = jax.lax.scan(read, carry, pieces, reverse=reverse)
        outputs += [] if ys is None else [_joined(ys)]
    state, last = carry
    if not return_sequences:
        return last, state
    return jnp.concatenate(outputs[::-1] if reverse else outputs, axis=-2), state


def _cut(array: Array, span: int, axis: int) -> Array:
    """Pieces of `span` steps of time, which is `axis`, along a new first axis."""
    array = jnp.moveaxis(array, axis, 0)
    return jnp.moveaxis(array.reshape(len(array) // span, span, *array.shape[1:]), 1, axis)


def _joined(pieces: Float[Array, "pieces *batch span units"]) -> Float[Array, "*batch time units"]:
    pieces = jnp.moveaxis(pieces, 0, -3)
    *batch, count, span, units = pieces.shape
    return pieces.reshape(*batch, count * span, units)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _reads_back(state: Any) -> bool:
    """True for the state of a bidirectional layer, or one that contains it."""
    return isinstance(state, BidirectionalState)


def _stopped(where: Bool[Array, "*batch"], leaf: Array) -> Array:
    """The same values, without a gradient where `where` says so."""
    where = jnp.expand_dims(where, tuple(range(where.ndim, leaf.ndim))) if where.ndim else where
    return jnp.where(where, jax.lax.stop_gradient(leaf), leaf)
