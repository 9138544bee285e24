"""What the speed on accelerators rests on, in the programs that their own compilers make, without a device."""

import functools
import importlib.util

import pytest

from benchmarks import compiled

pytestmark = pytest.mark.aot
WEIGHTS = compiled.UNITS, 4 * compiled.UNITS
MODULES = {"tpu": "libtpu", "cuda": "jax_cuda12_plugin"}
tpus = pytest.mark.parametrize("target", ["v5e", "v6e"])
kinds = pytest.mark.parametrize(("kind", "count"), [("forward", 1), ("gradient", 2)])


@functools.cache
def loops(target, kind, plain=False):
    platform = compiled.TARGETS[target]["platform"]
    if importlib.util.find_spec(MODULES[platform]) is None:
        pytest.skip(f"{compiled.WHEELS[platform]} is not installed: pip install -e '.[aot]'")
    return compiled.loops(target, kind, **(compiled.PLAIN if plain else {}))


@tpus
@kinds
def test_weights_are_fetched_once_a_body(target, kind, count):
    found = loops(target, kind)
    assert len(found) == count
    for loop in found:
        assert loop.steps >= 4
        assert compiled.fetches(loop, WEIGHTS) <= 1


@tpus
def test_no_gradient_of_a_weight_is_added_up_in_the_loop(target):
    assert not [line for loop in loops(target, "gradient") for line in compiled.made(loop, WEIGHTS)]


def test_a_plain_scan_adds_it_up_in_the_loop():
    assert [line for loop in loops("v5e", "gradient", plain=True) for line in compiled.made(loop, WEIGHTS)]


@pytest.mark.parametrize(("kind", "bound"), [("forward", 0.6), ("gradient", 0.4)])
def test_estimated_cycles_of_the_loop_beside_a_plain_scan(kind, bound):
    fused, plain = (compiled.cycles(loops("v5e", kind, plain)) for plain in (False, True))
    assert 0 < fused <= bound * plain


@kinds
def test_a_body_is_one_graph_of_few_launches_and_no_copy(kind, count):
    found = loops("h200", kind)
    assert len(found) == count
    for loop in found:
        assert loop.steps >= 2
        assert loop.body[0].startswith("kCommandBuffer")
        assert sum(line.startswith("kCommandBuffer") for line in loop.body) == 1
        assert compiled.launches(loop) <= 4 * loop.steps
        assert not compiled.copies(loop)
