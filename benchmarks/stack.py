"""Two bidirectional layers over sequences of different lengths: the stack, its four parts one by one, and Flax."""

import dataclasses
import importlib
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks import peers, race
from benchmarks.markdown import origin, sizes, table, used
from benchmarks.peers import OURS, Peer, Prepared, compiled
from lstmjax import BidirectionalParams, bidirectional, interop, lstm, stack

SHAPES = [(32, 100, 64, 128), (32, 100, 128, 128), (16, 200, 256, 256), (1, 200, 128, 128)]
PARTS, FLAX = "its parts", "Flax nnx"


@dataclasses.dataclass(frozen=True)
class Problem:
    """Weights, of the stack or of one part, inputs, lengths, and the gradient of the outputs, which is 0 at padding."""

    params: Any
    xs: np.ndarray
    lengths: np.ndarray
    dy: np.ndarray


def problem(batch: int, steps: int, inputs: int, units: int) -> Problem:
    """Lengths from half of the steps to all."""
    params = stack.init(jax.random.key(0), inputs, (units, units), bidirectional=True)
    rng = np.random.default_rng(0)
    lengths = rng.integers(steps // 2, steps + 1, batch).astype(np.int32)
    xs, dy = (rng.normal(size=(batch, steps, size)).astype(np.float32) for size in (inputs, 2 * units))
    return Problem(jax.tree.map(np.asarray, params), xs, lengths, dy * _valid(lengths, steps))


def reference(given: Problem) -> dict[str, np.ndarray]:
    """The arrays in float64: `peers.reference` of each sequence without its padding."""
    lower, upper = given.params.layers
    ys, dx, dw = np.zeros(given.dy.shape), np.zeros(given.xs.shape), 0.0
    for row, length in enumerate(given.lengths):
        xs, dy = given.xs[row : row + 1, :length], given.dy[row : row + 1, :length]
        between = _both_ways(lower, xs, np.zeros((1, length, upper.forward.inputs)))["ys"]
        above = _both_ways(upper, between, dy)
        below = _both_ways(lower, xs, above["dx"])
        ys[row, :length], dx[row, :length] = above["ys"][0], below["dx"][0]
        dw = dw + np.concatenate([below["dw"], above["dw"]])
    return {"ys": ys, "dx": dx, "dw": np.asarray(dw)}


def _both_ways(params: BidirectionalParams, xs: np.ndarray, dy: np.ndarray) -> dict[str, np.ndarray]:
    first, second = np.split(dy, 2, axis=-1)
    forward = peers.reference(peers.Problem(params.forward, xs, first))
    backward = peers.reference(peers.Problem(params.backward, xs[:, ::-1], second[:, ::-1]))
    return {
        "ys": np.concatenate([forward["ys"], backward["ys"][:, ::-1]], axis=-1),
        "dx": forward["dx"] + backward["dx"][:, ::-1],
        "dw": np.concatenate(
            [half[name].ravel() for half in (forward, backward) for name in ("dw_x", "dw_h", "dbias")]
        ),
    }


def _valid(lengths: np.ndarray, steps: int) -> np.ndarray:
    return (np.arange(steps) < lengths[:, None])[..., None].astype(np.float32)


def ours(kind: str, given: Problem) -> Prepared:
    def apply(params, xs, lengths):
        return stack.apply(params, xs, lengths=lengths)[0]

    return _on_jax(kind, given, given.params, apply, lambda slopes: slopes)


def flax_nnx(kind: str, given: Problem) -> Prepared:
    nnx: Any = importlib.import_module("flax.nnx")

    def rnn(half):
        return nnx.RNN(nnx.OptimizedLSTMCell(half.inputs, half.units, rngs=nnx.Rngs(0)))

    layers = [nnx.Bidirectional(rnn(layer.forward), rnn(layer.backward)) for layer in given.params.layers]
    module = nnx.Sequential(*layers)
    nnx.update(module, interop.to_flax(given.params, module))
    graph, weights, rest = nnx.split(module, nnx.Param, ...)

    def apply(weights, xs, lengths):
        for layer in nnx.merge(graph, weights, rest, copy=True).layers:
            xs = layer(xs, seq_lengths=lengths)
        return xs

    return _on_jax(kind, given, weights, apply, interop.from_flax)


def parts(kind: str, given: Problem) -> Prepared:
    """Each direction of each layer by itself, with what it reads and is told in the stack, one after another."""
    lower, upper = given.params.layers

    def layer(params, xs):
        return bidirectional.apply(params, xs, lengths=given.lengths)[0]

    between = layer(lower, given.xs)
    _, back = jax.vjp(lambda xs: layer(upper, xs), between)
    prepared = []
    for params, xs, dy in (lower, given.xs, *back(given.dy)), (upper, between, given.dy):
        for half, slopes, reverse in zip(
            (params.forward, params.backward), np.split(dy, 2, -1), (False, True), strict=True
        ):
            apply = partial(_half, reverse=reverse)
            prepared.append(_on_jax(kind, Problem(half, xs, given.lengths, slopes), half, apply, lambda slopes: slopes))

    def arrays(results):
        made = [one.arrays(result) for one, result in zip(prepared, results, strict=True)]
        if kind == "forward":
            return {"ys": np.concatenate([one["ys"] for one in made[2:]], axis=-1)}
        return {"dx": made[0]["dx"] + made[1]["dx"], "dw": np.concatenate([one["dw"] for one in made])}

    return Prepared(lambda: [one.run() for one in prepared], arrays)


def _half(params, xs, lengths, *, reverse):
    return lstm.apply(params, xs, lengths=lengths, reverse=reverse)[0]


def _on_jax(kind: str, given: Problem, weights: Any, apply: Callable, back: Callable[[Any], Any]) -> Prepared:
    """`apply(weights, xs, lengths) -> ys`; `back` takes gradients of `weights` to those of `given.params`."""

    def loss(weights, xs, lengths, dy):
        return (apply(weights, xs, lengths) * dy).sum()

    def arrays(result):
        if kind == "forward":
            return {"ys": np.asarray(result) * _valid(given.lengths, given.xs.shape[1])}
        slopes = [np.ravel(leaf) for leaf in jax.tree.leaves(back(result[0]))]
        return {"dx": np.asarray(result[1]), "dw": np.concatenate(slopes)}

    if kind == "forward":
        return compiled(arrays, apply, weights, given.xs, given.lengths)
    return compiled(arrays, jax.grad(loss, argnums=(0, 1)), weights, given.xs, given.lengths, given.dy)


PEERS = {
    OURS: Peer(ours, ("lstmjax", "jax")),
    PARTS: Peer(parts, ("lstmjax", "jax")),
    FLAX: Peer(flax_nnx, ("flax",)),
}


def section(results: dict[str, Any]) -> str:
    """A row for each shape and kind: ours, how many times as long the others take, and the largest ratios."""
    taken = {(tuple(cell["shape"]), cell["kind"], cell["peer"]): cell["seconds"] for cell in results["cells"]}
    others = [name for name in PEERS if name != OURS and any(name in key for key in taken)]
    cases = [(shape, kind) for shape, kind, name in taken if name == OURS]
    rows = []
    for case in cases:
        base = taken[*case, OURS]
        ratios = [race.ratio(taken[*case, name], base) for name in others]
        times = [f"{middle:.2f} ({low:.2f} to {high:.2f})" for middle, low, high in ratios]
        rows.append([f"{sizes(case[0])}, {case[1]}", race.seconds(statistics.median(base)), *times])
    lines = []
    for name in others:
        most = {case: race.ratio(taken[*case, OURS], taken[*case, name])[0] for case in cases}
        (shape, kind), ratio = max(most.items(), key=lambda item: item[1])
        lines.append(f"- Against {name}, the stack takes x {ratio:.2f} at most, at {sizes(shape)}, {kind}.")
    intro = (
        "Two bidirectional layers over sequences of half to all of T steps; its parts are the two directions of each "
        "layer, compiled and run one by one with the same lengths and what they read in the stack; Flax nnx is a "
        "Bidirectional of two RNN for each layer."
    )
    head = ["B, T, inputs, units", OURS, *(f"{name} /" for name in others)]
    return "\n".join(
        [
            "## Two bidirectional layers with lengths",
            "",
            f"{origin(results)}. {intro}",
            "",
            *table(head, rows),
            "",
            *lines,
            "",
            *used(results["cells"]),
            "",
        ]
    )
