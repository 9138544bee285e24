"""How many steps go together on CPU."""

import jax
import jax.numpy as jnp
import pytest

from lstmjax import blocks, lstm


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
    assert blocks.ahead(xs, w_x) == ahead
    assert blocks.behind(xs, w_x, w_h) == behind


def test_steps_whose_number_is_open():
    batch, time = jax.export.symbolic_shape("b, t")
    for shape in ((batch, 1000, 64), (32, time, 64)):
        xs, w_x, w_h = jax.ShapeDtypeStruct(shape, jnp.float32), *shapes((), 1, 64, 64)[1:]
        assert blocks.ahead(xs, w_x) is None
        assert blocks.ahead(xs, jnp.zeros((256, 1024))) == 1
        assert blocks.behind(xs, w_x, w_h) is None


@pytest.mark.parametrize(("time", "loops"), [(16, 2), (640, 4), (641, 6)])
def test_a_block_is_a_loop_within_a_loop(time, loops):
    xs, *_ = shapes((32,), time, 64, 64)
    params = jax.eval_shape(lambda: lstm.init(jax.random.key(0), 64, 64))
    slope = jax.jit(jax.grad(lambda params, xs: lstm.apply(params, xs)[0].sum()))
    assert slope.lower(params, xs).as_text().count("stablehlo.while") == loops
