"""Our LSTM against Flax's linen cell, which is among the requirements of the tests, with the same weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstmjax import LSTMParams, LSTMState, lstm

BATCH, TIME, INPUTS, UNITS = 4, 6, 2, 3
LENGTHS = np.array([4, 6, 2, 1])
MASK = np.arange(TIME) < LENGTHS[:, None]


def params_of(variables):
    """The whole conversion: a kernel for each gate, beside each other; the bias is on the side of h."""
    cell = variables["params"]["cell"]
    return LSTMParams(
        w_x=jnp.concatenate([cell[f"i{gate}"]["kernel"] for gate in "ifgo"], axis=-1),
        w_h=jnp.concatenate([cell[f"h{gate}"]["kernel"] for gate in "ifgo"], axis=-1),
        bias=jnp.concatenate([cell[f"h{gate}"]["bias"] for gate in "ifgo"]),
    )


def flax_lstm(cell=nn.OptimizedLSTMCell):
    rnn = nn.RNN(cell(UNITS))
    rng = np.random.default_rng(0)
    xs, h, c = (rng.normal(size=s).astype(np.float32) for s in [(BATCH, TIME, INPUTS), *[(BATCH, UNITS)] * 2])
    with jax.numpy_rank_promotion("allow"):
        shapes = jax.eval_shape(rnn.init, jax.random.key(0), xs)
    drawn = jax.tree.map(lambda w: rng.normal(scale=0.5, size=w.shape).astype(np.float32), shapes)

    def run(**arguments):
        with jax.numpy_rank_promotion("allow"):
            return rnn.apply(drawn, xs, return_carry=True, **arguments)

    return run, params_of(drawn), xs, LSTMState(h, c)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.OptimizedLSTMCell])
def test_layout(cell):
    """Its carry is (c, h)."""
    run, params, xs, state = flax_lstm(cell)
    (c, h), expected = run(initial_carry=(state.c, state.h))
    ys, end = lstm.apply(params, xs, state)
    for a, e in zip((ys, end.h, end.c), (expected, h, c), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-6)


def test_no_forget_bias_at_the_start():
    variables = nn.OptimizedLSTMCell(UNITS).init(jax.random.key(0), (np.zeros(UNITS), np.zeros(UNITS)), np.ones(INPUTS))
    assert (params_of({"params": {"cell": variables["params"]}}).bias == 0).all()


@pytest.mark.parametrize("reverse", [False, True])
def test_lengths(reverse):
    """`reverse` needs keep_order=True to leave each output at its own step; outputs at padding are not 0."""
    run, params, xs, _ = flax_lstm()
    (c, h), expected = run(seq_lengths=LENGTHS, reverse=reverse, keep_order=True)
    ys, end = lstm.apply(params, xs, lengths=LENGTHS, reverse=reverse)
    np.testing.assert_allclose(np.asarray(ys)[MASK], np.asarray(expected)[MASK], rtol=0, atol=1e-6)
    np.testing.assert_allclose(end.h, h, rtol=0, atol=1e-6)
    np.testing.assert_allclose(end.c, c, rtol=0, atol=1e-6)
    assert (np.asarray(expected)[~MASK] != 0).all()
    assert (np.asarray(ys)[~MASK] == 0).all()


@pytest.mark.parametrize("time", [256, 2048])
def test_a_gradient_takes_less_memory(time):
    """At most 0.6 of what Flax's takes, as the compiler reports both."""
    rnn = nn.RNN(nn.OptimizedLSTMCell(256))
    xs = jax.ShapeDtypeStruct((32, time, 256), jnp.float32)
    with jax.numpy_rank_promotion("allow"):
        theirs = jax.eval_shape(rnn.init, jax.random.key(0), xs)
    ours = jax.eval_shape(lambda: lstm.init(jax.random.key(0), 256, 256))

    def temporary(apply, params):
        slopes = jax.jit(jax.value_and_grad(lambda params, xs: (apply(params, xs) ** 2).sum(), argnums=(0, 1)))
        with jax.numpy_rank_promotion("allow"):
            return slopes.lower(params, xs).compile().memory_analysis().temp_size_in_bytes

    assert temporary(lambda params, xs: lstm.apply(params, xs)[0], ours) <= 0.6 * temporary(rnn.apply, theirs)
