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
    return np.where(x.real <= 0, 0, x)  # NaN stays


def hard_sigmoid(x):
    return clip(x / 6 + 0.5, 0, 1)


def keras2_hard_sigmoid(x):
    return clip(0.2 * x + 0.5, 0, 1)


def clip(x, low, high):
    return np.where(x.real < low, low, np.where(x.real > high, high, x))


def elu(x):
    return np.where(x.real > 0, x, np.exp(x) - 1)


def softsign(x):
    return x / (1 + np.where(x.real > 0, x, -x))


ACTIVATIONS = {
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "relu": relu,
    "linear": lambda x: x,
    "elu": elu,
    "softplus": lambda x: np.log(1 + np.exp(x)),
    "softsign": softsign,
    "silu": lambda x: x * sigmoid(x),
    "hard_sigmoid": hard_sigmoid,
    "keras2_hard_sigmoid": keras2_hard_sigmoid,
}


def kept(rate, old, new):
    return rate * old + (1 - rate) * new if np.any(rate) else new  # 0 * inf would be NaN


def normalised(z, scale, epsilon):
    centred = z - z.mean()
    return centred / np.sqrt((centred * centred).mean() + epsilon) * scale


def step(
    w_x,
    w_h,
    bias,
    x,
    h,
    c,
    *,
    w_peephole=None,
    w_projection=None,
    norm=None,
    norm_epsilon=1e-5,
    activation="tanh",
    recurrent_activation="sigmoid",
    output_activation=None,
    cell_clip=None,
    preactivation_clip=None,
    projection_clip=None,
    zoneout_h=0.0,
    zoneout_c=0.0,
    recurrent=None,
    candidate=None,
):
    """One step; zoneout_h and zoneout_c are rates, of which the expectation is taken, or what was drawn (0 or 1)."""
    act, gate = ACTIVATIONS[activation], ACTIVATIONS[recurrent_activation]
    units = c.shape[0]
    names = "ifgo" if w_x.shape[1] == 4 * units else "igo"
    block = {name: slice(k * units, (k + 1) * units) for k, name in enumerate(names)}
    from_x, from_h = x @ w_x, h @ w_h
    if recurrent is not None and recurrent.ndim == 1:
        from_h = (h * recurrent) @ w_h
    elif recurrent is not None:
        from_h = np.concatenate([(h * recurrent[k]) @ w_h[:, block[name]] for k, name in enumerate(names)])
    kind = None if norm is None else norm.kind
    per_gate, bias = kind in ("per_gate", "per_gate_cell"), np.zeros(w_x.shape[1]) if bias is None else bias
    if kind in ("joint", "joint_cell"):
        from_x = normalised(from_x, norm.x_scale, norm_epsilon)
        from_h = normalised(from_h, norm.h_scale, norm_epsilon)
    z = from_x + from_h if per_gate else from_x + from_h + bias

    def seen(name, c=None):
        inside = z[block[name]]
        if w_peephole is not None and c is not None:
            k = names.replace("g", "").index(name)
            inside = inside + w_peephole[k * units : (k + 1) * units] * c
        if per_gate:
            inside = normalised(inside, norm.z_scale[block[name]], norm_epsilon) + bias[block[name]]
        return inside if preactivation_clip is None else clip(inside, -preactivation_clip, preactivation_clip)

    i = gate(seen("i", c))
    f = gate(seen("f", c)) if "f" in names else 1 - i
    g = act(seen("g"))
    if candidate is not None:
        g = g * candidate
    new_c = f * c + i * g
    if cell_clip is not None:
        new_c = clip(new_c, -cell_clip, cell_clip)
    if kind in ("joint_cell", "per_gate_cell"):
        new_c = normalised(new_c, norm.c_scale, norm_epsilon) + norm.c_bias
    o = gate(seen("o", new_c))
    shown = normalised(new_c, norm.c_scale, norm_epsilon) + norm.c_bias if kind == "joint" else new_c
    new_h = o * ACTIVATIONS[output_activation or activation](shown)
    if w_projection is not None:
        new_h = new_h @ w_projection
    if projection_clip is not None:
        new_h = clip(new_h, -projection_clip, projection_clip)
    return kept(zoneout_h, h, new_h), kept(zoneout_c, c, new_c)


def apply(
    w_x,
    w_h,
    bias,
    xs,
    h0=None,
    c0=None,
    *,
    lengths=None,
    resets=None,
    reverse=False,
    initial=None,
    masks=None,
    **options,
):
    """Outputs [*batch, time, outputs] and the final h and c, one sequence after another.

    `masks` are [*batch, ...] ("inputs", "recurrent", "candidate", "outputs"), [time, *batch, ...] ("zoneout_h",
    "zoneout_c"), and that of w_h ("recurrent_weights").
    """
    masks = {name: mask for name, mask in (masks or {}).items() if mask is not None}
    *batch, time, _ = xs.shape
    w_projection = options.get("w_projection")
    outputs, units = w_h.shape[0], w_h.shape[0] if w_projection is None else w_projection.shape[0]
    start = (np.zeros(outputs), np.zeros(units)) if initial is None else (initial.h, initial.c)
    given = (w_x, w_h, bias, xs, h0, c0, *start, w_projection, options.get("w_peephole"))
    norm = options.get("norm")
    given += () if norm is None else (norm.x_scale, norm.h_scale, norm.c_scale, norm.c_bias, norm.z_scale)
    dtype = np.result_type(np.float64, *(a.dtype for a in given if a is not None))
    ys = np.zeros((*batch, time, outputs), dtype)
    h_end, c_end = np.zeros((*batch, outputs), dtype), np.zeros((*batch, units), dtype)
    w_h = w_h * masks.get("recurrent_weights", 1)
    for b in itertools.product(*map(range, batch)):
        h = start[0] if h0 is None else h0[b]
        c = start[1] if c0 is None else c0[b]
        steps = range(time if lengths is None else int(np.asarray(lengths)[b]))
        of_sequence = {name: np.asarray(masks[name])[b] for name in ("recurrent", "candidate") if name in masks}
        for t in reversed(steps) if reverse else steps:
            if resets is not None and np.asarray(resets)[(*b, t)]:
                h, c = start
            x = xs[(*b, t)] * (masks["inputs"][b] if "inputs" in masks else 1)
            kept = {name: np.asarray(masks[name])[(t, *b)] for name in ("zoneout_h", "zoneout_c") if name in masks}
            kept = {name: mask.astype(float) for name, mask in kept.items()}
            h, c = step(w_x, w_h, bias, x, h, c, **{**options, **of_sequence, **kept})
            ys[(*b, t)] = h * (masks["outputs"][b] if "outputs" in masks else 1)
        h_end[b], c_end[b] = h, c
    return ys, h_end, c_end


def lstm(params, xs, state, *, reverse=False, **arguments):
    """`apply` with a tree of parameters and states, whichever arrays they hold."""
    optional = {name: getattr(params, name) for name in ("w_peephole", "w_projection", "norm", "initial")}
    h, c = (None, None) if state is None else (state.h, state.c)
    biases = [part for part in (params.bias, params.bias_h, params.offset) if part is not None]
    out = apply(
        params.w_x, params.w_h, sum(biases) if biases else None, xs, h, c, reverse=reverse, **optional, **arguments
    )
    return out[0], out[1:]


MERGES = {
    "concat": lambda f, b: np.concatenate([f, b], axis=-1),
    "sum": np.add,
    "mul": np.multiply,
    "ave": lambda f, b: 0.5 * f + 0.5 * b,
    None: lambda f, b: (f, b),
}


def bidirectional(params, xs, state, *, merge="concat", reverse=False, **arguments):
    states = (None, None) if state is None else (state.forward, state.backward)
    forward, forward_end = lstm(params.forward, xs, states[0], reverse=reverse, **arguments)
    backward, backward_end = lstm(params.backward, xs, states[1], reverse=not reverse, **arguments)
    return MERGES[merge](forward, backward), (forward_end, backward_end)


def stack(params, xs, state, *, residual_from=None, merge="concat", **arguments):
    ends = []
    for number, layer in enumerate(params.layers):
        before = None if state is None else state[number]
        if hasattr(layer, "forward"):
            ys, end = bidirectional(layer, xs, before, merge=merge, **arguments)
        else:
            ys, end = lstm(layer, xs, before, **arguments)
        if residual_from is not None and number >= residual_from:
            inside = np.arange(xs.shape[-2]) < np.asarray(arguments.get("lengths", xs.shape[-2]))[..., None]
            ys = ys + np.where(inside[..., None], xs, 0)
        xs = ys
        ends.append(end)
    return xs, ends


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


def slopes(loss, arrays, directions):
    """The derivative of a real `loss(*arrays)` as each array alone moves along its direction, by one complex step."""
    epsilon = 1e-30
    return [
        loss(*(a + 1j * epsilon * d if i == index else a for i, a in enumerate(arrays))).imag / epsilon
        for index, d in enumerate(directions)
    ]
