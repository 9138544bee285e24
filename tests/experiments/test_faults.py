"""What a machine does to a run: kills, signals, two at once, broken files, a disk that takes no more."""

import json
import os
import platform
import re
import resource
import shutil
import signal
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
from orbax.checkpoint.utils import TMP_DIR_SUFFIX

from experiments import runs
from experiments.checkpoint import PARTIAL, Checkpoints
from experiments.runs import Run

pytestmark = pytest.mark.training

KILLS = int(os.environ.get("LSTMJAX_KILLS", "4"))
SAVES = 12  # between two kills at most, so that no run ends before its last

CONFIG = """
task = "adding"
[data]
length = 22
[model]
units = 8
[train]
steps = 90
batch = 4
schedule = "cosine"
log_every = 5
evaluate_every = 5
save_every = 5
"""
LONGER = CONFIG.replace("steps = 90", f"steps = {5 * SAVES * (KILLS + 1)}")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, call):
    """Makes a run that nothing stops, most of whose time goes into checkpoints."""

    def finish(config):
        folder = tmp_path_factory.mktemp("whole")
        (folder / "a.toml").write_text(config)
        code, _, err = call(folder, "run", "a.toml")
        assert code == 0, err
        return Run(folder / "runs" / "a-001")

    return finish


@pytest.fixture(scope="module")
def whole(finished):
    return finished(CONFIG)


@pytest.fixture
def run(tmp_path):
    """A config, and the run it becomes."""
    (tmp_path / "a.toml").write_text(CONFIG)
    return Run(tmp_path / "runs" / "a-001")


@pytest.fixture
def stopped(whole, tmp_path):
    """A run with three checkpoints that was killed before its result."""
    run = Run(tmp_path / "runs" / "a-001")
    shutil.copytree(whole.folder, run.folder)
    run.result.unlink()
    return run


def assert_same_end(run, other):
    for name in ("metrics", "result", "config"):
        assert getattr(run, name).read_bytes() == getattr(other, name).read_bytes(), name


def wait_for(condition, process):
    while not (found := condition()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    return found


def said(process, words):
    """Reads what the process prints up to a line with these words."""
    if not any(words in line for line in process.stdout):
        raise AssertionError(process.communicate())


@contextmanager
def ended(process):
    """Whatever happens within, no process stays."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def data_of(checkpoint):
    """The largest file, where the numbers are."""
    return max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.long
def test_killed_at_random_moments_it_ends_where_the_whole_run_does(finished, launch, call, run):
    """Each kill comes a random number of checkpoints, and a random part of the next, after training begins."""
    whole = finished(LONGER)
    (run.folder.parents[1] / "a.toml").write_text(LONGER)
    draw, found, newest = np.random.default_rng(0), Checkpoints(run.checkpoints), 0
    folder, expected, command = run.folder.parents[1], whole.metrics.read_text(), ("run", "a.toml")
    for kill in range(KILLS):
        with ended(launch(folder, *command)) as process:
            said(process, f"on from step {newest}\n" if kill else "total")
            seen, began = newest, time.monotonic()
            saves = int(draw.integers(SAVES - 3))
            for _ in range(saves):
                seen = wait_for(lambda seen=seen: next((s for s in found.steps() if s > seen), None), process)
            time.sleep(draw.uniform(0, (time.monotonic() - began) / saves if saves else 1))
            assert process.poll() is None
        assert process.returncode == -signal.SIGKILL
        newest, wrong = found.newest()
        newest = newest or 0
        torn = [path.name for path in run.checkpoints.glob(f"*{PARTIAL}*")]
        print(f"kill {kill + 1}: the newest checkpoint is {newest}, torn are {torn or 'none'}")
        assert not wrong
        assert newest >= seen
        lines = "".join(f"{json.dumps(line)}\n" for line in runs.read(run.metrics))
        assert expected.startswith(lines)
        assert lines.count("\n") >= newest // 5
        command = ("resume", run.folder)
    code, out, err = call(folder, *command)
    assert code == 0, err
    assert f"on from step {newest}\n" in out
    assert_same_end(run, whole)


@pytest.mark.slow
def test_killed_in_the_middle_of_a_write_it_goes_on_from_the_checkpoint_before(whole, launch, call, run):
    found = Checkpoints(run.checkpoints)

    def torn():
        """The process is stopped, and a checkpoint newer than all that are whole has some of its files."""
        if not any(run.checkpoints.glob(f"*{PARTIAL}*")) or not found.steps():
            return None
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        for path in run.checkpoints.glob(f"*{PARTIAL}{TMP_DIR_SUFFIX}"):
            if any(file.is_file() for file in path.rglob("*")):
                return path
        process.send_signal(signal.SIGCONT)
        return None

    with ended(launch(run.folder.parents[1], "run", "a.toml")) as process:
        path = wait_for(torn, process)
    step, wrong = found.newest()
    assert not wrong
    assert path.is_dir()
    assert int(path.name.partition(".")[0]) == step + 5
    code, out, err = call(run.folder.parents[1], "resume", run.folder)
    assert code == 0, err
    assert f"on from step {step}\n" in out
    assert "warning" not in err
    assert_same_end(run, whole)
    assert not path.exists()


@pytest.mark.long
def test_sigterm_saves_and_exits_with_143(whole, launch, call, run):
    with ended(launch(run.folder.parents[1], "run", "a.toml")) as process:
        wait_for(lambda: runs.read(run.metrics), process)
        process.terminate()
        out, err = process.communicate()
    assert process.returncode == 143, err
    step = Checkpoints(run.checkpoints).latest()
    assert f"stopped and saved at step {step};" in out
    assert runs.read(run.metrics)[-1]["step"] == step
    code, _, err = call(run.folder.parents[1], "resume", run.folder)
    assert code == 0, err
    assert_same_end(run, whole)


@pytest.mark.slow
def test_second_sigterm_ends_a_long_chunk_at_once(launch, run):
    long = [f"--train.{name}=20000" for name in ("steps", "log-every", "evaluate-every", "save-every")]
    with ended(
        launch(run.folder.parents[1], "run", "a.toml", *long, "--model.units=512", "--data.length=100")
    ) as process:
        said(process, "total")
        process.terminate()
        assert "once more to stop at once" in process.stderr.readline()
        process.terminate()
        assert process.wait() == -signal.SIGTERM
    assert not run.metrics.exists()


@pytest.mark.slow
def test_live_run_is_read_but_not_resumed(launch, call, run):
    folder = run.folder.parents[1]
    with ended(launch(folder, "run", "a.toml")) as process:
        step = wait_for(Checkpoints(run.checkpoints).latest, process)
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        before = run.metrics.read_bytes()
        code, _, err = call(folder, "resume", run.folder)
        assert code == 1
        assert f"{run.folder} is being trained by process {process.pid} on {platform.node()}" in err
        assert run.metrics.read_bytes() == before
        code, out, err = call(folder, "evaluate", run.folder)
        assert code == 0, err
        assert int(re.search(r"at step (\d+)", out)[1]) >= step
    with runs.alone(run):  # a lock ends with its process
        assert run.lock.read_text() == f"process {os.getpid()} on {platform.node()}"


@pytest.mark.slow
def test_damaged_checkpoint_is_named_and_the_one_before_taken(whole, call, stopped):
    checkpoints = Checkpoints(stopped.checkpoints)
    newest, before, _ = map(checkpoints.path, checkpoints.steps())
    data = data_of(newest)
    damage(data)
    warning = (
        f"warning: {newest} is not whole: {data.relative_to(newest)} is not as SHA256SUMS has it; taking {before}\n"
    )
    code, out, err = call(stopped.folder, "evaluate", stopped.folder)
    assert code == 0, err
    assert warning in err
    assert f"at step {before.name}" in out
    code, out, err = call(stopped.folder, "resume", stopped.folder)
    assert code == 0, err
    assert warning in err
    assert f"on from step {before.name}\n" in out
    assert_same_end(stopped, whole)
    assert checkpoints.newest() == (int(newest.name), {})
    assert (stopped.checkpoints / f"{newest.name}.corrupt").is_dir()


@pytest.mark.slow
def test_no_whole_checkpoint_is_an_error(call, stopped):
    checkpoints, before = Checkpoints(stopped.checkpoints), stopped.metrics.read_bytes()
    for path in map(checkpoints.path, checkpoints.steps()):
        data_of(path).unlink()
    for command in ("resume", "evaluate"):
        code, _, err = call(stopped.folder, command, stopped.folder)
        assert code == 1
        assert f"no checkpoint of {stopped.folder} is whole" in err
        assert err.count(" is missing") == 3
    assert stopped.metrics.read_bytes() == before
    assert len(checkpoints.steps()) == 3


@pytest.mark.slow
def test_checkpoints_of_another_seed_are_not_resumed(call, stopped, tmp_path):
    """The same arrays, but another place in other data."""
    (tmp_path / "a.toml").write_text(CONFIG)
    code, _, err = call(tmp_path, "run", "a.toml", "--train.seed=1", "--train.steps=5")
    assert code == 0, err
    shutil.rmtree(stopped.checkpoints)
    shutil.copytree(tmp_path / "runs" / "a-002" / "checkpoints", stopped.checkpoints)
    before = stopped.metrics.read_bytes()
    code, _, err = call(tmp_path, "resume", stopped.folder)
    assert code == 1
    assert (
        f"{stopped.checkpoints / '5'} is not of this run: the key of the data, which is made of train.seed, is [" in err
    )
    assert stopped.metrics.read_bytes() == before


@pytest.mark.parametrize("limit", [pytest.param(5000, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.long)])
def test_file_that_may_not_grow_ends_the_run_and_costs_no_checkpoint(whole, launch, call, run, limit):
    """Threads that TensorStore leaves behind may complain too, at any time: one line is the run's own."""
    folder, found = run.folder.parents[1], Checkpoints(run.checkpoints)
    with ended(launch(folder, "run", "a.toml")) as process:
        seen = wait_for(found.latest, process)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        _, err = process.communicate()
    assert process.returncode == 1
    (last,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert re.fullmatch(r"error: runs/a-001/(metrics.jsonl|checkpoints/\d+) cannot be written: File too large", last)
    newest, wrong = found.newest()
    assert newest >= seen
    assert not wrong
    code, out, err = call(folder, "resume", run.folder)
    assert code == 0, err
    assert f"on from step {newest}\n" in out
    assert_same_end(run, whole)


DISK = """
mkdir runs && mount -t tmpfs -o size=300k tmpfs runs || exit 77
"$PYTHON" -m experiments run a.toml 2>full; echo $? >>codes
ls runs/a-001/checkpoints >names
mount -o remount,ro runs || exit 77
"$PYTHON" -m experiments resume runs/a-001 2>readonly; echo $? >>codes
"$PYTHON" -m experiments evaluate runs/a-001 >evaluated; echo $? >>codes
mount -o remount,rw,size=50m runs
"$PYTHON" -m experiments resume runs/a-001 >resumed; echo $? >>codes
cp -r runs/a-001 kept
"""


@pytest.mark.slow
def test_full_and_read_only_disks_are_named_and_cost_no_checkpoint(whole, launch, run):
    """On a small file system in memory, which only the processes of this script see."""
    folder = run.folder.parents[1]
    namespace = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", DISK)
    with ended(launch(folder, program=namespace, PYTHON=sys.executable)) as process:
        _, err = process.communicate()
    if process.returncode == 77:
        pytest.skip(f"no file system can be mounted here: {err}")
    assert process.returncode == 0, err
    assert (folder / "codes").read_text().split() == ["1", "1", "0", "0"]
    full, readonly = ((folder / name).read_text() for name in ("full", "readonly"))
    (last,) = [line for line in full.splitlines() if line.startswith("error: ")]
    assert re.fullmatch(r"error: runs/a-001/checkpoints/\d+ cannot be written: No space left on device", last)
    assert readonly == "error: runs/a-001/lock cannot be written: Read-only file system\n"
    newest = max(int(name) for name in (folder / "names").read_text().split() if name.isdecimal())
    assert newest > 0
    assert f"at step {newest}" in (folder / "evaluated").read_text()
    assert f"on from step {newest}\n" in (folder / "resumed").read_text()
    assert_same_end(Run(folder / "kept"), whole)


@pytest.mark.slow
def test_loss_that_is_no_number_names_step_config_and_last_good_checkpoint(call, run):
    """One update this long leaves parameters that are numbers, but of which no loss can be taken."""
    every = [f"--train.{name}-every=1" for name in ("log", "evaluate", "save")]
    rates = ("--train.learning-rate=1e25", "--train.clip=1e38")
    code, _, err = call(run.folder.parents[1], "run", "a.toml", *every, *rates)
    assert code == 1
    assert re.search(r"error: runs/a-001: the loss is (inf|nan) at step 2; the config: runs/a-001/config.toml; ", err)
    assert "the last good checkpoint: runs/a-001/checkpoints/1. Start" in err
    assert Checkpoints(run.checkpoints).newest() == (1, {})
