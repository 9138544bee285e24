"""Windows against plain slices, and truncated gradients against pieces whose state is stopped by hand."""

import itertools
from functools import cache, partial

import covering
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstmjax import bidirectional, lstm, stack, windows
from lstmjax.windows import look_back, stateful_batches, truncated_bptt

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def drawn(init, *sizes):
    """Parameters in the shapes of `init`, drawn by NumPy."""
    return jax.tree.map(lambda leaf: normal(*leaf.shape) / 2, jax.eval_shape(lambda key: init(key, *sizes), KEY))


PARAMS = drawn(lstm.init, 2, 3)
STACK = drawn(stack.init, 2, (3, 3))
XS = normal(4, 11, 2)
STATE = lstm.LSTMState(normal(4, 3), normal(4, 3))
LENGTHS = np.array([11, 3, 0, 7])
RESETS = RNG.random((4, 11)) < 0.2
MEANINGS = {
    "plain": {},
    "all": {"lengths": LENGTHS, "resets": RESETS},
    "beyond": {"lengths": np.array([30, 3, -2, 12]), "resets": RESETS},  # as under jit, where values cannot be read
}


@cache
def cut(apply, steps, **options):
    """`truncated_bptt` as one program for each signature; steps None: the whole."""
    return jax.jit(partial(apply if steps is None else truncated_bptt(apply, steps), **options))


CUTS = [(3, 1, 1), (1, 1, 1), (4, 3, 2), (8, 2, 1), (2, 1, 5)]  # steps, horizon, stride


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_windows_are_slices_and_targets_come_after_them(batch):
    series = np.random.default_rng(0).normal(size=(*batch, 10, 2)).astype(np.float32)
    look = jax.jit(lambda series: [look_back(series, s, horizon=h, stride=by) for s, h, by in CUTS])
    for (steps, horizon, stride), cut in zip(CUTS, look(series), strict=True):
        found, targets = map(np.asarray, cut)
        starts = [s for s in range(0, 10, stride) if s + steps - 1 + horizon < 10]
        assert found.shape == (*batch, len(starts), steps, 2)
        assert targets.shape == (*batch, len(starts), 2)
        for n, start in enumerate(starts):
            np.testing.assert_array_equal(found[..., n, :, :], series[..., start : start + steps, :])
            np.testing.assert_array_equal(targets[..., n, :], series[..., start + steps - 1 + horizon, :])


def test_look_back_is_steps_and_not_features():
    """The tutorials' (1, look_back) is one step of many features: as long a weight matrix, and nothing recurs."""
    found, _ = jax.eval_shape(partial(look_back, steps=4), np.arange(10, dtype=np.float32)[:, None])
    assert found.shape == (6, 4, 1)
    ys, _ = jax.eval_shape(lstm.apply, jax.eval_shape(lambda: lstm.init(KEY, inputs=1, units=3)), found)
    assert ys.shape == (6, 4, 3)


def test_windows_keep_the_dtype():
    found, targets = jax.eval_shape(partial(look_back, steps=2), np.arange(6, dtype=np.int32)[:, None])
    assert (found.dtype, targets.dtype) == (jnp.int32, jnp.int32)


@pytest.mark.parametrize(("rows", "steps", "left"), [(3, 10, 0), (4, 7, 10), (1, 150, 0), (1, 1, 0), (7, 20, 10)])
@pytest.mark.parametrize("rest", [(), (2,)])
def test_every_row_goes_on_where_it_ended_and_nothing_is_lost(rows, steps, left, rest):
    sequence = np.arange(150 * (2 if rest else 1)).reshape(150, *rest)
    pieces, over = map(np.asarray, jax.jit(stateful_batches, static_argnums=(1, 2))(sequence, rows, steps))
    assert pieces.shape[1:] == (rows, steps, *rest)
    assert over.shape == (left, *rest)
    read = [np.concatenate([piece[row] for piece in pieces]) for row in range(rows)]
    np.testing.assert_array_equal(np.concatenate([*read, over]), sequence)


def test_state_carried_over_batches_is_the_state_of_one_reading():
    sequence = normal(60, 2)

    @jax.jit
    def both(params, sequence):
        pieces, _ = stateful_batches(sequence, rows=3, steps=5)

        def read(state, piece):
            ys, state = lstm.apply(params, piece, state)
            return state, ys

        state, ys = jax.lax.scan(read, lstm.initial_state(params, (3,)), pieces)
        return (jnp.concatenate(ys, axis=1), state), lstm.apply(params, sequence.reshape(3, 20, 2))

    (read, state), (whole, end) = both(PARAMS, sequence)
    np.testing.assert_allclose(read, whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.c, end.c, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: look_back(np.ones(9), 3), ["series must have axes", "(9,)", "series[:, None]"]),
        (lambda: look_back(np.ones((9, 1)), 8, horizon=2), ["8 + 2 samples", "got 9"]),
        (lambda: look_back(np.ones((9, 1)), 0), ["steps must be", "0"]),
        (lambda: look_back(np.ones((9, 1)), 3, horizon=0), ["horizon must be", "0"]),
        (lambda: look_back(np.ones((9, 1)), 3, stride=-1), ["stride must be", "-1"]),
        (lambda: stateful_batches(np.ones(29), 3, 10), ["rows * steps = 3 * 10", "(29,)"]),
        (lambda: stateful_batches(np.ones(()), 3, 10), ["sequence must have", "()"]),
        (lambda: stateful_batches(np.ones(29), 0, 10), ["rows must be", "0"]),
        (lambda: truncated_bptt(lstm.apply, 0), ["steps must be", "0"]),
        (lambda: truncated_bptt(lstm.apply, 2)(PARAMS, np.ones(2)), ["xs must have axes", "(2,)"]),
        (lambda: truncated_bptt(lstm.apply, 2)(PARAMS, XS, lengths=LENGTHS + 1), ["lengths must lie", "11", "12"]),
        (lambda: truncated_bptt(lstm.apply, 2)(PARAMS, XS, resets=RESETS[0]), ["resets must have shape (4, 11)"]),
        (lambda: truncated_bptt(lstm.apply, 2)(PARAMS, XS[..., :1]), ["xs must have 2 features"]),
    ],
)
def test_what_cannot_be_cut_is_refused(call, words, untyped):
    with pytest.raises(ValueError, match="must") as refused:
        call()
    assert [word for word in words if word not in str(refused.value)] == []


@pytest.mark.parametrize("stacked", [False, True])
def test_layer_that_reads_both_ways_is_refused(stacked):
    def two_layers(params, xs, state=None):
        below, above = state or (None, None)
        ys, below = lstm.apply(PARAMS, xs, below)
        ys, above = bidirectional.apply(params, ys, above)
        return ys, (below, above)

    apply, inputs = (two_layers, 3) if stacked else (bidirectional.apply, 2)
    with pytest.raises(ValueError, match="apply must read in one direction"):
        jax.eval_shape(truncated_bptt(apply, 2), drawn(bidirectional.init, inputs, 3), XS)


def test_stack_is_cut_as_a_layer_is():
    def last(xs, lengths, resets):
        ys, state = truncated_bptt(stack.apply, 4)(STACK, xs, lengths=lengths, resets=resets)
        return ys[:, 10].sum(), (ys, state)

    run = jax.jit(jax.grad(last, has_aux=True))
    _, ours = run(XS, LENGTHS, RESETS)
    whole = cut(stack.apply, None)(STACK, XS, lengths=LENGTHS, resets=RESETS)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    gradient, _ = run(XS, np.full(4, 11), np.zeros_like(RESETS))
    assert np.abs(gradient).max(axis=(0, 2)).astype(bool).tolist() == [False] * 8 + [True] * 3


@covering.parametrize({"meaning": list(MEANINGS), "reverse": [False, True], "steps": [1, 4, 11, 20]})
def test_values_are_those_of_one_reading(meaning, reverse, steps):
    ours, whole = (cut(lstm.apply, n, reverse=reverse)(PARAMS, XS, STATE, **MEANINGS[meaning]) for n in (steps, None))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@covering.parametrize({"meaning": list(MEANINGS), "reverse": [False, True], "steps": [4, 11, 12]})
def test_final_output_alone(meaning, reverse, steps):
    given = MEANINGS[meaning]
    y, state = cut(lstm.apply, steps, reverse=reverse, return_sequences=False)(PARAMS, XS, STATE, **given)
    _, whole = cut(lstm.apply, None, reverse=reverse)(PARAMS, XS, STATE, **given)
    np.testing.assert_allclose(y, whole.h, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(y, state.h)


def test_no_time_at_all_and_any_batch_axes():
    @jax.jit
    def run(params, xs, state):
        none, empty = truncated_bptt(lstm.apply, 4)(params, xs[:, :0], state)
        mapped = jax.vmap(lambda xs: truncated_bptt(lstm.apply, 4)(params, xs)[0])(xs)
        whole, _ = lstm.apply(params, xs)
        batches = [truncated_bptt(lstm.apply, 4)(params, some)[0] for some in (xs[0], xs.reshape(2, 2, 11, 2))]
        return none, empty, whole, mapped, batches

    none, empty, whole, mapped, (alone, two_axes) = jax.tree.map(np.asarray, run(PARAMS, XS, STATE))
    assert none.shape == (4, 0, 3)
    np.testing.assert_array_equal(empty.c, STATE.c)
    for ys, expected in ((alone, whole[0]), (two_axes, whole.reshape(2, 2, 11, 3)), (mapped, whole)):
        np.testing.assert_allclose(ys, expected, rtol=1e-5, atol=1e-6)


@covering.parametrize(
    {
        "batch": [(), (0,), (2,), (2, 0), (2, 3)],
        "time": [0, 7],
        "steps": [1, 3, 9],
        "reverse": [False, True],
        "return_sequences": [False, True],
        "given": [(), ("lengths",), ("lengths", "resets")],
    }
)
def test_any_sizes_give_the_shapes_of_one_reading(batch, time, steps, reverse, return_sequences, given):
    xs, masks = jax.ShapeDtypeStruct((*batch, time, 2), jnp.float32), {}
    specs = {"lengths": (batch, jnp.int32), "resets": ((*batch, time), jnp.bool_)}
    masks = {name: jax.ShapeDtypeStruct(*specs[name]) for name in given}
    options = {"reverse": reverse, "return_sequences": return_sequences}
    ours, whole = (
        jax.eval_shape(partial(apply, **options), PARAMS, xs, **masks)
        for apply in (truncated_bptt(lstm.apply, steps), lstm.apply)
    )
    assert ours[0] == whole[0]
    assert jax.tree.leaves(ours) == jax.tree.leaves(whole)


@pytest.mark.parametrize(
    ("reverse", "steps"),
    [
        # Gradients of a single piece in either direction are in the test of pieces stopped by hand.
        pytest.param(reverse, steps, marks=pytest.mark.slow if (reverse, steps) in ((False, 11), (True, 1)) else [])
        for reverse in (False, True)
        for steps in (1, 4, 11)
    ],
)
def test_output_sees_back_to_the_start_of_its_piece_and_no_further(reverse, steps):
    xs = XS[0]
    jacobian = jax.jit(jax.jacrev(lambda xs: truncated_bptt(lstm.apply, steps)(PARAMS, xs, reverse=reverse)[0]))(xs)
    sees = np.abs(np.asarray(jacobian)).max(axis=(1, 3)) > 0
    for t, s in itertools.product(range(11), range(11)):
        before = s >= t if reverse else s <= t
        assert sees[t, s] == (before and s // steps == t // steps), (t, s)


def chosen(where, one, other):
    return jax.tree.map(lambda a, b: jnp.where(where[:, None], a, b), one, other)


def by_hand(params, xs, state, valid, stopped, resets):
    """Step after step; a sequence's state is stopped where it goes on into another piece: masks [batch, time]."""

    def step(state, now):
        x, valid, stopped, reset = now
        state = chosen(stopped, jax.lax.stop_gradient(state), state)
        fresh = chosen(reset, lstm.initial_state(params, (len(x),)), state)
        y, after = lstm.step(params, x, fresh)
        return chosen(valid, after, state), chosen(valid, y, jnp.zeros_like(y))

    steps = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), (xs, valid, stopped, resets))
    end, ys = jax.lax.scan(step, state, steps)
    return jnp.swapaxes(ys, 0, 1), end


WEIGHTS = normal(4, 13, 3)


def slopes(read, **options):
    """Of the parameters, the inputs and the first state; from every output and from the final state."""

    @jax.jit
    def run(params, xs, state, weights, masks):
        def loss(*arguments):
            ys, end = read(*arguments, **masks, **options)
            return jnp.sum(jnp.concatenate([ys, end.h[:, None], end.c[:, None]], axis=1) * weights)

        return jax.grad(loss, argnums=(0, 1, 2))(params, xs, state)

    return run


slopes_by_hand = slopes(by_hand)


@covering.parametrize({"meaning": list(MEANINGS), "reverse": [False, True], "steps": [3, 11]})
def test_gradient_is_that_of_pieces_stopped_by_hand(meaning, reverse, steps):
    given = MEANINGS[meaning]
    run = slopes(truncated_bptt(lstm.apply, steps), reverse=reverse)
    found = run(PARAMS, XS, STATE, WEIGHTS, given)

    lengths, resets = given.get("lengths", np.full(4, 11)), given.get("resets", np.zeros((4, 11), bool))
    lengths = np.clip(lengths, 0, 11)
    boundary = np.arange(11) + reverse  # between this step and the one read before it
    valid, cut_here = np.arange(11) < lengths[:, None], (boundary % steps == 0) & (boundary > 0)
    stopped = cut_here & (boundary < lengths[:, None])
    masks = {"valid": valid, "stopped": stopped, "resets": resets}
    xs, weights = XS, WEIGHTS
    if reverse:
        xs, masks = jax.tree.map(lambda leaf: leaf[:, ::-1], (xs, masks))
        weights = np.concatenate([weights[:, 10::-1], weights[:, 11:]], axis=1)
    params, xs, state = slopes_by_hand(PARAMS, xs, STATE, weights, masks)
    expected = params, np.asarray(xs)[:, ::-1] if reverse else xs, state
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_gradient_of_several_batch_axes_of_few_steps_and_of_none():
    """As those of one axis, which are compared with pieces by hand; of one reading; and of nothing read."""
    given = MEANINGS["beyond"]["lengths"], RESETS
    weights = WEIGHTS[:, :11]

    def loss(apply, params, xs, state, lengths, resets):
        ys, end = apply(params, xs, state, lengths=lengths, resets=resets, reverse=True)
        return jnp.sum(ys * weights.reshape(ys.shape)[..., : ys.shape[-2], :]) + end.h.sum() + 2 * end.c.sum()

    def slopes(apply, *arguments):
        return jax.grad(partial(loss, apply), argnums=(0, 1, 2))(*arguments)

    @jax.jit
    def run(params, xs, state, lengths, resets):
        two_axes = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), (xs, state, lengths, resets))
        ended = jax.grad(lambda state: truncated_bptt(lstm.apply, 3)(params, xs[:, :0], state)[1].c.sum())(state)
        return (
            [slopes(truncated_bptt(lstm.apply, 3), params, *some) for some in ((xs, state, lengths, resets), two_axes)],
            [
                slopes(apply, params, xs, state, lengths, resets)
                for apply in (truncated_bptt(lstm.apply, 20), lstm.apply)
            ],
            ended,
        )

    (one_axis, two_axes), (few_steps, whole), ended = run(PARAMS, XS, STATE, *given)
    two_axes = two_axes[0], *jax.tree.map(lambda leaf: leaf.reshape(4, *leaf.shape[2:]), two_axes[1:])
    for found, expected in ((two_axes, one_axis), (few_steps, whole)):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)
    np.testing.assert_array_equal(ended.c, np.ones((4, 3)))
    np.testing.assert_array_equal(ended.h, np.zeros((4, 3)))


def test_time_is_one_loop_however_many_pieces():
    def size(time):
        def loss(params, xs):
            return truncated_bptt(lstm.apply, 5)(params, xs)[0].sum()

        return len(jax.jit(jax.grad(loss)).lower(PARAMS, np.ones((4, time, 2), np.float32)).as_text().splitlines())

    assert size(10) == size(200)


def test_state_is_carried_in_the_dtype_of_the_whole():
    params, xs = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (PARAMS, XS))
    for start in (None, STATE):
        ours, whole = (jax.eval_shape(run, params, xs, start) for run in (truncated_bptt(lstm.apply, 4), lstm.apply))
        assert [leaf.dtype for leaf in jax.tree.leaves(ours)] == [leaf.dtype for leaf in jax.tree.leaves(whole)]


def test_module_is_exported():
    import lstmjax

    assert lstmjax.windows is windows


def test_a_residual_stack_says_its_last_in_the_piece_where_it_ends():
    params = drawn(stack.init, 2, (2, 2))
    xs = normal(4, 9, 2)
    arguments = {"lengths": np.array([9, 2, 5, 0])}
    options = {"residual_from": 0, "return_sequences": False}
    for reverse in (False, True):
        whole, ended = (cut(stack.apply, n, reverse=reverse, **options)(params, xs, **arguments) for n in (None, 3))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-6), ended, whole)
