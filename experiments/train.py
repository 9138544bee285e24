"""Training: a jitted chunk of steps inside a Python loop that logs, evaluates and saves.

Everything the next step depends on is in `TrainState`, and which sequences a step reads depends on the step
alone, so a run that was stopped and resumed ends bit for bit where one that never stopped does.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt32

from experiments import mesh
from experiments.models import Params
from experiments.task import Carried, Task


@dataclasses.dataclass(frozen=True)
class Train:
    """Settings of [train] in a config."""

    seed: int = 0
    """Decides the first parameters and all data that is drawn or shuffled."""
    steps: int = 1000
    """Stop here at the latest."""
    batch: int = 32
    """Sequences per step."""
    learning_rate: float = 1e-3
    """Of the optimizer, at the start."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Adam, or plain gradient descent."""
    schedule: Literal["constant", "cosine", "decay"] = "constant"
    """Keep the learning rate, bring it to zero over all steps, or multiply it by `decay` again and again."""
    decay: float = 0.5
    """With the schedule "decay": what the rate is multiplied by."""
    decay_from: int = 0
    """With the schedule "decay": the step at which it is for the first time."""
    decay_every: int = 1000
    """With the schedule "decay": steps from one time to the next."""
    clip: float = 1.0
    """The longest gradient, as a norm over all parameters."""
    log_every: int = 100
    """Steps between two lines of metrics; also the steps of one compiled chunk."""
    evaluate_every: int = 100
    """Steps between two looks at held-out data; a multiple of log_every."""
    save_every: int = 500
    """Steps between two checkpoints; a multiple of log_every."""

    def __post_init__(self):
        for name in ("steps", "batch", "log_every", "learning_rate", "clip", "decay", "decay_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"train.{name} is {getattr(self, name)}; it must be above 0")
        if self.decay_from < 0:
            raise ValueError(f"train.decay_from is {self.decay_from}; it must be at least 0")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"train.seed is {self.seed}; it must be from 0 to 2**31 - 1")
        for name in ("steps", "batch", "decay_from", "decay_every", "log_every", "evaluate_every", "save_every"):
            if getattr(self, name) >= 2**31:
                raise ValueError(f"train.{name} is {getattr(self, name)}; it must be below 2**31")
        for name in ("evaluate_every", "save_every"):
            if (every := getattr(self, name)) <= 0 or every % self.log_every:
                raise ValueError(f"train.{name} is {every}; it must be a multiple of train.log_every, {self.log_every}")


@flax.struct.dataclass
class TrainState:
    step: Int[Array, ""]
    params: Params
    optimizer: optax.OptState
    key: UInt32[Array, " words"]
    recent: Float[Array, " sequences"] | None
    """The errors of the most recent training sequences, where the task has a criterion."""
    carried: Carried
    """What the next batch is given of the last one, where the task has such a thing."""


@dataclasses.dataclass(frozen=True)
class Hooks:
    """Functions that the loop calls after a chunk."""

    log: Callable[[dict, float], None]
    """Takes a line of metrics, and the steps per second so far, which is no part of it."""
    save: Callable[[TrainState], None]
    stop: Callable[[], bool]


@dataclasses.dataclass(frozen=True)
class Outcome:
    state: TrainState
    finished: bool
    compile_seconds: float
    train_seconds: float
    steps: int


class NonFiniteLoss(ArithmeticError):
    pass


def keys(seed: int) -> tuple[Array, Array, Array]:
    """For the first parameters, for the training data, and for test sequences where they are drawn."""
    params, data, test = jax.random.split(jax.random.key(seed), 3)
    return params, data, test


def initial_state(task: Task, options: Train, over: Mesh | None = None) -> TrainState:
    """State that training starts from, on the devices of a mesh, or on one."""
    over = over or mesh.one()
    make = functools.partial(make_state, task, options)
    with jax.set_mesh(over):
        return jax.jit(make, out_shardings=mesh.of_state(over, jax.eval_shape(make)))()


def make_state(task: Task, options: Train) -> TrainState:
    params_key, data_key, _ = keys(options.seed)
    params = task.init(params_key)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        optimizer=_optimizer(options).init(params),
        key=jax.random.key_data(data_key),
        recent=task.criterion.start() if task.criterion else None,
        carried=task.carried(params),
    )


def train(task: Task, options: Train, state: TrainState, hooks: Hooks, over: Mesh | None = None) -> Outcome:
    """Trains from `state` until the criterion is met, the steps are done, or `hooks.stop()` says so."""
    over = over or mesh.one()
    with jax.set_mesh(over):
        return _train(task, options, state, hooks, over)


def _train(task: Task, options: Train, state: TrainState, hooks: Hooks, over: Mesh) -> Outcome:
    started = time.perf_counter()
    first, data = int(state.step), mesh.place(over, task.splits.get("train"))
    some = chunk(task, options, mesh.of_state(over, state), over).lower(state, data).compile()
    watched = {name: mesh.place(over, task.splits[name]) for name in task.watch}
    evaluate = {name: evaluation(task, over).lower(state.params, split).compile() for name, split in watched.items()}
    compiled = time.perf_counter()

    finished, stopped = bool(_finished(state, task, options)), False
    while not finished and not stopped:
        before = int(state.step)
        state, *rows, finite = some(state, data)
        step = int(state.step)
        losses, measures, counted = (np.asarray(row)[: step - before] for row in rows)
        _check_finite(losses, bool(finite), before)
        finished = bool(_finished(state, task, options))

        line = {"step": step, "sequences": step * options.batch}
        line |= {"loss": _mean(losses, np.any(counted, axis=1)), f"train_{task.measure}": _mean(measures, counted)}
        if finished or step % options.evaluate_every == 0:
            for name, measured in evaluate.items():
                figures = task.score(measured(state.params, watched[name]), task.splits[name])
                line |= {f"{name}_{k}": v for k, v in figures.items()}
        hooks.log(line, (step - first) / (time.perf_counter() - compiled))
        stopped = not finished and hooks.stop()
        if finished or stopped or step % options.save_every == 0:
            hooks.save(state)

    done = time.perf_counter()
    return Outcome(state, finished, compiled - started, done - compiled, int(state.step) - first)


def evaluation(task: Task, over: Mesh) -> Any:
    """`task.evaluate` as a program whose results every process can read."""
    return jax.jit(task.evaluate, out_shardings=mesh.whole(over))


def criterion_met(task: Task, state: TrainState) -> Bool[Array, ""]:
    if task.criterion is None or state.recent is None:
        return jnp.bool_(False)
    return task.criterion.met(state.recent)


def chunk(task: Task, options: Train, lie: Any, over: Mesh) -> Any:
    """`log_every` steps as one program; steps beyond the end of training leave the state as it is.

    A chunk always starts on a multiple of `log_every`, so the same program runs whatever came before. `lie` says how
    the state lies on the devices.
    """
    optimizer = _optimizer(options)

    def update(state: TrainState, batch):
        gradient = jax.value_and_grad(task.loss, has_aux=True)
        (loss, (measure, carried)), grads = gradient(state.params, batch, state.carried)
        updates, moments = optimizer.update(grads, state.optimizer, state.params)
        recent = state.recent
        if task.criterion is not None and recent is not None:
            recent = task.criterion.push(recent, measure)
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            optimizer=moments,
            recent=recent,
            carried=carried,
        )
        counted = jnp.ones(options.batch, bool) if task.counted is None else task.counted(batch)
        return state, (loss, measure, counted)

    def skip(state: TrainState, batch):
        del batch
        return state, (jnp.float32(0), jnp.zeros(options.batch), jnp.zeros(options.batch, bool))

    def step(state: TrainState, batch):
        return jax.lax.cond(_finished(state, task, options), skip, update, state, batch)

    def some(state: TrainState, data):
        steps = state.step + jnp.arange(options.log_every)
        batches = mesh.divided(task.batches(data, jax.random.wrap_key_data(state.key), steps))
        state, rows = jax.lax.scan(step, state, batches)
        finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state.params)]))
        return state, *rows, finite

    return jax.jit(some, donate_argnums=0, out_shardings=(lie, *[mesh.whole(over)] * 4))


def _finished(state: TrainState, task: Task, options: Train) -> Bool[Array, ""]:
    return (state.step >= options.steps) | criterion_met(task, state)


def _optimizer(options: Train) -> optax.GradientTransformation:
    step = {"adam": optax.adam, "sgd": optax.sgd}[options.optimizer]
    return optax.chain(optax.clip_by_global_norm(options.clip), step(_schedule(options)))


def _schedule(options: Train) -> optax.ScalarOrSchedule:
    rate = options.learning_rate
    if options.schedule == "cosine":
        return optax.cosine_decay_schedule(rate, options.steps)
    if options.schedule == "decay":
        cut = optax.exponential_decay(rate * options.decay, options.decay_every, options.decay, staircase=True)
        return optax.join_schedules([optax.constant_schedule(rate), cut], [options.decay_from])
    return rate


def _check_finite(losses: np.ndarray, finite: bool, before: int) -> None:
    wrong = np.flatnonzero(~np.isfinite(losses))
    if wrong.size:
        step = before + int(wrong[0]) + 1
        raise NonFiniteLoss(f"the loss is {losses[wrong[0]]} at step {step}")
    if not finite:
        raise NonFiniteLoss(f"not all parameters are finite after step {before + len(losses)}")


def _mean(values: np.ndarray, counted: np.ndarray) -> float | None:
    """Over what counts; None where nothing does."""
    return float(np.mean(values, dtype=np.float64, where=counted)) if counted.any() else None
