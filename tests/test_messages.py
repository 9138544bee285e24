"""Mistakes of those who come from other libraries, and what they are told."""

import inspect
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lstmjax
import lstmjax.flax
from lstmjax import (
    BidirectionalParams,
    Dropout,
    LSTMOptions,
    LSTMState,
    bidirectional,
    conv1d,
    crf,
    dense,
    embedding,
    export,
    files,
    hierarchy,
    interop,
    lstm,
    pooling,
    ragged,
    residual,
    sharding,
    stack,
    windows,
)
from lstmjax import inspect as inspection
from lstmjax._src import keywords

KEY = jax.random.key(0)
PARAMS = {
    "lstm": lstm.init(KEY, 2, 3),
    "bidirectional": bidirectional.init(KEY, 2, 3),
    "stack": stack.init(KEY, 2, (3, 3)),
    "hierarchy": hierarchy.init(KEY, 2, (3, 3)),
    "dense": dense.init(KEY, 2, 3),
    "embedding": embedding.init(KEY, 5, 2),
    "conv1d": conv1d.init(KEY, 2, 3),
    "residual": residual.init(KEY, 2, (3,)),
    "crf": crf.init(KEY, 2),
}
LSTM, BOTH, STACK = (PARAMS[name] for name in ("lstm", "bidirectional", "stack"))
XS, X = jnp.ones((2, 4, 2)), jnp.ones((2, 2))


def told(call):
    """What a call that must fail says."""
    with pytest.raises((TypeError, ValueError)) as refused:
        call()
    assert type(refused.value) in (TypeError, ValueError)
    return str(refused.value)


KEYWORDS = [
    (lstm.init, "hidden_size", "lstm.init calls it units"),
    (lstm.init, "num_units", "lstm.init calls it units"),
    (lstm.init, "features", "lstm.init calls it units"),
    (lstm.init, "input_size", "lstm.init calls it inputs"),
    (lstm.init, "proj_size", "lstm.init calls it projection"),
    (lstm.init, "use_bias", "lstm.init calls it bias"),
    (lstm.init, "unit_forget_bias", "lstm.init calls it forget_bias"),
    (lstm.init, "kernel_initializer", "lstm.init calls it w_x_init"),
    (lstm.init, "rngs", "lstm.init calls it key"),
    (lstm.init, "param_dtype", "lstm.init calls it dtype"),
    (lstm.init, "num_layers", "stack.init makes several layers"),
    (lstm.init, "bidirectional", "bidirectional.init makes two directions"),
    (lstm.init, "dropout", "lstm.apply takes dropout"),
    (lstm.init, "recurrent_dropout", "apply takes dropout=Dropout(recurrent=...)"),
    (lstm.init, "return_sequences", "lstm.apply takes return_sequences"),
    (lstm.init, "activation", "apply takes options=LSTMOptions(activation=...)"),
    (lstm.init, "batch_first", "arrays are [*batch, time, features]"),
    (lstm.init, "peephole", "lstm.init calls it peepholes"),
    (lstm.init, "layer_nrom", "did you mean 'layer_norm'? (one of: key, inputs, units,"),
    (lstm.initial_state, "batch_size", "lstm.initial_state calls it batch"),
    (lstm.apply, "return_state", "apply always returns (ys, state)"),
    (lstm.apply, "initial_state", "lstm.apply calls it state"),
    (lstm.apply, "initial_carry", "lstm.apply calls it state"),
    (lstm.apply, "hx", "lstm.apply calls it state"),
    (lstm.apply, "return_sequence", "did you mean 'return_sequences'? (one of: params, xs,"),
    (lstm.apply, "sequence_length", "lstm.apply calls it lengths"),
    (lstm.apply, "seq_lengths", "lstm.apply calls it lengths"),
    (lstm.apply, "attention_mask", "lstm.apply calls it mask"),
    (lstm.apply, "padding_mask", "lengths=mask.sum(-1)"),
    (lstm.apply, "go_backwards", "lstm.apply calls it reverse"),
    (lstm.apply, "batch_first", "arrays are [*batch, time, features]"),
    (conv1d.apply, "time_major", "arrays are [*batch, time, features]"),
    (conv1d.apply, "mask", "lengths=mask.sum(-1)"),
    (
        lstm.apply,
        "training",
        "training is a call with key=, evaluation one with deterministic=True",
    ),
    (lstm.apply, "rate", "Dropout(inputs=0.2"),
    (lstm.apply, "peepholes", "lstm.init takes peepholes"),
    (lstm.apply, "cell_clip", "apply takes options=LSTMOptions(cell_clip=...)"),
    (lstm.apply, "nonsense", "unknown argument 'nonsense' of lstm.apply (one of: params"),
    (lstm.step, "carry", "lstm.step calls it state"),
    (lstm.step, "lengths", "lstm.apply takes lengths"),
    (lstm.dispatch, "seq_lengths", "lstm.dispatch calls it lengths"),
    (bidirectional.init, "hidden_size", "bidirectional.init calls it units"),
    (bidirectional.apply, "merge_mode", "bidirectional.apply calls it merge"),
    (bidirectional.apply, "sequence_length", "bidirectional.apply calls it lengths"),
    (stack.init, "hidden_size", "stack.init calls it units"),
    (stack.init, "num_layers", "units=(64, 64)"),
    (stack.init, "use_bias", "stack.init calls it bias"),
    (stack.init, "dropout", "stack.apply takes dropout"),
    (stack.step, "initial_state", "stack.step calls it state"),
    (stack.apply, "bidirectional", "stack.init takes bidirectional"),
    (stack.apply, "skip_connections", "stack.apply calls it residual_from"),
    (hierarchy.init, "vocab_size", "hierarchy.init calls it vocabulary"),
    (hierarchy.init, "embedding_dim", "hierarchy.init calls it inputs"),
    (hierarchy.apply, "masks", "hierarchy.apply calls it mask"),
    (hierarchy.apply, "x", "hierarchy.apply calls it tokens"),
    (hierarchy.encode, "sequence_length", "hierarchy.encode calls it lengths"),
    (embedding.init, "num_embeddings", "embedding.init calls it vocabulary"),
    (embedding.init, "embedding_dim", "embedding.init calls it features"),
    (embedding.init, "padding_idx", "padding is told by the lengths"),
    (embedding.apply, "input_ids", "embedding.apply calls it tokens"),
    (dense.init, "features", "dense.init calls it units"),
    (dense.init, "in_features", "dense.init calls it inputs"),
    (dense.apply, "x", "dense.apply calls it xs"),
    (conv1d.init, "filters", "conv1d.init calls it units"),
    (conv1d.init, "kernel_size", "conv1d.init calls it kernel"),
    (conv1d.apply, "strides", "conv1d.apply calls it stride"),
    (conv1d.apply, "dilation_rate", "conv1d.apply calls it dilation"),
    (conv1d.apply, "padding", "causal="),
    (residual.apply, "kernel_size", "residual.init takes kernel"),
    (residual.apply, "stride", "residual.apply calls it strides"),
    (crf.init, "num_tags", "crf.init calls it tags"),
    (crf.bio, "tag_names", "did you mean 'names'?"),
    (crf.log_likelihood, "mask", "lengths=mask.sum(-1)"),
    (crf.log_likelihood, "labels", "crf.log_likelihood calls it tags"),
    (crf.decode, "logits", "crf.decode calls it emissions"),
    (crf.marginals, "sequence_lengths", "crf.marginals calls it lengths"),
    (crf.log_partition, "constraints", "crf.log_partition calls it allowed"),
    (crf.sample, "rng", "crf.sample calls it key"),
    (pooling.max_over_windows, "pool_size", "pooling.max_over_windows calls it window"),
    (pooling.global_mean, "input_mask", "pooling.global_mean calls it mask"),
    (pooling.global_max, "x", "pooling.global_max calls it xs"),
    (pooling.last, "seq_lens", "pooling.last calls it lengths"),
    (windows.look_back, "timesteps", "windows.look_back calls it steps"),
    (windows.stateful_batches, "batch_size", "windows.stateful_batches calls it rows"),
    (windows.truncated_bptt, "seq_len", "windows.truncated_bptt calls it steps"),
    (ragged.pad, "padding_value", "ragged.pad calls it fill"),
    (ragged.bucket_boundaries, "wast", "did you mean 'waste'?"),
    (ragged.buckets, "value", "ragged.buckets calls it fill"),
    (Dropout, "rate", "Dropout(inputs=0.2"),
    (Dropout, "recurrent_dropout", "Dropout calls it recurrent"),
    (Dropout, "zoneout", "Dropout calls it zoneout_h"),
    (Dropout, "activation", "apply takes options=LSTMOptions(activation=...)"),
    (dense.apply, "activation", "it has none; give its outputs to a function such as jax.nn.relu"),
    (dense.init, "activation", "it has none; give its outputs"),
    (conv1d.apply, "activation", "it has none; give its outputs"),
    (conv1d.apply, "return_state", "unknown argument 'return_state' of conv1d.apply (one of:"),
    (dense.apply, "training", "unknown argument 'training' of dense.apply (one of:"),
    (dense.apply, "mask", "unknown argument 'mask' of dense.apply (one of:"),
    (lstm.apply, "padding", "unknown argument 'padding' of lstm.apply (one of:"),
    (residual.apply, "dropout_rate", "residual.apply calls it dropout"),
    (residual.apply, "rate", "residual.apply calls it dropout"),
    (residual.init, "dropout_rate", "residual.apply takes dropout"),
    (residual.init, "num_channels", "residual.init calls it units"),
    (embedding.init, "rate", "it has no dropout"),
    (dense.apply, "rate", "it has no dropout"),
    (pooling.global_mean, "axis", "time is the axis before the last"),
    (lstm.init, "batch_first", "as with batch_first=True or time_major=False; of arrays with time first jnp.swapaxes"),
    (bidirectional.init, "lengths", "bidirectional.apply takes lengths"),
    (stack.init, "dropout_rate", "Dropout(inputs=0.2"),
    (bidirectional.apply, "activation", "apply takes options=LSTMOptions(activation=...)"),
    (hierarchy.apply, "activation", "apply takes options=LSTMOptions(activation=...)"),
    (hierarchy.init, "rate", "Dropout(inputs=0.2"),
    (hierarchy.apply, "state", "every level begins with the initial state of its encoder"),
    (hierarchy.apply, "initial_state", "every level begins with the initial state of its encoder"),
    *((crf.decode, name, "crf.decode calls it k") for name in ("top_k", "topk", "nbest", "n_best", "num_paths")),
    (crf.decode, "beam_width", "crf.decode calls it k"),
    (crf.marginals, "top_k", "crf.decode takes k"),
    (conv1d.init, "feature_group_count", "conv1d.init calls it groups"),
    (conv1d.apply, "feature_group_count", "conv1d.apply calls it groups"),
    (LSTMOptions, "eps", "LSTMOptions calls it norm_epsilon"),
    (lstm.apply, "epsilon", "apply takes options=LSTMOptions(norm_epsilon=...)"),
    (lstm.apply, "inference", "evaluation one with deterministic=True"),
    (lstm.apply, "determinstic", "did you mean 'deterministic'?"),
    (hierarchy.apply, "determinstic", "did you mean 'deterministic'?"),
    (embedding.attend, "x", "embedding.attend calls it xs"),
    (inspection.trace, "initial_state", "inspect.trace calls it state"),
    (inspection.trace, "masks", "inspect.trace calls it mask"),
    (inspection.trace, "rate", "Dropout(inputs=0.2"),
    (inspection.trace, "activation", "inspect.trace takes options=LSTMOptions(activation=...)"),
    (lstmjax.time_distributed, "layer", "lstmjax.time_distributed calls it function"),
    (lstmjax.checked, "fn", "lstmjax.checked calls it function"),
    (conv1d.output_lengths, "strides", "conv1d.output_lengths calls it stride"),
    (conv1d.receptive_field, "kernel_size", "conv1d.receptive_field calls it kernel"),
    (residual.receptive_field, "dilation_rate", "residual.receptive_field calls it dilations"),
    (files.save, "filename", "files.save calls it path"),
    (files.save, "state_dict", "files.save calls it params"),
    (files.save, "like", "files.load takes like"),
    (files.load, "target", "files.load calls it like"),
    *((getattr(interop, name), "model", f"interop.{name} calls it ") for name in dir(interop) if name[:5] == "from_"),
    (interop.from_keras, "layer", "interop.from_keras calls it source"),
    (interop.to_torch, "weights", "interop.to_torch calls it params"),
    (sharding.place, "weights", "sharding.place calls it params"),
    (export.load, "filename", "export.load"),
    (lstmjax.flax.LSTM, "hidden_size", "lstmjax.flax.LSTM calls it hidden_features"),
    (lstmjax.flax.LSTM, "gate_fn", "lstmjax.flax.LSTM takes options=LSTMOptions(recurrent_activation=...)"),
    (lstmjax.flax.LSTM, "use_peepholes", "lstmjax.flax.LSTM calls it peepholes"),
    (lstmjax.flax.LSTM, "recurrent_dropout", "lstmjax.flax.LSTM takes dropout=Dropout(recurrent=...)"),
    (lstmjax.flax.LSTM, "dropout_rate", "Dropout(inputs=0.2"),
    (lstmjax.flax.Bidirectional, "merge_fn", "lstmjax.flax.Bidirectional calls it merge"),
    (lstmjax.flax.Stack, "num_layers", "stack.init makes several layers"),
    (lstmjax.flax.LSTMCell, "hidden_size", "lstmjax.flax.LSTMCell calls it features"),
    (lstmjax.flax.LSTMCell, "gate_fn", "lstmjax.flax.LSTMCell takes options=LSTMOptions(recurrent_activation=...)"),
    (lstmjax.flax.RNN, "return_state", "lstmjax.flax.RNN calls it return_carry"),
    (LSTMOptions, "dtype", "LSTMOptions calls it precision"),
    (LSTMOptions, "gate_fn", "LSTMOptions calls it recurrent_activation"),
    (LSTMOptions, "recurent_activation", "did you mean 'recurrent_activation'?"),
]


@pytest.mark.parametrize(
    ("function", "name", "answer"), KEYWORDS, ids=lambda value: value if type(value) is str else ""
)
def test_keywords_of_other_libraries(function, name, answer, untyped):
    for more in ({}, {"another_thing": 1}):
        words = told(lambda more=more: function(**{name: 1, **more}))
        assert words.startswith(f"unknown argument {name!r}")
        assert answer in words


FUNCTIONS = list(dict.fromkeys(function for function, *_ in KEYWORDS))


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: f"{function.__module__}.{function.__name__}")
def test_signatures_are_those_of_the_functions(function):
    if isinstance(function, type(nnx.Module)):  # its metaclass hides all signatures
        function = function.__init__
    written = inspect.unwrap(function.__init__ if isinstance(function, type) else function)
    names = [name for name in inspect.signature(written).parameters if name != "self"]
    assert [name for name in inspect.signature(function).parameters if name != "self"] == names
    assert "kwargs" not in names
    assert function.__doc__


def test_errors_of_calls_without_such_keywords_are_left_alone(untyped):
    assert "missing 1 required positional argument: 'units'" in told(lambda: lstm.init(KEY, 2))
    assert told(lambda: Dropout(inputs="a")) == "inputs must be a number, got 'a'."


def test_a_right_call_is_one_python_call_more():
    """Names are compared only once a call has failed."""

    def plain(a, *, b=1, c=2, d=3):
        return a

    explained, called = keywords.explained("plain")(plain), []
    sys.setprofile(lambda frame, event, _: called.append(frame.f_code.co_name) if event == "call" else None)
    try:
        explained(1, b=2, c=3, d=4)
    finally:
        sys.setprofile(None)
    assert called == ["call", "plain"]


TAKES = {
    "lstm": lambda params: lstm.apply(params, XS),
    "lstm step": lambda params: lstm.step(params, X, lstm.initial_state(LSTM, (2,))),
    "lstm state": lambda params: lstm.initial_state(params),
    "lstm lengths": lambda params: lstm.apply(params, XS, lengths=jnp.ones(2, int)),
    "bidirectional": lambda params: bidirectional.apply(params, XS),
    "bidirectional state": lambda params: bidirectional.initial_state(params),
    "stack step": lambda params: stack.step(params, X, ()),
    "hierarchy": lambda params: hierarchy.apply(params, XS),
    "dense": lambda params: dense.apply(params, X),
    "embedding": lambda params: embedding.apply(params, jnp.ones(2, int)),
    "conv1d": lambda params: conv1d.apply(params, XS),
    "crf": lambda params: crf.decode(params, XS),
}
USE = {
    "lstm": "LSTMParams: use lstm.apply",
    "bidirectional": "BidirectionalParams: use bidirectional.apply",
    "stack": "StackParams: use stack.apply or stack.step",
    "hierarchy": "HierarchyParams: use hierarchy.apply",
    "crf": "CRFParams: use crf.log_likelihood",
    "dense": "DenseParams: use dense.apply",
}


@pytest.mark.parametrize("given", USE)
@pytest.mark.parametrize("taker", TAKES)
def test_params_of_another_function(taker, given, untyped):
    if taker.partition(" ")[0] != given:
        assert f"; got {USE[given]}" in told(lambda: TAKES[taker](PARAMS[given]))


H, C = jnp.ones((2, 3)), jnp.zeros((2, 3))
PAIR = LSTMState(H, C)
LISTS = [[[3, 1, 4], [1]], [], [[], [5, 9]]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lstm.apply(LSTM, XS, (H, C)), ["state must be LSTMState", "LSTMState(h, c)", "order"]),
        (lambda: lstm.apply(LSTM, XS, [H, C]), ["LSTMState(h, c)"]),
        (lambda: lstm.step(LSTM, X, (H, C)), ["LSTMState(h, c)", "order"]),
        (lambda: bidirectional.apply(BOTH, XS, ((H, C), (H, C))), ["BidirectionalState(forward, backward)", "h, c"]),
        (lambda: bidirectional.apply(BOTH, XS, [PAIR, PAIR]), ["BidirectionalState(forward, backward)"]),
        (lambda: stack.apply(STACK, XS, (H, C)), ["tuple(map(LSTMState, h, c))"]),
        (lambda: stack.apply(STACK, XS, ((H, C), (H, C))), ["LSTMState(h, c)", "order"]),
        (lambda: stack.step(STACK, X, (H, C)), ["tuple(map(LSTMState, h, c))"]),
        (lambda: stack.apply(STACK, XS, (H, C, H)), ["tuple of 2 states", "tuple(map(LSTMState, h, c))", "of 3"]),
        (lambda: hierarchy.apply(PARAMS["hierarchy"], jnp.ones((2, 3, 4), int)), ["int32 (2, 3, 4)", "vocabulary=..."]),
        (lambda: hierarchy.apply(PARAMS["hierarchy"], np.ones((2, 3, 4), int)), ["vocabulary=..."]),
        (
            lambda: hierarchy.apply(PARAMS["hierarchy"], jnp.ones((2, 3, 4, 2)), lengths=jnp.ones((2, 3), int)),
            ["lengths must be a tuple", "2 levels", "got one array"],
        ),
        (lambda: lstm.apply(LSTM, jnp.ones((2, 4), int)), ["int32 (2, 4)", ".astype(jnp.float32)", "embedding.apply"]),
        (lambda: ragged.pad(LISTS), ["levels=2"]),
        (lambda: ragged.pad([[[[1], [2, 3]]]]), ["levels=2"]),
        (lambda: ragged.pad([[3, 1], [1]], levels=2), ["list 2", "levels= is"]),
        (lambda: ragged.buckets(LISTS[0]), None),
    ],
)
def test_what_other_libraries_take(call, words, untyped):
    if words is None:
        call()
    else:
        refused = told(call)
        assert [word for word in words if word not in refused] == []


OF_LENGTHS = {
    "lstm": lambda n: lstm.apply(LSTM, XS, lengths=n),
    "bidirectional": lambda n: bidirectional.apply(BOTH, XS, lengths=n),
    "stack": lambda n: stack.apply(STACK, XS, lengths=n, residual_from=1),
    "encode": lambda n: hierarchy.encode(LSTM, XS, lengths=n),
    "hierarchy": lambda n: hierarchy.apply(hierarchy.init(KEY, 2, (3,)), XS, lengths=(n,)),
    "conv1d": lambda n: conv1d.apply(PARAMS["conv1d"], XS, lengths=n),
    "residual": lambda n: residual.apply(PARAMS["residual"], XS, lengths=n),
    "pooling": lambda n: pooling.last(XS, lengths=n),
    "windows": lambda n: windows.truncated_bptt(lstm.apply, 2)(LSTM, XS, lengths=n),
    "crf": lambda n: crf.decode(PARAMS["crf"], XS, lengths=n),
}


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("mask", [np.ones((2, 4), bool), jnp.ones((2, 4), int), np.ones((2, 4), "f"), np.ones(2, bool)])
@pytest.mark.parametrize("name", OF_LENGTHS)
def test_mask_in_place_of_lengths(name, mask, jitted, untyped):
    refused = told(lambda: jax.eval_shape(OF_LENGTHS[name], mask) if jitted else OF_LENGTHS[name](mask))
    wanted = "be integers" if mask.dtype.kind != "i" else "have shape (2,) ("
    assert f"must {wanted}" in refused
    assert f", got {mask.dtype} {mask.shape}" in refused
    assert ("=mask.sum(-1)" in refused) is (mask.shape == (2, 4))
    assert ("not whether they are" in refused) is (mask.shape == (2,))


OF_ANY_PARAMS = {
    "apply": lambda params: stack.apply(params, XS),
    "initial_state": stack.initial_state,
    "check": stack.check,
    "encode": lambda params: hierarchy.encode(params, XS),
    "trace": lambda params: inspection.trace(params, XS),
    **{name: getattr(interop, name) for name in ("to_torch", "to_keras", "to_flax", "to_haiku")},
}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"a": 1}, "dict."),
        (None, "NoneType."),
        (STACK.layers, "tuple: of layers upon each other make it StackParams(layers)."),
        (list(STACK.layers), "list: of layers upon each other make it StackParams(layers)."),
        (PARAMS["dense"], "DenseParams: use dense.apply."),
        (PARAMS["crf"], "CRFParams: use crf.log_likelihood"),
        (PARAMS["hierarchy"], "HierarchyParams: use hierarchy.apply."),
    ],
    ids=lambda value: value if type(value) is str else "",
)
@pytest.mark.parametrize("name", OF_ANY_PARAMS)
def test_params_of_one_layer_or_of_several(name, given, found, untyped):
    if name == "to_torch":
        pytest.importorskip("torch")
    refused = told(lambda: OF_ANY_PARAMS[name](given))
    assert "params must be LSTMParams, BidirectionalParams or StackParams, as lstm.init, bid" in refused
    assert f"; got {found}" in refused


OF_STATE = {
    "lstm": lambda state: lstm.apply(LSTM, XS, state),
    "lstm step": lambda state: lstm.step(LSTM, X, state),
    "dispatch": lambda state: lstm.dispatch(LSTM, XS, state),
    "bidirectional": lambda state: bidirectional.apply(BOTH, XS, state),
    "stack": lambda state: stack.apply(STACK, XS, state),
    "stack of one": lambda state: stack.apply(LSTM, XS, state),
    "stack step": lambda state: stack.step(STACK, X, state),
    "trace": lambda state: inspection.trace(STACK, XS, state),
}


@pytest.mark.parametrize("given", [jnp.array([4, 2]), np.array([4, 2]), [4, 2], (4, 2), np.ones((2, 4), bool)])
@pytest.mark.parametrize("name", OF_STATE)
def test_lengths_in_place_of_the_state(name, given, untyped):
    refused = told(lambda: OF_STATE[name](given))
    assert refused.startswith("state must be a state, as initial_state makes it; got ")
    assert f"{np.shape(given)}. Lengths and resets are given to apply by name, such as lengths=." in refused
    if isinstance(given, jax.Array):
        assert refused == told(lambda: jax.jit(OF_STATE[name])(given))


def ones(*shape):
    return np.ones(shape, "f")


def named(kind, **fields):
    return type(kind, (types.SimpleNamespace,), {})(**fields)


GRU_OF_FLAX = {f"i{gate}": {"kernel": ones(2, 3), "bias": ones(3)} for gate in "rzn"} | {
    f"h{gate}": {"kernel": ones(3, 3)} for gate in "rzn"
}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: interop.from_torch({"weight_ih_l0": ones(9, 2), "weight_hh_l0": ones(9, 3)}), "3 gates, as a GRU"),
        (lambda: interop.from_torch({"weight_ih_l0": ones(12, 2), "weight_hh_l0": ones(12, 4)}), "3 gates, as a GRU"),
        (
            lambda: interop.from_torch({"weight_ih_l0": ones(4, 2), "weight_hh_l0": ones(4, 4)}),
            "1 gate, as a simple RNN",
        ),
        (lambda: interop.from_torch({"weight": ones(12, 2), "bias": ones(12)}), "dense.DenseParams"),
        (lambda: interop.from_torch(named("Linear", state_dict=dict)), "torch.nn.Linear: .*dense.DenseParams"),
        (lambda: interop.from_torch({"l.weight": ones(4, 2), "l.bias": ones(4)}, prefix="l."), "dense.DenseParams"),
        (lambda: interop.from_keras([ones(2, 9), ones(3, 9), ones(2, 9)]), "3 gates, as a GRU"),
        (lambda: interop.from_keras([ones(2, 12), ones(4, 12), ones(2, 12)]), "3 gates, as a GRU"),
        (lambda: interop.from_keras([ones(2, 3), ones(3, 3), ones(3)]), "1 gate, as a simple RNN"),
        (lambda: interop.from_keras([ones(2, 12), ones(12)]), "dense.DenseParams"),
        (
            lambda: interop.from_equinox(named("GRUCell", weight_ih=ones(9, 2), weight_hh=ones(9, 3), bias=ones(9))),
            "3 gates, as a GRU",
        ),
        (lambda: interop.from_equinox(named("Linear", weight=ones(9, 2), bias=None)), "Linear: .*dense.DenseParams"),
        (lambda: interop.from_flax(GRU_OF_FLAX), "3 gates of a GRU"),
        (lambda: interop.from_flax({"params": {"kernel": ones(2, 12), "bias": ones(12)}}), "dense.DenseParams"),
        (lambda: interop.from_flax({"dense_i": {"kernel": ones(2, 9)}, "dense_h": {"kernel": ones(3, 9)}}), "GRU"),
        (lambda: interop.from_haiku({"gru": {"w_i": ones(2, 9), "w_h": ones(3, 9), "b": ones(9)}}), "hk.GRU"),
        (lambda: interop.from_haiku({"linear": {"w": ones(5, 12), "b": ones(12)}}), "dense.DenseParams"),
        (lambda: interop.from_sonnet({"w_i": ones(2, 9), "w_h": ones(3, 9), "b": ones(9)}), "3 gates, as a GRU"),
        (
            lambda: interop.from_haste({"kernel": ones(2, 9), "recurrent_kernel": ones(3, 9), "bias": ones(9)}),
            "3 gates, as a GRU",
        ),
    ],
)
def test_weights_of_another_layer(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()


def test_halves_are_called_by_their_place(untyped):
    words = told(lambda: bidirectional.apply(BidirectionalParams(BOTH, BOTH), XS))
    assert words == "params.forward must be LSTMParams, as lstm.init makes it; got BidirectionalParams."
