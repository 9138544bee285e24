"""A run over many devices, of one process and of several, is the run over one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import mesh
from experiments.checkpoint import Checkpoints
from experiments.models import Model
from experiments.tasks import adding, airline, chars
from experiments.train import Hooks, Train, initial_state, train

OPTIONS = Train(steps=50, batch=8, log_every=1, evaluate_every=25, save_every=50, learning_rate=0.01)
TASKS = {
    "airline": lambda: airline.build(airline.Options(), Model(units=8), 8, jax.random.key(0)),
    "adding": lambda: adding.build(adding.Options(length=22), Model(units=8), 8, jax.random.key(0)),
}


def trained(task, sizes, state=None, options=OPTIONS, stop=lambda: False):
    """The state after training on a mesh of these sizes, its lines, and the mesh."""
    lines: list[dict] = []
    over = mesh.make(mesh.Options(*sizes))
    hooks = Hooks(log=lambda line, rate: lines.append(line), save=lambda state: None, stop=stop)
    start = initial_state(task, options, over) if state is None else state
    return train(task, options, start, hooks, over).state, lines


@pytest.fixture(scope="module", params=TASKS)
def alone(request):
    task = TASKS[request.param]()
    return task, *trained(task, (1, 1))


@pytest.mark.parametrize("sizes", [(2, 1), (4, 1), (1, 2), (1, 4), (2, 2)])
def test_losses_and_params_are_those_of_one_device(alone, sizes):
    task, state, lines = alone
    found, found_lines = trained(task, sizes)
    assert len(lines) == 50
    for name in lines[-1]:
        np.testing.assert_allclose(
            [line[name] for line in found_lines if name in line],
            [line[name] for line in lines if name in line],
            rtol=1e-5,
        )
    for ours, one in zip(jax.tree.leaves(found.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(ours, one, rtol=0, atol=1e-5)


def test_gradients_are_those_of_one_device(alone):
    task, *_ = alone
    start = initial_state(task, OPTIONS)
    batch = jax.tree.map(
        lambda leaf: leaf[0],
        task.batches(task.splits.get("train"), jax.random.wrap_key_data(start.key), jnp.array([3])),
    )
    batch, carried = jax.device_get((batch, start.carried))
    expected = jax.jit(jax.grad(task.loss, has_aux=True))(start.params, batch, carried)[0]
    over = mesh.make(mesh.Options(2, 2))
    with jax.set_mesh(over):
        params = initial_state(task, OPTIONS, over).params
        found = jax.jit(jax.grad(task.loss, has_aux=True))(params, batch, carried)[0]
    for ours, one in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, one, rtol=1e-5, atol=1e-6)


def test_each_device_has_its_part(alone):
    task, *_ = alone
    over = mesh.make(mesh.Options(2, 2))
    state = initial_state(task, OPTIONS, over)

    def sizes(array):
        return {shard.data.shape for shard in array.addressable_shards}

    assert sizes(state.params["lstm"].w_h) == {(4, 32)}
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.shape == (8, 32)]
    assert len(moments) == 2
    assert all(sizes(leaf) == {(4, 32)} for leaf in moments)
    placed = mesh.place(over, {"even": np.zeros((6, 3)), "odd": np.zeros((5, 3)), "one": np.float32(1)})
    assert [sizes(placed[name]) for name in ("even", "odd", "one")] == [{(3, 3)}, {(5, 3)}, {()}]


def test_a_state_that_goes_on_is_divided_too(monkeypatch):
    monkeypatch.setattr(chars.shakespeare, "load", lambda: "the sea was wet as wet could be " * 60)
    task = chars.build(chars.Options(steps=8), Model(units=8), 8, jax.random.key(0))
    options = dataclasses.replace(OPTIONS, steps=20, evaluate_every=20)
    (_, lines), (_, found) = (trained(task, sizes, options=options) for sizes in ((1, 1), (2, 2)))
    np.testing.assert_allclose([line["loss"] for line in found], [line["loss"] for line in lines], rtol=1e-5)
    assert found[-1]["validation_accuracy"] == lines[-1]["validation_accuracy"]


def test_a_checkpoint_is_restored_onto_other_meshes(tmp_path):
    task = TASKS["airline"]()
    _, lines = trained(task, (1, 1))
    checkpoints, gone = Checkpoints(tmp_path / "c"), []
    for sizes, until in (((2, 2), 20), ((2, 1), 35), ((1, 1), 50)):
        over = mesh.make(mesh.Options(*sizes))
        state, step = initial_state(task, OPTIONS, over), checkpoints.latest()
        if step is not None:
            state = checkpoints.restore(step, state)
        hooks = Hooks(
            log=lambda line, rate: gone.append(line),
            save=checkpoints.save,
            stop=lambda until=until: gone[-1]["step"] == until,
        )
        train(task, OPTIONS, state, hooks, over)
    assert [line["step"] for line in gone] == list(range(1, 51))
    np.testing.assert_allclose([line["loss"] for line in gone], [line["loss"] for line in lines], rtol=1e-5)


def test_what_cannot_be_divided(monkeypatch):
    params = initial_state(TASKS["airline"](), OPTIONS).params
    with pytest.raises(ValueError, match=r"train.batch is 7; it must be a multiple of mesh.data, which is 2"):
        mesh.check(mesh.Options(data=2), 7, params)
    with pytest.raises(ValueError, match=r"mesh.model is 3; it must divide the 8 units of lstm"):
        mesh.check(mesh.Options(model=3), 8, params)
    with pytest.raises(ValueError, match=r"mesh.model is 2; the model has no LSTM"):
        mesh.check(mesh.Options(model=2), 8, {"dense": params["dense"]})
    with pytest.raises(ValueError, match=r"mesh.data \* mesh.model is 4 \* 2; there are 4 devices in 1 processes"):
        mesh.make(mesh.Options(4, 2))
    with pytest.raises(ValueError, match=r"mesh.model is 0; it must be at least 1"):
        mesh.Options(model=0)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"mesh.data \* mesh.model is 2 \* 1; there are 4 devices in 2 processes"):
        mesh.make(mesh.Options(2, 1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"JAX_PROCESS_ID": "0"},
            "JAX_PROCESS_ID is set and JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES is not; set all",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
            "must be numbers, not two",
        ),
    ],
)
def test_an_environment_that_names_no_processes(monkeypatch, given, message):
    for name in mesh.NAMED:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        mesh.join()
