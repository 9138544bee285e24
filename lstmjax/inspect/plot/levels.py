"""Words to utterances to a conversation."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import ArrayLike, Integer

from lstmjax._src import validation
from lstmjax.inspect.plot.diagram import (
    BAND,
    BLUE,
    FAINT,
    GREEN,
    MUTED,
    ORANGE,
    SMALL,
    TEXT,
    Axes,
    Diagram,
    shown,
    tint,
    width_of,
)

ROW, BOX, CELL = 0.62, 0.36, 0.6  # from one utterance to the next, a box's height, and the width of a cell


def hierarchy(
    lengths: Sequence[int] | Integer[ArrayLike, " utterances"],
    *,
    words: Sequence[Sequence[str]] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how a conversation is read: each utterance by one encoder, their codes by another, tags by a CRF.

    Rows are utterances and columns words, as in the array of tokens; hatched boxes are padding. Of more than eight
    rows or columns the first three and the last are drawn.

    Args:
        lengths: words of each utterance of one conversation, integers of at least 0.
        words: the words themselves, of each utterance as many as its length; None for symbols.
        ax: matplotlib Axes; None makes one.

    Returns:
        The Axes.

    Raises:
        ValueError: no utterances, a negative length, or words that are not as many as lengths say.
        TypeError: ax is no Axes of x and y.
        ImportError: matplotlib is not installed.

    >>> hierarchy([4, 2, 3])
    <Axes: >
    """
    lengths = _checked(lengths, words)
    count, longest = len(lengths), max(lengths)
    rows, columns = shown(count), shown(longest) if longest else ()
    told = {
        (row, column): f"$w_{{{row},{column}}}$" if words is None else words[row - 1][column - 1].replace("$", r"\$")
        for row in rows
        for column in columns
        if 0 < column <= lengths[row - 1] and row
    }
    word = max([0.62, *(width_of(text) + 0.16 for text in told.values())])
    pitch = word + 0.1
    sides = {row: f"utterance {row}: {_plural(lengths[row - 1])}" for row in rows if row}
    left = 0.3 + max(width_of(text, SMALL) for text in sides.values())
    right = left + 0.2 + max(pitch * len(columns), 1.2)
    encoder, codes, above, tags = right + 0.75, right + 1.95, right + 3.15, right + 4.35
    bottom, top = 0.95, 0.75
    diagram = Diagram(ax, tags + 0.75, bottom + ROW * len(rows) + top)
    heights = {row: bottom + ROW * (len(rows) - place - 0.5) for place, row in enumerate(rows)}
    tall = ROW * len(rows)
    heads = bottom + tall + 0.3
    band = {"edgecolor": BAND, "facecolor": BAND, "zorder": 0}
    diagram.box((left + right) / 2, bottom + tall / 2, right - left, tall, **band)
    for x, name, color in ((encoder, "word", BLUE), (above, "utterance", ORANGE)):
        diagram.box(x, bottom + tall / 2, 0.8, tall, facecolor=tint(color), zorder=0, name="encoder")
        diagram.text(x, heads + 0.1, name)
        diagram.text(x, heads - 0.1, "encoder")
    diagram.text((left + right) / 2, heads, f"words [{count}, {longest}]")
    diagram.text(codes, heads, "codes")
    diagram.text(tags, heads + 0.1, "tags")
    diagram.text(tags, heads - 0.1, "CRF")
    for row, y in heights.items():
        if not row:
            for x in (left / 2, (left + right) / 2, encoder, codes, above, tags):
                diagram.text(x, y, "⋮", TEXT + 3, MUTED)
            continue
        diagram.text(0.15, y, sides[row], SMALL, MUTED, ha="left")
        for place, column in enumerate(columns):
            x = left + 0.1 + pitch * (place + 0.5)
            if not column:
                diagram.text(x, y, "…", TEXT + 2, MUTED)
            elif (row, column) in told:
                diagram.box(x, y, word, BOX, name="word")
                diagram.text(x, y, told[row, column])
            else:
                diagram.box(x, y, word, BOX, name="padding", hatch="////", edgecolor=FAINT)
        for x in (encoder, above):
            diagram.box(x, y, CELL, BOX, name="cell")
            diagram.text(x, y, "LSTM", SMALL)
        diagram.wire((right, y), (encoder - CELL / 2, y))
        diagram.wire((encoder + CELL / 2, y), (codes - 0.36, y))
        diagram.box(codes, y, 0.72, BOX, name="code", facecolor=tint(BLUE))
        diagram.text(codes, y, f"$u_{{{row}}}$")
        diagram.wire((codes + 0.36, y), (above - CELL / 2, y))
        diagram.wire((above + CELL / 2, y), (tags - 0.36, y))
        diagram.box(tags, y, 0.72, BOX, name="tag", facecolor=tint(GREEN))
        diagram.text(tags, y, f"$y_{{{row}}}$")
    for high, low in itertools.pairwise(heights.values()):
        diagram.wire((above, high - BOX / 2), (above, low + BOX / 2))
        diagram.wire((tags, high - BOX / 2), (tags, low + BOX / 2), head=False)
    diagram.text(encoder, 0.7, "the same one for\nevery utterance", SMALL, MUTED)
    diagram.text(above, 0.7, "once over the\nconversation", SMALL, MUTED)
    steps = ", ".join(str(lengths[row - 1]) if row else "…" for row in rows)
    note = "      hatched: padding" if min(lengths) < longest else ""
    diagram.text(0.15, 0.2, f"lengths = ([{steps}], {count}){note}", SMALL, MUTED, ha="left")
    return diagram.ax


def _plural(length: int) -> str:
    return f"{length} word{'' if length == 1 else 's'}"


def _checked(lengths: Any, words: Sequence[Sequence[str]] | None) -> list[int]:
    lengths = [length.item() if isinstance(length, jax.Array) else length for length in lengths]
    for length in lengths:
        validation.size("each of lengths", length)
    if not len(lengths):
        raise ValueError("lengths must have an entry for each of at least 1 utterance; got none.")
    if words is not None and [len(utterance) for utterance in words] != list(lengths):
        found = [len(utterance) for utterance in words]
        raise ValueError(f"words must be as many as lengths say, {list(lengths)}; got {found}.")
    return [int(length) for length in lengths]
