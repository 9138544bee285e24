"""Copy memory: what is heard and said, and the loss of remembering nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import models
from experiments.data import drawn
from experiments.models import Model
from experiments.tasks import copy


@pytest.mark.parametrize("blanks", [1, 2, 30])
def test_sequence_is_symbols_blanks_marker_blanks(blanks):
    batch = drawn.sequences(lambda k: copy.sequence(k, blanks), jax.random.key(2), 200)
    for heard, said in zip(np.asarray(batch["heard"]), np.asarray(batch["said"]), strict=True):
        symbols = heard[:10].tolist()
        assert heard.tolist() == symbols + [0] * (blanks - 1) + [9] + [0] * 10
        assert said.tolist() == [0] * (blanks + 10) + symbols
    assert set(np.asarray(batch["heard"])[:, :10].ravel()) == set(range(1, 9))


@pytest.mark.parametrize("blanks", [5, 100])
def test_chance_is_the_loss_of_knowing_only_when_to_speak(blanks, monkeypatch):
    task = copy.build(copy.Options(blanks=blanks), Model(units=3), 4, jax.random.key(0))

    def outputs(model, params, xs):
        """Certain of blanks until asked, then even over the eight symbols."""
        speaking = (jnp.arange(xs.shape[1]) >= blanks + 10)[:, None]
        silent, even = jnp.zeros(9).at[0].set(50.0), jnp.zeros(9).at[0].set(-50.0)
        logits = jnp.where(speaking, even[None], silent[None])
        return jnp.broadcast_to(logits, (*xs.shape[:2], 9))

    monkeypatch.setattr(models, "every", outputs)
    figures = jax.jit(task.evaluate)({}, task.splits["test"])
    assert float(figures["loss"]) == pytest.approx(task.baselines()["no memory"]["loss"], rel=1e-5)
    assert task.baselines()["no memory"]["loss"] == pytest.approx(10 * np.log(8) / (blanks + 20))
    assert float(figures["accuracy"]) == pytest.approx(1 / 8, abs=0.02)


def test_loss_is_averaged_over_all_steps():
    task = copy.build(copy.Options(blanks=3), Model(units=4), 4, jax.random.key(0))
    params = jax.jit(task.init)(jax.random.key(1))
    batch = jax.tree.map(lambda column: np.asarray(column)[:2], task.splits["test"])
    every = jax.jit(lambda params, xs: models.every(Model(units=4), params, xs))
    logits = np.asarray(every(params, np.eye(10, dtype=np.float32)[batch["heard"]]), np.float64)
    losses = []
    for b, t in np.ndindex(2, 23):
        outputs = np.exp(logits[b, t]) / np.exp(logits[b, t]).sum()
        losses.append(-np.log(outputs[batch["said"][b, t]]))
    assert float(jax.jit(task.loss)(params, batch, None)[0]) == pytest.approx(np.mean(losses), rel=1e-5)
