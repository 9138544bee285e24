"""Checkpoints: every bit comes back, and what was not wholly written is not there."""

import shutil

import jax
import numpy as np
from orbax.checkpoint.utils import TMP_DIR_SUFFIX

from experiments.checkpoint import Checkpoints
from experiments.models import Model
from experiments.tasks import adding
from experiments.train import Train, initial_state
from lstmjax import lstm

TASK = adding.build(adding.Options(length=22), Model(units=3), 4, jax.random.key(0))


def state(seed, step):
    start = initial_state(TASK, Train(seed=seed))
    carried = lstm.LSTMState(*jax.random.normal(jax.random.key(seed), (2, 4, 3)))
    return start.replace(step=start.step + step, recent=start.recent.at[-1].set(0.1 * step), carried=carried)


def test_every_bit_comes_back(tmp_path):
    saved = state(1, step=7)
    Checkpoints(tmp_path / "c").save(saved)
    found = Checkpoints(tmp_path / "c")
    assert found.latest() == 7
    restored = found.restore(state(2, step=0))
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    for ours, other in zip(jax.tree.leaves(restored), jax.tree.leaves(saved), strict=True):
        assert ours.dtype == other.dtype
        assert np.asarray(ours).tobytes() == np.asarray(other).tobytes()


def test_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    for step in (1, 5, 12):
        checkpoints.save(state(1, step))
    assert sorted(int(p.name) for p in (tmp_path / "c").iterdir()) == [5, 12]
    assert checkpoints.latest() == 12


def test_checkpoint_a_kill_cut_short_is_passed_over(tmp_path):
    Checkpoints(tmp_path / "c").save(state(1, step=3))
    # Orbax writes under this name and renames once all is there.
    torn = tmp_path / "c" / f"8{TMP_DIR_SUFFIX}"
    shutil.copytree(tmp_path / "c" / "3", torn)
    (torn / "_CHECKPOINT_METADATA").unlink()
    found = Checkpoints(tmp_path / "c")
    assert found.latest() == 3
    assert int(found.restore(state(2, step=0)).step) == 3
    found.save(state(1, step=8))
    assert Checkpoints(tmp_path / "c").latest() == 8


def test_no_checkpoint_yet(tmp_path):
    assert Checkpoints(tmp_path / "c").latest() is None
