"""An encoder and a decoder: LSTMs read a sequence, and others say another one, beginning in the state of the first.

Sutskever, Vinyals & Le, Sequence to Sequence Learning with Neural Networks, NIPS 2014; Cho et al., Learning Phrase
Representations using RNN Encoder-Decoder for Statistical Machine Translation, EMNLP 2014. No attention: all that the
decoder knows of what was read is h and c at its end.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array, Float, Int

from experiments import decoding, mesh
from experiments.decoding import Decoded
from lstmjax import dense, embedding, stack


@dataclasses.dataclass(frozen=True)
class Seq2Seq:
    """Settings of an encoder and a decoder, [model] in a config."""

    kind: tyro.conf.Suppress[Literal["seq2seq"]] = "seq2seq"
    embedding: int = 32
    """Length of the vector of a symbol."""
    units: int = 128
    """Length of h and c of every layer."""
    layers: int = 1
    """LSTMs of the encoder, each reading what the one before says, and as many of the decoder."""
    beam: int = 4
    """Sequences kept in beam search."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the LSTMs compute in."""

    def __post_init__(self):
        for name in ("embedding", "units", "layers", "beam"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 1")


def init(key: Array, symbols: int, model: Seq2Seq) -> dict[str, Any]:
    """The decoder reads and says one symbol more than the encoder: what it begins and what it ends with."""
    read, encoder, said, decoder, head = jax.random.split(key, 5)
    units = (model.units,) * model.layers
    return {
        "read": embedding.init(read, symbols, model.embedding),
        "encoder": stack.init(encoder, model.embedding, units),
        "said": embedding.init(said, symbols + 1, model.embedding),
        "decoder": stack.init(decoder, model.embedding, units),
        "dense": dense.init(head, model.units, symbols + 1),
    }


def encode(
    model: Seq2Seq, params: dict[str, Any], source: Int[Array, "batch time"], lengths: Int[Array, " batch"]
) -> Any:
    """The state after the last valid symbol of each row."""
    xs = embedding.apply(params["read"], source)
    return stack.apply(params["encoder"], xs, lengths=lengths, return_sequences=False, options=_options(model))[1]


def forced(
    model: Seq2Seq, params: dict[str, Any], state: Any, target: Int[Array, "batch time"], lengths: Int[Array, " batch"]
) -> tuple[Float[Array, "batch time+1"], Float[Array, "batch time+1"]]:
    """Log-probability of each target symbol and the end after it, given those before; and 1 if it is the likeliest.

    Zeros in padding.
    """
    batch, time = target.shape
    end = _end(params)
    edge = jnp.full((batch, 1), end, target.dtype)
    steps = jnp.arange(time + 1)[None]
    valid = steps <= lengths[:, None]
    expected = jnp.where(steps < lengths[:, None], jnp.concatenate([target, edge], axis=1), end)
    xs = embedding.apply(params["said"], jnp.concatenate([edge, expected[:, :-1]], axis=1))
    ys, _ = stack.apply(params["decoder"], xs, state, lengths=lengths + 1, options=_options(model))
    log_outputs = jax.nn.log_softmax(dense.apply(params["dense"], ys))
    log_likelihood = jnp.take_along_axis(log_outputs, expected[..., None], axis=-1)[..., 0]
    correct = jnp.argmax(log_outputs, axis=-1) == expected
    return jnp.where(valid, log_likelihood, 0), jnp.where(valid, correct, 0).astype(log_likelihood.dtype)


def decode(model: Seq2Seq, params: dict[str, Any], state: Any, steps: int, width: int | None = None) -> Decoded:
    """Decode without a target: by beam search of a `width`, or greedily."""
    end = _end(params)
    start = jnp.full(state[0].h.shape[0], end)

    def step(last, state):
        x = embedding.apply(params["said"], last)
        y, state = stack.step(params["decoder"], x, state, options=_options(model))
        return jax.nn.log_softmax(dense.apply(params["dense"], y)), state

    if width is None:
        return decoding.greedy(step, state, start, end, steps)
    return decoding.beam(step, state, start, end, steps, width)


def _end(params: dict[str, Any]) -> int:
    """The symbol that a target begins after and ends with."""
    return params["said"].table.shape[0] - 1


def _options(model: Seq2Seq):
    return mesh.lstm_options(precision=model.precision)
