"""Chorales: padding counts for nothing, and the figures are those of a loop over chorales, steps and notes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import models
from experiments.models import TCN, Model
from experiments.tasks import jsb
from experiments.train import Hooks, Train, initial_state, train

RNG = np.random.default_rng(0)
STEPS = {"train": (9, 5, 12, 7, 6, 3), "validation": (4, 6), "test": (8, 2, 5)}


def roll(steps):
    """Two voices that walk up and down, with a little noise."""
    sounding = np.zeros((steps, 88), np.uint8)
    start, way = RNG.integers(30, 50), RNG.choice([-1, 1])
    for t in range(steps):
        sounding[t, [start + way * t, start + 12 + way * t]] = 1
    return sounding | (RNG.random((steps, 88)) < 0.005)


@pytest.fixture(scope="module")
def rolls():
    return {split: [roll(n).astype(np.uint8) for n in steps] for split, steps in STEPS.items()}


@pytest.fixture(scope="module")
def build(rolls):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(jsb.chorales, "load", lambda: rolls)
        yield functools.cache(lambda model: jsb.build(jsb.Options(), model, 3, jax.random.key(0)))


def nll(outputs, truth):
    """The sum over notes, of one step."""
    chances = 1 / (1 + np.exp(-np.asarray(outputs, np.float64)))
    return -sum(np.log(c if sounds else 1 - c) for c, sounds in zip(chances, truth, strict=True))


def test_figures_are_means_over_all_steps_of_all_chorales(build, rolls):
    task = build(Model(units=5))
    params = jax.jit(task.init)(jax.random.key(1))
    losses, every = [], jax.jit(functools.partial(models.every, Model(units=5)))
    for chorale in rolls["test"]:
        xs = np.zeros((1, 7, 88), np.float32)
        xs[0, : len(chorale) - 1] = chorale[:-1]
        outputs = every(params, xs)[0, : len(chorale) - 1]
        losses.append([nll(o, t) for o, t in zip(outputs, chorale[1:], strict=True)])
    assert [len(steps) for steps in losses] == [7, 1, 4]
    split = task.splits["test"]
    measured = jax.jit(lambda params, split: (task.evaluate(params, split), task.loss(params, split, None)))
    figures, (loss, (measure, _)) = measured(params, split)
    assert float(figures["nll"]) == pytest.approx(np.mean(np.concatenate(losses)), rel=1e-5)
    assert float(loss) == pytest.approx(np.mean(np.concatenate(losses)), rel=1e-5)
    np.testing.assert_allclose(measure, [np.mean(steps) for steps in losses], rtol=1e-5)


def test_chords_are_followed_by_the_next_ones(build, rolls):
    split = build(Model(units=5)).splits["train"]
    assert split["length"].tolist() == [n - 1 for n in STEPS["train"]]
    for chords, following, chorale in zip(split["chords"], split["next"], rolls["train"], strict=True):
        steps = len(chorale) - 1
        np.testing.assert_array_equal(chords[:steps], chorale[:-1])
        np.testing.assert_array_equal(following[:steps], chorale[1:])
        assert not np.asarray(chords[steps:]).any()


def test_baselines_recomputed_note_by_note(build, rolls):
    frequency, transition = [], []
    for chorale in rolls["test"]:
        for before, after in itertools.pairwise(chorale):
            sums = np.zeros(2)
            for note in range(88):
                pairs = [(r[t, note], r[t + 1, note]) for r in rolls["train"] for t in range(len(r) - 1)]
                same = [now for past, now in pairs if past == before[note]]
                for place, known in enumerate(([now for _, now in pairs], same)):
                    chance = (sum(known) + 0.5) / (len(known) + 1)
                    sums[place] -= np.log(chance if after[note] else 1 - chance)
            frequency.append(sums[0])
            transition.append(sums[1])
    baselines = build(Model(units=5)).baselines()
    assert baselines["note frequencies"]["nll"] == pytest.approx(np.mean(frequency))
    assert baselines["note transitions"]["nll"] == pytest.approx(np.mean(transition))


def test_the_linear_baseline_is_where_no_small_change_helps():
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 2, (2, 60, 4)).astype(float)
    best = jsb.linear(before, after)

    def loss(weights):
        chance = 1 / (1 + np.exp(-before @ weights))
        return -np.log(np.where(after == 1, chance, 1 - chance)).sum() + jsb.PENALTY / 2 * (weights**2).sum()

    assert best.shape == (4, 4)
    assert loss(best) < loss(np.zeros((4, 4)))
    for _ in range(50):
        assert loss(best) < loss(best + 0.02 * rng.normal(size=(4, 4)))


def test_the_linear_baseline_reads_the_step_before(build, rolls):
    train, test = ([np.asarray(roll, float) for roll in rolls[name]] for name in ("train", "test"))
    (before, after), (shown, truth) = (
        [
            np.concatenate([np.insert(roll, 88, 1, axis=1)[part] for roll in split])
            for part in (slice(-1), slice(1, None))
        ]
        for split in (train, test)
    )
    chance = 1 / (1 + np.exp(-shown @ jsb.linear(before, after[:, :88])))
    expected = -np.log(np.where(truth[:, :88] == 1, chance, 1 - chance)).sum(axis=1).mean()
    assert build(Model(units=5)).baselines()["linear, the step before"]["nll"] == pytest.approx(expected)


def test_batches_keep_each_chorale_whole_and_draw_a_key_a_step(build):
    task = build(Model(units=5))
    train = task.splits["train"]
    read = jax.jit(lambda steps: jax.tree.map(raw, task.batches(train, jax.random.key(2), steps)))
    batches = jax.tree.map(np.asarray, read(jnp.arange(4)))
    known = {
        np.asarray(chords).tobytes(): int(length)
        for chords, length in zip(train["chords"], train["length"], strict=True)
    }
    lengths = [known[np.asarray(chords).tobytes()] for step in batches["chords"] for chords in step]
    assert lengths == batches["length"].ravel().tolist()
    assert sorted(lengths[:6]) == sorted(train["length"].tolist())
    assert len(np.unique(batches["key"], axis=0)) == 4
    late = read(jnp.arange(2, 6))
    np.testing.assert_array_equal(late["key"][:2], batches["key"][2:])


def raw(leaf):
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


MODELS = {"lstm": Model(units=24), "tcn": TCN(units=24, dropout=0.1)}


@pytest.mark.training
@pytest.mark.parametrize("kind", ["lstm", pytest.param("tcn", marks=pytest.mark.long)])
def test_walks_are_learned(build, kind):
    task = build(MODELS[kind])
    options = Train(steps=150, batch=3, learning_rate=0.01, log_every=50, evaluate_every=50, save_every=50)
    hooks = Hooks(log=lambda line, rate: None, save=lambda state: None, stop=lambda: False)
    start = initial_state(task, options)
    evaluate = jax.jit(task.evaluate)
    before = float(evaluate(start.params, task.splits["train"])["nll"])
    state = train(task, options, start, hooks).state
    after = float(evaluate(state.params, task.splits["train"])["nll"])
    assert after < 6 < before
