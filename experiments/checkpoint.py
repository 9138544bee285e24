"""The training state on disk, by Orbax: whole or not there at all."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from experiments.train import TrainState


class Checkpoints:
    """The newest few states of one run, by step."""

    def __init__(self, folder: Path, keep: int = 3):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self.folder = folder
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, state: TrainState) -> None:
        self._manager.save(int(state.step), args=ocp.args.StandardSave(state), force=True)

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def restore(self, like: TrainState) -> TrainState:
        """The newest whole checkpoint, as arrays of the shapes, dtypes and devices of `like`."""
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored: Any = self._manager.restore(self.latest(), args=ocp.args.StandardRestore(shapes))
        return restored
