"""Parameters and state of an LSTM."""

import dataclasses
from typing import Any

from lstmjax._src import pytrees, validation

# The kinds of layer norm, and which scales and shifts each has.
NORMS = {
    "joint": ("x_scale", "h_scale", "c_scale", "c_bias"),
    "joint_cell": ("x_scale", "h_scale", "c_scale", "c_bias"),
    "per_gate": ("z_scale",),
    "per_gate_cell": ("c_scale", "c_bias", "z_scale"),
}


@pytrees.container
class LSTMState:
    """The carry of an LSTM from one step to the next.

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
        """True if each gate is normalised by itself, its peephole included, in place of the products of all."""
        return self.kind.startswith("per_gate")

    @property
    def keeps(self) -> bool:
        """True if the normalised c is the state."""
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
