"""The LSTM: one step, the loop's entrance, and which implementation runs.

    z_t        = x_t W_x + h_{t-1} W_h + b           four pre-activations side by side: i, f, g, o
    i, f, g, o = sigmoid(z_i), sigmoid(z_f), tanh(z_g), sigmoid(z_o)
    c_t        = f * c_{t-1} + i * g                 the cell state: forget some, write some
    h_t        = o * tanh(c_t)                       the hidden state, which is the output

`units` is the length of h and of c, whatever the number of time steps; the parameters are
4 * units * (inputs + units + 1) numbers. Hochreiter & Schmidhuber, "Long short-term memory" (1997), with
the forget gate of Gers, Schmidhuber & Cummins, "Learning to forget" (2000). `lstmjax._src.lstm.cell` has the
same as code, with all that a cell may have beside: peepholes, projection, layer norm, clips.
"""

import dataclasses
import math
from functools import cache, partial
from itertools import takewhile
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Integer

from lstmjax._src import dropout_masks, keywords, mesh, padding, scan, validation
from lstmjax._src.dropout_masks import Dropout, Masks
from lstmjax._src.lstm import cell, fused
from lstmjax._src.lstm.cell import LSTMNorm as LSTMNorm
from lstmjax._src.lstm.cell import LSTMParams as LSTMParams
from lstmjax._src.lstm.cell import LSTMState as LSTMState
from lstmjax._src.lstm.initialization import init as init
from lstmjax._src.lstm.initialization import initial_state as initial_state
from lstmjax._src.lstm.options import NORM_EPSILON, LSTMOptions


@keywords.explained("lstm.step")
def step(
    params: LSTMParams,
    x: Float[ArrayLike, "*batch inputs"],
    state: LSTMState,
    *,
    options: LSTMOptions = LSTMOptions(),
    dropout: Dropout | None = None,
    key: Array | None = None,
    deterministic: bool = False,
) -> tuple[Float[Array, "*batch outputs"], LSTMState]:
    """Compute one step, the module's equations, as a stream or an agent needs it.

    Args:
        params: LSTMParams.
        x: one input [*batch, inputs], floating.
        state: LSTMState of [*batch, units].
        options: LSTMOptions.
        dropout: as in `apply`, which draws the same masks for one step.
        key: a JAX random key, in training: the same at each step of a sequence for the masks that all its steps share;
            zoneout is drawn anew with another key alone.
        deterministic: True in evaluation, as in `apply`.

    Returns:
        y [*batch, units], equal to h but for what is dropped from it, and the new LSTMState.

    Raises:
        ValueError: shapes that do not fit; TypeError: x is not floating, or params or state is something else.

    >>> params = init(jax.random.key(0), inputs=2, units=3)
    >>> y, state = step(params, jnp.ones((8, 2)), initial_state(params, batch=(8,)))
    >>> y.shape
    (8, 3)
    """
    key = dropout_masks.key_of(dropout, key, deterministic)
    if key is not None:
        one = validation.floating("x", x)[..., None, :]
        return apply(params, one, state, return_sequences=False, options=options, dropout=dropout, key=key)
    if not _are_arrays(params, x, state):
        x, state, _ = _checked_step(params, x, state, options, dropout)
    try:
        return _step(params, x, state, options, dropout)
    except (TypeError, ValueError, OverflowError):
        if named := _refused(_checked_step, params, x, state, options, dropout):
            raise named from None
        raise


@keywords.explained("lstm.apply")
def apply(
    params: LSTMParams,
    xs: Float[ArrayLike, "*batch time inputs"],
    state: LSTMState | None = None,
    *,
    lengths: Integer[ArrayLike, "*batch"] | None = None,
    resets: Bool[ArrayLike, "*batch time"] | None = None,
    reverse: bool = False,
    return_sequences: bool = True,
    options: LSTMOptions = LSTMOptions(),
    dropout: Dropout | None = None,
    key: Array | None = None,
    deterministic: bool = False,
    implementation: str = "auto",
    unroll: int | None = None,
    checkpoint: bool | int = False,
) -> tuple[Float[Array, "*batch time outputs"] | Float[Array, "*batch outputs"], LSTMState]:
    """Run the LSTM over time.

    Padding gives outputs of 0, holds the state, and reaches no value and no gradient, whatever it contains.
    The dtype of the outputs is the common one of params, xs and state.h, or options.precision.

    Args:
        params: LSTMParams.
        xs: input sequences [*batch, time, inputs], floating; any number of batch axes, none included.
        state: LSTMState [*batch, units] to start from; None for `initial_state`.
        lengths: valid steps of each sequence, integers [*batch] from 0 to time; None where all are valid. Under
            jit their values cannot be read: one above time then counts as time, a negative one as 0
            (`lstmjax.checked` reports them).
        resets: bool [*batch, time]; where True, the state returns to `initial_state` before that step is read.
        reverse: read valid steps last to first; each output still stands at its own step.
        return_sequences: False returns the final h as ys and stacks nothing over time.
        options: LSTMOptions.
        dropout: Dropout; None for neither dropout nor zoneout.
        key: a JAX random key, in training; one key gives the same masks on every implementation, and to every example
            of `jax.vmap` and every shard of `jax.shard_map` that is given it: split it for those.
        deterministic: True in evaluation: no key is needed, zoneout counts by its expectation, nothing is dropped.
        implementation: "scan", "fused" (with derivatives of its own), "pallas_tpu" (a kernel for the standard cell,
            never timed on a TPU yet, which a CPU interprets, slowly) or "auto", the fastest of the others; `explain`
            tells which one runs.
        unroll: steps in one iteration of the compiled loop; None for 1, but several on the fused path off CPU. The
            kernel has a number of its own.
        checkpoint: True cuts time into about sqrt(6 * time) segments, a number into that many, of which the gradient
            keeps the first state alone and computes the rest again; for sequences too long for the memory.

    Returns:
        ys [*batch, time, units], or [*batch, units] without return_sequences, projection in place of units where h
        is projected; and the LSTMState after the last valid step read.

    Raises:
        ValueError: shapes or values that do not fit, an unknown implementation or one that cannot run, a key
            without dropout, dropout with neither a key nor deterministic=True, checkpoint where the number of steps
            is symbolic.
        TypeError: xs not floating, lengths not integers, resets not bool, params or state something else.

    >>> params = init(jax.random.key(0), inputs=1, units=3)
    >>> xs = jnp.array([[1.0], [2.0], [3.0], [4.0]])
    >>> ys, state = apply(params, xs)
    >>> ys.shape, bool((ys[-1] == state.h).all())
    ((4, 3), True)
    """
    reverse = validation.boolean("reverse", reverse)
    return_sequences = validation.boolean("return_sequences", return_sequences)
    key = dropout_masks.key_of(dropout, key, deterministic)
    unroll = None if unroll is None else validation.positive_int("unroll", unroll)
    segments = 0
    if checkpoint is not False or not _are_arrays(params, xs, state, lengths, resets) or not _fit(lengths, xs):
        xs, state, lengths, resets = checked(params, xs, state, lengths, resets, key, options, dropout, implementation)
        segments = _segments(checkpoint, xs.shape[-2])
    static = reverse, return_sequences, options, dropout, implementation, unroll, segments
    try:
        return _apply(params, xs, (state, lengths, resets, key), static)
    except (TypeError, ValueError, OverflowError):
        if named := _refused(checked, params, xs, state, lengths, resets, key, options, dropout, implementation):
            raise named from None
        raise


@keywords.explained("lstm.explain", apply)
def explain(
    params: LSTMParams,
    xs: Float[ArrayLike, "*batch time inputs"],
    state: LSTMState | None = None,
    *,
    implementation: str = "auto",
    **arguments: Any,
) -> str:
    """Say which implementation `apply` would run with the same arguments, and why no faster one.

    Returns:
        One line for the implementation that runs, and one for each faster one that does not.

    Raises:
        ValueError, TypeError: what `apply` raises.

    >>> params = init(jax.random.key(0), inputs=2, units=3)
    >>> print(explain(params, jnp.ones((10, 2)), implementation="scan"))
    scan runs
    pallas_tpu does not: implementation='scan' was asked for
    fused does not: implementation='scan' was asked for
    """
    jax.eval_shape(lambda: apply(params, xs, state, implementation=implementation, **arguments))
    options = arguments.get("options", LSTMOptions())
    key = None if arguments.get("deterministic") else arguments.get("key")
    dropout = _check_dropout(arguments.get("dropout"), key)
    *batch, time, _ = jnp.shape(xs)

    def prepared():
        inputs, start, *_ = checked(params, xs, state, None, None, key, options, dropout, implementation)
        masks = dropout_masks.draw(dropout, key, params, tuple(batch), time)
        return *promoted(params, inputs, start, options)[:2], masks

    if implementation != "auto":
        faster = takewhile(lambda name: name != implementation, IMPLEMENTATIONS)
        whys = {name: f"implementation={implementation!r} was asked for" for name in faster}
    else:
        params, xs, masks = jax.eval_shape(prepared)
        whys = {"pallas_tpu": _why_no_kernel(params, xs, options, dropout, masks)}
    chosen = AUTO if implementation == "auto" else implementation
    return "\n".join([f"{chosen} runs", *(f"{name} does not: {why}" for name, why in whys.items())])


@partial(jax.jit, static_argnames=("options", "dropout"))
def _step(params, x, state, options, dropout):
    x, state, dropout = _checked_step(params, x, state, options, dropout)
    axis = mesh.units_axis(options.units_axis)
    single = partial(cell.step, options=dataclasses.replace(options, units_axis=axis), dropout=dropout, masks=Masks())
    for _ in range(x.ndim - 1):
        single = jax.vmap(single, in_axes=(None, 0, 0))

    def run(params, x, state):
        params, x, state = promoted(params, x, state, options)

        def whole(params, state, initial, masks, x, clock=None):
            del initial, masks, clock
            return single(params, *mesh.varying_alike((x, state)))

        part = whole if axis is None else mesh.divided(whole, axis, state)
        return part(cell.merged(params), state, None, Masks(), x)

    state = mesh.automatic(run, x.ndim - 1, options.units_axis)(params, x, state)
    return state.h, state


@partial(jax.jit, static_argnums=3)
def _apply(params, xs, arrays, static):
    """Check and run: while it is traced, and so once for all calls with the same shapes and dtypes."""
    state, lengths, resets, key = arrays
    reverse, return_sequences, options, dropout, implementation, unroll, segments = static
    xs, state, lengths, resets = checked(params, xs, state, lengths, resets, key, options, dropout, implementation)
    dropout = _check_dropout(dropout, key)
    *batch, time, _ = xs.shape

    def run(params, xs, state, lengths, resets, masks):
        clock = scan.read_by(lengths, resets, time, reverse=reverse, unroll=unroll)
        # Filled before all else, so that no array in between holds the NaN of padding, at which jax.debug_nans stops.
        xs = scan.in_order(padding.fill(xs, lengths), reverse, axis=-2)
        masks = masks.at(scan.in_order(masks.in_loop()[1], reverse))
        ys, state = _read(
            params,
            xs,
            state,
            clock,
            masks,
            dropout=dropout,
            return_sequences=return_sequences,
            options=options,
            implementation=implementation,
            segments=segments,
        )
        return scan.in_order(ys, reverse and return_sequences, axis=-2), state

    masks = dropout_masks.draw(dropout, key, params, tuple(batch), time)
    return mesh.automatic(run, xs.ndim - 2, options.units_axis)(params, xs, state, lengths, resets, masks)


@partial(jax.jit, static_argnames=("dropout", "return_sequences", "options", "implementation", "segments"))
def _read(params, xs, state, clock, masks, *, dropout, return_sequences, options, implementation, segments):
    """Run over xs [*batch, time, inputs] in the order in which they stand."""
    options = dataclasses.replace(options, units_axis=mesh.units_axis(options.units_axis))
    initial = initial_state(params)
    params, xs, state = promoted(params, xs, state, options)
    if xs.shape[-2] == 0:  # a loop of no steps is one that JAX does not run where jit is disabled
        ys, *_ = mesh.varying_alike((jnp.zeros((*xs.shape[:-1], params.outputs), xs.dtype), xs, state))
        return ys if return_sequences else state.h, state
    implementation = AUTO if implementation == "auto" else implementation
    initial = LSTMState(h=initial.h.astype(xs.dtype).astype(state.c.dtype), c=initial.c.astype(state.c.dtype))
    # Wide again where a gradient adds up over segments or steps, and narrowed in them, as widely as c is kept.
    wide = cell.merged(jax.tree.map(lambda leaf: leaf.astype(state.c.dtype), params))
    if masks.recurrent_weights is not None:
        wide = dataclasses.replace(wide, w_h=wide.w_h * masks.recurrent_weights.astype(wide.w_h.dtype))

    def run(*arguments):
        wide, state, initial, masks, xs, clock = mesh.varying_alike(arguments)
        constants, steps = masks.in_loop()

        def loop(state, xs, steps, clock):
            if masks.inputs is not None:
                xs = xs * jnp.broadcast_to(jnp.expand_dims(masks.inputs.astype(xs.dtype), -2), xs.shape)
            run = IMPLEMENTATIONS[implementation]
            ys, state = run(wide, xs, state, initial, constants.at(steps), clock, options, dropout, return_sequences)
            return jnp.moveaxis(ys, 0, -2) if return_sequences else None, state

        if segments:
            return scan.in_segments(loop, state, xs, steps, clock, segments)
        return loop(state, xs, steps, clock)

    if options.units_axis is not None:
        run = mesh.divided(run, options.units_axis, (xs if return_sequences else None, state))
    in_loop = dataclasses.replace(masks, outputs=None, recurrent_weights=None)
    ys, state = run(wide, state, initial, in_loop, xs, clock)
    ys = state.h if ys is None else ys
    if masks.outputs is not None:
        mask = jnp.expand_dims(masks.outputs, -2) if return_sequences else masks.outputs
        ys *= jnp.broadcast_to(mask.astype(ys.dtype), ys.shape)
    return ys, state


def _scan(params, xs, state, initial, masks, clock, options, dropout, return_sequences):
    constants, steps = masks.in_loop()

    def single(state, now, constants):
        x, step = now
        return cell.step(cell.narrowed(params, x), x, state, options, dropout, constants.at(step)), None

    ys, state, _ = scan.forward(single, state, initial, xs, steps, constants, clock, return_sequences=return_sequences)
    return ys, state


def _pallas_tpu(*arguments):
    from lstmjax._src.lstm.pallas_tpu import rules  # Pallas takes as long to load as all else

    return rules.run(*arguments)


# The kernel has never run on its hardware, so that "auto" leaves it to those who name it.
AUTO = "fused"
IMPLEMENTATIONS = {"pallas_tpu": _pallas_tpu, "fused": fused.run, "scan": _scan}


def _why_no_kernel(params: Any, xs: Any, options: LSTMOptions, dropout: Dropout, masks: Masks) -> str:
    """Why "auto" does not take the kernel."""
    if jax.default_backend() != "tpu":
        return "there is no TPU here"
    from lstmjax._src.lstm.pallas_tpu import rules

    refused = rules.refusal(params, xs, options, dropout, masks)
    return refused or "nobody has timed it on a TPU; implementation='pallas_tpu' runs it"


def _check(params: Any, name: str, x: Any, axes: str, options: Any) -> Array:
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
    cell.check_matrices("params", params)
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
        needed = cell.NORMS[validation.one_of("params.norm.kind", params.norm.kind, cell.NORMS)]
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


def _check_dropout(dropout: Any, key: Any) -> Dropout:
    if dropout is None:
        if key is not None:
            raise ValueError("key has no use without dropout: pass dropout=Dropout(...), or no key.")
        return Dropout()
    validation.instance("dropout", dropout, Dropout, "Dropout(...)")
    if key is not None:
        validation.key(key)
    if dropout.between_layers:
        raise ValueError(
            f"Dropout(between_layers={dropout.between_layers!r}) needs layers: use stack.apply, or outputs= for one."
        )
    return dropout


def _segments(checkpoint: Any, time: int) -> int:
    """Number of segments, 0 for no checkpoints.

    A gradient keeps about six times as much of a step inside a segment (z, c, h, x and their cotangents) as of a state
    between segments, so that sqrt(6 * time) of them take the least memory; if possible all of one length.
    """
    if isinstance(checkpoint, bool | np.bool_) and not checkpoint:
        return 0
    if not isinstance(time, int):
        raise ValueError(f"checkpoint={checkpoint!r} cuts a known number of steps; that of xs is left open: {time}.")
    if not isinstance(checkpoint, bool | np.bool_):
        return validation.positive_int("checkpoint", checkpoint)
    return scan.even(time, max(1, math.isqrt(6 * time)))


def _are_arrays(params: Any, xs: Any, state: Any, *others: Any) -> bool:
    """Whether jit takes these as they are; lists and arrays of other libraries are converted first.

    Arrays of another byte order are refused there: once it has compiled, jit would read them as they stand.
    """
    leaves = (xs, state.h, state.c, *others) if isinstance(state, LSTMState) else (xs, state, *others)
    if not all(map(_is_array, map(type, leaves))):
        return False
    arrays = jax.tree.leaves((params, leaves))
    return all(leaf.dtype.isnative for leaf in arrays if isinstance(leaf, np.ndarray))


def _fit(lengths: Any, xs: Any) -> bool:
    """Whether lengths lie within time, if their values can be read; all else is checked while tracing."""
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


def _refused(check, *arguments):
    """The error that names the argument at fault, where there is one; JAX may have met it first."""
    try:
        check(*arguments)
    except (TypeError, ValueError) as error:
        return error


def _checked_step(params, x, state, options, dropout):
    """What `_step` takes, or an error that names the argument at fault."""
    x = _check(params, "x", x, "*batch, inputs", options)
    return x, _check_state(params, state, x.shape[:-1]), _check_dropout(dropout, None)


def checked(params, xs, state, lengths, resets, key, options, dropout, implementation):
    """The arrays that `_apply` takes, or an error that names the argument at fault."""
    xs = _check(params, "xs", xs, "*batch, time, inputs", options)
    *batch, time, _ = xs.shape
    batch = tuple(batch)
    state = initial_state(params, batch) if state is None else _check_state(params, state, batch)
    lengths = None if lengths is None else validation.lengths(lengths, batch, time)
    resets = None if resets is None else validation.resets(resets, batch, time)
    _check_dropout(dropout, key)
    validation.one_of("implementation", implementation, ("auto", *IMPLEMENTATIONS))
    return xs, state, lengths, resets


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


def promoted(
    params: LSTMParams, x: Array, state: LSTMState, options: LSTMOptions
) -> tuple[LSTMParams, Array, LSTMState]:
    """Bring all to one dtype, the common one if options name none, and c to at least float32."""
    dtype = jnp.dtype(options.precision or jnp.result_type(x, state.h, *jax.tree.leaves(params)))
    wide = (
        validation.at_least_float32(dtype)
        if options.precision
        else jnp.result_type(state.c, validation.at_least_float32(dtype))
    )
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)  # of NumPy too, where jit is disabled
    return params, x.astype(dtype), LSTMState(h=state.h.astype(dtype), c=state.c.astype(wide))
