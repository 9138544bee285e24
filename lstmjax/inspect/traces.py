"""Every gate, c and h at every step."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Bool, Float, Integer

from lstmjax import lstm, stack
from lstmjax._src import keywords, padding, pytrees, scan
from lstmjax._src.dropout_masks import Dropout, SequenceMasks
from lstmjax._src.lstm import arguments, implementations, variants
from lstmjax._src.lstm.options import LSTMOptions
from lstmjax.bidirectional import BidirectionalParams
from lstmjax.lstm import LSTMParams
from lstmjax.stack import StackParams


@pytrees.container
class Trace:
    """All values of an LSTM at every step, each [*batch, time, units] and 0 on padding.

    Args:
        i: input gate, what is written.
        f: forget gate, what is kept.
        g: candidate, what would be written.
        o: output gate, what is shown.
        c: cell state, f * c_{t-1} + i * g.
        h: hidden state, o * tanh(c), which is the output; [*batch, time, projection] where it is projected.
    """

    i: Any
    f: Any
    g: Any
    o: Any
    c: Any
    h: Any


@pytrees.named_tuple
class BidirectionalTrace(NamedTuple):
    """The traces of two LSTMs.

    Args:
        forward: Trace.
        backward: Trace, whose values stand at the step that was read.
    """

    forward: Trace
    backward: Trace


@keywords.explained("inspect.trace")
def trace(
    params: LSTMParams | BidirectionalParams | StackParams,
    xs: Float[ArrayLike, "*batch time inputs"],
    state: Any = None,
    *,
    lengths: Integer[ArrayLike, "*batch"] | None = None,
    mask: Bool[ArrayLike, "*batch time"] | None = None,
    resets: Bool[ArrayLike, "*batch time"] | None = None,
    reverse: bool = False,
    residual_from: int | None = None,
    merge: str = "concat",
    options: LSTMOptions = LSTMOptions(),
    dropout: Dropout | None = None,
) -> Any:
    """Compute what `apply` does, and keep every gate, c and h.

    Args:
        params: LSTMParams, BidirectionalParams or StackParams.
        xs: input sequences [*batch, time, inputs], floating.
        state: what the `apply` of such params starts from; None for its `initial_state`.
        lengths: valid steps of each sequence, integers [*batch].
        mask: bool [*batch, time], True where a step is valid; in place of lengths.
        resets: bool [*batch, time]; where True, the state returns to the initial one before that step is read.
        reverse: read valid steps in reverse order; each step's values still stand at that step.
        residual_from: as in `stack.apply`.
        merge: what a bidirectional layer hands to the next one: "concat", "sum", "mul" or "ave".
        options: LSTMOptions.
        dropout: what the LSTM was trained with: zoneout counts by its expectation, all else is off.

    Returns:
        A Trace; a BidirectionalTrace for two directions; for a stack a tuple of these, one for each layer.

    Raises:
        ValueError, TypeError: what `apply` raises.

    >>> params = lstm.init(jax.random.key(0), inputs=1, units=3)
    >>> seen = trace(params, jnp.array([[1.0], [2.0], [3.0], [4.0]]))
    >>> seen.f.shape
    (4, 3)
    >>> bool(jnp.allclose(seen.c[1], seen.f[1] * seen.c[0] + seen.i[1] * seen.g[1]))
    True
    """
    arguments = {"lengths": lengths, "mask": mask, "resets": resets, "reverse": reverse, "options": options}
    run = partial(stack.apply, deterministic=True, merge=merge, **arguments)
    run(params, xs, state, residual_from=residual_from, dropout=dropout)  # checks
    dropout = dropout or Dropout()
    zoneout = Dropout(zoneout_h=dropout.zoneout_h, zoneout_c=dropout.zoneout_c)
    if not isinstance(params, StackParams):
        return _of_layer(params, xs, state, dropout=zoneout, **arguments)
    traces = []
    for number, layer in enumerate(params.layers):
        start = None if state is None else state[number]
        traces.append(_of_layer(layer, xs, start, dropout=zoneout, **arguments))
        one, residual = StackParams((layer,)), residual_from is not None and number >= residual_from
        start = None if start is None else (start,)
        xs, _ = run(one, xs, start, residual_from=0 if residual else None, dropout=zoneout)
    return tuple(traces)


def _of_layer(params, xs, state, *, reverse, **arguments):
    if isinstance(params, LSTMParams):
        return _of_lstm(params, xs, state, reverse=reverse, **arguments)
    halves = zip((params.forward, params.backward), state or (None, None), (reverse, not reverse), strict=True)
    return BidirectionalTrace(*(_of_lstm(half, xs, at, reverse=way, **arguments) for half, at, way in halves))


def _of_lstm(params, xs, state, *, lengths, mask, resets, reverse, options, dropout):
    arrays, _ = arguments.validate(params, xs, state, lengths, mask, resets, None, options, dropout, "scan")
    return _run(params, *arrays, reverse=reverse, options=options, dropout=dropout)


@partial(jax.jit, static_argnames=("reverse", "options", "dropout"))
def _run(params, xs, state, lengths, mask, resets, *, reverse, options, dropout):
    options, time = dataclasses.replace(options, units_axis=None), xs.shape[-2]
    initial = lstm.initial_state(params)
    valid = padding.valid_steps(lengths, mask, time)
    xs = padding.fill_mask(xs, valid)
    params, xs, state = implementations.promote_dtypes(params, xs, state, options)
    params = variants.sum_biases(params)

    def step(before, x, _):
        z = variants.preactivations(params, x, before, options, SequenceMasks())
        i, f, g, o, _ = variants.gates(params, z, before.c, options, SequenceMasks())
        after = variants.step(params, x, before, options, dropout)
        return after, Trace(i=i, f=f, g=g, o=o, c=after.c, h=after.h), None

    _, (trace, _, _) = scan.scan(
        step,
        state,
        initial,
        scan.reverse_time(jnp.moveaxis(xs, -2, 0), reverse),
        None,
        scan.step_masks(valid, resets, reverse, mask is not None),
        batch_axes=xs.ndim - 2,
    )
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -2), scan.reverse_time(trace, reverse))
