"""Weights there and back: what the other library computes with them we compute, and what it gave it gets back."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lstmjax import BidirectionalParams, LSTMOptions, LSTMState, StackParams, bidirectional, interop, lstm, stack
from lstmjax.bidirectional import BidirectionalState

BATCH, TIME, INPUTS, UNITS = 2, 5, 3, 4
os.environ["KERAS_BACKEND"] = "jax"  # read at the import
close = {"rtol": 0, "atol": 1e-6}


def drawn(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(scale=0.7, size=shape).astype(dtype)


def equal(actual, expected):
    """To 1e-6, of the largest number where that is above 1."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * max(1, np.abs(expected).max(initial=0)))


def same_bits(one, other):
    one, other = np.asarray(one), np.asarray(other)
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    assert one.tobytes() == other.tobytes()


def halves(params):
    return [half for layer in interop.gates.layers(params) for half in layer]


def start(params, h, c):
    """Our states from arrays of layers, and in each layer of directions."""
    pairs = iter(LSTMState(jnp.asarray(a), jnp.asarray(b)) for a, b in zip(h, c, strict=True))
    whole = [BidirectionalState(next(pairs), next(pairs)) if len(x) == 2 else next(pairs) for x in of_layers(params)]
    return tuple(whole) if isinstance(params, StackParams) else whole[0]


def of_layers(params):
    return interop.gates.layers(params)


def ends(state):
    flat = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, LSTMState))
    return [end.h for end in flat], [end.c for end in flat]


def weighted(ys, h, c):
    """One number in which every output counts differently."""
    parts = [*jax.tree.leaves(ys), *h, *c]
    return sum((part * np.linspace(0.5, 1, part.size, dtype="f").reshape(part.shape)).sum() for part in parts)


def ours(params, xs, h, c):
    """Outputs, final states, and gradients in params and xs of their weighted sum."""

    def loss(params, xs):
        ys, state = stack.apply(params, xs, start(params, h, c))
        ys = ys[0] if isinstance(ys, tuple) and len(ys) == 1 else ys
        return weighted(ys, *ends(state)), (ys, *ends(state))

    slopes, found = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, jnp.asarray(xs))
    return found, slopes


# PyTorch

TORCH = {
    "one": {},
    "no bias": {"bias": False},
    "projection": {"proj_size": 2},
    "two directions": {"bidirectional": True},
    "two layers": {"num_layers": 2},
    "three layers, two directions, projection": {"num_layers": 3, "bidirectional": True, "proj_size": 2},
}
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch", reason="torch is not installed: python -m pip install -e '.[peers]'")
    torch.set_num_threads(1)
    return torch


def torch_lstm(torch, seed=0, **options):
    torch.manual_seed(seed)
    return torch.nn.LSTM(INPUTS, UNITS, batch_first=True, **options)


@pytest.mark.parametrize("options", TORCH.values(), ids=TORCH)
def test_torch(torch, options):
    module = torch_lstm(torch, **options)
    params = interop.from_torch(module)
    every = halves(params)
    h, c = drawn(len(every), BATCH, every[0].outputs), drawn(len(every), BATCH, UNITS, seed=1)
    xs = torch.tensor(drawn(BATCH, TIME, INPUTS, seed=2), requires_grad=True)
    ys, (h_n, c_n) = module(xs, (torch.tensor(h), torch.tensor(c)))
    numbers = [ys, *h_n, *c_n]
    loss = sum((n * torch.linspace(0.5, 1, n.numel()).reshape(n.shape)).sum() for n in numbers)
    loss.backward()
    (our_ys, our_h, our_c), (slopes, slope) = ours(params, xs.detach().numpy(), h, c)
    np.testing.assert_allclose(our_ys, ys.detach(), **close)
    np.testing.assert_allclose(np.stack(our_h), h_n.detach(), **close)
    np.testing.assert_allclose(np.stack(our_c), c_n.detach(), **close)
    equal(slope, xs.grad)
    grads = {name: weight.grad for name, weight in module.named_parameters()}
    for name, tensor in interop.to_torch(slopes).items():
        equal(tensor, grads[name])


@pytest.mark.parametrize("options", TORCH.values(), ids=TORCH)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torch_and_back(torch, options, dtype):
    module = torch_lstm(torch, **options).to(getattr(torch, dtype))
    params = interop.from_torch(module)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
    back, given = interop.to_torch(params), module.state_dict()
    assert set(back) == set(given)
    for name, tensor in given.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor), name
    torch_lstm(torch, seed=1, **options).load_state_dict(back)


def test_torch_state_dict_of_a_larger_model(torch):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = torch_lstm(torch), torch.nn.Linear(UNITS, 2)

    model = Model()
    params = interop.from_torch(model.state_dict(), prefix="encoder.")
    same_bits(params.w_x, model.encoder.weight_ih_l0.detach().numpy().T)
    with pytest.raises(ValueError, match=r"source has 'encoder.weight_ih_l0', which is no weight of torch.nn.LSTM"):
        interop.from_torch(model.state_dict())
    with pytest.raises(ValueError, match=r"such as decoder\.weight_ih_l0; got none"):
        interop.from_torch(model.state_dict(), prefix="decoder.")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda w: w | {"weight_ih_l2": w["weight_ih_l0"]}, ValueError, "check bias_hh_l1, bias_ih_l1, weight_hh_l1"),
        (lambda w: {k: v for k, v in w.items() if k != "weight_hh_l0"}, ValueError, "check weight_hh_l0"),
        (lambda w: w | {"bias_hh_l0": np.ones(12, "f")}, ValueError, r"bias_hh_l0 must have shape \(16\), got \(12,\)"),
        (lambda w: w | {"weight_hh_l0": np.ones((16, 5), "f")}, ValueError, r"weight_hh_l0 must have shape \(16, 4\)"),
        (lambda w: w | {"weight_ih_l0": np.ones((15, 3), "f")}, ValueError, r"weight_hh_l0 must have shape \(15"),
        (lambda w: w | {"weight_ih_l0": np.ones((16, 3), int)}, TypeError, "weight_ih_l0 must have a floating dtype"),
        (lambda w: [*w.values()], TypeError, "source must be a torch.nn.LSTM or its state dict, by name"),
    ],
)
def test_torch_weights_that_do_not_fit(change, error, words):
    weights = {
        "weight_ih_l0": drawn(16, 3),
        "weight_hh_l0": drawn(16, 4),
        "bias_ih_l0": drawn(16),
        "bias_hh_l0": drawn(16),
    }
    with pytest.raises(error, match=words):
        interop.from_torch(change(weights))


def test_torch_cell(torch):
    cell = torch.nn.LSTMCell(INPUTS, UNITS)
    params = interop.from_torch(cell)
    x, h, c = drawn(BATCH, INPUTS), drawn(BATCH, UNITS, seed=1), drawn(BATCH, UNITS, seed=2)
    expected = cell(torch.tensor(x), (torch.tensor(h), torch.tensor(c)))
    _, state = lstm.step(params, x, LSTMState(h, c))
    np.testing.assert_allclose(state.h, expected[0].detach(), **close)
    np.testing.assert_allclose(state.c, expected[1].detach(), **close)


def test_torch_tensors_are_such_as_files_take(torch):
    assert all(tensor.is_contiguous() for tensor in interop.to_torch(lstm.init(jax.random.key(0), 3, 4)).values())


@pytest.mark.parametrize(
    ("kind", "words"),
    [("GRU", "3 gates"), ("GRUCell", "3 gates"), ("RNN", "1 gate"), ("RNNCell", "1 gate")],
)
def test_gru_is_no_lstm(torch, kind, words):
    theirs = getattr(torch.nn, kind)
    for make in (theirs, type("Mine", (theirs,), {})):
        with pytest.raises(TypeError, match=f"LSTM, got a torch.nn.{kind}, which has {words}: an LSTM has 4"):
            interop.from_torch(make(2, 3))


def test_training_goes_on_as_in_torch(torch):
    """A few steps of SGD there, then a hundred here and there: the same losses, since both biases learn."""
    optax = pytest.importorskip("optax")
    module = torch_lstm(torch, num_layers=2)
    xs = drawn(8, 12, INPUTS, seed=3)
    targets = np.cumsum(xs, axis=1).repeat(2, axis=-1)[..., :UNITS] / 4
    optimiser = torch.optim.SGD(module.parameters(), lr=0.3)

    def torch_step():
        optimiser.zero_grad()
        loss = ((module(torch.tensor(xs))[0] - torch.tensor(targets)) ** 2).mean()
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    first = torch_step()
    for _ in range(4):
        torch_step()
    params = interop.from_torch(module)
    sgd = optax.sgd(0.3)

    @jax.jit
    def step(params, state):
        loss, slopes = jax.value_and_grad(lambda p: jnp.mean((stack.apply(p, xs)[0] - targets) ** 2))(params)
        updates, state = sgd.update(slopes, state)
        return optax.apply_updates(params, updates), state, loss

    state, losses = sgd.init(params), []
    for _ in range(100):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    np.testing.assert_allclose(losses, [torch_step() for _ in range(100)], rtol=1e-4)
    assert losses[-1] < 0.9 * first


# Keras


@pytest.fixture(scope="module")
def keras():
    keras = pytest.importorskip("keras", reason="keras is not installed: python -m pip install -e '.[peers]'")
    with jax.numpy_rank_promotion("allow"):  # Keras adds vectors to matrices
        yield keras


def keras_layer(keras, xs, *, bidirectional=False, **options):
    layer = keras.layers.LSTM(UNITS, return_sequences=True, return_state=True, **options)
    layer = keras.layers.Bidirectional(layer) if bidirectional else layer
    layer(xs)
    layer.set_weights([drawn(*weight.shape, seed=seed) for seed, weight in enumerate(layer.weights)])
    return layer


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
def test_keras(keras, bidirectional, use_bias):
    xs = drawn(BATCH, TIME, INPUTS, seed=9)
    layer = keras_layer(keras, xs, bidirectional=bidirectional, use_bias=use_bias)
    given = [np.asarray(weight.value) for weight in layer.weights]
    params = interop.from_keras(layer)
    assert isinstance(params, BidirectionalParams) == bidirectional
    count = 2 if bidirectional else 1
    h, c = drawn(count, BATCH, UNITS, seed=7), drawn(count, BATCH, UNITS, seed=8)
    initial = [part for pair in zip(h, c, strict=True) for part in pair]
    trainable, fixed = [v.value for v in layer.trainable_variables], [v.value for v in layer.non_trainable_variables]

    def loss(trainable, xs):
        (ys, *states), _ = layer.stateless_call(trainable, fixed, xs, initial_state=[jnp.asarray(a) for a in initial])
        return weighted(ys, states[::2], states[1::2]), (ys, states)

    (slopes, slope), (ys, states) = jax.grad(loss, argnums=(0, 1), has_aux=True)(trainable, jnp.asarray(xs))
    (our_ys, our_h, our_c), (our_slopes, our_slope) = ours(params, xs, h, c)
    np.testing.assert_allclose(our_ys, ys, **close)
    np.testing.assert_allclose(np.stack(our_h), np.stack(states[::2]), **close)
    np.testing.assert_allclose(np.stack(our_c), np.stack(states[1::2]), **close)
    equal(our_slope, slope)
    for one, other in zip(interop.to_keras(our_slopes), slopes, strict=True):
        equal(one, other)
    for source in (layer, given):
        back = interop.to_keras(interop.from_keras(source))
        assert len(back) == len(given)
        for one, other in zip(back, given, strict=True):
            same_bits(one, other)
    keras_layer(keras, xs, bidirectional=bidirectional, use_bias=use_bias).set_weights(back)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_keras_layers_upon_each_other(keras, bidirectional):
    xs, count = drawn(BATCH, TIME, INPUTS, seed=9), 2 if bidirectional else 1
    layers = [keras_layer(keras, xs, bidirectional=bidirectional)]
    layers += [keras_layer(keras, drawn(BATCH, TIME, count * UNITS), bidirectional=bidirectional) for _ in range(2)]
    params = interop.from_keras(layers)
    trainable = [[variable.value for variable in layer.trainable_variables] for layer in layers]
    fixed = [[variable.value for variable in layer.non_trainable_variables] for layer in layers]

    def loss(trainable, ys):
        ends = []
        for layer, learned, other in zip(layers, trainable, fixed, strict=True):
            (ys, *after), _ = layer.stateless_call(learned, other, ys)
            ends += after
        return weighted(ys, ends[::2], ends[1::2]), (ys, ends)

    (slopes, slope), (ys, ends) = jax.grad(loss, argnums=(0, 1), has_aux=True)(trainable, jnp.asarray(xs))
    none = np.zeros((3 * count, BATCH, UNITS), "f")
    (our_ys, our_h, our_c), (our_slopes, our_slope) = ours(params, xs, none, none)
    np.testing.assert_allclose(our_ys, ys, **close)
    np.testing.assert_allclose(np.stack(our_h), np.stack(ends[::2]), **close)
    np.testing.assert_allclose(np.stack(our_c), np.stack(ends[1::2]), **close)
    equal(our_slope, slope)
    jax.tree.map(equal, interop.to_keras(our_slopes), slopes)
    given = [[np.asarray(weight.value) for weight in layer.weights] for layer in layers]
    for source in (layers, given, keras.Sequential(layers)):
        back = interop.to_keras(interop.from_keras(source))
        assert [len(weights) for weights in back] == [3 * count] * 3
        jax.tree.map(same_bits, back, given)


def test_keras_layers_that_no_stack_of_ours_is(keras):
    xs = drawn(BATCH, TIME, INPUTS, seed=9)
    one = keras_layer(keras, xs)
    two = keras_layer(keras, drawn(BATCH, TIME, UNITS), go_backwards=True)
    with pytest.raises(ValueError, match="a layer with go_backwards turns its outputs round"):
        interop.from_keras([one, two])
    merged = [keras.layers.Bidirectional(keras.layers.LSTM(UNITS), merge_mode=mode) for mode in ("sum", "mul")]
    for layer, inputs in zip(merged, (INPUTS, UNITS), strict=True):
        layer.build((None, TIME, inputs))
    with pytest.raises(ValueError, match="the layers of a stack have one merge; source has merge_mode sum, mul"):
        interop.from_keras(merged)
    backwards = keras.layers.LSTM(UNITS, go_backwards=True)
    turned = keras.layers.Bidirectional(backwards, backward_layer=keras.layers.LSTM(UNITS))
    with pytest.raises(ValueError, match="has a forward_layer with go_backwards"):
        interop.from_keras(turned)
    with pytest.raises(ValueError, match="kernels of 4 and 6 inputs, which is no Bidirectional layer"):
        interop.from_keras([drawn(4, 24), drawn(6, 24), drawn(24), drawn(6, 12), drawn(3, 12), drawn(12)])
    with pytest.raises(ValueError, match=r"params\.layers\[1\] must have \d inputs"):
        interop.from_keras([keras_layer(keras, drawn(2, 3, 4)), keras_layer(keras, drawn(2, 3, 3))])
    with pytest.raises(ValueError, match="source must have layers of the same options"):
        interop.from_keras([one, keras_layer(keras, drawn(BATCH, TIME, UNITS), activation="relu")], return_options=True)


def keras_made(keras, make, *shape):
    """The layer with drawn weights."""
    layer = make(keras.layers)
    layer.build((None, *shape[1:]))
    layer.set_weights([drawn(*weight.shape, seed=seed) for seed, weight in enumerate(layer.weights)])
    return layer


SEQUENCES, LAST = {"return_sequences": True}, {"return_sequences": False}
KERAS = {  # with the settings that a layer needs
    "LSTM": (lambda k: k.LSTM(UNITS, **SEQUENCES), {}),
    "last": (lambda k: k.LSTM(UNITS), LAST),
    "last, backwards": (lambda k: k.LSTM(UNITS, go_backwards=True), {"reverse": True} | LAST),
    "last, in two directions": (lambda k: k.Bidirectional(k.LSTM(UNITS)), LAST),
    "last of cells": (lambda k: k.RNN([k.LSTMCell(UNITS), k.LSTMCell(3)]), LAST),
    "backwards": (lambda k: k.LSTM(UNITS, go_backwards=True, **SEQUENCES), {"reverse": True}),
    "dropout": (lambda k: k.LSTM(UNITS, dropout=0.5, recurrent_dropout=0.5, **SEQUENCES), {}),
    "activation": (
        lambda k: k.LSTM(UNITS, activation="relu", **SEQUENCES),
        {"options": LSTMOptions(activation="relu")},
    ),
    "backwards, recurrent activation": (
        lambda k: k.LSTM(UNITS, recurrent_activation="hard_sigmoid", go_backwards=True, **SEQUENCES),
        {"reverse": True, "options": LSTMOptions(recurrent_activation="hard_sigmoid")},
    ),
    "concat": (lambda k: k.Bidirectional(k.LSTM(UNITS, **SEQUENCES)), {}),
    **{
        str(merge): (lambda k, m=merge: k.Bidirectional(k.LSTM(UNITS, **SEQUENCES), merge_mode=m), {"merge": merge})
        for merge in ("sum", "mul", "ave", None)
    },
    "RNN": (lambda k: k.RNN(k.LSTMCell(UNITS), **SEQUENCES), {}),
    "RNN, backwards": (
        lambda k: k.RNN(k.LSTMCell(UNITS, activation="relu"), go_backwards=True, **SEQUENCES),
        {"reverse": True, "options": LSTMOptions(activation="relu")},
    ),
    "cells": (lambda k: k.RNN([k.LSTMCell(UNITS), k.LSTMCell(3)], **SEQUENCES), {}),
    "StackedRNNCells, backwards": (
        lambda k: k.RNN(k.StackedRNNCells([k.LSTMCell(UNITS), k.LSTMCell(3)]), go_backwards=True, **SEQUENCES),
        {"reverse": True},
    ),
    "RNN in two directions": (
        lambda k: k.Bidirectional(k.RNN(k.LSTMCell(UNITS), **SEQUENCES), merge_mode="sum"),
        {"merge": "sum"},
    ),
    "TimeDistributed": (lambda k: k.TimeDistributed(k.LSTM(UNITS)), LAST),
    "TimeDistributed, in two directions": (
        lambda k: k.TimeDistributed(k.Bidirectional(k.LSTM(UNITS), merge_mode="ave")),
        {"merge": "ave"} | LAST,
    ),
}


@pytest.mark.parametrize("name", KERAS)
def test_keras_layers_come_with_their_settings_or_are_refused(keras, name):
    make, expected = KERAS[name]
    shape = (BATCH, 2, TIME, INPUTS) if name.startswith("TimeDistributed") else (BATCH, TIME, INPUTS)
    layer = keras_made(keras, make, *shape)
    xs = drawn(*shape, seed=9)
    params, settings = interop.from_keras(layer, settings=True)
    assert settings == expected
    apply = bidirectional.apply if isinstance(params, BidirectionalParams) else stack.apply
    ys, _ = apply(params, xs, **settings)
    turned = "reverse" in settings and "return_sequences" not in settings
    ys = jax.tree.map(lambda y: y[:, ::-1], ys) if turned else ys
    jax.tree.map(equal, tuple(jax.tree.leaves(ys)), tuple(jax.tree.leaves(layer(xs))))
    refused = {key: value for key, value in expected.items() if key != "return_sequences"}
    if not refused:
        jax.tree.map(same_bits, interop.from_keras(layer), params)
        return
    with pytest.raises(ValueError, match=f"source is to run with .*{next(iter(refused))}=.*take them with .*settings"):
        interop.from_keras(layer)
    if refused.keys() - {"options"}:
        with pytest.raises(ValueError, match="take them with settings=True"):
            interop.from_keras(layer, return_options=True)


def test_keras_settings_of_several_are_those_of_the_last(keras):
    below = keras_made(keras, lambda k: k.LSTM(UNITS, **SEQUENCES), BATCH, TIME, INPUTS)
    above = keras_made(keras, lambda k: k.LSTM(3), BATCH, TIME, UNITS)
    for source in ([below, above], keras.Sequential([below, above])):
        params, settings = interop.from_keras(source, settings=True)
        assert settings == LAST
    xs = drawn(BATCH, TIME, INPUTS)
    equal(stack.apply(params, xs, **settings)[0], above(below(xs)))


def test_keras_layers_that_no_settings_make_ours(keras):
    stateful = keras.layers.LSTM(UNITS, stateful=True)
    stateful.build((BATCH, TIME, INPUTS))
    cells = keras.layers.Bidirectional(keras.layers.RNN([keras.layers.LSTMCell(3), keras.layers.LSTMCell(3)]))
    mixed = keras.layers.RNN([keras.layers.LSTMCell(3), keras.layers.GRUCell(3)])
    for layer in (cells, mixed):
        layer.build((None, TIME, INPUTS))
    for layer, error, words in (
        (stateful, ValueError, "source is stateful, which apply is not"),
        (cells, ValueError, "whose directions meet above the last of them alone"),
        (mixed, TypeError, "got RNN of GRUCell, LSTMCell"),
    ):
        with pytest.raises(error, match=words):
            interop.from_keras(layer, settings=True)


@pytest.mark.parametrize("make", [lambda k: k.LSTMCell(UNITS), lambda k: k.StackedRNNCells([k.LSTMCell(UNITS)] * 1)])
def test_keras_cells_by_themselves(keras, make):
    cell = keras_made(keras, make, BATCH, INPUTS)
    params = interop.from_keras(cell)
    x, h, c = drawn(BATCH, INPUTS), drawn(BATCH, UNITS, seed=1), drawn(BATCH, UNITS, seed=2)
    states = [h, c] if type(cell).__name__ == "LSTMCell" else [[h, c]]
    y, state = lstm.step(params, x, LSTMState(h, c))
    expected, after = cell(x, states)
    equal(y, expected)
    equal(state.c, jax.tree.leaves(after)[1])


def test_keras_2_weights_of_cudnn():
    """Against the layout of cuDNN's parameters: each gate's matrix [units, inputs], row by row, in Keras's shape."""
    matrices, recurrent = drawn(4, UNITS, INPUTS), drawn(4, UNITS, UNITS, seed=1)
    bias, xs = drawn(2, 4, UNITS, seed=2), drawn(BATCH, TIME, INPUTS, seed=3)
    kernel = np.concatenate([matrix.ravel().reshape(INPUTS, UNITS) for matrix in matrices], axis=1)
    given = [kernel, np.concatenate([*recurrent], axis=1), bias.ravel()]
    params = interop.from_keras(given)
    plain = [
        np.concatenate([m.T for m in matrices], 1),
        np.concatenate([m.T for m in recurrent], 1),
        bias.sum(0).ravel(),
    ]
    expected, _ = lstm.apply(interop.from_keras(plain), xs)
    np.testing.assert_allclose(lstm.apply(params, xs)[0], expected, **close)
    same_bits(params.bias_h, bias[1].ravel())
    assert isinstance(interop.from_keras([*given, *given]), BidirectionalParams)
    with pytest.raises(ValueError, match=r"bias, must have shape \(16\), got \(24,\)"):
        interop.from_keras([*given[:2], drawn(24)])


def test_a_function_that_is_only_called_as_one_of_keras_is_refused(keras):
    def tanh(x):
        return keras.ops.tanh(0.5 * x)

    layer = keras_layer(keras, drawn(BATCH, TIME, INPUTS), activation=tanh)
    with pytest.raises(ValueError, match=r"source\.activation is <function .*tanh"):
        interop.from_keras(layer)


def test_keras_dtype_policy_is_the_precision(keras):
    layer = keras.layers.LSTM(UNITS, dtype="mixed_bfloat16")
    layer.build((None, TIME, INPUTS))
    assert interop.from_keras(layer, return_options=True)[1] == LSTMOptions(precision="bfloat16")


def test_keras_activations_are_options(keras):
    xs = drawn(BATCH, TIME, INPUTS, seed=9)
    layer = keras_layer(keras, xs, activation="relu", recurrent_activation="hard_sigmoid")
    params, options = interop.from_keras(layer, return_options=True)
    assert options == LSTMOptions(activation="relu", recurrent_activation="hard_sigmoid")
    np.testing.assert_allclose(lstm.apply(params, xs, options=options)[0], layer(xs)[0], **close)
    with pytest.raises(ValueError, match="take them with return_options=True"):
        interop.from_keras(layer)
    with pytest.raises(ValueError, match=r"source\.activation is .*; LSTMOptions has"):
        interop.from_keras(keras_layer(keras, xs, activation="mish"), return_options=True)


def test_keras_sources_that_are_refused(keras):
    with pytest.raises(ValueError, match="source has no weights yet"):
        interop.from_keras(keras.layers.LSTM(3))
    gru = keras.layers.GRU(3)
    gru(drawn(1, 2, 3))
    with pytest.raises(TypeError, match="must be an LSTM or a Bidirectional LSTM, got GRU"):
        interop.from_keras(gru)
    with pytest.raises(TypeError, match=r"got GRU of GRUCell; .*; GRUCell has 3 gates, an LSTM has 4\."):
        interop.from_keras(gru)
    with pytest.raises(TypeError, match=r"got SimpleRNNCell; .*; SimpleRNNCell has 1 gate, an LSTM has 4\."):
        interop.from_keras(keras.layers.SimpleRNNCell(3))
    mine = type("Mine", (keras.layers.LSTM,), {})(3)
    with pytest.raises(TypeError, match=r"got Mine of LSTMCell; .* A subclass may .* give its get_weights\(\)"):
        interop.from_keras(mine)
    inputs = keras.Input((TIME, INPUTS))
    with pytest.raises(TypeError, match=r"got Functional; .* of a model give one of its layers"):
        interop.from_keras(keras.Model(inputs, keras.layers.LSTM(3)(inputs)))
    with pytest.raises(ValueError, match=r"3 of an LSTM, .* Got 5 of them"):
        interop.from_keras([drawn(2, 12)] * 5)
    with pytest.raises(ValueError, match=r"source\[1\], recurrent_kernel, must have shape \(3, 12\), got \(5, 12\)"):
        interop.from_keras([drawn(2, 12), drawn(5, 12), drawn(12)])
    with pytest.raises(ValueError, match=r"source\[1\], recurrent_kernel, has 3 gates, as a GRU, of 3 units each"):
        interop.from_keras([np.asarray(weight.value) for weight in gru.weights])


# Haiku, Equinox


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_haiku(layers):
    hk = pytest.importorskip("haiku", reason="dm-haiku is not installed: python -m pip install -e '.[peers]'")

    def run(xs, state):
        core = hk.DeepRNN([hk.LSTM(UNITS) for _ in range(layers)]) if layers > 1 else hk.LSTM(UNITS)
        return hk.dynamic_unroll(core, xs, state, time_major=False)

    h, c = drawn(layers, BATCH, UNITS, seed=1), drawn(layers, BATCH, UNITS, seed=2)
    state = tuple(hk.LSTMState(jnp.asarray(a), jnp.asarray(b)) for a, b in zip(h, c, strict=True))
    state = state if layers > 1 else state[0]
    xs = drawn(BATCH, TIME, INPUTS, seed=3)
    module = hk.without_apply_rng(hk.transform(run))
    given = module.init(jax.random.key(0), xs, state)
    given = jax.tree.map(lambda leaf: jnp.asarray(drawn(*leaf.shape, seed=leaf.size)), given)
    params = interop.from_haiku(given)

    def loss(given, xs):
        ys, end = module.apply(given, xs, state)
        end = end if layers > 1 else (end,)
        found = ys, [one.hidden for one in end], [one.cell for one in end]
        return weighted(*found), found

    (slopes, slope), (ys, h_n, c_n) = jax.grad(loss, argnums=(0, 1), has_aux=True)(given, jnp.asarray(xs))
    (our_ys, our_h, our_c), (our_slopes, our_slope) = ours(params, xs, h, c)
    for one, other in zip((our_ys, *our_h, *our_c), (ys, *h_n, *c_n), strict=True):
        np.testing.assert_allclose(one, other, **close)
    equal(our_slope, slope)
    for mine, theirs in zip(halves(our_slopes), (slopes[name] for name in sorted(slopes)), strict=True):
        w = interop.gates.to_ours(np.asarray(theirs["w"]), "haiku")
        equal(np.concatenate([mine.w_x, mine.w_h]), w)
        bias = interop.gates.to_ours(np.asarray(theirs["b"]), "haiku")
        equal(mine.bias, bias)
    back = interop.to_haiku(params)
    assert {name: set(part) for name, part in back.items()} == {name: set(part) for name, part in given.items()}
    jax.tree.map(same_bits, back, dict(given))


def test_haiku_modules_of_two_stacks_are_refused():
    cell = {"w": drawn(7, 16), "b": drawn(16)}
    with pytest.raises(ValueError, match="convert each of encoder/lstm/linear, decoder/lstm/linear by itself"):
        interop.from_haiku({"encoder/lstm/linear": cell, "decoder/lstm/linear": cell})
    square = {"w": drawn(8, 16), "b": drawn(16)}
    eleven = {f"lstm_{n}/linear" if n else "lstm/linear": square for n in range(11)}
    assert len(interop.from_haiku(eleven).layers) == 11
    assert len(interop.from_haiku({"lstm_0/linear": square, "lstm_1/linear": square}).layers) == 2
    with pytest.raises(ValueError, match="convert each of lstm/linear, lstm_2/linear by itself"):
        interop.from_haiku({"lstm/linear": square, "lstm_2/linear": square})
    with pytest.raises(ValueError, match=r"params\.layers\[1\] must have 4 inputs"):
        interop.from_haiku({"lstm/linear": cell, "lstm_1/linear": cell})
    with pytest.raises(ValueError, match=r"source\['mlp/linear'\] must have w and b"):
        interop.from_haiku({"mlp/linear": {"w": drawn(7, 16)}})
    with pytest.raises(ValueError, match="must have rows for x and 4 for h"):
        interop.from_haiku({"w": drawn(4, 16), "b": drawn(16)})


def test_our_bias_goes_to_haiku_less_by_one():
    params = lstm.init(jax.random.key(0), INPUTS, UNITS)
    back = interop.to_haiku(params)["lstm/linear"]["b"]
    np.testing.assert_array_equal(back, np.zeros(4 * UNITS))


@pytest.mark.parametrize("bias", [True, False])
def test_equinox(bias):
    eqx = pytest.importorskip("equinox", reason="equinox is not installed: python -m pip install -e '.[peers]'")
    cell = eqx.nn.LSTMCell(INPUTS, UNITS, use_bias=bias, key=jax.random.key(0))
    params = interop.from_equinox(cell)
    h, c = drawn(1, BATCH, UNITS, seed=1), drawn(1, BATCH, UNITS, seed=2)
    xs = jnp.asarray(drawn(BATCH, TIME, INPUTS, seed=3))

    def loss(cell, xs):
        def one(xs, h, c):
            def step(state, x):
                state = cell(x, state)
                return state, state[0]

            (h, c), ys = jax.lax.scan(step, (h, c), xs)
            return ys, h, c

        ys, h_n, c_n = jax.vmap(one)(xs, jnp.asarray(h[0]), jnp.asarray(c[0]))
        return weighted(ys, [h_n], [c_n]), (ys, h_n, c_n)

    (slopes, slope), expected = jax.grad(lambda pair: loss(*pair), has_aux=True)((cell, xs))[0], loss(cell, xs)[1]
    (our_ys, (our_h,), (our_c,)), (our_slopes, our_slope) = ours(params, xs, h, c)
    for one, other in zip((our_ys, our_h, our_c), expected, strict=True):
        np.testing.assert_allclose(one, other, **close)
    equal(our_slope, slope)
    mine = interop.from_equinox(slopes)
    jax.tree.map(lambda a, b: equal(a, b), our_slopes, mine)
    back = interop.to_equinox(params)
    assert jax.tree.structure(back) == jax.tree.structure(cell)
    jax.tree.map(same_bits, back, cell)
    stacked = interop.from_equinox([cell, eqx.nn.LSTMCell(UNITS, UNITS, use_bias=bias, key=jax.random.key(1))])
    assert len(stacked.layers) == 2
    jax.tree.map(same_bits, interop.from_equinox(interop.to_equinox(stacked)), stacked)
    with pytest.raises(ValueError, match="Equinox has cells alone"):
        interop.to_equinox(bidirectional.init(jax.random.key(0), INPUTS, UNITS))


# TensorFlow 1, Sonnet, Haste, cuDNN: from their published equations, in float64, a step at a time.


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def tensorflow_lstm(xs, h, c, v, forget_bias=1.0):
    """rnn_cell_impl.LSTMCell: i, j, f, o of [x, h] kernel + bias; the output gate sees the new c."""
    diagonal = {gate: v.get(f"w_{gate}_diag", 0.0) for gate in "ifo"}
    ys = []
    for t in range(xs.shape[1]):
        i, j, f, o = np.split(np.concatenate([xs[:, t], h], 1) @ v["kernel"] + v["bias"], 4, axis=1)
        c = sigmoid(f + forget_bias + diagonal["f"] * c) * c + sigmoid(i + diagonal["i"] * c) * np.tanh(j)
        h = sigmoid(o + diagonal["o"] * c) * np.tanh(c)
        h = h @ v["projection/kernel"] if "projection/kernel" in v else h
        ys.append(h)
    return np.stack(ys, 1), h, c


def tensorflow_cell(inputs, *, peepholes=False, projection=None, seed=0):
    outputs = projection or UNITS
    v = {"kernel": drawn(inputs + outputs, 4 * UNITS, seed=seed), "bias": drawn(4 * UNITS, seed=seed + 1)}
    v |= {f"w_{gate}_diag": drawn(UNITS, seed=seed + n) for n, gate in enumerate("fio")} if peepholes else {}
    return v | ({"projection/kernel": drawn(UNITS, projection, seed=seed + 5)} if projection else {})


@pytest.mark.parametrize("peepholes", [False, True])
@pytest.mark.parametrize("projection", [None, 2])
@pytest.mark.parametrize("forget_bias", [1.0, 0.0, 0.3])
def test_tensorflow(peepholes, projection, forget_bias):
    v = tensorflow_cell(INPUTS, peepholes=peepholes, projection=projection)
    params = interop.from_tensorflow({f"rnn/lstm_cell/{name}:0": value for name, value in v.items()}, forget_bias)
    xs, h, c = (
        drawn(BATCH, TIME, INPUTS, seed=7),
        drawn(BATCH, projection or UNITS, seed=8),
        drawn(BATCH, UNITS, seed=9),
    )
    wide = {name: value.astype(np.float64) for name, value in v.items()}
    ys, h_n, c_n = tensorflow_lstm(xs.astype(np.float64), h, c, wide, forget_bias)
    our_ys, end = lstm.apply(params, xs, LSTMState(h, c))
    for one, other in zip((our_ys, end.h, end.c), (ys, h_n, c_n), strict=True):
        np.testing.assert_allclose(one, other, **close)
    back = interop.to_tensorflow(params, forget_bias)
    assert set(back) == set(v)
    for name, value in v.items():
        same_bits(back[name], value)


def test_tensorflow_stacks_and_directions():
    cells = {
        "stack_bidirectional_rnn/cell_0/bidirectional_rnn/fw/lstm_cell/": tensorflow_cell(INPUTS, seed=1),
        "stack_bidirectional_rnn/cell_0/bidirectional_rnn/bw/lstm_cell/": tensorflow_cell(INPUTS, seed=2),
        "stack_bidirectional_rnn/cell_1/bidirectional_rnn/fw/lstm_cell/": tensorflow_cell(2 * UNITS, seed=3),
        "stack_bidirectional_rnn/cell_1/bidirectional_rnn/bw/lstm_cell/": tensorflow_cell(2 * UNITS, seed=4),
    }
    params = interop.from_tensorflow({cell + name: value for cell in cells for name, value in cells[cell].items()})
    xs = drawn(BATCH, TIME, INPUTS, seed=7).astype(np.float64)
    zeros = np.zeros((BATCH, UNITS))
    ys = xs
    parts = list(cells.values())
    for fw, bw in (parts[:2], parts[2:]):
        forward = tensorflow_lstm(ys, zeros, zeros, fw)[0]
        backward = tensorflow_lstm(ys[:, ::-1], zeros, zeros, bw)[0][:, ::-1]
        ys = np.concatenate([forward, backward], -1)
    np.testing.assert_allclose(stack.apply(params, xs.astype("f"))[0], ys, **close)
    back = interop.to_tensorflow(params)
    assert set(back) == {f"cell_{n}/{d}/{name}" for n in (0, 1) for d in ("fw", "bw") for name in ("kernel", "bias")}
    again = interop.from_tensorflow(back)
    jax.tree.map(same_bits, again, params)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"kernel": drawn(7, 16)}, "variables must have bias beside kernel"),
        (
            {"a/kernel": drawn(7, 16), "a/bias": drawn(16), "a/kernel/Adam": drawn(7, 16)},
            "'a/kernel/Adam', which is no",
        ),
        ({"kernel": drawn(7, 16), "input/gamma": drawn(4)}, "must have forget/beta, forget/gamma, input/beta, "),
        ({"recurrent_kernel": drawn(4, 16)}, "must have kernel, kernel_norm/beta, kernel_norm/gamma, recurrent_norm/b"),
        ({"forget_gate_bias": drawn(4)}, "must have cell_gate_bias, input_to_cell_weights, input_to_forget_weights, "),
        (
            {"kernel": drawn(7, 16), "bias": drawn(16), "projection_weights": drawn(4, 4)},
            "variables has projection_weights of '', which no cell has",
        ),
        ({"kernel": drawn(4, 16), "bias": drawn(16)}, "must have rows for x and 4 for h"),
        ({"kernel": drawn(7, 16), "bias": drawn(16), "w_f_diag": drawn(4)}, "must have w_i_diag, w_o_diag beside"),
        (
            {f"{d}/cell_{n}/{name}": drawn(7, 16) for d in ("fw", "bw") for n in (0, 1) for name in ("kernel", "bias")},
            "convert each direction by itself",
        ),
        (
            {f"{n}/{name}": drawn(*shape) for n in "ab" for name, shape in (("kernel", (7, 16)), ("bias", (16,)))},
            "must be of one cell, or of cells",
        ),
        (
            {
                f"{n}/{name}": drawn(*shape)
                for n in ("a/cell_0", "b/cell_1")
                for name, shape in (("kernel", (8, 16)), ("bias", (16,)))
            },
            "must be of one cell, or of cells",
        ),
    ],
)
def test_tensorflow_variables_that_are_refused(variables, words):
    with pytest.raises(ValueError, match=words):
        interop.from_tensorflow(variables)


def test_a_forget_bias_that_is_in_the_bias_already():
    with pytest.raises(ValueError, match=r"forget_bias=1\.0 is in the bias of 'cell' already: leave it out"):
        interop.from_tensorflow({"cell/forget_gate_bias": drawn(4)}, forget_bias=1)


def test_sonnet():
    """recurrent._lstm_fn: i, f, g, o of x w_i + h w_h + b, the forget bias within b."""
    w_i, w_h, b, projection = drawn(INPUTS, 16), drawn(2, 16, seed=1), drawn(16, seed=2), drawn(4, 2, seed=3)
    params = interop.from_sonnet({"lstm/w_i:0": w_i, "lstm/w_h:0": w_h, "lstm/b:0": b, "lstm/projection:0": projection})
    xs, h, c = drawn(BATCH, TIME, INPUTS, seed=4), drawn(BATCH, 2, seed=5), drawn(BATCH, UNITS, seed=6)
    ys, hidden, cell = [], h.astype(np.float64), c.astype(np.float64)
    for t in range(TIME):
        i, f, g, o = np.split(xs[:, t] @ w_i.astype(np.float64) + hidden @ w_h + b, 4, axis=1)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = (sigmoid(o) * np.tanh(cell)) @ projection
        ys.append(hidden)
    our_ys, end = lstm.apply(params, xs, LSTMState(h, c))
    np.testing.assert_allclose(our_ys, np.stack(ys, 1), **close)
    np.testing.assert_allclose(end.c, cell, **close)
    with pytest.raises(ValueError, match="source must have w_i, w_h, b"):
        interop.from_sonnet({"w_i": w_i, "b": b})


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("package", ["torch", "tensorflow"])
def test_haste(norm, package):
    """layer_norm_lstm.LayerNormLSTM: i, g, f, o; x W and h R normalised over all gates, c on its way out."""
    kernel, recurrent, bias = drawn(INPUTS, 16), drawn(UNITS, 16, seed=1), drawn(16, seed=2)
    gamma, gamma_h, beta_h = 1 + drawn(2, 16, seed=3), 1 + drawn(UNITS, seed=4), drawn(UNITS, seed=5)
    source = {"kernel": kernel, "recurrent_kernel": recurrent, "bias": bias}
    if package == "tensorflow":
        source = {"kernel": np.concatenate([kernel, recurrent]), "bias": bias}
    params = interop.from_haste(source | ({"gamma": gamma, "gamma_h": gamma_h, "beta_h": beta_h} if norm else {}))

    def normalised(z, scale, shift=0.0):
        centred = z - z.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + shift

    xs = drawn(BATCH, TIME, INPUTS, seed=6).astype(np.float64)
    h, c = np.zeros((BATCH, UNITS)), np.zeros((BATCH, UNITS))
    ys = []
    for t in range(TIME):
        x_part, h_part = xs[:, t] @ kernel, h @ recurrent
        if norm:
            x_part, h_part = normalised(x_part, gamma[0]), normalised(h_part, gamma[1])
        i, g, f, o = np.split(x_part + h_part + bias, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(normalised(c, gamma_h, beta_h) if norm else c)
        ys.append(h)
    np.testing.assert_allclose(lstm.apply(params, xs.astype("f"))[0], np.stack(ys, 1), **close)


def test_arrays_of_two_lstms_are_not_one():
    weights = {"kernel": drawn(7, 16), "bias": drawn(16)}
    with pytest.raises(ValueError, match=r"of one LSTM, and each name once; got a/kernel, a/bias, b\.kernel"):
        interop.from_haste({f"a/{name}": value for name, value in weights.items()} | {"b.kernel": drawn(7, 16)})
    with pytest.raises(ValueError, match="of one LSTM, and each name once"):
        interop.from_sonnet({"a/w_i": drawn(3, 16), "b/w_i": drawn(3, 16), "w_h": drawn(4, 16), "b": drawn(16)})


def test_haste_names_that_are_refused():
    with pytest.raises(ValueError, match=r"source must have beta_h, bias, gamma, gamma_h, kernel; got"):
        interop.from_haste({"kernel": drawn(7, 16), "bias": drawn(16), "gamma": drawn(2, 16)})
    with pytest.raises(ValueError, match="must have rows for x and 4 for h"):
        interop.from_haste({"kernel": drawn(4, 16), "bias": drawn(16)})


@pytest.mark.parametrize(
    ("layers", "directions"),
    [(1, 1), (3, 2), *(pytest.param(*row, marks=pytest.mark.slow) for row in ((1, 2), (3, 1)))],
)
def test_cudnn(layers, directions):
    """The vector by its description, and what JAX's own reference of it computes."""
    from jax.experimental import rnn

    both = directions == 2
    flat = rnn.init_lstm_weight(jax.random.key(0), INPUTS, UNITS, layers, both)
    params = interop.from_cudnn(flat, INPUTS, UNITS, layers=layers, bidirectional=both)
    rest = list(np.asarray(flat))

    def take(*shape):
        taken = rest[: int(np.prod(shape))]
        del rest[: len(taken)]
        return np.array(taken).reshape(shape)

    every = halves(params)
    for half in every:
        same_bits(half.w_x.T, take(16, half.inputs))
        same_bits(half.w_h.T, take(16, UNITS))
    for half in every:
        same_bits(half.bias, take(16))
        same_bits(half.bias_h, take(16))
    assert not rest
    same_bits(interop.to_cudnn(params), flat)
    xs = drawn(BATCH, TIME, INPUTS, seed=3)
    h, c = drawn(len(every), BATCH, UNITS, seed=1), drawn(len(every), BATCH, UNITS, seed=2)
    weights = rnn.unpack_lstm_weights(flat, INPUTS, UNITS, layers, both)
    ys, h_n, c_n = rnn.lstm_ref(
        xs, h, c, *weights, jnp.full(BATCH, TIME), INPUTS, UNITS, layers, dropout=0.0, bidirectional=both
    )
    (our_ys, our_h, our_c), _ = ours(params, xs, h, c)
    np.testing.assert_allclose(our_ys, ys, **close)
    np.testing.assert_allclose(np.stack(our_h), h_n, **close)
    np.testing.assert_allclose(np.stack(our_c), c_n, **close)


def test_cudnn_vectors_that_are_refused():
    with pytest.raises(ValueError, match=r"source must have 144 numbers.*got 143"):
        interop.from_cudnn(drawn(143), 3, 4)
    with pytest.raises(ValueError, match="takes float32; params has bfloat16"):
        interop.to_cudnn(lstm.init(jax.random.key(0), 3, 4, dtype=jnp.bfloat16))


# All of them


EVERY = {"torch": interop.to_torch, "keras": interop.to_keras, "haiku": interop.to_haiku, "cudnn": interop.to_cudnn}


@pytest.mark.parametrize("name", [*EVERY, "equinox", "tensorflow"])
@pytest.mark.parametrize("part", ["w_peephole", "w_projection", "norm", "initial", "coupled"])
def test_parts_without_a_place_are_refused(name, part, request):
    if name in ("torch", "equinox"):
        pytest.importorskip(name)
    if (name, part) in (("torch", "w_projection"), ("tensorflow", "w_projection"), ("tensorflow", "w_peephole")):
        pytest.skip(f"{name} has {part}")
    options = {"w_peephole": "peepholes", "norm": "layer_norm", "initial": "learned_state", "coupled": "coupled"}
    options = {"projection": 2} if part == "w_projection" else {options[part]: True}
    params = lstm.init(jax.random.key(0), INPUTS, UNITS, **options)
    words = "has no coupled gates" if part == "coupled" else rf"has no place for params\.{part}"
    with pytest.raises(ValueError, match=words):
        getattr(interop, f"to_{name}")(params)


def test_weights_of_a_dtype_that_jax_has_not_enabled_are_refused():
    with pytest.raises(ValueError, match=r"the dtype of w_x float64 needs 64-bit JAX"):
        interop.from_keras([drawn(2, 12, dtype=np.float64), drawn(3, 12), drawn(12)])
    weights = [drawn(2, 12, dtype=ml_dtypes.bfloat16), drawn(3, 12, dtype=ml_dtypes.bfloat16)]
    assert interop.from_keras(weights).w_h.dtype == jnp.bfloat16


def test_weights_that_fit_nothing_are_refused():
    with pytest.raises(ValueError, match=r"params\.bias must have shape \(16,\)"):
        interop.to_keras(lstm.LSTMParams(jnp.ones((3, 16)), jnp.ones((4, 16)), jnp.ones(7)))
    ensemble = jax.vmap(lambda key: lstm.init(key, INPUTS, UNITS))(jax.random.split(jax.random.key(0), 2))
    for convert in (interop.to_keras, interop.to_haiku, interop.to_cudnn, interop.to_tensorflow):
        with pytest.raises(ValueError, match=r"Map over stacked parameters with jax\.vmap"):
            convert(ensemble)


def test_decay_reaches_an_offset_unless_it_is_masked():
    """The offset has no gradient, but weight decay knows nothing of gradients."""
    optax = pytest.importorskip("optax")
    params = interop.from_haiku({"w": drawn(7, 16), "b": drawn(16)})
    learned = lambda params: dataclasses.replace(jax.tree.map(lambda _: True, params), offset=False)  # noqa: E731
    for mask, moved in ((None, True), (learned, False)):
        adamw = optax.adamw(0.01, weight_decay=0.1, mask=mask)
        updates, _ = adamw.update(jax.tree.map(jnp.zeros_like, params), adamw.init(params), params)
        after = optax.apply_updates(params, updates)
        assert bool((after.offset != params.offset).any()) == moved
        assert (after.w_x != params.w_x).any()


def test_all_biases_are_summed_where_there_is_one_place():
    params = dataclasses.replace(
        lstm.init(jax.random.key(0), INPUTS, UNITS),
        bias_h=jnp.asarray(drawn(16)),
        offset=jnp.asarray(drawn(16, seed=1)),
    )
    total = params.bias + params.bias_h + params.offset
    np.testing.assert_allclose(interop.to_keras(params)[2], total, **close)
    np.testing.assert_allclose(interop.from_haiku(interop.to_haiku(params)).bias[4:8], total[4:8] - 1, **close)
    flat = interop.from_cudnn(interop.to_cudnn(params), INPUTS, UNITS)
    np.testing.assert_allclose(flat.bias, total, **close)
    assert not flat.bias_h.any()


def nnx_of(make):
    nnx = pytest.importorskip("flax.nnx", reason="flax is not installed: python -m pip install -e '.[peers]'")

    def rnn(**options):
        return nnx.RNN(nnx.LSTMCell(INPUTS, UNITS, rngs=nnx.Rngs(0)), **options)

    return interop.from_flax(make(nnx, rnn))


def torch_of(**options):
    torch = pytest.importorskip("torch")
    return interop.from_torch(torch.nn.LSTM(INPUTS, UNITS, num_layers=2, **options))


def onnx_of(**attributes):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: python -m pip install -e '.[peers]'")
    node = onnx.helper.make_node("LSTM", ["X", "W", "R"], ["Y"], hidden_size=UNITS, **attributes)
    weights = {"W": drawn(1, 4 * UNITS, INPUTS), "R": drawn(1, 4 * UNITS, UNITS)}
    return interop.from_onnx(node, initializers=weights)


SAID = {  # what a source says beside its weights, which params do not carry
    "PyTorch, dropout": (lambda: torch_of(dropout=0.5), r"source has dropout=0\.5 and is in training.*source\.eval"),
    "Flax, reverse": (
        lambda: nnx_of(lambda nnx, rnn: rnn(reverse=True)),
        "source has reverse=True: give apply reverse",
    ),
    "Flax, time_major": (lambda: nnx_of(lambda nnx, rnn: rnn(time_major=True)), "source has time_major=True"),
    "Flax, forward half in reverse": (
        lambda: nnx_of(lambda nnx, rnn: nnx.Bidirectional(rnn(reverse=True), rnn())),
        "source/forward_rnn has reverse=True",
    ),
    "Flax, merge_fn": (
        lambda: nnx_of(lambda nnx, rnn: nnx.Bidirectional(rnn(), rnn(), merge_fn=lambda a, b: a + b)),
        "source has a merge_fn other than its default",
    ),
    "Flax, time_major within": (
        lambda: nnx_of(lambda nnx, rnn: nnx.Bidirectional(rnn(), rnn(time_major=True))),
        "source/backward_rnn has time_major=True",
    ),
    "ONNX, direction": (lambda: onnx_of(direction="reverse"), "has direction 'reverse', and reverse is False"),
    "ONNX, activations": (
        lambda: onnx_of(activations=["Sigmoid", "ThresholdedRelu", "Tanh"]),
        "has activation ThresholdedRelu",
    ),
    "ONNX, unknown": (lambda: onnx_of(residual=1), "has residual, which is no attribute of LSTM"),
}


@pytest.mark.parametrize(("convert", "words"), SAID.values(), ids=SAID)
def test_what_params_do_not_carry_is_refused_by_name(convert, words):
    with pytest.raises(ValueError, match=words):
        convert()


def test_what_changes_no_output_is_taken(torch):
    module = torch.nn.LSTM(INPUTS, UNITS, num_layers=2, dropout=0.5).eval()
    same_bits(interop.from_torch(module).layers[0].w_x, module.weight_ih_l0.detach().numpy().T)
    assert nnx_of(lambda nnx, rnn: rnn(return_carry=True, unroll=2)).units == UNITS
    assert isinstance(nnx_of(lambda nnx, rnn: nnx.Bidirectional(rnn(), rnn(reverse=True))), BidirectionalParams)
    assert onnx_of(layout=1, clip=2.0)[1] == LSTMOptions(preactivation_clip=2.0)


@pytest.mark.parametrize("kind", ["LSTMCell", "OptimizedLSTMCell"])
def test_cells_of_nnx_by_themselves(kind):
    nnx = pytest.importorskip("flax.nnx")
    cell = getattr(nnx, kind)(INPUTS, UNITS, rngs=nnx.Rngs(0))
    x, h, c = drawn(BATCH, INPUTS), drawn(BATCH, UNITS, seed=1), drawn(BATCH, UNITS, seed=2)
    _, state = lstm.step(interop.from_flax(cell), x, LSTMState(h, c))
    with jax.numpy_rank_promotion("allow"):
        (after, _), _ = cell((c, h), x)
    equal(state.c, after)
