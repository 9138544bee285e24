"""Fresh params and states may be donated: they share no memory with each other or with what they were made from."""

import types

import donation
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from donation import aligned
from flax import nnx

import lstmjax.flax
from lstmjax import (
    LSTMState,
    bidirectional,
    conv1d,
    crf,
    dense,
    embedding,
    files,
    hierarchy,
    interop,
    lstm,
    residual,
    stack,
)

KEY = jax.random.key(0)
ALL = {"layer_norm": True, "learned_state": True, "peepholes": True, "projection": 2}
ONE = {}


def always_the_same(key, shape, dtype):
    """An initializer that draws each shape once."""
    return ONE.setdefault(shape, jnp.ones(shape, dtype))


def of_numpy(key, shape, dtype):
    return ONE.setdefault((*shape, "numpy"), aligned(np.ones(shape, dtype)))


INITS = {
    "lstm": lambda: lstm.init(KEY, 2, 3),
    "layer norm": lambda: lstm.init(KEY, 2, 3, layer_norm=True),
    "all": lambda: lstm.init(KEY, 2, 3, **ALL),
    "all, bfloat16": lambda: lstm.init(KEY, 2, 3, dtype=jnp.bfloat16, **ALL),
    "jitted": lambda: jax.jit(lambda key: lstm.init(key, 2, 2, layer_norm=True, learned_state=True))(KEY),
    "bidirectional": lambda: bidirectional.init(KEY, 2, 3, **ALL),
    "stack": lambda: stack.init(KEY, 2, (3, 3), bidirectional=True, layer_norm=True),
    "hierarchy": lambda: hierarchy.init(KEY, 2, (3, (3, 3)), vocabulary=5, learned_state=True),
    "dense": lambda: dense.init(KEY, 3, 3),
    "embedding": lambda: embedding.init(KEY, 5, 2),
    "conv1d": lambda: conv1d.init(KEY, 2, 2),
    "residual": lambda: residual.init(KEY, 2, (3, 3)),
    "crf": lambda: crf.init(KEY, 3),
    "flax.LSTM": lambda: lstmjax.flax.LSTM(2, 3, layer_norm=True, rngs=nnx.Rngs(0)).params,
    "flax.Bidirectional": lambda: lstmjax.flax.Bidirectional(2, 3, layer_norm=True, rngs=nnx.Rngs(0)).params,
    "flax.Stack": lambda: lstmjax.flax.Stack(2, (3, 3), layer_norm=True, rngs=nnx.Rngs(0)).params,
    "flax.CRF": lambda: lstmjax.flax.CRF(3, rngs=nnx.Rngs(0)).params,
    "flax.RNN": lambda: lstmjax.flax.RNN(lstmjax.flax.LSTMCell(3)).init(KEY, jnp.ones((1, 1, 2))),
    "flax.LSTMCell": lambda: lstmjax.flax.LSTMCell(3).initialize_carry(KEY, (4, 2)),
}


@pytest.mark.parametrize("name", INITS)
def test_init(name):
    donation.check(INITS[name])


@pytest.mark.parametrize("initializer", [always_the_same, of_numpy])
@pytest.mark.parametrize(
    "make",
    [
        lambda init: dense.init(KEY, 3, 3, w_init=init, bias_init=init),
        lambda init: embedding.init(KEY, 3, 3, table_init=init),
        lambda init: conv1d.init(KEY, 2, 3, w_init=init, bias_init=init),
        lambda init: residual.init(KEY, 3, (3, 3), w_init=init, bias_init=init),
        lambda init: crf.init(KEY, 3, start_init=init, transitions_init=init, end_init=init),
        lambda init: lstm.init(KEY, 3, 3, w_x_init=init, w_h_init=init, bias_init=init),
        lambda init: lstm.init(KEY, 3, 3, projection=3, w_projection_init=init, peepholes=True, w_peephole_init=init),
    ],
)
def test_initializer_that_returns_its_own_array(make, initializer):
    ONE.clear()
    donation.check(lambda: make(initializer))
    kept = list(ONE.values())
    donation.check(lambda *_: make(initializer), *kept)
    ONE.clear()


def with_state(dtype=jnp.float32, **state):
    params = lstm.init(KEY, 2, 3, learned_state=True, dtype=dtype)
    return lstm.LSTMParams(params.w_x, params.w_h, params.bias, initial=LSTMState(**state)) if state else params


SHARED = jnp.arange(3.0)
STATES = {
    "zeros": lstm.init(KEY, 2, 3),
    "learned": with_state(),
    "learned, bfloat16": with_state(jnp.bfloat16),
    "h is c": with_state(h=SHARED, c=SHARED),
    "numpy": with_state(h=aligned(np.ones(3, "f")), c=aligned(np.ones(3, "f"))),
    "bidirectional": bidirectional.init(KEY, 2, 3, learned_state=True),
    "stack": stack.init(KEY, 2, (3, 3), learned_state=True),
}


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("batch", [(), (1,), (4, 1)])
@pytest.mark.parametrize("name", STATES)
def test_initial_state(name, batch, jitted):
    def make(params):
        return stack.initial_state(params, batch)

    donation.check(jax.jit(make) if jitted else make, STATES[name])


def ones(*shape):
    return np.ones(shape, "f")


SOURCES = {
    "cudnn": (lambda source: interop.from_cudnn(source, 2, 3), ones(84)),
    "equinox": (
        lambda source: interop.from_equinox(types.SimpleNamespace(**source)),
        {"weight_ih": ones(12, 2), "weight_hh": ones(12, 3), "bias": ones(12)},
    ),
    "flax": (
        interop.from_flax,
        {f"i{gate}": {"kernel": ones(2, 3)} for gate in "ifgo"}
        | {f"h{gate}": {"kernel": ones(3, 3), "bias": ones(3)} for gate in "ifgo"},
    ),
    "haiku": (interop.from_haiku, {"lstm/linear": {"w": ones(5, 12), "b": ones(12)}}),
    "haste": (
        interop.from_haste,
        {"kernel": ones(2, 12), "recurrent_kernel": ones(3, 12), "bias": ones(12)}
        | {"gamma": ones(2, 12), "gamma_h": ones(3), "beta_h": ones(3)},
    ),
    "keras": (interop.from_keras, [ones(2, 12), ones(3, 12), ones(12)]),
    "sonnet": (interop.from_sonnet, {"w_i": ones(2, 12), "w_h": ones(3, 12), "b": ones(12)}),
    "tensorflow": (interop.from_tensorflow, {"kernel": ones(5, 12), "bias": ones(12)}),
    "torch": (
        interop.from_torch,
        {"weight_ih_l0": ones(12, 2), "weight_hh_l0": ones(12, 3), "bias_ih_l0": ones(12), "bias_hh_l0": ones(12)},
    ),
    "flax.LSTM.from_params": (lambda params: lstmjax.flax.LSTM.from_params(params).params, lstm.init(KEY, 2, 3, **ALL)),
    "flax.CRF.from_params": (lambda params: lstmjax.flax.CRF.from_params(params).params, crf.init(KEY, 3)),
}


@pytest.mark.parametrize("convert", [aligned, jnp.array], ids=["numpy", "jax"])
@pytest.mark.parametrize("name", SOURCES)
def test_weights_of_other_libraries(name, convert):
    take, source = SOURCES[name]
    donation.check(take, jax.tree.map(convert, source))


def test_file(tmp_path):
    files.save(tmp_path / "all", lstm.init(KEY, 2, 3, **ALL))
    donation.check(lambda: files.load(tmp_path / "all")[0])
