"""Sizes of the chunks of steps on CPU, chosen by measurements of `python -m benchmarks.choices`."""

import math
from typing import Any

CACHED = 2**19  # numbers of z that stay in cache: 2 MiB of float32
SHARED = 2**17  # weights of a product that several cores share
ROWS = 16  # rows of such a product; assumed where there is no batch axis, since jax.vmap may hide one
MANY = 2**20  # weights that are too many to add to after each block


def input_chunk(xs: Any, w_x: Any) -> int | None:
    """Steps that get x W_x from one product, ahead of their loop; None for all.

    A step has a product of its own where that is large enough for several cores; else as many share one as stay in
    cache until their step comes.

    Args:
        xs: [*batch, time, inputs].
        w_x: [inputs, gates].
    """
    known = _known(xs)
    if w_x.size >= SHARED and (not known or _rows(xs) >= ROWS):
        return 1
    return _in_cache(xs, w_x.shape[1]) if known else None


def grad_chunk(xs: Any, w_x: Any, w_h: Any) -> int | None:
    """Steps that add to the gradients of weights by one product, after their loop; None for all.

    As many as stay in cache, unless there are so many weights that adding to them takes longer than that saves.

    Args:
        xs: [*batch, time, inputs].
        w_x: [inputs, gates].
        w_h: [outputs, gates].
    """
    if not _known(xs) or w_x.size + w_h.size > MANY:
        return None
    return _in_cache(xs, w_x.shape[1])


def _in_cache(xs, gates):
    time, block = xs.shape[-2], max(2, CACHED // max(1, _rows(xs) * gates))
    return None if time < 2 * block else max(2, nearest_divisor(time, block))


def _rows(xs):
    batch = xs.shape[:-2]
    return math.prod(batch) if batch else ROWS


def _known(xs):
    return all([isinstance(size, int) for size in xs.shape])


def nearest_divisor(whole: int, part: int) -> int:
    """Return the divisor of `whole` nearest to `part`, from its half to its double; `part` itself if there is none."""
    sizes = [size for size in range(-(-part // 2), min(2 * part, whole) + 1) if whole % size == 0]
    return min(sizes, key=lambda size: abs(size - part), default=part)
