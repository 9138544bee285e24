"""Every test runs with four CPU devices, rank promotion refused, and shapes checked against annotations."""

import os

# A test compiles much and computes little, so its programs are not optimised as others are.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    )
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["MPLBACKEND"] = "agg"

import hypothesis
import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

with jaxtyping.install_import_hook("lstmjax", "beartype.beartype"):
    import lstmjax  # noqa: F401

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci")


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_module_at_a_time():
    """A process may map 65,530 pieces of memory; the programs of all tests are more."""
    yield
    jax.clear_caches()


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
