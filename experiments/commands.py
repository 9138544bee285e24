"""The commands behind `python -m experiments`; each returns the exit code."""

import contextlib
import dataclasses
import functools
import json
import math
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.table import Table

import lstmjax
from experiments import kept, mesh, report, results, runs
from experiments.checkpoint import Checkpoints
from experiments.config import Config, ConfigError, dumps, head, load, load_sweep
from experiments.data import files
from experiments.data.files import DataError
from experiments.report import console
from experiments.runs import Run, RunError
from experiments.task import FAILED, Task, attempted, each
from experiments.tasks import TASKS
from experiments.train import (
    Hooks,
    NonFiniteLoss,
    Outcome,
    TrainState,
    criterion_met,
    evaluation,
    initial_state,
    keys,
    train,
)

SIGNALLED = 128  # and the signal's number, as shells and schedulers have it
INTERRUPTED = SIGNALLED + signal.SIGINT
SEED = "train.seed"
RESULTS = Path("docs/results")


class Stopped(KeyboardInterrupt):
    """By a signal, while nothing had to be saved: what to say, and the exit code."""

    def __init__(self, said: str, exit_code: int):
        super().__init__(said)
        self.exit_code = exit_code


def run(path: str, overrides: list[str]) -> int:
    return _start(load(path, overrides))[1]


def sweep(path: str, overrides: list[str]) -> int:
    """Runs every combination in turn, then compares them."""
    members = load_sweep(path, overrides)
    for _, config in members:
        _over(config, _task(config))  # what cannot run is found before anything does
    started = []
    for choice, config in members:
        folder, code = _start(config)
        if code:
            return code
        started.append((folder, choice))
    if not mesh.leads():
        return 0
    results = [runs.result(folder) or {} for folder, _ in started]
    columns = ["run", *started[0][1], "sequences", *results[0]["test"]]
    table = Table(*columns, title=f"sweep {path}", title_justify="left")
    for (folder, choice), result in zip(started, results, strict=True):
        figures = (f"{result['sequences']:,}", *map(report.number, result["test"].values()))
        table.add_row(str(folder.folder), *map(str, choice.values()), *figures)
    for others, figures in _over_seeds([choice for _, choice in started], results).items():
        spread = (f"{report.number(np.mean(values))} ± {report.number(np.std(values, ddof=1))}" for values in figures)
        shown = dict(others) | {SEED: "mean ± standard deviation"}
        table.add_row("", *(str(shown[name]) for name in started[0][1]), "", *spread, style="bold")
    console.print(table)
    return 0


def _over_seeds(choices: list[dict], results: list[dict]) -> dict[tuple, list[tuple[float, ...]]]:
    """Test figures of all seeds, by what else is varied; nothing where there are not at least two seeds."""
    groups: dict[tuple, list[list[float]]] = {}
    for choice, result in zip(choices, results, strict=True):
        others = tuple((name, value) for name, value in choice.items() if name != SEED)
        groups.setdefault(others, []).append(list(result["test"].values()))
    return {others: list(zip(*rows, strict=True)) for others, rows in groups.items() if SEED in choices[0] and rows[1:]}


def resume(folder: str, overrides: list[str], data_changed: bool = False) -> int:
    """Continues from the newest whole checkpoint; what was logged after it is dropped and done again.

    Only what [mesh] says may be another than before, and the data only where that is accepted.
    """
    run = runs.find(folder)
    config, before = load(run.config, overrides), load(run.config)
    if dataclasses.replace(config, mesh=before.mesh) != before:
        raise ConfigError(f"resume {folder}: no option but --mesh.data and --mesh.model can change; start another run")
    result = runs.result(run)
    if result and "baselines" in result:
        console.print(f"{run.folder} is finished: nothing to resume. Its result is in {run.result}")
        return 0
    found, differing = _data(run, config, data_changed, result=bool(result))
    task = _task(config, found)
    over = _over(config, task)
    with _interrupt(run) as asked, _alone(run):
        if differing or "changed" in found:
            task = dataclasses.replace(task, published=())  # those are of one data set
        if result:
            console.print(f"{run.folder} has its result; its baselines are missing")
            return _compare(run, config, task, asked)
        checkpoints = Checkpoints(run.checkpoints)
        state = _restored(run, config, task, checkpoints, over) or initial_state(task, config.train, over)

        @functools.cache
        def accept() -> None:
            if differing:
                mesh.by_leader(lambda: kept.accept(run, found, differing, task))

        mesh.by_leader(lambda: _go_back(run, checkpoints, int(state.step)))
        for key, (then, now) in runs.differences(run).items():
            console.print(f"{key} was {then} when the run began and is {now}: the end need not be the same bit for bit")
        console.print(f"{run.folder}: on from step {int(state.step)}")
        return _train(run, config, task, checkpoints, state, over, asked, accept)


def _go_back(run: Run, checkpoints: Checkpoints, step: int) -> None:
    """Drops what was written after a step."""
    checkpoints.set_aside(after=step)
    runs.truncate(run.metrics, step)


def evaluate(folder: str, data_changed: bool = False) -> int:
    run = runs.find(folder)
    config = load(run.config)
    task = _task(config, _data(run, config, data_changed)[0])
    state = _trained(run, config, task)
    title = f"{run.folder} at step {int(state.step)}"
    console.print(report.table({_kind(config): _test(task, state)}, _baselines(task), title))
    return 0


def predict(folder: str, file: str) -> int:
    """Labels the lines of a text file: tag, probability and line, as columns parted by tabs.

    The words and tags are those that the run keeps: its data is not read.
    """
    run = runs.find(folder)
    config = load(run.config)
    if not hasattr(TASKS[config.task], "labeller"):
        raise RunError(f"{run.folder}: the task {config.task} has no lines to label")
    task = TASKS[config.task].labeller(config.model, kept.load(run, config)["kept"])
    state = _trained(run, config, task)
    try:
        labelled = task.label(state.params, Path(file))
    except DataError as error:
        raise RunError(str(error)) from None
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror}") from None
    for line, tag, probability in labelled:
        print(f"{tag}\t{probability:.3f}\t{line}")
    return 0


def show() -> int:
    """The configs, each by the first line of its head, and the runs, each by its result."""
    table = Table("config", "what it is")
    for path in sorted(Path("configs").glob("*.toml")):
        table.add_row(str(path), next(iter(head(path)), ""))
    console.print(table)
    table = Table("run", "steps", "result")
    for run in runs.all_runs(Path("runs")):
        table.add_row(str(run.folder), *_standing(run))
    console.print(table)
    return 0


def write_results(folders: list[str]) -> int:
    """Records finished runs of configs/, those named or all in runs/, in docs/results/, and writes docs/results.md."""
    found = [runs.find(folder) for folder in folders] or runs.all_runs(Path("runs"))
    for reason in results.collect(found, Path("configs"), RESULTS, named=bool(folders)):
        console.print(f"left out: {reason}")
    page = results.write(Path("configs"), RESULTS)
    console.print(f"{page} and the pictures in {RESULTS} are written")
    return 0


def _standing(run: Run) -> tuple[str, str]:
    """Number of steps that a run has logged, and its result."""
    try:
        lines = runs.read(run.metrics)
        steps = str(lines[-1]["step"] if lines else 0)
        result = runs.result(run)
        if result is None:
            return steps, "not finished"
        test = result["test"]
    except (ValueError, KeyError) as error:
        return "", f"cannot be read: {error!r}"
    figures = [f"{name} {report.number(value)}" for name, value in test.items()]
    return steps, "  ".join([*figures, *["(the data changed)"] * ("data_changed" in result)])


def _trained(run: Run, config: Config, task: Task) -> TrainState:
    state = _restored(run, config, task, Checkpoints(run.checkpoints), mesh.one())
    if state is None:
        raise RunError(f"{run.folder} has no checkpoint yet; start it on with {_command('resume', run)}")
    return state


def _restored(run: Run, config: Config, task: Task, checkpoints: Checkpoints, over: Mesh) -> TrainState | None:
    """State of the newest whole checkpoint, with a warning for each newer one; None where none was written."""
    step, wrong = checkpoints.newest()
    if (found := mesh.greatest(step or 0)) != (step or 0):
        raise RunError(f"{checkpoints.folder}: another process finds step {found} there; all must see one folder")
    if step is None:
        if wrong:
            faults = "".join(f"\n  {path}: {fault}" for path, fault in wrong.items())
            raise RunError(
                f"no checkpoint of {run.folder} is whole; to train from the start, `run` {run.config}{faults}"
            )
        return None
    if mesh.leads():
        for path, fault in wrong.items():
            print(f"warning: {path} is not whole: {fault}; taking {checkpoints.path(step)}", file=sys.stderr)
    return checkpoints.restore(step, initial_state(task, config.train, over))


def _start(config: Config) -> tuple[Run, int]:
    task = _task(config)
    over = _over(config, task)
    run = _begun(config, task)
    with _interrupt(run) as asked, _alone(run):
        state = initial_state(task, config.train, over)
        console.print(f"{run.folder}: {config.task} on {_devices(over)}")
        console.print(str(lstmjax.summary(state.params)))
        return run, _train(run, config, task, Checkpoints(run.checkpoints), state, over, asked)


def _begun(config: Config, task: Task) -> Run:
    """A new folder, in which what the run keeps is written down."""

    def create() -> Path:
        return runs.create(config.out, config.name, dumps(config), kept.first(config, task)).folder

    return Run(Path(mesh.by_leader(create)))


def _data(run: Run, config: Config, data_changed: bool, result: bool = False) -> tuple[dict[str, Any], list[str]]:
    """Kept data of the run, and the differences of its data now, which must have been accepted."""
    found = kept.load(run, config)
    differing = kept.check(run, config, found, data_changed, result)
    if differing:
        console.print(f"the data is not what the run was trained on:{kept.listed(differing)}")
    return found, differing


@contextlib.contextmanager
def _alone(run: Run) -> Iterator[None]:
    """`runs.alone`, of all processes that train together."""
    with contextlib.ExitStack() as held:
        mesh.by_leader(lambda: held.enter_context(runs.alone(run)))
        yield


def _devices(over: Mesh) -> str:
    kind, processes = jax.devices()[0].device_kind, jax.process_count()
    of = f" of {processes} processes" if processes > 1 else ""
    return kind if over.size == 1 else f"{over.shape['data']} x {over.shape['model']} {kind}{of}"


def _train(
    run: Run,
    config: Config,
    task: Task,
    checkpoints: Checkpoints,
    state: TrainState,
    over: Mesh,
    asked: Callable[[], int],
    accept: Callable[[], None] = lambda: None,
) -> int:
    """Calls `accept` before anything is kept that was made with the data there is now."""

    def save(state: TrainState) -> None:
        accept()
        checkpoints.save(state)

    with report.progress(config.train.steps, int(state.step)) as shown:

        def log(line: dict, rate: float) -> None:
            mesh.by_leader(lambda: runs.append(run.metrics, line))
            shown(line, rate)

        hooks = Hooks(log=log, save=save, stop=lambda: bool(mesh.greatest(asked())))
        try:
            outcome = train(task, config.train, state, hooks, over)
        except NonFiniteLoss as error:
            good = checkpoints.latest()
            where = "there is none" if good is None else checkpoints.path(good)
            raise RunError(
                f"{run.folder}: {error}; the config: {run.config}; the last good checkpoint: {where}. Start again with "
                f"a lower --train.learning_rate or --train.clip"
            ) from None
    times = {"steps": outcome.steps, "compile_seconds": outcome.compile_seconds, "git": runs.environment()["git"]}
    mesh.by_leader(lambda: runs.append(run.timings, times | {"train_seconds": outcome.train_seconds}))
    if not outcome.finished:
        console.print(f"stopped and saved at step {int(outcome.state.step)}; to go on:")
        console.print(f"  {_command('resume', run)}")
        return mesh.greatest(asked())
    test = _test(task, outcome.state, over)
    _check_finite(run, test)
    accept()
    mesh.by_leader(lambda: _finish(run, config, task, outcome, test))
    return _compare(run, config, task, asked)


def _check_finite(run: Run, test: dict[str, float]) -> None:
    if wrong := [f"{name} is {value}" for name, value in test.items() if not math.isfinite(value)]:
        raise RunError(
            f"{run.folder}: on the test split {', '.join(wrong)}; start again with a lower --train.learning_rate or "
            f"--train.clip"
        )


def _finish(run: Run, config: Config, task: Task, outcome: Outcome, test: dict[str, float]) -> None:
    """Writes the result before anything else can fail."""
    state = outcome.state
    sequences = int(state.step) * config.train.batch
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    result = {"task": config.task, "step": int(state.step), "sequences": sequences}
    result |= {"parameters": parameters, "metric": task.metric, "unit": task.unit, "test": test}
    result |= {"published": {who: dict(figures) for who, figures in task.published}, "epoch": task.epoch}
    if task.criterion:
        result["criterion_met"] = bool(criterion_met(task, state))
    if changed := kept.load(run, config).get("changed"):
        result["data_changed"] = changed
    runs.write(run.result, _json(result))
    seconds, steps = outcome.train_seconds, outcome.steps
    console.print(f"compiling   {outcome.compile_seconds:.1f} s")
    if steps:
        console.print(f"training    {seconds:.1f} s, {steps} steps, {steps / seconds:.3g} steps/s")


def _compare(run: Run, config: Config, task: Task, asked: Callable[[], int]) -> int:
    """Adds the baselines to the result and shows both, unless asked to stop; returns the exit code."""
    with _at_once(run):
        if code := mesh.greatest(asked()):
            console.print(_without_baselines(run))
            return code
        mesh.by_leader(lambda: _add_baselines(run, config, task, runs.result(run) or {}))
    return 0


def _without_baselines(run: Run) -> str:
    return f"{run.folder} has its result, but no baselines yet; to go on:\n  {_command('resume', run)}"


def _add_baselines(run: Run, config: Config, task: Task, result: dict[str, Any]) -> None:
    test, baselines = result["test"], _baselines(task)
    runs.write(run.result, _json(result | {"baselines": baselines}))
    rows = {_kind(config): test}
    console.print(report.table(rows, baselines, str(run.folder)))
    if task.criterion:
        met = f"met after {result['sequences']:,} sequences" if result["criterion_met"] else "not met"
        console.print(f"criterion   {met}, of at most {config.train.steps * config.train.batch:,}")
    for source, figures in result["published"].items():
        shown = ", ".join(f"{name} {report.number(value)}" for name, value in figures.items())
        console.print(f"published   {shown}: {source}")
    with runs.writing(run.curve):
        report.curve(run.curve, task, runs.read(run.metrics), rows, baselines, f"{run.folder.name}: {config.task}")
    console.print(f"parameters  {result['parameters']:,}")
    console.print(f"picture     {run.curve}")
    console.print(f"again       {_command('evaluate', run)}")


def _json(result: dict[str, Any]) -> str:
    return json.dumps(result, indent=2, allow_nan=False) + "\n"


def _kind(config: Config) -> str:
    """Name of the model next to the baselines."""
    return config.model.kind.upper()


def _task(config: Config, found: Mapping[str, Any] | None = None) -> Task:
    """The task on its data, which is read by what the run keeps, if there is a run and it keeps something."""
    _, _, test_key = keys(config.train.seed)
    known = {"kept": found["kept"]} if found and found["kept"] else {}
    try:
        with files.noted() as read:
            task = TASKS[config.task].build(config.data, config.model, config.train.batch, test_key, **known)
        if kept.reads(config):
            _check_numbers(config, task)
        return dataclasses.replace(task, read=read)
    except DataError as error:
        raise RunError(str(error)) from None
    except ValueError as error:
        raise ConfigError(f"{config.name}: {error}") from None


def _check_numbers(config: Config, task: Task) -> None:
    """Refuse data that is not finite before training makes of it a loss that is not."""
    for split, columns in task.splits.items():
        for path, leaf in jax.tree.leaves_with_path(columns):
            column = jax.tree_util.keystr(path, simple=True, separator="/")
            files.finite(np.asarray(leaf), f"{config.task}, {column} of the split {split}")


def _over(config: Config, task: Task) -> Mesh:
    """The mesh that the config asks for, if the task has such batches and can be divided over it."""
    if mesh.by_leader(lambda: dumps(config)) != dumps(config):
        raise ConfigError(f"{config.name}: the leading process was given another config; all must be given the same")
    try:
        params = jax.eval_shape(task.init, jax.random.key(0))
        jax.eval_shape(task.batches, task.splits.get("train"), jax.random.key(0), jnp.arange(1))
        mesh.check(config.mesh, config.train.batch, params)
        return mesh.make(config.mesh)
    except ValueError as error:
        raise ConfigError(f"{config.name}: {error}") from None


def _test(task: Task, state: TrainState, over: Mesh | None = None) -> dict[str, float]:
    over = over or mesh.one()
    split = task.splits["test"]
    with jax.set_mesh(over):
        evaluated = evaluation(task, over)(state.params, mesh.place(over, split))
    figures = task.score(evaluated, split)
    names = sorted(figures, key=lambda name: (name != task.metric, name))
    return {name: figures[name] for name in names}


def _baselines(task: Task) -> report.Rows:
    """Figures of each baseline, or the reason why there are none."""
    console.print("baselines   are computed, which may take minutes")
    found = attempted(task.baselines)
    rows = {"baselines": found} if FAILED in found else found
    return each({name: functools.partial(_finite, figures) for name, figures in rows.items()})


def _finite(figures: Any) -> Any:
    """These figures as numbers, if all of them are finite; the reason of a baseline that failed, as it is."""
    if not isinstance(figures, Mapping) or FAILED in figures:
        return figures
    numbers = {name: float(value) for name, value in figures.items()}
    wrong = [f"{name} is {value}" for name, value in numbers.items() if not math.isfinite(value)]
    return {FAILED: ", ".join(wrong)} if wrong else numbers


def _command(name: str, run: Run) -> str:
    return f"python -m experiments {name} {run.folder}"


@contextlib.contextmanager
def _at_once(run: Run) -> Iterator[None]:
    """Within, Ctrl-C or SIGTERM stops at once: there is nothing to save."""

    def stop(signum, frame):
        raise Stopped(_without_baselines(run), SIGNALLED + signum)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _interrupt(run: Run) -> Iterator[Callable[[], int]]:
    """Within, the first Ctrl-C or SIGTERM only makes what is yielded give the exit code; the second stops at once."""
    code = 0

    def ask(signum, frame):
        nonlocal code
        code = SIGNALLED + signum
        for number, handler in previous.items():
            signal.signal(number, handler)
        print("stopping after this chunk; once more to stop at once", file=sys.stderr)

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, ask)
    try:
        yield lambda: code
    except Stopped:
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped at once; to go on:\n  {_command('resume', run)}") from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
