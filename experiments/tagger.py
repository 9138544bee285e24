"""A tag for every step: a hierarchy of encoders up to a conversation or a sentence, a dense layer, and a CRF.

Huang, Xu & Yu, Bidirectional LSTM-CRF Models for Sequence Tagging, 2015; Lample et al., Neural Architectures for Named
Entity Recognition, NAACL 2016, for the level of characters; Kumar et al., Dialogue Act Sequence Labeling using
Hierarchical encoder with CRF, AAAI 2018, for that of conversations.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array, Float, Int

from lstmjax import crf, dense, hierarchy, stack
from lstmjax.embedding import EmbeddingParams

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Tagger:
    """Settings of a tagger, [model] in a config."""

    kind: tyro.conf.Suppress[Literal["tagger"]] = "tagger"
    embedding: int = 100
    """Length of the vector of a word."""
    units: int = 100
    """Of the LSTM that reads words, in each direction."""
    context: int = 0
    """Of the LSTM that reads utterances, in each direction; 0 where each utterance is labelled by itself."""
    characters: int = 0
    """Of the LSTM that reads the characters of a word, in each direction; 0 where words have no spelling."""
    code: Literal["final", "last", "max", "mean"] = "final"
    """How the words of an utterance become one vector."""
    crf: bool = True
    """Whether tags are chosen together, or each by itself."""
    dropout: float = 0.5
    """Rate at which features of what an LSTM reads, and of what the last one says, are dropped in training: in swda at
    each step anew, in conll2000 the same ones throughout a sentence."""
    word_dropout: float = 0.0
    """Rate at which words are taken for unknown ones in training."""

    def __post_init__(self):
        for name, least in (("embedding", 1), ("units", 1), ("context", 0), ("characters", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("dropout", "word_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be from 0 to 1")


def init(
    key: Array,
    model: Tagger,
    *,
    words: Float[Array, "words embedding"],
    tags: int,
    characters: int = 0,
    cases: int = 0,
    features: int = 0,
) -> Params:
    """Parameters for these vectors of words, from which training goes on, and so many different tags and characters.

    A word has `cases` features beside its vector, and an utterance so many `features` beside its code.
    """
    levels: list[tuple[int, int, int | None]] = [(model.embedding + cases, model.units, None)]
    if model.characters:
        levels.insert(0, (model.characters, model.characters, characters))
    if model.context:
        levels.append((features, model.context, None))
    inputs, units, vocabulary = zip(*levels, strict=True)
    keys = jax.random.split(key, 3)
    encoders = hierarchy.init(keys[0], inputs, units, vocabulary=vocabulary, bidirectional=True)
    params = {
        "words": EmbeddingParams(words),
        "hierarchy": encoders,
        "dense": dense.init(keys[1], stack.outputs(encoders.levels[-1].encoder), tags),
    }
    return params | {"crf": crf.init(keys[2], tags)} if model.crf else params


def some_unknown(model: Tagger, words: Int[Array, "*batch"], key: Array | None) -> Int[Array, "*batch"]:
    """The words, of which some are taken for unknown ones, number 0, where there is a key."""
    if key is None or not model.word_dropout:
        return words
    return jnp.where(jax.random.bernoulli(key, model.word_dropout, words.shape), 0, words)


def dropped(model: Tagger, xs: Float[Array, "*batch"], key: Array | None) -> Float[Array, "*batch"]:
    """The features, of which some are dropped at each step anew where there is a key."""
    if key is None or not model.dropout:
        return xs
    kept = jax.random.bernoulli(key, 1 - model.dropout, xs.shape)
    return jnp.where(kept, xs / ((1 - model.dropout) or 1), 0)


def nll(
    model: Tagger,
    params: Params,
    emissions: Float[Array, "batch time tags"],
    tags: Int[Array, "batch time"],
    lengths: Int[Array, " batch"],
    allowed: crf.Allowed | None = None,
) -> Float[Array, " batch"]:
    """Minus the logarithm of the probability of each sequence's tags."""
    if model.crf:
        return -crf.log_likelihood(params["crf"], emissions, tags, lengths=lengths, allowed=allowed)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(emissions), tags[..., None], axis=-1)[..., 0]
    return -jnp.sum(chosen, axis=-1, where=jnp.arange(tags.shape[-1])[None] < lengths[:, None])


def decode(
    model: Tagger,
    params: Params,
    emissions: Float[Array, "batch time tags"],
    lengths: Int[Array, " batch"],
    allowed: crf.Allowed | None = None,
) -> tuple[Int[Array, "batch time"], Float[Array, "batch time"]]:
    """The likeliest tags of each sequence, and how probable each of them is at its step, whatever the others are."""
    if model.crf:
        tags, _ = crf.decode(params["crf"], emissions, lengths=lengths, allowed=allowed)
        probabilities = crf.marginals(params["crf"], emissions, lengths=lengths, allowed=allowed)
    else:
        tags, probabilities = jnp.argmax(emissions, axis=-1), jax.nn.softmax(emissions)
    return tags, jnp.take_along_axis(probabilities, tags[..., None], axis=-1)[..., 0]
