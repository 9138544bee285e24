"""The branches of the fused path that small examples do not take on a CPU by themselves: the same contract of time.

On an accelerator x W_x is one product ahead of the loop, an iteration takes several steps, and barriers stand between
them. On a CPU that has more numbers to compute than fit in its cache, steps go in blocks, or each has its own product.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_contract as contract
import test_conv1d as convolutions
import test_variants as variants

from lstmjax import Dropout, export, lstm
from lstmjax._src import chunking

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
TIMES = [0, 1, 3, 7, 8, 11]  # none, one, an iteration of 3 and of 7, two of 4, and two of 4 with a rest of 3

same = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9))


def on_an_accelerator(patch):
    patch.setattr(jax.lax, "platform_dependent", lambda *arrays, cpu, default: default(*arrays))


def in_blocks_of_two_steps(patch):
    patch.setattr(chunking, "CACHED", 64)


def with_a_product_a_step(patch):
    patch.setattr(chunking, "ROWS", 0)
    patch.setattr(chunking, "SHARED", 0)


def entered(branch):
    with pytest.MonkeyPatch.context() as patch:
        branch(patch)
        jax.clear_caches()
        yield
    jax.clear_caches()


@pytest.fixture(
    scope="module",
    params=[on_an_accelerator, in_blocks_of_two_steps, with_a_product_a_step],
    ids=lambda branch: branch.__name__,
)
def branch(request):
    yield from entered(request.param)


@pytest.fixture(scope="module")
def accelerator():
    yield from entered(on_an_accelerator)


@pytest.mark.usefixtures("accelerator")
def test_several_steps_are_one_iteration():
    params = lstm.init(KEY, contract.INPUTS, contract.UNITS)
    for time, together in ((8, 4), (7, 7), (11, 4)):
        program = str(jax.make_jaxpr(lstm.apply)(params, jnp.ones((2, time, contract.INPUTS))))
        assert "optimization_barrier" in program
        assert f"unroll={together}" in program


@pytest.mark.usefixtures("branch")
@pytest.mark.parametrize(("time", "ragged"), list(itertools.product(TIMES, (False, True))))
def test_values_and_gradients(time, ragged):
    contract.check_values_and_gradients("fused", jnp.float64, 1, (3,), time, ragged, ragged, ragged)


@pytest.mark.usefixtures("branch")
@pytest.mark.parametrize(
    ("dtype", "lengths", "resets", "reverse"),
    list(itertools.product(contract.FLOATS, [False, True], [False, True], [False, True])),
)
def test_masks(dtype, lengths, resets, reverse):
    contract.test_values_and_gradients("fused", dtype, lengths, resets, reverse)


@pytest.mark.usefixtures("branch")
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 2**-7), (jnp.float16, 2**-10)])
def test_half_precision(dtype, tolerance):
    contract.test_half_precision("fused", dtype, tolerance)


@pytest.mark.usefixtures("branch")
@pytest.mark.parametrize("variant", ["zoneout", "all", "all but gates of their own", *variants.NORMS])
def test_cells(variant, x64):
    del x64
    variants.check_values_and_gradients(variants.COMPOSITIONS["fused"], variants.VARIANTS[variant], reverse=True)


@pytest.mark.usefixtures("branch")
def test_random_masks_and_segments(x64):
    del x64
    arrays, times = contract.example(5, (3,), 8, lengths=True, resets=True, dtype=np.float64)
    arrays = contract.cast(arrays, jnp.float64)
    _, weights, _ = contract.expected(1, (3,), 8, True, True, True)
    dropout = Dropout(recurrent=0.3, zoneout_h=0.3, zoneout_c=0.2)

    @jax.jit
    def slopes(arrays):
        call = partial(contract.gradients, arrays, weights, **times, dropout=dropout, key=KEY)
        ways = ("scan", False), ("fused", False), ("fused", 2)
        return [call(implementation=name, checkpoint=checkpoint) for name, checkpoint in ways]

    expected, *found = slopes(arrays)
    for actual in found:
        same(actual, expected)


@pytest.mark.usefixtures("branch")
def test_derivatives_of_derivatives(x64):
    contract.test_second_order("fused", True, x64)


@pytest.mark.usefixtures("branch")
def test_linearize(x64):
    del x64
    arrays, times = contract.example(4, (2,), 11, lengths=True, resets=True, dtype=np.float64)
    arrays, directions = contract.cast(arrays, jnp.float64), jax.tree.map(np.cos, arrays)

    @jax.jit
    def tangents(arrays, directions):
        _, tangent = jax.linearize(partial(contract.run, **times, implementation="fused"), arrays)
        _, expected = jax.jvp(partial(contract.run, **times, implementation="scan"), (arrays,), (directions,))
        return tangent(directions), expected

    same(*tangents(arrays, directions))


@pytest.mark.usefixtures("branch")
def test_vmap():
    contract.test_vmap_equals_batch_axes("fused", True)
    contract.test_vmap_over_parameters("fused")


@pytest.mark.usefixtures("branch")
@pytest.mark.usefixtures("four_devices")
def test_meshes():
    contract.test_shard_map_over_the_batch("fused", True, True)
    contract.test_batch_sharded_over_a_mesh("fused", True, True, jax.sharding.AxisType.Explicit)


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions_of_groups(groups):
    convolutions.test_groups_and_no_bias_equal_the_loop(groups, bias=False)


@pytest.mark.usefixtures("accelerator")
def test_time_left_open(untyped):
    del untyped
    params = lstm.init(KEY, contract.INPUTS, contract.UNITS)
    program = export.load(export.stablehlo(params, lengths=True, platforms=["cpu"]))
    for time in TIMES[1:]:
        xs = jax.random.normal(KEY, (2, time, contract.INPUTS))
        lengths = jnp.array([time, time // 2], jnp.int32)
        ys, state = lstm.apply(params, xs, lengths=lengths, implementation="scan")
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=0, atol=1e-6),
            program.call(xs, lengths),
            (ys, {"h": state.h, "c": state.c}),
        )


@pytest.mark.usefixtures("branch")
def test_half_precision_gradients_do_not_drift():
    contract.test_half_precision_gradients_do_not_drift_with_time("fused", False)


@pytest.mark.usefixtures("branch")
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_padding_reaches_no_gradient(poison):
    contract.test_padding_reaches_no_gradient("fused", True, poison)


@pytest.mark.usefixtures("branch")
@pytest.mark.parametrize("checkpoint", [False, True])
def test_an_empty_batch(checkpoint):
    params = lstm.init(KEY, contract.INPUTS, contract.UNITS)
    slope = jax.grad(lambda params, xs: lstm.apply(params, xs, checkpoint=checkpoint)[0].sum(), argnums=(0, 1))
    d_params, d_xs = jax.jit(slope)(params, jnp.zeros((0, 9, contract.INPUTS)))
    assert d_xs.shape == (0, 9, contract.INPUTS)
    assert not any(leaf.any() for leaf in jax.tree.leaves(d_params))
