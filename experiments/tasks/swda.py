"""Dialogue acts: what is done by each utterance of a conversation - a statement, a question, a sign of listening?

The words of every utterance are read by one LSTM in both directions; what it makes of them, beside who speaks
(`MANNER`), is read by another over the utterances of the conversation; a CRF chooses all tags of a conversation
together (Kumar et al., Dialogue Act Sequence Labeling using Hierarchical encoder with CRF, AAAI 2018). Any corpus in
the layout of experiments/data/dialogues.py can take Switchboard's place.

Which conversations make up a batch is settled once, so that all batches have nearly as many words, and their order is
drawn anew in every epoch. Utterances are packed one after another into rows as wide as the longest of them, and the
LSTM that reads the rows starts anew at each: hardly a word that it reads is padding.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments import linear, mesh, tagger
from experiments.data import cooccurrence, dialogues, files, vocabulary
from experiments.data.dialogues import Conversation
from experiments.data.order import shuffled
from experiments.data.vocabulary import Kinds
from experiments.tagger import Tagger
from experiments.task import Carried, Labelled, Published, Task
from lstmjax import BidirectionalParams, HierarchyParams, bidirectional, dense, embedding, hierarchy, lstm, ragged

MODELS = ("tagger",)
CITED = (
    "Kumar, Agarwal, Dasgupta & Joshi, Dialogue Act Sequence Labeling using Hierarchical Encoder with CRF, AAAI 2018.",
)
PUBLISHED = (Published("hierarchical BiLSTM and CRF, Kumar et al. 2018", {"accuracy": 0.792}),)
MANNER = ("another speaker than before", "another speaker than the first", "begins with a capital letter")
LETTERS = 16  # of a longer word, half of these are its first characters and half its last ones


@dataclasses.dataclass(frozen=True)
class Options:
    corpus: str = "swda"
    """Folder of the corpus within LSTMJAX_DATA."""
    column: str = "tag"
    """Which of a line's tags is learned: tag where there is one, else basic, general or full."""
    rare: int = 2
    """A word that is seen less often in training is read as unknown."""

    def __post_init__(self):
        if self.rare < 1:
            raise ValueError(f"data.rare is {self.rare}; it must be at least 1")


def sources(options: Options) -> Iterator[tuple[str, bytes]]:
    return dialogues.sources(options.corpus)


def build(
    options: Options, model: Tagger, batch: int, key: Array, kept: Mapping[str, Sequence[str]] | None = None
) -> Task:
    del key  # nothing is drawn
    corpus = _corpus(options)
    found = kinds(corpus, options) if kept is None else Kinds.kept(kept)
    vocabulary.check_known(dialogues.tags(corpus), found.tags, "tag")
    splits = _splits(options, batch, found)
    return dataclasses.replace(
        labeller(model, dataclasses.asdict(found)),
        init=_init(model, found, _vectors(options, model.embedding, found)),
        splits=splits,
        baselines=functools.partial(_baselines, options),
        watch=("validation",),
        published=PUBLISHED if dialogues.published(corpus) else (),
        epoch=len(splits["train"]["lengths"]),
    )


def labeller(model: Tagger, kept: Mapping[str, Sequence[str]]) -> Task:
    """The task without its data: vectors of words start out as zeros."""
    found = Kinds.kept(kept)
    return Task(
        init=_init(model, found, jnp.zeros((len(found.words), model.embedding))),
        batches=_batches,
        loss=functools.partial(_loss, model),
        evaluate=functools.partial(_evaluate, model),
        splits={},
        metric="accuracy",
        measure="nll",
        baselines=dict,
        label=functools.partial(_label, model, found),
        kept=kept,
        counted=lambda batch: batch["lengths"] > 0,
    )


def _init(model: Tagger, found: Kinds, words: Float[Array, "words length"]) -> Callable[[Array], tagger.Params]:
    return functools.partial(
        tagger.init,
        model=model,
        words=words,
        tags=len(found.tags),
        characters=len(found.characters),
        features=len(MANNER),
    )


def _corpus(options: Options) -> dict[str, list[Conversation]]:
    corpus, prints = _read(options)
    files.note(prints)
    return corpus


@functools.lru_cache(maxsize=1)
def _read(options: Options) -> tuple[dict[str, list[Conversation]], files.Prints]:
    """The corpus, and what is noted of its files, which may be others when the next run of a sweep begins."""
    with files.noted() as prints:
        return dialogues.load(options.corpus, options.column), prints


@functools.lru_cache(maxsize=1)
def _splits(options: Options, batch: int, found: Kinds) -> dict[str, dict[str, Array]]:
    """Splits that the runs of a sweep share, made once, here and below."""
    return {name: arranged(conversations, found, batch) for name, conversations in _corpus(options).items()}


@functools.lru_cache(maxsize=1)
def _vectors(options: Options, length: int, found: Kinds) -> Float[Array, "words length"]:
    """Where the vectors of words start: from the company they keep in training, whatever the tags."""
    words = {word: number for number, word in enumerate(found.words)}
    said = [[word for text in talk.texts for word in dialogues.words(text)] for talk in _corpus(options)["train"]]
    texts = [vocabulary.numbers(talk, words) for talk in said]
    return jnp.asarray(cooccurrence.vectors(texts, len(words), length))


@functools.lru_cache(maxsize=1)
def _baselines(options: Options) -> Mapping[str, Mapping[str, Any]]:
    corpus = _corpus(options)
    return linear.baselines(corpus["train"], corpus["test"])


def kinds(corpus: dict[str, list[Conversation]], options: Options) -> Kinds:
    """The words and characters of the training conversations, and the tags of all."""
    said = [word for talk in corpus["train"] for text in talk.texts for word in dialogues.words(text)]
    return Kinds(
        vocabulary.known(said, options.rare),
        vocabulary.known(itertools.chain.from_iterable(said)),
        dialogues.tags(corpus),
    )


def arranged(conversations: Sequence[Conversation], found: Kinds, batch: int) -> dict[str, Array]:
    """All batches, an axis of them in front of every array.

    Utterances stand one after another in the rows of `said`; `owner` is whose each word is, counted over all steps of
    all conversations of the batch, and one more than the last for padding. `first` and `last` are where the words of
    each utterance begin and end, counted over all rows. What is said are places among the batch's different words, of
    which `word` is the number of each and `characters` those of its spelling; the first of them is the unknown word,
    which has none.
    """
    said = [[dialogues.words(text) or [vocabulary.UNKNOWN] for text in talk.texts] for talk in conversations]
    dealt = deal([sum(map(len, talk)) for talk in said], batch)
    types = [sorted({vocabulary.UNKNOWN, *(w for t in members for text in said[t] for w in text)}) for members in dealt]
    width = max(len(text) for talk in said for text in talk)
    packed = [pack([len(text) for t in members for text in said[t]], width) for members in dealt]
    rows, steps = max(1 + max(row for row, _ in places) for places in packed), max(len(talk) for talk in said)
    arrays = {
        "lengths": np.zeros((len(dealt), batch), np.int32),
        "tags": np.zeros((len(dealt), batch, steps), np.int32),
        "manner": np.zeros((len(dealt), batch, steps, len(MANNER)), np.float32),
        "first": np.zeros((len(dealt), batch, steps), np.int32),
        "last": np.zeros((len(dealt), batch, steps), np.int32),
        "said": np.zeros((len(dealt), rows, width), np.int32),
        "owner": np.full((len(dealt), rows, width), batch * steps, np.int32),
    }
    tags = {tag: number for number, tag in enumerate(found.tags)}
    for number, (members, places) in enumerate(zip(dealt, packed, strict=True)):
        of = {name: array[number] for name, array in arrays.items()}
        words = {word: place for place, word in enumerate(types[number])}
        left = iter(places)
        for position, talk in enumerate(members):
            spoken, size = conversations[talk], len(conversations[talk])
            of["lengths"][position] = size
            of["tags"][position, : len(spoken.tags)] = [tags[tag] for tag in spoken.tags]
            of["manner"][position, :size] = manner(spoken)
            for step, (text, (row, start)) in enumerate(zip(said[talk], left, strict=False)):
                end = start + len(text)
                of["first"][position, step], of["last"][position, step] = row * width + start, row * width + end - 1
                of["said"][row, start:end] = vocabulary.numbers(text, words)
                of["owner"][row, start:end] = position * steps + step
    return jax.tree.map(jnp.asarray, arrays | _spelt(types, found))


def pack(sizes: Sequence[int], width: int) -> list[tuple[int, int]]:
    """A row for each and where in it to start, in few rows of one width: the longest first, where least is left over.

    Johnson, Near-optimal bin packing algorithms, 1973.
    """
    rows: list[int] = []
    places = [(0, 0)] * len(sizes)
    for number in np.argsort(-np.asarray(sizes), kind="stable").tolist():
        size = sizes[number]
        fitting = [row for row, filled in enumerate(rows) if filled + size <= width]
        row = max(fitting, key=rows.__getitem__, default=len(rows))
        if row == len(rows):
            rows.append(0)
        places[number] = row, rows[row]
        rows[row] += size
    return places


def deal(sizes: Sequence[int], batch: int) -> list[list[int]]:
    """Which go into each batch, so that batches are of nearly one size: the largest first, there and back."""
    order = np.argsort(-np.asarray(sizes), kind="stable").tolist()
    count = -(-len(order) // batch)
    rounds = [order[first : first + count] for first in range(0, len(order), count)]
    dealt: list[list[int]] = [[] for _ in range(count)]
    for number, dealing in enumerate(rounds):
        for member, to in zip(dealing, dealt if number % 2 == 0 else reversed(dealt), strict=False):
            to.append(member)
    return dealt


def manner(conversation: Conversation) -> list[tuple[bool, ...]]:
    """`MANNER` of each utterance; what follows on an unfinished one is written without a capital letter."""
    speakers, texts = conversation.speakers, conversation.texts
    changed = [False, *(now != before for before, now in itertools.pairwise(speakers))]
    return [(c, s != speakers[0], t[:1].isupper()) for c, s, t in zip(changed, speakers, texts, strict=True)]


def _spelt(types: Sequence[list[str]], found: Kinds) -> dict[str, np.ndarray]:
    """The number of each word of each batch, its characters, and how many these are."""
    words, characters = ({kind: place for place, kind in enumerate(of)} for of in (found.words, found.characters))
    every = sorted({word for batch in types for word in batch})
    rows = {word: row for row, word in enumerate(every)}
    spelling = [vocabulary.numbers(vocabulary.ends(word, LETTERS), characters) for word in every]
    padded, (letters,) = ragged.pad(spelling)
    batches, _ = ragged.pad([vocabulary.numbers(batch, rows) for batch in types])
    return {
        "word": vocabulary.numbers(every, words)[batches],
        "characters": padded[batches],
        "letters": letters[batches],
    }


def _batches(train: dict[str, Array], key: Array, steps: Int[Array, " steps"]) -> dict[str, Array]:
    order, noise = jax.random.split(key)
    chosen = shuffled(order, steps, examples=len(train["lengths"]), batch=1)[:, 0]
    keys = jax.vmap(functools.partial(jax.random.fold_in, noise))(steps)
    return jax.tree.map(lambda array: array[chosen], train) | {"key": keys}


def emissions(model: Tagger, params: tagger.Params, batch: dict[str, Any]) -> Float[Array, "batch utterances tags"]:
    """Scores of the tags of each utterance; some features are dropped where the batch has a key."""
    keys = (None,) * 4 if "key" not in batch else jax.random.split(batch["key"], 4)
    levels = list(params["hierarchy"].levels)
    vectors = embedding.apply(params["words"], batch["word"])
    if model.characters:
        spelling = HierarchyParams((levels.pop(0),))
        code = hierarchy.apply(
            spelling,
            batch["characters"],
            lengths=(batch["letters"],),
            return_sequences=False,
            options=mesh.lstm_options(),
        )
        vectors = jnp.concatenate([vectors, code], axis=-1)

    xs = tagger.dropped(model, vectors[tagger.some_unknown(model, batch["said"], keys[0])], keys[1])
    ys = codes(model, levels[0].encoder, xs, batch)
    valid = jnp.arange(ys.shape[1])[None] < batch["lengths"][:, None]
    ys = jnp.where(valid[..., None], ys, 0)
    ys = tagger.dropped(model, ys, keys[2])
    if model.context:
        xs = jnp.concatenate([batch["manner"], ys], axis=-1)
        ys, _ = bidirectional.apply(levels[1].encoder, xs, lengths=batch["lengths"], options=mesh.lstm_options())
        ys = tagger.dropped(model, ys, keys[3])
    return dense.apply(params["dense"], ys)


def codes(
    model: Tagger, encoder: BidirectionalParams, xs: Float[Array, "rows width features"], batch: dict[str, Any]
) -> Float[Array, "batch utterances outputs"]:
    """Code of each utterance, where each half of the encoder starts anew at the end of it that it meets."""
    parted = batch["owner"][:, 1:] != batch["owner"][:, :-1]
    begins, ends = (jnp.pad(parted, ((0, 0), side), constant_values=True) for side in ((1, 0), (0, 1)))
    options = mesh.lstm_options()
    forward, _ = lstm.apply(encoder.forward, xs, resets=begins, options=options)
    backward, _ = lstm.apply(encoder.backward, xs, resets=ends, reverse=True, options=options)
    return pooled(model.code, forward, backward, batch)


def pooled(
    code: str, forward: Float[Array, "rows width units"], backward: Float[Array, "rows width units"], batch: dict
) -> Float[Array, "batch utterances outputs"]:
    """`hierarchy.CODES` of packed utterances."""
    first, last, owner = batch["first"], batch["last"], batch["owner"].ravel()
    forward, backward = (ys.reshape(-1, ys.shape[-1]) for ys in (forward, backward))
    both = jnp.concatenate([forward, backward], axis=-1)
    match code:
        case "final":
            return jnp.concatenate([forward[last], backward[first]], axis=-1)
        case "last":
            return both[last]
        case "max":
            return jax.ops.segment_max(both, owner, first.size + 1)[:-1].reshape(*first.shape, -1)
        case "mean":
            sums = jax.ops.segment_sum(both, owner, first.size + 1)[:-1].reshape(*first.shape, -1)
            return sums / (last - first + 1)[..., None]
    raise AssertionError(f"a code without its packed form: {code}")


def _loss(model: Tagger, params: tagger.Params, batch: dict[str, Array], carried: Carried):
    sums = tagger.nll(model, params, emissions(model, params, batch), batch["tags"], batch["lengths"])
    return jnp.sum(sums) / jnp.sum(batch["lengths"]), (sums / jnp.maximum(batch["lengths"], 1), carried)


def _evaluate(model: Tagger, params: tagger.Params, split: dict[str, Array]) -> dict[str, Array]:
    def right(batch):
        scores = emissions(model, params, batch)
        tags, _ = tagger.decode(model, params, scores, batch["lengths"])
        real = jnp.arange(tags.shape[1])[None] < batch["lengths"][:, None]
        nll = tagger.nll(model, params, scores, batch["tags"], batch["lengths"])
        return jnp.sum((tags == batch["tags"]) & real), jnp.sum(nll)

    correct, nll = jax.lax.map(right, split)
    return {"accuracy": jnp.sum(correct) / jnp.sum(split["lengths"]), "nll": jnp.sum(nll) / jnp.sum(split["lengths"])}


def _label(model: Tagger, found: Kinds, params: tagger.Params, path: Path) -> list[Labelled]:
    """Each utterance of a conversation in a text file, see `dialogues.plain`."""
    conversation = dialogues.plain(path)
    batch = jax.tree.map(lambda array: array[0], arranged([conversation], found, batch=1))

    @jax.jit
    def label(params, batch):
        return tagger.decode(model, params, emissions(model, params, batch), batch["lengths"])

    tags, probabilities = (np.asarray(array[0]) for array in label(params, batch))
    lines = zip(conversation.speakers, conversation.texts, tags, probabilities, strict=True)
    return [
        Labelled(f"{speaker}|{text}" if speaker else text, found.tags[tag], float(probability))
        for speaker, text, tag, probability in lines
    ]
