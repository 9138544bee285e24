"""The models: an LSTM, or what it is compared with, and a dense layer, read at the last valid step or at all."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array, Float, Int

from experiments import mesh, rnn
from experiments.language import Words
from experiments.rnn import RNN
from experiments.seq2seq import Seq2Seq
from experiments.tagger import Tagger
from lstmjax import Dropout, LSTMOptions, LSTMState, dense, lstm, pooling, residual

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
    """Settings of an LSTM, [model] in a config."""

    kind: tyro.conf.Suppress[Literal["lstm"]] = "lstm"
    units: int = 32
    """Length of h and of c."""
    forget_bias: float = 1.0
    """The forget gate's bias at the start."""
    chrono: int = 0
    """Where above 0, gates start out set to remember for 1 to this many steps, and `forget_bias` says nothing."""
    dropout: float = 0.0
    """Rate at which units of h are dropped in training, those read back and those said, the same at all steps."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the LSTM computes in; its parameters, sums and cell state are in float32."""

    def __post_init__(self):
        if self.units < 1:
            raise ValueError(f"model.units is {self.units}; it must be at least 1")
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"model.dropout is {self.dropout}; it must be from 0 to 1")
        if self.chrono != 0 and self.chrono < 3:
            raise ValueError(f"model.chrono is {self.chrono}; it must be 0, for none, or at least 3")


@dataclasses.dataclass(frozen=True)
class TCN:
    """Settings of a temporal convolutional network, [model] in a config."""

    kind: tyro.conf.Suppress[Literal["tcn"]] = "tcn"
    units: int = 32
    """Length of every block's output: its filters."""
    blocks: int = 2
    """Residual blocks, dilated by 1, 2, 4, ..."""
    kernel: int = 3
    """Steps that each of the two convolutions of a block reads."""
    dropout: float = 0.0
    """Rate at which units are dropped in training, behind each convolution."""
    dropout_kind: Literal["spatial", "elementwise"] = "spatial"
    """Whether a sequence loses the same units at all its steps, or others at each."""
    inputs_dropout: float = 0.0
    """Rate at which numbers of the inputs are dropped in training, others at each step."""

    def __post_init__(self):
        for name in ("units", "blocks", "kernel"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("dropout", "inputs_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be from 0 to 1")


MODELS: dict[str, type] = {"lstm": Model, "rnn": RNN, "tcn": TCN, "words": Words, "tagger": Tagger, "seq2seq": Seq2Seq}
Sequential = Model | RNN | TCN


def init(key: Array, inputs: int, outputs: int, model: Sequential) -> Params:
    key, dense_key = jax.random.split(key)
    head = dense.init(dense_key, model.units, outputs)
    if isinstance(model, TCN):
        blocks = residual.init(key, inputs, (model.units,) * model.blocks, kernel=model.kernel)
        return {"tcn": blocks, "dense": head}
    if isinstance(model, RNN):
        return {"rnn": rnn.init(key, inputs, model.units), "dense": head}
    forget_bias = None if model.chrono else model.forget_bias
    recurrent = lstm.init(key, inputs, model.units, forget_bias=forget_bias, chrono=model.chrono or None)
    return {"lstm": recurrent, "dense": head}


def last(
    model: Sequential,
    params: Params,
    xs: Float[Array, "batch time inputs"],
    lengths: Int[Array, " batch"] | None = None,
    *,
    key: Array | None = None,
) -> Float[Array, "batch outputs"]:
    """Logits after the last step of each sequence; units are dropped where there is a key."""
    if not isinstance(model, Model):
        return pooling.last(every(model, params, xs, lengths, key=key), lengths=lengths)
    h, _ = lstm.apply(
        params["lstm"],
        xs,
        lengths=lengths,
        return_sequences=False,
        options=_options(model),
        dropout=_dropout(model),
        key=key,
        deterministic=key is None,
    )
    return dense.apply(params["dense"], h)


def every(
    model: Sequential,
    params: Params,
    xs: Float[Array, "batch time inputs"],
    lengths: Int[Array, " batch"] | None = None,
    *,
    key: Array | None = None,
) -> Float[Array, "batch time outputs"]:
    """Logits at each step, given that one and those before; units are dropped where there is a key."""
    if isinstance(model, TCN):
        if key is not None:
            key, inputs_key = jax.random.split(key)
            kept = jax.random.bernoulli(inputs_key, 1 - model.inputs_dropout, xs.shape)
            xs = jnp.where(kept, xs / ((1 - model.inputs_dropout) or 1), 0)  # a rate of 1 keeps nothing
        rates = {"dropout": model.dropout, "dropout_kind": model.dropout_kind, "deterministic": key is None}
        ys = residual.apply(params["tcn"], xs, lengths=lengths, key=key, **rates)
    elif isinstance(model, RNN):
        ys = rnn.apply(params["rnn"], xs, lengths)
    else:
        ys, _ = lstm.apply(
            params["lstm"],
            xs,
            lengths=lengths,
            options=_options(model),
            dropout=_dropout(model),
            key=key,
            deterministic=key is None,
        )
    return dense.apply(params["dense"], ys)


def check_whole(model: Model | RNN) -> None:
    """Raise if units are to be dropped, of a task that drops none."""
    if isinstance(model, Model) and model.dropout:
        raise ValueError(f"model.dropout is {model.dropout}; this task drops no units, so that it must be 0")


def initial_state(model: Model, params: Params, batch: int) -> LSTMState:
    state = lstm.initial_state(params["lstm"], (batch,))
    return dataclasses.replace(state, h=state.h.astype(model.precision))


def going_on(
    model: Model, params: Params, xs: Float[Array, "batch time inputs"], state: LSTMState
) -> tuple[Float[Array, "batch time outputs"], LSTMState]:
    """Logits at each step of sequences that continue from `state`, and the state after them."""
    ys, state = lstm.apply(params["lstm"], xs, state, options=_options(model))
    return dense.apply(params["dense"], ys), state


def _options(model: Model) -> LSTMOptions:
    return mesh.lstm_options(precision=model.precision)


def _dropout(model: Model) -> Dropout:
    return Dropout(outputs=model.dropout, recurrent=model.dropout)
