"""The models: what they read and where they start."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import models
from experiments.models import RNN, TCN, Model
from experiments.tasks import TASKS

XS = np.random.default_rng(1).normal(size=(3, 7, 2)).astype(np.float32)


def padded(lengths):
    """XS with NaN beyond these lengths."""
    return np.where((np.arange(7) < np.array(lengths)[:, None])[..., None], XS, np.float32(np.nan))


@functools.partial(jax.jit, static_argnames=("inputs", "outputs", "model"))
def init(key, inputs, outputs, model):
    return models.init(key, inputs, outputs, model)


every = jax.jit(models.every, static_argnums=0)
last = jax.jit(models.last, static_argnums=0)
going_on = jax.jit(models.going_on, static_argnums=0)


def test_last_says_what_every_says_at_the_last_step():
    model = Model(units=4)
    params = init(jax.random.key(0), 2, 5, model)
    np.testing.assert_allclose(last(model, params, XS), every(model, params, XS)[:, -1], rtol=1e-6)


def test_last_reads_each_sequence_to_its_length():
    model = Model(units=4)
    params = init(jax.random.key(0), 2, 5, model)
    lengths = np.array([2, 7, 4])
    outputs = np.asarray(every(model, params, XS))
    expected = [outputs[b, n - 1] for b, n in enumerate(lengths)]
    np.testing.assert_allclose(last(model, params, padded(lengths), lengths), np.stack(expected), rtol=1e-5)


def test_rnn_is_the_loop_and_padding_reaches_nothing():
    model = RNN(units=4)
    params = init(jax.random.key(0), 2, 5, model)
    w_x, w_h, bias = (np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(params["rnn"]))
    head = jax.tree.map(np.asarray, params["dense"])
    lengths = np.array([2, 7, 0])

    @jax.jit
    def measured(params, xs, lengths):
        def square(params):
            end = models.last(model, params, xs, lengths)
            return jnp.sum(end**2), end

        return models.every(model, params, xs, lengths), jax.grad(square, has_aux=True)(params)

    outputs, (grads, ends) = jax.tree.map(np.asarray, measured(params, padded(lengths), lengths))
    for b, length in enumerate(lengths):
        h = np.zeros(4)
        for t in range(length):
            h = np.tanh(np.asarray(XS[b, t], np.float64) @ w_x + h @ w_h + bias)
            np.testing.assert_allclose(outputs[b, t], h @ head.w + head.bias, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ends[b], (h @ head.w + head.bias) * (length > 0), rtol=1e-5, atol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_dropout_needs_a_key_and_tasks_without_one_refuse_it():
    model, params = Model(units=8, dropout=0.5), init(jax.random.key(0), 2, 5, Model(units=8))
    still = np.asarray(every(Model(units=8), params, XS))
    np.testing.assert_array_equal(every(model, params, XS), still)
    one, other = (np.asarray(every(model, params, XS, key=jax.random.key(k))) for k in (0, 1))
    assert np.abs(one - still).max() > 1e-3
    assert np.abs(one - other).max() > 1e-3
    with pytest.raises(ValueError, match=r"model\.dropout is 0\.5; this task drops no units"):
        TASKS["adding"].build(TASKS["adding"].Options(), model, 8, jax.random.key(0))
    with pytest.raises(ValueError, match=r"model\.dropout is 1\.1"):
        Model(dropout=1.1)


def test_chrono_gates_remember_for_one_to_the_longest_gap():
    bias = np.asarray(init(jax.random.key(0), 2, 1, Model(units=100, chrono=100))["lstm"].bias)
    i, f, g, o = np.split(bias, 4)
    assert 0 <= f.min() < np.log(8)
    assert np.log(90) < f.max() < np.log(99)
    np.testing.assert_array_equal(i, -f)
    assert not g.any()
    assert not o.any()


def test_forget_bias_is_used_without_chrono():
    bias = init(jax.random.key(0), 2, 1, Model(units=2, forget_bias=3.0))["lstm"].bias
    np.testing.assert_array_equal(bias, [0, 0, 3, 3, 0, 0, 0, 0])


def test_what_is_said_in_pieces_is_what_is_said_at_once():
    model = Model(units=4)
    params = init(jax.random.key(0), 2, 5, model)
    state, said = models.initial_state(model, params, 3), []
    for piece in (XS[:, :3], XS[:, 3:4], XS[:, 4:]):
        outputs, state = going_on(model, params, piece, state)
        said.append(outputs)
    np.testing.assert_allclose(np.concatenate(said, axis=1), every(model, params, XS), rtol=1e-5, atol=1e-6)


def test_tcn_says_at_each_step_what_it_knows_by_then():
    model = TCN(units=4, blocks=3, kernel=2)
    params = init(jax.random.key(0), 2, 5, model)
    said = np.asarray(every(model, params, XS))
    assert said.shape == (3, 7, 5)
    np.testing.assert_allclose(every(model, params, XS[:, :4]), said[:, :4], rtol=1e-5, atol=1e-6)
    lengths = np.array([7, 4, 7])
    other = np.asarray(every(model, params, padded(lengths), lengths))
    np.testing.assert_allclose(other[1, :4], said[1, :4], rtol=1e-5, atol=1e-6)


DROPPING = {
    "units": TCN(units=4, dropout=0.5),
    "values": TCN(units=4, dropout=0.5, dropout_kind="elementwise"),
    "inputs": TCN(units=4, inputs_dropout=0.5),
}


@pytest.mark.parametrize("model", DROPPING.values(), ids=DROPPING)
def test_tcn_drops_only_with_a_key(model):
    params = init(jax.random.key(0), 2, 5, model)
    said = every(model, params, XS)
    np.testing.assert_array_equal(every(TCN(units=4), params, XS), said)
    dropped = [np.asarray(every(model, params, XS, key=jax.random.key(n))) for n in (1, 1, 2)]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert not np.allclose(dropped[0], said)
    assert not np.allclose(dropped[0], dropped[2])


def test_inputs_are_dropped_at_each_step_anew():
    """A block that adds nothing to what it reads shows which inputs were dropped."""
    model = TCN(units=64, blocks=1, inputs_dropout=0.25)
    params = init(jax.random.key(0), 64, 64, model)
    (block,), head = params["tcn"], params["dense"]
    params = {
        "tcn": (jax.tree.map(np.zeros_like, block),),
        "dense": dataclasses.replace(head, w=np.eye(64, dtype=np.float32), bias=np.zeros(64, np.float32)),
    }
    said = np.asarray(every(model, params, np.ones((8, 5, 64), np.float32), key=jax.random.key(1)))
    assert set(np.unique(said)) == {0, np.float32(1 / 0.75)}
    assert abs((said == 0).mean() - 0.25) < 0.05
    assert len(np.unique(said.reshape(-1, 64), axis=0)) == 8 * 5


def test_precision_is_that_of_the_computation():
    model = Model(units=4, precision="bfloat16")
    params = init(jax.random.key(0), 2, 5, model)
    wide, narrow = (np.asarray(every(m, params, XS)) for m in (Model(units=4), model))
    assert wide.dtype == narrow.dtype == jnp.float32
    assert 1e-5 < np.abs(wide - narrow).max() < 1e-2
    state = models.initial_state(model, params, 3)
    assert [a.dtype for a in jax.tree.leaves(going_on(model, params, XS, state)[1])] == [
        jnp.bfloat16,
        jnp.float32,
    ]


@pytest.mark.parametrize(("field", "value"), [("units", 0), ("chrono", 2), ("chrono", -1)])
def test_impossible_model_is_refused(field, value):
    with pytest.raises(ValueError, match=rf"model\.{field} is {value}; it must be"):
        Model(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"), [("units", 0), ("blocks", 0), ("kernel", 0), ("dropout", 1.1), ("inputs_dropout", -0.1)]
)
def test_impossible_tcn_is_refused(field, value):
    with pytest.raises(ValueError, match=rf"model\.{field} is {value}; it must be"):
        TCN(**{field: value})
