"""Two LSTMs read one sequence from both ends: against two calls of one, in every way of merging."""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstmjax import BidirectionalParams, LSTMOptions, LSTMState, bidirectional, lstm
from lstmjax.bidirectional import BidirectionalState

KEY = jax.random.key(0)
BATCH, TIME, INPUTS, UNITS = 3, 5, 2, 4
LENGTHS = np.array([TIME, 3, 0])
PADDING = np.arange(TIME) >= LENGTHS[:, None]
RNG = np.random.default_rng(1)
XS = jnp.asarray(RNG.normal(size=(BATCH, TIME, INPUTS)), jnp.float32)
PARAMS, OTHER = jax.jit(lambda: (bidirectional.init(KEY, INPUTS, UNITS), lstm.init(KEY, INPUTS, 3)))()
STATE = BidirectionalState(
    *(LSTMState(*jnp.asarray(RNG.normal(scale=0.5, size=(2, BATCH, UNITS)), jnp.float32)) for _ in range(2))
)

UNEVEN = BidirectionalParams(PARAMS.forward, OTHER)

MERGES = {
    "concat": lambda f, b: np.concatenate([f, b], axis=-1),
    "sum": lambda f, b: f + b,
    "mul": lambda f, b: f * b,
    "ave": lambda f, b: (f + b) / 2,
    None: lambda f, b: (f, b),
}
every_merge = pytest.mark.parametrize("merge", MERGES)

same = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6))
equal = partial(jax.tree.map, np.testing.assert_array_equal)


def shapes(tree):
    return [leaf.shape for leaf in jax.tree.leaves(tree)]


def halves(xs=XS, state=STATE, *, reverse=False, params=PARAMS, **arguments):
    forward, forward_end = lstm.apply(params.forward, xs, state.forward, reverse=reverse, **arguments)
    backward, backward_end = lstm.apply(params.backward, xs, state.backward, reverse=not reverse, **arguments)
    return (forward, backward), BidirectionalState(forward_end, backward_end)


@functools.cache
def by_merge(return_sequences, reverse, state=True):
    """What every merge gives, and the two halves, in one program."""
    start = STATE if state else None

    @jax.jit
    def run(params, xs, start, lengths):
        arguments = {"lengths": lengths, "return_sequences": return_sequences, "reverse": reverse}
        merged = [bidirectional.apply(params, xs, start, merge=merge, **arguments) for merge in MERGES]
        return merged, halves(xs, start or BidirectionalState(None, None), params=params, **arguments)

    merged, expected = run(PARAMS, XS, start, LENGTHS)
    return dict(zip(MERGES, merged, strict=True)), expected


@every_merge
@pytest.mark.parametrize("return_sequences", [True, False])
@pytest.mark.parametrize("reverse", [False, True])
def test_two_lstms_merged(merge, return_sequences, reverse):
    merged, (expected, expected_end) = by_merge(return_sequences, reverse)
    same(merged[merge], (MERGES[merge](*expected), expected_end))


def test_merges_concatenated_unless_asked():
    equal(bidirectional.apply(PARAMS, XS), bidirectional.apply(PARAMS, XS, merge="concat"))


@every_merge
def test_without_sequences_the_last_step_that_each_half_read(merge):
    """The forward half ends at each sequence's last valid step, the backward half at its first."""
    ys, _ = by_merge(False, False, state=False)[0][merge]
    (forward, backward), _ = by_merge(True, False, state=False)[0][None]
    last = forward[np.arange(BATCH), np.maximum(LENGTHS - 1, 0)]
    same(ys, MERGES[merge](last, backward[:, 0]))
    assert not any(np.asarray(leaf[2]).any() for leaf in jax.tree.leaves(ys))


@pytest.mark.parametrize("reverse", [False, True])
def test_neither_half_reads_padding(reverse):
    call = jax.jit(partial(bidirectional.apply, reverse=reverse))
    poisoned = jnp.where(PADDING[..., None], jnp.nan, XS)
    ys, end = call(PARAMS, poisoned, STATE, lengths=LENGTHS)
    equal((ys, end), call(PARAMS, XS, STATE, lengths=LENGTHS))
    assert not np.asarray(ys)[PADDING].any()
    equal(*jax.tree.map(lambda leaf: leaf[2], (end, STATE)))
    own = jax.tree.map(lambda leaf: leaf[1], STATE)
    alone, alone_end = bidirectional.apply(PARAMS, XS[1, :3], own, reverse=reverse)
    same((ys[1, :3], jax.tree.map(lambda leaf: leaf[1], end)), (alone, alone_end))

    def loss(params, xs, state):
        ys, end = call(params, xs, state, lengths=LENGTHS)
        return (ys**2).sum() + sum((leaf**2).sum() for leaf in jax.tree.leaves(end))

    differentiated = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    slopes = [differentiated(PARAMS, xs, STATE) for xs in (poisoned, XS)]
    equal(*slopes)
    assert not np.asarray(slopes[0][1])[PADDING].any()


def test_reverse_swaps_the_directions():
    swapped = BidirectionalParams(forward=PARAMS.backward, backward=PARAMS.forward)
    (forward, backward), end = bidirectional.apply(PARAMS, XS, STATE, merge=None, reverse=True)
    state = BidirectionalState(STATE.backward, STATE.forward)
    expected, expected_end = bidirectional.apply(swapped, XS, state, merge=None)
    equal(((backward, forward), (end.backward, end.forward)), (expected, tuple(expected_end)))
    mirrored, _ = bidirectional.apply(PARAMS, XS[:, ::-1], STATE, merge=None)
    same((forward, backward), jax.tree.map(lambda ys: ys[:, ::-1], mirrored))


def test_a_reset_restores_each_half_before_it_reads_that_step():
    resets = np.broadcast_to(np.arange(TIME) == 2, (BATCH, TIME))
    (forward, backward), _ = bidirectional.apply(PARAMS, XS, STATE, merge=None, resets=resets)
    (late, _), _ = bidirectional.apply(PARAMS, XS[:, 2:], merge=None)
    (_, early), _ = bidirectional.apply(PARAMS, XS[:, :3], merge=None)
    same((forward[:, 2:], backward[:, :3]), (late, early))


def test_each_half_sees_its_own_side():
    (forward, backward), _ = bidirectional.apply(PARAMS, XS, STATE, merge=None)
    (moved, stayed), _ = bidirectional.apply(PARAMS, XS.at[:, 0].add(1), STATE, merge=None)
    assert (np.abs(moved - forward).max(axis=-1) > 0).all()
    np.testing.assert_array_equal(stayed[:, 1:], backward[:, 1:])


def test_the_state_goes_in_and_out():
    _, end = bidirectional.apply(PARAMS, XS, STATE)
    assert isinstance(end, BidirectionalState)
    assert shapes(end) == shapes(STATE)
    equal(bidirectional.apply(PARAMS, XS), bidirectional.apply(PARAMS, XS, jax.tree.map(jnp.zeros_like, STATE)))
    slopes = jax.jit(jax.grad(lambda state: bidirectional.apply(PARAMS, XS, state)[0].sum()))(STATE)
    assert isinstance(slopes, BidirectionalState)
    assert all((np.abs(leaf) > 0).all() for leaf in jax.tree.leaves(slopes))
    (forward, backward), _ = bidirectional.apply(PARAMS, XS[:, :0], STATE, merge=None, return_sequences=False)
    equal((forward, backward), (STATE.forward.h, STATE.backward.h))


def test_initial_state():
    learned = bidirectional.init(KEY, INPUTS, UNITS, learned_state=True, projection=2)
    learned = jax.tree.map(lambda leaf: leaf + 0.1, learned)
    learned = dataclasses.replace(learned, backward=jax.tree.map(lambda leaf: leaf * 2, learned.backward))
    state = bidirectional.initial_state(learned, (6, 2))
    assert state.forward.h.shape == state.backward.h.shape == (6, 2, 2)
    assert state.forward.c.shape == state.backward.c.shape == (6, 2, UNITS)
    np.testing.assert_allclose(state.forward.c, 0.1, rtol=1e-6)
    np.testing.assert_allclose(state.backward.h, 0.2, rtol=1e-6)
    state = bidirectional.initial_state(learned, (BATCH,))
    equal(bidirectional.apply(learned, XS), bidirectional.apply(learned, XS, state))
    assert not any(leaf.any() for leaf in jax.tree.leaves(bidirectional.initial_state(PARAMS)))


def test_parameters():
    params = bidirectional.init(KEY, INPUTS, UNITS, peepholes=True, coupled=True)
    one = lstm.init(KEY, INPUTS, UNITS, peepholes=True, coupled=True)
    assert shapes(params.forward) == shapes(params.backward) == shapes(one)
    assert not np.array_equal(params.forward.w_x, params.backward.w_x)
    assert sum(leaf.size for leaf in jax.tree.leaves(PARAMS)) == 2 * 4 * UNITS * (INPUTS + UNITS + 1)


def test_paths_of_the_leaves():
    paths, _ = jax.tree_util.tree_flatten_with_path((PARAMS, STATE))
    names = [jax.tree_util.keystr(path[1:], simple=True, separator="/") for path, _ in paths]
    sides = ("forward", "backward")
    assert names == [
        f"{side}/{leaf}" for leaves in ("w_x w_h bias", "h c") for side in sides for leaf in leaves.split()
    ]


@every_merge
def test_a_projection_narrows_the_outputs(merge):
    params = jax.eval_shape(lambda: bidirectional.init(KEY, INPUTS, UNITS, projection=2))
    ys, end = jax.eval_shape(partial(bidirectional.apply, merge=merge), params, XS)
    width = 4 if merge == "concat" else 2
    assert {leaf.shape for leaf in jax.tree.leaves(ys)} == {(BATCH, TIME, width)}
    assert (end.backward.h.shape, end.backward.c.shape) == ((BATCH, 2), (BATCH, UNITS))


def test_halves_of_different_units():
    params = UNEVEN
    ys, end = jax.eval_shape(bidirectional.apply, params, XS)
    assert (ys.shape, end.backward.h.shape) == ((BATCH, TIME, UNITS + 3), (BATCH, 3))
    (forward, backward), _ = jax.eval_shape(partial(bidirectional.apply, merge=None), params, XS)
    assert (forward.shape[-1], backward.shape[-1]) == (UNITS, 3)


def test_jit_and_vmap():
    call = partial(bidirectional.apply, merge="mul", options=LSTMOptions(cell_clip=0.2))
    expected = call(PARAMS, XS, STATE, lengths=LENGTHS)
    same(jax.jit(lambda *arrays: call(*arrays[:3], lengths=arrays[3]))(PARAMS, XS, STATE, LENGTHS), expected)
    mapped = jax.jit(jax.vmap(lambda xs, state, lengths: call(PARAMS, xs, state, lengths=lengths)))
    same(mapped(XS, STATE, LENGTHS), expected)
    assert (np.abs(bidirectional.apply(PARAMS, XS, STATE, merge="mul", lengths=LENGTHS)[0] - expected[0]) > 0).any()


@pytest.mark.usefixtures("untyped")
class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            (
                {"params": PARAMS.forward},
                TypeError,
                r"params must be BidirectionalParams, as bidirectional\.init makes it; got LSTMParams",
            ),
            (
                {"params": BidirectionalParams(PARAMS.forward, None)},
                TypeError,
                r"params\.backward must be LSTMParams, as lstm\.init makes it; got NoneType",
            ),
            (
                {"state": STATE.forward},
                TypeError,
                r"state must be BidirectionalState, as bidirectional\.initial_state makes it; got LSTMState",
            ),
            (
                {"state": (STATE.forward, STATE.backward)},
                TypeError,
                r"state must be BidirectionalState, as bidirectional\.initial_state makes it; got tuple",
            ),
            (
                {"state": BidirectionalState(STATE.forward, LSTMState(XS[0], STATE.backward.c))},
                ValueError,
                r"state\.h must have shape \(3, 4\) \(the batch axes of the input, then units\), got \(5, 2\)",
            ),
            ({"merge": "cat"}, ValueError, r"merge must be one of 'concat', 'sum', 'mul', 'ave'.*; got 'cat'"),
            ({"merge": 0}, ValueError, r"merge must be one of 'concat', 'sum', 'mul', 'ave'.*; got 0"),
            (
                {"params": UNEVEN, "merge": "sum"},
                ValueError,
                r"merge='sum' needs halves with .* one length; got 4 and 3",
            ),
            (
                {"params": UNEVEN, "merge": "mul"},
                ValueError,
                r"merge='mul' needs halves with .* one length; got 4 and 3",
            ),
            ({"reverse": 1}, TypeError, "reverse must be True or False, known before tracing; got 1"),
            ({"xs": jnp.ones((2, 5, 3))}, ValueError, "xs must have 2 features in its last axis"),
            ({"lengths": np.array([6, 1, 2])}, ValueError, "lengths must lie between 0 and 5"),
            ({"key": KEY}, ValueError, "key has no use without dropout"),
            ({"lenghts": LENGTHS}, TypeError, "lenghts"),
        ],
    )
    def test_apply(self, arguments, error, text):
        with pytest.raises(error, match=text):
            bidirectional.apply(**{"params": PARAMS, "xs": XS, **arguments})

    def test_init(self):
        with pytest.raises(ValueError, match="units must be an integer of at least 1, got 0"):
            bidirectional.init(KEY, 2, 0)

    def test_initial_state(self):
        with pytest.raises(TypeError, match=r"params must be BidirectionalParams.*got LSTMParams"):
            bidirectional.initial_state(PARAMS.forward)
        with pytest.raises(TypeError, match=r"batch must be an integer, a tuple of sizes.*got \[8\]"):
            bidirectional.initial_state(PARAMS, batch=[8])


def test_both_directions_are_one_program():
    params, xs = bidirectional.init(KEY, inputs=3, units=4), jnp.ones((2, 7, 3))

    def loss(params):
        return jnp.sum(bidirectional.apply(params, xs, lengths=jnp.array([7, 3]))[0])

    assert jax.jit(jax.grad(loss)).lower(params).as_text().count("stablehlo.while") == 2
