"""What makes parameters, states and options, given sizes, names and numbers that it should not be given."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fuzz import hostile
from fuzz.calls import STACK, both, lstm_params
from fuzz.cases import check_refusal, fuzz
from hypothesis import strategies as st
from jax.nn import initializers

from lstmjax import (
    Dropout,
    LSTMOptions,
    bidirectional,
    conv1d,
    crf,
    dense,
    embedding,
    hierarchy,
    lstm,
    residual,
    stack,
    summary,
)

KEY = {"key": jax.random.key(0)}
LSTM = {
    "bias": True,
    "forget_bias": None,
    "chrono": None,
    "peepholes": False,
    "projection": None,
    "layer_norm": False,
    "coupled": False,
    "learned_state": False,
    "w_x_init": initializers.glorot_uniform(),
    "dtype": jnp.float32,
}
INITS = {
    "lstm": (lstm.init, KEY | {"inputs": 2, "units": 3} | LSTM),
    "bidirectional": (bidirectional.init, KEY | {"inputs": 2, "units": 3} | LSTM),
    "stack": (
        stack.init,
        KEY | {"inputs": 2, "units": (3, 2), "bidirectional": False, "merge": "concat", "forget_bias": 1.0},
    ),
    "hierarchy": (
        hierarchy.init,
        KEY | {"inputs": (2, 1), "units": (3, (2, 2)), "vocabulary": (5, None), "bidirectional": (True, False)},
    ),
    "dense": (dense.init, KEY | {"inputs": 2, "units": 3, "w_init": initializers.zeros, "dtype": jnp.float32}),
    "embedding": (embedding.init, KEY | {"vocabulary": 5, "features": 3, "dtype": jnp.float32}),
    "conv1d": (conv1d.init, KEY | {"inputs": 2, "units": 3, "kernel": 2, "dtype": jnp.float32}),
    "residual": (residual.init, KEY | {"inputs": 2, "units": (3, 3), "kernel": 2, "strides": (1, 2)}),
    "crf": (crf.init, KEY | {"tags": 3, "start_init": initializers.zeros, "dtype": jnp.float32}),
}
NUMBERS = [-1, 0, 1, 2, 3, 5, 2**70, 0.5, 2.5, 1e5, 1e39, math.nan, math.inf, -math.inf, np.float64(1e300), np.int8(3)]
CHOICES = [*NUMBERS, *(junk for junk in hostile.JUNK if not isinstance(junk, int) or junk < 2**20)]
DTYPES = [jnp.float16, "bfloat16", np.float64, "float8_e4m3fn", jnp.int32, "complex64", "text", None, 3, object]


@st.composite
def replaced(draw, arguments):
    """Some other arguments; sizes of which memory would not do are for XLA to refuse, and are not given here."""
    new = {}
    for name in draw(st.lists(st.sampled_from(list(arguments)), min_size=1, max_size=3, unique=True)):
        usual = [True, False] if isinstance(arguments[name], bool) else [3, 1.5, arguments[name]]
        usual = DTYPES if name == "dtype" else usual
        choices = st.sampled_from(usual) | st.sampled_from(CHOICES)
        if isinstance(arguments[name], tuple):
            choices |= st.lists(st.sampled_from([1, 2, (2,), 0, -1, None, True, "text", math.nan]), max_size=3).map(
                tuple
            )
        new[name] = draw(choices)
    return new


@pytest.mark.parametrize("name", INITS)
@fuzz(percent=0.6, data=st.data())
def test_params_are_finite_and_of_their_dtype_or_refused(name, data):
    init, arguments = INITS[name]
    arguments = arguments | data.draw(replaced(arguments), label="replaced")
    try:
        params = init(**arguments)
    except Exception as error:
        check_refusal(error, list(arguments))
        return
    dtype = jnp.dtype(arguments.get("dtype", jnp.float32))
    leaves = jax.tree.leaves(params)
    assert leaves
    for leaf in leaves:
        assert leaf.dtype == dtype
        assert leaf.size
        assert np.isfinite(np.asarray(leaf, np.float64)).all()
    total = summary(params).split()[-1]
    assert int(total.replace(",", "")) == sum(leaf.size for leaf in leaves)


STATES = {
    "lstm": (lstm.initial_state, lstm_params()),
    "bidirectional": (bidirectional.initial_state, both()),
    "stack": (stack.initial_state, STACK),
}
BATCHES = [(), (2,), (0,), (2, 3), [2], (2.5,), (-1,), ("a",), (None,), (True,), (2**70,), ((2,),), (np.int64(3),)]


@pytest.mark.parametrize("name", STATES)
@fuzz(percent=0.4, data=st.data())
def test_states_are_zeros_or_refused(name, data):
    make, good = STATES[name]
    params = data.draw(st.just(good) | hostile.values(good), label="params")
    batch = data.draw(st.sampled_from(BATCHES) | st.sampled_from(hostile.JUNK), label="batch")
    try:
        state = make(params, batch)
    except Exception as error:
        check_refusal(error, ["params", "batch"])
        return
    for leaf in jax.tree.leaves(state):
        assert leaf.shape[:-1] == batch
        assert not leaf.any()


OPTIONS = {
    LSTMOptions: dataclasses.asdict(LSTMOptions()),
    Dropout: dataclasses.asdict(Dropout()),
}
NAMES = ["tanh", "relu", "sigmoid", "Tanh", "per_gate", "candidate", "bfloat16", "float16", "int8", "float64"]


@pytest.mark.parametrize("kind", OPTIONS)
@fuzz(percent=0.6, data=st.data())
def test_options_are_canonical_or_refused(kind, data):
    given = OPTIONS[kind]
    chosen = st.sampled_from(NAMES) | st.sampled_from(CHOICES) | st.floats()
    new = data.draw(st.dictionaries(st.sampled_from(list(given)), chosen, min_size=1, max_size=3), label="options")
    try:
        options = kind(**new)
    except Exception as error:
        check_refusal(error, list(new))
        return
    assert kind(**dataclasses.asdict(options)) == options
    hash(options)
    for value in dataclasses.asdict(options).values():
        assert value is None or isinstance(value, str) or (type(value) is float and not math.isnan(value))


SPECS = ["O", "B-X", "I-X", "E-X", "S-X", "I-", "B", "X-B", "", "o", None, 3, "B-é", "I-é"]


@fuzz(percent=0.5, names=st.lists(st.sampled_from(SPECS), max_size=5) | st.sampled_from(hostile.JUNK))
def test_bio_allows_whole_segments_or_refuses(names):
    try:
        allowed = crf.bio(names)
    except Exception as error:
        check_refusal(error, ["names"])
        return
    assert allowed.transitions.shape == (len(names), len(names))
    for column, name in enumerate(names):
        inside = name[:1] in ("I", "E")
        assert allowed.start[column] == (not inside)
        for row, before in enumerate(names):
            if inside:
                assert allowed.transitions[row, column] == (before[:1] in ("B", "I") and before[2:] == name[2:])


COUNTS = st.sampled_from([1, 2, 3, 7, 2**31 - 1, *NUMBERS]) | st.sampled_from(hostile.JUNK)


@fuzz(
    percent=0.5,
    given=st.tuples(COUNTS, st.lists(COUNTS, max_size=3) | COUNTS, st.none() | st.lists(COUNTS, max_size=3) | COUNTS),
)
def test_receptive_fields_are_counted_or_refused(given):
    kernel, dilations, strides = given
    for function, times in ((conv1d.receptive_field, 1), (residual.receptive_field, 2)):
        try:
            field = function(kernel, dilations, strides)
        except Exception as error:
            check_refusal(error, ["kernel", "dilations", "strides"])
            continue
        if strides is None:
            assert field == 1 + times * (int(kernel) - 1) * sum(map(int, dilations))
        assert field >= 1
