"""How many steps go together on CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from lstmjax import LSTMParams, LSTMState, lstm
from lstmjax._src import chunking


def shapes(batch, time, inputs, units):
    def of(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    return of(*batch, time, inputs), of(inputs, 4 * units), of(units, 4 * units)


@pytest.mark.parametrize(
    ("batch", "time", "units", "ahead", "behind"),
    [
        ((32,), 50, 64, None, None),  # all of it stays in cache
        ((32,), 640, 64, 64, 64),
        ((4, 8), 640, 64, 64, 64),
        ((32,), 337, 64, 64, 64),  # of a prime number of steps some are left
        ((32,), 1000, 256, 1, 20),  # the product of a step is large enough, and 20 divides 1000
        ((1,), 336, 512, None, None),  # adding to 2 million gradients is worth no block
        ((), 640, 64, 128, 128),  # jax.vmap may hide 16 sequences
        ((100_000,), 50, 64, 2, 2),
        ((32,), 0, 64, None, None),
        ((0,), 50, 64, None, None),
    ],
)
def test_steps_together(batch, time, units, ahead, behind):
    xs, w_x, w_h = shapes(batch, time, units, units)
    assert chunking.input_chunk(xs, w_x) == ahead
    assert chunking.grad_chunk(xs, w_x, w_h) == behind


def test_steps_whose_number_is_open():
    batch, time = jax.export.symbolic_shape("b, t")
    for shape in ((batch, 1000, 64), (32, time, 64)):
        xs, w_x, w_h = jax.ShapeDtypeStruct(shape, jnp.float32), *shapes((), 1, 64, 64)[1:]
        assert chunking.input_chunk(xs, w_x) is None
        assert chunking.input_chunk(xs, jnp.zeros((256, 1024))) == 1
        assert chunking.grad_chunk(xs, w_x, w_h) is None


@pytest.mark.parametrize(("time", "loops"), [(16, 2), (640, 4), (641, 6)])
def test_a_block_is_a_loop_within_a_loop(time, loops):
    xs, *_ = shapes((32,), time, 64, 64)
    params = jax.eval_shape(lambda: lstm.init(jax.random.key(0), 64, 64))
    slope = jax.jit(jax.grad(lambda params, xs: lstm.apply(params, xs)[0].sum()))
    assert slope.lower(params, xs).as_text().count("stablehlo.while") == loops


@pytest.mark.parametrize("masked", [False, True], ids=["forward", "reversed, with a length and resets"])
def test_values_and_gradients_of_chunks_and_a_remainder(masked, x64):
    """Against the float64 loop, at sizes that make two chunks of 4 steps and a remainder of 3."""
    inputs, units, projection, time = 2, 2048, 2, 11  # a projection keeps the loop in NumPy short
    times = {"lengths": np.int32(10), "resets": np.arange(time) % 6 == 2, "reverse": True} if masked else {}
    rng = np.random.default_rng(0)
    shapes = (inputs, 4 * units), (projection, 4 * units), (4 * units,), (time, inputs), (projection,), (units,)
    arrays = [rng.normal(size=shape) for shape in (*shapes, (units, projection))]
    arrays[-1] /= units**0.5  # outputs of about 1
    weights = [rng.normal(size=shape) for shape in ((time, projection), *shapes[-2:])]

    def loss(outputs):
        return sum((output * weight).sum() for output, weight in zip(outputs, weights, strict=True))

    def expected(*arrays):
        return reference.apply(*arrays[:-1], w_projection=arrays[-1], **times)

    def run(w_x, w_h, bias, xs, h, c, w_projection):
        params = LSTMParams(w_x, w_h, bias, w_projection=w_projection)
        ys, end = lstm.apply(params, xs, LSTMState(h, c), **times)
        return loss((ys, end.h, end.c)), (ys, end.h, end.c)

    w_x, w_h, _, xs, *_ = wide = [jnp.asarray(array) for array in arrays]
    assert chunking.input_chunk(xs, w_x) == chunking.grad_chunk(xs, w_x, w_h) == 4
    slopes = jax.jit(jax.grad(run, argnums=tuple(range(len(wide))), has_aux=True)).lower(*wide)
    assert slopes.as_text().count("stablehlo.while") == 6  # of chunks, within them, of the remainder; both ways
    found, outputs = slopes.compile()(*wide)
    for actual, right in zip(outputs, expected(*arrays), strict=True):
        np.testing.assert_allclose(actual, right, rtol=0, atol=1e-12)
    directions = [rng.normal(size=array.shape) for array in arrays]
    right = reference.slopes(lambda *arrays: loss(expected(*arrays)), arrays, directions)
    actual = [np.vdot(slope, direction) for slope, direction in zip(found, directions, strict=True)]
    np.testing.assert_allclose(actual, right, rtol=1e-10)
