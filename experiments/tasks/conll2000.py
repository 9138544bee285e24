"""CoNLL-2000 chunking: where in a sentence does a noun phrase begin, a verb phrase, ..., and where does it end?

Every word is given as itself, as its characters, as how it is written, and with the part of speech that the corpus
has for it, by a tagger of that time, unless `data.pos` is false. A chunk counts as found where its kind, its first and
its last word are right, and F1 is that of all chunks of a split, by seqeval in its default mode, which counts as the
shared task's own conlleval does.
"""

import dataclasses
import functools
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments import mesh, tagger
from experiments.data import chunks, cooccurrence, vocabulary
from experiments.data.chunks import Sentence
from experiments.data.order import of_like_length
from experiments.data.vocabulary import Kinds
from experiments.models import Params
from experiments.tagger import Tagger
from experiments.task import Carried, Published, Task, each
from lstmjax import Dropout, crf, dense, embedding, hierarchy

MODELS = ("tagger",)
CITED = (
    "Huang, Xu & Yu, Bidirectional LSTM-CRF Models for Sequence Tagging, arXiv:1508.01991, 2015, table 2. Theirs read "
    "features of the spelling and of the words around, too.",
)
PAPER = "Huang, Xu & Yu 2015, random vectors of words"
PUBLISHED = (Published(f"BiLSTM-CRF, {PAPER}", {"f1": 0.9413}), Published(f"BiLSTM, {PAPER}", {"f1": 0.9364}))
AT_ONCE = 100  # held-out sentences in one piece
WIDTHS = (16, 24, 32, 48)  # words that batches are cut to, where that is all; else they are as wide as the longest
CASES = ("digit", "lower", "upper", "initial", "mixed", "other")
STEPWISE = ("words", "characters", "letters", "features", "tags")
Splits = dict[str, list[Sentence]]
Columns = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Options:
    rare: int = 2
    """A word that is seen less often in training is read as unknown: at 2, 8.6 % of the words of the test split."""
    characters: int = 20
    """Of a longer word, of which there is one in 7,000, half of these are its first ones and half its last ones."""
    pos: bool = True
    """Whether words are given with their parts of speech."""

    def __post_init__(self):
        if self.rare < 1:
            raise ValueError(f"data.rare is {self.rare}; it must be at least 1")
        if self.characters < 2 or self.characters % 2:
            raise ValueError(f"data.characters is {self.characters}; it must be an even number of at least 2")


def sources(options: Options) -> Iterator[tuple[str, bytes]]:
    del options
    return chunks.sources()


def build(
    options: Options, model: Tagger, batch: int, key: Array, kept: Mapping[str, Sequence[str]] | None = None
) -> Task:
    del key  # nothing is drawn
    if model.context:
        raise ValueError(f"model.context is {model.context}; there is nothing above a sentence here, so it must be 0")
    splits = chunks.load()
    if kept is None:
        kept = dataclasses.asdict(kinds(splits, options)) | {"pos": parts_of_speech(splits) if options.pos else ()}
    found, pos = Kinds.kept(kept), tuple(kept["pos"])
    every = (tag for split in splits.values() for sentence in split for tag in sentence.chunks)
    vocabulary.check_known(every, found.tags, "tag")
    published = PUBLISHED if model.crf else PUBLISHED[::-1]
    allowed = crf.bio(found.tags)
    return Task(
        init=functools.partial(
            tagger.init,
            model=model,
            words=vectors(splits["train"], found, model.embedding),
            tags=len(found.tags),
            characters=len(found.characters),
            cases=len(CASES) + len(pos),
        ),
        batches=functools.partial(_batches, batch=batch),
        loss=functools.partial(_loss, model, allowed),
        evaluate=functools.partial(_evaluate, model, allowed),
        splits={name: padded(split, found, pos, options) for name, split in splits.items()},
        metric="f1",
        measure="nll",
        baselines=functools.partial(baselines, splits["train"], splits["test"]),
        score=functools.partial(score, tags=found.tags),
        watch=("validation",),
        published=published if chunks.published(splits) else (),
        kept=kept,
        epoch=len(splits["train"]) // batch,
    )


def kinds(splits: Splits, options: Options) -> Kinds:
    """The words and characters of the training sentences, and the tags of all."""
    tags = {name: [tag for sentence in split for tag in sentence.chunks] for name, split in splits.items()}
    words = [word for sentence in splits["train"] for word in sentence.words]
    return Kinds(
        words=vocabulary.known(map(normal, words), options.rare),
        characters=vocabulary.known(itertools.chain.from_iterable(words)),
        tags=vocabulary.labels(tags["train"], itertools.chain.from_iterable(tags.values())),
    )


def parts_of_speech(splits: Splits) -> tuple[str, ...]:
    """Parts of speech of the training sentences, after a place for all others."""
    return vocabulary.known(pos for sentence in splits["train"] for pos in sentence.pos)


def vectors(sentences: Sequence[Sentence], found: Kinds, length: int) -> Float[Array, "words length"]:
    """Where the vectors of words start: from the company they keep in these sentences."""
    places = {word: place for place, word in enumerate(found.words)}
    texts = [vocabulary.numbers([*map(normal, sentence.words)], places) for sentence in sentences]
    return jnp.asarray(cooccurrence.vectors(texts, len(places), length))


def normal(word: str) -> str:
    """In lower case, and of numbers how long they are: "1,950th" is 0,000th."""
    return re.sub(r"\d", "0", word.lower())


def case(word: str) -> str:
    """Which of `CASES` a word is written in; one capital letter is an initial."""
    if any(letter.isdigit() for letter in word):
        return "digit"
    if word.islower():
        return "lower"
    if word.isupper() and len(word) > 1:
        return "upper"
    if word[0].isupper() and (len(word) == 1 or word[1:].islower()):
        return "initial"
    return "mixed" if any(letter.isalpha() for letter in word) else "other"


def padded(sentences: Sequence[Sentence], found: Kinds, pos: tuple[str, ...], options: Options) -> Columns:
    """Numbers for words and tags [sentences, words] and characters [sentences, words, characters].

    `features` says which of `CASES` and then which part of speech a word has, booleans [sentences, words, features];
    `length` has the words of each sentence [sentences], `letters` the characters of each word [sentences, words]. The
    sentences are put in order of length, so that consecutive ones have little padding.
    """
    sentences = sorted(sentences, key=len)
    every = dataclasses.asdict(found) | {"pos": pos}
    places = {name: {kind: place for place, kind in enumerate(of)} for name, of in every.items()}
    shape = (len(sentences), max(map(len, sentences)))
    words, tags, letters = np.zeros((3, *shape), np.int32)
    features = np.zeros((*shape, len(CASES) + len(pos)), bool)
    characters = np.zeros((*shape, options.characters), np.int32)
    for row, sentence in enumerate(sentences):
        of = slice(len(sentence))
        words[row, of] = vocabulary.numbers([*map(normal, sentence.words)], places["words"])
        features[row, np.arange(len(sentence)), [CASES.index(case(word)) for word in sentence.words]] = True
        if pos:
            kind = vocabulary.numbers(sentence.pos, places["pos"])
            features[row, np.arange(len(sentence)), len(CASES) + kind] = True
        tags[row, of] = vocabulary.numbers(sentence.chunks, places["tags"])
        for step, word in enumerate(sentence.words):
            spelling = vocabulary.numbers(vocabulary.ends(word, options.characters), places["characters"])
            letters[row, step] = len(spelling)
            characters[row, step, : len(spelling)] = spelling
    columns = {"words": words, "features": features, "tags": tags, "letters": letters, "characters": characters}
    columns["length"] = np.array([*map(len, sentences)], np.int32)
    return {name: jnp.asarray(column) for name, column in columns.items()}


def score(evaluated: Mapping[str, Array], split: Columns, tags: tuple[str, ...]) -> dict[str, float]:
    lengths = np.asarray(split["length"])
    truth, decoded = (
        [[tags[tag] for tag in row[:length]] for row, length in zip(np.asarray(rows), lengths, strict=True)]
        for rows in (split["tags"], evaluated["decoded"])
    )
    loss = np.sum(np.asarray(evaluated["nll"], np.float64)) / np.sum(lengths)
    return figures(truth, decoded) | {"loss": float(loss)}


def figures(truth: list[list[str]], decoded: list[list[str]]) -> dict[str, float]:
    """Figures of all chunks, in seqeval's default mode, and of all words."""
    from seqeval.metrics.sequence_labeling import accuracy_score, precision_recall_fscore_support  # takes a second

    options: Any = {"average": "micro", "zero_division": 0}  # its annotations take no number for the second
    precision, recall, f1, _ = np.array(precision_recall_fscore_support(truth, decoded, **options), float)
    found = {"f1": f1, "precision": precision, "recall": recall, "accuracy": accuracy_score(truth, decoded)}
    return {name: float(figure) for name, figure in found.items()}


def baselines(train: Sequence[Sentence], test: Sequence[Sentence]) -> Mapping[str, Mapping[str, Any]]:
    """The commonest tag of each word, or that of all words for a new one; and the commonest of each part of speech.

    The latter is the baseline of the shared task, F1 0.7707.
    """
    truth = [[*sentence.chunks] for sentence in test]
    rows = {"commonest tag of the word": _words, "commonest tag of the part of speech": _pos}
    return each({name: lambda of=of: figures(truth, _commonest(train, test, of)) for name, of in rows.items()})


def _words(sentence: Sentence) -> Sequence[str]:
    return sentence.words


def _pos(sentence: Sentence) -> Sequence[str]:
    return sentence.pos


def _commonest(
    train: Sequence[Sentence], test: Sequence[Sentence], of: Callable[[Sentence], Sequence[str]]
) -> list[list[str]]:
    every = Counter(tag for sentence in train for tag in sentence.chunks)
    counts: dict[str, Counter] = defaultdict(Counter)
    for sentence in train:
        for given, tag in zip(of(sentence), sentence.chunks, strict=True):
            counts[given][tag] += 1
    return [[counts.get(given, every).most_common(1)[0][0] for given in of(sentence)] for sentence in test]


def _batches(train: Columns, key: Array, steps: Int[Array, " steps"], batch: int) -> Columns:
    order, noise = jax.random.split(key)
    rows = of_like_length(order, steps, train["length"], batch)
    keys = jax.vmap(functools.partial(jax.random.fold_in, noise))(steps)
    return {name: column[rows] for name, column in train.items()} | {"key": keys}


def emissions(model: Tagger, params: Params, batch: Columns) -> Float[Array, "batch words tags"]:
    """Scores of the tags of each word; some features are dropped where the batch has a key."""
    words_key, levels_key = (None, None) if "key" not in batch else jax.random.split(batch["key"])
    words = embedding.apply(params["words"], tagger.some_unknown(model, batch["words"], words_key))
    tokens = (jnp.concatenate([words, batch["features"].astype(words.dtype)], axis=-1),)
    lengths = (batch["length"],)
    if model.characters:
        tokens, lengths = (batch["characters"], *tokens), (batch["letters"], *lengths)
    rates = [Dropout(inputs=model.dropout)] * len(tokens)
    rates[-1] = Dropout(inputs=model.dropout, outputs=model.dropout)
    ys = hierarchy.apply(
        params["hierarchy"],
        tokens,
        lengths=lengths,
        dropout=rates,
        key=levels_key,
        deterministic=levels_key is None,
        options=mesh.lstm_options(),
    )
    return dense.apply(params["dense"], ys)


def _loss(model: Tagger, allowed: crf.Allowed, params: Params, batch: Columns, carried: Carried):
    nll = _cut(lambda cut: _nll(model, allowed, params, cut, emissions(model, params, cut)), batch)
    return jnp.sum(nll) / jnp.sum(batch["length"]), (nll / batch["length"], carried)


def _nll(model: Tagger, allowed: crf.Allowed, params: Params, batch: Columns, scores: Array) -> Float[Array, " batch"]:
    return tagger.nll(model, params, scores, batch["tags"], batch["length"], allowed)


def _evaluate(model: Tagger, allowed: crf.Allowed, params: Params, split: Columns) -> Columns:
    """The tags and the -log likelihood of each sentence, `AT_ONCE` at a time; the last piece is filled up with none."""
    sentences, longest = split["words"].shape

    def read(piece: Columns) -> tuple[Array, Array]:
        scores = emissions(model, params, piece)
        decoded, _ = tagger.decode(model, params, scores, piece["length"], allowed)
        filled = jnp.pad(decoded, ((0, 0), (0, longest - decoded.shape[1])))
        return filled, _nll(model, allowed, params, piece, scores)

    def pieces(column: Array) -> Array:
        filled = jnp.pad(column, ((0, -sentences % AT_ONCE), *((0, 0),) * (column.ndim - 1)))
        return filled.reshape(-1, AT_ONCE, *column.shape[1:])

    decoded, nll = jax.lax.map(lambda piece: _cut(read, piece), jax.tree.map(pieces, split))
    return {"decoded": decoded.reshape(-1, longest)[:sentences], "nll": nll.ravel()[:sentences]}


def _cut(function: Callable[[Columns], Any], batch: Columns) -> Any:
    """`function` of the batch without the columns that are padding in all of it, to one of `WIDTHS`.

    Each width is compiled by itself, and which of them runs is decided as the batch is read.
    """
    longest = batch["words"].shape[1]
    widths = (*(width for width in WIDTHS if width < longest), longest)

    def to(width: int) -> Callable[[Columns], Any]:
        return lambda batch: function(batch | {name: batch[name][:, :width] for name in STEPWISE})

    fitting = jnp.searchsorted(jnp.array(widths), jnp.max(batch["length"]))
    return jax.lax.switch(fitting, [to(width) for width in widths], batch)
