"""Mesh axes that vary under `shard_map`, and explicit ones."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec


def match_varying_axes(tree: Any) -> Any:
    """Let every array vary over each mesh axis that any of them varies over, where `shard_map` is at work.

    A loop's carry must vary as its inputs do; and weights that are replicated get the sum over the mesh as
    their gradient, taken once and not at every step.
    """
    axes = frozenset().union(*[jax.typeof(leaf).manual_axis_type.varying for leaf in jax.tree.leaves(tree)])
    if not axes:
        return tree

    def vary(leaf):
        missing = tuple(axes - jax.typeof(leaf).manual_axis_type.varying)
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(vary, tree)


def with_auto_axes(function: Callable, batch_axes: int, units_axis: str | None = None) -> Callable:
    """Make `function(params, xs, ...)` run on explicit mesh axes, inside which the compiler places arrays.

    Args:
        function: takes params and arrays, xs the first of them; its outputs begin with the batch axes of xs.
        batch_axes: number of batch axes.
        units_axis: the mesh axis over which the function divides units, or None.

    Returns:
        The same function; where an argument is sharded over explicit axes, its outputs are sharded over
        batch as xs is.
    """

    def placed(params, xs, *arguments):
        types = [jax.typeof(leaf).sharding for leaf in jax.tree.leaves((params, xs, arguments))]
        meshes = [sharding.mesh for sharding in types if set(sharding.spec) - {None}]
        if units_axis is not None and jax.sharding.get_abstract_mesh().explicit_axes:
            meshes.append(jax.sharding.get_abstract_mesh())
        if not meshes:
            return function(params, xs, *arguments)
        batch = PartitionSpec(*jax.typeof(jax.tree.leaves(xs)[0]).sharding.spec[:batch_axes])
        run: Callable = jax.sharding.auto_axes(function, out_sharding=NamedSharding(meshes[0], batch))
        return run(params, xs, *arguments)

    return placed


def units_axis(axis: str | None) -> str | None:
    """The mesh axis to divide units over, None where it has one device.

    Raises:
        ValueError: the mesh set by `jax.set_mesh` has no such axis, or `jax.shard_map` is at work.
    """
    if axis is None:
        return None
    mesh = jax.sharding.get_abstract_mesh()
    if axis not in mesh.axis_names:
        raise ValueError(
            f"options.units_axis={axis!r} must be an axis of the mesh set by jax.set_mesh, which has "
            f"{', '.join(mesh.axis_names) or 'none'}."
        )
    if mesh.manual_axes:
        raise ValueError(
            f"options.units_axis={axis!r} is used within a jax.shard_map over {', '.join(mesh.manual_axes)}: call it "
            "outside, where it divides the batch over the other axes of the mesh itself."
        )
    return axis if mesh.shape[axis] > 1 else None
