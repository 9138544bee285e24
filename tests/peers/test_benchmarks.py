"""What is timed is right: each library's outputs and gradients, the loop they are held to, and the tables."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import grid, growth, overhead, page, peers, race, stack
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
        figures = {"compile_seconds": 1.0, "temporary_bytes": 2**20, "off": {"ys": 1e-7}} | more
        return {"shape": [1, 2, 3, 4], "kind": kind, "peer": peer, "seconds": seconds} | figures

    results = {
        "grid": "quick",
        "machine": {"device": "cpu", "processor": "a processor", "cores": 2, "python": "3.11"},
        "versions": {"jax": "0.10.2"},
        "left_out": {"Haiku": "dm-haiku"},
        "peak": 1e9,
        "took_seconds": 60.0,
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
    assert "Haiku was not there." in text
    twice = json.loads(json.dumps(results))
    for one in twice["cells"]:
        one["seconds"] = [2 * taken for taken in one["seconds"]]
    assert page.compared(results, twice).count("x 2.00") == len(results["cells"])


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
    for axis, (operations, time, size) in {"T": (1, 1, 1), "B": (1, 0.5, 1), "units": (2, 2, 1)}.items():
        *_, table = text.partition(f"### Against {axis}\n")
        figures = " | ".join([f"{operations:.2f}", *2 * [*2 * [f"{time:.2f}"], *2 * [f"{size:.2f}"]]])
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
        cell | {"seconds": [1e-5, 2e-5] if cell["variant"] == overhead.HAND else [2e-5, 2e-5]}
        for cell in results["cells"]
    ]
    text = page.section(results_of("overhead", cells))
    for case in overhead.cases():
        assert f"| {case} | 15 µs | 1.50 (1.25 to 1.75) | 1.50 (1.25 to 1.75) | 1.50 (1.25 to 1.75) |" in text


def test_processes_answer_in_turn_and_errors_are_not_swallowed():
    code = "from benchmarks import race; import itertools; c = itertools.count(); race.serve({'n': lambda: next(c)})"
    environment = {"PYTHONPATH": str(ROOT)}
    script = ["timeit", "-n", "1", "-r", "1", code]
    with race.started({"a": script, "b": script}, {"a": environment, "b": environment}) as processes:
        assert race.rounds(processes, 3, "n") == {"a": [0, 1, 2], "b": [0, 1, 2]}
        with pytest.raises(RuntimeError, match="the process of a ended"):
            processes["a"].ask("nothing of that name")


def test_the_commands(tmp_path, monkeypatch):
    run = [sys.executable, "-m", "benchmarks"]
    path = tmp_path / "quick.json"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    small = "from benchmarks import grid, __main__ as m; import sys; "
    small += "ours = {n: p for n, p in grid.PEERS.items() if n.startswith('lstmjax')}; "
    small += "grid.GRIDS['quick'] = grid.Grid([(2, 3, 4, 5)], ours); "
    small += f"sys.exit(m.main(['quick', '--out', {str(path)!r}, '--budget', '0.01']))"
    subprocess.run([sys.executable, "-c", small], check=True, env=environment, capture_output=True)
    results = json.loads(path.read_text())
    assert [(cell["kind"], cell["peer"]) for cell in results["cells"]] == [
        (kind, name) for kind in peers.KINDS for name in ("lstmjax", "lstmjax, scan")
    ]
    assert all(grid.ROUNDS[0] <= len(cell["seconds"]) <= grid.ROUNDS[1] for cell in results["cells"])
    shown = subprocess.run([*run, "page", str(path)], check=True, env=environment, capture_output=True, text=True)
    assert shown.stdout.startswith("# Speed\n")
    assert "\n## The quick grid\n" in shown.stdout
    shown = subprocess.run([*run, "compare", path, path], check=True, env=environment, capture_output=True, text=True)
    assert shown.stdout.count("x 1.00") == 4


def test_the_page_is_made_of_the_results():
    files = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    assert files
    made = page.page(json.loads(path.read_text()) for path in files)
    assert (ROOT / "docs" / "speed.md").read_text() == made + "\n"
