"""Weights and data of the worked example: the reader's own where given, and those of `defaults`."""

import dataclasses
import itertools
import math
import os
import re
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from lstmjax import files, stack
from lstmjax._src.lstm import variants
from lstmjax._src.lstm.options import LSTMOptions
from lstmjax.bidirectional import BidirectionalParams
from lstmjax.explain import defaults
from lstmjax.lstm import LSTMParams, LSTMState
from lstmjax.stack import StackParams

LARGEST = 1e6  # of a weight, and of a number in the data
MOST_BYTES = 2**20  # of data: steps by the hundred thousand, of which a few are shown


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """Weights, inputs and settings of the worked example.

    Args:
        params: LSTMParams, BidirectionalParams or StackParams.
        xs: data [time, inputs], float64.
        params_file: where params came from; None for `defaults.network`.
        data_file: where xs came from; None for `defaults.data`.
        remark: what the file of params says and the equations do not follow; else nothing.
    """

    params: Any
    xs: Float[np.ndarray, "time inputs"]
    params_file: str | None = None
    data_file: str | None = None
    remark: str = ""


def example(
    inputs: int | None = None,
    units: int | None = None,
    steps: int | None = None,
    params_file: str | None = None,
    data_file: str | None = None,
) -> Example:
    """Bring sizes and files together.

    Raises:
        ValueError: a size that is not that of the files, and files that cannot be used, with the reason.
        ImportError: params_file without safetensors.

    >>> example(inputs=2).params.w_x.shape
    (2, 12)
    """
    params, remark = (None, "") if params_file is None else read_params(params_file)
    xs = None if data_file is None else read_data(data_file)
    if params is not None:
        first = cells(params)[0][0]
        units = _fixed("--units", units, first.units, f"the units of {params_file}")
        inputs = _fixed("--inputs", inputs, first.inputs, f"the inputs of {params_file}")
    if xs is not None:
        time, features = xs.shape
        if params is not None and features != inputs:
            right = f"{inputs} numbers in a line, the inputs of {params_file}"
            raise ValueError(f"--data {data_file} must have {right}; it has {features}.")
        inputs = _fixed("--inputs", inputs, features, f"the numbers in a line of {data_file}")
        if steps is not None and steps > time:
            raise ValueError(f"--steps must be at most {time}, the lines of {data_file}; got {steps}.")
        xs = xs[:steps]
    inputs = inputs or 1
    return Example(
        defaults.network(inputs, units or 3) if params is None else params,
        defaults.data(steps or 4, inputs) if xs is None else xs,
        params_file,
        data_file,
        remark,
    )


def cells(params: LSTMParams | BidirectionalParams | StackParams) -> list[list[LSTMParams]]:
    """The LSTMs of every layer, one of each direction.

    >>> [len(halves) for halves in cells(stack.init(jax.random.key(0), 2, units=(4, 3), bidirectional=True))]
    [2, 2]
    """
    layers = params.layers if isinstance(params, StackParams) else (params,)
    return [[one.forward, one.backward] if isinstance(one, BidirectionalParams) else [one] for one in layers]


def arrays(params: LSTMParams) -> list[tuple[str, tuple[int, ...], str]]:
    """All that one LSTM of the standard cell holds: each array's name here, its shape, and what it is beside W and b.

    >>> arrays(defaults.network(inputs=1, units=3))
    [('W_x', (1, 12), ''), ('W_h', (3, 12), ''), ('b', (12,), '')]
    """
    initial = params.initial or LSTMState(None, None)
    found = [
        ("W_x", params.w_x, ""),
        ("W_h", params.w_h, ""),
        ("b", params.bias, ""),
        ("b_h", params.bias_h, "a second bias, as of PyTorch"),
        ("b_0", params.offset, "an offset, which is not learned"),
        ("h_0", initial.h, "the h to begin with, learned"),
        ("c_0", initial.c, "the c to begin with, learned"),
    ]
    return [(name, tuple(array.shape), meaning) for name, array, meaning in found if array is not None]


def bias(params: LSTMParams) -> str:
    """Description of b in the equations, where it is no array of params.

    >>> bias(dataclasses.replace(defaults.network(inputs=1, units=3), bias=None))
    'There is no bias: b in the equations is zeros.'
    """
    summed = [name for name, *_ in arrays(params) if name.startswith("b")]
    if not summed:
        return "There is no bias: b in the equations is zeros."
    return "" if summed == ["b"] else f"b in the equations is their sum: {' + '.join(summed)}."


def read_params(path: str) -> tuple[LSTMParams | BidirectionalParams | StackParams, str]:
    """Load what `lstmjax.files.save` wrote, if it is of cells that the equations here are of.

    Returns:
        The params, and a remark on those of its options that say how to compute, not what; "" without.

    Raises:
        ValueError: no such file, a file that `files.load` refuses, or one of another cell.
        ImportError: without safetensors.
    """
    try:
        with jax.enable_x64(True):
            params, options = files.load(path)
    except OSError as error:
        raise ValueError(f"--params {path} cannot be read: {error.strerror}.") from error
    except files.FileError as error:
        raise ValueError(f"--params {error}") from error
    if not isinstance(params, LSTMParams | BidirectionalParams | StackParams):
        kinds = "LSTMParams, BidirectionalParams or StackParams"
        raise ValueError(f"--params {path} must hold {kinds}; it holds {type(params).__name__}.")
    try:
        stack.check(params)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--params {path} is refused: {error}") from error
    for number, (below, layer) in enumerate(itertools.pairwise(cells(params)), 2):
        given = sum(half.outputs for half in below)
        if layer[0].inputs != given:
            raise ValueError(
                f"--params {path} must have layers that read both halves of the one below side by side, "
                f"merge='concat': layer {number} reads {layer[0].inputs} numbers, and is given {given}."
            )
    for half in itertools.chain(*cells(params)):
        _check_cell(path, half)
    if options is None:
        return params, ""
    how = {name: getattr(options, name, None) for name in ("precision", "units_axis")}
    if not isinstance(options, LSTMOptions) or dataclasses.replace(options, **dict.fromkeys(how)) != LSTMOptions():
        raise ValueError(f"--params {path} must have the options of the standard cell; it has {options!r}.")
    said = " and ".join(f"{name}={value!r}" for name, value in how.items() if value is not None)
    return params, said and f"The options of that file, {said}, are not followed: all is computed in float64."


def read_data(path: str) -> Float[np.ndarray, "time inputs"]:
    """Read one time step a line, numbers separated by commas or whitespace; empty lines count for nothing.

    Raises:
        ValueError: no such file, one that is too large, or one with something else; with the line.
    """
    try:
        with open(path, "rb") as file:
            size, content = os.fstat(file.fileno()).st_size, file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            has = f"{size:,}" if size > MOST_BYTES else "more"
            raise ValueError(
                f"--data {path} must have at most {MOST_BYTES:,} bytes; it has {has}: cut it to fewer steps."
            )
        lines = content.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError(f"--data {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--data {path} must be a text of numbers; byte {error.start} is no UTF-8.") from error
    rows: list[list[float]] = []
    first = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"--data {path}, line {number}"
        texts = re.split(r"\s*,\s*|\s+", line.strip())
        if not rows and re.search(r"[^\W\d_]", line) and not any(map(_is_number, texts)):
            raise ValueError(
                f"{where}: it is no time step but a header, {line.strip()[:40]!r}: take it out of the file."
            )
        row = [_number(where, text) for text in texts]
        if rows and len(row) != len(rows[0]):
            raise ValueError(f"{where}: it must have {len(rows[0])} numbers, as line {first} has; got {len(row)}.")
        first = first or number
        rows.append(row)
    if not rows:
        raise ValueError(f"--data {path} must have at least one line of numbers; it has none.")
    return np.array(rows)


def _fixed(name: str, asked: int | None, right: int, meaning: str) -> int:
    if asked not in (None, right):
        raise ValueError(f"{name} must be {right}, {meaning}, or left out; got {asked}.")
    return right


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _number(where: str, text: str) -> float:
    value = float(text) if _is_number(text) else math.nan
    if not abs(value) <= LARGEST:
        shown = f"{text[:40]!r}" if text else "nothing between two commas"
        raise ValueError(f"{where}: numbers from -{LARGEST:,.0f} to {LARGEST:,.0f} are right; got {shown}.")
    return value


def _check_cell(path: str, params: LSTMParams) -> None:
    """The equations here are those of the standard cell, whose biases may be several or none."""
    parts = {"peepholes": params.w_peephole, "a projection": params.w_projection, "layer norm": params.norm}
    has = [name for name, part in parts.items() if part is not None]
    if params.w_x.shape[1] == 3 * params.units:
        has.append("coupled gates")
    if has:
        raise ValueError(f"--params {path} must be of the standard cell; it has {' and '.join(has)}.")
    if any(not (np.abs(np.float64(leaf)) <= LARGEST).all() for leaf in jax.tree.leaves(variants.sum_biases(params))):
        raise ValueError(f"--params {path} must have numbers from -{LARGEST:,.0f} to {LARGEST:,.0f}; it has others.")
