"""Options of an LSTM that are not weights."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstmjax._src import keywords, pytrees, validation

ACTIVATIONS = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "relu": jax.nn.relu,
    "linear": lambda x: x,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
    "silu": jax.nn.silu,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "keras2_hard_sigmoid": lambda x: jnp.clip(0.2 * x + 0.5, 0, 1),
}

NORM_EPSILON = 1e-5  # Ba et al. name none; this is that of PyTorch's and Haste's


@keywords.explained("LSTMOptions")
@pytrees.static
class LSTMOptions:
    """Options of an LSTM that are not weights.

    Args:
        activation: of the candidate g and of c on its way to h; a name in `lstmjax._src.lstm.options.ACTIVATIONS`.
        recurrent_activation: of the gates i, f and o; likewise.
        output_activation: of c on its way to h, where that is another than activation, as ONNX can have it.
        cell_clip: c_t is clipped to [-cell_clip, cell_clip], as in TensorFlow's LSTMCell.
        preactivation_clip: what the gates' activations see is clipped to [-preactivation_clip, preactivation_clip],
            as in ONNX.
        projection_clip: a projected h_t is clipped to [-projection_clip, projection_clip], as in TensorFlow.
        norm_epsilon: what layer norm adds to the variance under its square root.
        precision: the dtype to compute in, such as "bfloat16", whatever that of params and inputs; None for their
            common one. Products accumulate, and c is carried, in at least float32; outputs and h have this dtype.
        units_axis: the axis of the mesh set by `jax.set_mesh` over which units are divided; None for undivided. A step
            then exchanges h once. `lstmjax.sharding` has the rules by which params lie ready for it.

    Raises:
        ValueError: an unknown name, or a clip or norm_epsilon that is not positive.
        TypeError: precision is not floating, or units_axis is not a name.

    >>> LSTMOptions(recurrent_activation="hard_sigmoid").recurrent_activation
    'hard_sigmoid'
    """

    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    output_activation: str | None = None
    cell_clip: float | int | None = None
    preactivation_clip: float | int | None = None
    projection_clip: float | int | None = None
    norm_epsilon: float | int = NORM_EPSILON
    precision: DTypeLike | None = None
    units_axis: str | None = None

    def __post_init__(self):
        validation.one_of("activation", self.activation, ACTIVATIONS)
        validation.one_of("recurrent_activation", self.recurrent_activation, ACTIVATIONS)
        if self.output_activation is not None:
            validation.one_of("output_activation", self.output_activation, ACTIVATIONS)
        for name in ("cell_clip", "preactivation_clip", "projection_clip"):
            object.__setattr__(self, name, validation.bound(name, getattr(self, name)))
        object.__setattr__(self, "norm_epsilon", validation.positive("norm_epsilon", self.norm_epsilon))
        if self.precision is not None:
            object.__setattr__(self, "precision", validation.floating_dtype("precision", self.precision).name)
        if self.units_axis is not None:
            validation.name("units_axis", self.units_axis, "of an axis of the mesh")
