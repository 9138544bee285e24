"""Reversing and sorting: what is drawn, and what counts as an exact match."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import seq2seq
from experiments.decoding import Decoded
from experiments.seq2seq import Seq2Seq
from experiments.tasks import rewrite

MODEL = Seq2Seq(embedding=3, units=4)


@pytest.fixture(params=["reverse", "sort"])
def options(request):
    return rewrite.Options(order=request.param, symbols=6, longest=10, unseen=3)


@functools.cache
def built(options):
    """The task, and 200 of its batches from a step on."""
    task = rewrite.build(options, MODEL, 3, jax.random.key(0))
    return task, jax.jit(lambda first: task.batches(None, jax.random.key(1), first + jnp.arange(200)))


@pytest.fixture
def task(options):
    return built(options)[0]


@pytest.fixture
def batches_from(options):
    return built(options)[1]


def test_lengths_are_trained_on_or_tested(options):
    assert rewrite.lengths(options) == ((1, 2, 4, 5, 7, 8, 10), (3, 6, 9), (11, 12, 13, 14, 15))
    assert rewrite.lengths(rewrite.Options(longest=3, unseen=2)) == ((1, 3), (2,), (4,))


def test_what_is_to_be_said_is_what_was_read_in_order(task, options, batches_from):
    batches = jax.tree.map(np.asarray, batches_from(0))
    expected = {"reverse": lambda symbols: symbols[::-1], "sort": sorted}[options.order]
    trained = jax.tree.map(lambda column: column.reshape(600, *column.shape[2:]), batches)
    for rows, lengths, width in (
        (trained, {1, 2, 4, 5, 7, 8, 10}, 10),
        (jax.tree.map(np.asarray, task.splits["validation"]), {3, 6, 9}, 10),
        (jax.tree.map(np.asarray, task.splits["test"]), {3, 6, 9, 11, 12, 13, 14, 15}, 15),
    ):
        assert rows["source"].shape[1] == rows["target"].shape[1] == width
        assert set(rows["length"].tolist()) == lengths
        symbols = set()
        for source, target, length in zip(rows["source"], rows["target"], rows["length"], strict=True):
            assert target[:length].tolist() == list(expected(source[:length].tolist()))
            assert not source[length:].any()
            assert not target[length:].any()
            symbols |= set(source[:length].tolist())
        assert symbols == set(range(6))


def test_batches_are_a_function_of_the_key_and_the_step(batches_from):
    batches, later = (np.asarray(batches_from(first)["source"]) for first in (0, 5))
    np.testing.assert_array_equal(later[:195], batches[5:])
    assert not np.array_equal(batches[0], batches[1])


def test_loss_is_the_mean_over_all_that_is_said(task, batches_from):
    params = jax.jit(task.init)(jax.random.key(1))
    batch = jax.tree.map(lambda column: np.asarray(column)[0], batches_from(0))

    @jax.jit
    def both(batch):
        state = seq2seq.encode(MODEL, params, batch["source"], batch["length"])
        return task.loss(params, batch, None), seq2seq.forced(MODEL, params, state, batch["target"], batch["length"])

    (loss, (accuracy, carried)), forced = both(batch)
    assert carried is None
    log_likelihood, correct = map(np.asarray, forced)
    said = np.asarray(batch["length"]) + 1
    assert float(loss) == pytest.approx(-log_likelihood.sum() / said.sum(), rel=1e-6)
    np.testing.assert_allclose(accuracy, correct.sum(axis=1) / said, rtol=1e-6)


def test_an_exact_match_has_every_symbol_and_the_length(task, options, monkeypatch):
    split = jax.tree.map(np.array, task.splits["test"])
    rows, width = split["target"].shape
    said, lengths = np.full((rows, width + 1), options.symbols), split["length"].copy()
    for row, length in enumerate(lengths):
        said[row, :length] = split["target"][row, :length]
    wrong = np.arange(rows) % 4
    said[wrong == 1, 0] = (said[wrong == 1, 0] + 1) % options.symbols  # another symbol
    lengths[wrong == 2] += 1  # one too many
    beam_lengths = np.where(wrong == 3, lengths - 1, lengths)

    def decode(model, params, state, steps, beam=None):
        del model, params, state
        assert steps == width + 1
        assert beam in (None, MODEL.beam)
        return Decoded(jnp.asarray(said), jnp.asarray(beam_lengths if beam else lengths), jnp.zeros(rows))

    monkeypatch.setattr(seq2seq, "decode", decode)
    figures = jax.jit(lambda key, split: task.evaluate(task.init(key), split))(jax.random.key(1), task.splits["test"])
    inside = split["length"] <= options.longest
    assert float(figures["exact match"]) == pytest.approx(np.isin(wrong, (0, 3))[inside].mean())
    assert float(figures["exact match, longer"]) == pytest.approx(np.isin(wrong, (0, 3))[~inside].mean())
    assert float(figures["by beam search"]) == pytest.approx((wrong == 0)[inside].mean())
    assert float(figures["by beam search, longer"]) == pytest.approx((wrong == 0)[~inside].mean())


def test_baselines_say_what_was_read_or_guess(task, options):
    split = jax.tree.map(np.asarray, task.splits["test"])
    same = [
        s[:n].tolist() == t[:n].tolist()
        for s, t, n in zip(*(split[k] for k in ("source", "target", "length")), strict=True)
    ]
    inside = split["length"] <= options.longest
    found = task.baselines()
    assert found["in the order read"]["exact match"] == pytest.approx(np.mean(np.array(same)[inside]))
    assert found["in the order read"]["exact match, longer"] == pytest.approx(np.mean(np.array(same)[~inside]))
    assert found["chance"]["exact match"] == pytest.approx(np.mean(6.0 ** -split["length"][inside]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"symbols": 1}, r"data\.symbols is 1; it must be at least 2"),
        ({"unseen": 1}, r"data\.unseen is 1; it must be at least 2"),
        ({"longest": 4, "unseen": 4}, r"data\.longest is 4; it must be at least 5"),
    ],
)
def test_options_that_leave_nothing_to_train_or_test_on_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        rewrite.Options(**options)
