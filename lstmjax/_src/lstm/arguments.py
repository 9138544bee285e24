"""Validation of what `lstm.step` and `lstm.apply` take."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.core
import numpy as np
from jaxtyping import Array

from lstmjax._src import validation
from lstmjax._src.dropout_masks import NONE, Dropout
from lstmjax._src.lstm.implementations import IMPLEMENTATIONS
from lstmjax._src.lstm.initialization import start
from lstmjax._src.lstm.options import NORM_EPSILON, LSTMOptions
from lstmjax._src.lstm.params import NORMS, LSTMNorm, LSTMParams, LSTMState, check_matrices


def _check_inputs(params: Any, name: str, x: Any, axes: str, options: Any) -> Array:
    check(params)
    validation.instance("options", options, LSTMOptions, "LSTMOptions(...)")
    if options.units_axis is not None and (params.norm is not None or params.w_projection is not None):
        part = "layer norm, which looks at all units" if params.norm is not None else "a projection"
        raise ValueError(f"options.units_axis={options.units_axis!r} does not divide units with {part}.")
    if options.projection_clip is not None and params.w_projection is None:
        raise ValueError(
            f"projection_clip={options.projection_clip!r} needs params with a projection: "
            "lstm.init(..., projection=...) makes them."
        )
    if options.norm_epsilon != NORM_EPSILON and params.norm is None:
        raise ValueError(
            f"norm_epsilon={options.norm_epsilon!r} needs params with layer norm: lstm.init(..., layer_norm=...) makes "
            "them."
        )
    x = validation.floating(name, x)
    validation.features(name, x, params.inputs, axes, "params.w_x has that many rows")
    return x


def check(params: LSTMParams) -> None:
    """Raise unless these are the weights of one LSTM, which fit each other."""
    check_matrices("params", params)
    if params.w_projection is not None:
        shape = params.units, params.outputs
        validation.shape("params.w_projection", params.w_projection, shape, "units, projection: the rows of params.w_h")
    units, hidden = params.units, "units" if params.w_projection is None else "projection"
    gates = 3 if params.w_x.shape[1] == 3 * units else 4
    every = f"{gates}*units"
    validation.shape(
        "params.w_x", params.w_x, (params.inputs, gates * units), f"inputs, {every}, with the units of params"
    )
    validation.shape("params.w_h", params.w_h, (params.outputs, gates * units), f"{hidden}, {every}")
    biases = "bias", "bias_h", "offset"
    vectors = {
        **{name: (getattr(params, name), gates * units, f"{every}, with the units of params.w_h") for name in biases},
        "w_peephole": (params.w_peephole, (gates - 1) * units, f"{gates - 1}*units"),
    }
    if params.norm is not None:
        validation.instance("params.norm", params.norm, LSTMNorm, "lstm.init")
        needed = NORMS[validation.one_of("params.norm.kind", params.norm.kind, NORMS)]
        for name in ("x_scale", "h_scale", "z_scale", "c_scale", "c_bias"):
            vector = getattr(params.norm, name)
            if name in needed:
                vectors[f"norm.{name}"] = (vector, units, "units") if name[0] == "c" else (vector, gates * units, every)
            elif vector is not None:
                raise ValueError(f"params.norm.{name} must be None with the kind {params.norm.kind!r}; got an array.")
    if params.initial is not None:
        validation.instance("params.initial", params.initial, LSTMState, "lstm.init")
        vectors |= {
            "initial.h": (params.initial.h, params.outputs, hidden),
            "initial.c": (params.initial.c, units, "units"),
        }
    for name, (vector, size, meaning) in vectors.items():
        if vector is not None or name.startswith(("norm", "initial")):
            validation.weights(f"params.{name}", vector, meaning.split(",")[0])
            validation.shape(f"params.{name}", vector, (size,), meaning)


def check_dropout(dropout: Any, key: Any) -> Dropout:
    if dropout is None:
        if key is not None:
            raise ValueError("key has no use without dropout: pass dropout=Dropout(...), or no key.")
        return NONE
    validation.instance("dropout", dropout, Dropout, "Dropout(...)")
    if key is not None:
        validation.key(key)
    if dropout.between_layers:
        raise ValueError(
            f"Dropout(between_layers={dropout.between_layers!r}) needs layers: use stack.apply, or outputs= for one."
        )
    return dropout


def are_arrays(params: Any, xs: Any, state: Any, *others: Any) -> bool:
    """True if jit takes these arguments; lists and arrays of other libraries are converted first.

    Arrays of another byte order are refused there, since a jitted function that is compiled misreads them.
    """
    leaves = (xs, state.h, state.c, *others) if isinstance(state, LSTMState) else (xs, state, *others)
    if not all(map(_is_array, map(type, leaves))):
        return False
    arrays = jax.tree.leaves((params, leaves))
    return all(leaf.dtype.isnative for leaf in arrays if isinstance(leaf, np.ndarray))


def fit(lengths: Any, xs: Any) -> bool:
    """True if lengths are between 0 and time or cannot be read; all else is validated while tracing."""
    if lengths is None or isinstance(lengths, jax.core.Tracer):
        return True
    if not validation.is_known(lengths):
        return False
    values = np.asarray(lengths)
    if getattr(xs, "ndim", 0) < 2 or values.dtype.kind not in "iu":
        return False
    return not values.size or bool(values.min() >= 0 and values.max() <= xs.shape[-2])


@cache
def _is_array(kind: type) -> bool:
    return issubclass(kind, jax.Array | jax.core.Tracer | np.ndarray | type(None))


def error_of(validate: Callable, *arguments: Any) -> Exception | None:
    """Return the error that names the argument at fault, if any, where JAX has raised one of its own."""
    try:
        validate(*arguments)
    except (TypeError, ValueError) as error:
        return error
    return None


def validate_step(params: Any, x: Any, state: Any, options: Any, dropout: Any) -> tuple[Array, LSTMState, Dropout]:
    """Return the arrays of one step, or raise an error that names the argument at fault."""
    x = _check_inputs(params, "x", x, "*batch, inputs", options)
    return x, _check_state(params, state, x.shape[:-1]), check_dropout(dropout, None)


def validate(
    params: Any,
    xs: Any,
    state: Any,
    lengths: Any,
    mask: Any,
    resets: Any,
    key: Any,
    options: Any,
    dropout: Any,
    implementation: Any,
) -> tuple[tuple[Array, LSTMState, Array | None, Array | None, Array | None], Dropout]:
    """Return xs, state, lengths, mask and resets as arrays, and Dropout; or raise an error that names the argument."""
    xs = _check_inputs(params, "xs", xs, "*batch, time, inputs", options)
    *batch, time, _ = xs.shape
    batch = tuple(batch)
    state = start(params, batch) if state is None else _check_state(params, state, batch)
    lengths, mask, resets = validation.of_time(lengths, mask, resets, batch, time)
    dropout = check_dropout(dropout, key)
    validation.one_of("implementation", implementation, ("auto", *IMPLEMENTATIONS))
    return (xs, state, lengths, mask, resets), dropout


def _check_state(params: LSTMParams, state: Any, batch: tuple[int, ...]) -> LSTMState:
    validation.no_lengths(state)
    if type(state) in (tuple, list) and len(state) == 2:
        raise TypeError(
            f"state must be LSTMState, as lstm.initial_state makes it; got {type(state).__name__}: make it "
            "LSTMState(h, c), and mind the order, which shapes do not tell: (h, c) in PyTorch and Keras, (c, h) in "
            "Flax and TensorFlow."
        )
    validation.instance("state", state, LSTMState, "lstm.initial_state")
    state = LSTMState(h=validation.floating("state.h", state.h), c=validation.floating("state.c", state.c))
    hidden = "units" if params.w_projection is None else "projection"
    validation.shape("state.h", state.h, (*batch, params.outputs), f"the batch axes of the input, then {hidden}")
    validation.shape("state.c", state.c, (*batch, params.units), "the batch axes of the input, then units")
    return state
