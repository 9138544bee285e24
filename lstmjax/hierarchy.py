"""Sequences of sequences: characters in words, words in utterances, utterances in a conversation.

    x_t  = [embedding_k(token_t), code_{k-1}(sequence below step t)]        code_k = encoder_k(x_1, ..., x_T)

Each level has one encoder, and runs it once over all its sequences: the axes above time are batch axes, so there are as
many loops as levels (twice as many where both directions are read), whatever the sizes. Li, Luong & Jurafsky, "A
hierarchical neural autoencoder for paragraphs and documents" (2015); Kumar et al., "Dialogue act sequence labeling
using hierarchical encoder with CRF" (2018).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Integer

from lstmjax import bidirectional as two_ways
from lstmjax import embedding, lstm, pooling, stack
from lstmjax._src import keywords, layout, padding, pytrees, validation
from lstmjax._src.dropout_masks import Dropout
from lstmjax.bidirectional import BidirectionalParams
from lstmjax.lstm import LSTMParams
from lstmjax.stack import StackParams

MERGES = [name for name in two_ways.MERGES if name]  # a code is one vector, never a pair
ARGUMENTS = ("options", "deterministic", "implementation", "unroll", "checkpoint")  # which every encoder takes alike
CODES = {"final": None, "last": pooling.last, "max": pooling.global_max, "mean": pooling.global_mean}


@pytrees.container
class LevelParams:
    """The weights of one level.

    Args:
        encoder: LSTMParams, BidirectionalParams or StackParams. Its inputs are the level's own, then the codes from
            the level below.
        embedding: EmbeddingParams of the level's tokens; None where the level reads vectors, or codes alone.
    """

    encoder: Any
    embedding: Any = None


@pytrees.container
class HierarchyParams:
    """The weights of a hierarchy.

    Args:
        levels: a tuple of LevelParams, the lowest first.
    """

    levels: Any


@keywords.explained("hierarchy.init", lstm.init)
def init(
    key: Array,
    inputs: int | Sequence[int],
    units: Sequence[int | Sequence[int]],
    *,
    vocabulary: int | Sequence[int | None] | None = None,
    bidirectional: bool | Sequence[bool] = False,
    merge: str = "concat",
    **options: Any,
) -> HierarchyParams:
    """Make the parameters of a hierarchy; lowest level first in every tuple.

    Args:
        key: a JAX random key.
        inputs: for each level the length of the vectors that it reads beside the codes from below, 0 for none; one
            number is that of the lowest level, above which codes alone are read.
        units: of each level's encoder; a tuple in place of a number makes a stack.
        vocabulary: for each level the number of its tokens, whose embedding then makes those vectors; None where
            they are given. One number is that of the lowest level.
        bidirectional: whether encoders read in both directions, for all levels or for each.
        merge: how `apply` will merge them; decides how long codes are.
        options: those of `lstm.init`, for all encoders.

    Raises:
        ValueError, TypeError: tuples of other lengths than units, a lowest level without inputs, a vocabulary without
            inputs; and what `embedding.init`, `lstm.init` and `stack.init` raise.

    Characters to words, words with vectors of their own to utterances, utterances to conversations:

    >>> params = init(jax.random.key(0), (8, 32, 0), (16, 64, 64), vocabulary=(90, 5000, None), bidirectional=True)
    >>> [level.encoder.forward.inputs for level in params.levels]
    [8, 64, 128]
    """
    if not isinstance(units, tuple | list) or not units:
        raise ValueError(f"units must be a tuple with an entry for each level, such as (64, 64); got {units!r}.")
    count = len(units)
    widths = _lowest("inputs", inputs, count, above=0)
    vocabularies = _lowest("vocabulary", vocabulary, count, above=None)
    directions = _each("bidirectional", bidirectional, count)
    levels, code = [], 0
    for number, level_key in enumerate(jax.random.split(validation.key(key), count)):
        encoder_key, table_key = jax.random.split(level_key)
        width = 0 if code and widths[number] == 0 else validation.positive_int(f"inputs[{number}]", widths[number])
        table = None
        if vocabularies[number] is not None:
            if not width:
                raise ValueError(f"inputs[{number}] must be the length of a vector of vocabulary[{number}]; got 0.")
            table = embedding.init(table_key, vocabularies[number], width, dtype=options.get("dtype", jnp.float32))
        layers: Any = units[number]
        stacked = isinstance(layers, tuple | list)
        both = {"bidirectional": directions[number], "merge": merge} | options
        encoder = stack.init(encoder_key, width + code, layers if stacked else (layers,), **both)
        encoder = encoder if stacked else encoder.layers[0]
        levels.append(LevelParams(encoder, table))
        code = stack.outputs(encoder, merge)
    return HierarchyParams(tuple(levels))


@keywords.explained("hierarchy.apply", *ARGUMENTS)
def apply(
    params: HierarchyParams,
    tokens: Any,
    *,
    lengths: Any = None,
    mask: Any = None,
    code: str | Sequence[str] = "final",
    return_sequences: bool = True,
    merge: str = "concat",
    dropout: Dropout | Sequence[Dropout | None] | None = None,
    key: Array | None = None,
    **arguments: Any,
) -> Float[Array, "*batch outputs"]:
    """Run every level over all its sequences at once, the lowest first; the code of each is one step of the next level.

    A sequence without steps is an ordinary one: its code is the encoder's initial state, or 0. Padding never
    affects a value or a gradient, be it NaN, a token out of range, or the length of an utterance that is padding.

    Args:
        params: HierarchyParams.
        tokens: what the lowest level reads: integers [*batch, time of the highest level, ..., time of the lowest] where
            it has an embedding, else vectors [..., inputs]. A tuple has an entry for each level, lowest first, None for
            those that read codes alone; a list is an array.
        lengths: a tuple with an entry for each level, lowest first: valid steps of each of its sequences, such as
            (words of each utterance [*batch, utterances], utterances of each conversation [*batch]); None where all
            steps are valid, be it an entry or all. Of one level, the array itself will do.
        mask: likewise a tuple of bool arrays, such as (valid words [*batch, utterances, words], valid utterances
            [*batch, utterances]), True where a step is valid, in any pattern; for a level, in place of lengths.
        code: how a sequence becomes a code, for all levels or for each: "final" state, "last" valid output, or the
            "max" or "mean" over valid outputs. With two directions, "last" has read one word backward and "final" all.
        return_sequences: False returns a code of the highest level's sequences too; True their outputs at each step.
        merge: how two directions become one output: "concat", "sum", "mul" or "ave".
        dropout: Dropout, for all levels or for each.
        key: a JAX random key, in training.
        arguments: options, deterministic, implementation, unroll and checkpoint, as `lstm.apply` takes them.

    Returns:
        [*batch, time of the highest level, outputs], exactly 0 on padding; [*batch, outputs] without sequences.

    Raises:
        ValueError, TypeError: arrays that do not fit each other, naming the level; and what `embedding.apply`,
            `lstm.apply`, `bidirectional.apply` and `stack.apply` raise.

    >>> params = init(jax.random.key(0), 16, (32, 32), vocabulary=1000, bidirectional=True)
    >>> tokens = jnp.ones((2, 5, 7), int)  # [conversation, utterance, word]
    >>> words_per_utterance, utterances_per_conversation = jnp.full((2, 5), 7), jnp.array([5, 3])
    >>> apply(params, tokens, lengths=(words_per_utterance, utterances_per_conversation)).shape
    (2, 5, 64)
    """
    levels = _check(params)
    count = len(levels)
    if unknown := [name for name in arguments if name not in ARGUMENTS]:
        raise TypeError(f"apply() got an unexpected keyword argument {unknown[0]!r}")
    validation.one_of("merge", merge, MERGES)
    return_sequences = validation.boolean("return_sequences", return_sequences)
    codes = [
        validation.one_of(f"code[{number}]", name, CODES) for number, name in enumerate(_each("code", code, count))
    ]
    dropouts = _each("dropout", dropout, count)
    keys = _keys(key, dropouts)
    own, axes = _own(levels, _levels("tokens", tokens, count))
    valid_steps = _within(_of_levels("lengths", lengths, count), _of_levels("mask", mask, count), axes)

    codes_below: Any = None
    for number, (level, xs, steps) in enumerate(zip(levels, own, valid_steps, strict=True)):
        if level.embedding is not None:
            xs = embedding.apply(level.embedding, validation.blank(xs, _valid(steps, jnp.shape(xs)[-1])))
        _check_inputs(number, level.encoder, xs, codes_below, merge)
        if number:
            xs = codes_below if xs is None else jnp.concatenate([xs.astype(codes_below.dtype), codes_below], axis=-1)
        rest = {"merge": merge, "dropout": dropouts[number], "key": keys[number]} | steps | arguments
        if number == count - 1 and return_sequences:
            return stack.apply(level.encoder, xs, **rest)[0]
        codes_below = encode(level.encoder, xs, code=codes[number], **rest)
    return codes_below


@keywords.explained("hierarchy.encode", stack.apply, lstm.apply)
def encode(
    params: LSTMParams | BidirectionalParams | StackParams,
    xs: Float[ArrayLike, "*batch time inputs"],
    *,
    lengths: Integer[ArrayLike, "*batch"] | None = None,
    mask: Bool[ArrayLike, "*batch time"] | None = None,
    code: str = "final",
    merge: str = "concat",
    time_major: bool = False,
    **arguments: Any,
) -> Float[Array, "..."]:
    """Make one vector of each sequence.

    Args:
        params: LSTMParams, BidirectionalParams or StackParams.
        xs: sequences [*batch, time, inputs], floating.
        lengths: valid steps of each sequence, integers [*batch].
        mask: bool [*batch, time], True where a step is valid; in place of lengths.
        code: "final", "last", "max" or "mean", as in `apply`.
        merge: how two directions become one output, as in `apply`.
        time_major: True if xs are [time, *batch, inputs] and mask [time, *batch].
        arguments: dropout, key, deterministic, options, implementation, unroll and checkpoint, as `stack.apply` takes
            them.

    Returns:
        [*batch, outputs].

    Raises:
        ValueError, TypeError: an unknown code or merge, and what `stack.apply` raises.

    Utterances of very different lengths in buckets of their own, put back into their conversations:

    >>> from lstmjax import lstm
    >>> words = lstm.init(jax.random.key(0), inputs=4, units=3)
    >>> short, long = jnp.ones((5, 2, 4)), jnp.ones((1, 60, 4))
    >>> codes = jnp.concatenate([encode(words, short), encode(words, long)])
    >>> codes[jnp.array([[0, 1, 5], [2, 3, 4]])].shape  # [conversation, utterance, outputs]
    (2, 3, 3)
    """
    validation.one_of("code", code, CODES)
    validation.one_of("merge", merge, MERGES)
    pool = CODES[code]
    if told := {"return_sequences", "return_states"} & set(arguments):
        raise TypeError(
            f"{min(told)} is not for hierarchy.encode, which gives one vector of each sequence: stack.apply."
        )
    if validation.boolean("time_major", time_major):
        xs, arguments = layout.batch_major(xs, mask=mask, **arguments)
        mask = arguments.pop("mask")
    steps = {"lengths": lengths, "mask": mask}
    ys, _ = stack.apply(params, xs, return_sequences=pool is not None, merge=merge, **steps, **arguments)
    return ys if pool is None else pool(ys, **steps)


def _check(params: HierarchyParams) -> tuple[LevelParams, ...]:
    validation.instance("params", params, HierarchyParams, "hierarchy.init")
    if not isinstance(params.levels, tuple | list) or not params.levels:
        raise TypeError(f"params.levels must be a tuple of at least one LevelParams; got {params.levels!r}.")
    for number, level in enumerate(params.levels):
        validation.instance(f"params.levels[{number}]", level, LevelParams, "hierarchy.init")
    return tuple(params.levels)


def _each(name: str, value: Any, count: int) -> tuple[Any, ...]:
    """One entry for each level."""
    if not isinstance(value, tuple | list):
        return (value,) * count
    if len(value) != count:
        raise ValueError(f"{name} must have an entry for each of the {count} levels, lowest first; got {len(value)}.")
    return tuple(value)


def _levels(name: str, arrays: Any, count: int) -> tuple[Any, ...]:
    """The array of each level, or that of the lowest alone; a list is an array, as everywhere, and no tuple."""
    if isinstance(arrays, list):
        arrays = validation.asarray(f"{name}, unless it is a tuple with an entry for each level,", arrays)
    return _lowest(name, arrays, count, above=None)


def _keys(key: Array | None, dropouts: tuple[Any, ...]) -> Sequence[Array | None]:
    """One for each level that has a use for it; for every level where none has, which is then refused."""
    if key is None:
        return (None,) * len(dropouts)
    some = any(rates is not None for rates in dropouts)
    useless = [rates is None and some for rates in dropouts]
    return [
        None if no else k for no, k in zip(useless, jax.random.split(validation.key(key), len(dropouts)), strict=True)
    ]


def _lowest(name: str, value: Any, count: int, above: Any) -> tuple[Any, ...]:
    """One entry for each level, where a single one is that of the lowest."""
    return _each(name, value if isinstance(value, tuple | list) else (value, *(above,) * (count - 1)), count)


def _own(levels: tuple[LevelParams, ...], tokens: tuple[Any, ...]) -> tuple[list[Any], tuple[int, ...]]:
    """Inputs of each level beside codes, and the axes of the lowest: batch, then time of the highest down to it."""
    own: list[Any] = []
    axes: tuple[int, ...] = ()
    for number, (level, given) in enumerate(zip(levels, tokens, strict=True)):
        name, reads_tokens = f"tokens[{number}]", level.embedding is not None
        if given is None:
            if number == 0 or reads_tokens:
                whose = "its embedding" if reads_tokens else "the lowest level"
                raise ValueError(f"{name} must be an array, which {whose} reads; got None.")
            own.append(None)
            continue
        array = given if hasattr(given, "shape") else validation.asarray(name, given)
        if not reads_tokens and jnp.issubdtype(array.dtype, jnp.integer):
            raise TypeError(
                f"{name} must have a floating dtype, got {array.dtype.name} {array.shape}, and params.levels[{number}] "
                "has no embedding to look tokens up in: hierarchy.init(..., vocabulary=...) makes one."
            )
        array = array if reads_tokens else validation.floating(name, array)
        features = () if reads_tokens else array.shape[-1:]
        if number == 0:
            axes = jnp.shape(array)[: jnp.ndim(array) - len(features)]
            if len(axes) < len(levels):
                raise ValueError(
                    f"{name} must have an axis of time for each of the {len(levels)} levels"
                    f"{' and one of features' if features else ''}; got shape {jnp.shape(array)}."
                )
        else:
            shape = (*axes[: len(axes) - number], *features)
            validation.shape(name, array, shape, "the axes of tokens[0] down to this level's steps")
        own.append(array)
    return own, axes


def _check_inputs(number: int, encoder: Any, xs: Any, codes: Any, merge: str) -> None:
    """Raise where a level's encoder was made for other vectors; what is no encoder at all, `stack.apply` refuses."""
    stacked = isinstance(encoder, StackParams) and isinstance(encoder.layers, tuple | list) and encoder.layers
    layer = encoder.layers[0] if stacked else encoder
    layer = layer.forward if isinstance(layer, BidirectionalParams) else layer
    if not isinstance(layer, LSTMParams) or getattr(layer.w_x, "ndim", 0) != 2 or getattr(layer.w_h, "ndim", 0) != 2:
        return
    own, below = (0 if array is None else array.shape[-1] for array in (xs, codes))
    if layer.inputs != own + below:
        reads = f"{own} features of tokens[{number}]"
        reads += f" and codes of {below} with merge={merge!r}" if number else ""
        raise ValueError(
            f"params.levels[{number}].encoder must have {own + below} inputs, {reads}; got {layer.inputs}."
        )


def _of_levels(name: str, arrays: Any, count: int) -> tuple[Any, ...]:
    """One array for each level; of a single level it may be the array itself."""
    if hasattr(arrays, "shape") and count > 1:
        raise ValueError(
            f"{name} must be a tuple with an entry for each of the {count} levels, lowest first, some perhaps None; "
            f"got one array, {arrays!r:.80}."
        )
    return _each(name, arrays, count) if count > 1 else _levels(name, arrays, 1)


def _within(lengths: tuple[Any, ...], masks: tuple[Any, ...], axes: tuple[int, ...]) -> tuple[dict[str, Any], ...]:
    """Lengths or mask of each level's sequences, without valid steps where a sequence is padding of the level above."""
    within: list[dict[str, Any]] = []
    alive = None
    for number in reversed(range(len(lengths))):
        batch, time = axes[: len(axes) - number - 1], axes[len(axes) - number - 1]
        steps, mask, given = lengths[number], masks[number], {}
        above = "the axes of tokens[0] above this level's steps"
        if steps is not None and mask is not None:
            raise ValueError(f"lengths[{number}] and mask[{number}] both tell which steps are valid: pass one of them.")
        if mask is not None:
            name = f"mask[{number}]"
            mask = validation.booleans(name, mask, "True where a step is valid")
            validation.shape(name, mask, (*batch, time), f"{above}, then those")
            given = {"mask": mask if alive is None else mask & alive[..., None]}
        elif steps is not None:
            told = f"the time steps of level {number}", above
            steps = validation.steps(f"lengths[{number}]", steps, batch, time, *told, real=alive)
            given = {"lengths": steps}
        elif alive is not None:
            given = {"lengths": jnp.where(alive, time, 0)}
        alive = _valid(given, time)
        within.append(given)
    return tuple(reversed(within))


def _valid(steps: dict[str, Any], time: int) -> Array | None:
    return padding.valid_steps(steps.get("lengths"), steps.get("mask"), time)
