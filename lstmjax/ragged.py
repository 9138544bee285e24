"""Lists of unequal length into padded arrays and their lengths, with a bound on how much of them is padding.

On the host: this is done once, before any program is compiled. Sequences that go into one array are as wide as the
longest of them; `bucket_boundaries` finds the fewest widths whose arrays have no more padding than is allowed, and
`buckets` makes those arrays (Khomenko et al., "Accelerating recurrent neural network training using sequence
bucketing", 2016).
"""

import bisect
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from lstmjax._src import keywords, pytrees, validation

DEEPER = "Of lists nested more deeply levels= is the number of levels whose lengths vary, such as levels=2."
KINDS = {np.bool_: np.bool_, np.integer: np.int32, np.floating: np.float32}  # what each is stored as


@pytrees.named_tuple
class Bucket(NamedTuple):
    """Sequences of similar lengths in one array.

    Args:
        rows: which of the sequences these are, integers [rows].
        xs: the sequences, padded [rows, time, *features].
        lengths: valid steps of each [rows].
    """

    rows: np.ndarray
    xs: np.ndarray
    lengths: np.ndarray


@keywords.explained("ragged.pad")
def pad(
    sequences: Sequence[Any], *, levels: int = 1, fill: float | int = 0, dtype: DTypeLike | None = None
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Put nested lists into one array as wide, at every level, as the longest.

    Args:
        sequences: a list of sequences of steps; with two levels a list of conversations, each a list of utterances,
            each a list of words. A step is a number, or an array of features of the same shape throughout.
        levels: how many of them vary in length, all but the outermost list.
        fill: what padding is filled with.
        dtype: of the array; None for bool, int32 or float32, whichever suits the steps, and float32 without any.

    Returns:
        xs [sequences, time of the highest level, ..., time of the lowest, *features], and `lengths`, int32, a tuple
        with an entry for each level, lowest first, as `hierarchy.apply` takes them: those of the lowest level are
        [sequences, time of the highest level, ...], those of the highest [sequences].

    Raises:
        ValueError: steps of different shapes, a number where a list should be, values that the dtype would change,
            but for the rounding of floats; TypeError: steps that are no numbers.

    >>> words, (words_per_utterance, utterances_per_conversation) = pad([[[3, 1, 4], [1]], [], [[], [5, 9]]], levels=2)
    >>> words.shape, words[2].tolist()
    ((3, 2, 3), [[0, 0, 0], [5, 9, 0]])
    >>> words_per_utterance.tolist(), utterances_per_conversation.tolist()
    ([[3, 1], [0, 0], [0, 2]], [2, 0, 2])
    """
    levels = validation.positive_int("levels", levels)
    nested, counts = [_list(sequences, 0)], []
    for level in range(levels):
        nested = [_list(inner, level + 1) for outer in nested for inner in outer]
        counts.append(np.array([len(inner) for inner in nested], np.int32))
    real, lengths = np.ones(len(sequences), bool), []
    for sizes in counts:
        whole = np.zeros(real.shape, np.int32)
        whole[real] = sizes
        real = np.arange(sizes.max(initial=0)) < whole[..., None]
        lengths.append(whole)
    return _filled(real, _steps(nested, dtype), fill), tuple(reversed(lengths))


@keywords.explained("ragged.bucket_boundaries")
def bucket_boundaries(lengths: Any, *, waste: float | int = 0.25) -> tuple[int, ...]:
    """Find the fewest widths such that, each sequence in the narrowest that holds it, padding is at most a share.

    Of as many widths, those with the least padding; of as little padding, the narrowest. For n different lengths this
    takes about n log n steps and memory for n numbers, however many widths come out.

    Args:
        lengths: of all sequences, integers of any shape.
        waste: padding as a share of all steps of the arrays, from 0 to below 1.

    Returns:
        Widths in ascending order, the last of which is the greatest length.

    Raises:
        ValueError: a negative length, no lengths at all, a share out of range; TypeError: lengths are no integers.

    >>> [bucket_boundaries([1, 2, 2, 3, 40], waste=waste) for waste in (0.5, 0.05, 0)]
    [(3, 40), (2, 3, 40), (1, 2, 3, 40)]
    """
    waste, lengths = validation.rate("waste", waste), _lengths(lengths)
    values, counts = np.unique(lengths, return_counts=True)
    if not waste:
        return tuple(values.tolist())
    widest, total = values.tolist(), sum((values.astype(object) * counts).tolist())
    below = [0, *np.cumsum(counts).tolist()]  # how many sequences are shorter than each value, and all of them

    def enough(cells: int) -> bool:
        return (cells - total) / max(cells, 1) <= waste

    fewer, more = (1, widest[-1] * below[-1]), (len(widest), total)  # how many widths, and the cells of their arrays
    if enough(fewer[1]):
        return (widest[-1],)
    # The least cells are a convex function of the number of widths. With a price for each width the best number is one
    # where that function has the price as its slope, so that prices between two numbers lead to one between them.
    while more[0] - fewer[0] > 1:
        price = (fewer[1] - more[1]) // (more[0] - fewer[0])
        *_, best = _priced(widest, below, price, 1)
        count = best % len(below)
        if count == fewer[0]:  # nothing between them is below the straight line
            cells = [fewer[1] - price * step for step in range(more[0] - fewer[0] + 1)]
            step = bisect.bisect_left(cells, True, key=enough)
            fewer, more = (fewer[0] + step - 1, cells[step - 1]), (fewer[0] + step, cells[step])
            break
        found = count, best // len(below) - price * count
        fewer, more = (fewer, found) if enough(found[1]) else (found, more)
    return _chosen(values, below, fewer[1] - more[1], more[0])


def _priced(widest: list[int], below: list[int], price: int, tie: int) -> list[int]:
    """The least cells of arrays, with a price for each, that hold the sequences below each of n values; and of all.

    Times n + 1, plus `tie` for each array: what is left of a division by n + 1 counts them, the fewest (tie=1) or the
    most (tie=-1, negative) of as low a price. An array for the values from i to j - 1 has widest[j - 1] * (below[j] -
    below[i]) cells, a straight line in widest[j - 1] for each i: the lowest line is found on their lower envelope.
    """
    scale = len(below)
    best, lines, first = [0], [0], 0
    for at, (width, count) in enumerate(zip(widest, below[1:], strict=True), 1):
        scaled = width * scale

        def above(line, scaled=scaled):  # without annotations, which tests check at each of so many calls
            return best[line] - scaled * below[line]

        while first + 1 < len(lines) and above(lines[first + 1]) <= above(lines[first]):
            first += 1
        value = above(lines[first]) + scaled * count + price * scale + tie
        best.append(value)
        while first + 1 < len(lines):
            low, high = lines[-2], lines[-1]
            rise, run = best[high] - best[low], below[high] - below[low]
            if rise * (count - below[high]) < (value - best[high]) * run:
                break
            lines.pop()
        lines.append(at)
    return best


def _chosen(values: np.ndarray, below: list[int], price: int, count: int) -> tuple[int, ...]:
    """The `count` narrowest of the best widths, where a price leaves the choice between this number and others."""
    fewest, most = (_priced(values.tolist(), below, price, tie) for tie in (1, -1))
    scale = len(below)
    cost = np.array([cells // scale for cells in fewest], object)
    low = np.array([cells % scale for cells in fewest])
    high = np.array([-cells % scale for cells in most])
    held, chosen, at = np.array(below, object), [], len(values)
    for left in reversed(range(count)):
        width = int(values[at - 1])
        chosen.append(width)
        fits = np.flatnonzero((low[:at] <= left) & (left <= high[:at]))
        tight = cost[fits] + width * (below[at] - held[fits]) + price == cost[at]
        at = int(fits[np.argmax(tight)])
    return tuple(reversed(chosen))


@keywords.explained("ragged.buckets")
def buckets(
    sequences: Sequence[Any], *, waste: float | int = 0.25, fill: float | int = 0, dtype: DTypeLike | None = None
) -> list[Bucket]:
    """Put sequences of similar lengths into one array each, so that padding is at most a share of all arrays.

    Args:
        sequences: a list of sequences of steps, as `pad` takes them with one level.
        waste: padding as a share of all steps of the arrays, from 0 to below 1.
        fill: what padding is filled with.
        dtype: of the arrays, as in `pad`.

    Returns:
        A Bucket for each of `bucket_boundaries`, narrowest first; within one, sequences keep their order.

    Raises:
        ValueError, TypeError: what `pad` and `bucket_boundaries` raise.

    >>> utterances = [[3], [1, 4, 1, 5, 9, 2, 6], [5], [], [3, 5]]
    >>> made = buckets(utterances, waste=0.3)
    >>> [(bucket.rows.tolist(), bucket.xs.shape) for bucket in made]
    [([0, 2, 3, 4], (4, 2)), ([1], (1, 7))]

    What is made of each row goes back to where it came from with the inverse of all rows:

    >>> codes = np.concatenate([bucket.xs.sum(axis=1) for bucket in made])
    >>> codes[np.argsort(np.concatenate([bucket.rows for bucket in made]))].tolist()
    [3, 28, 5, 0, 8]
    """
    validation.rate("waste", waste)
    sequences = [_list(sequence, 1) for sequence in _list(sequences, 0)]
    steps, sizes = _steps(sequences, dtype), np.array([len(sequence) for sequence in sequences], np.int32)
    if not sequences:
        return []
    chosen, made = bucket_boundaries(sizes, waste=waste), []
    home = np.searchsorted(chosen, sizes)
    order = np.argsort(home, kind="stable")
    ends = np.cumsum(sizes[order], dtype=np.int64)  # of the steps of each sequence, in this order
    starts = np.cumsum(sizes, dtype=np.int64) - sizes
    steps = steps[np.repeat(starts[order] - ends + sizes[order], sizes[order]) + np.arange(len(steps))]
    bounds = np.searchsorted(home[order], np.arange(len(chosen) + 1))
    for width, first, last in zip(chosen, bounds[:-1], bounds[1:], strict=True):
        rows = order[first:last]
        lengths, here = sizes[rows], slice(ends[first] - sizes[rows[0]], ends[last - 1])
        made.append(Bucket(rows, _filled(np.arange(width) < lengths[:, None], steps[here], fill), lengths))
    return made


def _list(value: Any, depth: int) -> Any:
    if not isinstance(value, list | tuple) and not (isinstance(value, np.ndarray) and value.ndim):
        raise ValueError(
            f"sequences must have a list or an array {'outermost' if not depth else f'in list {depth} from outside'}; "
            f"got {value!r}. levels= is how many lists are nested in the outermost one."
        )
    return value


def _steps(sequences: list[Any], dtype: DTypeLike | None) -> np.ndarray:
    """All steps one after another, [steps, *features]; arrays tell their features without having any steps."""
    pieces: list[np.ndarray] = []
    try:
        pieces += [np.asarray(sequence) for sequence in sequences if isinstance(sequence, np.ndarray) or len(sequence)]
        shapes = {piece.shape[1:] for piece in pieces}
    except ValueError:
        shapes = _shapes(step for sequence in sequences for step in sequence)
    except TypeError as error:
        raise TypeError("sequences must hold steps that are numbers or arrays of them.") from error
    if len(shapes) > 1:
        raise ValueError(f"sequences must hold steps of one shape; got {sorted(shapes)}. {DEEPER}")
    steps = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    if dtype is None and not _is_number(steps.dtype):
        raise TypeError(f"sequences must hold bools, integers or floats; got {steps.dtype.name}.")
    if dtype is None:
        kind = next((kind for kind in KINDS if jnp.issubdtype(steps.dtype, kind)), None)
        dtype = KINDS.get(kind, steps.dtype)
    try:
        dtype = np.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"dtype must be that of an array; got {dtype!r}.") from error
    if not _is_number(dtype):
        raise TypeError(f"dtype must be of bools, integers or floats; got {dtype.name}.")
    return _held("sequences", steps, dtype)


def _shapes(steps: Iterable[Any]) -> set[tuple[int, ...]]:
    try:
        return {np.shape(step) for step in steps}
    except ValueError as error:
        raise ValueError(
            f"sequences must hold steps that are numbers or arrays; got a list of lists. {DEEPER}"
        ) from error
    except TypeError as error:
        raise TypeError("sequences must hold steps that are numbers or arrays of them.") from error


def _filled(real: np.ndarray, steps: np.ndarray, fill: Any) -> np.ndarray:
    xs = np.full((*real.shape, *steps.shape[1:]), _held("fill", np.asarray(fill), steps.dtype))
    xs[real] = steps
    return xs


def _held(name: str, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Values as `dtype`, or an error where that is to change them; floats alone may be rounded."""
    if not _is_number(values.dtype):
        raise TypeError(f"{name} must hold bools, integers or floats; got {values.dtype.name}.")
    with np.errstate(all="ignore"):
        held = values.astype(dtype)
    rounded = jnp.issubdtype(values.dtype, np.floating) and jnp.issubdtype(dtype, np.floating)
    kept = np.isfinite(held) == np.isfinite(values) if rounded else held == values
    if not kept.all():
        raise ValueError(f"{name} must fit {dtype.name}; got {values[~kept].flat[0]}. Name a wider dtype.")
    return held


def _is_number(dtype: np.dtype) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in KINDS)


def _lengths(lengths: Any) -> np.ndarray:
    try:
        lengths = np.asarray(lengths)
    except (TypeError, ValueError) as error:
        raise TypeError(f"lengths must be an array of integers; got {type(lengths).__name__}.") from error
    if not np.issubdtype(lengths.dtype, np.integer) and lengths.size:
        raise TypeError(f"lengths must be integers; got {lengths.dtype.name}.")
    if not lengths.size or lengths.min() < 0:
        raise ValueError(f"lengths must be at least one, each at least 0; got {lengths!r}.")
    return lengths.ravel()
