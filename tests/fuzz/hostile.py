"""Values that a caller should not have given, and some that only look so."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from lstmjax import Dropout, LSTMOptions, LSTMState

FLOATS = ("float16", "bfloat16", "float32", "float64", ">f4")
DTYPES = (
    *FLOATS,
    *("float8_e4m3fn", "float8_e5m2", "int4", "bool", "int8", "uint8", "int16", "int32", "int64", "uint64"),
    *("complex64", "complex128", "object", "str", "M8[D]"),
)
JUNK = [
    *(None, NotImplemented, ..., "text", "", b"bytes", True, False, np.True_),
    *(-1, 0, 1, 3, 2**31, 2**70, -(2**70), 10**400, 0.5, 1.0, 2.5, -0.0, 1e39, math.nan, math.inf, -math.inf, 1j),
    *(np.int64(2), np.float32(0.5), np.float64(math.nan), np.array(3), np.array([2])),
    *((), [], {}, set(), [[1.0], [1.0, 2.0]], [None], ["one", "two"], {"a": 1}, range(3), slice(3), frozenset({1})),
    *(object(), len, float, lambda *_: None, memoryview(b"12345678")),
    *(np.array("one"), np.array([None]), np.array(["2020-01-01"], "M8[D]"), np.zeros(2, [("a", "f4")])),
    *(np.ma.masked_array([1.0, 2.0], [True, False]), np.zeros((2, 0)), np.full((2, 5, 3), math.nan)),
    *(jax.random.key(0), jax.random.PRNGKey(0), jax.random.split(jax.random.key(0)), jnp.zeros(())),
    *(jax.ShapeDtypeStruct((2, 5, 3), "float32"), LSTMOptions(), Dropout(), LSTMState(None, None)),
]
SERVED = [
    LSTMOptions(activation="relu", cell_clip=0.5),
    LSTMOptions(recurrent_activation="hard_sigmoid", preactivation_clip=1),
    LSTMOptions(precision="bfloat16"),
    LSTMOptions(projection_clip=1.0),
    Dropout(zoneout_h=0.5, zoneout_c=0.25),
    Dropout(between_layers=0.5),
]
SPECIAL = (math.nan, math.inf, -math.inf, 1e18, -1e18, 0.0, 1e-45)


def values(given):
    """Something in the place of `given`: anything at all, or what is nearly the same."""
    junk = st.sampled_from(JUNK)
    if isinstance(given, LSTMOptions | Dropout):  # which refuse for themselves
        return junk | st.sampled_from(SERVED)
    if dataclasses.is_dataclass(given) or (isinstance(given, tuple) and given and not isinstance(given[0], int)):
        return st.one_of(junk, _with_another_part(given), _with_another_part(given))
    if isinstance(given, np.ndarray):
        return st.one_of(junk, arrays(given), arrays(given), arrays(given))
    if isinstance(given, bool | int | float):
        return junk | st.sampled_from([given, np.asarray(given)[()], given + 1, given - 1, -given, float(given)])
    if isinstance(given, tuple):
        return junk | st.tuples(*map(values, given)) | st.sampled_from([given[:-1], given * 2, list(given)])
    return junk


@st.composite
def arrays(draw, array):
    """An array with another shape, dtype, content, layout or container."""
    for _ in range(draw(st.integers(1, 2))):
        kind = draw(st.sampled_from((_reshaped, _retyped, _filled, _contained)))
        array = kind(draw, array)
        if not isinstance(array, np.ndarray) or array.dtype.kind in "OUM":
            break
    return array


def _reshaped(draw, array):
    ways = [lambda a: a[None], lambda a: a[..., None], np.ravel, np.transpose, lambda a: np.zeros((0, *a.shape[1:]))]
    if array.ndim:
        axis = draw(st.integers(0, array.ndim - 1))
        ways += [
            lambda a: np.take(a, 0, axis) if a.shape[axis] else a,
            lambda a: np.delete(a, range(a.shape[axis]), axis),
            lambda a: np.concatenate([a, a], axis),
            lambda a: np.delete(a, 0, axis) if a.shape[axis] else a,
            lambda a: np.concatenate([a, a.take([0], axis)], axis) if a.shape[axis] else a,
        ]
    return draw(st.sampled_from(ways))(array)


def _retyped(draw, array):
    kind = draw(st.sampled_from(DTYPES))
    with np.errstate(all="ignore"):
        if kind == "M8[D]":
            return np.zeros(array.shape, kind)
        if kind in ("object", "str"):
            return array.astype(object).astype(kind)
        return np.asarray(np.real(array)).astype(jnp.dtype(kind))


def _filled(draw, array):
    array = np.array(array)
    if array.size and array.dtype != object and np.issubdtype(array.dtype, np.number):
        floating = not np.issubdtype(array.dtype, np.integer)
        value = draw(st.sampled_from(SPECIAL if floating else (-1, 100, np.iinfo(array.dtype).max)))
        with np.errstate(all="ignore"):
            array.flat[draw(st.integers(0, array.size - 1))] = np.asarray(value).astype(array.dtype)
    return array


def _contained(draw, array):
    ways = [np.asfortranarray, np.ndarray.tolist, list, tuple, lambda a: a[::-1][::-1], _frozen]
    if array.dtype.kind in "fiub" and array.dtype.isnative:
        ways += [jnp.asarray, lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype)]
    return draw(st.sampled_from(ways[1:2] + ways[4:] if not array.ndim else ways))(array)


def _frozen(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@st.composite
def _with_another_part(draw, tree):
    """The same tree with one of its parts replaced, at any depth."""
    if dataclasses.is_dataclass(tree):
        field = draw(st.sampled_from([field.name for field in dataclasses.fields(tree)]))
        return dataclasses.replace(tree, **{field: draw(values(getattr(tree, field)))})
    place = draw(st.integers(0, len(tree) - 1))
    parts = list(tree)
    parts[place] = draw(values(tree[place]))
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
