"""Haiku: `hk.LSTM`, which adds 1 to the forget gate's bias at run time.

w = [w_x; w_h]    bias = b    offset = 0, 1, 0, 0
"""

import itertools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lstmjax._src import keywords
from lstmjax.interop import gates
from lstmjax.lstm import LSTMParams

FORGET_BIAS = 1.0


@keywords.explained("interop.from_haiku")
def from_haiku(source: Mapping[str, Any]) -> gates.RECURRENT:
    """Take the weights of one `hk.LSTM`, or of the LSTMs of an `hk.DeepRNN`.

    Args:
        source: the params that `init` of a transformed function gave, {"lstm/linear": {"w": ..., "b": ...}}; several
            modules are layers, in the order of their numbers; or {"w": ..., "b": ...} of one.

    Returns:
        LSTMParams, or StackParams of several. The 1 that Haiku adds to the forget gate's bias is `offset`: it is not
        learned, there as here.

    Raises:
        ValueError: parameters that are none of an LSTM's, shapes that do not fit; TypeError: another kind of source.

    >>> import numpy as np
    >>> params = from_haiku({"lstm/linear": {"w": np.ones((5, 12), "f"), "b": np.zeros(12, "f")}})
    >>> params.inputs, params.units
    (2, 3)
    """
    source = gates.named("source", source, "the params of hk.LSTM")
    modules = {"lstm/linear": source} if set(source) == {"w", "b"} else source
    for name, module in modules.items():
        if isinstance(module, Mapping) and set(module) == {"w_i", "w_h", "b"}:
            raise ValueError(f"source[{name!r}] has w_i and w_h, as hk.GRU: hk.LSTM has a linear with w and b.")
        if isinstance(module, Mapping) and set(module) <= {"w", "b"} and not name.endswith("/linear"):
            raise ValueError(f"source[{name!r}] must be the linear of an hk.LSTM, lstm/linear: {gates.DENSE}.")
        if not isinstance(module, Mapping) or set(module) != {"w", "b"}:
            raise ValueError(f"source[{name!r}] must have w and b, as hk.LSTM's linear has; got {module!r:.80}.")
    ordered = sorted(modules, key=_place)
    bases, numbers = zip(*map(_place, ordered), strict=True)
    if len(set(bases)) > 1 or any(after - before != 1 for before, after in itertools.pairwise(numbers)):
        raise ValueError(
            "source must have the modules of one stack, which Haiku calls lstm, lstm_1, ...; convert each of "
            f"{', '.join(modules)} by itself."
        )
    return gates.gathered([(_cell(name, modules[name]["w"], modules[name]["b"]),) for name in ordered])


@keywords.explained("interop.to_haiku")
def to_haiku(params: gates.RECURRENT, *, name: str = "lstm") -> dict[str, dict[str, jax.Array]]:
    """Make the params of `hk.LSTM`, or of the LSTMs of an `hk.DeepRNN`.

    Args:
        params: LSTMParams, or StackParams of them.
        name: of the module; the layers after the first are name_1, name_2, ...

    Returns:
        {"lstm/linear": {"w": ..., "b": ...}}, where the forget gate's bias is less by the 1 that Haiku adds.

    Raises:
        ValueError: parts that Haiku has no place for, two directions.

    >>> from lstmjax import lstm
    >>> {k: v.shape for k, v in to_haiku(lstm.init(jax.random.key(0), inputs=2, units=3))["lstm/linear"].items()}
    {'w': (5, 12), 'b': (12,)}
    """
    modules = {}
    for number, halves in enumerate(gates.layers(params)):
        if len(halves) != 1:
            raise ValueError(f"Haiku has one module for each direction: convert layer {number}'s halves by themselves.")
        cell = gates.only("Haiku", halves[0])
        w = jnp.concatenate([gates.from_ours(part, "haiku") for part in (cell.w_x, cell.w_h)])
        b = jnp.asarray(gates.from_ours(gates.one_bias(cell, FORGET_BIAS), "haiku"))
        modules[f"{name}_{number}/linear" if number else f"{name}/linear"] = {"w": w, "b": b}
    return modules


def _place(name: str) -> tuple[str, int]:
    """Haiku calls modules of one name name, name_1, name_2, ..., each with a linear in it."""
    name = name.removesuffix("/linear")
    number = re.search(r"_\d+$", name)
    return (name[: number.start()], int(number[0][1:])) if number else (name, 0)


def _cell(name: str, w: Any, b: Any) -> LSTMParams:
    w = gates.host(f"source[{name!r}]['w']", w, None, None)
    units = w.shape[1] // 4
    if w.shape[0] <= units:
        raise ValueError(f"source[{name!r}]['w'] must have rows for x and {units} for h, got shape {w.shape}.")
    bias = gates.to_ours(gates.host(f"source[{name!r}]['b']", b, w.shape[1]), "haiku")
    w = gates.to_ours(w, "haiku")
    return gates.params(w[:-units], w[-units:], bias, offset=gates.offset(bias.dtype, units, FORGET_BIAS))
