"""Our LSTMs against Keras 3 on JAX with the same weights, and where Keras means something else by the same word."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstmjax import BidirectionalParams, LSTMOptions, LSTMParams, LSTMState, StackParams, bidirectional, lstm, stack
from lstmjax.bidirectional import BidirectionalState

os.environ["KERAS_BACKEND"] = "jax"  # read at the import
keras = pytest.importorskip("keras", reason="keras is not installed: python -m pip install -e '.[peers]'")

BATCH, TIME, INPUTS, UNITS = 4, 6, 2, 3
LENGTHS = np.array([4, 6, 0, 1])
MASK = np.arange(TIME) < LENGTHS[:, None]


@pytest.fixture(autouse=True)
def rank_promotion():
    """Keras adds vectors to matrices; that ours does not is tested everywhere else."""
    with jax.numpy_rank_promotion("allow"):
        yield


def built(layer, seed=0, inputs=INPUTS):
    """The layer with weights, biases among them, that are all drawn; it is float32."""
    layer.build((None, TIME, inputs))
    rng = np.random.default_rng(seed)
    layer.set_weights([rng.normal(scale=0.5, size=w.shape).astype(np.float32) for w in layer.weights])
    return layer


def keras_lstm(**options):
    return built(keras.layers.LSTM(UNITS, **{"return_sequences": True, "return_state": True, **options}))


def params_of(layer):
    """The whole conversion: kernel, recurrent_kernel and bias unchanged; i, f, c, o is our i, f, g, o."""
    if isinstance(layer, keras.layers.Bidirectional):
        return BidirectionalParams(forward=params_of(layer.forward_layer), backward=params_of(layer.backward_layer))
    cell = layer.cell
    bias = cell.bias.value if cell.use_bias else None
    return LSTMParams(w_x=cell.kernel.value, w_h=cell.recurrent_kernel.value, bias=bias)


def example(seed=1):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in [(BATCH, TIME, INPUTS), *[(BATCH, UNITS)] * 4]]


def assert_close(actual, expected):
    """To 1e-6, of the largest number where that is above 1."""
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    for a, e in zip(actual, expected, strict=True):
        a, e = np.asarray(a), np.asarray(e)
        assert (a.dtype, a.shape) == (e.dtype, e.shape)
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-6 * max(1, np.abs(e).max()))


@pytest.mark.parametrize("bias", [True, False])
def test_number_of_parameters_and_initial_bias(bias):
    layer = keras.layers.LSTM(UNITS, use_bias=bias)
    layer.build((None, TIME, INPUTS))
    ours = lstm.init(jax.random.key(0), INPUTS, UNITS, bias=bias)
    assert layer.count_params() == sum(leaf.size for leaf in jax.tree.leaves(ours))
    if bias:
        np.testing.assert_array_equal(layer.cell.bias, ours.bias)
        plain = keras.layers.LSTM(UNITS, unit_forget_bias=False)
        plain.build((None, TIME, INPUTS))
        np.testing.assert_array_equal(
            plain.cell.bias, lstm.init(jax.random.key(0), INPUTS, UNITS, forget_bias=0.0).bias
        )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "relu"},
        {"recurrent_activation": "hard_sigmoid"},
        {"activation": "sigmoid", "recurrent_activation": "hard_sigmoid"},
        {"activation": "relu", "recurrent_activation": "relu"},
    ],
    ids=str,
)
def test_activations(options):
    layer = keras_lstm(**options)
    xs, h, c, *_ = example()
    ys, *expected = layer(xs, initial_state=[h, c])
    actual = lstm.apply(params_of(layer), xs, LSTMState(h, c), options=LSTMOptions(**options))
    assert_close(actual, (ys, LSTMState(*expected)))


def test_hard_sigmoid_is_that_of_keras_3():
    """relu6(x + 3) / 6; that of Keras 2, clip(0.2 x + 0.5), is `keras2_hard_sigmoid`."""
    layer = keras_lstm(recurrent_activation="hard_sigmoid")
    xs, *_ = example()
    ys, *_ = layer(xs)
    other, _ = lstm.apply(params_of(layer), xs, options=LSTMOptions(recurrent_activation="keras2_hard_sigmoid"))
    assert np.abs(ys - other).max() > 1e-3


def test_no_bias():
    layer = keras_lstm(use_bias=False)
    xs, *_ = example()
    ys, *state = layer(xs)
    assert_close(lstm.apply(params_of(layer), xs), (ys, LSTMState(*state)))


def test_gradients():
    layer = keras_lstm()
    xs, h, c, w_h, w_c = example()
    w_ys = np.random.default_rng(2).normal(size=(BATCH, TIME, UNITS)).astype(np.float32)

    constants = [variable.value for variable in layer.non_trainable_variables]  # the seed of its dropout

    def theirs(weights, xs, h, c):
        (ys, *state), _ = layer.stateless_call(weights, constants, xs, initial_state=[h, c], mask=MASK)
        ys = jnp.where(MASK[..., None], ys, 0)
        return (w_ys * ys).sum() + (w_h * state[0]).sum() + (w_c * state[1]).sum()

    def ours(params, xs, state):
        ys, end = lstm.apply(params, xs, state, lengths=LENGTHS)
        return (w_ys * ys).sum() + (w_h * end.h).sum() + (w_c * end.c).sum()

    weights, *expected = jax.jit(jax.grad(theirs, argnums=(0, 1, 2, 3)))(
        [w.value for w in layer.trainable_variables], xs, h, c
    )
    actual = jax.jit(jax.grad(ours, argnums=(0, 1, 2)))(params_of(layer), xs, LSTMState(h, c))
    assert_close(actual, (LSTMParams(*weights), *expected))


def test_a_mask_of_valid_steps_is_lengths():
    """With `zero_output_for_mask=True` padding gives 0, as ours always does; a length of 0 gives the initial state."""
    layer = keras_lstm(zero_output_for_mask=True)
    xs, h, c, *_ = example()
    ys, *state = layer(xs, initial_state=[h, c], mask=MASK)
    assert_close(lstm.apply(params_of(layer), xs, LSTMState(h, c), lengths=LENGTHS), (ys, LSTMState(*state)))
    assert (np.asarray(ys)[~MASK] == 0).all()


def test_padding_repeats_the_last_output_by_default():
    """In Keras; the states agree all the same."""
    layer = keras_lstm()
    xs, h, c, *_ = example()
    ys, *state = layer(xs, initial_state=[h, c], mask=MASK)
    ours, end = lstm.apply(params_of(layer), xs, LSTMState(h, c), lengths=LENGTHS)
    assert_close(end, LSTMState(*state))
    assert_close(np.where(MASK[..., None], ours, np.asarray(end.h)[:, None]), ys)


HOLES = np.random.default_rng(3).random((BATCH, TIME)) < 0.5


@pytest.mark.parametrize("go_backwards", [False, True])
@pytest.mark.parametrize("mask", [HOLES, MASK[:, ::-1]], ids=["holes", "left padding"])
@pytest.mark.parametrize("implementation", list(lstm.IMPLEMENTATIONS))
def test_the_same_mask(implementation, mask, go_backwards):
    """In any pattern; Keras's outputs read backwards are in the order of reading."""
    layer = keras_lstm(zero_output_for_mask=True, go_backwards=go_backwards)
    xs, h, c, *_ = example()
    ys, *state = layer(xs, initial_state=[h, c], mask=mask)
    how = {"mask": mask, "reverse": go_backwards, "implementation": implementation}
    ours, end = lstm.apply(params_of(layer), xs, LSTMState(h, c), **how)
    assert_close((ours[:, ::-1] if go_backwards else ours, end), (ys, LSTMState(*state)))


@pytest.mark.parametrize("masked", [False, True])
def test_go_backwards_turns_the_outputs_round(masked):
    """Keras's are in the order of reading, padding first; ours stand at their own steps."""
    layer = keras_lstm(go_backwards=True, zero_output_for_mask=True)
    xs, h, c, *_ = example()
    ys, *state = layer(xs, initial_state=[h, c], mask=MASK if masked else None)
    ours, end = lstm.apply(params_of(layer), xs, LSTMState(h, c), reverse=True, lengths=LENGTHS if masked else None)
    assert_close((ours[:, ::-1], end), (ys, LSTMState(*state)))


@pytest.mark.parametrize("go_backwards", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_without_sequences(go_backwards, masked):
    layer = keras_lstm(return_sequences=False, go_backwards=go_backwards)
    xs, h, c, *_ = example()
    y, *state = layer(xs, initial_state=[h, c], mask=MASK if masked else None)
    lengths = LENGTHS if masked else None
    actual = lstm.apply(
        params_of(layer), xs, LSTMState(h, c), lengths=lengths, reverse=go_backwards, return_sequences=False
    )
    assert_close(actual, (y, LSTMState(*state)))
    assert_close(y, state[0])


def test_without_sequences_and_with_zeros_for_padding():
    """`zero_output_for_mask=True` makes Keras's last output 0 wherever the last step is padding; ours is the last h."""
    layer = keras_lstm(return_sequences=False, zero_output_for_mask=True)
    xs, *_ = example()
    y, h, _ = layer(xs, mask=MASK)
    ours, _ = lstm.apply(params_of(layer), xs, lengths=LENGTHS, return_sequences=False)
    assert_close(ours, h)
    assert (np.asarray(y)[LENGTHS < TIME] == 0).all()
    assert (np.asarray(ours)[[0, 3]] != 0).all()


def keras_bidirectional(merge, sequences=True):
    layer = keras.layers.LSTM(UNITS, return_sequences=sequences, return_state=True)
    return built(keras.layers.Bidirectional(layer, merge_mode=merge))


@pytest.mark.parametrize("sequences", [True, False])
@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave", None])
def test_bidirectional(merge, sequences):
    """Masked, from initial states; Bidirectional forces zeros at padding, and turns the backward outputs round."""
    layer = keras_bidirectional(merge, sequences)
    xs, *initial = example()
    out = layer(xs, initial_state=initial, mask=MASK)
    state = BidirectionalState(LSTMState(*initial[:2]), LSTMState(*initial[2:]))
    actual = bidirectional.apply(params_of(layer), xs, state, lengths=LENGTHS, merge=merge, return_sequences=sequences)
    assert_close(actual, out)


def test_bidirectional_without_mask():
    layer = keras_bidirectional("concat")
    xs, *_ = example()
    assert_close(bidirectional.apply(params_of(layer), xs), layer(xs))


def test_stacked_layers():
    """A mask made by a Masking layer goes from layer to layer, as lengths do."""
    layers = [keras.layers.LSTM(UNITS, return_sequences=True) for _ in range(2)]
    model = keras.Sequential([keras.layers.Masking(-9.0), *layers, keras.layers.LSTM(UNITS)])
    built(model)
    xs, *_ = example()
    expected = model(np.where(MASK[..., None], xs, np.float32(-9)))
    params = StackParams(tuple(params_of(layer) for layer in model.layers[1:]))
    ys, _ = stack.apply(params, xs, lengths=LENGTHS, return_sequences=False)
    assert_close(ys, expected)


def test_stacked_bidirectional_layers():
    layers = [keras.layers.Bidirectional(keras.layers.LSTM(UNITS, return_sequences=True)) for _ in range(2)]
    model = built(keras.Sequential(layers))
    xs, *_ = example()
    ys, _ = stack.apply(StackParams(tuple(params_of(layer) for layer in model.layers)), xs)
    assert_close(ys, model(xs))
