"""A convolution over time, causal unless told otherwise.

    y_t = b + sum_k x_{t*stride + k*dilation - left} W_k       k = 0 .. kernel-1; x is 0 outside the sequence
    left = (kernel - 1) * dilation                             causal: y_t sees x_{t*stride} and what came before
    left = (kernel - 1) * dilation // 2                        otherwise: centred, an odd step goes to the right

`units`, elsewhere the number of filters, is the length of y_t; the parameters are units * (kernel * inputs + 1)
numbers. With groups, features and units are cut into as many equal parts, of which each part of y_t sees its part of
x alone: W_k is [inputs/groups, units]. Waibel et al., "Phoneme recognition using time-delay neural networks" (1989);
dilated and causal in van den Oord et al., "WaveNet: a generative model for raw audio" (2016).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int, Integer

from lstmjax._src import keywords, mesh, padding, pytrees, validation


@pytrees.container
class Conv1DParams:
    """The weights of a convolution over time.

    Args:
        w: [kernel, inputs, units], or [kernel, inputs/groups, units]; the last of the kernel meets the latest step.
        bias: [units], or None.
    """

    w: Any
    bias: Any = None


@keywords.explained("conv1d.init")
def init(
    key: Array,
    inputs: int,
    units: int,
    *,
    kernel: int = 3,
    groups: int = 1,
    bias: bool = True,
    w_init: Callable[..., Array] = initializers.glorot_uniform(),
    bias_init: Callable[..., Array] = initializers.zeros,
    dtype: DTypeLike = jnp.float32,
) -> Conv1DParams:
    """Make the parameters of a convolution: units * (kernel * inputs / groups + 1) numbers.

    Args:
        key: a JAX random key.
        inputs: length of one input vector.
        units: length of one output vector.
        kernel: number of steps that one output reads.
        groups: parts into which inputs and units are cut, as `apply` will get it; as many as inputs is a depthwise
            convolution.
        bias: False leaves it out.
        w_init: initializer `(key, shape, dtype) -> array` of w.
        bias_init: likewise of bias.
        dtype: of both.

    Raises:
        ValueError: inputs, units, kernel or groups is not a positive integer, groups does not divide inputs and units,
            or an initializer returns another shape.
        TypeError: dtype is not floating, or bias is not bool.

    >>> params = init(jax.random.key(0), inputs=2, units=8, kernel=5)
    >>> params.w.shape, params.bias.shape
    ((5, 2, 8), (8,))
    >>> init(jax.random.key(0), inputs=4, units=8, groups=2, bias=False).w.shape
    (3, 2, 8)
    """
    inputs, units = validation.positive_int("inputs", inputs), validation.positive_int("units", units)
    kernel, groups = validation.positive_int("kernel", kernel), validation.positive_int("groups", groups)
    if inputs % groups or units % groups:
        raise ValueError(f"groups must divide inputs, {inputs}, and units, {units}; got {groups}.")
    dtype = validation.floating_dtype("dtype", dtype)
    w_key, bias_key = jax.random.split(validation.key(key))
    w = validation.drawn("w_init", w_init, w_key, (kernel, inputs // groups, units), dtype)
    if not validation.boolean("bias", bias):
        return Conv1DParams(w)
    return Conv1DParams(w, validation.drawn("bias_init", bias_init, bias_key, (units,), dtype))


@keywords.explained("conv1d.apply")
def apply(
    params: Conv1DParams,
    xs: Float[ArrayLike, "*batch time inputs"],
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    causal: bool = True,
    lengths: Integer[ArrayLike, "*batch"] | None = None,
) -> Float[Array, "*batch steps units"]:
    """Convolve over time, the module's equation.

    Padding is read as zeros and gives outputs of 0; it reaches no value and no gradient, whatever it contains.
    The centred convolution pads by kernel and dilation alone: with a stride it differs from the "same" of Keras,
    whose alignment depends on time, and so would on how far a sequence is padded.

    Args:
        params: Conv1DParams.
        xs: input sequences [*batch, time, inputs], floating; any number of batch axes, none included.
        stride: steps of xs from one output to the next.
        dilation: steps of xs from one row of the kernel to the next.
        groups: parts into which features of xs and units are cut, as `init` got it: each part of the outputs sees its
            part of the features alone.
        causal: whether an output sees its own step and earlier ones only; False centres the kernel on it.
        lengths: valid steps of each sequence, integers [*batch] from 0 to time; None where all are valid. Those
            of the outputs are `output_lengths(lengths, stride)`.

    Returns:
        [*batch, ceil(time / stride), units], in the common dtype of params and xs.

    Raises:
        ValueError: shapes or values that do not fit.
        TypeError: xs not floating, lengths not integers, causal not bool, params something else.

    >>> params = Conv1DParams(w=jnp.ones((2, 1, 1)), bias=jnp.zeros(1))
    >>> xs = jnp.array([[1.0], [2.0], [3.0], [4.0], [5.0]])
    >>> apply(params, xs)[:, 0]
    Array([1., 3., 5., 7., 9.], dtype=float32)
    >>> apply(params, xs, dilation=2, stride=2)[:, 0]
    Array([1., 4., 8.], dtype=float32)
    >>> apply(params, xs, causal=False, lengths=3)[:, 0]
    Array([3., 5., 3., 0., 0.], dtype=float32)
    """
    w, bias = check("params", params)
    stride, dilation = validation.positive_int("stride", stride), validation.positive_int("dilation", dilation)
    groups = validation.positive_int("groups", groups)
    if w.shape[2] % groups:
        raise ValueError(f"groups must divide the units of params.w, {w.shape[2]}; got {groups}.")
    causal = validation.boolean("causal", causal)
    xs = validation.floating("xs", xs)
    owner = "params.w has that many in its second axis" + (f", for each of {groups} groups" if groups > 1 else "")
    validation.features("xs", xs, w.shape[1] * groups, "*batch, time, inputs", owner)
    *batch, time, _ = xs.shape
    lengths = None if lengths is None else validation.lengths(lengths, tuple(batch), time)

    def run(weights, xs, lengths):
        w, bias = weights
        ys = _convolve(w, bias, padding.fill(xs, lengths), stride, dilation, groups, causal)
        return padding.fill(ys, None if lengths is None else output_lengths(lengths, stride))

    return mesh.with_auto_axes(run, len(batch))((w, bias), xs, lengths)


def check(name: str, params: Any) -> tuple[Array, Array | None]:
    """Return w and bias, or raise unless these are the weights of one convolution, which fit each other."""
    validation.instance(name, params, Conv1DParams, "conv1d.init")
    w = validation.weights(f"{name}.w", params.w, "kernel", "inputs", "units")
    if not len(w):
        raise ValueError(f"{name}.w must have a kernel of at least 1 step; got shape {w.shape}.")
    if params.bias is None:
        return w, None
    bias = validation.weights(f"{name}.bias", params.bias, "units")
    validation.shape(f"{name}.bias", bias, w.shape[2:], f"units, the last axis of {name}.w")
    return w, bias


@keywords.explained("conv1d.output_lengths")
def output_lengths(lengths: Integer[ArrayLike, "*batch"], stride: int) -> Int[Array, "*batch"]:
    """Compute ceil(lengths / stride), the valid steps after a stride (of several layers: after their product).

    Args:
        lengths: valid steps before, integers [*batch] of at least 0.
        stride: steps from one output to the next.

    Raises:
        ValueError: stride is not a positive integer; TypeError: lengths are not integers.

    >>> output_lengths(jnp.array([0, 1, 4, 5]), stride=2)
    Array([0, 1, 2, 3], dtype=int32)
    """
    stride = validation.positive_int("stride", stride)
    lengths = validation.steps("lengths", lengths, jnp.shape(lengths), validation.LARGEST, "a number of steps", "any")
    return -(-lengths // stride)


@keywords.explained("conv1d.receptive_field")
def receptive_field(kernel: int, dilations: Sequence[int] = (1,), strides: Sequence[int] | None = None) -> int:
    """Count the steps of the input that one output of a stack of convolutions sees.

        1 + sum_l (kernel - 1) * dilation_l * stride_1 * ... * stride_{l-1}

    Without strides that is 1 + (kernel - 1) * sum(dilations).

    Args:
        kernel: of every convolution.
        dilations: one for each convolution, the first the nearest to the input.
        strides: likewise; None where all are 1.

    Raises:
        ValueError: one of them is not a positive integer, or there are more or fewer strides than dilations.

    >>> receptive_field(kernel=3, dilations=(1, 2, 4, 8))
    31
    """
    if not isinstance(dilations, Sequence):
        raise ValueError(f"dilations must be numbers, one for each convolution; got {dilations!r}.")
    strides = (1,) * len(dilations) if strides is None else strides
    if not isinstance(strides, Sequence) or len(strides) != len(dilations):
        raise ValueError(f"strides must be {len(dilations)} numbers, one for each dilation; got {strides!r}.")
    span = validation.positive_int("kernel", kernel) - 1
    field, apart = 1, 1
    for dilation, stride in zip(dilations, strides, strict=True):
        field += span * validation.positive_int("each of dilations", dilation) * apart
        apart *= validation.positive_int("each of strides", stride)
    return field


def _convolve(w, bias, xs, stride, dilation, groups, causal):
    dtype = jnp.result_type(w, xs, *([] if bias is None else [bias]))
    wide = validation.at_least_float32(dtype)
    *batch, time, inputs = xs.shape
    if isinstance(time, int):
        dilation = min(dilation, 2 * max(time, 1))  # rows still further apart would meet as many zeros
    outside = (w.shape[0] - 1) * dilation
    left = outside if causal else outside // 2
    padded = jnp.pad(xs.astype(dtype).reshape(math.prod(batch), time, inputs), ((0, 0), (left, outside - left), (0, 0)))

    def convolution(w, padded):
        return jax.lax.conv_general_dilated(
            padded,
            w,
            window_strides=(stride,),
            padding="VALID",
            rhs_dilation=(dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=groups,
            preferred_element_type=wide,
        )

    def product(w, padded):
        columns = [padded[:, k * dilation : k * dilation + time : stride] for k in range(w.shape[0])]
        if groups == 1:
            weights = w.reshape(-1, w.shape[-1])
            return jnp.matmul(jnp.concatenate(columns, axis=-1), weights, preferred_element_type=wide)
        columns = jnp.stack([column.reshape(*column.shape[:-1], groups, w.shape[1]) for column in columns], axis=-2)
        weights = w.reshape(*w.shape[:2], groups, w.shape[2] // groups)
        ys = jnp.einsum("btgki,kigu->btgu", columns, weights, preferred_element_type=wide)
        return ys.reshape(*ys.shape[:2], w.shape[-1])

    # On CPU, XLA is many times slower at the gradient of a convolution where that stands in a loop, as in training.
    ys = jax.lax.platform_dependent(w.astype(dtype), padded, cpu=product, default=convolution)
    if bias is not None:
        ys = ys + jnp.broadcast_to(bias.astype(wide), ys.shape)
    ys = ys.astype(dtype)
    return ys.reshape(*batch, *ys.shape[1:])
