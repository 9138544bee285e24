"""A stack of residual blocks of causal convolutions: a temporal convolutional network.

    f = act(conv_2(act(conv_1(x))))        both causal, with the block's dilation; conv_1 has its stride
    y = act(f + shortcut(x))               shortcut(x) = x, or x_{t*stride} W + b where width or length changes

The shortcut's kernel is a single step: with the stride it picks the very steps at which conv_1 stands, and its
matrix changes their width. Bai, Kolter & Koltun, "An empirical evaluation of generic convolutional and recurrent
networks for sequence modeling" (2018), whose weight normalisation is left out; shortcuts as in He, Zhang, Ren &
Sun, "Deep residual learning for image recognition" (2016).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Integer

from lstmjax import conv1d
from lstmjax._src import dropout_masks, keywords, mesh, padding, pytrees, validation
from lstmjax._src.lstm.options import ACTIVATIONS

DROPOUT_KINDS = ("spatial", "elementwise")


@pytrees.container
class ResidualParams:
    """The weights of one block.

    Args:
        first: Conv1DParams [kernel, inputs, units].
        second: Conv1DParams [kernel, units, units].
        shortcut: Conv1DParams [1, inputs, units]; None where x is added as it is.
    """

    first: Any
    second: Any
    shortcut: Any = None


@keywords.explained("residual.init")
def init(
    key: Array,
    inputs: int,
    units: Sequence[int],
    *,
    kernel: int = 3,
    strides: Sequence[int] | None = None,
    bias: bool = True,
    w_init: Callable[..., Array] = initializers.glorot_uniform(),
    bias_init: Callable[..., Array] = initializers.zeros,
    dtype: DTypeLike = jnp.float32,
) -> tuple[ResidualParams, ...]:
    """Make the parameters of a stack, with a shortcut's matrix only where the width changes or the stride is not 1.

    Args:
        key: a JAX random key.
        inputs: length of one input vector.
        units: length of the output vectors of each block, the first the nearest to the input.
        kernel: number of steps that each of the two convolutions reads.
        strides: one for each block, as `apply` will get them; None where all are 1.
        bias: False leaves it out of every convolution.
        w_init: initializer `(key, shape, dtype) -> array` of every w.
        bias_init: likewise of every bias.
        dtype: of every parameter.

    Raises:
        ValueError: a size or stride that is not a positive integer, no blocks, or another number of strides.
        TypeError: dtype is not floating, or bias is not bool.

    >>> first, second = init(jax.random.key(0), inputs=2, units=(25, 25), kernel=7)
    >>> first.shortcut.w.shape, second.shortcut
    ((1, 2, 25), None)
    """
    inputs = validation.positive_int("inputs", inputs)
    units = _per_block("units", units)
    strides = _per_block("strides", [1] * len(units) if strides is None else strides, len(units))

    def conv(key, inputs, units, kernel):
        how = {"bias": bias, "w_init": w_init, "bias_init": bias_init, "dtype": dtype}
        return conv1d.init(key, inputs, units, kernel=kernel, **how)

    def block(key, inputs, units, stride):
        first, second, shortcut = jax.random.split(key, 3)
        return ResidualParams(
            first=conv(first, inputs, units, kernel),
            second=conv(second, units, units, kernel),
            shortcut=conv(shortcut, inputs, units, 1) if inputs != units or stride != 1 else None,
        )

    keys = jax.random.split(validation.key(key), len(units))
    return tuple(map(block, keys, (inputs, *units), units, strides))


@keywords.explained("residual.apply")
def apply(
    params: tuple[ResidualParams, ...],
    xs: Float[ArrayLike, "*batch time inputs"],
    *,
    dilations: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    activation: str = "relu",
    dropout: float = 0.0,
    dropout_kind: str = "spatial",
    key: Array | None = None,
    deterministic: bool = False,
    lengths: Integer[ArrayLike, "*batch"] | None = None,
) -> Float[Array, "*batch steps units"]:
    """Run the blocks one after another, the module's equations.

    Padding gives outputs of 0 and reaches no value and no gradient, whatever it contains.

    Args:
        params: a tuple of ResidualParams.
        xs: input sequences [*batch, time, inputs], floating; any number of batch axes, none included.
        dilations: one for each block, in steps of that block's input, the second convolution's in steps of the
            first's output; None for 1, 2, 4, ...
        strides: one for each block, as `init` got them; None where all are 1.
        activation: a name in `lstmjax._src.lstm.options.ACTIVATIONS`.
        dropout: rate, from 0 to 1, at which units are dropped behind each convolution's activation; those
            kept are divided by 1 - dropout.
        dropout_kind: "spatial", the same units at every step of a sequence (Tompson et al., "Efficient object
            localization using convolutional networks", 2015); "elementwise", anew at each step, as Bai's code does.
        key: a JAX random key for dropout, in training.
        deterministic: True in evaluation: nothing is dropped, and no key is needed.
        lengths: valid steps of each sequence, integers [*batch] from 0 to time; None where all are valid. Those
            of the outputs are `conv1d.output_lengths(lengths, math.prod(strides))`.

    Returns:
        [*batch, ceil(time / product of strides), units], in the common dtype of params and xs.

    Raises:
        ValueError: shapes or values that do not fit, an unknown activation or dropout_kind, dropout with neither a key
            nor deterministic=True.
        TypeError: xs not floating, lengths not integers, dropout no number, params something else.

    >>> params = init(jax.random.key(0), inputs=1, units=(25,) * 8, kernel=7)
    >>> apply(params, jnp.ones((4, 784, 1))).shape
    (4, 784, 25)
    """
    validation.instance("params", params, tuple, "residual.init")
    for i, block in enumerate(params):
        validation.instance(f"params[{i}]", block, ResidualParams, "residual.init")
        for name in ("first", "second", *(("shortcut",) if block.shortcut is not None else ())):
            conv1d.check(f"params[{i}].{name}", getattr(block, name))
    blocks = len(params)
    if not blocks:
        raise ValueError("params must have at least one block, got ().")
    dilations = _per_block("dilations", [2**i for i in range(blocks)] if dilations is None else dilations, blocks)
    strides = _per_block("strides", [1] * blocks if strides is None else strides, blocks)
    validation.one_of("activation", activation, ACTIVATIONS)
    dropout = validation.probability("dropout", dropout)
    validation.one_of("dropout_kind", dropout_kind, DROPOUT_KINDS)
    xs = validation.floating("xs", xs)
    inputs = params[0].first.w.shape[1]
    validation.features("xs", xs, inputs, "*batch, time, inputs", "params[0].first.w has that many in its second axis")
    *batch, time, _ = xs.shape
    lengths = None if lengths is None else validation.lengths(lengths, tuple(batch), time)
    if key is not None:
        validation.key(key)
    key = dropout_masks.key_of(bool(dropout), key, deterministic)

    def run(params, xs, lengths, key):
        # Causal, so that what is computed on padding reaches no valid step: zeros at both ends are enough.
        ys = padding.fill(xs, lengths)
        drop = functools.partial(_drop, rate=dropout, kind=dropout_kind)
        keys = [None] * blocks if key is None else jax.random.split(key, blocks)
        for block, dilation, stride, key in zip(params, dilations, strides, keys, strict=True):
            ys = _block(block, ys, dilation, stride, ACTIVATIONS[activation], drop, key)
        return padding.fill(ys, None if lengths is None else conv1d.output_lengths(lengths, math.prod(strides)))

    return mesh.with_auto_axes(run, len(batch))(params, xs, lengths, key)


@keywords.explained("residual.receptive_field")
def receptive_field(kernel: int, dilations: Sequence[int], strides: Sequence[int] | None = None) -> int:
    """Count the steps of the input that one output of the stack sees.

    Without strides that is 1 + 2 * (kernel - 1) * sum(dilations); with them, see `conv1d.receptive_field`.

    Args:
        kernel: of every convolution.
        dilations: one for each block, the first the nearest to the input.
        strides: likewise; None where all are 1.

    Raises:
        ValueError: one of them is not a positive integer, or there are more or fewer strides than dilations.

    >>> receptive_field(kernel=7, dilations=(1, 2, 4, 8, 16, 32, 64, 128))
    3061
    """
    dilations = _per_block("dilations", dilations)
    strides = _per_block("strides", [1] * len(dilations) if strides is None else strides, len(dilations))
    convolutions = [pair for d, s in zip(dilations, strides, strict=True) for pair in ((d, s), (d, 1))]
    return conv1d.receptive_field(kernel, *zip(*convolutions, strict=True))


def _block(params, x, dilation, stride, act, drop, key):
    """The equations, for one block."""
    first, second = (None, None) if key is None else jax.random.split(key)
    f = drop(act(conv1d.apply(params.first, x, dilation=dilation, stride=stride)), first)
    f = drop(act(conv1d.apply(params.second, f, dilation=dilation)), second)
    if params.shortcut is not None:
        x = conv1d.apply(params.shortcut, x, stride=stride)
    elif stride != 1 or x.shape != f.shape:
        raise ValueError(
            f"params must have a shortcut in a block from {x.shape[-1]} to {f.shape[-1]} features with stride "
            f"{stride}; got None. Give residual.init the same strides."
        )
    return act(f + x)


def _drop(xs, key, rate, kind):
    if key is None or not rate:
        return xs
    steps = xs.shape[-2] if kind == "elementwise" else 1
    return xs * dropout_masks.factors(key, rate, (*xs.shape[:-2], steps, xs.shape[-1])).astype(xs.dtype)


def _per_block(name: str, values: Any, blocks: int | None = None) -> tuple[int, ...]:
    """Return positive integers, one for each block, or raise."""
    if not isinstance(values, Sequence) or not values or len(values) != (blocks or len(values)):
        count = "integers" if blocks is None else f"{blocks} integers"
        raise ValueError(f"{name} must be {count}, one for each block; got {values!r}.")
    return tuple(validation.positive_int(f"{name}[{i}]", value) for i, value in enumerate(values))
