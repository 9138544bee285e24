"""Two LSTMs over the same sequences, one of which reads them in reverse order.

Schuster & Paliwal, "Bidirectional recurrent neural networks" (1997); Graves & Schmidhuber, "Framewise phoneme
classification with bidirectional LSTM and other neural network architectures" (2005).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from lstmjax import lstm
from lstmjax._src import keywords, layout, pytrees, validation
from lstmjax._src.dropout_masks import Dropout
from lstmjax._src.lstm.options import LSTMOptions
from lstmjax._src.lstm.params import check_matrices
from lstmjax.lstm import LSTMState

MERGES = {
    "concat": lambda forward, backward: jnp.concatenate([forward, backward], axis=-1),
    "sum": lambda forward, backward: forward + backward,
    "mul": lambda forward, backward: forward * backward,
    "ave": lambda forward, backward: (forward + backward) / 2,
    None: lambda forward, backward: (forward, backward),
}


@pytrees.container
class BidirectionalParams:
    """The weights of two LSTMs.

    Args:
        forward: LSTMParams of the one that reads in order.
        backward: LSTMParams of the one that reads in reverse order.
    """

    forward: Any
    backward: Any


@pytrees.named_tuple
class BidirectionalState(NamedTuple):
    """The states of two LSTMs; that of each half is the state after the last step that it read.

    Args:
        forward: LSTMState.
        backward: LSTMState.
    """

    forward: LSTMState
    backward: LSTMState


@keywords.explained("bidirectional.init", lstm.init)
def init(key: Array, inputs: int, units: int, **options: Any) -> BidirectionalParams:
    """Make the parameters of two LSTMs: twice those of `lstm.init`.

    Args:
        key: a JAX random key.
        inputs: length of one input vector.
        units: length of h and c in each direction; the outputs of both, concatenated, are twice as long.
        options: those of `lstm.init`.

    Raises:
        ValueError, TypeError: what `lstm.init` raises.

    >>> params = init(jax.random.key(0), inputs=2, units=3)
    >>> params.backward.w_x.shape
    (2, 12)
    """
    forward, backward = jax.random.split(validation.key(key))
    return BidirectionalParams(
        forward=lstm.init(forward, inputs, units, **options),
        backward=lstm.init(backward, inputs, units, **options),
    )


@keywords.explained("bidirectional.initial_state")
def initial_state(
    params: BidirectionalParams, batch: tuple[int, ...] | Any = (), *, options: LSTMOptions = LSTMOptions()
) -> BidirectionalState:
    """Make the states before the first step that each half reads; see `lstm.initial_state`."""
    validation.instance("params", params, BidirectionalParams, "bidirectional.init")
    return BidirectionalState(
        lstm.initial_state(params.forward, batch, options=options),
        lstm.initial_state(params.backward, batch, options=options),
    )


@keywords.explained("bidirectional.apply", lstm.apply)
@layout.takes_time_major
def apply(
    params: BidirectionalParams,
    xs: Float[ArrayLike, "*batch time inputs"],
    state: BidirectionalState | None = None,
    *,
    reverse: bool = False,
    return_sequences: bool = True,
    merge: str | None = "concat",
    dropout: Dropout | None = None,
    key: Array | None = None,
    **arguments: Any,
) -> tuple[Any, BidirectionalState]:
    """Run one LSTM over the valid steps in order, another in reverse order, and merge their outputs at each step.

        y_t = merge(forward_t, backward_t)

    Each half restores its initial state at `resets[b, t]` before *it* reads step t: the backward half so parts t from
    t + 1, the forward half t - 1 from t.

    Args:
        params: BidirectionalParams.
        xs: input sequences [*batch, time, inputs], floating.
        state: BidirectionalState to start from; None for `initial_state`.
        reverse: swap the directions in which the halves read.
        return_sequences: False merges the final h of each half instead: that of the last step each has read.
        merge: "concat", "sum", "mul", "ave", or None for the pair of both halves' outputs.
        dropout: Dropout; the halves draw masks of their own.
        key: a JAX random key, in training.
        arguments: lengths, mask, resets, return_states, time_major, options, deterministic, implementation, unroll and
            checkpoint, as `lstm.apply` takes them.

    Returns:
        ys [*batch, time, 2*units] with "concat", else [*batch, time, units], without the time axis where there are no
        sequences; and the BidirectionalState.

    Raises:
        ValueError, TypeError: an unknown merge, merging what does not fit, and what `lstm.apply` raises.

    >>> params = init(jax.random.key(0), inputs=2, units=3)
    >>> ys, state = apply(params, jnp.ones((8, 10, 2)), lengths=jnp.arange(8))
    >>> ys.shape, state.backward.h.shape
    ((8, 10, 6), (8, 3))
    """
    validation.instance("params", params, BidirectionalParams, "bidirectional.init")
    for name in ("forward", "backward"):
        check_matrices(f"params.{name}", getattr(params, name))
    if state is not None:
        validation.no_lengths(state)
        if type(state) in (tuple, list):
            raise TypeError(
                "state must be BidirectionalState, as bidirectional.initial_state makes it; got "
                f"{type(state).__name__}: make it BidirectionalState(forward, backward) of two LSTMState(h, c)."
            )
        validation.instance("state", state, BidirectionalState, "bidirectional.initial_state")
    if merge is not None:
        validation.one_of("merge", merge, [name for name in MERGES if name])
        if merge != "concat" and params.forward.outputs != params.backward.outputs:
            lengths = f"{params.forward.outputs} and {params.backward.outputs}"
            raise ValueError(f"merge={merge!r} needs halves with outputs of one length; got {lengths}.")
    reverse = validation.boolean("reverse", reverse)
    keys = (None, None) if key is None else jax.random.split(validation.key(key))
    halves = zip((params.forward, params.backward), state or (None, None), (reverse, not reverse), keys, strict=True)
    (forward, forward_state), (backward, backward_state) = [
        lstm.apply(
            half,
            xs,
            half_state,
            reverse=direction,
            return_sequences=return_sequences,
            dropout=dropout,
            key=half_key,
            **arguments,
        )
        for half, half_state, direction, half_key in halves
    ]
    return MERGES[merge](forward, backward), BidirectionalState(forward_state, backward_state)
