"""Settings for compiling in tests: little effort, and each program once for a checkout and a kind of processor.

Everything is set through the environment, so that processes started by a test do the same.
"""

import contextlib
import hashlib
import platform
import sys
from importlib import metadata
from pathlib import Path

CACHE = Path(__file__).parents[1] / ".cache" / "programs"

# A test compiles much and computes little.
LITTLE_EFFORT = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
# The emitters take more than half of the time of a small program. Later XLA has nothing else, and refuses the flag.
if tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    LITTLE_EFFORT.append("--xla_cpu_use_fusion_emitters=false")

# A file that a killed process left half written, or that another is writing, is passed over with a warning; the former
# by all later processes, until the folder is deleted.
WARNINGS = "error,ignore:Error reading persistent compilation cache entry"  # of processes; pyproject.toml has its own


def processor() -> str:
    """The model and the instruction sets of this machine's processor, as the operating system lists them."""
    listing = Path("/proc/cpuinfo")
    if not listing.exists():
        return f"{platform.machine()} {platform.processor()}"
    lines = listing.read_text().splitlines()
    return "\n".join(
        sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    )


def folder(processor: str) -> Path:
    """The cache of one Python on one kind of processor: a program made for AVX-512 is not found without it."""
    digest = hashlib.sha256(processor.encode()).hexdigest()[:12]
    return CACHE / f"python{sys.version_info.major}.{sys.version_info.minor}-{platform.machine()}-{digest}"


def prune(path: Path, limit: int) -> None:
    """Delete the oldest programs above `limit` bytes, since every change of the library adds some."""
    entries = []
    for entry in path.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another process may prune, too
            entries.append((entry.stat(), entry))
    excess = sum(stat.st_size for stat, _ in entries) - limit
    for stat, entry in sorted(entries, key=lambda pair: pair[0].st_mtime):
        if excess <= 0:
            break
        entry.unlink(missing_ok=True)
        excess -= stat.st_size


def configure(environ) -> None:
    """Set the variables that JAX reads as it is imported; flags and a folder that the caller chose stay.

    With EFFORT=full in the environment the compiler is left as users have it.
    """
    environ["JAX_PLATFORMS"] = "cpu"
    little = [] if environ.get("EFFORT") == "full" else LITTLE_EFFORT
    chosen = [flag for flag in environ.get("XLA_FLAGS", "").split() if flag not in little]
    environ["XLA_FLAGS"] = " ".join((*little, *chosen))  # the same in a worker, since programs are cached by it
    environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder(processor())))
    environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # a program's lines of Python take time and help nobody here
