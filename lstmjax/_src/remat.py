"""Rematerialisation: a scan in segments, each of which the gradient computes again instead of keeping its residuals.

Chen et al., "Training deep nets with sublinear memory cost", 2016.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstmjax._src import chunking, mesh, validation
from lstmjax._src.chunked_scan import cut


def in_segments(run: Callable[[Any, Any], tuple[Any, Any]], state: Any, timed: Any, segments: int) -> tuple[Any, Any]:
    """Run `run(state, timed) -> (state, ys)` over time in segments; the gradient keeps the state before each alone.

    Args:
        run: the scan over one segment; its ys are [time, *batch, ...].
        state: before the first step.
        timed: all that belongs to each step, leaves [time, *batch, ...].
        segments: how many, of equal length but for the last one.

    Returns:
        The state after the last step, and ys.
    """
    time = len(jax.tree.leaves(timed)[0])
    if time == 0:
        return run(state, timed)
    size = -(-time // max(1, min(segments, time)))
    segment = jax.checkpoint(run)

    def advance(carry, now):
        state, ys = carry
        start, timed = now
        state, y = segment(state, timed)
        write = lambda ys, y: jax.lax.dynamic_update_slice_in_dim(ys, y, start, axis=0)  # noqa: E731
        return (state, jax.tree.map(write, ys, y)), None

    whole, rest = cut(timed, time, size)
    _, outputs = jax.eval_shape(run, state, timed)
    ys = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), outputs)
    state, ys, _ = mesh.match_varying_axes((state, ys, timed))
    carry, _ = jax.lax.scan(advance, (state, ys), (size * jnp.arange(time // size), whole))
    if rest is not None:
        carry, _ = advance(carry, (time - time % size, rest))
    return carry


def segments(checkpoint: Any, time: Any) -> int:
    """Number of segments, 0 for no checkpoints.

    A gradient keeps about six times as much of a step inside a segment (z, c, h, x and their cotangents) as of a state
    between segments, so that sqrt(6 * time) of them take the least memory; if possible all of one length.
    """
    if isinstance(checkpoint, bool | np.bool_) and not checkpoint:
        return 0
    if not isinstance(time, int):
        raise ValueError(f"checkpoint={checkpoint!r} cuts a known number of steps; that of xs is left open: {time}.")
    if not isinstance(checkpoint, bool | np.bool_):
        return validation.positive_int("checkpoint", checkpoint)
    return chunking.nearest_divisor(time, max(1, math.isqrt(6 * time)))
