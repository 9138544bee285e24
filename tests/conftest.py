"""Programs are cached and compiled with little effort; rank promotion is refused; annotations are checked."""

# ruff: noqa: E402 - the environment is set before JAX is imported

import gc
import inspect
import os
from pathlib import Path

import programs

programs.configure(os.environ)
os.environ["MPLBACKEND"] = "agg"

import hypothesis
import jax
import jaxtyping
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.extend import backend

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 1)

jaxtyped = jaxtyping.jaxtyped


def checked(*, typechecker):
    """`jaxtyped` for functions with annotations and for classes.

    It would wrap functions without annotations, too, and those defined inside another one anew at each of its calls.
    """

    def decorate(function):
        bare = inspect.isfunction(function) and not function.__annotations__
        return function if bare else jaxtyped(function, typechecker=typechecker)

    return decorate


jaxtyping.jaxtyped = checked  # the name that the import hook puts above every function

with jaxtyping.install_import_hook("lstmjax", "beartype.beartype"):
    import lstmjax  # noqa: F401

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci")


def pytest_sessionstart(session):
    """Once for all workers, before they start."""
    if not hasattr(session.config, "workerinput"):
        programs.prune(programs.folder(programs.processor()), limit=2**30)


def pytest_collection_modifyitems(items):
    """Tests of meshes come last, since the backend is changed for them and forgets what was compiled."""
    items.sort(key=lambda item: "four_devices" in item.fixturenames)


def pytest_collection_finish():
    """Keep the garbage collector from looking at all that is imported, again and again, while programs are traced."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def four_devices():
    """Four simulated CPU devices, which `pytest_runtest_setup` makes; all other tests have one."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Make the devices that a test wants, if the one before wanted others: workers steal tests, so any order occurs."""
    devices = 4 if "four_devices" in item.fixturenames else 1
    if jax.config.jax_num_cpu_devices != devices:
        backend.clear_backends()
        jax.config.update("jax_num_cpu_devices", devices)


@pytest.fixture(scope="module", autouse=True)
def programs_fit_the_process():
    """A process may map 65,530 pieces of memory, and a program takes several."""
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or len(maps.read_bytes().splitlines()) > 30_000:
        jax.clear_caches()


@pytest.fixture
def nothing_cached():
    """For tests that count compilations."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.fixture
def untyped():
    """Without the run-time shape checks, so that the package's own errors are seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
