"""Chunking: columns hold what was read, F1 is that of chunks counted by hand, and padding counts for nothing."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import tagger
from experiments.data import chunks, files, vocabulary
from experiments.data.chunks import Sentence
from experiments.tagger import Tagger
from experiments.tasks import conll2000
from experiments.tasks.conll2000 import Options
from experiments.train import Hooks, Train, initial_state, train
from lstmjax import crf

RNG = np.random.default_rng(0)
NOUNS = {"DT": ("the", "a"), "NN": ("Trade", "dive", "U.S."), "VB": ("fell", "rose"), "CD": ("1990", "12")}
OPTIONS = Options(rare=1, characters=6)
MODELS = {
    "crf": Tagger(embedding=5, characters=3, units=4, dropout=0.0),
    "no crf": Tagger(embedding=5, characters=3, units=4, dropout=0.0, crf=False),
    "words alone": Tagger(embedding=5, units=4, dropout=0.0),
}


def sentence(words):
    """Noun phrases of two words, and verb phrases."""
    pos, tags = [], []
    while len(pos) < words:
        phrase = [("DT", "NN"), ("CD", "NN"), ("VB",)][RNG.integers(3)]
        pos += phrase
        tags += ["B-VP"] if len(phrase) == 1 else ["B-NP", "I-NP"]
    said = [str(RNG.choice(NOUNS[p])) for p in pos[:words]]
    return Sentence(tuple(said), tuple(pos[:words]), tuple(tags[:words]))


@pytest.fixture(scope="module")
def splits():
    sizes = {"train": RNG.integers(1, 15, 40), "validation": RNG.integers(1, 15, 7), "test": (1, 1, 5, 5, 5, 10, 10)}
    return {split: [sentence(n) for n in lengths] for split, lengths in sizes.items()}


@pytest.fixture(autouse=True)
def widths(monkeypatch):
    monkeypatch.setattr(conll2000, "WIDTHS", (4, 9))


@pytest.fixture
def build(splits, monkeypatch):
    monkeypatch.setattr(conll2000.chunks, "load", lambda: splits)

    def made(model, batch=8, **options):
        return conll2000.build(dataclasses.replace(OPTIONS, **options), model, batch, jax.random.key(0))

    return made


@pytest.fixture
def task(build):
    return build(MODELS["crf"])


@pytest.mark.slow
@pytest.mark.parametrize("pos", [True, False])
def test_columns_hold_what_was_read(build, splits, pos):
    task, parts = build(MODELS["crf"], pos=pos), conll2000.parts_of_speech(splits)
    found = conll2000.kinds(splits, OPTIONS)
    columns = {name: np.asarray(column) for name, column in task.splits["train"].items()}
    assert columns["characters"].shape == (*columns["words"].shape, 6)
    ordered = sorted(splits["train"], key=len)
    assert columns["length"].tolist() == [len(sentence) for sentence in ordered]
    for row, sentence in enumerate(ordered):
        for step, word in enumerate(sentence.words):
            assert found.words[columns["words"][row, step]] == conll2000.normal(word)
            letters = columns["characters"][row, step, : columns["letters"][row, step]]
            assert "".join(found.characters[letter] for letter in letters) == word
            names = [*conll2000.CASES, *(parts if pos else ())]
            (case, *rest) = [name for name, has in zip(names, columns["features"][row, step], strict=True) if has]
            assert [case, *rest] == [conll2000.case(word), *([sentence.pos[step]] if pos else [])]
            assert found.tags[columns["tags"][row, step]] == sentence.chunks[step]
        for name in conll2000.STEPWISE:
            assert not columns[name][row, len(sentence) :].any()


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        *(("trade", "lower"), ("Trade", "initial"), ("A", "initial"), ("US", "upper"), ("U.S.", "upper")),
        *(
            ("McDonald", "mixed"),
            ("eBay", "mixed"),
            ("1990s", "digit"),
            ("A-4", "digit"),
            ("--", "other"),
            ("%", "other"),
        ),
        *(("'s", "lower"), ("Jan.", "initial"), ("bid-wanted", "lower"), ("'Tis", "mixed")),
    ],
)
def test_case_of_a_word(word, kind):
    assert conll2000.case(word) == kind


def test_words_are_read_in_lower_case_and_numbers_by_their_length():
    assert conll2000.normal("Jan.") == "jan."
    assert conll2000.normal("1,950th") == "0,000th"
    assert vocabulary.ends("trade", 6) == "trade"
    assert vocabulary.ends("tradesman", 6) == "traman"


@pytest.mark.slow
def test_rare_words_are_unknown_and_tags_never_are(splits):
    odd = Sentence(("Once", "1990"), ("RB", "CD"), ("B-ADVP", "B-NP"))
    options = Options(rare=2, characters=6)
    found = conll2000.kinds(splits | {"train": [*splits["train"], odd], "test": [odd]}, options)
    assert "once" not in found.words
    assert {"0000", "trade"} <= {*found.words}
    assert found.tags[-1] == "B-ADVP"
    columns = conll2000.padded([odd], found, conll2000.parts_of_speech(splits), options)
    assert columns["words"].tolist() == [[0, found.words.index("0000")]]
    assert columns["features"].sum(-1).tolist() == [[2, 2]]
    assert columns["features"][0, 0, len(conll2000.CASES)]  # RB is no part of speech of the training sentences
    assert "B-ADVP" in conll2000.kinds(splits | {"test": [odd]}, options).tags


def spans(tags):
    """As in the shared task: a chunk ends before B, before O, and where the kind changes."""
    found, start, kind = set(), 0, None
    for place, tag in enumerate([*tags, "O"]):
        begins, name = tag[0], tag[2:] or None
        if kind is not None and (begins != "I" or name != kind):
            found.add((kind, start, place - 1))
            kind = None
        if name is not None and kind is None:
            start, kind = place, name
    return found


def by_hand(truth, decoded):
    right = asked = said = 0
    for one, other in zip(truth, decoded, strict=True):
        right += len(spans(one) & spans(other))
        asked += len(spans(one))
        said += len(spans(other))
    words = [a == b for one, other in zip(truth, decoded, strict=True) for a, b in zip(one, other, strict=True)]
    precision, recall = right / max(said, 1), right / asked
    f1 = 2 * precision * recall / max(precision + recall, 1e-12)
    return {"f1": f1, "precision": precision, "recall": recall, "accuracy": np.mean(words)}


def test_figures_of_two_sentences():
    truth = [["B-NP", "I-NP", "O", "B-VP"], ["B-NP", "B-NP", "I-NP"]]
    decoded = [["I-NP", "I-NP", "O", "I-VP"], ["B-NP", "I-NP", "I-NP"]]
    figures = {"f1": 4 / 7, "precision": 2 / 3, "recall": 2 / 4, "accuracy": 4 / 7}
    assert conll2000.figures(truth, decoded) == pytest.approx(figures)
    assert by_hand(truth, decoded) == pytest.approx(figures)


def test_figures_are_those_of_chunks_counted_by_hand():
    tags = ["O", "B-NP", "I-NP", "B-VP", "I-VP"]
    for _ in range(20):
        truth, decoded = ([[*map(str, RNG.choice(tags, n))] for n in (1, 7, 30, 4)] for _ in range(2))
        truth[1] = ["B-NP"] * 7
        assert conll2000.figures(truth, decoded) == pytest.approx(by_hand(truth, decoded))
    nothing = [["O"] * len(row) for row in truth]
    assert conll2000.figures(truth, nothing)["f1"] == 0


@pytest.mark.slow
def test_baselines_recomputed_word_by_word(task, splits):
    pairs = [p for s in splits["train"] for p in zip(s.words, s.pos, s.chunks, strict=True)]
    commonest = lambda found: max(dict.fromkeys(found), key=found.count)  # noqa: E731
    for name, place in (("commonest tag of the word", 0), ("commonest tag of the part of speech", 1)):
        decoded = []
        for s in splits["test"]:
            given = (s.words, s.pos)[place]
            decoded.append([commonest([p[2] for p in pairs if p[place] == key]) for key in given])
        assert task.baselines()[name] == pytest.approx(by_hand([s.chunks for s in splits["test"]], decoded))


def test_word_that_training_lacks_gets_the_commonest_tag_of_all(splits):
    train = [Sentence(("a", "b", "c"), ("X", "X", "X"), ("O", "B-NP", "B-NP"))]
    test = [Sentence(("new", "a"), ("X", "X"), ("B-NP", "B-NP"))]
    found = conll2000.baselines(train, test)
    assert found["commonest tag of the word"]["accuracy"] == 0.5
    assert found["commonest tag of the part of speech"]["accuracy"] == 1


@pytest.mark.parametrize(
    ("kind", "pieces"),
    [
        pytest.param("crf", 3, marks=pytest.mark.slow),
        pytest.param("words alone", 3, marks=pytest.mark.long),
        pytest.param("crf", 100, marks=pytest.mark.long),
        pytest.param("no crf", 3, marks=pytest.mark.long),
    ],
)
def test_evaluation_is_that_of_single_sentences(build, splits, kind, pieces, monkeypatch):
    monkeypatch.setattr(conll2000, "AT_ONCE", pieces)
    model, found = MODELS[kind], conll2000.kinds(splits, OPTIONS)
    task, parts = build(model), conll2000.parts_of_speech(splits)
    params = jax.tree.map(lambda leaf: 2 * np.asarray(leaf), jax.jit(task.init)(jax.random.key(1)))
    allowed, decoded, losses = crf.bio(found.tags), [], []

    @jax.jit
    def single(params, columns):
        scores = conll2000.emissions(model, params, columns)
        nll = tagger.nll(model, params, scores, columns["tags"], columns["length"], allowed)
        return tagger.decode(model, params, scores, columns["length"], allowed)[0], nll

    for sentence in splits["test"]:
        tags, nll = single(params, conll2000.padded([sentence], found, parts, OPTIONS))
        decoded.append([found.tags[tag] for tag in tags[0].tolist()])
        losses.append(float(nll[0]))
    words = sum(map(len, splits["test"]))
    expected = by_hand([s.chunks for s in splits["test"]], decoded) | {"loss": sum(losses) / words}
    split = task.splits["test"]
    assert task.score(jax.jit(task.evaluate)(params, split), split) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_loss_is_a_mean_over_words_whatever_the_width(task, splits):
    params = jax.jit(task.init)(jax.random.key(1))
    split, model = jax.tree.map(np.asarray, task.splits["train"]), MODELS["crf"]
    allowed = crf.bio(conll2000.kinds(splits, OPTIONS).tags)

    @jax.jit
    def both(batch):
        scores = conll2000.emissions(model, params, batch)
        nll = tagger.nll(model, params, scores, batch["tags"], batch["length"], allowed)
        return nll, task.loss(params, batch, None)

    for rows, width in ((slice(0, 3), 4), (slice(0, 20), 9), (slice(30, 40), 14)):
        batch = {name: column[rows] for name, column in split.items()}
        assert int(batch["length"].max()) <= width
        nll, (loss, (measure, _)) = both(batch)
        assert float(loss) == pytest.approx(float(nll.sum() / batch["length"].sum()), rel=1e-5)
        np.testing.assert_allclose(measure, np.asarray(nll) / batch["length"], rtol=1e-5)


@pytest.mark.slow
def test_batches_are_cut_to_the_smallest_width_that_holds_them(task):
    split = task.splits["train"]
    longest = split["words"].shape[1]

    @jax.jit
    def width(batch):
        return conll2000._cut(lambda cut: jnp.array([cut[name].shape[1] for name in conll2000.STEPWISE]), batch)

    for row, length in enumerate(split["length"].tolist()):
        cut = width({name: column[row : row + 1] for name, column in split.items()})
        assert set(cut.tolist()) == {next(width for width in (4, 9, longest) if length <= width)}


@pytest.mark.slow
def test_forbidden_tags_are_never_chosen(build, splits):
    task, found = build(MODELS["crf"]), conll2000.kinds(splits, OPTIONS)
    params = jax.tree.map(lambda leaf: 5 * np.asarray(leaf), jax.jit(task.init)(jax.random.key(3)))
    split = task.splits["test"]
    decoded = np.asarray(jax.jit(task.evaluate)(params, split)["decoded"])
    for row, length in zip(decoded, split["length"].tolist(), strict=True):
        for before, after in itertools.pairwise(["O", *(found.tags[tag] for tag in row[:length])]):
            assert not after.startswith("I-") or before[2:] == after[2:]


def test_there_is_nothing_above_a_sentence(build):
    with pytest.raises(ValueError, match=r"model.context is 3; there is nothing above a sentence"):
        build(Tagger(context=3))


@pytest.mark.slow
def test_batches_keep_each_sentence_whole_and_draw_a_key_a_step(task):
    train = task.splits["train"]
    batches = task.batches(train, jax.random.key(2), jnp.arange(10))
    columns = [name for name in batches if name != "key"]
    assert {*columns} == {*train}
    known = {b"".join(np.asarray(train[name][row]).tobytes() for name in columns) for row in range(40)}
    read = [b"".join(np.asarray(batches[n][s, r]).tobytes() for n in columns) for s in range(10) for r in range(8)]
    assert {*read} <= known
    assert len(np.unique(jax.random.key_data(batches["key"]), axis=0)) == 10
    gaps = [lengths.max() - lengths.min() for lengths in np.asarray(batches["length"])]
    assert np.mean(gaps) < 5


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"rare": 0}, "data.rare is 0"),
        ({"characters": 7}, "data.characters is 7; it must be an even number"),
        ({"characters": 0}, "data.characters is 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        Options(**wrong)


@pytest.mark.long
@pytest.mark.training
def test_tags_of_words_are_learned(task):
    options = Train(steps=120, batch=8, learning_rate=0.03, log_every=40, evaluate_every=40, save_every=40)
    lines = []
    hooks = Hooks(log=lambda line, rate: lines.append(line), save=lambda state: None, stop=lambda: False)
    train(task, options, initial_state(task, options), hooks)
    assert lines[-1]["validation_f1"] == 1
    assert lines[-1]["validation_loss"] < 0.1 < lines[0]["loss"]


@pytest.mark.long
def test_baseline_of_the_shared_task_if_its_files_are_here():
    if files.locate(chunks.FILES["train"]) is None:
        pytest.skip("CoNLL-2000 is not on this machine: LSTMJAX_DATA names no folder that has it")
    splits = chunks.load()
    found = conll2000.baselines([*splits["train"], *splits["validation"]], splits["test"])
    pos = found["commonest tag of the part of speech"]
    assert {name: round(100 * pos[name], 2) for name in ("precision", "recall", "f1")} == {
        "precision": 72.58,
        "recall": 82.14,
        "f1": 77.07,
    }
    words = [conll2000.normal(word) for sentence in splits["test"] for word in sentence.words]
    known = {*conll2000.kinds(splits, Options()).words}
    assert round(np.mean([word not in known for word in words]), 3) == 0.086
    every = [word for split in splits.values() for sentence in split for word in sentence.words]
    assert sum(len(word) > Options().characters for word in every) == 36
