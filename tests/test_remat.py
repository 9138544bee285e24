"""Time in segments of which the gradient keeps the first state alone: the same function, in less memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lstmjax import Dropout, LSTMState, lstm, stack

KEY = jax.random.key(0)
INPUTS, UNITS = 3, 4
ZONEOUT = Dropout(zoneout_h=0.3, zoneout_c=0.3)

same = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5))


def example(time, batch=3):
    params = lstm.init(KEY, INPUTS, UNITS)
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return params, draw(batch, time, INPUTS), LSTMState(draw(batch, UNITS), draw(batch, UNITS))


def number(outputs):
    return sum((leaf**2).sum() for leaf in jax.tree.leaves(outputs))


@pytest.mark.parametrize(
    ("implementation", "argnums"),
    [
        pytest.param(name, argnums, marks=[] if argnums == 0 and name != "pallas_tpu" else pytest.mark.slow)
        for name in lstm.IMPLEMENTATIONS
        for argnums in (0, (0, 1))
    ],
)
def test_memory_of_gradients(implementation, argnums):
    params = jax.eval_shape(partial(lstm.init, inputs=256, units=256), KEY)
    xs = jax.ShapeDtypeStruct((32, 2048, 256), jnp.float32)

    def temporary(implementation, checkpoint):
        run = partial(lstm.apply, checkpoint=checkpoint, implementation=implementation)
        slope = jax.value_and_grad(lambda params, xs: run(params, xs)[0].sum(), argnums=argnums)
        return jax.jit(slope).lower(params, xs).compile().memory_analysis().temp_size_in_bytes

    assert temporary(implementation, True) <= min(temporary("scan", False) / 4, temporary(implementation, False) / 2)


@pytest.mark.parametrize(
    ("implementation", "time", "checkpoint", "reverse"), [("fused", 17, True, False), ("scan", 13, 5, True)]
)
def test_segments_of_any_length(implementation, time, checkpoint, reverse):
    arrays = example(time)
    lengths = jnp.array([time, time // 2, 0])
    resets = jnp.asarray(np.random.default_rng(1).random((3, time)) < 0.2)
    arguments = {"lengths": lengths, "resets": resets, "dropout": ZONEOUT, "key": KEY, "reverse": reverse}

    def slopes(checkpoint):
        def loss(*arrays):
            outputs = lstm.apply(*arrays, **arguments, implementation=implementation, checkpoint=checkpoint)
            return number(outputs), outputs

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*arrays)

    same(slopes(checkpoint), slopes(False))


def test_more_segments_than_steps():
    arrays = example(7)
    same(lstm.apply(*arrays, checkpoint=100), lstm.apply(*arrays))


def test_forward_mode():
    arrays = example(7)
    tangents = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), arrays)

    @jax.jit
    def derivatives(arrays, tangents):
        return [jax.jvp(partial(lstm.apply, checkpoint=checkpoint), arrays, tangents) for checkpoint in (3, False)]

    same(*derivatives(arrays, tangents))


@pytest.mark.usefixtures("four_devices")
def test_vmap_and_shard_map():
    params, xs, state = example(7, batch=4)
    lengths = jnp.array([7, 3, 1, 0])
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = PartitionSpec("data")

    @partial(jax.jit, static_argnums=0)
    def slopes(place, *arrays):
        return jax.grad(lambda *arrays: number(place(*arrays)), argnums=(0, 1, 2))(*arrays)

    def run(checkpoint, params, xs, state, lengths):
        return lstm.apply(params, xs, state, lengths=lengths, checkpoint=checkpoint)

    mapped = jax.vmap(partial(run, 3), in_axes=(None, 0, 0, 0))
    sharded = jax.shard_map(mapped, mesh=mesh, in_specs=(PartitionSpec(), rows, rows, rows), out_specs=rows)
    arrays = params, xs, state, lengths
    same(slopes(sharded, *arrays), slopes(partial(run, False), *arrays))


@pytest.mark.parametrize("checkpoint", [True, 3, 1])
@pytest.mark.parametrize("return_sequences", [True, False])
def test_nothing_to_read(checkpoint, return_sequences):
    params, xs, state = example(0)
    ys, end = lstm.apply(params, xs, state, checkpoint=checkpoint, return_sequences=return_sequences)
    jax.tree.map(np.testing.assert_array_equal, end, state)
    assert ys.shape == ((3, 0, UNITS) if return_sequences else (3, UNITS))


def test_every_layer_of_a_stack():
    params, xs = stack.init(KEY, INPUTS, (UNITS, UNITS), bidirectional=True), example(7)[1]

    def remats(jaxpr):
        """Of this program and of all those that it calls, each as often as it is called."""
        inner = [part for eqn in jaxpr.eqns for part in jax.tree.leaves(eqn.params, is_leaf=is_program)]
        called = sum(remats(getattr(part, "jaxpr", part)) for part in inner if is_program(part))
        return called + sum(eqn.primitive.name in ("checkpoint", "remat2") for eqn in jaxpr.eqns)

    def is_program(part):
        return hasattr(part, "eqns")

    for checkpoint, count in ((False, 0), (7, 4)):
        assert remats(jax.make_jaxpr(partial(stack.apply, checkpoint=checkpoint))(params, xs).jaxpr) == count
