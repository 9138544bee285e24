"""What is in the arrays: NaN, infinite and huge numbers go on from valid steps, and from padding reach nothing.

Shapes stay, so that each program is compiled once; lengths, resets and all numbers vary from case to case.
"""

import itertools

import covering
import jax
import numpy as np
import pytest
from fuzz.calls import BATCH, CALLS, FLOATING, TAGS, TIME, arrays_of, compiled
from fuzz.cases import LONG, fuzz
from hypothesis import strategies as st

SPECIAL = (np.nan, np.inf, -np.inf, 1e37, -1e37, 1e-40, 0.0)
OPTIONS = {
    "function": ["lstm.apply", "bidirectional.apply", "stack.apply"],
    "reverse": [False, True],
    "implementation": ["scan", "fused"],
}
RECURRENT = {
    f"{name} {'backward' if reverse else 'forward'}, {implementation}": (name, reverse, implementation)
    for name, reverse, implementation in (
        itertools.product(*OPTIONS.values()) if LONG else covering.pairs(OPTIONS)  # test_contract.py has the product
    )
}
PADDED = {
    "conv1d.apply": "xs",
    "residual.apply": "xs",
    "hierarchy.encode": "xs",
    "windows.truncated_bptt": "xs",
    "pooling.max_over_windows": "xs",
    "pooling.global_max": "xs",
    "pooling.global_mean": "xs",
    "pooling.last": "xs",
    "crf.log_likelihood": "emissions",
    "crf.log_partition": "emissions",
    "crf.marginals": "emissions",
    "crf.decode": "emissions",
}


@st.composite
def numbers(draw):
    """New ones for every array of a call, from one number; what may be padding, by its lengths."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = np.array([draw(st.integers(0, TIME)) for _ in range(BATCH)], np.int32)
    places = draw(st.lists(st.tuples(*map(st.integers, (0, 0, 0), (BATCH - 1, TIME - 1, 2))), max_size=3))
    return rng, lengths, places, draw(st.sampled_from(SPECIAL))


def renewed(arguments, rng, lengths):
    """The same call with other numbers of the same shapes and dtypes."""
    new = {}
    for name, value in arguments.items():
        if name in FLOATING:
            new[name] = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), value)
        elif name == "resets":
            new[name] = rng.random(value.shape) < 0.3
        elif name == "tags":
            new[name] = rng.integers(0, TAGS, value.shape, np.int32)
    return arguments | new | {"lengths": lengths}


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", RECURRENT)
@fuzz(percent=0.8, drawn=numbers())
def test_valid_steps_give_what_the_loop_gives(name, drawn):
    function, reverse, implementation = RECURRENT[name]
    rng, lengths, places, special = drawn
    arguments = renewed(CALLS[function].arguments, rng, lengths) | {"reverse": reverse}
    for place in places:
        arguments["xs"][place] = special
    actual, _ = compiled(function, reverse=reverse, implementation=implementation)(arrays_of(arguments))
    with np.errstate(all="ignore"):
        expected = CALLS[function].expected(**arguments)
    for a, e in zip(leaves(actual), leaves(expected), strict=True):
        np.testing.assert_allclose(a.astype(float), e, rtol=1e-4, atol=1e-4)
    ys = np.asarray(actual[0])
    assert not ys[np.arange(TIME) >= lengths[:, None]].any()


@pytest.mark.parametrize("name", [*RECURRENT, *PADDED])
@fuzz(percent=0.5, drawn=numbers())
def test_padding_reaches_neither_values_nor_gradients(name, drawn):
    function, reverse, implementation = RECURRENT.get(name, (name, None, None))
    static = {} if reverse is None else {"reverse": reverse, "implementation": implementation}
    given = PADDED.get(name, "xs")
    rng, lengths, _, special = drawn
    arguments = renewed(CALLS[function].arguments, rng, lengths)
    inside = (np.arange(TIME) < lengths[:, None])[..., None]
    clean = arguments | {given: np.where(inside, arguments[given], 0)}
    hit = ~inside & (rng.random(clean[given].shape) < 0.5)
    dirty = arguments | {given: np.where(hit, np.float32(special), clean[given])}
    run = compiled(function, **static)
    actual, expected = run(arrays_of(dirty)), run(arrays_of(clean))
    for a, e in zip(leaves(actual), leaves(expected), strict=True):
        np.testing.assert_array_equal(a, e)
    slopes = np.asarray(actual[1][given])
    assert not slopes[~np.broadcast_to(inside, slopes.shape)].any()


@pytest.mark.parametrize("name", PADDED)
@fuzz(percent=0.3, drawn=numbers())
def test_what_is_not_finite_in_valid_steps_is_seen(name, drawn):
    rng, lengths, places, _ = drawn
    arguments = renewed(CALLS[name].arguments, rng, lengths)
    for place in places:
        arguments[PADDED[name]][place] = np.nan
    run = compiled(name)
    with np.errstate(all="ignore"):
        expected = CALLS[name].expected(**arguments)
    if expected is None:
        return
    actual, _ = run(arrays_of(arguments))
    for a, e in zip(leaves(actual), jax.tree.leaves(expected, is_leaf=lambda leaf: leaf is None), strict=True):
        if e is not None:
            np.testing.assert_allclose(a.astype(float), e, rtol=1e-4, atol=1e-4)
