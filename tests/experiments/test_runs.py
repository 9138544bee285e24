"""The run's folder: never clobbered, never torn."""

import errno
import json
import os
import platform
import subprocess

import pytest

from experiments import runs


def test_every_run_gets_a_folder_of_its_own(tmp_path):
    made = [runs.create(str(tmp_path / "runs"), "a", f"name = {i}") for i in range(3)]
    assert [run.folder.name for run in made] == ["a-001", "a-002", "a-003"]
    assert [run.config.read_text() for run in made] == ["name = 0", "name = 1", "name = 2"]
    assert runs.all_runs(tmp_path / "runs") == made


def test_folder_that_cannot_be_made_is_an_error_of_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(runs.RunError, match=r"no folder for the run can be made in .*file"):
        runs.create(str(tmp_path / "file"), "a", "")


def test_resuming_elsewhere_is_noticed(tmp_path):
    run = runs.create(str(tmp_path), "a", "")
    assert runs.differences(run) == {}
    then = json.loads(run.environment.read_text())
    run.environment.write_text(json.dumps(then | {"python": "3.0"}))
    assert runs.differences(run) == {"python": ("3.0", then["python"])}


def test_environment_says_what_ran(tmp_path):
    run = runs.create(str(tmp_path), "a", "")
    said = json.loads((run.folder / "environment.json").read_text())
    assert said["packages"]["jax"] == runs.jax.__version__
    assert (said["backend"], said["devices"]) == ("cpu", 1)
    assert said["argv"] == runs.sys.argv


def test_git_is_the_commit_of_the_source_or_none(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    (source / "runs.py").write_text("")
    monkeypatch.setattr(runs, "__file__", str(source / "runs.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert runs._git() is None

    def git(*command):
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        done = subprocess.run(["git", *identity, *command], cwd=source, capture_output=True, check=True)
        return done.stdout.decode().strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    assert runs._git() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (source / "runs.py").write_text("changed")
    assert runs._git()["dirty"]


def test_truncate_drops_later_lines_and_the_torn_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (10, 20, 30):
        runs.append(path, {"step": step, "loss": 0.1 + step})
    before = path.read_bytes().splitlines(keepends=True)
    with path.open("a") as file:
        file.write('{"step": 40, "lo')
    runs.truncate(path, 20)
    assert path.read_bytes() == b"".join(before[:2])
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_folder_is_held_by_one(tmp_path):
    run = runs.create(str(tmp_path), "a", "")
    with runs.alone(run):
        holder = f"process {os.getpid()} on {platform.node()}"
        with pytest.raises(runs.RunError, match=f"a-001 is being trained by {holder}; "), runs.alone(run):
            pass
    with runs.alone(run):
        pass


def test_folder_that_cannot_be_locked_is_refused(tmp_path, monkeypatch):
    """As on a network's file system that knows no locks, which cannot be had here."""

    def refuse(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(runs.fcntl, "flock", refuse)
    run = runs.create(str(tmp_path), "a", "")
    with pytest.raises(runs.RunError, match="lock cannot be locked: No locks available; --out"), runs.alone(run):
        pass


def test_file_that_cannot_be_written_is_named_with_the_reason(tmp_path):
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(runs.RunError, match="full cannot be written: No space left on device"):
        runs.append(tmp_path / "full", {"step": 1})


def test_folder_that_is_no_run_is_answered_with_those_that_are(tmp_path):
    run = runs.create(str(tmp_path), "a", "")
    with pytest.raises(runs.RunError, match=rf"a-002 is not a run: it has no config.toml; .*{run.folder.name}"):
        runs.find(str(tmp_path / "a-002"))
