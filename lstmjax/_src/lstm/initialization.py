"""The parameters of an LSTM before training, and its state before the first step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lstmjax._src import keywords, validation
from lstmjax._src.lstm.options import LSTMOptions
from lstmjax._src.lstm.params import NORMS, LSTMNorm, LSTMParams, LSTMState, check_matrices


@keywords.explained("lstm.init")
def init(
    key: Array,
    inputs: int,
    units: int,
    *,
    bias: bool = True,
    forget_bias: float | int | None = None,
    chrono: int | None = None,
    peepholes: bool = False,
    projection: int | None = None,
    layer_norm: bool | str | None = False,
    coupled: bool = False,
    learned_state: bool = False,
    w_x_init: Callable[..., Array] = initializers.glorot_uniform(),
    w_h_init: Callable[..., Array] = initializers.orthogonal(),
    bias_init: Callable[..., Array] = initializers.zeros,
    w_peephole_init: Callable[..., Array] = initializers.normal(0.1),
    w_projection_init: Callable[..., Array] = initializers.glorot_uniform(),
    dtype: DTypeLike = jnp.float32,
) -> LSTMParams:
    """Make the parameters of an LSTM: Glorot input weights, orthogonal recurrent weights, forget bias 1.

    Each gate's block is drawn by itself, so that every gate's own recurrent matrix is orthogonal. All options
    combine; `lstmjax/_src/lstm/variants.py` has the equations.

    Args:
        key: a JAX random key.
        inputs: length of one input vector x_t.
        units: length of c, and of h where that is not projected.
        bias: False leaves b out.
        forget_bias: added to the forget gate's bias (Gers et al. 2000; Jozefowicz et al. 2015), and taken from the
            input gate's where the two are coupled, since f = 1 - i. None is 1 where there is a bias, and chrono
            does not say otherwise.
        chrono: the longest dependency expected, in steps, above 2: forget biases are drawn as log U(1, chrono - 1),
            and input biases are their negatives (Tallec & Ollivier, "Can recurrent neural networks warp time?", 2018).
        peepholes: the gates see c (Gers & Schmidhuber 2000).
        projection: length of h, where that is not units (Sak et al. 2014).
        layer_norm: "joint", or True: x W_x, h W_h and c on its way to h are normalised (Ba et al. 2016, and Haste).
            "per_gate": the pre-activation of each gate, its peephole included, is normalised by itself, and c is not
            (TensorFlow Lite). "per_gate_cell" and "joint_cell": c is, too, and is kept so as the state (the former is
            TensorFlow 1's LayerNormBasicLSTMCell, the latter TensorFlow Addons' LayerNormLSTMCell). Scales start at 1;
            the epsilon is `LSTMOptions(norm_epsilon=...)`.
        coupled: no forget gate of its own but f = 1 - i (Greff et al. 2017).
        learned_state: the initial state is a parameter, zeros at first.
        w_x_init: initializer `(key, shape, dtype) -> array` of [inputs, units], one call a gate.
        w_h_init: likewise of [units, units], or [projection, units].
        bias_init: likewise of [units].
        w_peephole_init: likewise of [units].
        w_projection_init: initializer of [units, projection].
        dtype: of every parameter; float16 and bfloat16 are drawn in float32 and rounded.

    Returns:
        LSTMParams; without options 4 * units * (inputs + units + 1) numbers.

    Raises:
        ValueError: a size is not a positive integer, an initializer returns another shape, or options together have
            no meaning: a forget_bias or chrono without bias, both of them, layer norm of a single unit.
        TypeError: dtype is not floating, an option of another type.

    >>> params = init(jax.random.key(0), inputs=2, units=3)
    >>> params.w_x.shape, params.w_h.shape, params.bias.shape
    ((2, 12), (3, 12), (12,))
    """
    inputs, units = validation.positive_int("inputs", inputs), validation.positive_int("units", units)
    outputs = units if projection is None else validation.positive_int("projection", projection)
    dtype = validation.floating_dtype("dtype", dtype)
    gates = 3 if validation.boolean("coupled", coupled) else 4
    norm_kind = _norm_kind(layer_norm)
    if norm_kind is not None and units == 1:
        raise ValueError(f"layer_norm={layer_norm!r} needs units above 1: a single c less its mean is always 0.")
    x_keys, h_keys, bias_keys, peephole_keys, (projection_key, chrono_key, *_) = jax.random.split(
        validation.key(key), (5, 4)
    )

    def draw(keys, name, initializer, *shape, count=gates):
        blocks = [validation.drawn(name, initializer, key, shape, dtype) for key in keys[:count]]
        return jnp.concatenate(blocks, axis=-1)

    first_bias = _first_bias(chrono_key, units, gates, bias, forget_bias, chrono, dtype)
    b, w_peephole, w_projection, norm, initial = None, None, None, None, None
    if bias:
        b = draw(bias_keys, "bias_init", bias_init, units) + first_bias.astype(dtype)
    if validation.boolean("peepholes", peepholes):
        w_peephole = draw(peephole_keys, "w_peephole_init", w_peephole_init, units, count=gates - 1)
    if projection is not None:
        w_projection = validation.drawn("w_projection_init", w_projection_init, projection_key, (units, outputs), dtype)
    if norm_kind is not None:
        sizes = {"x_scale": gates * units, "h_scale": gates * units, "z_scale": gates * units, "c_scale": units}
        scales = {name: jnp.ones(size, dtype) for name, size in sizes.items() if name in NORMS[norm_kind]}
        shift = {"c_bias": jnp.zeros(units, dtype)} if "c_bias" in NORMS[norm_kind] else {}
        norm = LSTMNorm(**scales, **shift, kind=norm_kind)
    if validation.boolean("learned_state", learned_state):
        initial = LSTMState(h=jnp.zeros(outputs, dtype), c=jnp.zeros(units, dtype))
    return LSTMParams(
        w_x=draw(x_keys, "w_x_init", w_x_init, inputs, units),
        w_h=draw(h_keys, "w_h_init", w_h_init, outputs, units),
        bias=b,
        w_peephole=w_peephole,
        w_projection=w_projection,
        norm=norm,
        initial=initial,
    )


@keywords.explained("lstm.initial_state")
def initial_state(
    params: LSTMParams, batch: tuple[int, ...] | Any = (), *, options: LSTMOptions = LSTMOptions()
) -> LSTMState:
    """Make the state before the first step: zeros, or the learned one.

    Its dtypes are those of the state that `step` returns, so that `jax.lax.scan` can carry it: h has
    `options.precision`, or the common dtype of params, and c that or float32 where that is wider. Inputs of a wider
    dtype than these widen h too: cast them, or h, to carry it through a loop of your own.

    Args:
        params: LSTMParams.
        batch: the batch axes of the sequences, `xs.shape[:-2]`; an integer stands for one axis.
        options: LSTMOptions, those that `step` will get.

    Returns:
        LSTMState of [*batch, units]; h is [*batch, projection] where it is projected.

    Raises:
        TypeError: batch is neither a tuple nor an integer, options are something else; ValueError: a size below 0.

    >>> params = init(jax.random.key(0), inputs=2, units=3)
    >>> initial_state(params, batch=8).h.shape, initial_state(params, (8, 2)).h.shape
    ((8, 3), (8, 2, 3))
    """
    check_matrices("params", params)
    validation.instance("options", options, LSTMOptions, "LSTMOptions(...)")
    batch = validation.batch(batch)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        validation.floating(f"params{jax.tree_util.keystr(path)}", leaf)
    if params.initial is not None:
        validation.instance("params.initial", params.initial, LSTMState, "lstm.init")
        for name, size in (("h", params.outputs), ("c", params.units)):
            leaf = validation.weights(f"params.initial.{name}", getattr(params.initial, name), name)
            validation.shape(f"params.initial.{name}", leaf, (size,), "those of params.w_h")
    return start(params, batch, options)


def start(params: LSTMParams, batch: tuple[Any, ...] = (), options: LSTMOptions = LSTMOptions()) -> LSTMState:
    """Make the state before the first step, of params that have been validated."""
    dtype = jnp.dtype(options.precision or jnp.result_type(*jax.tree.leaves(params)))
    wide = validation.at_least_float32(dtype)
    if params.initial is None:
        return LSTMState(h=jnp.zeros((*batch, params.outputs), dtype), c=jnp.zeros((*batch, params.units), wide))
    # Copies, since a state may be donated, and params go on.
    initial = LSTMState(h=jnp.array(params.initial.h, dtype), c=jnp.array(params.initial.c, wide))
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*batch, *leaf.shape)), initial)


def _norm_kind(layer_norm: Any) -> str | None:
    if layer_norm is None or isinstance(layer_norm, bool | np.bool_):
        return "joint" if layer_norm else None
    return validation.one_of("layer_norm", layer_norm, (*NORMS, True, False, None))


def _first_bias(key, units, gates, bias, forget_bias, chrono, dtype) -> Float[Array, " gates"]:
    """Initial offsets of the biases of i, [f], g, o."""
    forget_bias = None if forget_bias is None else validation.number("forget_bias", forget_bias)
    if forget_bias is not None and not abs(forget_bias) <= float(jnp.finfo(dtype).max):
        raise ValueError(f"forget_bias must be a finite number in {dtype.name}; got {forget_bias!r}.")
    if chrono is not None and not 2 < validation.number("chrono", chrono) <= float(jnp.finfo(jnp.float32).max):
        raise ValueError(f"chrono must be above 2, and finite, the steps that a dependency may span; got {chrono!r}.")
    if chrono is not None and forget_bias is not None:
        raise ValueError(f"forget_bias={forget_bias} and chrono={chrono} both set the forget gate's bias: give one.")
    if not validation.boolean("bias", bias) and (chrono or forget_bias):
        given = f"forget_bias={forget_bias}" if chrono is None else f"chrono={chrono}"
        raise ValueError(f"bias=False leaves no place for {given}: give one of the two.")
    nothing = jnp.zeros(units)
    if chrono is None:
        forget = nothing + (1.0 if forget_bias is None else forget_bias)
        opened = -forget if gates == 3 else nothing
    else:
        forget = jnp.log(jax.random.uniform(key, (units,), minval=1.0, maxval=chrono - 1.0))
        opened = -forget
    return jnp.concatenate([opened, *([forget] if gates == 4 else []), nothing, nothing])
