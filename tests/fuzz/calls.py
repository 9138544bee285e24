"""The public functions, a call of each that is right, and what NumPy makes of the same arguments in float64."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import reference

from lstmjax import (
    BidirectionalParams,
    Dropout,
    HierarchyParams,
    LevelParams,
    LSTMOptions,
    LSTMParams,
    LSTMState,
    StackParams,
    bidirectional,
    conv1d,
    crf,
    dense,
    embedding,
    hierarchy,
    lstm,
    pooling,
    residual,
    stack,
    windows,
)
from lstmjax.bidirectional import BidirectionalState
from lstmjax.conv1d import Conv1DParams
from lstmjax.dense import DenseParams
from lstmjax.embedding import EmbeddingParams
from lstmjax.inspect import Trace, trace
from lstmjax.lstm import LSTMNorm
from lstmjax.residual import ResidualParams

RNG = np.random.default_rng(0)
DEFAULT = LSTMOptions()
BATCH, TIME, INPUTS, UNITS, TAGS = 2, 4, 3, 2, 3


@dataclasses.dataclass(frozen=True)
class Call:
    """A call that is right, and what it gives: None where that is drawn, and only its axes are known."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    expected: Callable[..., Any] | None = None


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def lstm_params(inputs=INPUTS, units=UNITS):
    return LSTMParams(normal(inputs, 4 * units), normal(units, 4 * units), normal(4 * units))


def both(inputs=INPUTS):
    return BidirectionalParams(lstm_params(inputs), lstm_params(inputs))


def state(*batch):
    return LSTMState(normal(*batch, UNITS), normal(*batch, UNITS))


def conv_params(kernel, inputs, units):
    return Conv1DParams(normal(kernel, inputs, units), normal(units))


def wide(tree):
    """A tree, of which leaves may be lists, in float64."""

    def is_leaf(node):
        return isinstance(node, tuple | list) and not any(map(_is_tree, node))

    return jax.tree.map(array, tree, is_leaf=is_leaf)


def _is_tree(value):
    return dataclasses.is_dataclass(value) or isinstance(value, BidirectionalState)


def array(value):
    """What came, be it a list, as float64."""
    return np.asarray(jnp.asarray(value), np.float64)


def steps(lengths, time):
    return None if lengths is None else np.minimum(np.asarray(lengths), time)


def arguments_of(options, dropout):
    given = dataclasses.asdict(options)
    for name in ("precision", "units_axis"):  # of how, not of what
        given.pop(name)
    if dropout is not None:
        given |= {"zoneout_h": dropout.zoneout_h, "zoneout_c": dropout.zoneout_c}
    return given


def recurrent(run):
    """What `run` of the reference makes of the arguments of `lstm.apply`, `bidirectional.apply` or `stack.apply`."""

    def expected(params, xs, state=None, *, lengths=None, resets=None, return_sequences=True, options=DEFAULT, **rest):
        given = arguments_of(options, rest.pop("dropout", None))
        for name in ("key", "deterministic", "implementation", "unroll", "checkpoint"):
            rest.pop(name, None)
        xs = array(xs)
        if lengths is not None:
            given["lengths"] = np.asarray(lengths)
        if resets is not None:
            given["resets"] = np.asarray(resets)
        ys, ends = run(wide(params), xs, wide(state), **given, **rest)
        if return_sequences:
            return ys, ends
        return _final(params, ends, rest.get("merge", "concat")), ends

    return expected


def _final(params, ends, merge):
    if isinstance(params, StackParams):
        return _final(params.layers[-1], ends[-1], merge)
    if isinstance(params, BidirectionalParams):
        return reference.MERGES[merge](ends[0][0], ends[1][0])
    return ends[0]


def traced(params, xs, state=None, *, reverse=False, residual_from=None, merge="concat", **rest):
    """The h and c of every step: c is what is left when the sequence is cut after it."""
    if isinstance(params, BidirectionalParams):
        forward, backward = (None, None) if state is None else state
        ways = (params.forward, forward, reverse), (params.backward, backward, not reverse)
        return [traced(half, xs, start, reverse=way, **rest) for half, start, way in ways]
    if isinstance(params, LSTMParams):
        return _traced(params, array(xs), state, reverse, **rest)
    traces = []
    for number, layer in enumerate(params.layers):
        start, one = None if state is None else state[number], StackParams((layer,))
        traces.append(traced(layer, xs, start, reverse=reverse, **rest))
        residual = 0 if residual_from is not None and number >= residual_from else None
        end = None if start is None else (start,)
        run = recurrent(reference.stack)
        xs, _ = run(one, xs, end, reverse=reverse, residual_from=residual, merge=merge, **rest)
    return traces


def _traced(params, xs, state, reverse, lengths=None, resets=None, **rest):
    run = recurrent(reference.lstm)
    h, _ = run(params, xs, state, lengths=lengths, resets=resets, reverse=reverse, **rest)
    *batch, time, _ = xs.shape
    lengths = np.full(batch, time) if lengths is None else steps(lengths, time)
    c = np.zeros((*batch, time, np.shape(params.w_h)[-1] // 4))
    for t in range(time):
        read = slice(t, time) if reverse else slice(t + 1)
        left = np.maximum(lengths - t, 0) if reverse else np.minimum(lengths, t + 1)
        some = None if resets is None else np.asarray(resets)[..., read]
        _, (_, end) = run(params, xs[..., read, :], state, lengths=left, resets=some, reverse=reverse, **rest)
        c[..., t, :] = np.where(np.expand_dims(t < lengths, -1), end, 0)
    return Trace(i=None, f=None, g=None, o=None, c=c, h=h)


def stepped(params, x, state, *, options=DEFAULT, dropout=None, deterministic=True):
    ys, ends = recurrent(reference.lstm)(params, array(x)[..., None, :], wide(state), options=options, dropout=dropout)
    return ys[..., 0, :], ends


def stepped_stack(params, x, state, *, residual_from=None, options=DEFAULT, dropout=None, deterministic=True):
    y, ends = array(x), []
    for number, (layer, before) in enumerate(zip(params.layers, state, strict=True)):
        below, (y, end) = y, stepped(layer, y, before, options=options, dropout=dropout)
        y = y + below if residual_from is not None and number >= residual_from else y
        ends.append(end)
    return y, ends


def densely(params, xs):
    return array(xs) @ array(params.w) + array(params.bias)


def embedded(params, tokens):
    return array(params.table)[np.asarray(tokens).astype(int)]


def masked(xs, lengths):
    if lengths is None:
        return xs
    inside = np.arange(xs.shape[-2]) < np.asarray(lengths)[..., None]
    return np.where(inside[..., None], xs, 0)


def convolved(params, xs, *, stride=1, dilation=1, causal=True, lengths=None):
    w, bias, xs = array(params.w), array(params.bias), masked(array(xs), lengths)
    outside = (len(w) - 1) * dilation
    left = outside if causal else outside // 2
    ys = np.zeros((*xs.shape[:-2], -(-xs.shape[-2] // stride), w.shape[-1])) + bias
    for t in range(ys.shape[-2]):
        for k in range(len(w)):
            at = t * stride + k * dilation - left
            ys[..., t, :] += (xs[..., at, :] if 0 <= at < xs.shape[-2] else np.zeros(w.shape[1])) @ w[k]
    return masked(ys, None if lengths is None else -(-np.asarray(lengths) // stride))


def blocks(params, xs, *, dilations=None, strides=None, activation="relu", dropout=0.0, key=None, lengths=None):
    act, ys = reference.ACTIVATIONS[activation], masked(array(xs), lengths)
    of = zip(params, dilations or [2**i for i in range(len(params))], strides or [1] * len(params), strict=True)
    for block, dilation, stride in of:
        f = act(convolved(block.first, ys, dilation=dilation, stride=stride))
        f = act(convolved(block.second, f, dilation=dilation))
        ys = act(f + (ys if block.shortcut is None else convolved(block.shortcut, ys, stride=stride)))
    return masked(ys, None if lengths is None else -(-np.asarray(lengths) // math.prod(strides or [1])))


def pooled(pool):
    """`pool` of the valid steps of each sequence, 0 where there are none."""

    def expected(xs, *, lengths=None):
        xs = array(xs)
        ys = np.zeros((*xs.shape[:-2], xs.shape[-1]))
        for b in np.ndindex(xs.shape[:-2]):
            valid = xs[b][: None if lengths is None else int(np.asarray(lengths)[b])]
            ys[b] = pool(valid) if len(valid) else 0
        return ys

    return expected


def pooled_windows(xs, window, *, stride=None, lengths=None):
    xs, stride = array(xs), stride or window
    ys = np.zeros((*xs.shape[:-2], -(-xs.shape[-2] // stride), xs.shape[-1]))
    for b in np.ndindex(xs.shape[:-2]):
        valid = xs[b][: None if lengths is None else int(np.asarray(lengths)[b])]
        for j in range(-(-len(valid) // stride)):
            ys[(*b, j)] = valid[j * stride : j * stride + window].max(axis=0)
    return ys


def looked_back(series, steps, *, horizon=1, stride=1):
    series = np.asarray(jnp.asarray(series))
    starts = range(0, series.shape[-2] - steps - horizon + 1, stride)
    within = np.stack([series[..., s : s + steps, :] for s in starts], axis=-3)
    return within, np.stack([series[..., s + steps + horizon - 1, :] for s in starts], axis=-2)


def laid_out(sequence, rows, steps):
    sequence = np.asarray(jnp.asarray(sequence))
    count = len(sequence) // (rows * steps)
    read, left = sequence[: count * rows * steps], sequence[count * rows * steps :]
    return read.reshape(rows, count, steps, *sequence.shape[1:]).swapaxes(0, 1), left


class Paths:
    """All paths of tags through each sequence, and their scores."""

    def __init__(self, params, emissions, lengths=None, allowed=None, **_):
        emissions, forbidden = array(emissions), -np.inf
        *self.batch, self.time, self.tags = emissions.shape
        of = [array(getattr(params, name)) for name in ("start", "transitions", "end")]
        if allowed is not None:
            may = (np.asarray(getattr(allowed, name)) for name in ("start", "transitions", "end"))
            of = [np.where(may, scores, forbidden) for may, scores in zip(may, of, strict=True)]
        start, moves, end = of
        self.of = {}
        for b in np.ndindex(*self.batch):
            length = self.time if lengths is None else int(np.asarray(lengths)[b])
            paths = np.array(list(itertools.product(range(self.tags), repeat=length)), int)
            paths = paths.reshape(self.tags**length, length)
            scores = emissions[b][np.arange(length), paths].sum(axis=1)
            if length:
                scores = (
                    scores + start[paths[:, 0]] + moves[paths[:, :-1], paths[:, 1:]].sum(axis=1) + end[paths[:, -1]]
                )
                parts = emissions[b][np.arange(length), paths], start[paths[:, :1]], moves[paths[:, :-1], paths[:, 1:]]
                parts = np.concatenate([*parts, end[paths[:, -1:]]], axis=1)
                no = (parts == forbidden).any(axis=1) & ~np.isnan(parts).any(axis=1)
                scores = np.where(no, forbidden, scores)  # whatever else may be infinite
            self.of[b] = paths, scores

    def each(self, function, *axes):
        ys = np.zeros((*self.batch, *axes))
        for b, (paths, scores) in self.of.items():
            with np.errstate(invalid="ignore"):
                ys[b] = function(b, paths, scores)
        return ys


def log_sum(scores):
    top = scores.max()
    return top if not np.isfinite(top) else top + np.log(np.exp(scores - top).sum())


def within_float32(expected):
    """Infinite scores, and such that float32 loses all others beside them, are not compared."""

    @functools.wraps(expected)
    def of(params, emissions, *rest, **named):
        scores = np.concatenate([array(leaf).ravel() for leaf in (*jax.tree.leaves(params), emissions)])
        if not (np.abs(scores[scores > -np.inf]) > 1e3).any():
            return expected(params, emissions, *rest, **named)

    return of


@within_float32
def partitioned(params, emissions, *, lengths=None, allowed=None, **_):
    return Paths(params, emissions, lengths, allowed).each(lambda b, paths, scores: log_sum(scores))


@within_float32
def likelihood(params, emissions, tags, *, lengths=None, allowed=None, **_):
    def of(b, paths, scores):
        path = np.asarray(tags)[b][: paths.shape[1]]
        score = scores[(paths == path).all(axis=1)][0]
        total = log_sum(scores)
        return score if score == -np.inf and not np.isnan(total) else score - total

    return Paths(params, emissions, lengths, allowed).each(of)


@within_float32
def marginal(params, emissions, *, lengths=None, allowed=None, **_):
    all_paths = Paths(params, emissions, lengths, allowed)

    def of(b, paths, scores):
        ys = np.zeros((all_paths.time, all_paths.tags))
        if scores.max() != -np.inf:
            shares = np.exp(scores - log_sum(scores))
            for t in range(paths.shape[1]):
                ys[t] = np.bincount(paths[:, t], shares, all_paths.tags)
        return ys

    return all_paths.each(of, all_paths.time, all_paths.tags)


@within_float32
def decoded(params, emissions, *, lengths=None, allowed=None):
    """Scores alone: of several best paths any will do."""
    return None, Paths(params, emissions, lengths, allowed).each(lambda b, paths, scores: scores.max())


@within_float32
def decoded_several(params, emissions, *, k, lengths=None, allowed=None):
    """Scores alone, likewise."""

    def best(b, paths, scores):
        return np.pad(np.sort(scores)[::-1][:k], (0, max(0, k - len(scores))), constant_values=-np.inf)

    return None, Paths(params, emissions, lengths, allowed).each(best, k)


def encoded(params, xs, *, lengths=None, code="final", merge="concat", **rest):
    run = {LSTMParams: reference.lstm, BidirectionalParams: reference.bidirectional, StackParams: reference.stack}
    merged = {} if isinstance(params, LSTMParams) else {"merge": merge}
    call = recurrent(run[type(params)])
    ys, _ = call(params, xs, lengths=lengths, return_sequences=code != "final", **merged, **rest)
    return ys if code == "final" else CODES[code](ys, lengths=lengths)


def climbed(params, tokens, *, lengths=None, code="final", return_sequences=True, merge="concat", **rest):
    """A hierarchy of two levels, the lower one of tokens."""
    words, talks = (None, None) if lengths is None else lengths
    tokens, (lower, upper) = np.asarray(tokens[0] if isinstance(tokens, tuple) else tokens), params.levels
    words = np.full(tokens.shape[:-1], tokens.shape[-1]) if words is None else np.asarray(words)
    if talks is not None:
        words = np.where(np.arange(words.shape[-1]) < np.asarray(talks)[..., None], words, 0)
    tokens = np.where(np.arange(tokens.shape[-1]) < words[..., None], tokens, 0)
    first, second = (code, code) if isinstance(code, str) else code
    codes = encoded(lower.encoder, embedded(lower.embedding, tokens), lengths=words, code=first, merge=merge, **rest)
    if not return_sequences:
        return encoded(upper.encoder, codes, lengths=talks, code=second, merge=merge, **rest)
    return recurrent(reference.bidirectional)(upper.encoder, codes, lengths=talks, merge=merge, **rest)[0]


POOLS = {"max": lambda xs: xs.max(axis=0), "mean": lambda xs: xs.mean(axis=0), "last": lambda xs: xs[-1]}
CODES = {name: pooled(pool) for name, pool in POOLS.items()}

LENGTHS = np.array([4, 2], np.int32)
RESETS = np.array([[0, 0, 1, 0], [1, 0, 0, 0]], bool)
XS = normal(BATCH, TIME, INPUTS)
RUN = {
    "lengths": LENGTHS,
    "resets": RESETS,
    "reverse": False,
    "return_sequences": True,
    "options": LSTMOptions(),
    "dropout": None,
    "key": None,
    "deterministic": True,
    "implementation": "auto",
    "unroll": None,
    "checkpoint": False,
}
SEEN = {name: RUN[name] for name in ("lengths", "resets", "reverse", "options", "dropout")}
STACK = StackParams((lstm_params(), lstm_params(UNITS)))
BOTH_STATES = BidirectionalState(state(BATCH), state(BATCH))
LAYER_STATES = (state(BATCH), state(BATCH))
CRF = crf.CRFParams(normal(TAGS), normal(TAGS, TAGS), normal(TAGS))
ALLOWED = crf.bio(["O", "B-X", "I-X"])
EMISSIONS = {"params": CRF, "emissions": normal(BATCH, TIME, TAGS)}
CHAIN = {"lengths": LENGTHS, "allowed": ALLOWED}
HIERARCHY = HierarchyParams((LevelParams(both(), EmbeddingParams(normal(6, INPUTS))), LevelParams(both(2 * UNITS))))
TOKENS = {
    "params": HIERARCHY,
    "tokens": RNG.integers(0, 6, (BATCH, 3, TIME)).astype(np.int32),
    "lengths": (np.array([[4, 0, 2], [1, 3, 9]], np.int32), np.array([3, 2], np.int32)),
}
RESIDUAL = (
    ResidualParams(conv_params(2, INPUTS, UNITS), conv_params(2, UNITS, UNITS), conv_params(1, INPUTS, UNITS)),
    ResidualParams(conv_params(2, UNITS, UNITS), conv_params(2, UNITS, UNITS)),
)
DROPOUT = {"dropout": Dropout(inputs=0.5, recurrent=0.5, zoneout_h=0.5), "key": jax.random.key(0)}
SEQUENCES = {"xs": XS, "lengths": LENGTHS}

CALLS = {
    "lstm.step": Call(
        lstm.step,
        {
            "params": lstm_params(),
            "x": normal(BATCH, INPUTS),
            "state": state(BATCH),
            "options": LSTMOptions(),
            "dropout": None,
            "deterministic": True,
        },
        stepped,
    ),
    "lstm.apply": Call(
        lstm.apply, {"params": lstm_params(), "xs": XS, "state": state(BATCH), **RUN}, recurrent(reference.lstm)
    ),
    "lstm.apply with layer norm": Call(
        lstm.apply,
        {
            "params": dataclasses.replace(
                lstm_params(),
                norm=LSTMNorm(
                    c_scale=normal(UNITS), c_bias=normal(UNITS), z_scale=normal(4 * UNITS), kind="per_gate_cell"
                ),
            ),
            "xs": XS,
            "lengths": LENGTHS,
        },
    ),
    "lstm.apply with dropout": Call(lstm.apply, {"params": lstm_params(), "xs": XS, "lengths": LENGTHS, **DROPOUT}),
    "bidirectional.apply": Call(
        bidirectional.apply,
        {"params": both(), "xs": XS, "state": BOTH_STATES, **RUN, "merge": "concat"},
        recurrent(reference.bidirectional),
    ),
    "bidirectional.apply with dropout": Call(
        bidirectional.apply, {"params": both(), "xs": XS, "lengths": LENGTHS, **DROPOUT}
    ),
    "stack.apply": Call(
        stack.apply,
        {"params": STACK, "xs": XS, "state": LAYER_STATES, **RUN, "residual_from": None, "merge": "concat"},
        recurrent(reference.stack),
    ),
    "stack.apply with dropout": Call(
        stack.apply, {"params": STACK, "xs": XS, "lengths": LENGTHS, **DROPOUT, "residual_from": 1}
    ),
    "stack.step": Call(
        stack.step,
        {
            "params": STACK,
            "x": normal(BATCH, INPUTS),
            "state": LAYER_STATES,
            "residual_from": 1,
            "options": LSTMOptions(),
            "dropout": None,
            "deterministic": True,
        },
        stepped_stack,
    ),
    "inspect.trace": Call(
        trace,
        {"params": lstm_params(), "xs": XS, "state": state(BATCH), **SEEN},
        traced,
    ),
    "inspect.trace of a stack": Call(
        trace,
        {
            "params": StackParams((both(), both(2 * UNITS))),
            "xs": XS,
            "state": (BOTH_STATES, BOTH_STATES),
            **SEEN,
            "residual_from": 1,
            "merge": "concat",
        },
        traced,
    ),
    "hierarchy.apply": Call(
        hierarchy.apply,
        {
            **TOKENS,
            "code": ("final", "last"),
            "return_sequences": True,
            "merge": "concat",
            "dropout": None,
            "key": None,
            "deterministic": True,
            "options": LSTMOptions(),
        },
        climbed,
    ),
    "hierarchy.encode": Call(
        hierarchy.encode,
        {"params": both(), "xs": XS, "lengths": LENGTHS, "code": "mean", "merge": "concat"},
        encoded,
    ),
    "crf.log_likelihood": Call(
        crf.log_likelihood,
        {
            **EMISSIONS,
            "tags": np.array([[0, 1, 2, 0], [1, 1, 99, -1]], np.int32),
            **CHAIN,
        },
        likelihood,
    ),
    "crf.log_partition": Call(crf.log_partition, {**EMISSIONS, **CHAIN}, partitioned),
    "crf.marginals": Call(crf.marginals, {**EMISSIONS, **CHAIN}, marginal),
    "crf.decode": Call(crf.decode, {**EMISSIONS, **CHAIN}, decoded),
    "crf.decode of several": Call(crf.decode, {**EMISSIONS, **CHAIN, "k": 3}, decoded_several),
    "crf.sample": Call(crf.sample, {**EMISSIONS, "key": jax.random.key(0), **CHAIN}),
    "dense.apply": Call(dense.apply, {"params": DenseParams(normal(INPUTS, UNITS), normal(UNITS)), "xs": XS}, densely),
    "dense.apply without bias": Call(
        dense.apply,
        {"params": DenseParams(normal(INPUTS, UNITS)), "xs": XS},
        lambda params, xs: array(xs) @ array(params.w),
    ),
    "embedding.attend": Call(
        embedding.attend,
        {"params": EmbeddingParams(normal(6, INPUTS)), "xs": XS},
        lambda params, xs: array(xs) @ array(params.table).T,
    ),
    "embedding.apply": Call(
        embedding.apply,
        {"params": EmbeddingParams(normal(6, INPUTS)), "tokens": np.array([[0, 5, 1], [2, 3, 4]], np.int32)},
        embedded,
    ),
    "conv1d.apply": Call(
        conv1d.apply,
        {
            "params": conv_params(2, INPUTS, UNITS),
            "xs": XS,
            "stride": 1,
            "dilation": 2,
            "causal": True,
            "lengths": LENGTHS,
        },
        convolved,
    ),
    "conv1d.apply in groups": Call(
        conv1d.apply,
        {"params": Conv1DParams(normal(2, 1, 2 * INPUTS)), "xs": XS, "groups": INPUTS, "lengths": LENGTHS},
    ),
    "residual.apply": Call(
        residual.apply,
        {
            "params": RESIDUAL,
            "xs": XS,
            "dilations": (1, 2),
            "strides": (1, 1),
            "activation": "relu",
            "dropout": 0.0,
            "key": None,
            "lengths": LENGTHS,
        },
        blocks,
    ),
    "residual.apply with dropout": Call(
        residual.apply,
        {"params": RESIDUAL, "xs": XS, "dropout": 0.5, "key": jax.random.key(0), "lengths": LENGTHS},
    ),
    "pooling.max_over_windows": Call(
        pooling.max_over_windows, {"xs": XS, "window": 2, "stride": 1, "lengths": LENGTHS}, pooled_windows
    ),
    "pooling.global_max": Call(pooling.global_max, SEQUENCES, CODES["max"]),
    "pooling.global_mean": Call(pooling.global_mean, SEQUENCES, CODES["mean"]),
    "pooling.last": Call(pooling.last, SEQUENCES, CODES["last"]),
    "windows.look_back": Call(
        windows.look_back, {"series": normal(9, 2), "steps": 3, "horizon": 2, "stride": 2}, looked_back
    ),
    "windows.stateful_batches": Call(
        windows.stateful_batches, {"sequence": np.arange(30, dtype=np.int32), "rows": 3, "steps": 4}, laid_out
    ),
    "windows.truncated_bptt": Call(
        lambda params, xs, steps, **rest: windows.truncated_bptt(lstm.apply, steps)(params, xs, **rest),
        {
            "params": lstm_params(),
            "xs": XS,
            "steps": 2,
            "state": state(BATCH),
            "lengths": LENGTHS,
            "resets": RESETS,
            "reverse": False,
            "return_sequences": True,
        },
        lambda steps, **rest: recurrent(reference.lstm)(**rest),
    ),
}

FLOATING = ("params", "xs", "emissions", "state")
ARRAYS = (*FLOATING, "lengths", "resets", "tags")


def arrays_of(arguments):
    """Those of the arguments that programs take; the others are constants of theirs."""
    return {key: value for key, value in arguments.items() if key in ARRAYS}


@functools.cache
def compiled(name, **static):
    """A call as one program: its results, and the gradient of the floating ones in each floating array."""
    call = CALLS[name]
    fixed = {key: value for key, value in (call.arguments | static).items() if key not in ARRAYS}

    def run(floating, rest):
        results = call.function(**floating, **rest, **fixed)
        leaves = [leaf for leaf in jax.tree.leaves(results) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return sum((jnp.sum(leaf * 0.7) for leaf in leaves), start=jnp.zeros(())), results

    @jax.jit
    def differentiate(arrays):
        floating = {key: arrays[key] for key in arrays if key in FLOATING}
        gradient = jax.grad(run, has_aux=True)
        slopes, results = gradient(floating, {key: arrays[key] for key in arrays if key not in floating})
        return results, slopes

    return differentiate
