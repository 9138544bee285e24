"""The experiments' annotations are checked as they run, and the command line is run as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest

CHECKED = [f"experiments.{name}" for name in ("data", "linear", "models", "ngram", "tagger", "task", "tasks")]

with jaxtyping.install_import_hook(CHECKED, "beartype.beartype"):
    import experiments.tasks  # noqa: F401

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def configs():
    return ROOT / "configs"


@pytest.fixture(scope="session")
def launch(tmp_path_factory):
    """Starts `python -m experiments ...`, or another program, in a folder; what one compiled, the others read.

    Warnings are errors.
    """
    compiled = str(tmp_path_factory.mktemp("compiled"))

    command = (sys.executable, "-m", "experiments")

    def start(folder: Path, *arguments: object, program: tuple[str, ...] = command, **env: str) -> subprocess.Popen:
        settings = {
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "error",
            "COLUMNS": "120",
            "JAX_COMPILATION_CACHE_DIR": compiled,
        }
        settings["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
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
def call(launch):
    """Runs a command to its end; gives (exit code, stdout, stderr)."""

    def run(folder: Path, *arguments: object, **env: str) -> tuple[int, str, str]:
        process = launch(folder, *arguments, **env)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    return run
