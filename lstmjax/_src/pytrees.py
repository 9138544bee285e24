"""Dataclasses that JAX knows: containers of arrays, such as params, and settings that hold none.

Programs of `jax.export` can take and return both, since their kinds are stored by name.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.export

Kind = TypeVar("Kind")

CONTAINERS: list[type] = []  # in the order of their definition
SETTINGS: list[type] = []


@dataclass_transform(frozen_default=True, eq_default=False)
def container(kind: type[Kind]) -> type[Kind]:
    """Make a class a frozen dataclass whose fields JAX maps over, but for those with metadata static=True.

    Its repr has dtypes and shapes in place of numbers: `DenseParams(w=f32[2,3], bias=f32[3])`.
    """
    made: Any = dataclasses.dataclass(frozen=True, eq=False, repr=False)(kind)
    made.__repr__, made.__contains__ = _repr, _contains
    jax.tree_util.register_dataclass(made)
    _register_for_export(kind, lambda static: list(static), tuple)
    CONTAINERS.append(kind)
    return kind


@dataclass_transform(frozen_default=True)
def static(kind: type[Kind]) -> type[Kind]:
    """Make a class a frozen dataclass without arrays: a jitted function that takes it is compiled for each value."""
    kind = jax.tree_util.register_static(dataclasses.dataclass(frozen=True)(kind))
    _register_for_export(kind, vars, lambda fields: kind(**fields))
    SETTINGS.append(kind)
    return kind


def named_tuple(kind: type[Kind]) -> type[Kind]:
    """Let programs of `jax.export` take and return a NamedTuple, which JAX itself maps over."""
    jax.export.register_namedtuple_serialization(kind, serialized_name=f"lstmjax.{kind.__name__}")
    return kind


def _register_for_export(kind: Any, plain: Callable[[Any], Any], built: Callable[[Any], Any]) -> None:
    jax.export.register_pytree_node_serialization(
        kind,
        serialized_name=f"lstmjax.{kind.__name__}",
        serialize_auxdata=lambda value: json.dumps(plain(value)).encode(),
        deserialize_auxdata=lambda text: built(json.loads(bytes(text))),
    )


def _repr(self: Any) -> str:
    """The fields, except fields at their default of None."""
    fields = [(field.name, getattr(self, field.name), field.default) for field in dataclasses.fields(self)]
    told = [f"{name}={_told(value)}" for name, value, default in fields if value is not None or default is not None]
    return f"{type(self).__name__}({', '.join(told)})"


def _contains(self: Any, name: object) -> bool:
    """True if there is a field of this name, which Flax's TrainState asks of params and gradients."""
    return any(field.name == name for field in dataclasses.fields(self))


def _told(value: Any) -> str:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None:
        return f"{_short(getattr(dtype, 'name', str(dtype)))}[{','.join(map(str, shape))}]"
    if type(value) in (tuple, list):
        opened, closed = "()" if type(value) is tuple else "[]"
        comma = "," if type(value) is tuple and len(value) == 1 else ""
        return f"{opened}{', '.join(map(_told, value))}{comma}{closed}"
    if type(value) is dict:
        return f"{{{', '.join(f'{key!r}: {_told(entry)}' for key, entry in value.items())}}}"
    return repr(value)


def _short(name: str) -> str:
    """A dtype as JAX abbreviates it: f32, bf16, i32, u8, c64, bool."""
    for long, short in (("float", "f"), ("uint", "u"), ("int", "i"), ("complex", "c")):
        name = name.replace(long, short)
    return name
