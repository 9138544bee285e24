"""A baseline of text: n-grams, each interpolated with the next shorter one by Witten & Bell.

    P_k(x | h) = (count(h x) + kinds(h) P_{k-1}(x | h')) / (count(h) + kinds(h))      P_0(x) = 1 / symbols

h is the k-1 symbols before x, h' all of them but the first, and kinds(h) how many different symbols followed h in
training: the more of them, the likelier yet another. Witten & Bell, The Zero-Frequency Problem, 1991.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from experiments.task import each

Figures = Mapping[str, Any]


def baselines(
    parts: Mapping[str, Int[np.ndarray, " _"]],
    symbols: int,
    longest: int,
    figures: Callable[[Float[np.ndarray, " _"]], Figures],
) -> dict[str, Figures]:
    """Unigrams, and the n-grams that did best on the validation text: their `figures` on the test text.

    These are of the probabilities of all symbols but the first.
    """
    best: list[int] = []

    def told(name: str, order: int) -> list[Float[np.ndarray, " _"]]:
        return [*probabilities(parts["train"], parts[name], symbols, order)[:, 1:]]

    def longer() -> Figures:
        losses = [-np.log(found).mean() for found in told("validation", longest)]
        best.append(int(np.argmin(losses)))
        return figures(told("test", longest)[best[0]])

    rows = each({"unigram": lambda: figures(told("test", 1)[0]), "n-gram": longer})
    order = best[0] + 1 if best else "n"
    return {"unigram": rows["unigram"], f"{order}-gram, Witten-Bell": rows["n-gram"]}


def probabilities(
    train: Int[np.ndarray, " train"], held_out: Int[np.ndarray, " samples"], symbols: int, longest: int
) -> Float[np.ndarray, "orders samples"]:
    """Probability of each held-out symbol, given those before it, by the n-grams of orders 1 to `longest`.

    The first symbols have fewer before them than the order asks for, and are given those there are.
    """
    if symbols**longest > np.iinfo(np.int64).max:
        raise ValueError(f"longest is {longest}; n-grams of {symbols} symbols can be counted up to 63 bits of them")
    found, shorter = [], np.full(len(held_out), 1 / symbols)
    for order in range(1, longest + 1):
        grams, counts = np.unique(_codes(train, symbols, order), return_counts=True)
        contexts, starts, kinds = np.unique(grams // symbols, return_index=True, return_counts=True)
        totals = np.add.reduceat(counts, starts)

        asked = _codes(held_out, symbols, order)
        gram = _lookup(grams, counts, asked)
        context, kind = (_lookup(contexts, values, asked // symbols) for values in (totals, kinds))
        longer = shorter.copy()
        after = longer[order - 1 :]
        after[:] = np.where(context > 0, (gram + kind * after) / np.maximum(context + kind, 1), after)
        found.append(longer)
        shorter = longer
    return np.stack(found)


def _codes(tokens: Int[np.ndarray, " samples"], symbols: int, order: int) -> Int[np.ndarray, " grams"]:
    """Each `order` consecutive tokens as one number, whose last digit in base `symbols` is the last token."""
    if len(tokens) < order:
        return np.zeros(0, np.int64)
    spans = np.lib.stride_tricks.sliding_window_view(tokens.astype(np.int64), order)
    return spans @ symbols ** np.arange(order - 1, -1, -1, dtype=np.int64)


def _lookup(known: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The values of the keys asked for, 0 for unknown ones; `known` ascends."""
    places = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    return np.where(known[places] == asked, values[places], 0)
