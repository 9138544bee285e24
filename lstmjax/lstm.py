"""The LSTM: one step, the loop's entrance, and which implementation runs.

    z_t        = x_t W_x + h_{t-1} W_h + b           four pre-activations side by side: i, f, g, o
    i, f, g, o = sigmoid(z_i), sigmoid(z_f), tanh(z_g), sigmoid(z_o)
    c_t        = f * c_{t-1} + i * g                 the cell state: forget some, write some
    h_t        = o * tanh(c_t)                       the hidden state, which is the output

`units` is the length of h and of c, whatever the number of time steps; the parameters are
4 * units * (inputs + units + 1) numbers. Hochreiter & Schmidhuber, "Long short-term memory" (1997), with
the forget gate of Gers, Schmidhuber & Cummins, "Learning to forget" (2000). `lstmjax/_src/lstm/cell.py` has
the same as code, and variants.py all that a cell may have beside: peepholes, projection, layer norm, clips.
"""

import dataclasses
from functools import partial
from itertools import takewhile
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Integer

from lstmjax._src import dropout_masks, keywords, layout, mesh, padding, remat, scan, validation
from lstmjax._src.dropout_masks import Dropout, SequenceMasks, ZoneoutMasks
from lstmjax._src.lstm import implementations, unit_parallel, variants
from lstmjax._src.lstm.arguments import are_arrays, check_dropout, error_of, fit, validate, validate_step
from lstmjax._src.lstm.arguments import check as check
from lstmjax._src.lstm.implementations import IMPLEMENTATIONS as IMPLEMENTATIONS
from lstmjax._src.lstm.initialization import init as init
from lstmjax._src.lstm.initialization import initial_state as initial_state
from lstmjax._src.lstm.options import LSTMOptions
from lstmjax._src.lstm.params import LSTMNorm as LSTMNorm
from lstmjax._src.lstm.params import LSTMParams as LSTMParams
from lstmjax._src.lstm.params import LSTMState as LSTMState


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
    if not are_arrays(params, x, state):
        x, state, _ = validate_step(params, x, state, options, dropout)
    try:
        return _step(params, x, state, options, dropout)
    except (TypeError, ValueError, OverflowError):
        if named := error_of(validate_step, params, x, state, options, dropout):
            raise named from None
        raise


@keywords.explained("lstm.apply")
@layout.takes_time_major
def apply(
    params: LSTMParams,
    xs: Float[ArrayLike, "*batch time inputs"],
    state: LSTMState | None = None,
    *,
    lengths: Integer[ArrayLike, "*batch"] | None = None,
    mask: Bool[ArrayLike, "*batch time"] | None = None,
    resets: Bool[ArrayLike, "*batch time"] | None = None,
    reverse: bool = False,
    return_sequences: bool = True,
    return_states: bool = False,
    time_major: bool = False,
    options: LSTMOptions = LSTMOptions(),
    dropout: Dropout | None = None,
    key: Array | None = None,
    deterministic: bool = False,
    implementation: str = "auto",
    unroll: int | None = None,
    checkpoint: bool | int = False,
) -> tuple[Float[Array, "*batch time outputs"] | Float[Array, "*batch outputs"], LSTMState]:
    """Run the LSTM over time; equal to `recurrent.apply` with the step of an LSTM.

    Padding gives outputs of 0, holds the state, and reaches no value and no gradient, whatever it contains.
    The dtype of the outputs is the common one of params, xs and state.h, or options.precision.

    Args:
        params: LSTMParams.
        xs: input sequences [*batch, time, inputs], floating; any number of batch axes, none included.
        state: LSTMState [*batch, units] to start from; None for `initial_state`.
        lengths: valid steps of each sequence, integers [*batch] from 0 to time; None where all are valid. Under
            jit their values cannot be read: one above time then counts as time, a negative one as 0
            (`lstmjax.checked` reports them).
        mask: bool [*batch, time], True where a step is valid, in any pattern: elsewhere the state is held and outputs
            are 0. In place of lengths.
        resets: bool [*batch, time]; where True, the state returns to `initial_state` before that step is read.
        reverse: read valid steps in reverse order; each output still stands at its own step.
        return_sequences: False returns the final h as ys and stacks nothing over time.
        return_states: True returns the state after every step, [*batch, time, ...], in place of the final one.
        time_major: True reads and returns [time, *batch, ...] in place of [*batch, time, ...], of all arrays.
        options: LSTMOptions.
        dropout: Dropout; None for neither dropout nor zoneout.
        key: a JAX random key, in training; one key gives the same masks on every implementation, and to every example
            of `jax.vmap` and every shard of `jax.shard_map` that is given it: split it for those.
        deterministic: True in evaluation: no key is needed, zoneout counts by its expectation, nothing is dropped.
        implementation: "scan", "fused" (with derivatives of its own), "pallas_tpu" (a kernel for the standard cell,
            never timed on a TPU yet, which a CPU interprets, slowly) or "auto", the fastest of the others; `dispatch`
            tells which one runs.
        unroll: steps in one iteration of the compiled loop; None for 1, but several on the fused path off CPU. The
            kernel has a number of its own.
        checkpoint: True cuts time into about sqrt(6 * time) segments, a number into that many, of which the gradient
            keeps the first state alone and computes the rest again; for sequences too long for the memory.

    Returns:
        ys [*batch, time, units], or [*batch, units] without return_sequences, projection in place of units where h
        is projected; and the LSTMState after the last valid step read, or with return_states that after every step.

    Raises:
        ValueError: shapes or values that do not fit, an unknown implementation or one that cannot run, a key
            without dropout, dropout with neither a key nor deterministic=True, both lengths and mask, checkpoint
            where the number of steps is symbolic.
        TypeError: xs not floating, lengths not integers, mask or resets not bool, params or state something else.

    >>> params = init(jax.random.key(0), inputs=1, units=3)
    >>> xs = jnp.array([[1.0], [2.0], [3.0], [4.0]])
    >>> ys, state = apply(params, xs)
    >>> ys.shape, bool((ys[-1] == state.h).all())
    ((4, 3), True)
    """
    del time_major  # the decorator has transposed all arrays
    reverse = validation.boolean("reverse", reverse)
    stacked = scan.Stacked(
        outputs=validation.boolean("return_sequences", return_sequences),
        states=validation.boolean("return_states", return_states),
    )
    key = dropout_masks.key_of(dropout, key, deterministic)
    unroll = None if unroll is None else validation.positive_int("unroll", unroll)
    segments = 0
    arrays = xs, state, lengths, mask, resets
    settings = key, options, dropout, implementation
    if checkpoint is not False or not are_arrays(params, *arrays) or not fit(lengths, xs):
        arrays, _ = validate(params, *arrays, *settings)
        segments = remat.segments(checkpoint, arrays[0].shape[-2])
    static = reverse, stacked, options, dropout, implementation, unroll, segments
    try:
        return _apply(params, *arrays, key, static)
    except (TypeError, ValueError, OverflowError):
        if named := error_of(validate, params, *arrays, *settings):
            raise named from None
        raise


@keywords.explained("lstm.dispatch", apply)
def dispatch(
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
    >>> print(dispatch(params, jnp.ones((10, 2)), implementation="scan"))
    scan runs
    pallas_tpu does not: implementation='scan' was asked for
    fused does not: implementation='scan' was asked for
    """
    jax.eval_shape(lambda: apply(params, xs, state, implementation=implementation, **arguments))
    if implementation != "auto":
        faster = takewhile(lambda name: name != implementation, IMPLEMENTATIONS)
        whys = {name: f"implementation={implementation!r} was asked for" for name in faster}
    else:
        whys = {"pallas_tpu": _why_no_kernel(params, xs, state, **arguments)}
    chosen = implementations.AUTO if implementation == "auto" else implementation
    return "\n".join([f"{chosen} runs", *(f"{name} does not: {why}" for name, why in whys.items())])


def _why_no_kernel(
    params,
    xs,
    state,
    *,
    options=LSTMOptions(),
    dropout=None,
    key=None,
    deterministic=False,
    return_states=False,
    time_major=False,
    **_,
):
    """The reason why "auto" does not take the kernel."""
    key = None if deterministic else key
    dropout, xs = check_dropout(dropout, key), validation.asarray("xs", xs)
    xs = jax.eval_shape(partial(jnp.moveaxis, source=0, destination=-2), xs) if time_major else xs
    *batch, time, _ = xs.shape

    def prepared():
        arrays = jnp.zeros(xs.shape, xs.dtype), state, None, None, None
        (inputs, start, *_), _ = validate(params, *arrays, key, options, dropout, "auto")
        masks, _ = dropout_masks.draw(dropout, key, params, tuple(batch), time)
        return *implementations.promote_dtypes(params, inputs, start, options)[:2], masks

    params, xs, masks = jax.eval_shape(prepared)
    stacked = scan.Stacked(states=return_states)
    return implementations.why_no_kernel(params, xs, options, dropout, masks, stacked)


@partial(jax.jit, static_argnames=("options", "dropout"))
def _step(params, x, state, options, dropout):
    x, state, dropout = validate_step(params, x, state, options, dropout)
    axis = mesh.units_axis(options.units_axis)
    single = partial(variants.step, options=dataclasses.replace(options, units_axis=axis), dropout=dropout)
    for _ in range(x.ndim - 1):
        single = jax.vmap(single, in_axes=(None, 0, 0))

    def run(params, x, state):
        params, x, state = implementations.promote_dtypes(params, x, state, options)

        def whole(params, state, initial, masks, zoneout, x, step_masks):
            del initial, masks, zoneout, step_masks
            return single(params, *mesh.match_varying_axes((x, state)))

        part = whole if axis is None else unit_parallel.shard_units(whole, axis, state)
        return part(variants.sum_biases(params), state, None, SequenceMasks(), ZoneoutMasks(), x, None)

    state = mesh.with_auto_axes(run, x.ndim - 1, options.units_axis)(params, x, state)
    return state.h, state


@partial(jax.jit, static_argnames="static")
def _apply(params, xs, state, lengths, mask, resets, key, static):
    """Validate and run: while it is traced, and so once for all calls with the same shapes and dtypes."""
    reverse, stacked, options, dropout, implementation, unroll, segments = static
    arrays, dropout = validate(params, xs, state, lengths, mask, resets, key, options, dropout, implementation)
    xs, state, lengths, mask, resets = arrays
    *batch, time, _ = xs.shape
    masks, zoneout = dropout_masks.draw(dropout, key, params, tuple(batch), time)

    def run(params, xs, state, lengths, mask, resets, masks, zoneout):
        valid = padding.valid_steps(lengths, mask, time)
        step_masks = scan.step_masks(valid, resets, reverse, mask is not None)
        # Padding is filled first, so that no array in between holds its NaN, at which jax.debug_nans stops.
        xs = padding.fill_mask(xs, valid)
        final, ys, states = _in_order_read(
            params,
            scan.reverse_time(xs, reverse, axis=-2),
            state,
            step_masks,
            masks,
            scan.reverse_time(zoneout, reverse),
            options=options,
            dropout=dropout,
            stacked=stacked,
            implementation=implementations.AUTO if implementation == "auto" else implementation,
            unroll=unroll,
            segments=segments,
        )
        ys, states = scan.reverse_time((ys, states), reverse, axis=-2)
        ys = final.h if ys is None else ys
        if masks.outputs is not None:
            factors = jnp.expand_dims(masks.outputs, -2) if stacked.outputs else masks.outputs
            ys *= jnp.broadcast_to(factors.astype(ys.dtype), ys.shape)
        return ys, states if stacked.states else final

    placed = mesh.with_auto_axes(run, xs.ndim - 2, options.units_axis)
    return placed(params, xs, state, lengths, mask, resets, masks, zoneout)


# Jitted by itself, so that both directions of a bidirectional layer are traced and compiled once.
_in_order_read = jax.jit(
    implementations.over_time,
    static_argnames=("options", "dropout", "stacked", "implementation", "unroll", "segments"),
)
