"""The loop against a plain one: same steps, same figures, and a stop where the criterion or a NaN says so."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.commands import _task, _test
from experiments.config import Config
from experiments.models import Model
from experiments.task import Criterion
from experiments.tasks import TASKS, airline
from experiments.train import Hooks, NonFiniteLoss, Train, criterion_met, initial_state, keys, train

AIRLINE = airline.build(airline.Options(), Model(units=3), 8, jax.random.key(0))
OPTIONS = Train(steps=25, batch=8, log_every=10, evaluate_every=20, save_every=20, learning_rate=0.01)


@functools.cache
def start():
    return initial_state(AIRLINE, OPTIONS)


copy = jax.jit(lambda state: jax.tree.map(jnp.copy, state))


def begun(recent=None):
    """The state that training of AIRLINE starts from, whatever its options; it is given away there."""
    return copy(start()).replace(recent=recent)


def trained(task, options, state=None, stop=lambda: False):
    lines, saved = [], []
    hooks = Hooks(
        log=lambda line, rate: lines.append(line),
        save=lambda state: saved.append(int(state.step)),
        stop=stop,
    )
    return train(task, options, state or initial_state(task, options), hooks), lines, saved


RATES = {
    "constant": lambda step: 1.0,
    "cosine": lambda step: 0.5 + 0.5 * np.cos(np.pi * step / 25),
    "decay": lambda step: 1.0 if step < 6 else 0.3 if step < 13 else 0.09 if step < 20 else 0.027,
}


@functools.cache
def batches():
    """The first 25."""
    read = jax.jit(lambda key, steps: AIRLINE.batches(AIRLINE.splits["train"], jax.random.wrap_key_data(key), steps))
    return jax.tree.map(np.asarray, read(start().key, jnp.arange(25)))


gradient = jax.jit(jax.value_and_grad(AIRLINE.loss, has_aux=True))


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [
        ("adam", "cosine"),
        ("adam", "decay"),
        ("sgd", "constant"),
        pytest.param("adam", "constant", marks=pytest.mark.slow),
        pytest.param("sgd", "decay", marks=pytest.mark.slow),
    ],
)
def test_loop_takes_the_steps_a_plain_loop_takes(optimizer, schedule):
    options = dataclasses.replace(OPTIONS, schedule=schedule, optimizer=optimizer, clip=0.1)
    options = dataclasses.replace(options, decay=0.3, decay_from=6, decay_every=7)
    outcome, lines, saved = trained(AIRLINE, options)

    params = jax.tree.map(np.asarray, initial_state(AIRLINE, options).params)
    moments = (jax.tree.map(np.zeros_like, params),) * 2
    losses = []
    for step in range(25):
        batch = jax.tree.map(lambda column, step=step: column[step], batches())
        (loss, _), grads = jax.tree.map(np.asarray, gradient(params, batch, None))
        losses.append(float(loss))
        norm = np.sqrt(sum(float(np.sum(g**2)) for g in jax.tree.leaves(grads)))
        grads = jax.tree.map(lambda g, n=norm: g * np.float32(min(1.0, 0.1 / n)), grads)
        rate = np.float32(0.01) * np.float32(RATES[schedule](step))
        if optimizer == "sgd":
            params = jax.tree.map(lambda p, g, r=rate: p - r * g, params, grads)
            continue
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments[0], grads)
        second = jax.tree.map(lambda m, g: 0.999 * m + 0.001 * g**2, moments[1], grads)
        scales = (np.float32(1 - 0.9 ** (step + 1)), np.float32(1 - 0.999 ** (step + 1)))
        params = jax.tree.map(
            lambda p, m, v, r=rate, s=scales: p - r * (m / s[0]) / (np.sqrt(v / s[1]) + 1e-8),
            params,
            first,
            second,
        )
        moments = (first, second)

    assert [line["step"] for line in lines] == [10, 20, 25]
    assert [line["sequences"] for line in lines] == [80, 160, 200]
    means = [np.mean(losses[:10]), np.mean(losses[10:20]), np.mean(losses[20:])]
    np.testing.assert_allclose([line["loss"] for line in lines], means, rtol=1e-3)
    assert ["train_rmse" in line for line in lines] == [False, True, True]
    assert saved == [20, 25]
    assert outcome.finished
    for ours, plain in zip(jax.tree.leaves(outcome.state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=2e-3, atol=2e-4)


def test_figures_that_are_watched_are_those_of_the_score():
    """Made of what `evaluate` returned and of the split, outside of JAX."""

    def evaluate(params, split):
        return {"far": jnp.abs(split["passengers"]) > 200}

    def score(evaluated, split):
        assert evaluated["far"].shape == split["passengers"].shape
        return {"rmse": len(np.flatnonzero(evaluated["far"])) / 10}

    task = dataclasses.replace(AIRLINE, evaluate=evaluate, score=score)
    _, lines, _ = trained(task, OPTIONS, begun())
    far = int(np.sum(np.asarray(task.splits["train"]["passengers"]) > 200))
    assert [line.get("train_rmse") for line in lines] == [None, far / 10, far / 10]
    tested = int(np.sum(np.asarray(task.splits["test"]["passengers"]) > 200))
    assert _test(task, start()) == {"rmse": tested / 10}


def test_criterion_stops_the_run_at_its_step():
    """With a criterion that anything meets, after as many sequences as it looks at."""
    task = dataclasses.replace(AIRLINE, criterion=Criterion(each=999.0, mean=999.0, sequences=104))
    outcome, lines, saved = trained(task, OPTIONS, begun(task.criterion.start()))
    assert int(outcome.state.step) == 13
    assert [line["sequences"] for line in lines] == [80, 104]
    assert outcome.finished
    assert saved == [13]
    assert criterion_met(task, outcome.state)
    assert not criterion_met(AIRLINE, start())

    plain = trained(AIRLINE, dataclasses.replace(OPTIONS, steps=13), begun())[0].state
    for ours, other in zip(jax.tree.leaves(outcome.state.params), jax.tree.leaves(plain.params), strict=True):
        np.testing.assert_array_equal(ours, other)


def test_errors_before_the_update_fill_the_window():
    task = dataclasses.replace(AIRLINE, criterion=Criterion(each=0.0, mean=0.0, sequences=20))
    options = dataclasses.replace(OPTIONS, steps=1)
    first = initial_state(task, options)
    batch = jax.tree.map(lambda column: column[0], batches())
    (_, (errors, _)), _ = gradient(first.params, batch, None)
    outcome, _, _ = trained(task, options, first)
    assert np.isinf(outcome.state.recent[:-8]).all()
    np.testing.assert_allclose(outcome.state.recent[-8:], errors, rtol=1e-4)


def test_stop_ends_on_a_chunk_and_going_on_is_bit_for_bit():
    whole, lines, _ = trained(AIRLINE, OPTIONS, begun())
    first, head, saved = trained(AIRLINE, OPTIONS, begun(), stop=lambda: True)
    assert (int(first.state.step), first.finished, saved) == (10, False, [10])
    rest, tail, _ = trained(AIRLINE, OPTIONS, state=first.state)
    assert head + tail == lines
    for ours, other in zip(jax.tree.leaves(rest.state), jax.tree.leaves(whole.state), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(other).tobytes()


def test_loss_that_is_no_number_is_named_with_its_step():
    def loss(params, batch, carried):
        value, aux = AIRLINE.loss(params, batch, carried)
        return jnp.where(batch["target"][0] == poison, jnp.nan, value), aux

    targets = batches()["target"][:20, 0]
    poison = targets[13]
    expected = int(np.argmax(targets == poison)) + 1
    task = dataclasses.replace(AIRLINE, loss=loss)
    with pytest.raises(NonFiniteLoss, match=f"the loss is nan at step {expected}$"):
        trained(task, OPTIONS, begun())


@pytest.mark.parametrize(("name", "column"), [("adding", "pairs"), ("temporal_order", "symbols"), ("copy", "heard")])
def test_test_sequences_are_none_of_the_training_sequences(name, column, monkeypatch):
    module, options, handed = TASKS[name], dataclasses.replace(OPTIONS, seed=3), []
    build = module.build
    monkeypatch.setattr(module, "build", lambda *arguments: handed.append(arguments[-1]) or build(*arguments))
    task = _task(Config(task=name, name="any", data=module.Options(), model=Model(units=3), train=options))
    state = initial_state(task, options)
    assert handed == [keys(3)[2]]
    assert not np.array_equal(jax.random.key_data(handed[0]), state.key)

    read = jax.jit(lambda steps: task.batches(task.splits.get("train"), jax.random.wrap_key_data(state.key), steps))
    tested_on = np.asarray(task.splits["test"][column])
    trained_on = np.asarray(read(jnp.arange(250))[column]).reshape(2000, *tested_on.shape[1:])
    rows = {row.tobytes() for row in trained_on} | {row.tobytes() for row in tested_on}
    assert len(rows) == 2000 + len(tested_on)


def test_seed_decides_the_parameters_and_the_data():
    first, again, other = (initial_state(AIRLINE, dataclasses.replace(OPTIONS, seed=s)) for s in (0, 0, 1))
    for name in ("params", "key"):
        flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(getattr(s, name))]) for s in (first, again, other)]
        np.testing.assert_array_equal(flat[0], flat[1])
        assert not np.array_equal(flat[0], flat[2])
