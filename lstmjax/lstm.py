"""The LSTM: parameters, state, one step, and the loop's entrance.

    z_t        = x_t W_x + h_{t-1} W_h + b           four pre-activations side by side: i, f, g, o
    i, f, g, o = sigmoid(z_i), sigmoid(z_f), tanh(z_g), sigmoid(z_o)
    c_t        = f * c_{t-1} + i * g                 the cell state: forget some, write some
    h_t        = o * tanh(c_t)                       the hidden state, which is the output

`units` is the length of h and of c, whatever the number of time steps; the parameters are
4 * units * (inputs + units + 1) numbers. Hochreiter & Schmidhuber, "Long short-term memory" (1997), with
the forget gate of Gers, Schmidhuber & Cummins, "Learning to forget" (2000).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from itertools import takewhile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Bool, Float, Integer

from lstmjax import checks, fused, placement, recurrence
from lstmjax.options import ACTIVATIONS, LSTMOptions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LSTMParams:
    """The weights of one LSTM, as `init` makes them; columns in the order of the gates i, f, g, o.

    Args:
        w_x: input weights [inputs, 4*units].
        w_h: recurrent weights [units, 4*units].
        bias: [4*units].
    """

    w_x: Any
    w_h: Any
    bias: Any

    @property
    def inputs(self) -> int:
        """Length of one input vector x_t."""
        return self.w_x.shape[0]

    @property
    def units(self) -> int:
        """Length of h and of c."""
        return self.w_h.shape[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LSTMState:
    """What an LSTM carries from one step to the next.

    Args:
        h: hidden state [*batch, units], which is also the output.
        c: cell state [*batch, units], in float32 where h is shorter than that.
    """

    h: Any
    c: Any


def init(
    key: Array,
    inputs: int,
    units: int,
    *,
    forget_bias: float = 1.0,
    w_x_init: Callable[..., Array] = initializers.glorot_uniform(),
    w_h_init: Callable[..., Array] = initializers.orthogonal(),
    bias_init: Callable[..., Array] = initializers.zeros,
    dtype: DTypeLike = jnp.float32,
) -> LSTMParams:
    """Make the parameters of an LSTM: Glorot input weights, orthogonal recurrent weights, forget bias 1.

    Each gate's block is drawn by itself, so that every gate's own recurrent matrix is orthogonal.

    Args:
        key: a JAX random key.
        inputs: length of one input vector x_t.
        units: length of h and of c.
        forget_bias: added to the forget gate's bias (Gers et al. 2000; Jozefowicz et al. 2015).
        w_x_init: initializer `(key, shape, dtype) -> array` of [inputs, units], one call a gate.
        w_h_init: likewise of [units, units].
        bias_init: likewise of [units].
        dtype: of every parameter; float16 and bfloat16 are drawn in float32 and rounded.

    Returns:
        LSTMParams with 4 * units * (inputs + units + 1) numbers.

    Raises:
        ValueError: inputs or units is not a positive integer, or an initializer returns another shape.
        TypeError: dtype is not floating, or forget_bias no number.

    >>> params = init(jax.random.key(0), inputs=2, units=3)
    >>> params.w_x.shape, params.w_h.shape, params.bias.shape
    ((2, 12), (3, 12), (12,))
    """
    inputs, units = checks.positive_int("inputs", inputs), checks.positive_int("units", units)
    dtype = checks.floating_dtype("dtype", dtype)
    forget_bias = checks.number("forget_bias", forget_bias)
    keys = jax.random.split(key, (3, 4))

    def draw(keys, name, initializer, *shape):
        return [checks.drawn(name, initializer, key, shape, dtype) for key in keys]

    b_i, b_f, b_g, b_o = draw(keys[2], "bias_init", bias_init, units)
    return LSTMParams(
        w_x=jnp.concatenate(draw(keys[0], "w_x_init", w_x_init, inputs, units), axis=-1),
        w_h=jnp.concatenate(draw(keys[1], "w_h_init", w_h_init, units, units), axis=-1),
        bias=jnp.concatenate([b_i, b_f + jnp.asarray(forget_bias, dtype), b_g, b_o]),
    )


def initial_state(params: LSTMParams, batch: tuple[int, ...] = ()) -> LSTMState:
    """Make the state before the first step: zeros.

    Its dtype is that of params. To carry a state through a loop of your own whose inputs are wider, widen h.

    Args:
        params: LSTMParams.
        batch: the batch axes of the sequences, `xs.shape[:-2]`.

    Returns:
        LSTMState of [*batch, units].

    Raises:
        TypeError: batch is not a tuple.

    >>> initial_state(init(jax.random.key(0), inputs=2, units=3), batch=(8,)).h.shape
    (8, 3)
    """
    checks.instance("params", params, LSTMParams, "lstm.init")
    if not isinstance(batch, tuple):
        raise TypeError(f"batch must be a tuple of sizes such as (8,), or () for one sequence; got {batch!r}.")
    shape, dtype = (*batch, params.units), jnp.result_type(params.w_h)
    return LSTMState(h=jnp.zeros(shape, dtype), c=jnp.zeros(shape, checks.at_least_float32(dtype)))


def step(
    params: LSTMParams,
    x: Float[ArrayLike, "*batch inputs"],
    state: LSTMState,
    *,
    options: LSTMOptions = LSTMOptions(),
) -> tuple[Float[Array, "*batch units"], LSTMState]:
    """Compute one step, the module's equations, as a stream or an agent needs it.

    Args:
        params: LSTMParams.
        x: one input [*batch, inputs], floating.
        state: LSTMState of [*batch, units].
        options: LSTMOptions.

    Returns:
        y [*batch, units], equal to h, and the new LSTMState.

    Raises:
        ValueError: shapes that do not fit; TypeError: x is not floating, or params or state is something else.

    >>> params = init(jax.random.key(0), inputs=2, units=3)
    >>> y, state = step(params, jnp.ones((8, 2)), initial_state(params, batch=(8,)))
    >>> y.shape
    (8, 3)
    """
    x = _check(params, "x", x, "*batch, inputs", options)
    state = _check_state(params, state, x.shape[:-1])
    return _step(params, x, state, options)


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
    implementation: str = "auto",
    unroll: int = 1,
) -> tuple[Float[Array, "*batch time units"] | Float[Array, "*batch units"], LSTMState]:
    """Run the LSTM over time.

    Padding gives outputs of 0, holds the state, and reaches no value and no gradient, whatever it contains.
    The dtype of the outputs is the common one of params, xs and state.h.

    Args:
        params: LSTMParams.
        xs: input sequences [*batch, time, inputs], floating; any number of batch axes, none included.
        state: LSTMState [*batch, units] to start from; None for `initial_state`.
        lengths: valid steps of each sequence, integers [*batch] from 0 to time; None where all are valid. Under
            jit their values cannot be read: one above time then counts as time (checkify reports it).
        resets: bool [*batch, time]; where True, the state returns to `initial_state` before that step is read.
        reverse: read valid steps last to first; each output still stands at its own step.
        return_sequences: False returns the final h as ys and stacks nothing over time.
        options: LSTMOptions.
        implementation: "scan", "fused" (the standard cell with derivatives of its own) or "auto"; `explain`
            tells which one runs.
        unroll: steps in one iteration of the compiled loop.

    Returns:
        ys [*batch, time, units], or [*batch, units] without return_sequences; and the LSTMState after the
        last valid step read.

    Raises:
        ValueError: shapes or values that do not fit, an unknown implementation or one that cannot run.
        TypeError: xs not floating, lengths not integers, resets not bool, params or state something else.

    >>> params = init(jax.random.key(0), inputs=1, units=3)
    >>> xs = jnp.array([[1.0], [2.0], [3.0], [4.0]])
    >>> ys, state = apply(params, xs)
    >>> ys.shape, bool((ys[-1] == state.h).all())
    ((4, 3), True)
    """
    arguments = _checked(params, xs, state, lengths=lengths, resets=resets, options=options, unroll=unroll)
    return _apply(
        *arguments,
        reverse=checks.boolean("reverse", reverse),
        return_sequences=checks.boolean("return_sequences", return_sequences),
        options=options,
        implementation=_choose(implementation, options),
        unroll=unroll,
    )


def explain(
    params: LSTMParams,
    xs: Float[ArrayLike, "*batch time inputs"],
    state: LSTMState | None = None,
    *,
    options: LSTMOptions = LSTMOptions(),
    implementation: str = "auto",
    **arguments: Any,
) -> str:
    """Say which implementation `apply` would run with the same arguments, and why no faster one.

    Returns:
        One line for the implementation that runs, and one for each faster one that does not.

    Raises:
        ValueError, TypeError: what `apply` raises.

    >>> params = init(jax.random.key(0), inputs=2, units=3)
    >>> print(explain(params, jnp.ones((10, 2)), options=LSTMOptions(activation="relu")))
    scan runs
    fused does not: it computes the standard cell only, not activation='relu'
    """
    jax.eval_shape(lambda: apply(params, xs, state, options=options, implementation=implementation, **arguments))
    chosen = _choose(implementation, options)
    lines = [f"{chosen} runs"]
    for name in takewhile(lambda name: name != chosen, IMPLEMENTATIONS):
        reason = IMPLEMENTATIONS[name].refuses(options) or f"implementation={implementation!r} was asked for"
        lines.append(f"{name} does not: {reason}")
    return "\n".join(lines)


def _cell(params: LSTMParams, x: Array, state: LSTMState, options: LSTMOptions) -> LSTMState:
    """The equations, for one step of one sequence."""
    act, gate = ACTIVATIONS[options.activation], ACTIVATIONS[options.recurrent_activation]
    product = partial(jnp.matmul, preferred_element_type=state.c.dtype)

    z = product(x, params.w_x) + product(state.h, params.w_h) + params.bias.astype(state.c.dtype)
    z_i, z_f, z_g, z_o = jnp.split(_clip(z, options.preactivation_clip), 4)
    i, f, g, o = gate(z_i), gate(z_f), act(z_g), gate(z_o)
    c = _clip(f * state.c + i * g, options.cell_clip)
    h = o * act(c)
    return LSTMState(h=h.astype(x.dtype), c=c)


@partial(jax.jit, static_argnames="options")
def _step(params, x, state, options):
    cell = partial(_cell, options=options)
    for _ in range(x.ndim - 1):
        cell = jax.vmap(cell, in_axes=(None, 0, 0))
    state = placement.automatic(lambda *arguments: cell(*_promote(*arguments)), x.ndim - 1)(params, x, state)
    return state.h, state


@partial(jax.jit, static_argnames=("reverse", "return_sequences", "options", "implementation", "unroll"))
def _apply(params, xs, state, lengths, resets, *, reverse, return_sequences, options, implementation, unroll):
    def run(params, xs, state, lengths, resets):
        arguments = (*_promote(params, xs, state), lengths, resets)
        params, xs, state, lengths, resets = placement.varying_alike(arguments)
        xs, clock = recurrence.time_major(xs, lengths, resets, reverse=reverse, unroll=unroll)
        initial = initial_state(params)
        ys, state = IMPLEMENTATIONS[implementation].run(params, xs, state, initial, clock, options, return_sequences)
        return (jnp.moveaxis(ys, 0, -2) if return_sequences else state.h), state

    return placement.automatic(run, xs.ndim - 2)(params, xs, state, lengths, resets)


def _scan(params, xs, state, initial, clock, options, return_sequences):
    # Widened outside the loop and narrowed in it, so that the weights' gradients add up over time as widely as c does.
    wide = jax.tree.map(lambda leaf: leaf.astype(state.c.dtype), params)

    def cell(state, x):
        narrow = jax.tree.map(lambda leaf: leaf.astype(x.dtype), wide)
        return _cell(narrow, x, state, options), None

    ys, state, _ = recurrence.forward(
        cell,
        state,
        initial,
        xs,
        clock,
        return_sequences=return_sequences,
    )
    return ys, state


def _fused(params, xs, state, initial, clock, options, return_sequences):
    del options
    return fused.run(params, xs, state, initial, clock, return_sequences)


class Implementation(NamedTuple):
    """How the loop runs, and why it cannot with some options (None where it can)."""

    run: Callable[..., Any]
    refuses: Callable[[LSTMOptions], str | None]


# Fastest first: "auto" takes the first that does not refuse.
IMPLEMENTATIONS = {
    "fused": Implementation(_fused, fused.refuses),
    "scan": Implementation(_scan, lambda options: None),
}


def _choose(implementation: str, options: LSTMOptions) -> str:
    checks.one_of("implementation", implementation, ("auto", *IMPLEMENTATIONS))
    for name, (_, refuses) in IMPLEMENTATIONS.items():
        reason = refuses(options)
        if implementation == name and reason:
            raise ValueError(f'implementation={name!r} cannot run: {reason}. Use implementation="auto".')
        if implementation in (name, "auto") and not reason:
            return name
    raise AssertionError("scan refuses nothing")


def _check(params: Any, name: str, x: Any, axes: str, options: Any) -> Array:
    checks.instance("params", params, LSTMParams, "lstm.init")
    checks.instance("options", options, LSTMOptions, "LSTMOptions(...)")
    checks.weights("params.w_x", params.w_x, "inputs", "4*units")
    checks.weights("params.w_h", params.w_h, "units", "4*units")
    checks.weights("params.bias", params.bias, "4*units")
    inputs, units = params.inputs, params.units
    checks.shape("params.w_x", params.w_x, (inputs, 4 * units), "inputs, 4*units, with the units of params.w_h")
    checks.shape("params.w_h", params.w_h, (units, 4 * units), "units, 4*units")
    checks.shape("params.bias", params.bias, (4 * units,), "4*units, with the units of params.w_h")
    x = checks.floating(name, x)
    checks.features(name, x, inputs, axes, "params.w_x has that many rows")
    return x


def _checked(params, xs, state, *, lengths, resets, options, unroll):
    """The arrays that `_apply` takes, or an error that names the argument at fault."""
    xs = _check(params, "xs", xs, "*batch, time, inputs", options)
    *batch, time, _ = xs.shape
    batch = tuple(batch)
    state = initial_state(params, batch) if state is None else _check_state(params, state, batch)
    lengths = None if lengths is None else checks.lengths(lengths, batch, time)
    resets = None if resets is None else checks.resets(resets, batch, time)
    checks.positive_int("unroll", unroll)
    return params, xs, state, lengths, resets


def _check_state(params: LSTMParams, state: Any, batch: tuple[int, ...]) -> LSTMState:
    checks.instance("state", state, LSTMState, "lstm.initial_state")
    state = LSTMState(h=checks.floating("state.h", state.h), c=checks.floating("state.c", state.c))
    meaning = "the batch axes of the input, then units"
    checks.shape("state.h", state.h, (*batch, params.units), meaning)
    checks.shape("state.c", state.c, (*batch, params.units), meaning)
    return state


def _promote(params: LSTMParams, x: Array, state: LSTMState) -> tuple[LSTMParams, Array, LSTMState]:
    """Bring all to their common dtype, and c to at least float32: nothing is rounded that was not."""
    dtype = jnp.result_type(x, state.h, *jax.tree.leaves(params))
    wide = jnp.result_type(state.c, checks.at_least_float32(dtype))
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    return params, x.astype(dtype), LSTMState(h=state.h.astype(dtype), c=state.c.astype(wide))


def _clip(x: Array, bound: float | None) -> Array:
    return x if bound is None else jnp.clip(x, -bound, bound)
