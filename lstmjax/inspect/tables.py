"""Seeing what a tree of parameters holds."""

import math
from typing import Any

import jax


def summary(params: Any) -> str:
    """List name, shape, dtype and number of values of every array, and their total.

    Args:
        params: any tree of arrays (or of `jax.ShapeDtypeStruct`).

    Returns:
        A table, one line an array.

    Raises:
        TypeError: a leaf is no array.

    >>> from lstmjax import lstm
    >>> print(summary(lstm.init(jax.random.key(0), inputs=2, units=3)))
    name   shape    dtype    count
    w_x    (2, 12)  float32     24
    w_h    (3, 12)  float32     36
    bias   (12,)    float32     12
    total                       72
    """
    rows = [("name", "shape", "dtype", "count")]
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not hasattr(leaf, "shape"):
            raise TypeError(f"params must be a tree of arrays; {name or 'the tree'} is a {type(leaf).__name__}.")
        total += math.prod(leaf.shape)
        rows.append((name, str(tuple(leaf.shape)), str(leaf.dtype), f"{math.prod(leaf.shape):,}"))
    rows.append(("total", "", "", f"{total:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {dtype:<{widths[2]}}  {count:>{widths[3]}}"
        for name, shape, dtype, count in rows
    )
