"""LSTMs on top of each other: the outputs of each layer are the inputs of the next.

Graves, Mohamed & Hinton, "Speech recognition with deep recurrent neural networks" (2013).
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Integer

from lstmjax import bidirectional as two_ways
from lstmjax import lstm, pooling
from lstmjax._src import dropout_masks, keywords, layout, padding, pytrees, validation
from lstmjax._src.dropout_masks import Dropout
from lstmjax._src.lstm.options import LSTMOptions
from lstmjax._src.lstm.params import check_matrices
from lstmjax.bidirectional import BidirectionalParams
from lstmjax.lstm import LSTMParams


@pytrees.container
class StackParams:
    """The weights of a stack.

    Args:
        layers: a tuple of LSTMParams or BidirectionalParams, the first of which reads the inputs.
    """

    layers: Any


@keywords.explained("stack.init", lstm.init)
def init(
    key: Array,
    inputs: int,
    units: Sequence[int] = (64, 64),
    *,
    bidirectional: bool = False,
    merge: str = "concat",
    **options: Any,
) -> StackParams:
    """Make the parameters of a stack.

    Args:
        key: a JAX random key.
        inputs: length of one input vector.
        units: of each layer, and in each direction.
        bidirectional: whether every layer reads in both directions.
        merge: how `apply` will merge them; decides what the next layer's inputs are.
        options: those of `lstm.init`, for all layers.

    Raises:
        ValueError: units is no sequence of positive integers, an unknown merge; and what `lstm.init` raises.

    >>> params = init(jax.random.key(0), inputs=3, units=(4, 4, 1))
    >>> [layer.inputs for layer in params.layers]
    [3, 4, 4]
    """
    if not isinstance(units, tuple | list) or not units:
        raise ValueError(f"units must be a tuple with one number for each layer, such as (64, 64); got {units!r}.")
    validation.one_of("merge", merge, [name for name in two_ways.MERGES if name])
    make = two_ways.init if validation.boolean("bidirectional", bidirectional) else lstm.init
    layers = []
    for layer_key, layer_units in zip(jax.random.split(validation.key(key), len(units)), units, strict=True):
        layers.append(make(layer_key, inputs, layer_units, **options))
        inputs = outputs(layers[-1], merge)
    return StackParams(tuple(layers))


@keywords.explained("stack.initial_state")
def initial_state(params: Any, batch: tuple[int, ...] | Any = (), *, options: LSTMOptions = LSTMOptions()) -> Any:
    """Make the state before the first step: a tuple of the layers' own; see `lstm.initial_state`."""
    if isinstance(params, StackParams):
        return tuple(initial_state(layer, batch, options=options) for layer in _layers(params))
    if isinstance(params, BidirectionalParams):
        return two_ways.initial_state(params, batch, options=options)
    _check_kind(params)
    return lstm.initial_state(params, batch, options=options)


@keywords.explained("stack.step")
def step(
    params: StackParams,
    x: Float[ArrayLike, "*batch inputs"],
    state: tuple[Any, ...],
    *,
    residual_from: int | None = None,
    options: LSTMOptions = LSTMOptions(),
    dropout: Dropout | None = None,
    key: Array | None = None,
    deterministic: bool = False,
) -> tuple[Float[Array, "*batch outputs"], tuple[Any, ...]]:
    """Compute one step of every layer, none of which may be bidirectional.

    Args:
        params: StackParams.
        x: one input [*batch, inputs], floating.
        state: a tuple of the layers' states.
        residual_from: as in `apply`.
        options: LSTMOptions.
        dropout: as in `lstm.step`.
        key: as in `lstm.step`.
        deterministic: as in `lstm.step`.

    Returns:
        y [*batch, units of the last layer], and the new state.

    Raises:
        ValueError, TypeError: a bidirectional layer, which cannot step; and what `lstm.step` raises.

    >>> params = init(jax.random.key(0), inputs=2, units=(4, 3))
    >>> y, state = step(params, jnp.ones((8, 2)), initial_state(params, (8,)))
    >>> y.shape
    (8, 3)
    """
    validation.instance("params", params, StackParams, "stack.init")
    for number, layer in enumerate(_layers(params)):
        if isinstance(layer, BidirectionalParams):
            raise ValueError(f"params.layers[{number}] is bidirectional: its backward half needs the whole sequence.")
    _check_layers(params, "concat")
    _check_state(params, state)
    _check_residual(params, residual_from, "concat", True)
    _check_dropout(params, dropout)
    key = dropout_masks.key_of(dropout, key, deterministic)
    y, count = validation.floating("x", x), len(params.layers)
    states = []
    for number, (layer, layer_state, (layer_key, between)) in enumerate(
        zip(params.layers, state, _keys(key, count), strict=True)
    ):
        x, dropped = y, _dropped(y[..., None, :], dropout, between)[..., 0, :] if number else y
        y, after = lstm.step(
            layer,
            dropped,
            layer_state,
            options=options,
            dropout=_of_layer(dropout, first=number == 0, last=number == count - 1),
            key=layer_key,
            deterministic=deterministic,
        )
        y = y + x.astype(y.dtype) if _is_residual(number, residual_from) else y
        states.append(after)
    return y, tuple(states)


@keywords.explained("stack.apply", lstm.apply)
@layout.takes_time_major
def apply(
    params: StackParams | LSTMParams | BidirectionalParams,
    xs: Float[ArrayLike, "*batch time inputs"],
    state: Any = None,
    *,
    lengths: Integer[ArrayLike, "*batch"] | None = None,
    mask: Bool[ArrayLike, "*batch time"] | None = None,
    reverse: bool = False,
    return_sequences: bool = True,
    residual_from: int | None = None,
    merge: str | None = "concat",
    dropout: Dropout | None = None,
    key: Array | None = None,
    deterministic: bool = False,
    **arguments: Any,
) -> tuple[Any, Any]:
    """Run the layers one after another over whole sequences.

        xs_{k+1} = layer_k(drop(xs_k))  [+ xs_k  where k >= residual_from]

    Args:
        params: StackParams; LSTMParams or BidirectionalParams run as `lstm.apply` or `bidirectional.apply` do.
        xs: input sequences [*batch, time, inputs], floating.
        state: a tuple of the layers' states to start from; None for `initial_state`.
        lengths: valid steps of each sequence, integers [*batch].
        mask: bool [*batch, time], True where a step is valid; in place of lengths.
        reverse: read valid steps in reverse order, in every layer.
        return_sequences: False returns the last layer's final h alone (see `lstm.apply`, `bidirectional.apply`),
            to which a residual connection adds what that layer read at the same step.
        residual_from: number of the first layer, counted from 0, whose inputs are added to its outputs (He et al.,
            "Deep residual learning", 2016; Wu et al., "Google's neural machine translation system", 2016).
        merge: how the directions of bidirectional layers are merged; the one that `init` was given.
        dropout: Dropout; `inputs` drops from xs, `outputs` from the last layer's outputs before a residual is
            added, `between_layers` from what goes from one layer into the next, all else in every layer.
        key: a JAX random key, in training.
        deterministic: True in evaluation, as in `lstm.apply`.
        arguments: resets, return_states, time_major, options, implementation, unroll and checkpoint, as `lstm.apply`
            takes them.

    Returns:
        ys [*batch, time, outputs], without the time axis where there are no sequences; and the tuple of states.

    Raises:
        ValueError, TypeError: layers that do not fit each other or the residual connections; and what `lstm.apply` and
            `bidirectional.apply` raise.

    >>> params = init(jax.random.key(0), inputs=2, units=(4, 3), bidirectional=True)
    >>> ys, state = apply(params, jnp.ones((8, 10, 2)), lengths=jnp.arange(8))
    >>> ys.shape, state[0].forward.h.shape
    ((8, 10, 6), (8, 4))
    """
    arguments |= {"lengths": lengths, "mask": mask, "reverse": reverse}
    if merge is not None:
        validation.one_of("merge", merge, [name for name in two_ways.MERGES if name])
    if not isinstance(params, StackParams):
        _check_kind(params)
        arguments |= {"return_sequences": return_sequences, "dropout": dropout, "key": key}
        arguments |= {"deterministic": deterministic}
        if residual_from is not None:
            raise ValueError(f"residual_from={residual_from!r} needs StackParams, as stack.init makes them.")
        return _apply_layer(params, xs, state, merge, **arguments)
    if merge is None:
        raise ValueError("merge=None gives pairs, which a stack cannot hand on; take 'concat', 'sum', 'mul' or 'ave'.")
    _check_layers(params, merge)
    _check_residual(params, residual_from, merge, return_sequences)
    _check_dropout(params, dropout)
    state = (None,) * len(params.layers) if state is None else _check_state(params, state)
    below, return_sequences = validation.floating("xs", xs), validation.boolean("return_sequences", return_sequences)
    if residual_from is not None and below.ndim > 1:  # fewer axes are refused by the first layer
        lengths, mask, _ = validation.of_time(lengths, mask, None, below.shape[:-2], below.shape[-2])
        below = padding.fill_mask(below, padding.valid_steps(lengths, mask, below.shape[-2]))
    count = len(params.layers)
    key = dropout_masks.key_of(dropout, key, deterministic)
    keys, last = _keys(key, count), count - 1
    states = []
    for number, (layer, layer_state, (layer_key, between)) in enumerate(zip(params.layers, state, keys, strict=True)):
        sequences = return_sequences or number < last
        ys, after = _apply_layer(
            layer,
            _dropped(below, dropout, between) if number else below,
            layer_state,
            merge,
            return_sequences=sequences,
            dropout=_of_layer(dropout, first=number == 0, last=number == last),
            key=layer_key,
            deterministic=deterministic,
            **arguments,
        )
        if _is_residual(number, residual_from):
            ys += (below if sequences else _read_last(below, lengths, mask, reverse)).astype(ys.dtype)
        below = ys
        states.append(after)
    return below, tuple(states)


def outputs(params: StackParams | LSTMParams | BidirectionalParams, merge: str = "concat") -> int:
    """Length of one output of `apply`.

    >>> outputs(init(jax.random.key(0), inputs=2, units=(4, 3), bidirectional=True))
    6
    """
    if isinstance(params, StackParams):
        return outputs(params.layers[-1], merge)
    if isinstance(params, BidirectionalParams):
        return params.forward.outputs + (params.backward.outputs if merge == "concat" else 0)
    return params.outputs


def check(params: LSTMParams | BidirectionalParams | StackParams) -> None:
    """Raise unless weights fit each other, halves read the same inputs, and layers what those below put out.

    >>> check(init(jax.random.key(0), inputs=2, units=(4, 3), bidirectional=True))
    """
    if isinstance(params, StackParams):
        for layer in _layers(params):
            check(layer)
        _check_layers(params, "concat", "sum")  # "mul" and "ave" put out as much as "sum"
    elif isinstance(params, BidirectionalParams):
        for half in (params.forward, params.backward):
            lstm.check(half)
        if params.forward.inputs != params.backward.inputs:
            raise ValueError(
                "both halves of params must have as many inputs; got "
                f"{params.forward.inputs} and {params.backward.inputs}."
            )
    else:
        _check_kind(params)
        lstm.check(params)


def _check_kind(params: Any) -> None:
    """Raise unless these are the params of one layer or of several."""
    if type(params) in (tuple, list):
        raise TypeError(
            "params must be LSTMParams, BidirectionalParams or StackParams, as lstm.init, bidirectional.init or "
            f"stack.init makes it; got {type(params).__name__}: of layers upon each other make it StackParams(layers)."
        )
    kinds = LSTMParams, BidirectionalParams, StackParams
    validation.instance("params", params, kinds, "lstm.init, bidirectional.init or stack.init")


def _apply_layer(params, xs, state, merge, **arguments):
    if isinstance(params, BidirectionalParams):
        return two_ways.apply(params, xs, state, merge=merge, **arguments)
    return lstm.apply(params, xs, state, **arguments)


def _is_residual(number: int, residual_from: int | None) -> bool:
    return residual_from is not None and number >= residual_from


def _read_last(xs, lengths, mask, reverse):
    """The input at the step that is read last; 0 where there is none."""
    if reverse and mask is not None:
        xs, mask = jnp.flip(xs, axis=-2), jnp.flip(mask, axis=-1)
    elif reverse:
        return jnp.sum(xs[..., :1, :], axis=-2)
    return pooling.last(xs, lengths=lengths, mask=mask)


def _of_layer(dropout, *, first, last):
    """The rates of one layer: what lies between layers is not in them."""
    if dropout is None:
        return None
    return dataclasses.replace(
        dropout,
        inputs=dropout.inputs if first else 0.0,
        outputs=dropout.outputs if last else 0.0,
        between_layers=0.0,
    )


def _keys(key, count):
    """Keys of each layer, and of the boundary below it."""
    return [(None, None)] * count if key is None else jax.random.split(validation.key(key), (count, 2))


def _dropped(xs, dropout, key):
    if dropout is None or key is None or not dropout.between_layers:
        return xs
    steps = xs.shape[-2] if dropout.between_layers_kind == "step" else 1
    kept = dropout_masks.factors(key, dropout.between_layers, (*xs.shape[:-2], steps, xs.shape[-1]))
    return xs * kept.astype(xs.dtype)


def _layers(params: StackParams) -> tuple[Any, ...]:
    if not isinstance(params.layers, tuple | list) or not params.layers:
        raise TypeError(f"params.layers must be a tuple of at least one layer; got {params.layers!r}.")
    for number, layer in enumerate(params.layers):
        name = f"params.layers[{number}]"
        two = isinstance(layer, BidirectionalParams)
        halves = {f"{name}.{way}": getattr(layer, way) for way in ("forward", "backward")} if two else {name: layer}
        for place, half in halves.items():
            check_matrices(place, half)
    return tuple(params.layers)


def _check_layers(params: StackParams, *merges: str) -> None:
    """Raise unless every layer reads what the one below puts out by one of these merges, the same one throughout."""
    for number, (below, layer) in enumerate(itertools.pairwise(_layers(params)), 1):
        widths = {merge: outputs(below, merge) for merge in merges}
        merges = tuple(merge for merge, width in widths.items() if width == _inputs(layer))
        if not merges:
            by = f" with merge={' or '.join(map(repr, widths))}" if isinstance(below, BidirectionalParams) else ""
            raise ValueError(
                f"params.layers[{number}] must have {' or '.join(map(str, dict.fromkeys(widths.values())))} inputs, "
                f"which layer {number - 1} puts out{by}; got {_inputs(layer)}."
            )


def _inputs(layer: Any) -> int:
    return layer.forward.inputs if isinstance(layer, BidirectionalParams) else layer.inputs


def _check_state(params: StackParams, state: Any) -> tuple[Any, ...]:
    validation.no_lengths(state)
    if not isinstance(state, tuple | list) or len(state) != len(params.layers):
        raise TypeError(
            f"state must be a tuple of {len(params.layers)} states, one for each layer, as stack.initial_state makes "
            f"it, such as tuple(map(LSTMState, h, c)) of h and c [layers, *batch, units]; got {type(state).__name__}"
            f"{f' of {len(state)}' if isinstance(state, tuple | list) else ''}."
        )
    if any(hasattr(layer, "shape") for layer in state):
        raise TypeError(
            "state must have the LSTMState(h, c) of each layer; got arrays. Of h and c [layers, *batch, units] it is "
            "tuple(map(LSTMState, h, c))."
        )
    return tuple(state)


def _check_dropout(params: StackParams, dropout: Any) -> None:
    if dropout is None:
        return
    validation.instance("dropout", dropout, Dropout, "Dropout(...)")
    if dropout.between_layers and len(params.layers) == 1:
        raise ValueError(
            f"Dropout(between_layers={dropout.between_layers!r}) needs at least 2 layers, and params has 1: use "
            "outputs= for what it puts out."
        )


def _check_residual(params: StackParams, residual_from: Any, merge: str, return_sequences: bool) -> None:
    if residual_from is None:
        return
    count = len(params.layers)
    if isinstance(residual_from, bool) or not isinstance(residual_from, int) or not 0 <= residual_from < count:
        raise ValueError(f"residual_from must be the number of a layer, from 0 to {count - 1}; got {residual_from!r}.")
    for number in range(residual_from, count):
        inputs, width = _inputs(params.layers[number]), outputs(params.layers[number], merge)
        if inputs != width:
            raise ValueError(
                f"residual_from={residual_from} needs as many outputs as inputs in layer {number}; it has {inputs} "
                f"inputs and {width} outputs with merge={merge!r}."
            )
    if not return_sequences and isinstance(params.layers[-1], BidirectionalParams):
        raise ValueError(
            "return_sequences=False with a residual connection around a bidirectional last layer has no one meaning, "
            "since its halves end at different steps: take the states, or pool over the sequences."
        )
