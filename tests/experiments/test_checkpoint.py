"""Checkpoints: every bit comes back, and what was not wholly written is not there."""

import functools
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint.utils import TMP_DIR_SUFFIX

from experiments.checkpoint import PARTIAL, SUMS, Checkpoints
from experiments.models import Model
from experiments.runs import RunError
from experiments.tasks import adding
from experiments.train import Train, initial_state
from lstmjax import lstm

pytestmark = pytest.mark.versions

TASK = adding.build(adding.Options(length=22), Model(units=3), 4, jax.random.key(0))


start = functools.cache(lambda seed: initial_state(TASK, Train(seed=seed)))


def state(seed, step):
    recent = np.array(start(seed).recent)
    recent[-1] = 0.1 * step
    carried = np.random.default_rng(seed).normal(size=(2, 4, 3)).astype(np.float32)
    values = {"step": np.int32(step), "recent": recent, "carried": lstm.LSTMState(*carried)}
    return start(seed).replace(**jax.tree.map(jnp.asarray, values))


def test_every_bit_comes_back(tmp_path):
    saved = state(1, step=7)
    Checkpoints(tmp_path / "c").save(saved)
    found = Checkpoints(tmp_path / "c")
    assert found.latest() == 7
    restored = found.restore(7, state(1, step=0))
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


@pytest.mark.parametrize("suffix", [f"{PARTIAL}{TMP_DIR_SUFFIX}", PARTIAL])
def test_checkpoint_a_kill_cut_short_is_passed_over(tmp_path, suffix):
    """Orbax writes under the first name and renames to the second, which has no sums yet."""
    Checkpoints(tmp_path / "c").save(state(1, step=3))
    torn = tmp_path / "c" / f"8{suffix}"
    shutil.copytree(tmp_path / "c" / "3", torn)
    (torn / SUMS).unlink()
    found = Checkpoints(tmp_path / "c")
    assert found.newest() == (3, {})
    assert int(found.restore(3, state(1, step=0)).step) == 3
    found.save(state(1, step=8))
    assert Checkpoints(tmp_path / "c").latest() == 8
    assert not torn.exists()


def test_no_checkpoint_yet(tmp_path):
    assert Checkpoints(tmp_path / "c").newest() == (None, {})


def test_sums_are_those_of_sha256sum(tmp_path):
    Checkpoints(tmp_path / "c").save(state(1, step=3))
    checked = subprocess.run(["sha256sum", "-c", SUMS], cwd=tmp_path / "c" / "3", capture_output=True, text=True)
    assert checked.returncode == 0, checked
    files = [path for path in (tmp_path / "c" / "3").rglob("*") if path.is_file()]
    assert checked.stdout.count(": OK\n") == len(files) - 1


def test_every_damage_is_noticed(tmp_path):
    """In every file: a bit flipped, the end cut off, all of it gone; and a file too many."""
    checkpoints, draw = Checkpoints(tmp_path / "c"), np.random.default_rng(0)
    checkpoints.save(state(1, step=3))
    folder = checkpoints.path(3)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[draw.integers(len(content))] ^= 1 << draw.integers(8)
        for damaged in (bytes(flipped), content[: draw.integers(len(content))], b""):
            path.write_bytes(damaged)
            assert checkpoints.newest()[0] is None, path
        path.unlink()
        step, wrong = checkpoints.newest()
        assert step is None
        assert path.name in wrong[folder]
        path.write_bytes(content)
        assert checkpoints.newest() == (3, {})
    (folder / "more").touch()
    assert checkpoints.newest() == (None, {folder: f"more is not as {SUMS} has it"})


def test_damaged_are_passed_over_and_lose_their_names(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    for step in (3, 5, 8):
        checkpoints.save(state(1, step))
    for step in (5, 8):
        (checkpoints.path(step) / "_METADATA").unlink()
    step, wrong = checkpoints.newest()
    assert (step, list(wrong.items())) == (
        3,
        [(checkpoints.path(8), "_METADATA is missing"), (checkpoints.path(5), "_METADATA is missing")],
    )
    checkpoints.set_aside(after=3)
    assert checkpoints.steps() == [3]
    checkpoints.save(state(1, step=8))
    assert checkpoints.newest() == (8, {})
    checkpoints.set_aside(after=3)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["3", "5.corrupt", "8.corrupt"]


@functools.cache
def smaller():
    return initial_state(adding.build(adding.Options(length=22), Model(units=2), 4, jax.random.key(0)), Train(seed=1))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: state(2, 0), "the key of the data, which is made of train.seed, is "),
        (
            smaller,
            r"the array carried/c is float32\[4, 3\]; in this run it is not there",
        ),
        (
            lambda: smaller().replace(carried=state(1, 0).carried),
            r"the array optimizer/1/0/mu/dense/w is float32\[3, 1\]; in this run it is float32\[2, 1\]",
        ),
        (
            lambda: state(1, 0).replace(step=np.int16(0)),
            r"the array step is int32\[\]; in this run it is int16\[\]",
        ),
    ],
    ids=["seed", "carried", "units", "type"],
)
def test_checkpoint_of_another_run_is_refused(tmp_path, other, words):
    Checkpoints(tmp_path / "c").save(state(1, step=3))
    with pytest.raises(RunError, match=f"c/3 is not of this run: {words}"):
        Checkpoints(tmp_path / "c").restore(3, other())


def test_checkpoint_of_another_step_is_refused(tmp_path):
    """Which data comes next depends on the step."""
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(state(1, step=3))
    checkpoints.path(3).rename(checkpoints.path(5))
    with pytest.raises(RunError, match="c/5 is not of this run: the step is 3; in this run it is 5"):
        checkpoints.restore(5, state(1, step=0))
