"""A run over many devices, of one process and of several, is the run over one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import mesh
from experiments.checkpoint import Checkpoints
from experiments.models import Model
from experiments.tasks import adding, airline, chars
from experiments.train import Hooks, Train, initial_state, train

pytestmark = pytest.mark.usefixtures("four_devices")

OPTIONS = Train(steps=20, batch=8, log_every=1, evaluate_every=10, save_every=20, learning_rate=0.01)


@functools.cache
def built(name):
    module, options = {"airline": (airline, airline.Options()), "adding": (adding, adding.Options(length=22))}[name]
    return module.build(options, Model(units=8), 8, jax.random.key(0))


def trained(task, sizes, state=None, options=OPTIONS, stop=lambda: False):
    """The state after training on a mesh of these sizes, its lines, and the mesh."""
    lines: list[dict] = []
    over = mesh.make(mesh.Options(*sizes))
    hooks = Hooks(log=lambda line, rate: lines.append(line), save=lambda state: None, stop=stop)
    start = initial_state(task, options, over) if state is None else state
    return train(task, options, start, hooks, over).state, lines


@functools.cache
def alone(name):
    """The params and the lines of a run over one device."""
    state, lines = trained(built(name), (1, 1))
    return jax.tree.map(np.asarray, state.params), lines


SIZES = [(name, sizes) for name in ("airline", "adding") for sizes in ((2, 1), (4, 1), (1, 2), (1, 4), (2, 2))]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sizes"), SIZES)
def test_losses_and_params_are_those_of_one_device(name, sizes):
    assert_as_alone(name, *trained(built(name), sizes))


def assert_as_alone(name, found, found_lines):
    params, lines = alone(name)
    assert len(lines) == 20
    for figure in lines[-1]:
        np.testing.assert_allclose(
            [line[figure] for line in found_lines if figure in line],
            [line[figure] for line in lines if figure in line],
            rtol=1e-5,
        )
    for ours, one in zip(jax.tree.leaves(found.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(ours, one, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["airline", "adding"])
def test_gradients_are_those_of_one_device(name):
    task = built(name)
    start = initial_state(task, OPTIONS)
    read = jax.jit(lambda key: task.batches(task.splits.get("train"), jax.random.wrap_key_data(key), jnp.array([3])))
    batch = jax.tree.map(lambda leaf: np.asarray(leaf)[0], read(start.key))
    expected = jax.jit(jax.grad(task.loss, has_aux=True))(start.params, batch, start.carried)[0]
    over = mesh.make(mesh.Options(2, 2))
    with jax.set_mesh(over):
        params = initial_state(task, OPTIONS, over).params
        found = jax.jit(jax.grad(task.loss, has_aux=True))(params, batch, start.carried)[0]
    for ours, one in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["airline", pytest.param("adding", marks=pytest.mark.slow)])
def test_each_device_has_its_part(name):
    task = built(name)
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
    options = dataclasses.replace(OPTIONS, steps=10, log_every=5, evaluate_every=10)
    (_, lines), (_, found) = (trained(task, sizes, options=options) for sizes in ((1, 1), (2, 2)))
    np.testing.assert_allclose([line["loss"] for line in found], [line["loss"] for line in lines], rtol=1e-5)
    assert found[-1]["validation_accuracy"] == lines[-1]["validation_accuracy"]


def test_a_checkpoint_is_restored_onto_other_meshes(tmp_path):
    """And the run ends as that of one device does, whose figures and params it has."""
    task = built("airline")
    checkpoints, gone = Checkpoints(tmp_path / "c"), []
    for sizes, until in (((2, 2), 8), ((2, 1), 14), ((1, 1), 20)):
        over = mesh.make(mesh.Options(*sizes))
        state, step = initial_state(task, OPTIONS, over), checkpoints.latest()
        if step is not None:
            state = checkpoints.restore(step, state)
        hooks = Hooks(
            log=lambda line, rate: gone.append(line),
            save=checkpoints.save,
            stop=lambda until=until: gone[-1]["step"] == until,
        )
        state = train(task, OPTIONS, state, hooks, over).state
    assert [line["step"] for line in gone] == list(range(1, 21))
    assert_as_alone("airline", state, gone)


def test_what_cannot_be_divided(monkeypatch):
    params = jax.eval_shape(built("airline").init, jax.random.key(0))
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
