"""The experiments' annotations are checked as they run; commands run in this process, and some as a user runs them."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import jaxtyping
import programs
import pytest

CHECKED = [f"experiments.{name}" for name in ("data", "linear", "models", "ngram", "tagger", "task", "tasks")]

with jaxtyping.install_import_hook(CHECKED, "beartype.beartype"):
    import experiments.tasks
    from experiments.__main__ import main
    from experiments.data import dialogues, files

ROOT = Path(__file__).parents[2]
WRITE = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # for `launch`, of a process that is not killed


@pytest.fixture(scope="session")
def configs():
    return ROOT / "configs"


@pytest.fixture(scope="session")
def switchboard():
    """The real conversations by their splits."""
    if files.locate("swda", Path.is_dir) is None:
        pytest.skip("Switchboard is not on this machine: LSTMJAX_DATA names no folder that has it")
    return dialogues.load()


@pytest.fixture(scope="session")
def call():
    """Runs a command in this process; gives (exit code, stdout, stderr)."""

    def run(folder: Path, *arguments: object, **env: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.chdir(folder)
            for name, value in env.items():
                patch.setenv(name, value)
            forget()
            try:
                code = main([str(argument) for argument in arguments])
            finally:
                forget()
        return code, out.getvalue(), err.getvalue()

    return run


def forget():
    """Nothing stays that a task has read of files, so that the next one may find others."""
    for found in vars(experiments.tasks.swda).values():
        if hasattr(found, "cache_clear"):
            found.cache_clear()


@pytest.fixture(scope="session")
def launch():
    """Starts `python -m experiments ...`, or another program, in a folder; warnings are errors.

    It reads programs of the cache of the tests, but adds none unless told to: JAX writes them in place, so that a kill
    may tear one.
    """
    command = (sys.executable, "-m", "experiments")

    def start(folder: Path, *arguments: object, program: tuple[str, ...] = command, **env: str) -> subprocess.Popen:
        settings = {
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": programs.WARNINGS,
            "COLUMNS": "120",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9",
        }
        return subprocess.Popen(
            [*program, *map(str, arguments)],
            cwd=folder,
            env=os.environ | settings | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def process(launch):
    """Runs a command in a process of its own to its end; gives (exit code, stdout, stderr)."""

    def run(folder: Path, *arguments: object, **env: str) -> tuple[int, str, str]:
        started = launch(folder, *arguments, **WRITE | env)
        out, err = started.communicate(timeout=300)
        return started.returncode, out, err

    return run
