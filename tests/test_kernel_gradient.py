"""Values and gradients of the interpreted TPU kernel, for the default suite."""

import jax
import numpy as np
import pytest
import reference

from lstmjax import LSTMParams, LSTMState, lstm
from lstmjax._src.lstm.pallas_tpu import tpu


@pytest.mark.parametrize("time", [3, pytest.param(19, marks=pytest.mark.slow)])
def test_values_and_gradients(time):
    """Against the float64 loop, in every array and from every output, in one iteration of the kernel and in several."""
    assert time < tpu.UNROLLED or time > 2 * tpu.UNROLLED
    batch, inputs, units = 2, 2, 3
    rng = np.random.default_rng(0)
    state = (batch, units), (batch, units)
    shapes = (inputs, 4 * units), (units, 4 * units), (4 * units,), (batch, time, inputs), *state
    arrays = [np.float32(rng.normal(size=shape)) for shape in shapes]
    weights = [np.float32(rng.normal(size=shape)) for shape in ((batch, time, units), *state)]

    def loss(outputs):
        return sum((output * weight).sum() for output, weight in zip(outputs, weights, strict=True))

    def run(w_x, w_h, bias, xs, h, c):
        ys, end = lstm.apply(LSTMParams(w_x, w_h, bias), xs, LSTMState(h, c), implementation="pallas_tpu")
        return loss((ys, end.h, end.c)), (ys, end.h, end.c)

    slopes, outputs = jax.jit(jax.grad(run, argnums=tuple(range(len(arrays))), has_aux=True))(*arrays)
    arrays = [np.float64(array) for array in arrays]
    for actual, right in zip(outputs, reference.apply(*arrays), strict=True):
        np.testing.assert_allclose(actual, right, rtol=0, atol=2e-6)
    for actual, right in zip(
        slopes, reference.gradients(lambda *arrays: loss(reference.apply(*arrays)), arrays), strict=True
    ):
        np.testing.assert_allclose(actual, right, rtol=0, atol=1e-5 * np.abs(right).max())
