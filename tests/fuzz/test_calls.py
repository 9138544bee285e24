"""Every public function with one or two arguments that it should not have been given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fuzz import hostile
from fuzz.calls import ARRAYS, CALLS, arrays_of
from fuzz.cases import check_refusal, fuzz
from hypothesis import strategies as st

DATA = ("xs", "x", "state", "emissions", "tags", "tokens", "lengths", "resets", "series", "sequence")
TOLERANCE = {"float16": 2e-2, "bfloat16": 1e-1}  # of values that half precision has rounded at every step


@st.composite
def hostile_arguments(draw, arguments):
    replaced = draw(st.lists(st.sampled_from(list(arguments)), min_size=1, max_size=2, unique=True))
    return {name: draw(hostile.values(arguments[name])) for name in replaced}


def check(call, replaced):
    arguments = call.arguments | replaced
    try:
        with np.errstate(all="ignore"):  # what float32 cannot hold is infinite, of which NumPy warns
            actual = call.function(**arguments)
    except Exception as error:
        check_refusal(error, list(arguments))
        return
    if call.expected is not None:
        with np.errstate(all="ignore"):
            check_result(actual, call.expected(**jax.tree.map(flushed, arguments)), arguments)


def flushed(leaf):
    """Subnormal numbers as XLA reads them, which are zeros: 0 times infinity is NaN."""
    if str(getattr(leaf, "dtype", "")) in ("float32", "bfloat16"):
        return np.where(np.abs(leaf) < jnp.finfo(leaf.dtype).tiny, np.zeros_like(leaf), leaf)
    return leaf


def check_result(actual, expected, arguments):
    if expected is None:
        return
    actual = jax.tree.leaves(actual)
    expected = jax.tree.leaves(expected, is_leaf=lambda leaf: leaf is None)
    dtypes = [str(a.dtype) for a in actual] + [str(getattr(leaf, "dtype", "")) for leaf in jax.tree.leaves(arguments)]
    tolerance = max(TOLERANCE.get(dtype, 1e-4) for dtype in dtypes)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        if e is not None:
            assert a.shape == e.shape
            np.testing.assert_allclose(np.asarray(a, e.dtype), e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CALLS)
def test_the_call_itself_is_right(name):
    call = CALLS[name]
    fixed = {key: value for key, value in call.arguments.items() if key not in ARRAYS}
    actual = jax.jit(lambda arrays: call.function(**arrays, **fixed))(arrays_of(call.arguments))
    with np.errstate(all="ignore"):
        if call.expected is not None:
            check_result(actual, call.expected(**call.arguments), call.arguments)


@pytest.mark.parametrize("name", CALLS)
def test_nested_lists_are_the_arrays_that_they_make(name):
    call = CALLS[name]
    data = {key: call.arguments[key] for key in DATA if call.arguments.get(key) is not None}
    lists = jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), data)
    expected, actual = (
        jax.eval_shape(lambda given=given: call.function(**call.arguments | given)) for given in ({}, lists)
    )
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert jax.tree.leaves(actual) == jax.tree.leaves(expected)


@pytest.mark.parametrize("name", CALLS)
@fuzz(percent=1.0, data=st.data())
def test_hostile_arguments_are_refused_or_served(name, data):
    call = CALLS[name]
    check(call, data.draw(hostile_arguments(call.arguments), label="replaced"))
