"""Windows against plain slices, and truncated gradients against pieces whose state is stopped by hand."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstmjax import bidirectional, lstm, stack, windows
from lstmjax.windows import look_back, stateful_batches, truncated

KEY = jax.random.key(0)
PARAMS = lstm.init(KEY, inputs=2, units=3)
XS = jax.random.normal(jax.random.key(1), (4, 11, 2))
STATE = lstm.LSTMState(*jax.random.normal(jax.random.key(2), (2, 4, 3)))
LENGTHS = jnp.array([11, 3, 0, 7])
RESETS = jax.random.bernoulli(jax.random.key(3), 0.2, (4, 11))
MEANINGS = {"plain": {}, "all": {"lengths": LENGTHS, "resets": RESETS}}


@pytest.mark.parametrize(("steps", "horizon", "stride"), [(3, 1, 1), (1, 1, 1), (4, 3, 2), (8, 2, 1), (2, 1, 5)])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_windows_are_slices_and_targets_come_after_them(batch, steps, horizon, stride):
    series = np.random.default_rng(0).normal(size=(*batch, 10, 2)).astype(np.float32)
    found, targets = look_back(series, steps, horizon=horizon, stride=stride)
    starts = [s for s in range(0, 10, stride) if s + steps - 1 + horizon < 10]
    assert found.shape == (*batch, len(starts), steps, 2)
    assert targets.shape == (*batch, len(starts), 2)
    for n, start in enumerate(starts):
        np.testing.assert_array_equal(found[..., n, :, :], series[..., start : start + steps, :])
        np.testing.assert_array_equal(targets[..., n, :], series[..., start + steps - 1 + horizon, :])


def test_look_back_is_steps_and_not_features():
    """The tutorials' (1, look_back) is one step of many features: as long a weight matrix, and nothing recurs."""
    found, _ = look_back(jnp.arange(10.0)[:, None], steps=4)
    assert found.shape == (6, 4, 1)
    ys, _ = lstm.apply(lstm.init(KEY, inputs=1, units=3), found)
    assert ys.shape == (6, 4, 3)


def test_windows_keep_the_dtype():
    found, targets = look_back(np.arange(6, dtype=np.int32)[:, None], steps=2)
    assert (found.dtype, targets.dtype) == (jnp.int32, jnp.int32)


@pytest.mark.parametrize(("rows", "steps", "left"), [(3, 10, 0), (4, 7, 10), (1, 150, 0), (1, 1, 0), (7, 20, 10)])
@pytest.mark.parametrize("rest", [(), (2,)])
def test_every_row_goes_on_where_it_ended_and_nothing_is_lost(rows, steps, left, rest):
    sequence = np.arange(150 * (2 if rest else 1)).reshape(150, *rest)
    pieces, over = map(np.asarray, stateful_batches(sequence, rows, steps))
    assert pieces.shape[1:] == (rows, steps, *rest)
    assert over.shape == (left, *rest)
    read = [np.concatenate([piece[row] for piece in pieces]) for row in range(rows)]
    np.testing.assert_array_equal(np.concatenate([*read, over]), sequence)


def test_state_carried_over_batches_is_the_state_of_one_reading():
    sequence = jax.random.normal(KEY, (60, 2))
    pieces, _ = stateful_batches(sequence, rows=3, steps=5)
    state, read = lstm.initial_state(PARAMS, (3,)), []
    for piece in pieces:
        ys, state = lstm.apply(PARAMS, piece, state)
        read.append(ys)
    whole, end = lstm.apply(PARAMS, sequence.reshape(3, 20, 2))
    np.testing.assert_allclose(jnp.concatenate(read, axis=1), whole, rtol=1e-5, atol=1e-6)
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
        (lambda: truncated(lstm.apply, 0), ["steps must be", "0"]),
        (lambda: truncated(lstm.apply, 2)(PARAMS, np.ones(2)), ["xs must have axes", "(2,)"]),
        (lambda: truncated(lstm.apply, 2)(PARAMS, XS, lengths=LENGTHS + 1), ["lengths must lie", "11", "12"]),
        (lambda: truncated(lstm.apply, 2)(PARAMS, XS, resets=RESETS[0]), ["resets must have shape (4, 11)"]),
        (lambda: truncated(lstm.apply, 2)(PARAMS, XS[..., :1]), ["xs must have 2 features"]),
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
        truncated(apply, 2)(bidirectional.init(KEY, inputs=inputs, units=3), XS)


def test_stack_is_cut_as_a_layer_is():
    params = stack.init(KEY, inputs=2, units=(3, 3))
    arguments = {"lengths": LENGTHS, "resets": RESETS}
    ours, whole = (run(params, XS, **arguments) for run in (truncated(stack.apply, 4), stack.apply))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda xs: truncated(stack.apply, 4)(params, xs)[0][:, 10].sum())(XS)
    assert np.abs(gradient).max(axis=(0, 2)).astype(bool).tolist() == [False] * 8 + [True] * 3


@pytest.mark.parametrize("steps", [1, 4, 11, 20])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("meaning", MEANINGS)
def test_values_are_those_of_one_reading(meaning, reverse, steps):
    cut = jax.jit(partial(truncated(lstm.apply, steps), reverse=reverse))
    ours = cut(PARAMS, XS, STATE, **MEANINGS[meaning])
    whole = lstm.apply(PARAMS, XS, STATE, reverse=reverse, **MEANINGS[meaning])
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("meaning", MEANINGS)
def test_final_output_alone(meaning, reverse):
    options = {"reverse": reverse, "return_sequences": False, **MEANINGS[meaning]}
    for steps in (4, 11, 12):
        y, state = truncated(lstm.apply, steps)(PARAMS, XS, **options)
        np.testing.assert_allclose(y, lstm.apply(PARAMS, XS, **options)[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(y, state.h)


def test_no_time_at_all_and_any_batch_axes():
    ys, state = truncated(lstm.apply, 4)(PARAMS, XS[:, :0], STATE)
    assert ys.shape == (4, 0, 3)
    np.testing.assert_array_equal(state.c, STATE.c)
    for batch in [(), (2, 2)]:
        xs = XS[0] if not batch else XS.reshape(2, 2, 11, 2)
        ys, _ = truncated(lstm.apply, 4)(PARAMS, xs)
        np.testing.assert_allclose(ys, lstm.apply(PARAMS, xs)[0], rtol=1e-5, atol=1e-6)
    mapped = jax.vmap(lambda xs: truncated(lstm.apply, 4)(PARAMS, xs)[0])(XS)
    np.testing.assert_allclose(mapped, lstm.apply(PARAMS, XS)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 4, 11])
@pytest.mark.parametrize("reverse", [False, True])
def test_output_sees_back_to_the_start_of_its_piece_and_no_further(reverse, steps):
    xs = XS[0]
    jacobian = jax.jit(jax.jacrev(lambda xs: truncated(lstm.apply, steps)(PARAMS, xs, reverse=reverse)[0]))(xs)
    sees = np.abs(jacobian).max(axis=(1, 3)) > 0
    for t, s in itertools.product(range(11), range(11)):
        before = s >= t if reverse else s <= t
        assert sees[t, s] == (before and s // steps == t // steps), (t, s)


def by_hand(params, xs, state, steps, reverse, lengths, resets):
    """Step after step in Python; a sequence's state is stopped where it goes on into another piece."""
    time = xs.shape[1]
    lengths = jnp.full(len(xs), time) if lengths is None else lengths
    resets = jnp.zeros(xs.shape[:2], bool) if resets is None else resets
    ys = [jnp.zeros(())] * time
    for t in reversed(range(time)) if reverse else range(time):
        boundary = t + 1 if reverse else t
        if boundary % steps == 0 and boundary > 0:
            state = chosen(boundary < lengths, jax.lax.stop_gradient(state), state)
        fresh = chosen(resets[:, t], lstm.initial_state(params, (len(xs),)), state)
        y, after = lstm.step(params, xs[:, t], fresh)
        state = chosen(t < lengths, after, state)
        ys[t] = chosen(t < lengths, y, jnp.zeros_like(y))
    return jnp.stack(ys, axis=1), state


def chosen(where, one, other):
    return jax.tree.map(lambda a, b: jnp.where(where[:, None], a, b), one, other)


@pytest.mark.parametrize("steps", [3, 11])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("meaning", MEANINGS)
def test_gradient_is_that_of_pieces_stopped_by_hand(meaning, reverse, steps):
    """Of the parameters, the inputs and the first state; from every output and from the final state."""
    weights = jax.random.normal(jax.random.key(4), (4, 13, 3))
    given = {"lengths": None, "resets": None} | MEANINGS[meaning]

    def loss(read, *arguments):
        ys, end = read(*arguments, reverse=reverse, **given)
        return jnp.sum(jnp.concatenate([ys, end.h[:, None], end.c[:, None]], axis=1) * weights)

    ours = jax.jit(jax.grad(partial(loss, truncated(lstm.apply, steps)), argnums=(0, 1, 2)))
    plain = jax.grad(partial(loss, partial(by_hand, steps=steps)), argnums=(0, 1, 2))
    found, expected = ours(PARAMS, XS, STATE), plain(PARAMS, XS, STATE)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_time_is_one_loop_however_many_pieces():
    def size(time):
        def loss(params, xs):
            return truncated(lstm.apply, 5)(params, xs)[0].sum()

        return len(jax.jit(jax.grad(loss)).lower(PARAMS, jnp.ones((4, time, 2))).as_text().splitlines())

    assert size(10) == size(200)


def test_state_is_carried_in_the_dtype_of_the_whole():
    params, xs = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (PARAMS, XS))
    for start in (None, STATE):
        ours, whole = truncated(lstm.apply, 4)(params, xs, start), lstm.apply(params, xs, start)
        assert [leaf.dtype for leaf in jax.tree.leaves(ours)] == [leaf.dtype for leaf in jax.tree.leaves(whole)]


def test_module_is_exported():
    import lstmjax

    assert lstmjax.windows is windows


def test_a_residual_stack_says_its_last_in_the_piece_where_it_ends():
    params = stack.init(jax.random.key(0), 2, (2, 2))
    xs = jax.random.normal(jax.random.key(1), (4, 9, 2))
    apply = partial(stack.apply, residual_from=0)
    arguments = {"lengths": jnp.array([9, 2, 5, 0]), "return_sequences": False}
    for reverse in (False, True):
        whole, cut = (f(params, xs, reverse=reverse, **arguments) for f in (apply, windows.truncated(apply, 3)))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-6), cut, whole)
