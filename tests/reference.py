"""The LSTM as a float64 NumPy loop over sequences and steps, transcribed from the equations.

It shares nothing with the package. Every operation is analytic away from clips and kinks, so that
`gradients` differentiates by complex steps, exact to rounding: df/dx = Im f(x + i e) / e
(Squire & Trapp, 1998).
"""

import itertools

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def relu(x):
    return np.where(x.real > 0, x, 0)


def hard_sigmoid(x):
    return clip(x / 6 + 0.5, 0, 1)


def keras2_hard_sigmoid(x):
    return clip(0.2 * x + 0.5, 0, 1)


def clip(x, low, high):
    return np.where(x.real < low, low, np.where(x.real > high, high, x))


ACTIVATIONS = {
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "relu": relu,
    "hard_sigmoid": hard_sigmoid,
    "keras2_hard_sigmoid": keras2_hard_sigmoid,
}


def step(
    w_x,
    w_h,
    bias,
    x,
    h,
    c,
    *,
    activation="tanh",
    recurrent_activation="sigmoid",
    cell_clip=None,
    preactivation_clip=None,
):
    act, gate = ACTIVATIONS[activation], ACTIVATIONS[recurrent_activation]
    z = x @ w_x + h @ w_h + bias
    if preactivation_clip is not None:
        z = clip(z, -preactivation_clip, preactivation_clip)
    i, f, g, o = np.split(z, 4)
    c = gate(f) * c + gate(i) * act(g)
    if cell_clip is not None:
        c = clip(c, -cell_clip, cell_clip)
    return gate(o) * act(c), c


def apply(w_x, w_h, bias, xs, h0=None, c0=None, *, lengths=None, resets=None, reverse=False, **options):
    """Outputs [*batch, time, units] and the final h and c [*batch, units], one sequence after another."""
    *batch, time, _ = xs.shape
    units = w_h.shape[0]
    dtype = np.result_type(np.float64, *(a.dtype for a in (w_x, w_h, bias, xs, h0, c0) if a is not None))
    ys = np.zeros((*batch, time, units), dtype)
    h_end, c_end = np.zeros((2, *batch, units), dtype)
    for b in itertools.product(*map(range, batch)):
        h = np.zeros(units) if h0 is None else h0[b]
        c = np.zeros(units) if c0 is None else c0[b]
        steps = range(time if lengths is None else int(np.asarray(lengths)[b]))
        for t in reversed(steps) if reverse else steps:
            if resets is not None and np.asarray(resets)[(*b, t)]:
                h, c = np.zeros(units), np.zeros(units)
            h, c = step(w_x, w_h, bias, xs[(*b, t)], h, c, **options)
            ys[(*b, t)] = h
        h_end[b], c_end[b] = h, c
    return ys, h_end, c_end


def gradients(loss, arrays):
    """The gradient of a real `loss(*arrays)` in every array, one complex step for each number."""
    epsilon = 1e-30
    result = []
    for index, array in enumerate(arrays):
        gradient = np.zeros(array.shape)
        for place in np.ndindex(array.shape):
            moved = [a.astype(complex) if i == index else a for i, a in enumerate(arrays)]
            moved[index][place] += 1j * epsilon
            gradient[place] = loss(*moved).imag / epsilon
        result.append(gradient)
    return result
