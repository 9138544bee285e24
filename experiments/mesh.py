"""The devices that a run trains on, of one process or of several: [mesh] in a config.

Arrays belong to all processes at once, and each holds what lies on its own devices: of params by the rules of
`lstmjax.sharding`, of the training data and of every batch a part, of all else the whole. Programs are the same for any
mesh; only sums over devices round differently.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.runs import RunError
from lstmjax import LSTMOptions, LSTMParams, sharding

NAMED = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
HEARTBEAT = 30  # seconds after which a process that is gone ends the others


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of [mesh] in a config."""

    data: int = 1
    """Devices among which the sequences of a batch are divided."""
    model: int = 1
    """Devices among which the units of each LSTM are divided."""

    def __post_init__(self):
        for name in ("data", "model"):
            if getattr(self, name) < 1:
                raise ValueError(f"mesh.{name} is {getattr(self, name)}; it must be at least 1")


def join() -> None:
    """Become one of several processes: by JAX_COORDINATOR_ADDRESS, ..., or by what JAX finds out about its cluster.

    Raises:
        ValueError: there is no such thing in the environment, or not all of it.
    """
    given = {name: os.environ[name] for name in NAMED if name in os.environ}
    if not given:
        try:
            return jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
        except ValueError as error:
            raise ValueError(f"JAX finds no cluster here ({error}); set {', '.join(NAMED)}") from None
    if missing := [name for name in NAMED if name not in given]:
        raise ValueError(f"of the environment, {', '.join(given)} is set and {', '.join(missing)} is not; set all")
    address, *numbers = given.values()
    try:
        count, number = map(int, numbers)
    except ValueError:
        raise ValueError(f"{' and '.join(NAMED[1:])} must be numbers, not {' and '.join(numbers)}") from None
    jax.distributed.initialize(address, count, number, heartbeat_timeout_seconds=HEARTBEAT)


def make(options: Options) -> Mesh:
    """The mesh of a run.

    Raises:
        ValueError: there are not enough devices, or several processes of which some would have no part.
    """
    asked, there = options.data * options.model, jax.device_count()
    if asked > there or (jax.process_count() > 1 and asked < there):
        raise ValueError(
            f"mesh.data * mesh.model is {options.data} * {options.model}; there are {there} devices in "
            f"{jax.process_count()} processes"
        )
    return sharding.mesh(data=options.data, model=options.model)


def one() -> Mesh:
    """A mesh of one device."""
    return make(Options())


def check(options: Options, batch: int, params: Any) -> None:
    """Raise a ValueError unless a batch, and the units of these params, can be divided."""
    if batch % options.data:
        raise ValueError(f"train.batch is {batch}; it must be a multiple of mesh.data, which is {options.data}")
    found = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda node: isinstance(node, LSTMParams))
    lstms = {jax.tree_util.keystr(path, simple=True, separator="/"): node for path, node in found}
    lstms = {path: node.units for path, node in lstms.items() if isinstance(node, LSTMParams)}
    if options.model > 1 and not lstms:
        raise ValueError(f"mesh.model is {options.model}; the model has no LSTM whose units could be divided")
    for path, units in lstms.items():
        if units % options.model:
            raise ValueError(f"mesh.model is {options.model}; it must divide the {units} units of {path}")


def lstm_options(**options: Any) -> LSTMOptions:
    """LSTMOptions that divide units where a mesh is set."""
    axis = "model" if "model" in jax.sharding.get_abstract_mesh().axis_names else None
    return LSTMOptions(units_axis=axis, **options)


def whole(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays that every device has whole."""
    return NamedSharding(mesh, P())


def of_state(mesh: Mesh, state: Any) -> Any:
    """Sharding of the params and the optimizer of a training state; all else of it is whole."""
    return sharding.shardings(state, mesh)


def place(mesh: Mesh, data: Any) -> Any:
    """Arrays of examples, of which each device gets its part, where they can be divided."""

    def placed(leaf):
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, lying(mesh, leaf).sharding, whole.__getitem__)

    return jax.tree.map(placed, data)


def lying(mesh: Mesh, leaf: Any) -> jax.ShapeDtypeStruct:
    """Sharding of an array of examples."""
    spec = P("data") if leaf.shape and leaf.shape[0] % mesh.shape["data"] == 0 else P()
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))


def divided(batches: Any) -> Any:
    """Batches [steps, batch, ...], of which each device has its part, where they can be divided."""
    mesh = jax.sharding.get_abstract_mesh()

    def part(leaf):
        if leaf.ndim < 2 or leaf.shape[1] % mesh.shape["data"]:
            return leaf
        return jax.lax.with_sharding_constraint(leaf, P(None, "data"))

    return jax.tree.map(part, batches)


def leads() -> bool:
    """True for the process that prints for all."""
    return jax.process_index() == 0


def greatest(number: int) -> int:
    """Largest of the numbers of all processes; each must call it."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def by_leader(make: Callable[[], object]) -> str:
    """Text made by the leading process, or the error that it raises; each process must call it."""
    if jax.process_count() == 1:
        return str(make())
    text, error = "", None
    if leads():
        try:
            text = str(make())
        except Exception as met:
            text, error = str(met), met
    failed, text = _broadcast(error is not None, text)
    if error:
        raise error
    if failed:
        raise RunError(text)
    return text


def _broadcast(flag: bool, text: str) -> tuple[bool, str]:
    coded = text.encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(coded))))
    sent = np.zeros(size + 1, np.uint8)
    if leads():
        sent[:] = [flag, *coded]
    flagged, *coded = np.asarray(multihost_utils.broadcast_one_to_all(sent)).tolist()
    return bool(flagged), bytes(coded).decode()
