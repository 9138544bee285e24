"""Every variant of the LSTM: the equations of one step with all that a cell may have beside the standard.

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

The step is cut where differentiation needs it: products with matrices (`input_preactivations`,
`recurrent_preactivations`, `project_output`), and between them elementwise operations (`pointwise`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lstmjax._src.dropout_masks import Dropout, SequenceMasks, ZoneoutMasks
from lstmjax._src.lstm import cell
from lstmjax._src.lstm.options import ACTIVATIONS, LSTMOptions
from lstmjax._src.lstm.params import LSTMNorm, LSTMParams, LSTMState


def departures(params: LSTMParams, options: LSTMOptions, dropout: Dropout, masks: SequenceMasks) -> list[str]:
    """List what makes this cell differ from the standard one; biases do not."""
    parts = {
        "projection": params.w_projection is not None,
        "coupled gates": params.gates == 3,
        "divided units": options.units_axis is not None,
        "recurrent dropout": masks.recurrent is not None,
        "zoneout": bool(dropout.zoneout_h or dropout.zoneout_c),
    }
    return pointwise_departures(params, options, masks) + [name for name, there in parts.items() if there]


def pointwise_departures(params: LSTMParams, options: LSTMOptions, masks: SequenceMasks) -> list[str]:
    """List what differs from the standard between the products with matrices, but for coupled gates."""
    activations = options.activation, options.recurrent_activation, options.output_activation or options.activation
    parts = {
        "peepholes": params.w_peephole is not None,
        "layer norm": params.norm is not None,
        "clips": options.cell_clip is not None or options.preactivation_clip is not None,
        "other activations": activations != ("tanh", "sigmoid", "tanh"),
        "recurrent dropout": masks.candidate is not None,
    }
    return [name for name, there in parts.items() if there]


def step(
    params: LSTMParams,
    x: Float[Array, " inputs"],
    state: LSTMState,
    options: LSTMOptions,
    dropout: Dropout,
    masks: SequenceMasks = SequenceMasks(),
    zoneout: ZoneoutMasks = ZoneoutMasks(),
) -> LSTMState:
    """Compute one step of one sequence, params and x in one dtype; sums and c are as wide as `state.c`."""
    if not departures(params, options, dropout, masks):
        return cell.step(params, x, state)
    m, c = pointwise(params, preactivations(params, x, state, options, masks), state.c, options, masks)
    h = clip(project_output(params.w_projection, m.astype(x.dtype), c.dtype), options.projection_clip)
    return apply_zoneout(LSTMState(h=h.astype(x.dtype), c=c), state, dropout, zoneout)


def preactivations(
    params: LSTMParams, x: Float[Array, " inputs"], state: LSTMState, options: LSTMOptions, masks: SequenceMasks
) -> Float[Array, " gates"]:
    """N(x W_x) + b + N(h W_h), without peepholes."""
    z = input_preactivations(params, input_product(params.w_x, x, state.c.dtype), options)
    product = recurrent_product(params.w_h, state, masks, options.units_axis)
    return z + recurrent_preactivations(params, product, options)


def input_preactivations(
    params: LSTMParams, z: Float[Array, "*batch gates"], options: LSTMOptions
) -> Float[Array, "*batch gates"]:
    """N(x W_x) + b, given x W_x; with layer norm per gate x W_x itself, since its bias comes after the norm."""
    if params.norm is not None and params.norm.per_gate:
        return z
    z = z if params.norm is None else normalize(z, params.norm.x_scale, options)
    return z if params.bias is None else z + _broadcast(params.bias, z)


def recurrent_preactivations(
    params: LSTMParams, z: Float[Array, "*batch gates"], options: LSTMOptions
) -> Float[Array, "*batch gates"]:
    """N(h W_h), given h W_h."""
    return normalize(z, params.norm.h_scale, options) if normalizes_products(params) else z


def normalizes_products(params: LSTMParams) -> bool:
    """True if x W_x and h W_h are normalised, each by itself."""
    return params.norm is not None and not params.norm.per_gate


def pointwise(
    params: LSTMParams,
    z: Float[Array, " gates"],
    c: Float[Array, " units"],
    options: LSTMOptions,
    masks: SequenceMasks,
) -> tuple[Float[Array, " units"], Float[Array, " units"]]:
    """Compute o * tanh(c) and c from the pre-activations and the previous c."""
    if z.size == 4 * c.size and not pointwise_departures(params, options, masks):
        return cell.standard_update(z, c)
    *_, o, c = gates(params, z, c, options, masks)
    normalizes = normalizes_products(params) and not params.norm.keeps
    shown = _normalize_cell(params.norm, c, options) if normalizes else c
    return o * ACTIVATIONS[options.output_activation or options.activation](shown), c


def gates(
    params: LSTMParams,
    z: Float[Array, " gates"],
    c: Float[Array, " units"],
    options: LSTMOptions,
    masks: SequenceMasks,
) -> tuple[Float[Array, " units"], ...]:
    """Compute i, f, g, o and the new c from the pre-activations and the previous c."""
    activation, recurrent_activation = ACTIVATIONS[options.activation], ACTIVATIONS[options.recurrent_activation]
    norm: Any = params.norm
    coupled, per_gate = z.size == 3 * c.size, bool(norm and norm.per_gate)
    count = 3 if coupled else 4
    parts = jnp.split(z, count)
    scales = jnp.split(norm.z_scale, count) if per_gate else [None] * count
    shifts = jnp.split(params.bias, count) if per_gate and params.bias is not None else [None] * count
    w_i, *w_f, w_o = [None] * (count - 1) if params.w_peephole is None else jnp.split(params.w_peephole, count - 1)

    def gate_input(k, w_peephole: Any = None, c: Any = None):
        """The argument of the activation of gate k."""
        z = parts[k] if w_peephole is None else parts[k] + w_peephole.astype(c.dtype) * c
        z = z if scales[k] is None else normalize(z, scales[k], options)
        z = z if shifts[k] is None else z + _broadcast(shifts[k], z)
        return clip(z, options.preactivation_clip)

    # All at once where a gate sees nothing but its part of z: a peephole of o waits for the new c.
    at_once = params.w_peephole is None and not per_gate
    if at_once and (options.activation, options.recurrent_activation) == ("tanh", "sigmoid"):
        i, *f, g, o = cell.gate_activations(clip(z, options.preactivation_clip), c.size)
    else:
        i, *f = (recurrent_activation(gate_input(k, w, c)) for k, w in enumerate((w_i, *w_f)))
        g, o = activation(gate_input(-2)), None
    f = _complement(gate_input(0, w_i, c), options.recurrent_activation) if coupled else f[0]
    if masks.candidate is not None:
        g = g * masks.candidate.astype(g.dtype)
    c = clip(f * c + i * g, options.cell_clip)
    if norm is not None and norm.keeps:
        c = _normalize_cell(norm, c, options)
    return i, f, g, recurrent_activation(gate_input(-1, w_o, c)) if o is None else o, c


def apply_zoneout(after: LSTMState, before: LSTMState, dropout: Dropout, masks: ZoneoutMasks) -> LSTMState:
    """Let units keep their h and c: at random in training, in expectation otherwise.

    Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", 2017.
    """
    return LSTMState(
        h=_zoneout(after.h, before.h, dropout.zoneout_h, masks.h),
        c=_zoneout(after.c, before.c, dropout.zoneout_c, masks.c),
    )


def input_product(w_x: Float[Array, "inputs gates"], xs: Float[Array, "*batch inputs"], dtype: Any) -> Array:
    """x W_x, accumulated in `dtype`."""
    return jnp.matmul(xs, w_x, preferred_element_type=dtype)


def recurrent_product(
    w_h: Float[Array, "outputs gates"], state: LSTMState, masks: SequenceMasks, units_axis: str | None = None
) -> Array:
    """h W_h, accumulated in the dtype of c; each gate has its own mask of h where masks have an axis of gates."""
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


def project_output(w_projection: Array | None, m: Float[Array, "*batch units"], dtype: Any) -> Array:
    """M W_p, accumulated in `dtype`; m itself without a projection."""
    return m if w_projection is None else jnp.matmul(m, w_projection, preferred_element_type=dtype)


def normalize(
    z: Float[Array, "*batch features"], scale: Float[Array, " features"], options: LSTMOptions
) -> Float[Array, "*batch features"]:
    """Subtract the mean, divide by the standard deviation, both over the last axis, and scale."""
    mean = jnp.mean(z, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(z - mean), axis=-1, keepdims=True)
    return (z - mean) * jax.lax.rsqrt(variance + options.norm_epsilon) * _broadcast(scale, z)


def clip(x: Array, bound: float | None) -> Array:
    """Clip to [-bound, bound], if there is a bound."""
    return x if bound is None else jnp.clip(x, -bound, bound)


def sum_biases(params: LSTMParams) -> LSTMParams:
    """Return the same LSTM with one bias, the sum of all that it has."""
    offset = None if params.offset is None else jax.lax.stop_gradient(params.offset)
    parts = [part for part in (params.bias, params.bias_h, offset) if part is not None]
    return dataclasses.replace(params, bias=sum(parts[1:], parts[0]) if parts else None, bias_h=None, offset=None)


def cast_params(params: LSTMParams, like: Array) -> LSTMParams:
    """Cast to the compute dtype, which is that of another array."""
    return jax.tree.map(lambda leaf: leaf.astype(like.dtype), params)


def _normalize_cell(norm: LSTMNorm, c: Float[Array, " units"], options: LSTMOptions) -> Float[Array, " units"]:
    return normalize(c, norm.c_scale, options) + norm.c_bias.astype(c.dtype)


def _zoneout(new: Array, old: Array, rate: float, mask: Bool[Array, " units"] | None) -> Array:
    if rate in (0, 1):
        return old if rate else new
    return rate * old + (1 - rate) * new if mask is None else jnp.where(mask, old, new)


def _complement(z: Array, activation: str) -> Array:
    """1 - activation(z); for sigmoid by sigmoid(-z), since the difference is 0 for gates that are merely small."""
    return jax.nn.sigmoid(-z) if activation == "sigmoid" else 1 - ACTIVATIONS[activation](z)


def _broadcast(vector: Array, like: Array) -> Array:
    """Cast and broadcast a vector, for which rank promotion would be an error."""
    return jnp.broadcast_to(vector.astype(like.dtype), like.shape)
