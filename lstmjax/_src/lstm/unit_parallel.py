"""The units of an LSTM sharded over an axis of the mesh: each device has all four gates of its units."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from lstmjax._src.dropout_masks import SequenceMasks
from lstmjax._src.lstm.params import LSTMParams, LSTMState


def shard_units(function: Callable, axis: str, results: Any) -> Callable:
    """Shard the units of `function(params, state, initial, masks, zoneout, xs, step_masks)` over an axis of the mesh.

    Each device has all rows of its units' columns; of state, initial and masks what belongs to its units; and all of xs
    and of the step masks. Matrices sharded by rows are exchanged by one all-to-all. The other axes of the mesh shard
    the first batch axis, where that is a multiple of them.

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

    def run(params: LSTMParams, state: LSTMState, initial: Any, masks: Any, zoneout: Any, xs: Any, step_masks: Any):
        *batch, units = state.c.shape
        if units % devices:
            raise ValueError(
                f"options.units_axis={axis!r}: {units} units cannot be divided over the {devices} devices of that "
                f"axis; choose a multiple of {devices}."
            )
        divides = batch and batch[0] % math.prod(mesh.shape[name] for name in others) == 0
        rows = others if divides else None

        def specs(tree, *axes, last=None):
            """Specs of arrays whose first axes, and whose last one, are sharded over these axes of the mesh."""

            def named(leaf):
                spec = [*axes, *[None] * leaf.ndim][: leaf.ndim]
                return PartitionSpec(*spec[:-1], last) if last else PartitionSpec(*spec)

            return jax.tree.map(named, tree)

        def by_rows(matrix):
            return len(matrix) % devices == 0

        matrices = params.w_x, params.w_h
        vectors = jax.tree.map(lambda leaf: leaf.reshape(-1, units), (params.bias, params.w_peephole))
        shared, own, whole = (vectors, initial), (state, masks.candidate), (xs, masks.inputs, masks.recurrent)
        given = {
            "matrices": (matrices, tuple(specs(m, axis if by_rows(m) else None) for m in matrices)),
            "shared": (shared, specs(shared, last=axis)),
            "own": (own, specs(own, rows, last=axis)),
            "zoneout": (zoneout, specs(zoneout, None, rows, last=axis)),
            "whole": (whole, specs(whole, rows)),
            "step_masks": (step_masks, specs(step_masks, None, rows)),
        }

        def part(given):
            parts = zip(given["matrices"], map(by_rows, matrices), strict=True)
            w_x, w_h = (_columns(matrix, units, axis, by_rows=sharded) for matrix, sharded in parts)
            vectors, initial = given["shared"]
            bias, w_peephole = jax.tree.map(lambda leaf: leaf.reshape(-1), vectors)
            (state, candidate), (xs, inputs, recurrent) = given["own"], given["whole"]
            params = LSTMParams(w_x, w_h, bias, w_peephole)
            masks = SequenceMasks(inputs=inputs, recurrent=recurrent, candidate=candidate)
            return function(params, state, initial, masks, given["zoneout"], xs, given["step_masks"])

        in_specs = {name: spec for name, (_, spec) in given.items()}
        names = {axis, *(rows or ())}
        compute = jax.shard_map(part, in_specs=(in_specs,), out_specs=specs(results, rows, last=axis), axis_names=names)
        return compute({name: argument for name, (argument, _) in given.items()})

    return run


def _columns(matrix, units, axis, *, by_rows):
    """Take this device's columns of each gate, from its rows of the matrix or, if those are not divided, from all."""
    gates = matrix.reshape(matrix.shape[0], -1, units)
    if by_rows:
        gates = jax.lax.all_to_all(gates, axis, split_axis=2, concat_axis=0, tiled=True)
    else:
        size = units // jax.lax.axis_size(axis)
        gates = jax.lax.pcast(gates, axis, to="varying")
        gates = jax.lax.dynamic_slice_in_dim(gates, jax.lax.axis_index(axis) * size, size, axis=2)
    return gates.reshape(gates.shape[0], -1)
