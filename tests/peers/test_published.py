"""Our LSTMs against what other libraries have published: equations, transcribed here in NumPy, and expected numbers.

Numbers with a source are those that the named test of the named project expects, from weights which it sets. None of
these projects is needed to run this.
"""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstmjax import (
    BidirectionalParams,
    Dropout,
    LSTMOptions,
    LSTMParams,
    LSTMState,
    StackParams,
    bidirectional,
    interop,
    lstm,
    stack,
)
from lstmjax._src import dropout_masks
from lstmjax._src.lstm.params import LSTMNorm


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def float32(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def float64(tree):
    """Needs the fixture x64."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)


def reordered(a, theirs, ours="ifgo"):
    """Columns, or numbers of a vector, from the order of gates `theirs` into ours."""
    block = dict(zip(theirs, np.split(a, len(theirs), axis=-1), strict=True))
    return np.concatenate([block[gate] for gate in ours], axis=-1)


def drawn(rng, *shapes, scale=0.7):
    return [rng.normal(scale=scale, size=shape) for shape in shapes]


# TensorFlow 1: tensorflow/python/ops/rnn_cell_impl.py, LSTMCell and BasicLSTMCell.


def tf1_step(x, c, h, kernel, bias, *, forget_bias=1.0, diag=None, cell_clip=None, projection=None, proj_clip=None):
    """One step of LSTMCell: gates i, j, f, o of [x, h] kernel; `diag` are w_f_diag, w_i_diag, w_o_diag."""
    i, j, f, o = np.split(np.concatenate([x, h], axis=-1) @ kernel + bias, 4, axis=-1)
    w_f_diag, w_i_diag, w_o_diag = (0, 0, 0) if diag is None else diag
    c = sigmoid(f + forget_bias + w_f_diag * c) * c + sigmoid(i + w_i_diag * c) * np.tanh(j)
    c = c if cell_clip is None else np.clip(c, -cell_clip, cell_clip)
    h = sigmoid(o + w_o_diag * c) * np.tanh(c)
    h = h if projection is None else h @ projection
    return c, h if proj_clip is None else np.clip(h, -proj_clip, proj_clip)


def of_tf1(kernel, bias, inputs, *, forget_bias=1.0, diag=None, projection=None):
    """Our parameters: rows [x; h] apart, gates in our order, the forget bias that is added at run time in the bias."""
    bias = reordered(bias, "igfo")
    units = bias.size // 4
    bias[units : 2 * units] += forget_bias
    kernel = reordered(kernel, "igfo")
    peephole = None if diag is None else np.concatenate([diag[1], diag[0], diag[2]])
    return LSTMParams(kernel[:inputs], kernel[inputs:], bias, w_peephole=peephole, w_projection=projection)


@pytest.mark.parametrize(
    "parts",
    [
        (),
        ("diag", "cell_clip"),
        ("projection", "proj_clip"),
        ("diag", "cell_clip", "projection", "proj_clip"),
    ],
    ids="+".join,
)
def test_tf1_lstm_cell(parts, x64):
    """Peepholes, of which that of o sees the c that was clipped; projection; clips; forget bias at run time."""
    rng = np.random.default_rng(0)
    batch, time, inputs, units, outputs = 3, 4, 2, 5, 3 if "projection" in parts else 5
    kernel, bias, xs = drawn(rng, (inputs + outputs, 4 * units), (4 * units,), (batch, time, inputs))
    c, h = drawn(rng, (batch, units), (batch, outputs))
    everything = {
        "diag": drawn(rng, *[(units,)] * 3),
        "cell_clip": 0.6,
        "projection": drawn(rng, (units, outputs))[0],
        "proj_clip": 0.3,
    }
    given = {name: everything[name] for name in parts}
    state, ys = (c, h), []
    for t in range(time):
        state = tf1_step(xs[:, t], *state, kernel, bias, forget_bias=0.8, **given)
        ys.append(state[1])
    clips = {"cell_clip": given.pop("cell_clip", None), "projection_clip": given.pop("proj_clip", None)}
    params = of_tf1(kernel, bias, inputs, forget_bias=0.8, **given)
    actual, end = lstm.apply(float64(params), xs, LSTMState(h, c), options=LSTMOptions(**clips))
    for a, e in zip((actual, end.c, end.h), (np.stack(ys, axis=1), *state), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-12)


def test_tf1_lstm_cell_in_numbers():
    """One unit, two steps; worked out beside this in decimal arithmetic. c is clipped at the first, h at the second."""
    kernel, bias = np.array([[0.5, -1.0, 0.25, 2.0], [1.0, 0.5, -0.5, 0.75]]), np.array([0.1, 0.2, -0.3, 0.4])
    diag = [np.array([0.3]), np.array([-0.2]), np.array([0.6])]
    params = float32(of_tf1(kernel, bias, 1, diag=diag, projection=np.array([[-1.5]])))
    xs, state = np.array([[-2.0], [1.0]], np.float32), float32(LSTMState(h=np.array([0.25]), c=np.array([0.5])))
    ys, state = lstm.apply(params, xs, state, options=LSTMOptions(cell_clip=0.5, projection_clip=0.03))
    np.testing.assert_allclose(ys[:, 0], [-0.0295255272, 0.03], rtol=0, atol=1e-6)
    np.testing.assert_allclose(state.c, [-0.0372341603], rtol=0, atol=1e-6)


def test_tf1_basic_lstm_cell():
    """core_rnn_cell_test.py, testBasicLSTMCell and testBasicLSTMCellWithStateTuple: two layers; states are (c, h)."""
    params = of_tf1(np.full((4, 8), 0.5), np.zeros(8), inputs=2)
    state = LSTMState(h=np.full(2, 0.1), c=np.full(2, 0.1))
    y, states = stack.step(float32(StackParams((params, params))), np.ones(2, np.float32), float32((state, state)))
    np.testing.assert_allclose(y, [0.24024698, 0.24024698], rtol=0, atol=1e-6)
    memory = [0.68967271, 0.68967271, 0.44848421, 0.44848421, 0.39897051, 0.39897051, 0.24024698, 0.24024698]
    actual = np.concatenate([states[0].c, states[0].h, states[1].c, states[1].h])
    np.testing.assert_allclose(actual, memory, rtol=0, atol=1e-6)


# TensorFlow 1: tensorflow/contrib/rnn/python/ops/rnn_cell.py, CoupledInputForgetGateLSTMCell.


def tf1_coupled_step(x, c, h, kernel, bias, *, forget_bias=1.0, diag=None, projection=None):
    """Gates j, f, o: the forget gate has weights, and the input gate is 1 - f; `diag` are W_F_diag, W_O_diag."""
    j, f, o = np.split(np.concatenate([x, h], axis=-1) @ kernel + bias, 3, axis=-1)
    w_f_diag, w_o_diag = (0, 0) if diag is None else diag
    f = sigmoid(f + forget_bias + w_f_diag * c)
    c = f * c + (1 - f) * np.tanh(j)
    h = sigmoid(o + w_o_diag * c) * np.tanh(c)
    return c, h if projection is None else h @ projection


def of_tf1_coupled(kernel, bias, inputs, *, forget_bias=1.0, diag=None, projection=None):
    """Our coupled cell keeps the input gate, and sigmoid(-z) = 1 - sigmoid(z): all that makes f changes its sign."""

    def turned(a, added=0.0):
        j, f, o = np.split(a, 3, axis=-1)
        return np.concatenate([-(f + added), j, o], axis=-1)

    kernel = turned(kernel)
    peephole = None if diag is None else np.concatenate([-diag[0], diag[1]])
    return LSTMParams(
        kernel[:inputs], kernel[inputs:], turned(bias, forget_bias), w_peephole=peephole, w_projection=projection
    )


@pytest.mark.parametrize("parts", [(), ("diag",), ("diag", "projection")], ids="+".join)
def test_tf1_coupled_cell(parts, x64):
    rng = np.random.default_rng(0)
    batch, time, inputs, units, outputs = 3, 4, 2, 5, 3 if "projection" in parts else 5
    kernel, bias, xs = drawn(rng, (inputs + outputs, 3 * units), (3 * units,), (batch, time, inputs))
    c, h = drawn(rng, (batch, units), (batch, outputs))
    everything = {"diag": drawn(rng, (units,), (units,)), "projection": drawn(rng, (units, outputs))[0]}
    given = {name: everything[name] for name in parts}
    state = c, h
    for t in range(time):
        state = tf1_coupled_step(xs[:, t], *state, kernel, bias, forget_bias=0.8, **given)
    params = float64(of_tf1_coupled(kernel, bias, inputs, forget_bias=0.8, **given))
    assert params.gates == 3
    _, end = lstm.apply(params, xs, LSTMState(h, c))
    np.testing.assert_allclose(end.c, state[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(end.h, state[1], rtol=0, atol=1e-12)


def test_tf1_coupled_cell_in_numbers():
    """tensorflow/contrib/rnn/python/kernel_tests/rnn_cell_test.py, testCoupledInputForgetGateLSTMCell."""
    params = float32(of_tf1_coupled(np.full((6, 6), 0.5), np.zeros(6), inputs=4))
    x = np.array([[1.0] * 4, [2.0] * 4, [3.0] * 4], np.float32)
    y, state = lstm.step(params, x, float32(LSTMState(h=np.full((3, 2), 0.1), c=np.full((3, 2), 0.1))))
    np.testing.assert_allclose(y, np.repeat([[0.121753], [0.103349], [0.100178]], 2, axis=1), rtol=0, atol=1e-6)
    np.testing.assert_allclose(state.c, np.repeat([[0.137523], [0.105450], [0.100742]], 2, axis=1), rtol=0, atol=1e-6)


# TensorFlow Lite: tensorflow/lite/kernels/lstm_test.cc. A matrix for each gate, [units, inputs] and [units, units].

TFLITE_XS = np.array([[2.0, 3.0], [3.0, 4.0], [1.0, 1.0]], np.float32)


def test_tflite_lstm():
    """NoCifgNoPeepholeNoProjectionNoClippingLstmTest."""
    from_x = {
        "i": [-0.45018822, -0.02338299, -0.0870589, -0.34550029, 0.04266912, -0.15680569, -0.34856534, 0.43890524],
        "f": [0.09701663, 0.20334584, -0.50592935, -0.31343272, -0.40032279, 0.44781327, 0.01387155, -0.35593212],
        "g": [-0.50013041, 0.1370284, 0.11810488, 0.2013163, -0.20583314, 0.44344562, 0.22077113, -0.29909778],
        "o": [-0.25065863, -0.28290087, 0.04613829, 0.40525138, 0.44272184, 0.03897077, -0.1556896, 0.19487578],
    }
    from_h = {
        "i": [
            [-0.0063535, -0.2042388, 0.31454784, -0.35746509],
            [0.28902304, 0.08183324, -0.16555229, 0.02286911],
            [-0.13566875, 0.03034258, 0.48091322, -0.12528998],
            [0.24077177, -0.51332325, -0.33502164, 0.10629296],
        ],
        "f": [
            [-0.48684245, -0.06655136, 0.42224967, 0.2112639],
            [0.27654213, 0.20864892, -0.07646349, 0.45877004],
            [0.00141793, -0.14609534, 0.36447752, 0.09196436],
            [0.28053468, 0.01560611, -0.20127171, -0.01140004],
        ],
        "g": [
            [-0.3407414, 0.24443203, -0.2078532, 0.26320225],
            [0.05695659, -0.00123841, -0.4744786, -0.35869038],
            [-0.06418842, -0.13502428, -0.501764, 0.22830659],
            [-0.46367589, 0.26016325, -0.03894562, -0.16368064],
        ],
        "o": [
            [0.43385774, -0.17194885, 0.2718237, 0.09215671],
            [0.24107647, -0.39835793, 0.18212086, 0.01301402],
            [0.48572797, -0.50656658, 0.20047462, -0.20607421],
            [-0.51818722, -0.15390486, 0.0468148, 0.39922136],
        ],
    }
    params = LSTMParams(
        w_x=np.concatenate([np.reshape(from_x[gate], (4, 2)).T for gate in "ifgo"], axis=1),
        w_h=np.concatenate([np.transpose(from_h[gate]) for gate in "ifgo"], axis=1),
        bias=np.repeat([0.0, 1.0, 0.0, 0.0], 4),
    )
    expected = [
        [-0.02973187, 0.1229473, 0.20885126, -0.15358765],
        [-0.03716109, 0.12507336, 0.41193449, -0.20860538],
        [-0.15053082, 0.09120187, 0.24278517, -0.12222792],
    ]
    np.testing.assert_allclose(lstm.apply(float32(params), TFLITE_XS)[0], expected, rtol=0, atol=1e-6)


def test_tflite_coupled_lstm_with_peepholes():
    """CifgNoPeepholeNoProjectionNoClippingLstmTest, which does have peepholes; as in TF1 f has weights and i none."""
    from_x = {
        "f": [-0.55291498, -0.42866567, 0.13056988, -0.3633365, -0.22755712, 0.28253698, 0.24407166, 0.33826375],
        "g": [-0.49770179, -0.27711356, -0.09624726, 0.05100781, 0.04717243, 0.48944736, -0.38535351, -0.17212132],
        "o": [0.10725588, -0.02335852, -0.55932593, -0.09426838, -0.44257352, 0.54939759, 0.01533556, 0.42751634],
    }
    from_h = {
        "f": [
            [-0.13832897, -0.0515101, -0.2359007, -0.16661474],
            [-0.14340827, 0.36986142, 0.23414481, 0.55899],
            [0.10798943, -0.41174671, 0.17751795, -0.34484994],
            [-0.35874045, -0.11352962, 0.27268326, 0.54058349],
        ],
        "g": [
            [0.54066205, -0.32668582, -0.43562764, -0.56094903],
            [0.42957711, 0.01841056, -0.32764608, -0.33027974],
            [-0.10826075, 0.20675004, 0.19069612, -0.03026325],
            [-0.54532051, 0.33003211, 0.44901288, 0.21193194],
        ],
        "o": [
            [0.41613156, 0.42610586, -0.16495961, -0.5663873],
            [0.30579174, -0.05115908, -0.33941799, 0.23364776],
            [0.11178309, 0.09481031, -0.26424935, 0.46261835],
            [0.50248802, 0.26114327, -0.43736315, 0.33149987],
        ],
    }
    kernel = np.concatenate(
        [
            np.concatenate([np.reshape(from_x[gate], (4, 2)).T for gate in "gfo"], axis=1),
            np.concatenate([np.transpose(from_h[gate]) for gate in "gfo"], axis=1),
        ]
    )
    diag = [
        np.array([0.47485286, -0.51955009, -0.24458408, 0.31544167]),
        np.array([-0.17135078, 0.82760304, 0.85573703, -0.77109635]),
    ]
    params = of_tf1_coupled(kernel, np.zeros(12), inputs=2, forget_bias=1.0, diag=diag)
    expected = [
        [-0.36444446, -0.00352185, 0.12886585, -0.05163646],
        [-0.42312205, -0.01218222, 0.24201041, -0.08124574],
        [-0.358325, -0.04621704, 0.21641694, -0.06471302],
    ]
    np.testing.assert_allclose(lstm.apply(float32(params), TFLITE_XS)[0], expected, rtol=0, atol=1e-6)


# Keras 3: keras/src/layers/rnn/lstm_test.py, whose weights are constants. All outputs of a row are the same number.


def keras_params(inputs, units, *, bias=True, forget_bias=1.0):
    b = np.repeat(np.float32([0.03, forget_bias, 0.03, 0.03]), units)
    weights = [np.full((inputs, 4 * units), 0.01, np.float32), np.full((units, 4 * units), 0.02, np.float32)]
    return interop.from_keras([*weights, b] if bias else weights)


@pytest.mark.parametrize(
    ("options", "reverse", "expected"),
    [
        ({}, False, [0.6288687, 0.86899155, 0.9460773]),
        ({}, True, [0.35622165, 0.74789524, 0.8872726]),
        ({"forget_bias": 0.03}, False, [0.57019705, 0.8661914, 0.9459622]),
        ({"bias": False}, False, [0.54986924, 0.86226785, 0.9443936]),
    ],
    ids=["standard", "go_backwards", "unit_forget_bias=False", "use_bias=False"],
)
def test_keras_in_numbers(options, reverse, expected):
    xs = np.arange(72, dtype=np.float32).reshape(3, 6, 4)
    ys, _ = lstm.apply(keras_params(4, 3, **options), xs, reverse=reverse, return_sequences=False)
    np.testing.assert_allclose(ys, np.repeat(np.array(expected)[:, None], 3, 1), rtol=1e-5, atol=1e-5)


def test_keras_states_in_numbers():
    xs, params = np.arange(24, dtype=np.float32).reshape(2, 3, 4), keras_params(4, 4)
    _, state = lstm.apply(params, xs)
    ys, _ = lstm.apply(params, xs, state, return_sequences=False)
    np.testing.assert_allclose(ys, np.repeat([[0.3124785], [0.6863672]], 4, 1), rtol=1e-5, atol=1e-5)
    xs, params = np.arange(24, dtype=np.float32).reshape(2, 4, 3), keras_params(3, 2)
    initial = np.arange(4, dtype=np.float32).reshape(2, 2)
    for reverse, expected in (
        (False, [[0.20574439, 0.3558822], [0.64930826, 0.66276]]),
        (True, [[0.13281618, 0.2790356], [0.5839337, 0.5992567]]),
    ):
        ys, _ = lstm.apply(params, xs, LSTMState(initial, initial), reverse=reverse, return_sequences=False)
        np.testing.assert_allclose(ys, expected, rtol=1e-5, atol=1e-5)


def test_keras_masks_in_numbers():
    """`zero_output_for_mask=True`; and a mask of the first steps, read backwards, by moving the rest to the front."""
    xs, params, lengths = np.arange(24, dtype=np.float32).reshape(2, 4, 3), keras_params(3, 2), np.array([3, 2])
    ys, state = lstm.apply(params, xs, lengths=lengths)
    expected = [[0.01588910, 0.05552048, 0.11755939, 0], [0.14185596, 0.28556206, 0, 0]]
    np.testing.assert_allclose(ys, np.repeat(np.array(expected)[..., None], 2, 2), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state.h, [[0.11755939] * 2, [0.28556206] * 2], rtol=1e-5, atol=1e-5)
    moved = np.stack([np.roll(row, length - 4, axis=0) for row, length in zip(xs, lengths, strict=True)])
    ys, _ = lstm.apply(params, moved, lengths=lengths, reverse=True, return_sequences=False)
    np.testing.assert_allclose(ys, [[0.15341201] * 2, [0.3844719] * 2], rtol=1e-5, atol=1e-5)


# Layer norm: tensorflow/contrib/rnn/python/ops/rnn_cell.py, LayerNormBasicLSTMCell, whose norm is that of
# tensorflow/contrib/layers/python/layers/layers.py; tensorflow_addons/rnn/layer_norm_lstm_cell.py, LayerNormLSTMCell;
# tensorflow/lite/kernels/lstm_eval.cc, with PortableMeanStddevNormalization of portable_tensor_utils.cc.


def layer_normed(z, gamma, beta, epsilon):
    centred = z - z.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon) * gamma + beta


def layer_norm_basic_step(x, h, c, v, *, forget_bias=1.0, epsilon=1e-12):
    """Each gate of [x, h] kernel by itself, in the order i, j, f, o; no bias; the new c is the normalised one."""
    z = np.split(np.concatenate([x, h], axis=-1) @ v["kernel"], 4, axis=-1)
    norm = lambda z, name: layer_normed(z, v[f"{name}/gamma"], v[f"{name}/beta"], epsilon)  # noqa: E731
    i, j, f, o = map(norm, z, ("input", "transform", "forget", "output"))
    c = norm(c * sigmoid(f + forget_bias) + sigmoid(i) * np.tanh(j), "state")
    return np.tanh(c) * sigmoid(o), c


def addons_step(x, h, c, v, *, epsilon=1e-3):
    """Keras' cell, i, f, c, o: both products over all gates, plus a bias; the new c is the normalised one."""
    norm = lambda z, name: layer_normed(z, v[f"{name}/gamma"], v[f"{name}/beta"], epsilon)  # noqa: E731
    z = norm(x @ v["kernel"], "kernel_norm") + norm(h @ v["recurrent_kernel"], "recurrent_norm") + v["bias"]
    i, f, g, o = np.split(z, 4, axis=-1)
    c = norm(sigmoid(f) * c + sigmoid(i) * np.tanh(g), "state_norm")
    return sigmoid(o) * np.tanh(c), c


def lite_step(x, h, c, v, *, epsilon=1e-8):
    """A matrix for each gate; peepholes within the norm, biases behind it; c as it is; i = 1 - f without weights."""

    def z(gate, c=0.0):
        inside = x @ v[f"input_to_{gate}_weights"].T + h @ v[f"recurrent_to_{gate}_weights"].T
        inside = inside + c * v.get(f"cell_to_{gate}_weights", 0.0)
        bias, coefficients = v[f"{gate}_gate_bias"], v.get(f"{gate}_layer_norm_coefficients")
        return inside + bias if coefficients is None else layer_normed(inside, coefficients, bias, epsilon)

    f = sigmoid(z("forget", c))
    i = sigmoid(z("input", c)) if "input_to_input_weights" in v else 1 - f
    c = f * c + i * np.tanh(z("cell"))
    m = sigmoid(z("output", c)) * np.tanh(c)
    return m @ v["projection_weights"].T if "projection_weights" in v else m, c


def layer_norm_variables(cell, rng, inputs, units, outputs):
    """Of each cell by its own names, in its own shapes."""
    if cell == "LayerNormBasicLSTMCell":
        norms = [f"{where}/{which}" for where in ("input", "transform", "forget", "output", "state") for which in "gb"]
        shapes = {"kernel": (inputs + units, 4 * units), **dict.fromkeys(norms, (units,))}
    elif cell == "LayerNormLSTMCell":
        wide = [f"{where}_norm/{which}" for where in ("kernel", "recurrent") for which in "gb"]
        shapes = {"kernel": (inputs, 4 * units), "recurrent_kernel": (units, 4 * units), "bias": (4 * units,)}
        shapes |= dict.fromkeys(wide, (4 * units,)) | dict.fromkeys(("state_norm/g", "state_norm/b"), (units,))
    else:
        gates = ("forget", "cell", "output") if "coupled" in cell else ("input", "forget", "cell", "output")
        shapes = {f"input_to_{gate}_weights": (units, inputs) for gate in gates}
        shapes |= {f"recurrent_to_{gate}_weights": (units, outputs) for gate in gates}
        shapes |= {f"{gate}_gate_bias": (units,) for gate in gates}
        if "plain" not in cell:
            shapes |= {f"{gate}_layer_norm_coefficients": (units,) for gate in gates}
            shapes |= {f"cell_to_{gate}_weights": (units,) for gate in gates if gate != "cell"}
            shapes["projection_weights"] = (outputs, units)
    names = [re.sub("/g$", "/gamma", re.sub("/b$", "/beta", name)) for name in shapes]
    return dict(zip(names, drawn(rng, *shapes.values()), strict=True))


LAYER_NORM_CELLS = {
    "LayerNormBasicLSTMCell": (layer_norm_basic_step, "per_gate_cell", 1e-12, 4),
    "LayerNormLSTMCell": (addons_step, "joint_cell", 1e-3, 4),
    "Lite": (lite_step, "per_gate", 1e-8, 3),
    "Lite coupled": (lite_step, "per_gate", 1e-8, 3),
    "Lite plain": (lite_step, None, 1e-5, 4),
}


@pytest.mark.parametrize("implementation", ["fused", "scan"])
@pytest.mark.parametrize("cell", LAYER_NORM_CELLS)
def test_cells_with_layer_norm_of_tensorflow(cell, implementation, x64):
    """What `from_tensorflow` makes of their variables computes what their equations do."""
    step, kind, epsilon, outputs = LAYER_NORM_CELLS[cell]
    rng = np.random.default_rng(0)
    v = layer_norm_variables(cell, rng, 3, 4, outputs)
    xs, h, c = drawn(rng, (2, 5, 3), (2, outputs), (2, 4))
    params = interop.from_tensorflow({f"rnn/cell/{name}:0": value for name, value in v.items()})
    assert (params.norm.kind if params.norm else None) == kind
    options = LSTMOptions(norm_epsilon=epsilon)
    actual, end = lstm.apply(params, xs, LSTMState(h, c), options=options, implementation=implementation)
    ys = []
    for t in range(5):
        h, c = step(xs[:, t], h, c, v)
        ys.append(h)
    for a, e in zip((actual, end.h, end.c), (np.stack(ys, axis=1), h, c), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-12)


def test_tensorflow_layer_norm_in_numbers(x64):
    """LayerNormBasicLSTMCell of rnn_cell_test.py and of layer_norm_lstm_cell_test.py: two layers, all weights 0.5.

    All gates see equal numbers, whose variance is 0: an epsilon of 1e-12 magnifies what float32 rounds a mean by.
    """
    norms = {
        name: np.ones(2) for name in ("input/gamma", "transform/gamma", "forget/gamma", "output/gamma", "state/gamma")
    }
    basic = {"kernel": np.full((4, 8), 0.5)} | norms | {name.replace("gamma", "beta"): np.zeros(2) for name in norms}
    sizes = {"kernel_norm": 8, "recurrent_norm": 8, "state_norm": 2}
    addons = {"kernel": np.full((2, 8), 0.5), "recurrent_kernel": np.full((2, 8), 0.5)}
    addons |= {"bias": np.repeat([0.5, 1.0, 0.5, 0.5], 2)}
    addons |= {f"{name}/gamma": np.ones(size) for name, size in sizes.items()}
    addons |= {f"{name}/beta": np.zeros(size) for name, size in sizes.items()}
    start = [([0.2, 0.3], [0, 0.1]), ([0.6, 0.7], [0.4, 0.5])]
    start = tuple(LSTMState(h=np.float64(h), c=np.float64(c)) for h, c in start)
    for variables, h in ((basic, 0.38079708), (addons, 0.47406167)):
        layers = StackParams((interop.from_tensorflow(variables),) * 2)
        y, state = stack.step(layers, np.ones(2), start, options=LSTMOptions(norm_epsilon=1e-12))
        np.testing.assert_allclose(y, [-h, h], rtol=1e-5)
        for layer in state:
            np.testing.assert_allclose(layer.c, [-1, 1], rtol=1e-5)
            np.testing.assert_allclose(layer.h, [-h, h], rtol=1e-5)


@pytest.mark.parametrize("coupled", [False, True])
def test_tflite_layer_norm_in_numbers(coupled):
    """NoCifg_Peephole_Projection_LayerNorm and Cifg_Peephole_Projection_LayerNorm."""
    tensors = {
        "input_to_input_weights": (
            "0.5 0.6 0.7 -0.8 -0.9 0.1 0.2 0.3 -0.4 0.5 -0.8 0.7 -0.6 0.5 -0.4 -0.5 -0.4 -0.3 -0.2 -0.1"
        ),
        "input_to_forget_weights": (
            "-0.6 -0.1 0.3 0.2 0.9 -0.5 -0.2 -0.4 0.3 -0.8 -0.4 0.3 -0.5 -0.4 -0.6 0.3 -0.4 -0.6 -0.5 -0.5"
        ),
        "input_to_cell_weights": (
            "-0.4 -0.3 -0.2 -0.1 -0.5 0.5 -0.2 -0.3 -0.2 -0.6 0.6 -0.1 -0.4 -0.3 -0.7 0.7 -0.9 -0.5 0.8 0.6"
        ),
        "input_to_output_weights": (
            "-0.8 -0.4 -0.2 -0.9 -0.1 -0.7 0.3 -0.3 -0.8 -0.2 0.6 -0.2 0.4 -0.7 -0.3 -0.5 0.1 0.5 -0.6 -0.4"
        ),
        "recurrent_to_input_weights": "-0.2 -0.3 0.4 0.1 -0.5 0.9 -0.2 -0.3 -0.7 0.05 -0.2 -0.6",
        "recurrent_to_forget_weights": "-0.5 -0.3 -0.5 -0.2 0.6 0.4 0.9 0.3 -0.1 0.2 0.5 0.2",
        "recurrent_to_cell_weights": "-0.3 0.2 0.1 -0.3 0.8 -0.08 -0.2 0.3 0.8 -0.6 -0.1 0.2",
        "recurrent_to_output_weights": "0.3 -0.1 0.1 -0.2 -0.5 -0.7 -0.2 -0.6 -0.1 -0.4 -0.7 -0.2",
        "input_gate_bias": "0.03 0.15 0.22 0.38",
        "forget_gate_bias": "0.1 -0.3 -0.2 0.1",
        "cell_gate_bias": "-0.05 0.72 0.25 0.08",
        "output_gate_bias": "0.05 -0.01 0.2 0.1",
        "cell_to_input_weights": "0.05 0.1 0.25 0.15",
        "cell_to_forget_weights": "-0.02 -0.15 -0.25 -0.03",
        "cell_to_output_weights": "0.1 -0.1 -0.5 0.05",
        "input_layer_norm_coefficients": "0.1 0.2 0.3 0.5",
        "forget_layer_norm_coefficients": "0.2 0.2 0.4 0.3",
        "cell_layer_norm_coefficients": "0.7 0.2 0.3 0.8",
        "output_layer_norm_coefficients": "0.6 0.2 0.2 0.5",
        "projection_weights": "-0.1 0.2 0.01 -0.2 0.1 0.5 0.3 0.08 0.07 0.2 -0.4 0.2",
    }
    matrices = {"input_to": (4, 5), "recurrent": (4, 3), "projection": (3, 4)}
    tensors = {name: np.array(text.split(), np.float32) for name, text in tensors.items()}
    tensors |= {
        name: array.reshape(shape)
        for name, array in tensors.items()
        for start, shape in matrices.items()
        if name.startswith(start)
    }
    if coupled:
        tensors = {name: array for name, array in tensors.items() if not re.match("input_[gl]|.*_to_input", name)}
    xs = np.float32(
        [
            [[0.7, 0.8, 0.1, 0.2, 0.3], [0.8, 0.1, 0.2, 0.4, 0.5], [0.2, 0.7, 0.7, 0.1, 0.7]],
            [[0.3, 0.2, 0.9, 0.8, 0.1], [0.1, 0.5, 0.2, 0.4, 0.2], [0.6, 0.9, 0.2, 0.5, 0.7]],
        ]
    )
    expected = {
        False: [
            [[0.0244077, 0.128027, -0.00170918], [0.0137642, 0.140751, 0.0395835], [-0.00459231, 0.155278, 0.0837377]],
            [[-0.00692428, 0.0848741, 0.063445], [-0.00403912, 0.139963, 0.072681], [0.00752706, 0.161903, 0.0561371]],
        ],
        True: [
            [
                [0.02129706, 0.140816242, 0.0112733059],
                [0.0132302344, 0.152308047, 0.0346313119],
                [-0.0123688057, 0.165790111, 0.0893077999],
            ],
            [
                [-0.0226350538, 0.0916948169, 0.0769175813],
                [-0.0269966982, 0.149707705, 0.094149217],
                [-0.0103429332, 0.173016444, 0.0720508844],
            ],
        ],
    }
    params = interop.from_tensorflow(tensors)
    assert params.gates == (3 if coupled else 4)
    ys, _ = lstm.apply(params, xs, options=LSTMOptions(norm_epsilon=1e-8))
    np.testing.assert_allclose(ys, expected[coupled], rtol=0, atol=1e-5)


# Haste: frameworks/pytorch/lstm.py and layer_norm_lstm.py, which spell out what its CUDA kernels compute.


def haste(xs, h, c, kernel, recurrent_kernel, bias, *, norm=None, zoneout=0.0, zoneout_mask=None):
    """Outputs [time, batch, units] and the final c; gates i, g, f, o; a mask of 1 takes the new h, and c always is new.

    `norm` is (gamma, gamma_h, beta_h); epsilon is 1e-5; x W and h R are normalised over all four gates at once.
    """

    def normalised(z, gamma, beta=0.0):
        centred = z - z.mean(axis=-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * gamma + beta

    ys = []
    for t, x in enumerate(xs):
        from_x, from_h, shown = x @ kernel, h @ recurrent_kernel, lambda c: c
        if norm is not None:
            from_x, from_h = normalised(from_x, norm[0][0]), normalised(from_h, norm[0][1])
            shown = lambda c: normalised(c, norm[1], norm[2])  # noqa: E731
        i, g, f, o = np.split(from_x + from_h + bias, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        new_h = sigmoid(o) * np.tanh(shown(c))
        if zoneout_mask is not None:
            new_h = (new_h - h) * zoneout_mask[t] + h
        elif zoneout:
            new_h = zoneout * h + (1 - zoneout) * new_h
        h = new_h
        ys.append(h)
    return np.stack(ys), c


def haste_example(seed=0):
    """Arguments of `haste`, and ours of the same weights."""
    rng = np.random.default_rng(seed)
    batch, time, inputs, units = 3, 5, 2, 4
    xs, h, c = drawn(rng, (time, batch, inputs), (batch, units), (batch, units))
    kernel, recurrent_kernel, bias, gamma = drawn(
        rng, (inputs, 4 * units), (units, 4 * units), (4 * units,), (2, 4 * units)
    )
    norm = (1 + gamma, *drawn(rng, (units,), (units,)))
    bias[2 * units : 3 * units] += 1.0  # the forget bias is in the weights
    w_x, w_h, b, gammas = (reordered(a, "igfo") for a in (kernel, recurrent_kernel, bias, norm[0]))
    ours = LSTMParams(w_x, w_h, b, norm=LSTMNorm(gammas[0], gammas[1], norm[1], norm[2]))
    return (xs, h, c, kernel, recurrent_kernel, bias), norm, float64(ours), LSTMState(h, c)


@pytest.mark.parametrize("layer_norm", [False, True], ids=["lstm", "layer norm"])
@pytest.mark.parametrize("zoneout", ["none", "training", "inference"])
def test_haste(layer_norm, zoneout, x64):
    """Its LSTM and LayerNormLSTM, with zoneout of h alone by the mask that our key draws, and in expectation."""
    arguments, norm, params, state = haste_example()
    params = params if layer_norm else replace(params, norm=None)
    xs = np.moveaxis(arguments[0], 0, 1)
    dropout = None if zoneout == "none" else Dropout(zoneout_h=0.3)
    key = jax.random.key(1) if zoneout == "training" else None
    theirs = {"norm": norm if layer_norm else None}
    if zoneout == "training":
        kept = np.asarray(dropout_masks.draw(dropout, key, params, xs.shape[:1], xs.shape[1])[1].h)
        assert 0 < kept.mean() < 1
        theirs["zoneout_mask"] = 1.0 - kept
    elif zoneout == "inference":
        theirs["zoneout"] = 0.3
    expected, c = haste(*arguments, **theirs)
    ys, end = lstm.apply(params, xs, state, dropout=dropout, key=key, deterministic=key is None)
    np.testing.assert_allclose(ys, np.moveaxis(expected, 0, 1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(end.h, expected[-1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(end.c, c, rtol=0, atol=1e-12)


def test_haste_dropconnect(x64):
    """Its `dropout` is of single weights of the recurrent kernel, those kept divided by 1 - rate."""
    arguments, _, params, state = haste_example()
    params, dropout, key = replace(params, norm=None), Dropout(recurrent_weights=0.4), jax.random.key(2)
    xs = np.moveaxis(arguments[0], 0, 1)
    factors = np.asarray(dropout_masks.draw(dropout, key, params, xs.shape[:1], xs.shape[1])[0].recurrent_weights)
    np.testing.assert_allclose(np.unique(factors), [0, 1 / 0.6], rtol=1e-6)
    xs_, h, c, kernel, recurrent_kernel, bias = arguments
    expected, _ = haste(xs_, h, c, kernel, recurrent_kernel * reordered(factors, "ifgo", "igfo"), bias)
    ys, _ = lstm.apply(params, xs, state, dropout=dropout, key=key)
    np.testing.assert_allclose(ys, np.moveaxis(expected, 0, 1), rtol=0, atol=1e-12)


# ONNX: the operator LSTM. Gates i, o, f, c; peepholes i, o, f; W and R are [4*units, ...]; B is [Wb, Rb].


def onnx_lstm(xs, w, r, b, p, h, c, *, clip=None, input_forget=False, hard=False):
    """Outputs [time, batch, units] and the final h and c of one direction; `hard` is HardSigmoid(0.2, 0.5)."""

    def f_activation(z):
        z = z if clip is None else np.clip(z, -clip, clip)
        return np.clip(0.2 * z + 0.5, 0, 1) if hard else sigmoid(z)

    p_i, p_o, p_f = np.split(p, 3)
    ys = []
    for x in xs:
        i, o, f, g = np.split(x @ w.T + h @ r.T + sum(np.split(b, 2)), 4, axis=-1)
        i = f_activation(i + p_i * c)
        f = 1 - i if input_forget else f_activation(f + p_f * c)
        c = f * c + i * np.tanh(g if clip is None else np.clip(g, -clip, clip))
        h = f_activation(o + p_o * c) * np.tanh(c)
        ys.append(h)
    return np.stack(ys), h, c


def of_onnx(w, r, b=None, p=None, *, input_forget=False):
    """Our parameters; what is of f has no meaning where f = 1 - i."""
    gates, seen = ("igo", "io") if input_forget else ("ifgo", "ifo")
    return LSTMParams(
        w_x=reordered(w.T, "iofg", gates),
        w_h=reordered(r.T, "iofg", gates),
        bias=None if b is None else reordered(sum(np.split(b, 2)), "iofg", gates),
        w_peephole=None if p is None else reordered(p, "iof", seen),
    )


@pytest.mark.parametrize(
    "attributes",
    [{}, {"clip": 0.4}, {"input_forget": True}, {"hard": True}, {"clip": 0.4, "input_forget": True}],
    ids=str,
)
def test_onnx_lstm(attributes, x64):
    rng = np.random.default_rng(0)
    batch, time, inputs, units = 3, 4, 2, 5
    w, r, b, p = drawn(rng, (4 * units, inputs), (4 * units, units), (8 * units,), (3 * units,))
    xs, h, c = drawn(rng, (time, batch, inputs), (batch, units), (batch, units))
    expected = onnx_lstm(xs, w, r, b, p, h, c, **attributes)
    options = LSTMOptions(
        preactivation_clip=attributes.get("clip"),
        recurrent_activation="keras2_hard_sigmoid" if attributes.get("hard") else "sigmoid",
    )
    params = float64(of_onnx(w, r, b, p, input_forget=attributes.get("input_forget", False)))
    ys, end = lstm.apply(params, np.moveaxis(xs, 0, 1), LSTMState(h, c), options=options)
    for a, e in zip((np.moveaxis(ys, 1, 0), end.h, end.c), expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-12)


# ONNX Runtime: onnxruntime/test/providers/cpu/rnn/deep_cpu_lstm_op_test.cc. The weights of LstmOpContext2x1x2x2.

ORT_W = np.array(
    [
        [-0.494659, 0.0453352],
        [-0.487793, 0.417264],
        [-0.0175329, 0.489074],
        [-0.446013, 0.414029],
        [-0.0091708, -0.255364],
        [-0.106952, -0.266717],
        [-0.0888852, -0.428709],
        [-0.283349, 0.208792],
    ]
)
ORT_R = np.array(
    [
        [0.146626, -0.0620289],
        [-0.0815302, 0.100482],
        [-0.219535, -0.306635],
        [-0.28515, -0.314112],
        [-0.228172, 0.405972],
        [0.31576, 0.281487],
        [-0.394864, 0.42111],
        [-0.386624, -0.390225],
    ]
)
ORT_P = np.array([0.2345, 0.5235, 0.4378, 0.3475, 0.8927, 0.3456])
ORT_B = np.array([0.381619, 0.0323954, -0.14449, 0.420804, -0.258721, 0.45056, -0.250755, 0.0967895, *[0.0] * 8])
ORT_XS = np.array([[-0.455351, -0.276391], [-0.185934, -0.269585]], np.float32)


@pytest.mark.parametrize(
    ("parts", "arguments", "ys", "c"),
    [
        pytest.param(
            {"b": ORT_B, "p": ORT_P},
            {},
            [[-0.0251062475, 0.0561261699], [-0.03277518, 0.05935364]],
            [-0.0780206, 0.098829],
            id="ONNXRuntime_TestLSTMForwardPeepHole",
        ),
        pytest.param(
            {"p": ORT_P},
            {},
            [[0.04154162, 0.01969122], [0.05298181, 0.0030589]],
            [0.11169686, 0.00625722],
            id="ONNXRuntime_TestLSTMForwardNoBiasUsePeepholes",
        ),
        pytest.param(
            {"b": ORT_B, "p": ORT_P, "input_forget": True},
            {},
            [[-0.02510626, 0.05612619], [-0.0314321, 0.05087372]],
            [-0.07474898, 0.08480116],
            id="ONNXRuntime_TestLSTMForwardInputForget",
        ),
        pytest.param(
            {"b": ORT_B, "p": ORT_P},
            {"options": LSTMOptions(preactivation_clip=0.1)},
            [[-0.02280854, 0.02744377], [-0.03516197, 0.03875681]],
            [-0.07415761, 0.07395997],
            id="ONNXRuntime_TestLSTMForwardClip",
        ),
        pytest.param(
            {"b": ORT_B, "p": ORT_P},
            {"reverse": True},
            [[-0.03189282, 0.07626793], [-0.03068724, 0.02803503]],
            [-0.07536839, 0.12079399],
            id="ONNXRuntime_TestLSTMBackward",
        ),
        pytest.param(
            {"b": ORT_B},
            {"state": float32(LSTMState(h=np.array([0.34, 0.72]), c=np.array([0.63, 0.21])))},
            [[0.12797015, 0.0097284], [0.02716939, 0.01842997]],
            [0.06408449, 0.03139432],
            id="ONNXRuntime_TestLSTMForwardCellState",
        ),
    ],
)
def test_onnx_runtime(parts, arguments, ys, c):
    params = float32(of_onnx(ORT_W, ORT_R, **parts))
    actual, end = lstm.apply(params, ORT_XS, **arguments)
    last = 0 if arguments.get("reverse") else 1
    for a, e in zip((actual, end.h, end.c), (ys, ys[last], c), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-6)


def test_onnx_runtime_lengths():
    """ONNXRuntime_TestLSTMZeroSeqInMiddle: two directions, lengths 2, 0, 1, 2; a length of 0 from a state of zeros.

    One number is not compared: -0.04350187 for the backward half's first unit at the second step of the first sequence.
    It is what ONNXRuntime_TestLSTMOutputWrite expects there with other activations, and passes that project's own
    tolerance; the equations give -0.04356322.
    """
    half = of_onnx(ORT_W, ORT_R, ORT_B)
    xs = [
        [[-0.455351, -0.776391], [0.0, 0.0], [0.348763, 0.678345], [0.877836, 0.543859]],
        [[-0.185934, -0.169585], [0.0, 0.0], [0.078053, 0.163457], [0.846098, 0.987531]],
    ]
    (forward, backward), state = bidirectional.apply(
        float32(BidirectionalParams(half, half)),
        np.moveaxis(np.array(xs, np.float32), 0, 1),
        lengths=np.array([2, 0, 1, 2]),
        merge=None,
    )
    y = [  # [time, direction, batch, units]
        [
            [[0.02907280, 0.01765226], [0.0, 0.0], [-0.15355367, 0.04701351], [-0.12951779, -0.00989562]],
            [[0.01841230, 0.04093486], [0.0, 0.0], [-0.15355367, 0.04701351], [-0.17956293, 0.01607513]],
        ],
        [
            [[-0.02912546, 0.04120104], [0.0, 0.0], [0.0, 0.0], [-0.22162350, 0.03132058]],
            [[np.nan, 0.03531464], [0.0, 0.0], [0.0, 0.0], [-0.17885581, 0.01959856]],
        ],
    ]
    y_h = [
        [[-0.02912546, 0.04120104], [0.0, 0.0], [-0.15355367, 0.04701351], [-0.22162350, 0.03132058]],
        [[0.01841230, 0.04093486], [0.0, 0.0], [-0.15355367, 0.04701351], [-0.17956293, 0.01607513]],
    ]
    y_c = [
        [[-0.06609819, 0.06838701], [0.0, 0.0], [-0.2894889, 0.07438067], [-0.39655977, 0.05050645]],
        [[0.04934450, 0.07126625], [0.0, 0.0], [-0.28948891, 0.07438067], [-0.34931409, 0.02799958]],
    ]
    actual = np.moveaxis(np.array([forward, backward]), (0, 1, 2), (1, 2, 0))
    np.testing.assert_allclose(np.where(np.isnan(y), y, actual), y, rtol=0, atol=1e-6)
    for half, h, c in zip(state, y_h, y_c, strict=True):
        np.testing.assert_allclose(half.h, h, rtol=0, atol=1e-6)
        np.testing.assert_allclose(half.c, c, rtol=0, atol=1e-6)
