"""Dialogue acts: what is done by each utterance of a conversation - a statement, a question, a sign of listening?

The words of every utterance are read by one LSTM in both directions; what it makes of them, beside who speaks
(`MANNER`), is read by another over the utterances of the conversation; a CRF chooses all tags of a conversation
together (Kumar et al., Dialogue Act Sequence Labeling using Hierarchical encoder with CRF, AAAI 2018). Any corpus in
the layout of experiments/data/dialogues.py can take Switchboard's place.

Which conversations make up a batch is settled once, so that all batches have nearly as many words, and their order is
drawn anew in every epoch. Within a batch, utterances stand by length in arrays of a few widths, the same for all
batches, and an index says where in its conversation each belongs.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments import linear, tagger
from experiments.data import cooccurrence, dialogues, vocabulary
from experiments.data.dialogues import Conversation
from experiments.data.order import shuffled
from experiments.data.vocabulary import Kinds
from experiments.tagger import Tagger
from experiments.task import Carried, Labelled, Task
from lstmjax import HierarchyParams, bidirectional, dense, embedding, hierarchy, ragged

MODELS = ("tagger",)
MANNER = ("another speaker than before", "another speaker than the first", "begins with a capital letter")
LETTERS = 16  # of a longer word, half of these are its first characters and half its last ones
WASTE = 0.3  # padding that the widths add to the longest utterance of each rank in any batch; shorter ones add theirs


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


def build(options: Options, model: Tagger, batch: int, key: Array) -> Task:
    del key  # nothing is drawn
    found = kinds(_corpus(options), options)
    return Task(
        init=functools.partial(
            tagger.init,
            model=model,
            words=_vectors(options, model.embedding),
            tags=len(found.tags),
            characters=len(found.characters),
            features=len(MANNER),
        ),
        batches=_batches,
        loss=functools.partial(_loss, model),
        evaluate=functools.partial(_evaluate, model),
        splits=_splits(options, batch),
        metric="accuracy",
        measure="nll",
        baselines=functools.partial(_baselines, options),
        label=functools.partial(_label, model, found),
        watch=("validation",),
        published="on Switchboard, Kumar et al. 2018: accuracy 0.792",
    )


@functools.lru_cache(maxsize=1)
def _corpus(options: Options) -> dict[str, list[Conversation]]:
    return dialogues.load(options.corpus, options.column)


@functools.lru_cache(maxsize=1)
def _splits(options: Options, batch: int) -> dict[str, dict[str, Array]]:
    """What the runs of a sweep share is made once, here and below."""
    corpus = _corpus(options)
    found = kinds(corpus, options)
    return {name: arranged(conversations, found, batch) for name, conversations in corpus.items()}


@functools.lru_cache(maxsize=1)
def _vectors(options: Options, length: int) -> Float[Array, "words length"]:
    """Where the vectors of words start: from the company they keep in training, whatever the tags."""
    corpus = _corpus(options)
    words = {word: number for number, word in enumerate(kinds(corpus, options).words)}
    said = [[word for text in talk.texts for word in dialogues.words(text)] for talk in corpus["train"]]
    texts = [vocabulary.numbers(talk, words) for talk in said]
    return jnp.asarray(cooccurrence.vectors(texts, len(words), length))


@functools.lru_cache(maxsize=1)
def _baselines(options: Options) -> dict[str, dict[str, float]]:
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

    `said` has arrays of several widths, each with the number of words of each utterance beside it, and `place` says
    which row of them all, one array after another, is the utterance at each step of each conversation. What is said are
    places among the batch's different words, of which `word` is the number of each and `characters` those of its
    spelling; the first of them is the unknown word, which has none.
    """
    said = [[dialogues.words(text) or [vocabulary.UNKNOWN] for text in talk.texts] for talk in conversations]
    dealt = deal([sum(map(len, talk)) for talk in said], batch)
    types = [sorted({vocabulary.UNKNOWN, *(w for t in members for text in said[t] for w in text)}) for members in dealt]
    ranked = [
        sorted(((len(u), t, p) for t in members for p, u in enumerate(said[t])), reverse=True) for members in dealt
    ]
    tallest = max(map(len, ranked))
    longest = np.max([[size for size, _, _ in ranks] + [0] * (tallest - len(ranks)) for ranks in ranked], axis=0)
    edges = np.searchsorted(-longest, -np.array([*ragged.widths(longest, waste=WASTE)[::-1], -1]), side="left")
    steps = max(len(talk) for talk in said)
    arrays = {
        "lengths": np.zeros((len(dealt), batch), np.int32),
        "tags": np.zeros((len(dealt), batch, steps), np.int32),
        "manner": np.zeros((len(dealt), batch, steps, len(MANNER)), np.float32),
        "place": np.zeros((len(dealt), batch, steps), np.int32),
    }
    numbers = {tag: number for number, tag in enumerate(found.tags)}
    buckets = []
    for number, (members, ranks) in enumerate(zip(dealt, ranked, strict=True)):
        row = {talk: position for position, talk in enumerate(members)}
        for talk, position in row.items():
            spoken = conversations[talk]
            arrays["lengths"][number, position] = len(spoken)
            arrays["tags"][number, position, : len(spoken.tags)] = [numbers[tag] for tag in spoken.tags]
            arrays["manner"][number, position, : len(spoken)] = manner(spoken)
        for rank, (_, talk, position) in enumerate(ranks):
            arrays["place"][number, row[talk], position] = rank
        places = {word: place for place, word in enumerate(types[number])}
        ordered = [[places[word] for word in said[talk][position]] for _, talk, position in ranks]
        ordered += [[]] * (tallest - len(ranks))
        buckets.append([ordered[first:after] for first, after in itertools.pairwise(edges)])
    arrays |= {"said": tuple(_bucket(same) for same in zip(*buckets, strict=True))} | _spelt(types, found)
    return jax.tree.map(jnp.asarray, arrays)


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


def _bucket(batches: Sequence[list[list[int]]]) -> tuple[np.ndarray, np.ndarray]:
    """Words [batches, utterances, words] and their numbers [batches, utterances]."""
    words, (lengths, _) = ragged.pad(batches, levels=2, dtype=np.int32)
    return words, lengths


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
    key = batch.get("key")
    keys = [(None, None)] * (len(batch["said"]) + 1)
    if key is not None:
        keys = jax.random.split(key, (len(batch["said"]) + 1, 2))
    levels = list(params["hierarchy"].levels)
    vectors = embedding.apply(params["words"], batch["word"])
    if model.characters:
        spelling = HierarchyParams((levels.pop(0),))
        code = hierarchy.apply(spelling, batch["characters"], lengths=(batch["letters"],), return_sequences=False)
        vectors = jnp.concatenate([vectors, code], axis=-1)

    encoder, rates = levels[0].encoder, tagger.dropouts(model, 1, top=not model.context)[0]
    codes = []
    for (words, lengths), (word_key, level_key) in zip(batch["said"], keys[1:], strict=True):
        xs = vectors[tagger.some_unknown(model, words, word_key)]
        codes.append(hierarchy.encode(encoder, xs, lengths=lengths, code=model.code, dropout=rates, key=level_key))
    ys = jnp.concatenate(codes)[batch["place"]]
    if model.context:
        xs, rates = jnp.concatenate([batch["manner"], ys], axis=-1), tagger.dropouts(model, 1, top=True)[0]
        ys, _ = bidirectional.apply(levels[1].encoder, xs, lengths=batch["lengths"], dropout=rates, key=keys[0][0])
    return dense.apply(params["dense"], ys)


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
