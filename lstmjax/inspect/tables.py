"""Seeing what layers hold, put out and count."""

import functools
import itertools
import textwrap
import types
import weakref
from collections.abc import Iterator, MutableMapping
from typing import Any

import jax

from lstmjax.inspect import calls
from lstmjax.inspect.layers import KINDS, Node, count, formula, nodes, titled, width

WIDTH = 100
Row = tuple[str, ...] | str
TABLES: MutableMapping[Any, dict[Any, str]] = (
    weakref.WeakKeyDictionary()
)  # of each function, by what it was called with


def summary(params: Any, *args: Any, **kwargs: Any) -> str:
    """List layers, what each puts out, how many parameters it has and why; of params, or of a model as it is called.

    Axes stand by their names; `*batch` is any number of batch axes, none included. Below each layer is the formula for
    its number of parameters, in names and in numbers.

    A function is called with its arguments, arrays or `jax.ShapeDtypeStruct`, without computing anything: layers are
    listed in the order of their calls, one within another, with the shapes that they put out. A layer sees no axis that
    `jax.vmap` maps; the body of a `jax.lax.scan` is called once; layers of the same shapes in a function that `jax.jit`
    compiled within another one have no path. Layers in the arguments on which nothing that is returned depends are
    listed as unused. Params alone do not tell how the halves of a bidirectional layer are merged: there its outputs are
    those of merge="concat", and marked so. A function is traced once for arguments of the same shapes, as by `jax.jit`.

    Args:
        params: any tree of arrays (or of `jax.ShapeDtypeStruct`); or a function.
        args: what to call the function with.
        kwargs: likewise.

    Returns:
        A table; its last word is the number of all parameters.

    Raises:
        TypeError: a leaf of params is no array, or arguments without a function; and whatever the function raises.
        RuntimeError: a profiler is watching that cannot be set aside.

    >>> from lstmjax import dense, lstm
    >>> key = jax.random.key(0)
    >>> params = {"lstm": lstm.init(key, inputs=2, units=3), "head": dense.init(key, inputs=3, units=1)}
    >>> print(summary(params["lstm"]))
    name   shape                    dtype    count
    LSTM   [*batch, time, units 3]              72
      4 * units * (inputs + units + 1) = 4 * 3 * (2 + 3 + 1) = 72
    w_x    (2, 12)                  float32     24
    w_h    (3, 12)                  float32     36
    bias   (12,)                    float32     12
    total  288 bytes                            72

    >>> def model(params, xs):
    ...     ys, state = lstm.apply(params["lstm"], xs)
    ...     return dense.apply(params["head"], state.h)
    >>> print(summary(model, params, jax.ShapeDtypeStruct((8, 10, 2), "float32")))
    layer         output                       count
    lstm (LSTM)   [batch 8, time 10, units 3]     72
      4 * units * (inputs + units + 1) = 4 * 3 * (2 + 3 + 1) = 72
    head (Dense)  [batch 8, units 1]               4
      units * (inputs + 1) = 1 * (3 + 1) = 4
    total         304 bytes                       76
    """
    if callable(params) and (args or kwargs or jax.tree_util.all_leaves([params])):
        return _of_calls(params, args, kwargs)
    if args or kwargs:
        raise TypeError(f"summary takes arguments for a function alone; got a {type(params).__name__} before them.")
    return _of_params(params)


def _of_params(params: Any) -> str:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not hasattr(leaf, "shape"):
            name = Node(path, leaf).name or "the tree"
            raise TypeError(f"params must be a tree of arrays; {name} is a {type(leaf).__name__}.")
    rows: list[Row] = [("name", "shape", "dtype", "count")]
    for node in nodes(params):
        total = f"{count(node.value):,}"
        if kind := KINDS.get(type(node.value)):
            last = width(node.value)
            axes = ["*batch", *kind.steps, *([f"{last.names} {last.numbers}"] if last else [])]
            rows += [(titled(node.name, kind.name), f"[{', '.join(axes)}]", "", total), formula(node.value) or ""]
        else:
            rows.append((node.name, str(tuple(node.value.shape)), str(node.value.dtype), total))
    return _table([*rows, ("total", _memory(params), "", f"{count(params):,}")])


def _of_calls(function: Any, args: Any, kwargs: Any) -> str:
    """The table of a function's calls, traced once for the same shapes: a trace stays in JAX's caches for good."""
    inner, key = _key(function, (args, kwargs))
    if key is None:
        return _of_traced(function, args, kwargs)
    tables = TABLES.setdefault(inner, {})
    if key not in tables:
        tables[key] = _of_traced(function, args, kwargs)
    return tables[key]


def _key(function: Any, given: Any) -> tuple[Any, Any]:
    """The function within `jax.jit` and `functools.partial`, and what decides its table; None where that can change."""
    trees = [given]
    while isinstance(function, jax.stages.Wrapped | functools.partial):
        if isinstance(function, functools.partial):
            trees.append((function.args, function.keywords))
            function = function.func
        else:
            function = vars(function)["__wrapped__"]
    leaves, tree = jax.tree.flatten(trees)
    told: list[Any] = [str(jax.dtypes.canonicalize_dtype(float))]
    places = {id(leaf): place for place, leaf in enumerate(leaves)}
    for leaf in leaves:
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
            told.append((tuple(leaf.shape), leaf.dtype, places[id(leaf)]))  # params in two places count once
        elif type(leaf) in (bool, int, float, str):
            told.append((type(leaf), leaf))
        else:
            return function, None
    return function, (tree, *told) if isinstance(function, types.FunctionType) else None


def _of_traced(function: Any, args: Any, kwargs: Any) -> str:
    seen = calls.watch(function, args, kwargs)
    rows: list[Row] = [("layer", "output", "count"), *_rows(seen.calls)]
    for node in seen.unused:
        name = titled(node.name, KINDS[type(node.value)].name)
        rows.append((f"unused: {name}", "", f"{count(node.value):,}"))
    return _table([*rows, ("total", _memory(seen.params), f"{count(seen.params):,}")])


def _rows(called: list[calls.Call], indent: str = "") -> Iterator[Row]:
    """A line for each call, one for those of the same kind that follow each other, and below it those within."""
    for _, same in itertools.groupby(called, calls.Call.look):
        call, *more = same
        times = f", {1 + len(more)} times" if more else ""
        yield indent + call.title + times, call.output, f"{count(call.params):,}"
        yield indent + (formula(call.params) or "")
        yield from _rows(call.within, indent + "  ")


def _table(rows: list[Row]) -> str:
    """Rows in columns, the last of them numbers; between them lines of text, which may be long."""
    columns = list(zip(*(row for row in rows if isinstance(row, tuple)), strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines: list[str] = []
    for row in rows:
        if isinstance(row, str):
            start = " " * (len(row) - len(row.lstrip()) + 2)
            lines += textwrap.wrap(row.strip(), WIDTH, initial_indent=start, subsequent_indent=start + "  ")
            continue
        *words, number = row
        cells = [f"{word:<{room}}" for word, room in zip(words, widths[:-1], strict=True)]
        lines.append("  ".join([*cells, f"{number:>{widths[-1]}}"]))
    return "\n".join(lines)


def _memory(tree: Any) -> str:
    size: float = sum(leaf.dtype.itemsize * count(leaf) for leaf in jax.tree.leaves(tree))
    if size < 1024:
        return f"{size} bytes"
    units = iter(("KiB", "MiB", "GiB", "TiB", "PiB"))
    unit = ""
    while size >= 1024:
        size, unit = size / 1024, next(units)
    return f"{size:.1f} {unit}"
