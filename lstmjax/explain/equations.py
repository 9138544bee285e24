"""The equations as a loop over NumPy arrays in float64, and how far its numbers are from those of the library.

z_t        = x_t W_x + h_{t-1} W_h + b
i, f, g, o = sigmoid(z_i), sigmoid(z_f), tanh(z_g), sigmoid(z_o)
c_t        = f * c_{t-1} + i * g
h_t        = o * tanh(c_t)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lstmjax import stack
from lstmjax.explain import sources
from lstmjax.inspect import trace
from lstmjax.lstm import LSTMParams


class Steps(NamedTuple):
    """All values of one LSTM, each [time, units] at its own step; z is [time, 4*units]."""

    z: Float[np.ndarray, "time gates"]
    i: Float[np.ndarray, "time units"]
    f: Float[np.ndarray, "time units"]
    g: Float[np.ndarray, "time units"]
    o: Float[np.ndarray, "time units"]
    c: Float[np.ndarray, "time units"]
    h: Float[np.ndarray, "time units"]


class Part(NamedTuple):
    """One LSTM of a network: where it stands, what it is made of, what it reads, and what it computes."""

    layer: int
    reverse: bool
    w_x: Float[np.ndarray, "inputs gates"]
    w_h: Float[np.ndarray, "units gates"]
    bias: Float[np.ndarray, " gates"]
    h: Float[np.ndarray, " units"]
    c: Float[np.ndarray, " units"]
    xs: Float[np.ndarray, "time inputs"]
    steps: Steps

    @property
    def order(self) -> list[int]:
        """The steps, counted from 0, in the order in which they are read."""
        return list(range(len(self.xs)))[:: -1 if self.reverse else 1]

    def before(self, t: int) -> tuple[Float[np.ndarray, " units"], Float[np.ndarray, " units"]]:
        """The h and c with which step t begins."""
        at = self.order.index(t)
        return (self.steps.h[self.order[at - 1]], self.steps.c[self.order[at - 1]]) if at else (self.h, self.c)

    @property
    def final(self) -> tuple[Float[np.ndarray, " units"], Float[np.ndarray, " units"]]:
        """The h and c after the step that is read last."""
        return self.steps.h[self.order[-1]], self.steps.c[self.order[-1]]


def run(params: Any, xs: Float[np.ndarray, "time inputs"], reverse: bool = False) -> list[Part]:
    """Compute everything that a network computes: the first layer first, its forward half first.

    >>> from lstmjax.explain import defaults
    >>> (part,) = run(defaults.network(inputs=1, units=3), defaults.data(steps=4, inputs=1))
    >>> part.steps.h.shape
    (4, 3)
    """
    parts: list[Part] = []
    for number, halves in enumerate(sources.cells(params)):
        made = [read(number, half, xs, reverse != bool(way)) for way, half in enumerate(halves)]
        xs = np.concatenate([part.steps.h for part in made], axis=-1)
        parts += made
    return parts


def read(layer: int, params: LSTMParams, xs: Float[np.ndarray, "time inputs"], reverse: bool) -> Part:
    """Run one LSTM, the equations of this module."""
    w_x, w_h, bias = (
        np.asarray(params.w_x, np.float64),
        np.asarray(params.w_h, np.float64),
        np.zeros(params.w_x.shape[1]),
    )
    for term in (params.bias, params.bias_h, params.offset):
        bias = bias if term is None else bias + np.asarray(term, np.float64)
    h = c = np.zeros(params.units)
    if params.initial is not None:
        h, c = np.asarray(params.initial.h, np.float64), np.asarray(params.initial.c, np.float64)
    empty = Steps(np.empty((len(xs), bias.size)), *(np.empty((len(xs), params.units)) for _ in "ifgoch"))
    part = Part(layer, reverse, w_x, w_h, bias, h, c, xs, empty)
    for t in part.order:
        z = xs[t] @ w_x + h @ w_h + bias
        z_i, z_f, z_g, z_o = np.split(z, 4)
        i, f, g, o = sigmoid(z_i), sigmoid(z_f), np.tanh(z_g), sigmoid(z_o)
        c = f * c + i * g
        h = o * np.tanh(c)
        for kept, value in zip(part.steps, (z, i, f, g, o, c, h), strict=True):
            kept[t] = value
    return part


def differences(parts: list[Part], params: Any, xs: Float[np.ndarray, "time inputs"]) -> tuple[float, float, str]:
    """Distances of `parts` from the library in float64 and in the dtype of params, and the name of that."""
    dtype = jnp.result_type(*jax.tree.leaves(params))
    with jax.enable_x64(True):
        in_float64 = difference(parts, *cast(params, xs, jnp.float64))
        return in_float64, difference(parts, *cast(params, xs, dtype)), dtype.name


def difference(parts: list[Part], params: Any, xs: Any, reverse: bool = False) -> float:
    """The greatest difference between `parts` and what `apply` and `inspect.trace` give of params and xs."""
    ys, states = stack.apply(params, xs, reverse=reverse)
    last, _ = stack.apply(params, xs, reverse=reverse, return_sequences=False)
    traces = trace(params, xs, reverse=reverse)
    top = [part for part in parts if part.layer == parts[-1].layer]
    pairs = [
        (np.concatenate([part.steps.h for part in top], axis=-1), ys),
        (np.concatenate([part.final[0] for part in top]), last),
    ]
    for part, state, seen in zip(parts, flat(states), flat(traces), strict=True):
        pairs += [(part.final[0], state.h), (part.final[1], state.c)]
        pairs += [(getattr(part.steps, name), getattr(seen, name)) for name in "ifgoch"]
    return max(float(np.max(np.abs(ours - np.asarray(theirs, np.float64)))) for ours, theirs in pairs)


def cast(params: Any, xs: Float[np.ndarray, "time inputs"], dtype: Any) -> tuple[Any, Any]:
    """Params and xs in one dtype."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params), jnp.asarray(xs, dtype)


def flat(tree: Any) -> list[Any]:
    """States or traces of a network in the order of its parts."""
    return [leaf for part in tree for leaf in flat(part)] if isinstance(tree, tuple) else [tree]


def sigmoid(z: Float[np.ndarray, "*axes"]) -> Float[np.ndarray, "*axes"]:
    """1 / (1 + exp(-z)), which does not overflow."""
    return (1 + np.tanh(z / 2)) / 2
