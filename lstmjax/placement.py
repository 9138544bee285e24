"""Where arrays live: the mesh axes of `shard_map`, and meshes whose axes are explicit."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec


def varying_alike(tree: Any) -> Any:
    """Let every array vary over each mesh axis that any of them varies over, where `shard_map` is at work.

    A loop's carry must vary as its inputs do; and weights that are replicated get the sum over the mesh as
    their gradient, taken once and not at every step.
    """
    axes = frozenset().union(*(jax.typeof(leaf).manual_axis_type.varying for leaf in jax.tree.leaves(tree)))

    def vary(leaf):
        missing = tuple(axes - jax.typeof(leaf).manual_axis_type.varying)
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(vary, tree)


def automatic(function: Callable, batch_axes: int) -> Callable:
    """Make `function(params, xs, ...)` run on explicit mesh axes, inside which the compiler places arrays.

    Args:
        function: takes params and arrays, xs the first of them; its outputs begin with the batch axes of xs.
        batch_axes: number of batch axes.

    Returns:
        The same function; where an argument is sharded over explicit axes, its outputs are sharded over
        batch as xs is.
    """

    def placed(params, xs, *arguments):
        types = [jax.typeof(leaf).sharding for leaf in jax.tree.leaves((params, xs, arguments))]
        meshes = [sharding.mesh for sharding in types if any(axis is not None for axis in sharding.spec)]
        if not meshes:
            return function(params, xs, *arguments)
        batch = PartitionSpec(*jax.typeof(xs).sharding.spec[:batch_axes])
        run: Callable = jax.sharding.auto_axes(function, out_sharding=NamedSharding(meshes[0], batch))
        return run(params, xs, *arguments)

    return placed
