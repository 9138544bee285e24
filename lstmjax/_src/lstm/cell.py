"""One step of one sequence: the parameters, the state, and the equations with every part that a cell may have.

    z_t  = N(x_t W_x) + N(h_{t-1} W_h) + b           pre-activations, the gates i, f, g, o side by side
    i, f = sigmoid(z_i + p_i * c_{t-1}), sigmoid(z_f + p_f * c_{t-1})
    c_t  = clip(f * c_{t-1} + i * tanh(z_g))
    o    = sigmoid(z_o + p_o * c_t)
    h_t  = clip((o * tanh(N(c_t))) W_p)

p is there with peepholes (Gers & Schmidhuber, "Recurrent nets that time and count", 2000), W_p with a projection
(Sak, Senior & Beaufays, "Long short-term memory recurrent neural network architectures for large scale acoustic
modeling", 2014), N with layer norm (Ba, Kiros & Hinton, "Layer normalization", 2016), and a coupled cell has no f of
its own but f = 1 - i (Greff et al., "LSTM: a search space odyssey", 2017). What is absent from the parameters drops
out of the equations.

N(z) = scale * (z - mean(z)) / sqrt(variance(z) + norm_epsilon). Where it stands above is "joint" layer norm: once over
the products of all gates, and over c on its way to h. The kinds in `NORMS` differ in where it stands:

    "joint", "joint_cell"           z_t = N(x_t W_x) + N(h_{t-1} W_h) + b
    "per_gate", "per_gate_cell"     z_t = x_t W_x + h_{t-1} W_h, and a gate sees N(z_k + p_k * c) + b_k, g N(z_g) + b_g
    "joint"                         h_t = o * tanh(N(c_t) + c_bias)
    "per_gate"                      h_t = o * tanh(c_t)
    "joint_cell", "per_gate_cell"   c_t = N(clip(f * c_{t-1} + i * tanh(z_g))) + c_bias, and h_t = o * tanh(c_t)

The step is cut where differentiation wants it: products with matrices (`projected`, `recurred`, `output`), and
between them what works unit by unit (`pointwise`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lstmjax._src import pytrees, validation
from lstmjax._src.dropout_masks import Dropout, Masks
from lstmjax._src.lstm.options import ACTIVATIONS, LSTMOptions

# The kinds of layer norm, and which scales and shifts each has.
NORMS = {
    "joint": ("x_scale", "h_scale", "c_scale", "c_bias"),
    "joint_cell": ("x_scale", "h_scale", "c_scale", "c_bias"),
    "per_gate": ("z_scale",),
    "per_gate_cell": ("c_scale", "c_bias", "z_scale"),
}


@pytrees.container
class LSTMState:
    """What an LSTM carries from one step to the next.

    Args:
        h: hidden state [*batch, units], which is also the output; [*batch, projection] where it is projected.
        c: cell state [*batch, units], in float32 where h is shorter than that.
    """

    h: Any
    c: Any


@pytrees.container
class LSTMNorm:
    """The scales and the shift of layer norm, of which each kind has some; the gates are shifted by the LSTM's bias.

    Args:
        x_scale: of x_t W_x [4*units], or None per gate.
        h_scale: of h_{t-1} W_h [4*units], or None per gate.
        c_scale: of c_t [units], or None where that is not normalised.
        c_bias: likewise, what is added to it.
        z_scale: of the gates' pre-activations [4*units], each normalised by itself, or None where products are.
        kind: a name in `NORMS`, which has the arrays that it needs; not an array, and so the same for a tree and its
            gradient.
    """

    x_scale: Any = None
    h_scale: Any = None
    c_scale: Any = None
    c_bias: Any = None
    z_scale: Any = None
    kind: str = dataclasses.field(default="joint", metadata={"static": True})

    @property
    def per_gate(self) -> bool:
        """Whether each gate is normalised by itself, its peephole included, in place of the products of all."""
        return self.kind.startswith("per_gate")

    @property
    def keeps(self) -> bool:
        """Whether the normalised c is the state."""
        return self.kind.endswith("_cell")


@pytrees.container
class LSTMParams:
    """The weights of one LSTM, as `init` makes them; columns in the order of the gates i, f, g, o.

    A coupled cell has no columns and no peephole for f: its gates are i, g, o, and 3 stands for 4 everywhere.

    Args:
        w_x: input weights [inputs, 4*units].
        w_h: recurrent weights [units, 4*units], or [projection, 4*units].
        bias: [4*units], or None.
        w_peephole: weights from c to the gates i, f, o [3*units], or None; coupled, to i, o [2*units].
        w_projection: [units, projection], or None.
        norm: LSTMNorm, or None.
        initial: learned LSTMState without batch axes, or None for zeros.
        bias_h: a second bias, added to the first one and learned as it is, or None; so that LSTMs of PyTorch, cuDNN
            and ONNX, which have two, learn and leave as they came.
        offset: what is added to the biases and has no gradient, or None: in TensorFlow 1 and Haiku the 1 of the forget
            gate. Weight decay would reach it: mask it, `dataclasses.replace(mask, offset=False)`.
    """

    w_x: Any
    w_h: Any
    bias: Any
    w_peephole: Any = None
    w_projection: Any = None
    norm: Any = None
    initial: Any = None
    bias_h: Any = None
    offset: Any = None

    @property
    def inputs(self) -> int:
        """Length of one input vector x_t."""
        return self.w_x.shape[0]

    @property
    def units(self) -> int:
        """Length of c, and of h where that is not projected."""
        return self.w_h.shape[0] if self.w_projection is None else self.w_projection.shape[0]

    @property
    def outputs(self) -> int:
        """Length of h, which is the output."""
        return self.w_h.shape[0]

    @property
    def gates(self) -> int:
        """Number of gates with weights: 4, or 3 where input and forget gate are coupled."""
        return self.w_x.shape[1] // self.units


def check_matrices(name: str, params: Any) -> None:
    """Raise unless the matrices are there, which tell how many inputs, units and outputs there are."""
    validation.instance(name, params, LSTMParams, "lstm.init")
    validation.weights(f"{name}.w_x", params.w_x, "inputs", "4*units")
    validation.weights(f"{name}.w_h", params.w_h, "units", "4*units")
    if params.w_projection is not None:
        validation.weights(f"{name}.w_projection", params.w_projection, "units", "projection")


def merged(params: LSTMParams) -> LSTMParams:
    """The same LSTM with one bias, the sum of all that it has."""
    offset = None if params.offset is None else jax.lax.stop_gradient(params.offset)
    parts = [part for part in (params.bias, params.bias_h, offset) if part is not None]
    return dataclasses.replace(params, bias=sum(parts[1:], parts[0]) if parts else None, bias_h=None, offset=None)


def narrowed(params: LSTMParams, like: Array) -> LSTMParams:
    """The same parameters in the dtype of another array, in which products are computed."""
    return jax.tree.map(lambda leaf: leaf.astype(like.dtype), params)


def step(
    params: LSTMParams,
    x: Float[Array, " inputs"],
    state: LSTMState,
    options: LSTMOptions,
    dropout: Dropout,
    masks: Masks,
) -> LSTMState:
    """Compute one step of one sequence, from parameters and x in one dtype; sums and c are as wide as state.c."""
    m, c = pointwise(params, preactivations(params, x, state, options, masks), state.c, options, masks)
    h = clipped(output_product(params.w_projection, m.astype(x.dtype), c.dtype), options.projection_clip)
    return zoned_out(LSTMState(h=h.astype(x.dtype), c=c), state, dropout, masks)


def preactivations(
    params: LSTMParams, x: Float[Array, " inputs"], state: LSTMState, options: LSTMOptions, masks: Masks
) -> Float[Array, " gates"]:
    """N(x W_x) + N(h W_h) + b, without peepholes."""
    z = projected(params, input_product(params.w_x, x, state.c.dtype), options)
    return z + recurred(params, recurrent_product(params.w_h, state, masks, options.units_axis), options)


def projected(
    params: LSTMParams, z: Float[Array, "*batch gates"], options: LSTMOptions
) -> Float[Array, "*batch gates"]:
    """N(x W_x) + b, given the product: what needs no loop; per gate that is the product."""
    if params.norm is not None and params.norm.per_gate:
        return z
    z = z if params.norm is None else normalised(z, params.norm.x_scale, options)
    return z if params.bias is None else z + _along(params.bias, z)


def recurred(params: LSTMParams, z: Float[Array, "*batch gates"], options: LSTMOptions) -> Float[Array, "*batch gates"]:
    """N(h W_h), given the product, where products are normalised."""
    return normalised(z, params.norm.h_scale, options) if norms_products(params) else z


def norms_products(params: LSTMParams) -> bool:
    """Whether x W_x and h W_h are normalised each by itself."""
    return params.norm is not None and not params.norm.per_gate


def pointwise(
    params: LSTMParams,
    z: Float[Array, " gates"],
    c: Float[Array, " units"],
    options: LSTMOptions,
    masks: Masks,
) -> tuple[Float[Array, " units"], Float[Array, " units"]]:
    """From pre-activations and the c before to o * tanh(c) and c: what happens unit by unit."""
    *_, o, c = gates(params, z, c, options, masks)
    shown = _normalised_cell(params.norm, c, options) if norms_products(params) and not params.norm.keeps else c
    return o * ACTIVATIONS[options.output_activation or options.activation](shown), c


def gates(
    params: LSTMParams,
    z: Float[Array, " gates"],
    c: Float[Array, " units"],
    options: LSTMOptions,
    masks: Masks,
) -> tuple[Float[Array, " units"], ...]:
    """From pre-activations and the c before to i, f, g, o and the c after."""
    act, recurrent_activation = ACTIVATIONS[options.activation], ACTIVATIONS[options.recurrent_activation]
    clip, coupled = options.preactivation_clip, z.size == 3 * c.size
    norm: Any = params.norm
    per_gate = bool(norm and norm.per_gate)
    count = 3 if coupled else 4
    parts = jnp.split(z, count)
    scales = jnp.split(norm.z_scale, count) if per_gate else None
    shifts = jnp.split(params.bias, count) if per_gate and params.bias is not None else None
    p_i, *p_f, p_o = _peepholes(params, coupled)

    def seen(k, peephole=None, c=None):
        """What the activation of gate k sees."""
        inside = parts[k] if peephole is None else parts[k] + peephole.astype(z.dtype) * c
        inside = inside if scales is None else normalised(inside, scales[k], options)
        inside = inside if shifts is None else inside + _along(shifts[k], inside)
        return clipped(inside, clip)

    whole = params.w_peephole is None and not per_gate  # what the gates see is z
    if whole and (options.activation, options.recurrent_activation) == ("tanh", "sigmoid"):
        i, *f, g, o = standard_activations(clipped(z, clip), c.size)
    else:
        i, *f = (recurrent_activation(seen(k, peephole, c)) for k, peephole in enumerate((p_i, *p_f)))
        g, o = act(seen(-2)), None
    f = _complement(seen(0, p_i, c), options.recurrent_activation) if coupled else f[0]
    if masks.candidate is not None:
        g = g * masks.candidate.astype(g.dtype)
    c = clipped(f * c + i * g, options.cell_clip)
    if norm is not None and norm.keeps:
        c = _normalised_cell(norm, c, options)
    return i, f, g, recurrent_activation(seen(-1, p_o, c)) if o is None else o, c


def standard_activations(z: Float[Array, " gates"], units: int) -> tuple[Float[Array, " units"], ...]:
    """Activate the gates i, f, g, o (coupled: i, g, o): sigmoid(z), and tanh(z) for g.

    One sigmoid serves all, a pass over z that compilers vectorise as they do not vectorise it for a part of z. It is as
    accurate, relative to its value, for a closed gate as for an open one, which (1 + tanh(z / 2)) / 2 is not.
    """
    # No NumPy array, as `checkify` under a gradient loses its error where a custom_jvp function holds a constant.
    sizes, factors = (z.size - 2 * units, units, units), (1, 2, 1)
    twice_g = jnp.concatenate([jnp.full(size, factor, z.dtype) for size, factor in zip(sizes, factors, strict=True)])
    *gates, g, o = jnp.split(jax.nn.sigmoid(z * twice_g), z.size // units)
    g = 2 * g - 1  # tanh(z), whose derivative so comes from that of the sigmoid; of small values too little is left
    return *gates, g + jax.lax.stop_gradient(jnp.tanh(z[-2 * units : -units]) - g), o


def zoned_out(after: LSTMState, before: LSTMState, dropout: Dropout, masks: Masks) -> LSTMState:
    """Let units keep their h and c: at random in training, in expectation otherwise.

    Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", 2017.
    """
    return LSTMState(
        h=_kept(after.h, before.h, dropout.zoneout_h, masks.zoneout_h),
        c=_kept(after.c, before.c, dropout.zoneout_c, masks.zoneout_c),
    )


def input_product(w_x: Float[Array, "inputs gates"], xs: Float[Array, "*batch inputs"], dtype: Any) -> Array:
    """x W_x, accumulated in `dtype`."""
    return jnp.matmul(xs, w_x, preferred_element_type=dtype)


def recurrent_product(
    w_h: Float[Array, "outputs gates"], state: LSTMState, masks: Masks, units_axis: str | None = None
) -> Array:
    """h W_h, accumulated as widely as c is kept; each gate has a mask of its own where those have an axis for it."""
    h = state.h if units_axis is None else jax.lax.all_gather(state.h, units_axis, axis=state.h.ndim - 1, tiled=True)
    if masks.recurrent is None:
        return jnp.matmul(h, w_h, preferred_element_type=state.c.dtype)
    mask = masks.recurrent.astype(h.dtype)
    if mask.ndim == h.ndim:
        return jnp.matmul(h * mask, w_h, preferred_element_type=state.c.dtype)
    gates = mask.shape[-2]
    h = jnp.broadcast_to(jnp.expand_dims(h, -2), mask.shape) * mask
    z = jnp.einsum("...gh,hgu->...gu", h, w_h.reshape(w_h.shape[0], gates, -1), preferred_element_type=state.c.dtype)
    return z.reshape(*z.shape[:-2], -1)


def output_product(w_projection: Array | None, m: Float[Array, "*batch units"], dtype: Any) -> Array:
    """M W_p, or m where there is no projection."""
    return m if w_projection is None else jnp.matmul(m, w_projection, preferred_element_type=dtype)


def normalised(
    z: Float[Array, "*batch features"], scale: Float[Array, " features"], options: LSTMOptions
) -> Float[Array, "*batch features"]:
    """Subtract the mean, divide by the standard deviation, both over the last axis, and scale."""
    mean = jnp.mean(z, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(z - mean), axis=-1, keepdims=True)
    return (z - mean) * jax.lax.rsqrt(variance + options.norm_epsilon) * _along(scale, z)


def clipped(x: Array, bound: float | None) -> Array:
    """X within [-bound, bound]."""
    return x if bound is None else jnp.clip(x, -bound, bound)


def _normalised_cell(norm: LSTMNorm, c: Float[Array, " units"], options: LSTMOptions) -> Float[Array, " units"]:
    return normalised(c, norm.c_scale, options) + norm.c_bias.astype(c.dtype)


def _kept(new: Array, old: Array, rate: float, mask: Bool[Array, " units"] | None) -> Array:
    if rate in (0, 1):
        return old if rate else new
    return rate * old + (1 - rate) * new if mask is None else jnp.where(mask, old, new)


def _complement(z: Array, activation: str) -> Array:
    """1 - activation(z); of a sigmoid without that difference, which is 0 for a gate that is merely small."""
    return jax.nn.sigmoid(-z) if activation == "sigmoid" else 1 - ACTIVATIONS[activation](z)


def _peepholes(params: LSTMParams, coupled: bool) -> list[Any]:
    count = 2 if coupled else 3
    return [None] * count if params.w_peephole is None else jnp.split(params.w_peephole, count)


def _along(vector: Array, like: Array) -> Array:
    return jnp.broadcast_to(vector.astype(like.dtype), like.shape)
