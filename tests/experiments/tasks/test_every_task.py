"""What holds for every task: nothing is read beyond a sequence's end, and the test split is kept for the end."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data.chunks import Sentence
from experiments.data.dialogues import Conversation
from experiments.language import Words
from experiments.models import Model
from experiments.seq2seq import Seq2Seq
from experiments.tagger import Tagger
from experiments.tasks import TASKS, chars, conll2000, jsb, mnist_rows, ptb, swda

# Columns that have padding.
PADDED = {
    "adding": ["pairs"],
    "temporal_order": ["symbols"],
    "jsb": ["chords", "next"],
    "conll2000": ["words", "features", "tags"],
    "rewrite": ["source", "target"],
}


@pytest.fixture(scope="module")
def build():
    """Gives the task of a name, on a little noise where it reads data from files."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield functools.cache(builder(monkeypatch))
    swda._splits.cache_clear()
    swda._vectors.cache_clear()


def builder(monkeypatch):
    rng = np.random.default_rng(0)
    sizes = {"train": 30, "validation": 10, "test": 20}
    images = {n: (rng.random((k, 28, 28), np.float32), np.arange(k, dtype=np.int32) % 10) for n, k in sizes.items()}
    monkeypatch.setattr(mnist_rows.mnist, "load", lambda: images)
    text = "".join(rng.choice(list("abcdef \n"), 12000))
    monkeypatch.setattr(chars.shakespeare, "load", lambda: text)
    words = {n: [str(word) for word in rng.choice(list("abcdef"), 3000)] for n in sizes}
    monkeypatch.setattr(ptb.treebank, "load", lambda: words)
    rolls = {n: [rng.integers(0, 2, (rng.integers(2, 30), 88), np.uint8) for _ in range(k)] for n, k in sizes.items()}
    monkeypatch.setattr(jsb.chorales, "load", lambda: rolls)
    sentences = {n: [sentence(rng) for _ in range(k)] for n, k in sizes.items()}
    monkeypatch.setattr(conll2000.chunks, "load", lambda: sentences)
    talks = {
        n: [Conversation(f"{n}{row}", *zip(*turns(rng), strict=True)) for row in range(k)] for n, k in sizes.items()
    }
    monkeypatch.setattr(swda, "_corpus", lambda options: talks)
    swda._splits.cache_clear()
    swda._vectors.cache_clear()
    models = {
        "ptb": Words(units=3),
        "rewrite": Seq2Seq(embedding=2, units=3),
        "conll2000": Tagger(embedding=2, units=3),
        "swda": Tagger(embedding=2, units=3, context=2),
    }
    return lambda name: TASKS[name].build(TASKS[name].Options(), models.get(name, Model(units=3)), 8, jax.random.key(0))


def sentence(rng):
    words = [str(word) for word in rng.choice(["a", "b", "c"], rng.integers(4, 30))]
    return Sentence(tuple(words), tuple(words), tuple(f"B-{word}" for word in words))


def turns(rng):
    """Speaker, text and tag of each utterance."""
    return [
        ("A", " ".join(rng.choice(["a", "b", "c", "d"], 5)), str(rng.choice(["x", "y"])))
        for _ in range(rng.integers(2, 9))
    ]


@pytest.mark.parametrize("name", TASKS)
def test_padded_tasks_are_those_with_lengths(name, build):
    assert ("length" in build(name).splits["test"]) == (name in PADDED)


@pytest.mark.parametrize("name", PADDED)
def test_what_the_padding_holds_changes_nothing(name, build):
    task = build(name)
    params = jax.jit(task.init)(jax.random.key(1))
    batch = {column: np.asarray(values)[:16] for column, values in task.splits["test"].items()}
    filled = {column: np.array(values) for column, values in batch.items()}
    rng = np.random.default_rng(1)
    for sequences in (filled[column] for column in PADDED[name]):
        for row, length in zip(sequences, filled["length"], strict=True):
            whole = np.issubdtype(row.dtype, np.integer)
            row[length:] = rng.integers(1, 2 if name == "conll2000" else 8, len(row) - length) if whole else np.nan
        assert sum(len(row) - length for row, length in zip(sequences, filled["length"], strict=True)) > 16

    measured = jax.jit(lambda batch: (task.loss(params, batch, None), task.evaluate(params, batch)))
    plain, other = (jax.tree.leaves(measured(b)) for b in (batch, jax.tree.map(jnp.asarray, filled)))
    for figure, same in zip(plain, other, strict=True):
        assert np.isfinite(figure).all()
        np.testing.assert_array_equal(figure, same)


@pytest.mark.parametrize("name", TASKS)
def test_test_split_is_not_watched(name, build):
    task = build(name)
    assert "test" in task.splits
    assert set(task.watch) <= set(task.splits) - {"test"}


# Texts are cut into other pieces for training: their own tests show that the parts follow one another. What is drawn to
# be rewritten has other lengths in training.
CUT = {"chars", "ptb", "rewrite"}


def filled_up(leaf, shape):
    """With zeros, as all padding is, behind each row's own numbers."""
    return np.pad(leaf, [(0, 0), *((0, int(more)) for more in np.array(shape) - leaf.shape[1:])])


@pytest.mark.parametrize("name", sorted(set(TASKS) - CUT))
def test_splits_share_no_example(name, build):
    splits = [jax.tree.leaves(jax.tree.map(np.asarray, columns)) for columns in build(name).splits.values()]
    widest = [np.max([leaf.shape[1:] for leaf in leaves], axis=0) for leaves in zip(*splits, strict=True)]
    examples = [
        {b"".join(leaf.tobytes() for leaf in row) for row in zip(*map(filled_up, leaves, widest), strict=True)}
        for leaves in splits
    ]
    assert all(examples)
    for one, other in itertools.combinations(examples, 2):
        assert not one & other
