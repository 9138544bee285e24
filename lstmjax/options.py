"""What distinguishes one LSTM from another beside its weights."""

import dataclasses

import jax
import jax.numpy as jnp

from lstmjax import checks

ACTIVATIONS = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "relu": jax.nn.relu,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "keras2_hard_sigmoid": lambda x: jnp.clip(0.2 * x + 0.5, 0, 1),
}


@dataclasses.dataclass(frozen=True)
class LSTMOptions:
    """What distinguishes one LSTM from another beside its weights.

    Args:
        activation: of the candidate g and of c on its way to h; a name in `lstmjax.options.ACTIVATIONS`.
        recurrent_activation: of the gates i, f and o; likewise.
        cell_clip: c_t is clipped to [-cell_clip, cell_clip], as in TensorFlow's LSTMCell.
        preactivation_clip: z_t is clipped to [-preactivation_clip, preactivation_clip], as in ONNX.

    Raises:
        ValueError: an unknown name, or a clip that is not positive.

    >>> LSTMOptions(recurrent_activation="hard_sigmoid").recurrent_activation
    'hard_sigmoid'
    """

    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    cell_clip: float | None = None
    preactivation_clip: float | None = None

    def __post_init__(self):
        checks.one_of("activation", self.activation, ACTIVATIONS)
        checks.one_of("recurrent_activation", self.recurrent_activation, ACTIVATIONS)
        object.__setattr__(self, "cell_clip", checks.bound("cell_clip", self.cell_clip))
        object.__setattr__(self, "preactivation_clip", checks.bound("preactivation_clip", self.preactivation_clip))
