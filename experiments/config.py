"""One run, written down: a TOML file becomes frozen dataclasses, and the command line has the last word.

A file may name another as its `base` and is merged over it, table by table; a `[sweep]` table of lists
stands for one run per combination, of bases too. Nothing is guessed: an unknown key or a wrong type is an error.
"""

import dataclasses
import difflib
import itertools
import json
import tomllib
import typing
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import tyro

from experiments import tasks
from experiments.mesh import Options as Mesh
from experiments.models import MODELS, Model
from experiments.train import Train

Table = dict[str, Any]


FLOAT32 = float(np.finfo(np.float32).max)


class ConfigError(ValueError):
    exit_code = 2


@dataclasses.dataclass(frozen=True)
class Config:
    task: tyro.conf.Suppress[str]
    """Which of the tasks in experiments/tasks this trains."""
    name: str
    """The run's folder is called this and a counter."""
    data: Any
    """The task's own options."""
    model: Any = dataclasses.field(default_factory=Model)
    """Of one of the kinds in experiments/models.py."""
    train: Train = dataclasses.field(default_factory=Train)
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    out: str = "runs"
    """Folder that receives the run's folder."""

    def __post_init__(self):
        if not self.name or Path(self.name).name != self.name:
            raise ValueError(f"name is {self.name!r}; it must be the name of a folder, without any / in it")
        for name in ("name", "out"):
            if not getattr(self, name).isprintable():
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be of printable characters")
        for part in ("data", "model", "train"):
            for name, value in vars(getattr(self, part)).items():
                if isinstance(value, float) and not abs(value) <= FLOAT32:
                    raise ValueError(f"{part}.{name} is {value}; it must be a number of float32, at most {FLOAT32:.5g}")


def load(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Reads one run's config; a file with a `[sweep]` table is for `load_sweep`."""
    table, origins = _read(Path(path))
    if "sweep" in table:
        raise ConfigError(f"{path}: a config with a [sweep] table is several runs; start it with `sweep {path}`")
    return _override(_build(table, origins, Path(path)), overrides or [], f"run {path}")


def load_sweep(path: str | Path, overrides: list[str] | None = None) -> list[tuple[Table, Config]]:
    """Reads every combination of the `[sweep]` lists: what it varies, and its config."""
    table, origins = _read(Path(path))
    varied = _lists(table.pop("sweep", {}), Path(path))
    if "base" in varied and "base" in _parsed(Path(path)):
        raise ConfigError(f"{path}: base is named at the top and varied in [sweep]; it must be one of the two")
    if not varied:
        raise ConfigError(f"{path}: there is no [sweep] table of lists; start it with `run {path}`")
    if "task" in varied:
        raise ConfigError(f"{path}: in [sweep], task is varied; the runs of a sweep are compared, so it is one for all")
    for word in overrides or []:
        key = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if word.startswith("--") and key in varied:
            raise ConfigError(f"{word} is varied by [sweep] in {path}; change it there, or start one run with `run`")
    runs = []
    for values in itertools.product(*varied.values()):
        choice = dict(zip(varied, values, strict=True))
        merged, written, named = table, origins, Path(path)
        if "base" in choice:
            merged, written = _over(choice["base"], merged, written, named)
            named = named.parent / choice["base"]
        for key, value in choice.items():
            if key != "base":
                merged, written = (
                    _merge(merged, _nest(key, value)),
                    written | {tuple(key.split(".")): f"{path}, in [sweep]"},
                )
        config = _build(merged, written, named)
        runs.append((choice, _override(config, overrides or [], f"sweep {path}")))
    found = sorted({config.task for _, config in runs})
    if len(found) > 1:
        raise ConfigError(
            f"{path}: in [sweep], base leads to the tasks {' and '.join(found)}; the runs of a sweep are compared, so "
            f"it is one for all"
        )
    return runs


def head(path: Path) -> list[str]:
    """The lines of the comment that a file begins with, blank lines aside, each without its #."""
    lines = path.read_text(encoding="utf-8-sig").lstrip().split("\n")
    return [line.removeprefix("#").strip() for line in itertools.takewhile(lambda line: line.startswith("#"), lines)]


def loads(text: str, source: Path) -> Config:
    """Parse what `dumps` wrote, which is in `source`."""
    table = tomllib.loads(text)
    return _build(table, {keys: str(source) for keys in _leaves(table)}, source)


def dumps(config: Config) -> str:
    """The config as TOML that `load` reads back to an equal one."""
    top, tables = [], []
    for key, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            lines = [f"{k} = {_literal(v)}" for k, v in value.items() if v is not None]
            tables.append("\n".join([f"[{key}]", *lines]))
        else:
            top.append(f"{key} = {_literal(value)}")
    return "\n\n".join(["\n".join(top), *tables]) + "\n"


def _read(path: Path, above: tuple[Path, ...] = ()) -> tuple[Table, dict]:
    """The merged table of a file and its bases, and which file each leaf was last written in."""
    try:
        table = _parsed(path)
    except FileNotFoundError:
        near = sorted(str(p) for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        raise ConfigError(f"there is no config {path}{_nearest(str(path), near)}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {error}") from None
    if path.resolve() in above:
        chain = " -> ".join(str(p) for p in [*above, path.resolve()])
        raise ConfigError(f"{path}: its base leads back to itself: {chain}")
    base = table.pop("base", None)
    origins = {keys: str(path) for keys in _leaves(table)}
    return (table, origins) if base is None else _over(base, table, origins, path, above)


def _parsed(path: Path) -> Table:
    return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a byte order mark


def _over(base: Any, table: Table, origins: dict, path: Path, above: tuple[Path, ...] = ()) -> tuple[Table, dict]:
    """The table of `path` merged over its base."""
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{path}: base is {base!r}; it must be the name of a TOML file")
    under, under_origins = _read(path.parent / base, (*above, path.resolve()))
    return _merge(under, table), under_origins | origins


def _build(table: Table, origins: dict, path: Path) -> Config:
    if "task" not in table:
        for key in set(table) - {field.name for field in dataclasses.fields(Config)}:
            raise ConfigError(f"{path}: the top level has no key {key!r}{_nearest(key, ['task'])}")
        raise ConfigError(f'{path}: says no task; add `task = "{next(iter(tasks.TASKS))}"` at its top')
    task = table["task"]
    if not isinstance(task, str) or task not in tasks.TASKS:
        where = origins.get(("task",), path)
        raise ConfigError(f"{where}: there is no task {task!r}{_nearest(str(task), tasks.TASKS)}")
    schema = {"data": tasks.TASKS[task].Options, "model": _model(tasks.TASKS[task], table, origins, path)}
    values = {"name": path.stem, "data": {}} | table
    return _fill(Config, values, schema, origins, ())


def _model(task: ModuleType, table: Table, origins: dict, path: Path) -> type:
    """The dataclass for the kind of model that [model] names."""
    named = table.get("model")
    kind = named.get("kind", Model.kind) if isinstance(named, dict) else Model.kind
    kinds = getattr(task, "MODELS", (Model.kind,))
    if kind not in kinds:
        where = origins.get(("model", "kind"), path)
        raise ConfigError(f"{where}: model.kind is {kind!r}{_nearest(str(kind), kinds)}")
    return MODELS[kind]


def _fill(cls: type, table: Table, schema: dict, origins: dict, at: tuple[str, ...]):
    """An instance of the dataclass `cls` from a table whose every key and type is checked."""
    types = typing.get_type_hints(cls) | schema
    values = {}
    for key, value in table.items():
        here = (*at, key)
        where = next((f for k, f in origins.items() if k[: len(here)] == here), "default")
        place = f"[{'.'.join(at)}]" if at else "the top level"
        if key not in types:
            kind = "table" if isinstance(value, dict) else "key"
            raise ConfigError(f"{where}: {place} has no {kind} {key!r}{_nearest(key, types)}")
        if dataclasses.is_dataclass(types[key]):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: {'.'.join(here)} is {value!r}; it must be a table")
            values[key] = _fill(types[key], value, {}, origins, here)
        else:
            values[key] = _checked(value, types[key], f"{where}: {'.'.join(here)}")
    try:
        return cls(**values)
    except ValueError as error:
        files = sorted({f for k, f in origins.items() if k[: len(at)] == at})
        raise ConfigError(f"{', '.join(files)}: {error}") from None


def _checked(value: Any, kind: Any, name: str) -> Any:
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            choices = typing.get_args(kind)
            raise ConfigError(f"{name} is {value!r}{_nearest(str(value), choices)}")
        return value
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{name} is {value!r}, of type {type(value).__name__}; it must be of type {kind.__name__}")
    return value


def _override(config: Config, overrides: list[str], command: str) -> Config:
    if not overrides:
        return config
    return tyro.cli(Config, default=config, args=overrides, prog=f"python -m experiments {command}")


def _merge(under: Table, over: Table) -> Table:
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(under.get(key), dict)
        merged[key] = _merge(under[key], value) if both else value
    return merged


def _leaves(table: Table, at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(table, dict) or not table:
        return [at]
    return [leaf for key, value in table.items() for leaf in _leaves(value, (*at, key))]


def _lists(table: Table, path: Path) -> dict[str, list]:
    """The leaves of a `[sweep]` table, by dotted key."""
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: sweep is {table!r}; it must be a table of lists")
    lists = {}
    for key, value in table.items():
        nested = _lists(value, path) if isinstance(value, dict) else None
        if nested is not None:
            lists |= {f"{key}.{inner}": values for inner, values in nested.items()}
        elif isinstance(value, list) and value:
            lists[key] = value
        else:
            raise ConfigError(f"{path}: in [sweep], {key} is {value!r}; it must be a list of values")
    return lists


def _nest(key: str, value: Any) -> Table:
    head, _, rest = key.partition(".")
    return {head: _nest(rest, value) if rest else value}


def _nearest(wrong: str, names: typing.Iterable[str]) -> str:
    names = list(names)
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    return f"{guess} (one of: {', '.join(names)})" if names else guess


def _literal(value: Any) -> str:
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML escapes no surrogates
    return repr(value)
