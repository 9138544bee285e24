"""Any cell over time, with the contract that all layers of this package have.

before_t  = initial                  where resets_t, else state_{t-1}
y, after  = step(params, x_t, before_t)
state_t   = after                    where step t is valid, else state_{t-1}
ys_t      = y                        where step t is valid, else 0
"""

import functools
import types
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Bool, Integer

from lstmjax._src import keywords, layout, mesh, padding, remat, scan, validation

Step = Callable[[Any, Any, Any], tuple[Any, Any]]


@keywords.explained("recurrent.apply")
def apply(
    step: Step,
    params: Any,
    xs: Any,
    state: Any,
    *,
    lengths: Integer[ArrayLike, "*batch"] | None = None,
    mask: Bool[ArrayLike, "*batch time"] | None = None,
    resets: Bool[ArrayLike, "*batch time"] | None = None,
    initial: Any = None,
    reverse: bool = False,
    return_sequences: bool = True,
    return_states: bool = False,
    time_major: bool = False,
    checkpoint: bool | int = False,
    unroll: int | None = None,
) -> tuple[Any, Any]:
    """Run a step function over time.

    Padding gives outputs of 0 and holds the state; its inputs are set to 0, so that neither values nor gradients depend
    on what it contains, unless the step itself has no finite gradient at 0.

    Args:
        step: `step(params, x, state) -> (y, state)`, a pure function of one step of one sequence; the state that it
            returns has the structure, shapes and dtypes of the one that it takes, and y is any tree of arrays. It is
            compiled once for each function object, or method of an object: make it once, not at each call.
        params: a tree of arrays, the same for all steps and sequences.
        xs: an array or a tree of arrays, [*batch, time, features]; any number of batch axes, none included.
        state: a tree of arrays [*batch, ...], the state before the first step read.
        lengths: valid steps of each sequence, integers [*batch] from 0 to time; None where all are valid.
        mask: bool [*batch, time], True where a step is valid, in any pattern; in place of lengths.
        resets: bool [*batch, time]; where True, the state returns to `initial` before that step is read.
        initial: the state of one sequence that resets restore, a tree like `state` without batch axes; None for zeros.
            It is never `state`, so that a sequence read in pieces gives what it gives as a whole.
        reverse: read valid steps in reverse order; each output stands at its own step.
        return_sequences: False returns y of the last valid step read, [*batch, ...], 0 where there is none.
        return_states: True returns the state after every step, [*batch, time, ...], in place of the final one.
        time_major: True reads and returns [time, *batch, ...] in place of [*batch, time, ...].
        checkpoint: True cuts time into about sqrt(6 * time) segments, a number into that many, of which the gradient
            keeps the first state alone and computes the rest again.
        unroll: steps in one iteration of the compiled loop; None for 1.

    Returns:
        ys, a tree of arrays [*batch, time, ...], and the state after the last valid step read.

    Raises:
        ValueError: shapes or values that do not fit, both lengths and mask; TypeError: a step that does not return
            (y, state), or returns a state of another structure, shape or dtype, and arguments of other types.

    A leaky integrator, h_t = a * h_{t-1} + (1 - a) * x_t:

    >>> def leaky(a, x, h):
    ...     h = a * h + (1 - a) * x
    ...     return h, h
    >>> ys, h = apply(leaky, 0.5, jnp.ones((8, 10, 2)), jnp.zeros((8, 2)), lengths=jnp.arange(8))
    >>> ys.shape, h.shape
    ((8, 10, 2), (8, 2))
    """
    if not callable(step):
        raise TypeError(f"step must be a function step(params, x, state) -> (y, state), got {type(step).__name__}.")
    stacked = scan.Stacked(
        outputs=validation.boolean("return_sequences", return_sequences),
        states=validation.boolean("return_states", return_states),
    )
    reverse, time_major = validation.boolean("reverse", reverse), validation.boolean("time_major", time_major)
    unroll = 1 if unroll is None else validation.positive_int("unroll", unroll)
    xs, state, initial = (
        jax.tree.map(functools.partial(validation.asarray, name), tree)
        for name, tree in (("xs", xs), ("state", state), ("initial", initial))
    )
    batch, time = _batch_and_time(xs, time_major)
    if time_major:
        mask, resets = layout.time_to(-1, "mask", mask), layout.time_to(-1, "resets", resets)
    lengths, mask, resets = validation.of_time(lengths, mask, resets, batch, time)
    initial = _initial(state, initial, len(batch))
    _check_state(state, initial, batch)
    static = reverse, stacked, time_major, unroll, remat.segments(checkpoint, time)
    # JAX scans no steps only where jit is on.
    no_jit = jax.config.jax_disable_jit and time != 0  # pyright: ignore - set as JAX is imported
    with jax.disable_jit(no_jit):
        return _compiled(step)(params, xs, state, initial, lengths, mask, resets, static)


def _batch_and_time(xs, time_major):
    """The axes that all inputs share."""
    leaves = jax.tree.leaves(xs)
    axes = "time, *batch, features" if time_major else "*batch, time, features"
    if not leaves:
        raise ValueError("xs must have at least one array, which tells the number of steps; got an empty tree.")
    shared = {leaf.shape[:-1] for leaf in leaves}
    if len(shared) != 1 or leaves[0].ndim < 2:
        raise ValueError(f"xs must have axes [{axes}], all but the last the same; got {[x.shape for x in leaves]}.")
    first, *others = shared.pop()
    return (tuple(others), first) if time_major else ((first, *others[:-1]), others[-1]) if others else ((), first)


def _initial(state, initial, axes):
    """The state of one sequence that resets restore."""
    if initial is None:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[axes:], leaf.dtype), state)
    if jax.tree.structure(initial) != jax.tree.structure(state):
        raise TypeError(
            f"initial must be a tree like state, {jax.tree.structure(state)}; got {jax.tree.structure(initial)}."
        )
    return initial


def _check_state(state, initial, batch):
    """Raise unless state has the batch axes of xs, and initial the same arrays without them."""
    for (path, leaf), one in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(initial), strict=True):
        where = jax.tree_util.keystr(path)
        if leaf.shape[: len(batch)] != batch:
            raise ValueError(f"state{where} must begin with {batch}, the batch axes of xs; got shape {leaf.shape}.")
        validation.shape(f"initial{where}", one, leaf.shape[len(batch) :], "state without its batch axes")


def _of_one(step, params):
    """The step in the form that `scan.scan` takes, whose results are checked once, while it is traced."""

    def single(state, x, _):
        results = step(params, x, state)
        if not isinstance(results, tuple) or len(results) != 2:
            raise TypeError(f"step must return (y, state), a tuple of two; got {type(results).__name__}.")
        y, after = results
        if jax.tree.structure(after) != jax.tree.structure(state):
            raise TypeError(
                f"step must return a state like the one it takes, {jax.tree.structure(state)}; got "
                f"{jax.tree.structure(after)}."
            )
        for (path, new), old in zip(jax.tree.leaves_with_path(after), jax.tree.leaves(state), strict=True):
            if jnp.shape(new) != old.shape or jnp.result_type(new) != old.dtype:
                raise TypeError(
                    f"step must return state{jax.tree_util.keystr(path)} as it takes it, {old.dtype} {old.shape}; got "
                    f"{jnp.result_type(new)} {jnp.shape(new)}. Cast the state, or what step returns."
                )
        return jax.tree.map(jnp.asarray, after), jax.tree.map(jnp.asarray, y), None

    return single


def _apply(step, params, xs, state, initial, lengths, mask, resets, static):
    reverse, stacked, time_major, unroll, segments = static
    if time_major:
        xs = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -2), xs)
    *batch, time, _ = jax.tree.leaves(xs)[0].shape
    axes = len(batch)

    def run(params, xs, state, initial, lengths, mask, resets):
        given = params, xs, state, initial, lengths, mask, resets
        params, xs, state, initial, lengths, mask, resets = mesh.match_varying_axes(given)
        masks = scan.step_masks(padding.valid_steps(lengths, mask, time), resets, reverse, mask is not None)
        xs = scan.reverse_time(jax.tree.map(lambda x: jnp.moveaxis(x, -2, 0), xs), reverse)
        xs = jax.tree.map(lambda x: padding.fill_time_major(x, masks.valid), xs)
        step_of_one = _of_one(step, params)
        if not stacked.outputs:
            step_of_one, state, initial = _with_last_output(step_of_one, xs, state, initial, axes)
            state, initial, _ = mesh.match_varying_axes((state, initial, xs))

        def over_time(state, timed):
            xs, masks = timed
            state, (ys, states, _) = scan.scan(
                step_of_one, state, initial, xs, None, masks, batch_axes=axes, stacked=stacked, unroll=unroll
            )
            return state, (ys, states)

        timed = xs, masks
        final, stacks = remat.in_segments(over_time, state, timed, segments) if segments else over_time(state, timed)
        stacks = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, axes), scan.reverse_time(stacks, reverse))
        ys, states = stacks
        if not stacked.outputs:
            final, ys = final
            states = states[0] if stacked.states else None
        return ys, states if stacked.states else final

    ys, states = mesh.with_auto_axes(run, axes)(params, xs, state, initial, lengths, mask, resets)
    if time_major:
        first = functools.partial(jax.tree.map, lambda leaf: jnp.moveaxis(leaf, axes, 0))
        ys, states = first(ys) if stacked.outputs else ys, first(states) if stacked.states else states
    return ys, states


def _with_last_output(step, xs, state, initial, axes):
    """Let the state carry y of the last valid step, 0 at first."""
    first = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1 + axes :], leaf.dtype), xs)
    one = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[axes:], leaf.dtype), state)
    y = jax.eval_shape(lambda state, x: step(state, x, None)[1], one, first)
    batch = jax.tree.leaves(xs)[0].shape[1 : 1 + axes]
    zeros = jax.tree.map(lambda leaf: jnp.zeros((*batch, *leaf.shape), leaf.dtype), y)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), y)

    def carrying(carry, x, constants):
        after, y, _ = step(carry[0], x, constants)
        return (after, y), None, None

    return carrying, (state, zeros), (initial, zero)


# By the identity of each step function, or of the object whose method it is: its weak reference, and the programs.
_programs: dict[int, tuple[Any, dict[Any, Callable[..., Any]]]] = {}


def _compiled(step: Any) -> Callable[..., Any]:
    """One jitted function for each step function, which lives as long as that, or as the object whose method it is."""
    method = getattr(step, "__func__", None)
    owner = step if method is None else step.__self__
    key = id(owner)
    try:
        reference = weakref.ref(owner, lambda _: _programs.pop(key, None))
    except TypeError:  # not weakly referable: traced at each call, as a cache would keep it
        return functools.partial(_apply, step)
    reference, programs = _programs.setdefault(key, (reference, {}))
    if method not in programs:

        def run(*arrays):
            owner = reference()
            return _apply(owner if method is None else types.MethodType(method, owner), *arrays)

        programs[method] = jax.jit(run, static_argnums=7)
    return programs[method]
