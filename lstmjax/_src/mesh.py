"""Where arrays live: the mesh axes of `shard_map`, meshes whose axes are explicit, and units divided over an axis."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from lstmjax._src.dropout_masks import Masks
from lstmjax._src.lstm.cell import LSTMParams, LSTMState


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


def automatic(function: Callable, batch_axes: int, units_axis: str | None = None) -> Callable:
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
        meshes = [sharding.mesh for sharding in types if any(axis is not None for axis in sharding.spec)]
        if units_axis is not None and jax.sharding.get_abstract_mesh().explicit_axes:
            meshes.append(jax.sharding.get_abstract_mesh())
        if not meshes:
            return function(params, xs, *arguments)
        batch = PartitionSpec(*jax.typeof(xs).sharding.spec[:batch_axes])
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


def divided(function: Callable, axis: str, results: Any) -> Callable:
    """Make `function(params, state, initial, masks, xs, clock)` compute a part of the units on each device of an axis.

    Each device then has all rows of the columns of its units' gates; of state, initial and masks what belongs to these
    units; and the whole of xs and clock. Matrices that lie in rows change hands by one all-to-all. The other axes of
    the mesh divide the first batch axis, where that is a multiple of them.

    Args:
        function: what it returns begins with the batch axes, if any, and ends in an axis of units.
        axis: an axis of the mesh set by `jax.set_mesh`.
        results: a tree like what it returns, with leaves of the same number of axes.

    Raises:
        ValueError: the units cannot be divided by the devices of the axis.
    """
    mesh = jax.sharding.get_abstract_mesh()
    devices = mesh.shape[axis]
    others = tuple(name for name in mesh.axis_names if name != axis)

    def run(params: LSTMParams, state: LSTMState, initial: Any, masks: Masks, xs: Any, clock: Any = None):
        *batch, units = state.c.shape
        if units % devices:
            raise ValueError(
                f"options.units_axis={axis!r}: {units} units cannot be divided over the {devices} devices of that "
                f"axis; choose a multiple of {devices}."
            )
        divides = batch and batch[0] % math.prod(mesh.shape[name] for name in others) == 0
        rows = others if divides else None

        def lie(tree, *axes, last=None):
            """Specs of arrays whose first axes, and whose last one, lie over these axes of the mesh."""

            def named(leaf):
                spec = [*axes, *[None] * leaf.ndim][: leaf.ndim]
                return PartitionSpec(*spec[:-1], last) if last else PartitionSpec(*spec)

            return jax.tree.map(named, tree)

        def in_rows(matrix):
            return len(matrix) % devices == 0

        matrices = params.w_x, params.w_h
        vectors = jax.tree.map(lambda leaf: leaf.reshape(-1, units), (params.bias, params.w_peephole))
        over_time = Masks(zoneout_h=masks.zoneout_h, zoneout_c=masks.zoneout_c)
        shared, own, whole = (vectors, initial), (state, masks.candidate), (xs, masks.inputs, masks.recurrent)
        given = {
            "matrices": (matrices, tuple(lie(m, axis if in_rows(m) else None) for m in matrices)),
            "shared": (shared, lie(shared, last=axis)),
            "own": (own, lie(own, rows, last=axis)),
            "over_time": (over_time, lie(over_time, None, rows, last=axis)),
            "whole": (whole, lie(whole, rows)),
            "clock": (clock, lie(clock, None, rows)),
        }

        def part(given):
            parts = zip(given["matrices"], map(in_rows, matrices), strict=True)
            w_x, w_h = (_columns(matrix, units, axis, in_rows=divided) for matrix, divided in parts)
            vectors, initial = given["shared"]
            bias, w_peephole = jax.tree.map(lambda leaf: leaf.reshape(-1), vectors)
            (state, candidate), (xs, inputs, recurrent) = given["own"], given["whole"]
            masks = dataclasses.replace(given["over_time"], inputs=inputs, recurrent=recurrent, candidate=candidate)
            return function(LSTMParams(w_x, w_h, bias, w_peephole), state, initial, masks, xs, given["clock"])

        specs = {name: spec for name, (_, spec) in given.items()}
        names = {axis, *(rows or ())}
        compute = jax.shard_map(part, in_specs=(specs,), out_specs=lie(results, rows, last=axis), axis_names=names)
        return compute({name: argument for name, (argument, _) in given.items()})

    return run


def _columns(matrix, units, axis, *, in_rows):
    """Of each gate the columns of this device's units, from its rows, or from all where those cannot be divided."""
    gates = matrix.reshape(matrix.shape[0], -1, units)
    if in_rows:
        gates = jax.lax.all_to_all(gates, axis, split_axis=2, concat_axis=0, tiled=True)
    else:
        size = units // jax.lax.axis_size(axis)
        gates = jax.lax.pcast(gates, axis, to="varying")
        gates = jax.lax.dynamic_slice_in_dim(gates, jax.lax.axis_index(axis) * size, size, axis=2)
    return gates.reshape(gates.shape[0], -1)
