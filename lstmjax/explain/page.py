"""The worked example as a page: one file that needs no network, and computes every number in the reader's browser.

Beside weights and data the page has what `apply` gives for a number of configurations, in float64; it computes these
again when it is opened and says how far they are from that.
"""

import dataclasses
import itertools
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lstmjax import stack
from lstmjax.explain import defaults, equations, sources
from lstmjax.explain.sources import Example
from lstmjax.inspect import trace
from lstmjax.inspect.layers import count, formula
from lstmjax.lstm import LSTMParams

DIRECTIONS = ("forward", "reverse", "bidirectional")
SCRIPTS = ("equations.js", "drawing.js", "sections.js", "page.js")
LARGEST = {"inputs": 32, "units": 32, "steps": 100, "layers": 8}  # of what is read from files
SIZES = [(1, 1, 4), (2, 3, 5), (4, 8, 12)]  # inputs, units and steps of what is checked with 1, 2 and 3 layers


@dataclasses.dataclass(frozen=True)
class Configuration:
    """The choices of the reader on the page."""

    inputs: int
    units: int
    steps: int
    layers: int = 1
    direction: str = "forward"


def page(example: Example) -> str:
    """Make the page, which starts with this example.

    Raises:
        ValueError: an example too large for a page.

    >>> text = page(sources.example(inputs=1, units=3, steps=4))
    >>> text.startswith("<!doctype html>"), "http-equiv" in text
    (True, True)
    """
    data = json.dumps(contents(example), separators=(",", ":"), allow_nan=False)
    text = _asset("page.html")
    for name, content in (
        ("style", _asset("page.css")),
        ("script", "\n".join(map(_asset, SCRIPTS))),
        ("data", data.replace("<", "\\u003c")),
    ):
        text = text.replace("{{" + name + "}}", content)
    return text


def contents(example: Example) -> dict[str, Any]:
    """Everything that the page is given."""
    from lstmjax import __version__

    _check_size(example)
    layers = sources.cells(example.params)
    time, inputs = example.xs.shape
    two_ways = any(len(halves) > 1 for halves in layers)
    start = Configuration(inputs, layers[0][0].units, time, len(layers), DIRECTIONS[2 if two_ways else 0])
    params = example.params_file and Path(example.params_file).name
    data = example.data_file and Path(example.data_file).name
    directions = DIRECTIONS if params is None else DIRECTIONS[2:] if two_ways else DIRECTIONS[:2]
    xs = example.xs if data else defaults.data(defaults.STEPS, inputs if params else defaults.INPUTS)
    origin = [f"Weights: {params}." if params else "Weights: random ones of lstm.init, rounded to two decimals."]
    origin += [f"Data: {data}."] if data else []
    origin += [example.remark] if example.remark else []
    tables = range(0 if params else defaults.LAYERS)
    return {
        "version": __version__,
        "origin": " ".join(origin),
        "start": dataclasses.asdict(start),
        "fixed": {
            "inputs": params or data,
            "units": params,
            "steps": data,
            "layers": params,
            "direction": params if len(directions) == 1 else None,
        },
        "most": {"inputs": defaults.INPUTS, "units": defaults.UNITS, "steps": defaults.STEPS},
        "choices": {
            "shown": max(defaults.LAYERS, len(layers)),
            "layers": [len(layers)] if params else list(range(1, defaults.LAYERS + 1)),
            "direction": directions,
        },
        "tables": [[_weights(defaults.table(layer, half, inputs)) for half in range(2)] for layer in tables],
        "params": [[_weights(half) | {"held": _held(half)} for half in halves] for halves in layers]
        if params
        else None,
        "xs": xs.tolist(),
        "checks": [_check(example, xs, one, one == start) for one in _checked(example, start, directions)],
    }


def _checked(example: Example, start: Configuration, directions: tuple[str, ...]) -> list[Configuration]:
    """The configurations that Python computes too: that with which the page starts, and some of each kind."""
    chosen = [start]
    if example.params_file:
        lengths = [start.steps] if example.data_file else [start.steps, 1, defaults.STEPS]
        for direction, steps in itertools.product(directions, lengths):
            chosen.append(dataclasses.replace(start, direction=direction, steps=steps))
    else:
        for direction, (layers, (inputs, units, steps)) in itertools.product(directions, enumerate(SIZES, 1)):
            if example.data_file:
                inputs, steps = start.inputs, start.steps
            chosen.append(Configuration(inputs, units, steps, layers, direction))
    return list(dict.fromkeys(chosen))


def _check(example: Example, xs: Float[np.ndarray, "time inputs"], one: Configuration, seen: bool) -> dict[str, Any]:
    """The library's result for a configuration, and every gate of it where it is to be seen."""
    params = example.params
    if example.params_file is None:
        params = defaults.network(one.inputs, one.units, one.layers, one.direction == "bidirectional")
    reverse = one.direction == "reverse"
    with jax.enable_x64(True):
        arrays = equations.cast(params, xs[: one.steps, : one.inputs], jnp.float64)
        ys, states = stack.apply(*arrays, reverse=reverse)
        check = {
            "config": dataclasses.asdict(one),
            "ys": ys.tolist(),
            "states": [[state.h.tolist(), state.c.tolist()] for state in equations.flat(states)],
        }
        if seen:
            last, _ = stack.apply(*arrays, reverse=reverse, return_sequences=False)
            traces = equations.flat(trace(*arrays, reverse=reverse))
            check["last"] = last.tolist()
            check["trace"] = [[getattr(part, name).tolist() for name in "ifgoch"] for part in traces]
    return check


def _weights(params: Any) -> dict[str, Any]:
    """One LSTM's, with one bias, and its initial state."""
    *_, w_x, w_h, bias, h, c, _, _ = equations.read(0, params, np.empty((0, params.inputs)), False)
    return {"w_x": w_x.tolist(), "w_h": w_h.tolist(), "bias": bias.tolist(), "h": h.tolist(), "c": c.tolist()}


def _held(params: LSTMParams) -> dict[str, Any]:
    """Number of parameters that one LSTM of a file holds, why, and in which arrays."""
    rows = [(name, shape, math.prod(shape), meaning) for name, shape, meaning in sources.arrays(params)]
    return {"count": count(params), "formula": formula(params), "arrays": rows, "bias": sources.bias(params)}


def _check_size(example: Example) -> None:
    layers = sources.cells(example.params)
    time, inputs = example.xs.shape
    found = {"inputs": inputs, "units": max(half.units for half in itertools.chain(*layers)), "steps": time}
    from_files = {"units": example.params_file, "layers": example.params_file, "steps": example.data_file}
    from_files["inputs"] = example.params_file or example.data_file
    most = {"inputs": defaults.INPUTS, "units": defaults.UNITS, "steps": defaults.STEPS, "layers": defaults.LAYERS}
    for name, size in {**found, "layers": len(layers)}.items():
        path = from_files[name]
        bound = LARGEST[name] if path else most[name]
        if size > bound:
            raise ValueError(
                f"--{name} must be at most {bound} on a page{f', in {path} too' if path else ''}; got {size}."
            )


def _asset(name: str) -> str:
    return resources.files("lstmjax.explain").joinpath("assets", name).read_text(encoding="utf-8").rstrip("\n")
