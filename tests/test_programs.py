"""The cache of compiled programs: a folder for each kind of processor, and no harm from a torn file."""

import os
import subprocess
import sys
from pathlib import Path

import programs
import pytest

LISTING = """processor\t: {core}
model name\t: {model}
cpu MHz\t\t: {clock}
flags\t\t: fpu sse2 {flags}
"""


def described(monkeypatch, **given):
    """`processor()` of a machine with two cores whose operating system lists this."""
    text = "\n".join(LISTING.format(core=core, **given) for core in range(2))
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path: text)
    return programs.processor()


def test_a_folder_for_each_kind_of_processor(monkeypatch):
    old = described(monkeypatch, model="A", clock=2000.0, flags="avx2")
    assert programs.folder(old) == programs.folder(described(monkeypatch, model="A", clock=3111.5, flags="avx2"))
    for other in ({"model": "A", "flags": "avx2 avx512f"}, {"model": "B", "flags": "avx2"}):
        assert programs.folder(described(monkeypatch, clock=1.0, **other)) != programs.folder(old)


def test_flags_from_outside_come_last_and_a_given_folder_stays():
    environ = {"XLA_FLAGS": "--xla_of_the_caller", "JAX_COMPILATION_CACHE_DIR": "elsewhere"}
    programs.configure(environ)
    assert environ["XLA_FLAGS"].split()[-1] == "--xla_of_the_caller"
    assert environ["JAX_COMPILATION_CACHE_DIR"] == "elsewhere"
    environ = {}
    programs.configure(environ)
    assert environ["XLA_FLAGS"].split() == programs.LITTLE_EFFORT
    programs.configure(environ)  # as a worker does
    assert environ["XLA_FLAGS"].split() == programs.LITTLE_EFFORT
    assert environ["JAX_COMPILATION_CACHE_DIR"] == str(programs.folder(programs.processor()))
    environ = {"EFFORT": "full", "XLA_FLAGS": "--xla_of_the_caller"}
    programs.configure(environ)
    assert environ["XLA_FLAGS"] == "--xla_of_the_caller"


def test_the_oldest_programs_go_first(tmp_path):
    (tmp_path / "xla_autotune").mkdir()
    for age, name in enumerate("abc"):
        path = tmp_path / f"{name}-cache"
        path.write_bytes(bytes(10))
        os.utime(path, (100 - age, 100 - age))
    programs.prune(tmp_path, limit=25)
    assert {path.name for path in tmp_path.iterdir()} == {"a-cache", "b-cache", "xla_autotune"}
    programs.prune(tmp_path / "not there", limit=25)


COUNTED = """
import jax
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name.rpartition("/")[2]))
assert jax.jit(lambda x: 3 * x + 1)(2.0) == 7
print(found.count("cache_hits"), found.count("cache_misses"))
"""


def test_a_torn_file_is_compiled_again(tmp_path):
    """As a killed process leaves it, and as another sees it that is not yet written whole."""
    environ = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "PYTHONWARNINGS": programs.WARNINGS}

    def run():
        done = subprocess.run([sys.executable, "-c", COUNTED], env=environ, capture_output=True, text=True, check=True)
        return tuple(map(int, done.stdout.split()))

    hits, misses = run()
    assert hits == 0
    assert misses > 0
    assert run() == (misses, 0)
    for path in tmp_path.glob("*-cache"):
        path.write_bytes(path.read_bytes()[:-1])
    assert run()[0] == 0


@pytest.mark.usefixtures("nothing_cached")
def test_nothing_comes_from_the_cache_where_compilations_are_counted():
    import jax

    found = []

    def listen(name, **_):
        found.append(name)

    jax.monitoring.register_event_listener(listen)
    try:
        for _ in range(2):
            jax.clear_caches()
            jax.jit(lambda x: x * 5 - 2)(1.0)
    finally:
        jax.monitoring.unregister_event_listener(listen)
    assert not [name for name in found if name.endswith("cache_hits")]
