"""Dialogue acts: packing changes nothing, the figures are those of a loop, and a tiny corpus is learned."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import tagger
from experiments.data import dialogues
from experiments.data.dialogues import Conversation
from experiments.tagger import Tagger
from experiments.tasks import swda
from experiments.train import Hooks, Train, initial_state, train
from lstmjax import bidirectional, dense, hierarchy

MODELS = {
    "whole": Tagger(embedding=8, units=6, context=5, dropout=0.0),
    "spelt": Tagger(embedding=8, units=6, context=5, characters=3, dropout=0.0),
    "without context": Tagger(embedding=8, units=6, dropout=0.0),
    "without crf": Tagger(embedding=8, units=6, context=5, dropout=0.0, crf=False, code="max"),
    "mean": Tagger(embedding=8, units=6, context=5, dropout=0.0, code="mean"),
    "last": Tagger(embedding=8, units=6, context=5, dropout=0.0, code="last"),
}
SAID = {
    "s": ("I like it here", "we were there , you know", "it is late"),
    "q": ("Do you ?", "where is it ?"),
    "b": ("uh-huh .", ""),
}


def conversation(rng, name, size):
    """Questions are answered by statements of the other speaker, and statements by uh-huh."""
    after = {"": "s", "s": "b", "b": "q", "q": "s"}
    tags, speakers = [], []
    for _ in range(size):
        tags.append(after[tags[-1] if tags else ""])
        speakers.append("AB"[len(tags) % 2])
    texts = [str(rng.choice(SAID[tag])) for tag in tags]
    return Conversation(name, tuple(speakers), tuple(texts), tuple(tags))


@pytest.fixture(scope="module")
def corpus():
    rng = np.random.default_rng(0)
    sizes = {"train": (9, 4, 12, 1, 7, 10, 3), "validation": (5, 8), "test": (6, 2, 4)}
    return {split: [conversation(rng, f"{split}{n}", n) for n in numbers] for split, numbers in sizes.items()}


def forget():
    for made in (swda._read, swda._splits, swda._vectors, swda._baselines):
        made.cache_clear()


@pytest.fixture
def build(corpus, monkeypatch):
    monkeypatch.setattr(swda.dialogues, "load", lambda folder, column: corpus)
    forget()
    return lambda model, batch=3: swda.build(swda.Options(rare=1), model, batch, jax.random.key(0))


def manner_by_hand(talk, step):
    who = talk.speakers
    changed = step > 0 and who[step] != who[step - 1]
    return [float(changed), float(who[step] != who[0]), float("A" <= (talk.texts[step] or " ")[0] <= "Z")]


encode = jax.jit(hierarchy.encode, static_argnames="code")


def spelt(level, word, found):
    characters = np.array([found.characters.index(c) for c in word], int)
    return encode(level.encoder, np.asarray(level.embedding.table)[characters])


def scores_by_hand(model, params, talk, found):
    """One conversation, one utterance at a time, without padding."""
    numbers = {word: number for number, word in enumerate(found.words)}
    levels, codes = list(params["hierarchy"].levels), []
    spelling = levels.pop(0) if model.characters else None
    for text in talk.texts:
        words = dialogues.words(text) or [""]
        xs = np.asarray(params["words"].table)[[numbers[word] for word in words]]
        if spelling is not None:
            xs = np.concatenate([xs, np.stack([spelt(spelling, word, found) for word in words])], axis=-1)
        codes.append(encode(levels[0].encoder, xs, code=model.code))
    ys = np.stack(codes)
    if model.context:
        manner = [manner_by_hand(talk, step) for step in range(len(talk))]
        xs = np.concatenate([np.array(manner, np.float32), ys], axis=-1)
        ys, _ = jax.jit(bidirectional.apply)(levels[1].encoder, xs)
    return dense.apply(params["dense"], jnp.asarray(ys))


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.slow if kind in ("spelt", "without crf") else pytest.mark.long)
        for kind in MODELS
    ],
)
def test_figures_are_those_of_a_loop_over_utterances(build, corpus, kind):
    model = MODELS[kind]
    task, found = build(model), swda.kinds(corpus, swda.Options(rare=1))
    params = jax.jit(task.init)(jax.random.key(1))
    right, nll, count = 0, 0.0, 0
    for talk in corpus["test"]:
        scores = scores_by_hand(model, params, talk, found)[None]
        tags = jnp.array([[found.tags.index(tag) for tag in talk.tags]])
        lengths = jnp.array([len(talk)])
        nll += float(tagger.nll(model, params, scores, tags, lengths)[0])
        right += int(jnp.sum(tagger.decode(model, params, scores, lengths)[0] == tags))
        count += len(talk)
    assert count == 12
    figures = task.score(jax.jit(task.evaluate)(params, task.splits["test"]), task.splits["test"])
    assert figures == {"accuracy": pytest.approx(right / count), "nll": pytest.approx(nll / count, rel=1e-5)}


def said(split, number):
    """What each utterance of a batch says, by its owner, read from where it begins to where it ends."""
    batch = {name: np.asarray(array[number]) for name, array in split.items()}
    words, owner, rows = batch["said"].ravel(), batch["owner"].ravel(), {}
    for talk, size in enumerate(batch["lengths"]):
        for step in range(size):
            of = slice(batch["first"][talk, step], batch["last"][talk, step] + 1)
            name = talk * batch["tags"].shape[-1] + step
            assert set(owner[of]) == {name}
            rows[name] = words[of].tolist()
    assert sum(map(len, rows.values())) == np.sum(owner < batch["tags"].size)
    return rows


@pytest.mark.slow
def test_every_utterance_is_in_its_place_once(corpus):
    found = swda.kinds(corpus, swda.Options(rare=1))
    split = swda.arranged(corpus["train"], found, batch=3)
    back = []
    for number in range(len(split["lengths"])):
        types, width = np.asarray(split["word"][number]), split["tags"].shape[-1]
        rows = said(split, number)
        for talk in range(3):
            steps = int(split["lengths"][number, talk])
            if steps:
                texts = tuple(tuple(found.words[types[w]] for w in rows[talk * width + step]) for step in range(steps))
                tags = tuple(found.tags[tag] for tag in split["tags"][number, talk, :steps])
                back.append((texts, tags, split["manner"][number, talk, :steps].tolist()))
    expected = []
    for talk in corpus["train"]:
        texts = tuple(tuple(dialogues.words(text) or [""]) for text in talk.texts)
        expected.append((texts, talk.tags, [manner_by_hand(talk, step) for step in range(len(talk))]))
    assert sorted(back) == sorted(expected)


def test_batches_are_of_nearly_one_size():
    sizes = np.random.default_rng(0).integers(1, 1000, 103)
    dealt = swda.deal(sizes.tolist(), 8)
    assert sorted(member for members in dealt for member in members) == list(range(103))
    assert sorted(map(len, dealt)) == [7] + [8] * 12
    totals = [sum(sizes[member] for member in members) for members in dealt]
    assert max(totals) < 1.1 * min(totals)


@pytest.mark.slow
@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(20, 50))
def test_packed_rows_hold_everything_once(sizes, width):
    places = swda.pack(sizes, width)
    taken = [{(row, step) for step in range(start, start + n)} for (row, start), n in zip(places, sizes, strict=True)]
    assert len(set().union(*taken)) == sum(sizes)
    assert all(start + n <= width for (_, start), n in zip(places, sizes, strict=True))
    rows = 1 + max(row for row, _ in places)
    assert {row for row, _ in places} == {*range(rows)}
    filled = [sum(n for (r, _), n in zip(places, sizes, strict=True) if r == row) for row in range(rows)]
    assert all(one + other > width for one, other in itertools.combinations(filled, 2))


@pytest.mark.slow
def test_unknown_words_are_one_word(corpus):
    found = swda.kinds(corpus, swda.Options(rare=3))
    talk = Conversation("new", ("A", "A"), ("never heard words", "it is it"), ("s", "s"))
    split = swda.arranged([talk], found, batch=1)
    types = np.asarray(split["word"][0])
    assert types[said(split, 0)[0]].tolist() == [0, 0, 0]
    spelt = {
        "".join(found.characters[c] for c in row[:n])
        for row, n in zip(split["characters"][0].tolist(), split["letters"][0].tolist(), strict=True)
    }
    known = set(found.characters)
    assert "v" not in known
    assert spelt == {"".join(c for c in word if c in known) for word in ("", "never", "heard", "words", "it", "is")}


@pytest.mark.parametrize(
    "kind", [pytest.param("whole", marks=pytest.mark.slow), pytest.param("without context", marks=pytest.mark.long)]
)
def test_features_are_dropped_in_training_and_nowhere_else(build, kind):
    task, still = build(dataclasses.replace(MODELS[kind], dropout=0.5)), build(MODELS[kind])
    params = task.init(jax.random.key(1))
    train = task.splits["train"]
    batch = jax.tree.map(lambda array: array[0], task.batches(train, jax.random.key(2), jnp.arange(1)))
    loss = jax.jit(lambda key: task.loss(params, batch | {"key": key}, None)[0])
    one, other = (float(loss(key)) for key in jax.random.split(jax.random.key(3)))
    assert abs(one - other) > 1e-3
    test, evaluate = task.splits["test"], jax.jit(task.evaluate)
    assert task.score(evaluate(params, test), test) == task.score(jax.jit(still.evaluate)(params, test), test)


@pytest.mark.parametrize(
    ("code", "context"),
    [
        pytest.param("final", 0, marks=pytest.mark.long),
        pytest.param("max", 0, marks=pytest.mark.long),
        pytest.param("max", 5, marks=pytest.mark.slow),
    ],
)
def test_steps_without_an_utterance_reach_no_gradient(build, code, context):
    """Conversations of a batch are of unlike lengths, and the padding of the shorter one belongs to none."""
    task = build(dataclasses.replace(MODELS["whole"], code=code, context=context))
    params = task.init(jax.random.key(1))
    batch = jax.tree.map(lambda array: array[0], task.splits["train"])
    assert int(batch["lengths"].min()) < batch["tags"].shape[-1]
    slopes = jax.jit(jax.grad(lambda params: task.loss(params, batch, None)[0]))(params)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(slopes))


@pytest.mark.long
@pytest.mark.training
def test_learns_who_answers_whom(build):
    task = build(dataclasses.replace(MODELS["whole"], dropout=0.1))
    options = Train(steps=120, batch=3, learning_rate=0.02, log_every=40, evaluate_every=40, save_every=40)
    hooks = Hooks(log=lambda line, rate: None, save=lambda state: None, stop=lambda: False)
    outcome = train(task, options, initial_state(task, options), hooks)
    figures = task.evaluate(outcome.state.params, task.splits["test"])
    assert float(figures["accuracy"]) > 0.95


@pytest.mark.slow
def test_labels_the_lines_of_a_file(build, tmp_path):
    task = build(MODELS["whole"])
    params = task.init(jax.random.key(1))
    (tmp_path / "talk.txt").write_text("A|where is it ?\nB|it is late\nA|uh-huh .\n")
    labelled = task.label(params, tmp_path / "talk.txt")
    assert [line for line, _, _ in labelled] == ["A|where is it ?", "B|it is late", "A|uh-huh ."]
    assert {tag for _, tag, _ in labelled} <= {"s", "q", "b"}
    assert all(0 < probability < 1 for _, _, probability in labelled)
