"""Params over the devices of a mesh: rules from paths to how an array is divided.

A rule is a pattern, searched in the path of an array such as `layers/0/forward/w_h`, and the `PartitionSpec`s that it
may have, of which the first that divides its shape evenly is taken. The first rule whose pattern is found counts.

    DATA     each device has all of every array, and a part of the batch
    UNITS    beside that, the rows of the LSTMs' matrices lie over the axis `model`, which is what
             `LSTMOptions(units_axis="model")` divides units over

With `units_axis` a device computes all four gates of its own units: the matrices change from rows to those columns by
one all-to-all a call, and a step exchanges h once, by an all-gather, whose gradient is a reduce-scatter. Over the batch
alone no step exchanges anything, and a gradient is summed over devices once.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lstmjax._src import keywords

Rule = tuple[str, *tuple[P, ...]]

DATA: tuple[Rule, ...] = (("", P()),)
UNITS: tuple[Rule, ...] = ((r"(^|/)w_[xh]$", P("model"), P()), *DATA)


@keywords.explained("sharding.mesh")
def mesh(*, data: int = 1, model: int = 1, explicit: bool = False, devices: Sequence[Any] | None = None) -> Mesh:
    """Make a mesh with the axes `data`, for the batch, and `model`, for units.

    Args:
        data: devices along the batch.
        model: devices along units; neighbours, which exchange the most.
        explicit: whether arrays carry how they are divided in their types, or the compiler decides.
        devices: which; None for the first `data * model` of `jax.devices()`.

    Raises:
        ValueError: there are fewer devices.

    >>> dict(mesh().shape)
    {'data': 1, 'model': 1}
    """
    found = jax.devices() if devices is None else list(devices)
    if min(data, model) < 1 or data * model > len(found):
        raise ValueError(
            f"data={data!r} and model={model!r} need data * model devices, of at least 1; got {len(found)}."
        )
    kind = AxisType.Explicit if explicit else AxisType.Auto
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(kind, kind), devices=found[: data * model])


@keywords.explained("sharding.specs")
def specs(params: Any, mesh: Mesh, rules: Sequence[Rule] = UNITS) -> Any:
    """Say how every array of a tree is divided.

    Args:
        params: any tree of arrays, or of `jax.ShapeDtypeStruct`; the state of an optimizer too.
        mesh: the mesh to divide over.
        rules: see the module.

    Returns:
        The same tree with a `PartitionSpec` for each array.

    Raises:
        ValueError: no rule has the path of an array, or none of the rule's specs divides its shape over the mesh.

    >>> from lstmjax import lstm
    >>> params = lstm.init(jax.random.key(0), inputs=2, units=4)
    >>> tuple(specs(params, mesh()).w_h), tuple(specs(params, mesh()).bias)
    (('model',), ())
    """

    def spec(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, *choices in rules:
            if re.search(pattern, name):
                fitting = [choice for choice in choices if _divides(choice, leaf.shape, mesh)]
                if not fitting:
                    raise ValueError(
                        f"rules: {name!r} {leaf.shape} cannot be divided over the mesh {dict(mesh.shape)} as "
                        f"{' or '.join(map(str, choices))}."
                    )
                return fitting[0]
        raise ValueError(f"rules: no pattern is found in {name!r}; end with ('', PartitionSpec()) for all others.")

    return jax.tree_util.tree_map_with_path(spec, params)


@keywords.explained("sharding.place")
def place(params: Any, mesh: Mesh, rules: Sequence[Rule] = UNITS) -> Any:
    """Divide the arrays of a tree over a mesh, as `specs` says.

    >>> from lstmjax import lstm
    >>> params = place(lstm.init(jax.random.key(0), inputs=2, units=4), mesh())
    >>> tuple(params.w_h.sharding.spec)
    ('model',)
    """
    return jax.device_put(params, shardings(params, mesh, rules))


@keywords.explained("sharding.shardings")
def shardings(params: Any, mesh: Mesh, rules: Sequence[Rule] = UNITS) -> Any:
    """As `specs`, with a `NamedSharding` for each array, as `jax.jit` takes them."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(params, mesh, rules))


def _divides(spec: P, shape: tuple[int, ...], mesh: Mesh) -> bool:
    axes = [(axis,) if isinstance(axis, str) else axis or () for axis in spec]
    named = {name for axis in axes for name in axis}
    if missing := named - set(mesh.axis_names):
        raise ValueError(
            f"rules: {spec} names {', '.join(sorted(missing))}; the mesh has {', '.join(mesh.axis_names)}."
        )
    sizes = [math.prod(mesh.shape[name] for name in axis) for axis in axes]
    return len(sizes) <= len(shape) and all(size % parts == 0 for size, parts in zip(shape, sizes, strict=False))
