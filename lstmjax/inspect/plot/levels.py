"""Words to utterances to a conversation."""

from collections.abc import Sequence

from lstmjax import checks
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

ROW, BOX = 0.62, 0.36  # from one utterance to the next, and the height of a box


def hierarchy(lengths: Sequence[int], *, words: Sequence[Sequence[str]] | None = None, ax: Axes | None = None) -> Axes:
    """Draw how a conversation is read: words by one encoder, utterance by utterance, their codes by another, then a CRF.

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
        ImportError: matplotlib is not installed.

    >>> hierarchy([4, 2, 3]).figure.savefig("/dev/null", format="svg")
    """
    lengths = _checked(lengths, words)
    count, longest = len(lengths), max(lengths)
    rows, columns = shown(count), shown(longest) if longest else ()
    told = {
        (row, column): f"$w_{{{row},{column}}}$" if words is None else words[row - 1][column - 1].replace("$", r"\$")
        for row in rows
        for column in columns
        if row is not None and column is not None and column <= lengths[row - 1]
    }
    word = max([0.62, *(width_of(text) + 0.16 for text in told.values())])
    pitch = word + 0.1
    sides = {row: f"utterance {row}: {_plural(lengths[row - 1])}" for row in rows if row is not None}
    left = 0.3 + max(width_of(text, SMALL) for text in sides.values())
    right = left + 0.15 + pitch * len(columns)
    encoder, codes, above, tags = right + 0.55, right + 1.65, right + 2.85, right + 4.05
    bottom, top = 0.62, 0.75
    diagram = Diagram(ax, tags + 0.75, bottom + ROW * len(rows) + top)
    heights = {row: bottom + ROW * (len(rows) - place - 0.5) for place, row in enumerate(rows)}
    tall = ROW * len(rows)
    heads = bottom + tall + 0.3
    band = {"edgecolor": BAND, "facecolor": BAND, "zorder": 0}
    diagram.box((left + right) / 2 + 0.1, bottom + tall / 2, right - left, tall, **band)
    for x, name, color in ((encoder, "word", BLUE), (above, "utterance", ORANGE)):
        diagram.box(x, bottom + tall / 2, 0.8, tall, facecolor=tint(color), zorder=0, name="encoder")
        diagram.text(x, heads + 0.1, name)
        diagram.text(x, heads - 0.1, "encoder")
    diagram.text((left + right) / 2 + 0.1, heads, f"words [{count}, {longest}]")
    diagram.text(codes, heads, "codes")
    diagram.text(tags, heads + 0.1, "tags")
    diagram.text(tags, heads - 0.1, "CRF")
    for row, y in heights.items():
        if row is None:
            for x in (left - 0.4, right - pitch * len(columns) / 2, encoder, codes, above, tags):
                diagram.text(x, y, "⋮", TEXT + 3, MUTED)
            continue
        diagram.text(0.15, y, sides[row], SMALL, MUTED, ha="left")
        for place, column in enumerate(columns):
            x = left + 0.15 + pitch * (place + 0.5)
            if column is None:
                diagram.text(x, y, "…", TEXT + 2, MUTED)
            elif (row, column) in told:
                diagram.box(x, y, word, BOX, name="word")
                diagram.text(x, y, told[row, column])
            else:
                diagram.box(x, y, word, BOX, name="padding", hatch="////", edgecolor=FAINT)
        diagram.wire((right + 0.05, y), (encoder - 0.4, y))
        diagram.wire((encoder + 0.4, y), (codes - 0.36, y))
        diagram.box(codes, y, 0.72, BOX, name="code", facecolor=tint(BLUE))
        diagram.text(codes, y, f"$u_{{{row}}}$")
        diagram.wire((codes + 0.36, y), (above - 0.4, y))
        diagram.wire((above + 0.4, y), (tags - 0.36, y))
        diagram.box(tags, y, 0.72, BOX, name="tag", facecolor=tint(GREEN))
        diagram.text(tags, y, f"$y_{{{row}}}$")
    for x in (above, tags):
        places = list(heights.values())
        for high, low in zip(places, places[1:], strict=False):
            diagram.wire((x, high - BOX / 2), (x, low + BOX / 2), head=x == above)
    diagram.text(encoder, 0.42, "the same one for\nevery utterance", SMALL, MUTED)
    diagram.text(above, 0.42, "once over the\nconversation", SMALL, MUTED)
    return diagram.ax


def _plural(length: int) -> str:
    return f"{length} word{'' if length == 1 else 's'}"


def _checked(lengths: Sequence[int], words: Sequence[Sequence[str]] | None) -> list[int]:
    for length in lengths:
        checks.size("each of lengths", length)
    if not len(lengths):
        raise ValueError("lengths must have an entry for each of at least 1 utterance; got none.")
    if words is not None and [len(utterance) for utterance in words] != list(lengths):
        found = [len(utterance) for utterance in words]
        raise ValueError(f"words must be as many as lengths say, {list(lengths)}; got {found}.")
    return [int(length) for length in lengths]
