"""The worked example as text for a terminal."""

import itertools
import math
import textwrap
from collections.abc import Callable, Iterator

import numpy as np

from lstmjax.explain import sources
from lstmjax.explain.equations import Part
from lstmjax.explain.sources import Example
from lstmjax.inspect import layers
from lstmjax.lstm import LSTMParams

GATES = "ifgo"
FIRST_STEPS, LAST_STEPS = 6, 2  # of a long sequence
SHOWN = 6  # units, rows and terms of a sum at most
SHOWN_COLUMNS = 3  # of each gate
WIDTH = 100
EQUATIONS = """\
  z_t = x_t W_x + h_{t-1} W_h + b       the four gates side by side: z_i, z_f, z_g, z_o
  i   = sigmoid(z_i)                    how much is written
  f   = sigmoid(z_f)                    how much is kept
  g   = tanh(z_g)                       what would be written
  o   = sigmoid(z_o)                    how much is shown
  c_t = f * c_{t-1} + i * g             the cell state: keep some, write some
  h_t = o * tanh(c_t)                   the hidden state, which is the output"""


def lesson(example: Example, parts: list[Part]) -> str:
    """Write out sizes, shapes, counts, steps and results.

    >>> from lstmjax.explain import equations, sources
    >>> one = sources.example(inputs=2, units=3)
    >>> text = lesson(one, equations.run(one.params, one.xs))
    >>> "4 * units * (inputs + units + 1) = 4 * 3 * (2 + 3 + 1) = 72" in text
    True
    """
    return "\n".join(_lines(example, parts))


def number(value: float) -> str:
    """Six decimals, so that what is printed is within 1e-6 of what was computed.

    >>> number(0.5), number(0.0)
    ('0.500000', '0')
    """
    return f"{value:.6f}" if value else "0"


def short(value: float) -> str:
    """A weight or an input as the reader would write it.

    >>> short(np.float64(np.float32(0.21))), short(3.0)
    ('0.21', '3')
    """
    return f"{value:.7g}"


def counted(count: int, word: str) -> str:
    """The number and the word.

    >>> counted(1, "unit"), counted(3, "unit")
    ('1 unit', '3 units')
    """
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _lines(example: Example, parts: list[Part]) -> Iterator[str]:
    first, time = parts[0], len(example.xs)
    units, inputs = first.h.size, first.w_x.shape[0]
    sizes = f"{counted(inputs, 'input')}, {counted(units, 'unit')}, {counted(time, 'step')}"
    yield f"AN LSTM, WORKED OUT: {sizes}"
    if example.params_file or example.data_file:
        paths = [("weights", example.params_file), ("data", example.data_file)]
        yield "  " + ", ".join(f"{name} of {path}" for name, path in paths if path)
    if example.remark:
        yield f"  {example.remark}"
    if example.params_file is None:
        yield "  The weights are random ones, rounded so that they can be followed by hand; a trained LSTM has others."
    yield ""
    yield "WHAT units MEANS"
    yield f"  units = {units} is the length of h and of c: {counted(units, 'number')} each."
    yield f"  It is not the number of time steps ({time:,}) and not that of features ({inputs:,}). There is one cell,"
    yield f"  and it uses the same weights at {'its one step' if time == 1 else f'each of the {time:,} steps'}."
    yield ""
    yield "THE EQUATIONS"
    yield EQUATIONS
    halves = list(itertools.chain(*sources.cells(example.params)))
    for number_, (part, half) in enumerate(zip(parts, halves, strict=True)):
        yield ""
        if len(parts) > 1:
            yield f"==== {_title(part, parts)} ===="
            yield ""
        yield from _part(part, half, worked=number_ == 0)
    if len(parts) > 1:
        counts = list(map(layers.count, halves))
        yield ""
        yield f"PARAMETERS OF ALL: {' + '.join(f'{count:,}' for count in counts)} = {sum(counts):,}"
    yield ""
    yield from _results(parts)


def _title(part: Part, parts: list[Part]) -> str:
    count = parts[-1].layer + 1
    two_ways = sum(other.layer == part.layer for other in parts) > 1
    names = [f"layer {part.layer + 1} of {count}"] if count > 1 else []
    names += [f"{'backward' if part.reverse else 'forward'} half"] if two_ways else []
    return ", ".join(names).upper()


def _part(part: Part, params: LSTMParams, worked: bool) -> Iterator[str]:
    yield from _shapes(part)
    yield ""
    yield from _count(params)
    yield ""
    yield from _weights(part)
    order, left_out = part.order, len(part.order) - FIRST_STEPS - LAST_STEPS
    for position, t in enumerate(order):
        if left_out > 0 and FIRST_STEPS <= position < FIRST_STEPS + left_out:
            if position == FIRST_STEPS:
                yield ""
                yield f"... {counted(left_out, 'step')} more, each like those before ..."
            continue
        yield ""
        yield from _step(part, t, position, worked=worked and position < 2)


def _shapes(part: Part) -> Iterator[str]:
    (inputs, gates), units, time = part.w_x.shape, part.h.size, len(part.xs)
    yield "SHAPES"
    rows = [
        ("xs", (time, inputs), "all steps, [time, inputs]"),
        ("x_t", (inputs,), "the input of one step"),
        ("h", (units,), "hidden state, which is the output" + ("; zeros at first" if not part.h.any() else "")),
        ("c", (units,), "cell state" + ("; zeros at first" if not part.c.any() else "")),
        ("W_x", (inputs, gates), "[inputs, 4*units]: from x_t to the four gates"),
        ("W_h", (units, gates), "[units, 4*units]: from h_{t-1} to the four gates"),
        ("b", (gates,), "[4*units]"),
    ]
    width = max(len(str(shape)) for _, shape, _ in rows)
    for name, shape, meaning in rows:
        yield f"  {name:<4} {shape!s:<{width}}  {meaning}"


def _count(params: LSTMParams) -> Iterator[str]:
    yield "PARAMETERS"
    yield f"  {layers.formula(params)}"
    rows = [
        (name, " x ".join(map(str, shape)), f"{math.prod(shape):,}", meaning)
        for name, shape, meaning in sources.arrays(params)
    ]
    total = f"{layers.count(params):,}"
    left = max(len(shape) for _, shape, *_ in rows)
    for name, shape, count, meaning in rows:
        yield f"  {name:<5} {shape:>{left}} = {count:>{len(total)}}  {meaning}".rstrip()
    yield f"  {'total':<5} {'':>{left}}   {total}"
    if said := sources.bias(params):
        yield f"  {said}"


def _weights(part: Part) -> Iterator[str]:
    """Rows of W_x, W_h and b, each gate's columns together."""
    units = part.h.size
    shown = range(min(units, SHOWN_COLUMNS))
    rows = [("", [[f"{gate} {u + 1}" for u in shown] for gate in GATES])]
    for name, matrix, row_name in (("W_x", part.w_x, "input"), ("W_h", part.w_h, "h"), ("b", part.bias[None], "")):
        for row, weights in enumerate(matrix[:SHOWN]):
            label = f"{name}, {row_name} {row + 1}" if row_name else name
            rows.append((label, [[f"{weights[k * units + u]:.4g}" for u in shown] for k in range(4)]))
        if len(matrix) > SHOWN:
            rows.append((f"{name}: {counted(len(matrix) - SHOWN, 'row')} more", []))
    width = max(len(text) for _, gates in rows for texts in gates for text in texts)
    left = max(len(label) for label, gates in rows if gates)
    some = f"units 1 to {len(shown)} of {units:,}" if units > len(shown) else counted(units, "unit")
    yield f"WEIGHTS: the columns of the gates i, f, g, o, each of {some}"
    for label, gates in rows:
        texts = "  |".join("".join(f"{text:>{width + 1}}" for text in texts) for texts in gates)
        yield f"  {label:<{left}} {texts}".rstrip()


def _step(part: Part, t: int, position: int, worked: bool) -> Iterator[str]:
    h, c = part.before(t)
    steps, x, units = part.steps, part.xs[t], part.h.size
    read = f", read {'first' if position == 0 else f'as number {position + 1}'}" if part.reverse else ""
    yield f"STEP {t + 1}{read}"
    yield f"  x_{t + 1} = {_vector(x, short)}"
    yield f"  h before = {_vector(h, number)}"
    yield f"  c before = {_vector(c, number)}"
    if worked:
        yield from _worked(part, t)
    yield "  " + " " * 6 + "".join(f"{f'unit {u + 1}':>13}" for u in range(min(units, SHOWN))) + _more(units)
    for k, gate in enumerate(GATES):
        yield _values(f"z_{gate}", steps.z[t, k * units : (k + 1) * units])
    for name in "ifgoch":
        yield _values(name, getattr(steps, name)[t])


def _worked(part: Part, t: int) -> Iterator[str]:
    """The first unit, with every product."""
    h, c = part.before(t)
    steps, units = part.steps, part.h.size
    yield "  Unit 1 with every product, x_t W_x first, then h W_h, then b:"
    for k, gate in enumerate(GATES):
        column = k * units
        terms = _products(part.xs[t], part.w_x[:, column], short) + _products(h, part.w_h[:, column], number)
        line = (
            f"    z_{gate} = {' + '.join([*terms, _factor(short(part.bias[column]))])} = {number(steps.z[t, column])}"
        )
        yield textwrap.fill(line, WIDTH, subsequent_indent=" " * 10, break_long_words=False, break_on_hyphens=False)
    values = {name: number(getattr(steps, name)[t, 0]) for name in "ifgoch"}
    for k, gate in enumerate(GATES):
        function = "tanh" if gate == "g" else "sigmoid"
        yield f"    {gate}   = {function}({number(steps.z[t, k * units])}) = {values[gate]}"
    kept, written = f"{values['f']}*{_factor(number(c[0]))}", f"{values['i']}*{_factor(values['g'])}"
    yield f"    c   = f * c before + i * g = {kept} + {written} = {values['c']}"
    yield f"    h   = o * tanh(c) = {values['o']}*tanh({values['c']}) = {values['h']}"
    yield "  All units:" if units > 1 else "  The same as a table:"


def _products(values: np.ndarray, weights: np.ndarray, form: Callable[[float], str]) -> list[str]:
    return _cut([f"{_factor(form(x))}*{_factor(short(w))}" for x, w in zip(values, weights, strict=True)])


def _factor(text: str) -> str:
    return f"({text})" if text.startswith("-") else text


def _results(parts: list[Part]) -> Iterator[str]:
    top = [part for part in parts if part.layer == parts[-1].layer]
    time, size = len(top[0].xs), sum(part.h.size for part in top)
    last = np.concatenate([part.final[0] for part in top])
    stacked, both = parts[-1].layer > 0, len(top) > 1
    name = "stack" if stacked else "bidirectional" if both else "lstm"
    yield f"WHAT COMES BACK: ys, state = {name}.apply(params, xs)"
    yield f"  return_sequences=True, the default: ys {(time, size)}, h of every step"
    yield f"  return_sequences=False:             ys {(size,)}, h after the last step that was read:"
    yield f"    {_vector(last, number)}"
    each = f"{'of every layer' if stacked else ''}{' and ' if stacked and both else ''}{'of each half' if both else ''}"
    yield f"  state {each + ' ' if each else ''}always comes too; elsewhere return_state=True asks for it:"
    for part in parts:
        h, c = part.final
        title = f"{_title(part, parts).lower()}: " if len(parts) > 1 else ""
        yield f"    {title}h {(h.size,)} = {_vector(h, number)}"
        yield f"    {title}c {(c.size,)} = {_vector(c, number)}"
    whose = "of the last layer's state" if stacked else "of the state"
    yield f"  h {whose} is what return_sequences=False gives, so two of the things that come back are equal;"
    yield "  c is in no output. To go on where this ended, hand state to the next apply."


def _vector(values: np.ndarray, form: Callable[[float], str]) -> str:
    return f"[{', '.join(_cut([form(value) for value in values], ', ...'))}]"


def _cut(texts: list[str], mark: str = "") -> list[str]:
    if len(texts) <= SHOWN:
        return texts
    return [*texts[:SHOWN], f"({len(texts) - SHOWN:,} more)"]


def _values(name: str, values: np.ndarray) -> str:
    return f"  {name:<6}" + "".join(f"{number(value):>13}" for value in values[:SHOWN])


def _more(units: int) -> str:
    return f"   ({units - SHOWN:,} more)" if units > SHOWN else ""
