"""The programs that are timed are right and use all cores, and the tables show what was measured."""

import contextlib
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import rnn

from benchmarks import CORES, against, grid, growth, markdown, overhead, page, peak, peers, race, stack, tree
from lstmjax import lstm

pytestmark = pytest.mark.slow

SHAPE = 3, 5, 4, 6
ROOT = Path(__file__).parents[2]


def test_the_loop_is_the_equations_and_their_derivatives():
    given = peers.problem(*SHAPE)
    expected = peers.reference(given)
    with jax.enable_x64(True):
        params, xs, dy = jax.tree.map(lambda array: np.asarray(array, np.float64), (given.params, given.xs, given.dy))

        def loss(params, xs):
            ys, _ = lstm.apply(params, xs, implementation="scan")
            return (ys * dy).sum(), ys

        (slopes, dx), ys = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, xs)
    found = {"ys": ys, "dx": dx, "dw_x": slopes.w_x, "dw_h": slopes.w_h, "dbias": slopes.bias}
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("kind", peers.KINDS)
@pytest.mark.parametrize("name", [name for name, peer in peers.PEERS.items() if "cpu" in peer.on])
def test_every_library_computes_the_same(name, kind):
    if (distribution := race.missing(peers.PEERS[name].distributions)) is not None:
        pytest.skip(f"{distribution} is not installed: python -m pip install -e '.[peers,flax]'")
    given = peers.problem(*SHAPE)
    expected = peers.reference(given)
    with jax.numpy_rank_promotion("allow"):  # others add vectors to matrices
        prepared = peers.PEERS[name].prepare(kind, given)
        if prepared is None:
            assert (name, kind) == ("ONNX Runtime", "training")
            return
        found = prepared.arrays(prepared.run())
    assert set(found) == ({"ys"} if kind == "forward" else set(expected) - {"ys"})
    for array, values in found.items():
        assert np.abs(values - expected[array]).max() <= 3e-6 * np.abs(expected[array]).max(), array
    assert (prepared.compile_seconds is None) == (not peers.PEERS[name].on_jax)


@pytest.mark.parametrize("name", [name for name, peer in peers.PEERS.items() if peer.on_jax and "cpu" in peer.on])
def test_every_library_in_jax_multiplies_in_the_precision_of_the_gpu_grid(name, monkeypatch):
    if (distribution := race.missing(peers.PEERS[name].distributions)) is not None:
        pytest.skip(f"{distribution} is not installed: python -m pip install -e '.[peers,flax]'")
    monkeypatch.setattr(
        peers, "compiled", lambda _, function, *arguments: jax.jit(function).lower(*arguments).as_text()
    )
    precision = grid.ENVIRONMENTS["gpu"]["JAX_DEFAULT_MATMUL_PRECISION"]
    with jax.numpy_rank_promotion("allow"), jax.default_matmul_precision(precision):
        text = peers.PEERS[name].prepare("training", peers.problem(*SHAPE))
        assert not rnn._lstm_cudnn_allow_tf32(None)
    assert text.count("stablehlo.dot_general") == text.count("precision = [HIGHEST, HIGHEST]") > 0


@pytest.mark.parametrize("kind", peers.KINDS)
@pytest.mark.parametrize("name", stack.PEERS)
def test_every_stack_computes_the_same(name, kind):
    if (distribution := race.missing(stack.PEERS[name].distributions)) is not None:
        pytest.skip(f"{distribution} is not installed: python -m pip install -e '.[peers,flax]'")
    given = stack.problem(*SHAPE)
    expected = stack.reference(given)
    with jax.numpy_rank_promotion("allow"):  # Flax adds vectors to matrices
        prepared = stack.PEERS[name].prepare(kind, given)
        found = prepared.arrays(prepared.run())
    assert set(found) == ({"ys"} if kind == "forward" else {"dx", "dw"})
    for array, values in found.items():
        assert np.abs(values - expected[array]).max() <= 3e-6 * np.abs(expected[array]).max(), array


def test_the_lstm_written_by_hand_is_ours():
    params = lstm.init(jax.random.key(0), overhead.INPUTS, overhead.UNITS)
    xs = jax.random.normal(jax.random.key(1), (1, 3, overhead.INPUTS))
    with jax.numpy_rank_promotion("allow"):
        found = overhead.apply_params(params, xs)
        stepped = overhead.step_params(params, xs[:, 0], lstm.initial_state(params, (1,)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, lstm.apply(params, xs))
    np.testing.assert_allclose(stepped[0], found[0][:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("power", [-1, 0.5, 2])
def test_the_slope_is_the_power(power):
    sizes = [1, 3, 10, 400]
    assert growth.slope(sizes, [7 * size**power for size in sizes]) == pytest.approx(power)


def test_operations_are_those_that_the_compiler_counts():
    batch, steps, inputs, units = SHAPE
    params, xs = lstm.init(jax.random.key(0), inputs, units), np.ones((batch * steps, inputs), np.float32)
    hs = np.ones((batch * steps, units), np.float32)
    products = jax.jit(lambda params, xs, hs: (xs @ params.w_x, hs @ params.w_h)).lower(params, xs, hs).compile()
    assert peers.operations(SHAPE, "forward") == products.cost_analysis()["flops"]
    assert peers.operations(SHAPE, "training") == 3 * peers.operations(SHAPE, "forward")


def test_the_tables():
    def cell(peer, kind, seconds, **more):
        figures = {
            "compile_seconds": 1.0,
            "temporary_bytes": 2**20,
            "off": {"ys": 1e-7},
            "threads": 2,
            "cpu": 1.5,
        } | more
        return {"shape": [1, 2, 3, 4], "kind": kind, "peer": peer, "seconds": seconds} | figures

    def check(peer, middle, holds):
        inside = {"seconds": [middle, middle], "threads": 1, "cpu": 1.0}
        alone = {"seconds": [1.0, 1.0], "threads": 2, "cpu": 2.0}
        found = {"inside": inside, "alone": alone, "ratio": [middle, middle, middle], "holds": holds}
        return {"shape": [1, 2, 3, 4], "kind": "forward", "peer": peer} | found

    results = {
        "grid": "quick",
        "machine": {"device": "cpu", "processor": "a processor", "cores": 2, "python": "3.11"},
        "versions": {"jax": "0.10.2"},
        "left_out": {"Haiku": "dm-haiku"},
        "peaks": {
            "JAX": {"speed": 1e9, "threads": 2, "cpu": 1.9},
            "PyTorch": {"speed": 2e9, "threads": 2, "cpu": 2.0},
        },
        "took_seconds": 60.0,
        "checks": [check("Keras", 1.07, True), check("PyTorch", 2.0, False)],
        "cells": [
            cell(peers.OURS, "forward", [1.0, 1.0, 1.0]),
            cell("Keras", "forward", [2.0, 3.0, 4.0]),
            cell("PyTorch", "forward", [0.5, 0.5, 0.5], compile_seconds=None, temporary_bytes=None),
            cell(peers.OURS, "training", [2.0, 4.0]),
            cell("Keras", "training", [1.0, 2.0]),
        ],
    }
    assert json.loads(page.stored(results)) == results
    text = page.tables(json.loads(page.stored(results)))
    assert "| 1, 2, 3, 4 | 1.00 s | 0 GF/s, 0% | 3.00 (2.50 to 3.50) | 0.50 (0.50 to 0.50) |" in text
    assert "- The fastest other library in JAX takes x 3.00 as long, the geometric mean of 1 shapes." in text
    assert (
        "- PyTorch takes x 0.50 as long, the geometric mean of 1 shapes; faster than ours at 1, 2, 3, 4 (x 0.50)."
        in text
    )
    assert "JAX takes x 0.50 as long, the geometric mean of 1 shapes; faster than ours at 1, 2, 3, 4 (x 0.50)." in text
    assert "Haiku was not installed." in text
    assert "2 GF/s on 2.00 (2) cores, by PyTorch (others: JAX 1 GF/s on 1.90 (2))." in text
    assert "| 1, 2, 3, 4, forward | 1.50 (2) | 1.50 (2) | 1.50 (2) |\n| 1, 2, 3, 4, training | 1.50 (2) |" in text
    assert "| Keras | 1, 2, 3, 4, forward | 1.07 s | 1.00 s | 1.07 (1.07 to 1.07) | 1.00 (1) | 2.00 (2) | yes |" in text
    assert "- 1 of 2 agree within 7 % and half a core; these do not: " in text
    assert "these do not: PyTorch at 1, 2, 3, 4, forward (x 2.00, CPU 1.00 and 2.00)." in text


def test_the_cores_of_a_section_are_those_of_each_case():
    def cell(peer, steps, cpu, threads):
        return {"peer": peer, "shape": [1, steps], "kind": "forward", "cpu": cpu, "threads": threads}

    cells = [cell("a", 2, 1.0, 3), cell("b", 2, 1.9, 2), cell("a", 5, 1.5, 2)]
    rows = [
        "|  | a | b |",
        "| --- | --- | --- |",
        "| 1, 2, forward | 1.00 (3) | 1.90 (2) |",
        "| 1, 5, forward | 1.50 (2) |  |",
    ]
    assert markdown.used(cells) == [markdown.WORKED, "", *rows]
    assert markdown.used([*cells, {"peer": "a"}]) == ["The cores that worked were not counted."]


@pytest.mark.parametrize("name", ["growth", "overhead", "stack"])
def test_every_section_shows_the_cores_of_each_cell(name):
    made = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    made["cells"] = [cell | {"cpu": 1.0 + n / 100, "threads": 3} for n, cell in enumerate(made["cells"])]
    text = page.section(made)
    assert all(markdown.worked(cell) in text for cell in made["cells"])


def few_choices(monkeypatch, choices):
    for name in ("products_ahead", "products_behind", "activations", "batchings"):
        monkeypatch.setattr(choices, name, lambda: dict.fromkeys(("a", "b"), lambda params, xs: xs + 1))


def few_variants(monkeypatch, variants):
    some = {name: variants.variants(4, 6)[name] for name in ("plain", "coupled")}
    monkeypatch.setattr(variants, "variants", lambda inputs, units: some)
    monkeypatch.setattr(variants, "memory", lambda: None)


@pytest.mark.parametrize(
    ("name", "shape", "fewer"),
    [
        ("choices", (2, 3, 4, 6), few_choices),
        ("crf", (2, 3, 4), lambda monkeypatch, crf: None),
        ("variants", (2, 3, 4, 6), few_variants),
    ],
)
def test_the_benchmarks_of_one_process_show_the_cores_of_each_cell(name, shape, fewer, monkeypatch, capsys):
    command = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(command, "SHAPES", [shape])
    fewer(monkeypatch, command)
    monkeypatch.setattr(sys, "argv", [name, "--rounds", "2"])
    with jax.numpy_rank_promotion("allow"):
        command.main()
    times, _, cores = capsys.readouterr().out.partition(markdown.WORKED)
    assert re.search(r"\| \d+.*s, x \d+\.\d\d \(\d+\.\d\d to \d+\.\d\d\)", times)
    assert re.search(rf"\| {markdown.sizes(shape)} \|( \d\.\d\d \(\d+\) \|){{2,}}\n", cores)


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_that_worked_are_counted(workers):
    ready = threading.Barrier(workers)

    def work(_):
        ready.wait()  # one of the pool's threads each
        hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000)  # without the interpreter's lock

    with ThreadPoolExecutor(3) as pool:
        found = race.timed(lambda: list(pool.map(work, range(workers))), 0.0, 0.0)
    assert found["threads"] == workers  # the main thread waits for them
    assert 0 < found["cpu"] <= 1.1 * min(CORES, workers)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Every library that is installed, in a process as in the grid."""
    folder = tmp_path_factory.mktemp("arrays")
    here = [name for name in grid.ON_CPU if race.missing(grid.ON_CPU[name].distributions) is None]
    commands = {name: ["benchmarks.grid", "quick", name, str(folder / f"{n}.npz")] for n, name in enumerate(here)}
    environment = grid.ENVIRONMENTS["cpu"] | {"PYTHONPATH": str(ROOT)}
    with race.started(commands, environment) as processes:
        yield processes


def test_every_library_works_on_all_cores(loaded):
    able, _ = grid._prepared(loaded, "forward", (64, 20, 256, 256))
    assert able.keys() == loaded.keys()
    for name, process in able.items():
        timing = race.summary([process.ask("run") for _ in range(3)])
        assert timing["threads"] >= CORES, name


def test_a_process_is_stopped_while_it_has_nothing_to_answer(loaded):
    def state(process):
        os.waitid(os.P_PID, process._process.pid, os.WSTOPPED | os.WNOWAIT)
        return Path(f"/proc/{process._process.pid}/stat").read_text().rpartition(")")[2].split()[0]

    assert {name: state(process) for name, process in loaded.items()} == dict.fromkeys(loaded, "T")


def test_a_stopped_process_does_not_outlive_a_parent_that_is_killed():
    serve = "from benchmarks import race; race.serve({})"
    start = "from benchmarks import race; import os, signal; "
    start += f"one = race.Process('a', ['timeit', '-n', '1', '-r', '1', {serve!r}], {{}}); "
    start += "print(one._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", start], env=environment, capture_output=True, text=True, timeout=60)
    child = Path(f"/proc/{int(ran.stdout)}/stat")
    deadline = time.monotonic() + 10
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "it lives"
        time.sleep(0.05)


@pytest.mark.skipif(CORES == 1, reason="one core cannot be reduced")
def test_a_library_whose_threads_are_bound_is_refused(tmp_path):
    if race.missing(["torch"]):
        pytest.skip("torch is not installed: python -m pip install -e '.[peers]'")
    commands = {"PyTorch": ["benchmarks.grid", "quick", "PyTorch", str(tmp_path / "arrays.npz")]}
    refused = pytest.raises(RuntimeError, match=f"PyTorch may run on 1 of {CORES} cores: .*OMP_PROC_BIND.*unset them")
    with race.started(commands, {"PYTHONPATH": str(ROOT), "OMP_PROC_BIND": "true"}) as processes, refused:
        grid._prepared(processes, "forward", SHAPE)


ALONE = """
import json, sys
import numpy as np
from benchmarks import alone
name, *shape = json.loads(sys.argv[1])
found = [alone.call(name, "forward", shape)()]
if name != "ONNX Runtime":
    found.append(alone.call(name, "training", shape)())
if name != "PyTorch":
    import jax
    sizes = [sum(map(np.size, jax.tree.leaves(each))) for each in found]
else:
    sizes = [found[0].numel(), sum(each.numel() for each in found[1])]
threads = sys.modules["torch"].get_num_threads() if name == "PyTorch" else None
print(json.dumps([sizes, "benchmarks.peers" in sys.modules, threads]))
"""
PLAIN = "import torch; print(torch.get_num_threads())"


@pytest.mark.parametrize("name", grid.ON_CPU)
def test_every_library_is_checked_against_its_own_defaults(name):
    if (distribution := race.missing(peers.PEERS[name].distributions)) is not None:
        pytest.skip(f"{distribution} is not installed: python -m pip install -e '.[peers,flax]'")
    environment = os.environ | grid.ENVIRONMENTS["cpu"] | {"PYTHONPATH": str(ROOT)}

    def printed(*code):
        ran = subprocess.run([sys.executable, "-c", *code], env=environment, check=True, stdout=subprocess.PIPE)
        return json.loads(ran.stdout)

    batch, steps, inputs, units = SHAPE
    sizes, shared, threads = printed(ALONE, json.dumps([name, *SHAPE]))
    assert sizes[0] == batch * steps * units
    biases = sizes[1:] and sizes[1] - batch * steps * inputs - 4 * units * (inputs + units)
    assert biases in ([], 4 * units, 8 * units)  # one for each gate, or two
    assert not shared
    assert threads == (printed(PLAIN) if name == "PyTorch" else None)


def quiet():
    """Whether other programs leave the cores alone, while this one sleeps."""

    def idle():
        return int(Path("/proc/stat").read_text().splitlines()[0].split()[4]) / os.sysconf("SC_CLK_TCK")

    start, before = time.perf_counter(), idle()
    time.sleep(0.5)
    return idle() - before > 0.95 * os.cpu_count() * (time.perf_counter() - start)


@pytest.mark.skipif(CORES == 1, reason="one core cannot be reduced")
def test_the_check_finds_a_library_that_is_given_one_thread(tmp_path, monkeypatch):
    if race.missing(["torch"]):
        pytest.skip("torch is not installed: python -m pip install -e '.[peers]'")
    wrong = "import sys; from pathlib import Path; from benchmarks import grid, peers, race; peers.CORES = 1; "
    wrong += "s = grid.Server('quick', 'PyTorch', Path(sys.argv[1])); "
    wrong += "race.serve({'prepare': s.prepare, 'run': s.run})"
    (tmp_path / "one_thread.py").write_text(wrong)
    monkeypatch.setattr(grid, "CHECKS", 3)
    environment = grid.ENVIRONMENTS["cpu"] | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    with race.started({"PyTorch": ["one_thread", str(tmp_path / "arrays.npz")]}, environment) as processes:
        before = quiet()
        (check,) = grid._checks(processes, environment, (64, 100, 256, 256), "forward")
        if before and quiet():
            assert check["alone"]["cpu"] > 0.75 * CORES
    assert (check["inside"]["threads"], check["alone"]["threads"]) == (1, CORES)
    assert not check["holds"]


@pytest.mark.parametrize(("seconds", "cpu", "holds"), [(1.0, 2.0, True), (1.1, 2.0, False), (1.0, 1.4, False)])
def test_the_check_compares_times_and_cores(monkeypatch, seconds, cpu, holds):
    class Fixed:
        def __init__(self, seconds, cpu):
            self._found = {"seconds": seconds, "threads": 2, "cpu": cpu}

        def ask(self, request, *rest):
            return {"cores": CORES} if request == "prepare" else self._found

    monkeypatch.setattr(race, "started", lambda *_: contextlib.nullcontext({"a": Fixed(1.0, 2.0)}))
    (check,) = grid._checks({"a": Fixed(seconds, cpu)}, {}, SHAPE, "forward")
    assert check["holds"] == holds


def test_the_peak_is_that_of_the_fastest_library(monkeypatch):
    monkeypatch.setitem(peak.SIZES, "cpu", (64,))
    for product, distributions, places in peak.PRODUCTS.values():
        if "cpu" in places and race.missing(distributions) is None:
            assert np.asarray(product(64)()).size in (1, 64 * 64)
    times = {"a": [2.0, 1.0, 3.0], "b": [4.0, 4.0, 4.0]}

    class Fixed:
        def __init__(self, name):
            self._times = iter(times[name])

        def ask(self, *request):
            assert request == ("product", 64)
            return {"seconds": next(self._times), "threads": 2, "cpu": 2.0}

    found = peak.measure({name: Fixed(name) for name in times}, "cpu", {"b": {"speed": 1e9}})
    assert found == {"a": {"speed": 2 * 64**3, "threads": 2, "cpu": 2.0}, "b": {"speed": 1e9}}


def results_of(grid, cells):
    machine = {"device": "cpu", "processor": "a processor", "cores": 2, "python": "3.11"}
    head = {"grid": grid, "machine": machine, "versions": {"jax": "0.10.2"}, "took_seconds": 60.0}
    return json.loads(page.stored(head | {"cells": cells}))


def test_the_section_on_growth():
    def cell(shape, kind, peer):
        batch, steps, _, units = shape
        seconds = 1e-5 * steps * batch**0.5 * units**2 * (1 if peer == peers.OURS else 3)
        size = 2**10 * batch * steps * units
        return {"shape": shape, "kind": kind, "peer": peer, "seconds": [seconds] * 3, "temporary_bytes": size}

    cells = [cell(s, k, p) for s in growth.SHAPES for k in peers.KINDS for p in (peers.OURS, "Flax nnx")]
    text = page.section(results_of("growth", cells))
    assert "| 100 | 0.052 GF | 11.59 s | 34.76 s | 50.0 MiB | 50.0 MiB | 11.59 s |" in text
    for axis, (operations, taken, size) in {"T": (1, 1, 1), "B": (1, 0.5, 1), "units": (2, 2, 1)}.items():
        *_, table = text.partition(f"### Against {axis}\n")
        figures = " | ".join([f"{operations:.2f}", *2 * [*2 * [f"{taken:.2f}"], *2 * [f"{size:.2f}"]]])
        assert f"\n| slope | {figures} |\n| slope of the last {growth.LAST} | {figures} |" in table.split("###")[0]


def test_the_section_on_stacks():
    times = {peers.OURS: [1.0, 2.0, 3.0], stack.PARTS: [2.0, 4.0, 6.0], stack.FLAX: [0.5, 1.0, 1.5]}
    cells = [{"shape": [1, 2, 3, 4], "kind": "forward", "peer": name, "seconds": times[name]} for name in times]
    text = page.section(results_of("stack", cells))
    assert "| 1, 2, 3, 4, forward | 2.00 s | 2.00 (2.00 to 2.00) | 0.50 (0.50 to 0.50) |" in text
    assert "- Against its parts, the stack takes x 0.50 at most, at 1, 2, 3, 4, forward." in text
    assert "- Against Flax nnx, the stack takes x 2.00 at most, at 1, 2, 3, 4, forward." in text


def test_calls_from_python_are_timed_in_turn(monkeypatch):
    monkeypatch.setattr(overhead, "CALLS", 2)
    with jax.numpy_rank_promotion("allow"):
        results = overhead.run(0.0, lambda line: None)
    assert all(len(cell["seconds"]) == grid.ROUNDS[0] for cell in results["cells"])
    cells = [
        cell | {"seconds": [1e-5, 2e-5] if cell["peer"] == overhead.HAND else [2e-5, 2e-5]} for cell in results["cells"]
    ]
    text = page.section(results_of("overhead", cells))
    for case in overhead.cases():
        assert f"| {case} | 15 µs | 1.50 (1.25 to 1.75) | 1.50 (1.25 to 1.75) | 1.50 (1.25 to 1.75) |" in text


def test_processes_answer_in_turn_and_errors_are_not_swallowed():
    code = "from benchmarks import race; import itertools; c = itertools.count(); race.serve({'n': lambda: next(c)})"
    script = ["timeit", "-n", "1", "-r", "1", code]
    with race.started({"a": script, "b": script}, {"PYTHONPATH": str(ROOT)}) as processes:
        assert race.rounds(processes, 3, "n") == {"a": [0, 1, 2], "b": [0, 1, 2]}
        with pytest.raises(RuntimeError, match="the process of a ended"):
            processes["a"].ask("nothing of that name")


def test_the_commands(tmp_path, monkeypatch):
    run = [sys.executable, "-m", "benchmarks"]
    path = tmp_path / "quick.json"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    small = "from benchmarks import grid, __main__ as m; import sys; "
    small += "ours = {n: p for n, p in grid.PEERS.items() if n.startswith('lstmjax')}; "
    small += "grid.CHECKS, grid.TOLERANCE, grid.APART = 2, *[float(sys.argv[1])] * 2; grid.peak.SIZES['cpu'] = 64,; "
    small += "grid.peak.PRODUCTS = {'NumPy': grid.peak.PRODUCTS['NumPy']}; "
    small += "grid.GRIDS['quick'] = grid.Grid([(2, 3, 4, 5)], ours, checked=[(2, 3, 4, 5)]); "
    small += "grid.GRIDS['check'] = grid.Grid([], {'lstmjax': ours['lstmjax']}, checked=[(2, 3, 4, 5)]); "
    small += f"sys.exit(m.main([sys.argv[2], '--out', {str(path)!r}, '--budget', '0.01']))"
    for tolerance, command, code, count in (("-1", "check", 1, "0 of 2"), ("1e9", "quick", 0, "4 of 4")):
        given = [sys.executable, "-c", small, tolerance, command]
        ran = subprocess.run(given, env=environment, capture_output=True, text=True)
        assert ran.returncode == code, ran.stderr
        assert f"- {count} agree within 7 % and half a core" in ran.stdout
    results = json.loads(path.read_text())
    assert [(check["peer"], len(check["inside"]["seconds"])) for check in results["checks"]] == [
        (name, 2) for _ in peers.KINDS for name in ("lstmjax", "lstmjax, scan")
    ]
    assert all(cell["threads"] >= 1 and cell["cpu"] > 0 for cell in results["cells"])
    assert [(cell["kind"], cell["peer"]) for cell in results["cells"]] == [
        (kind, name) for kind in peers.KINDS for name in ("lstmjax", "lstmjax, scan")
    ]
    assert all(grid.ROUNDS[0] <= len(cell["seconds"]) <= grid.ROUNDS[1] for cell in results["cells"])
    shown = subprocess.run([*run, "page", str(path)], check=True, env=environment, capture_output=True, text=True)
    assert shown.stdout.startswith("# Speed\n")
    assert "\n## The quick grid\n" in shown.stdout


def test_two_trees_are_compared(tmp_path):
    found = against.commit("HEAD")
    assert len(found) == 40
    against.checkout(found, tmp_path)
    assert (tmp_path / "lstmjax" / "lstm.py").is_file()
    results = against.run(found, [(2, 3, 4, 5)], 2, lambda line: None)
    assert results["commit"] == results["tree"]["commit"] == found
    assert [(cell["kind"], cell["peer"]) for cell in results["cells"]] == [
        (kind, name) for kind in (tree.CALL, *peers.KINDS) for name in (against.NOW, against.THEN)
    ]
    for cell in results["cells"]:
        cell["seconds"] = {"forward": [2.0, 4.0], "training": [0.5, 1.0]}.get(cell["kind"], [3e-5, 3e-5])
        if cell["peer"] == against.THEN:
            cell["seconds"] = [1.0, 1.0] if cell["kind"] in peers.KINDS else [6e-5, 6e-5]
    results["tree"]["changed"] = True
    text = page.section(json.loads(page.stored(results)))
    assert all(markdown.worked(cell) in text for cell in results["cells"])
    assert f"`python -m benchmarks compare` at {found} with changes on " in text
    assert f"| 1, 4, 8, 8 | {tree.CALL} | 60 µs | 30 µs | 0.500 (0.500 to 0.500) |" in text
    assert "| 2, 3, 4, 5 | forward | 1.00 s | 3.00 s | 3.000 (2.500 to 3.500) |" in text
    assert "- The geometric mean of now / then, forward: 3.000 (2.500 to 3.500)." in text
    assert "- The geometric mean of now / then, training: 0.750 (0.625 to 0.875)." in text
    assert "- The geometric mean of now / then, both: 1.500 (1.250 to 1.750)." in text


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        (
            "__main__",
            ["compare", "--against", "HEAD", "--rounds", "1"],
            "--rounds: quartiles take .*2; got '1'",
        ),
        ("__main__", ["compare", "--against", "no-such"], "--against: git finds no no-such.*; name a commit that has"),
        *((name, ["--rounds", "1"], "at least 2; got '1'") for name in ("choices", "crf", "export", "variants")),
        *(("hierarchy", [option, "1"], "at least 2; got '1'") for option in ("--rounds", "--compiles")),
    ],
)
def test_what_cannot_be_measured_is_refused_first(name, given, words, monkeypatch, capsys):
    command = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [name, *given])
    with pytest.raises(SystemExit) as refused:
        command.main(given) if name == "__main__" else command.main()
    assert refused.value.code == 2
    assert re.search(words, capsys.readouterr().err)


def test_the_commit_of_a_tree_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "ROOT", tmp_path)
    assert grid.tree() is None
    (tmp_path / "lstmjax").mkdir()
    (tmp_path / "lstmjax" / "lstm.py").touch()
    person = "-c", "user.name=a", "-c", "user.email=a@example.org"
    for command in (["init", "-q"], ["add", "."], [*person, "commit", "-q", "-m", "a"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    found = grid.tree()
    assert found is not None
    assert (len(found["commit"]), found["changed"]) == (40, False)
    (tmp_path / "lstmjax" / "lstm.py").write_text("changed = True")
    assert grid.tree() == found | {"changed": True}


def test_the_page_is_made_of_the_results():
    files = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    assert files
    made = page.page(json.loads(path.read_text()) for path in files)
    assert (ROOT / "docs" / "speed.md").read_text() == made + "\n"
