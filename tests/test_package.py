import importlib.metadata
import subprocess
import sys

import pytest

import lstmjax

pytestmark = pytest.mark.versions


def test_import_loads_jax_and_nothing_heavy():
    script = (
        "import sys, jax, jax.numpy, jaxtyping; before = set(sys.modules); import lstmjax; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name for name in result.stdout.split() if name not in sys.stdlib_module_names}
    assert loaded <= {"lstmjax", "jax", "jaxtyping"}


def test_version():
    assert lstmjax.__version__ == importlib.metadata.version("lstmjax")


def test_core_dependencies():
    requirements = [r for r in importlib.metadata.requires("lstmjax") or [] if "extra ==" not in r]
    assert {r.split(">=")[0] for r in requirements} == {"jax", "jaxlib", "jaxtyping"}
