"""What is refused, and in which words: the argument, what came, what would be right."""

import operator
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify


def positive_int(name: str, value: Any) -> int:
    """Return `value` as an int, or raise unless it is an integer of at least 1."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")
    return number


def boolean(name: str, value: Any) -> bool:
    """Return `value` as a bool, or raise unless it is one."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, known before tracing; got {value!r}.")
    return bool(value)


def number(name: str, value: Any) -> float:
    """Return `value` as a float, or raise unless it is a real number."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    return float(value)


def name(name: str, value: Any, meaning: str) -> None:
    """Raise unless `value` is text."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be the name {meaning}, or None; got {value!r}.")


def bound(name: str, value: Any) -> float | None:
    """Return `value` as a float above 0 or None, or raise."""
    if value is None:
        return None
    if not number(name, value) > 0:
        raise ValueError(f"{name} must be above 0, or None for no clipping; got {value!r}.")
    return float(value)


def rate(name: str, value: Any) -> float:
    """Return `value` as a float from 0 to below 1, or raise."""
    if not 0 <= number(name, value) < 1:
        raise ValueError(f"{name} must be a rate from 0 to below 1; got {value!r}.")
    return float(value)


def floating_dtype(name: str, dtype: Any) -> Any:
    """Raise unless `dtype` is a floating type."""
    try:
        dtype = jnp.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"{name} must be a floating type such as jnp.float32, got {dtype!r}.") from error
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name} must be a floating type such as jnp.float32, got {dtype.name}.")
    if jnp.finfo(dtype).bits < 16:
        raise TypeError(f"{name} must have at least 16 bits, got {dtype.name}.")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"{name} {jnp.dtype(dtype).name} needs 64-bit JAX: set jax_enable_x64.")
    return jnp.dtype(dtype)


def at_least_float32(dtype: Any) -> Any:
    """The dtype in which to draw or to add up: float32, or the given one where that is wider."""
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def drawn(name: str, initializer: Any, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Call an initializer in at least float32, since some cannot draw narrower; raise if its shape is off."""
    array = initializer(key, shape, at_least_float32(dtype))
    if jnp.shape(array) != shape:
        raise ValueError(f"{name} must return shape {shape}, which it was called with; got {jnp.shape(array)}.")
    return jnp.asarray(array, dtype)


def floating(name: str, array: Any) -> jax.Array:
    """Return `array` as a JAX array, or raise unless its dtype is floating."""
    array = _array(name, array)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"{name} must have a floating dtype, got {array.dtype.name} {array.shape}. "
            "Convert it with .astype(jnp.float32)."
        )
    return array


def shape(name: str, array: Any, expected: tuple[int, ...], meaning: str) -> None:
    """Raise unless `array` has exactly the expected shape."""
    if jnp.shape(array) != expected:
        raise ValueError(f"{name} must have shape {expected} ({meaning}), got {jnp.shape(array)}.")


def weights(name: str, array: Any, *axes: str) -> jax.Array:
    """Return a parameter as a JAX array, or raise unless it is floating and has just these axes."""
    array = floating(name, array)
    if array.ndim != len(axes):
        hint = " Map over stacked parameters with jax.vmap." if array.ndim > len(axes) else ""
        raise ValueError(f"{name} must have axes [{', '.join(axes)}], got shape {array.shape}.{hint}")
    return array


def instance(name: str, value: Any, expected: type, source: str) -> None:
    """Raise unless `value` is an instance of `expected`, which `source` makes."""
    if not isinstance(value, expected):
        raise TypeError(f"{name} must be {expected.__name__}, as {source} makes it; got {type(value).__name__}.")


def one_of(name: str, value: Any, known: Any) -> str:
    """Return `value`, or raise unless it is one of the known names."""
    if not isinstance(value, str) or value not in known:
        names = ", ".join(repr(k) for k in known)
        raise ValueError(f"{name} must be one of {names}; got {value!r}.")
    return value


def features(name: str, array: jax.Array, size: int, axes: str, owner: str) -> None:
    """Raise unless the last axis of `array` has the size that the parameters were made for."""
    rank = len(axes.split(", ")) - 1
    if array.ndim < rank:
        raise ValueError(f"{name} must have axes [{axes}], at least {rank} of them; got shape {array.shape}.")
    if array.shape[-1] != size:
        raise ValueError(
            f"{name} must have {size} features in its last axis, because {owner}; got shape {array.shape}, "
            f"read as [{axes}]."
        )


def integers(name: str, value: Any, low: int, high: int, meaning: str) -> jax.Array:
    """Return `value` as an int32 array within [low, high], or raise; `meaning` says what sets the range.

    Values are read where they are concrete and all on this process. Under a transformation they are not,
    and only a caller that runs under `jax.experimental.checkify` is told.
    """
    array = _array(name, value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(
            f"{name} must be integers, got {array.dtype.name} {array.shape}. Convert with .astype(jnp.int32)."
        )
    message = f"{name} must lie between {low} and {high} ({meaning})"
    if not isinstance(value, jax.core.Tracer) and getattr(value, "is_fully_addressable", True):
        values = np.asarray(value)  # before JAX narrowed them to 32 bits
        if values.size and (values.min() < low or values.max() > high):
            raise ValueError(f"{message}; got values from {values.min()} to {values.max()}.")
        return array.astype(jnp.int32)
    array = array.astype(jnp.int32)
    checkify.debug_check(jnp.all(_of_any((array >= low) & (array <= high))), f"{message}.")
    return array


def lengths(value: Any, batch: tuple[int, ...], time: int, owner: str = "xs") -> jax.Array:
    """Return `value` as int32 [*batch] from 0 to time, or raise; `owner` has the batch axes and the time."""
    array = integers("lengths", value, 0, time, f"the number of time steps of {owner}")
    shape("lengths", array, batch, f"the batch axes of {owner}")
    return array


def booleans(name: str, value: Any, meaning: str) -> jax.Array:
    """Return `value` as a bool array, or raise; `meaning` says what True means."""
    array = _array(name, value)
    if array.dtype != jnp.bool_:
        raise TypeError(
            f"{name} must be bool, {meaning}; got {array.dtype.name} {array.shape}. Convert it with .astype(bool)."
        )
    return array


def resets(value: Any, batch: tuple[int, ...], time: int) -> jax.Array:
    """Return `value` as bool [*batch, time], or raise."""
    array = booleans("resets", value, "True where a step starts afresh")
    shape("resets", array, (*batch, time), "[*batch, time] of xs")
    return array


def common_leading_axes(arrays: list[Any], count: int, axes: str) -> tuple[int, ...]:
    """Return the first `count` axes that all arrays share, or raise."""
    shapes = [jnp.shape(array) for array in arrays]
    leading = {shape[:count] for shape in shapes}
    if len(leading) != 1 or len(shapes[0]) < count:
        raise ValueError(f"arguments must all begin with the same axes [{axes}]; got shapes {shapes}.")
    return leading.pop()


def _array(name: str, value: Any) -> jax.Array:
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array, got {type(value).__name__}.") from error


# checkify cannot map a check over no examples, so that a `jax.vmap` over none replaces what is checked by True.
_of_any: Any = jax.custom_batching.custom_vmap(lambda holds: holds)
_of_any.def_vmap(lambda size, _, holds: (_of_any(holds), True) if size else (jnp.ones(holds.shape[1:], bool), False))
