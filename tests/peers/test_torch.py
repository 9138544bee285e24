"""Our LSTMs against torch.nn.LSTM on CPU with the same weights: values, final states and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstmjax import BidirectionalParams, LSTMParams, LSTMState, StackParams, bidirectional, lstm, stack
from lstmjax.bidirectional import BidirectionalState

torch = pytest.importorskip("torch", reason="torch is not installed: python -m pip install -e '.[peers]'")
torch.set_num_threads(1)  # its thread pool and XLA's would fight over the cores
rnn_utils = torch.nn.utils.rnn

# Torch says once that it computes projections without a library that it would else use.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

BATCH, TIME, INPUTS, UNITS, PROJECTION = 3, 5, 3, 4, 2
LENGTHS = [2, 5, 1]  # not sorted

# The options of torch.nn.LSTM, and the module of ours that does the same.
CASES = {
    "lstm": ({}, lstm),
    "no bias, projection": ({"bias": False, "proj_size": PROJECTION}, lstm),
    "bidirectional": ({"bidirectional": True}, bidirectional),
    "stack": ({"num_layers": 2}, stack),
    "everything": ({"num_layers": 2, "bidirectional": True, "proj_size": PROJECTION}, stack),
}
every_case = pytest.mark.parametrize(("options", "module"), CASES.values(), ids=CASES)


def torch_lstm(dtype=torch.float64, seed=0, **options):
    torch.manual_seed(seed)
    return torch.nn.LSTM(INPUTS, UNITS, **options).to(dtype)


def tree(peer, leaf, state=None):
    """Our tree with `leaf(names)` of the weights in it, or with `state(number)`; a number counts layer, then direction.

    This is the whole conversion: w_x = weight_ih.T, w_h = weight_hh.T, bias = bias_ih + bias_hh, w_projection =
    weight_hr.T.
    """
    directions = ("", "_reverse") if peer.bidirectional else ("",)
    layers = []
    for layer in range(peer.num_layers):
        halves = []
        for direction, suffix in enumerate(directions):
            if state is not None:
                halves.append(state(layer * len(directions) + direction))
                continue
            names = {
                "w_x": (f"weight_ih_l{layer}{suffix}",),
                "w_h": (f"weight_hh_l{layer}{suffix}",),
                "bias": (f"bias_ih_l{layer}{suffix}", f"bias_hh_l{layer}{suffix}"),
                "w_projection": (f"weight_hr_l{layer}{suffix}",),
            }
            present = {field: leaf(found) for field, found in names.items() if hasattr(peer, found[0])}
            halves.append(LSTMParams(**{"bias": None, **present}))
        pair = BidirectionalParams if state is None else BidirectionalState
        layers.append(pair(*halves) if peer.bidirectional else halves[0])
    if peer.num_layers == 1:
        return layers[0]
    return StackParams(tuple(layers)) if state is None else tuple(layers)


def params_of(peer):
    return tree(peer, lambda names: jnp.asarray(sum(getattr(peer, name) for name in names).detach().numpy().T))


def gradients_of(peer):
    """Those of one bias: the gradients of both of torch's are equal to it."""
    biases = {name: weight.grad for name, weight in peer.named_parameters() if name.startswith("bias_ih")}
    for name, gradient in biases.items():
        np.testing.assert_allclose(gradient, getattr(peer, name.replace("ih", "hh")).grad, rtol=1e-12, atol=1e-12)
    return tree(peer, lambda names: getattr(peer, names[0]).grad.numpy().T)


def states_of(peer, h, c):
    """Our tree of states from torch's [layers * directions, *batch, features]."""
    h, c = (jnp.asarray(a.detach().numpy()) for a in (h, c))
    return tree(peer, None, lambda number: LSTMState(h=h[number], c=c[number]))


def example(peer, seed=1):
    rng = np.random.default_rng(seed)
    count = peer.num_layers * (2 if peer.bidirectional else 1)
    outputs = peer.proj_size or UNITS
    shapes = [(BATCH, TIME, INPUTS), (count, BATCH, outputs), (count, BATCH, UNITS)]
    dtype = peer.weight_ih_l0.dtype
    return [torch.tensor(rng.normal(size=shape), dtype=dtype, requires_grad=True) for shape in shapes]


def run(peer, xs, h, c, lengths):
    """Torch's outputs [batch, time, features], zero at padding, and its final states, by way of packed sequences."""
    packed = rnn_utils.pack_padded_sequence(xs, lengths, batch_first=True, enforce_sorted=False)
    ys, state = peer(packed, (h, c))
    return rnn_utils.pad_packed_sequence(ys, batch_first=True, total_length=TIME)[0], *state


def assert_close(actual, expected):
    """To 1e-6 in float32 and 1e-12 in float64, of the largest number where that is above 1."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a), np.asarray(e)
        assert (a.dtype, a.shape) == (e.dtype, e.shape)
        tolerance = {"float32": 1e-6, "float64": 1e-12}[a.dtype.name]
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * max(1, np.abs(e).max()))


@every_case
def test_outputs_and_final_states(options, module):
    peer = torch_lstm(torch.float32, batch_first=True, **options)
    xs, h, c = example(peer)
    expected, h_n, c_n = run(peer, xs, h, c, LENGTHS)
    ys, state = module.apply(params_of(peer), xs.detach().numpy(), states_of(peer, h, c), lengths=jnp.array(LENGTHS))
    assert_close((ys, state), (expected.detach().numpy(), states_of(peer, h_n, c_n)))


@every_case
def test_gradients(options, module, x64):
    """Of inputs, weights, biases, projections and initial states, from outputs and final states, packed."""
    peer = torch_lstm(batch_first=True, **options)
    arguments = example(peer)
    outcome = run(peer, *arguments, LENGTHS)
    rng = np.random.default_rng(2)
    weights = [rng.normal(size=out.shape) for out in outcome]
    sum((torch.tensor(w) * out).sum() for w, out in zip(weights, outcome, strict=True)).backward()
    weights_of_states = states_of(peer, *map(torch.tensor, weights[1:]))

    def loss(params, xs, state):
        ys, end = module.apply(params, xs, state, lengths=jnp.array(LENGTHS))
        terms = jax.tree.map(lambda w, out: (w * out).sum(), (weights[0], weights_of_states), (ys, end))
        return sum(jax.tree.leaves(terms))

    xs, h, c = arguments
    actual = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(
        params_of(peer), jnp.asarray(xs.detach().numpy()), states_of(peer, h, c)
    )
    assert_close(actual, (gradients_of(peer), xs.grad.numpy(), states_of(peer, h.grad, c.grad)))


@every_case
def test_number_of_parameters(options, module):
    """Torch's but for one of its two biases."""
    del module
    peer = torch_lstm(**options)
    theirs = sum(w.numel() for name, w in peer.named_parameters() if not name.startswith("bias_hh"))
    assert sum(leaf.size for leaf in jax.tree.leaves(params_of(peer))) == theirs


def test_two_biases_are_one_sum(x64):
    """The split of the two is torch's alone: moving a part from one to the other changes nothing."""
    peer = torch_lstm(batch_first=True)
    xs, _, _ = example(peer)
    before, params = peer(xs)[0], params_of(peer)
    with torch.no_grad():
        part = torch.linspace(-1, 1, 4 * UNITS, dtype=torch.float64)
        peer.bias_ih_l0 += part
        peer.bias_hh_l0 -= part
    assert_close(peer(xs)[0].detach().numpy(), before.detach().numpy())
    assert_close(params_of(peer), params)
    assert_close(lstm.apply(params, xs.detach().numpy())[0], before.detach().numpy())


def test_batch_first(x64):
    """Ours is always [*batch, time, features]; torch's default is time first, its states never have batch first."""
    peer, time_first = torch_lstm(batch_first=True), torch_lstm()
    xs, h, c = example(peer)
    ys, state = lstm.apply(params_of(peer), xs.detach().numpy(), states_of(peer, h, c))
    expected, (h_n, c_n) = time_first(xs.transpose(0, 1), (h, c))
    assert_close((ys, state), (expected.transpose(0, 1).detach().numpy(), states_of(peer, h_n, c_n)))


def test_no_batch_axes(x64):
    peer = torch_lstm(num_layers=2)
    xs, h, c = (a[0] if number == 0 else a[:, 0] for number, a in enumerate(example(peer)))
    expected, (h_n, c_n) = peer(xs, (h, c))
    ys, state = stack.apply(params_of(peer), xs.detach().numpy(), states_of(peer, h, c))
    assert_close((ys, state), (expected.detach().numpy(), states_of(peer, h_n, c_n)))


def test_a_length_of_zero():
    """Torch refuses it; ours are outputs of 0 and the initial state."""
    peer = torch_lstm(torch.float32, batch_first=True)
    xs, h, c = example(peer)
    with pytest.raises(RuntimeError, match="greater than 0"):
        run(peer, xs, h, c, [2, 0, 1])
    state = states_of(peer, h, c)
    ys, end = lstm.apply(params_of(peer), xs.detach().numpy(), state, lengths=jnp.array([2, 0, 1]))
    assert (ys[1] == 0).all()
    assert (end.h[1] == state.h[1]).all()
    assert (end.c[1] == state.c[1]).all()


def test_the_last_output_of_two_directions(x64):
    """Without sequences ours is both final h; torch's ys[:, -1] holds the backward half's first step instead."""
    peer = torch_lstm(batch_first=True, bidirectional=True)
    xs, _, _ = example(peer)
    ys, (h_n, _) = peer(xs)
    final, _ = bidirectional.apply(params_of(peer), xs.detach().numpy(), return_sequences=False)
    assert_close(final, torch.cat([h_n[0], h_n[1]], dim=-1).detach().numpy())
    assert_close(final[:, :UNITS], ys[:, -1, :UNITS].detach().numpy())
    assert np.abs(final[:, UNITS:] - ys[:, -1, UNITS:].detach().numpy()).max() > 1e-2
