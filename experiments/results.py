"""The page of results: finished runs become records, and the records a page with tables and pictures.

A record is what the page needs of the runs of one config, from several seeds. It is kept beside the page, so that the
page can be made again when the runs are gone, and says when it belongs to another config than the one there is.
"""

import dataclasses
import itertools
import json
import math
import operator
import statistics
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments import kept, runs
from experiments.config import Config, ConfigError, dumps, head, load, loads
from experiments.data.files import digest
from experiments.report import logarithmic, number, rising
from experiments.runs import Run, RunError
from experiments.task import FAILED
from experiments.tasks import TASKS

Record = dict[str, Any]

POINTS = 100  # of a curve
COLORS = ("C0", "C1", "C2", "C3", "C4", "C5")
HEAD = """# Results

What came out of each config, beside what others have printed for the same data and beside baselines that the run
computes itself. A figure is the mean over the seeds, and ± their standard deviation. The page and its pictures are
written from finished runs by

```sh
python -m experiments run configs/NAME.toml --train.seed 0
python -m experiments report
```

A run is the same again at the same commit, with the same versions and machine; its last digits vary with these. Times
are those of training, without compiling, on machines that may have had other work to do.
"""


def collect(found: Iterable[Run], configs: Path, records: Path, named: bool = True) -> list[str]:
    """Writes these runs into the records of their configs, where each takes the place of an earlier one of its seed.

    Runs that were named must all be finished and of a config in `configs`; of others, the reasons are returned why they
    were left out.
    """
    names, left = {}, []
    for path in sorted(configs.glob("*.toml")):
        try:
            names[_unseeded(load(path))] = path.stem
        except ConfigError as error:
            if "[sweep]" not in str(error):
                raise
    members: dict[str, dict[int, Run]] = {}
    for run in found:
        config = load(run.config)
        name = names.get(_unseeded(config))
        if "baselines" not in (runs.result(run) or {}):
            left.append(f"{run.folder} is not finished; `resume` it first")
        elif name is None:
            left.append(f"{run.folder}: no config in {configs} is that of this run, whatever the seed")
        elif twin := members.setdefault(name, {}).get(config.train.seed):
            raise RunError(f"{twin.folder} and {run.folder} are both {name} with seed {config.train.seed}; name one")
        elif "changed" in _kept(run, config):
            raise RunError(
                f"{run.folder} was resumed on other data than it began with: its figures are of neither, and in no "
                f"mean. Train it again, or name the other runs"
            )
        else:
            members[name][config.train.seed] = run
    if left and named:
        raise RunError("; ".join(left))
    records.mkdir(parents=True, exist_ok=True)
    for name, seeds in members.items():
        path, config = records / f"{name}.json", _unseeded(load(configs / f"{name}.toml"))
        before = json.loads(path.read_text()) if path.exists() else {"config": config, "runs": []}
        every = {run["seed"]: run for run in before["runs"] if before["config"] == config}
        every |= {seed: _run_record(run, seed) for seed, run in seeds.items()}
        record = {"config": config, "runs": [every[seed] for seed in sorted(every)]}
        _check_one_data(name, record["runs"])
        runs.write(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return left


def _check_one_data(name: str, members: list[Record]) -> None:
    """Refuse runs on different data in one mean. Older records have no hash, but tell whether figures are published."""
    for one, other in itertools.combinations(members, 2):
        hashes = {run["data"] for run in (one, other) if run.get("data")}
        if len(hashes) > 1 or bool(one["published"]) != bool(other["published"]):
            raise RunError(
                f"the runs of {name} with seeds {one['seed']} and {other['seed']} are of different data; report those "
                f"of one, and remove what is recorded of the other"
            )


def write(configs: Path, records: Path) -> Path:
    """Writes the page of all records, `records`.md, and a picture for each task."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(records.glob("*.json"))}
    if not found:
        raise RunError(f"there is no record in {records}; name finished runs, or let there be some in runs/")
    tasks: dict[str, dict[str, Record]] = {}
    for name, record in found.items():
        tasks.setdefault(record["runs"][0]["task"], {})[name] = record
    sections = []
    for task, members in sorted(tasks.items()):
        _curves(records / f"{task}.svg", members)
        sections += _section(task, members, configs, records)
    page = records.with_suffix(".md")
    runs.write(page, "\n".join([HEAD, *_overview(found), "", *sections]))
    return page


def _unseeded(config: Config) -> str:
    return dumps(dataclasses.replace(config, train=dataclasses.replace(config.train, seed=0), name="run", out="runs"))


def _kept(run: Run, config: Config) -> dict[str, Any]:
    """Data that a run keeps; nothing for runs older than that."""
    return kept.load(run, config) if run.data.exists() else {}


def _run_record(run: Run, seed: int) -> Record:
    result, environment = (json.loads(path.read_text()) for path in (run.result, run.environment))
    times = runs.read(run.timings)
    machine = {key: environment[key] for key in ("python", "device", "devices", "cpus", "git")}
    files = _kept(run, load(run.config)).get("files")
    return result | {
        "seed": seed,
        "data": digest(files) if files else None,
        "seconds": sum(time["train_seconds"] for time in times),
        "steps_timed": sum(time["steps"] for time in times),
        "environment": machine | {"jax": environment["packages"]["jax"]},
        "resumed_at": [time["git"] for time in times if time.get("git", environment["git"]) != environment["git"]],
        "curve": _thinned(runs.read(run.metrics)),
    }


def _thinned(lines: list[dict]) -> list[dict]:
    """Every so many lines, those with held-out figures and the last one."""
    every = -(-len(lines) // POINTS)
    kept = [
        line
        for number, line in enumerate(lines, 1)
        if number % every == 0 or number == len(lines) or any(name.startswith("validation_") for name in line)
    ]
    return [{name: _rounded(value) for name, value in line.items()} for line in kept]


def _rounded(value: float | None) -> float | None:
    """As it is shown; None for an infinite perplexity, which JSON has no number for, and where nothing was counted."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _overview(found: dict[str, Record]) -> list[str]:
    rows = ["| config | seeds | test | published | best baseline |", "| --- | --- | --- | --- | --- |"]
    for name, record in found.items():
        first, own = record["runs"][0], _figures(record)
        metric = "sequences" if "criterion_met" in first else first["metric"]
        source, figures = next(iter(first["published"].items()), ("", {}))
        published = (
            f"{number(figures[metric])}, {source}: {_verdict(own, figures, metric)}" if metric in figures else ""
        )
        best = _best(record, first["metric"])
        beside = f"{first['metric']} {number(best[1])}, {best[0]}" if best else ""
        if metric == first["metric"]:
            shown = f"{metric} {_spread(own[metric])} {first['unit']}".strip()
        else:
            shown = _to_criterion(record)
        cells = (f"[{name}](#{first['task']})", str(len(record["runs"])), shown, published, beside)
        rows.append(f"| {' | '.join(map(_cell, cells))} |")
    return rows


def _section(task: str, members: dict[str, Record], configs: Path, records: Path) -> list[str]:
    lines = [f"## {task}", "", f"![Loss of {task} in training]({records.name}/{task}.svg)", ""]
    names = list(dict.fromkeys(name for record in members.values() for name in record["runs"][0]["test"]))
    criterion = any("criterion_met" in record["runs"][0] for record in members.values())
    columns = names + ["sequences"] * criterion
    lines += [f"| | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for name, record in members.items():
        own = _figures(record)
        lines.append(_row(f"**{name}**", {key: _spread(values) for key, values in own.items()}, columns))
    published = [(name, record["runs"][0]["published"]) for name, record in members.items()]
    baselines = [(name, _baselines(record)) for name, record in members.items()]
    for kind, rivals in (("published", published), ("baseline", baselines)):
        for who, figures in _distinct(rivals).items():
            failed = {columns[0]: f"{FAILED}: {figures[FAILED]}"} if FAILED in figures else {}
            shown = failed or {name: number(value) for name, value in figures.items()}
            lines.append(_row(f"{kind}: {who}", shown, columns))
    if (cited := getattr(TASKS.get(task), "CITED", ())) and any(figures for _, figures in published):
        lines += ["", f"Published in: {' '.join(cited)}"]
    for name, record in members.items():
        lines += ["", *_told(name, record, configs)]
    return [*lines, ""]


def _distinct(rivals: list[tuple[str, dict[str, dict]]]) -> dict[str, dict]:
    """The figures of each rival once; where they are not the same beside all configs, with the names of some."""
    shown: dict[str, dict] = {}
    for who in dict.fromkeys(who for _, rows in rivals for who in rows):
        groups: list[tuple[dict, list[str]]] = []
        for config, rows in rivals:
            if who in rows:
                same = next((configs for figures, configs in groups if figures == rows[who]), None)
                if same is None:
                    groups.append((rows[who], same := []))
                same.append(config)
        for figures, configs in groups:
            shown[who if len(configs) == len(rivals) else f"{who} ({', '.join(configs)})"] = figures
    return shown


def _told(name: str, record: Record, configs: Path) -> list[str]:
    """Description of a config, how it was run, and what was tried where it falls short."""
    path, first = configs / f"{name}.toml", record["runs"][0]
    lines = head(path) if path.exists() else []
    paragraphs = " ".join(line or "\n" for line in lines).split(" \n ")
    took = _took(record["runs"])
    seeds = ", ".join(str(run["seed"]) for run in record["runs"])
    commits = sorted(
        {_commit(git) for run in record["runs"] for git in (run["environment"]["git"], *run["resumed_at"])}
    )
    machines = dict.fromkeys(_machine(run["environment"]) for run in record["runs"])
    told = [
        f"**{name}**: {paragraphs[0]}",
        "",
        f"`python -m experiments run configs/{name}.toml`, seeds {seeds}; {first['parameters']:,} parameters; {took}, "
        f"on {' and on '.join(machines)}; commit {', '.join(commits)}.",
    ]
    if not path.exists() or _unseeded(load(path)) != _unseeded(loads(record["config"], path)):
        told += ["", f"**These are runs of an older configs/{name}.toml.**"]
    source, figures = next(iter(first["published"].items()), ("", {}))
    verdicts = [f"{key} {_verdict(_figures(record), figures, key)}" for key in figures if key in _figures(record)]
    if verdicts:
        told += ["", f"Beside {source}: {', '.join(verdicts)}."]
    if watched := _watched(record["runs"]):
        told += ["", f"On the validation split at the end: {', '.join(watched)}."]
    for paragraph in paragraphs[1:]:
        if paragraph.startswith("Tried"):
            told += ["", paragraph]
    return told


def _watched(members: list[Record]) -> list[str]:
    """Figures of the validation split at the last step, where that was watched."""
    ends = [run["curve"][-1] for run in members]
    told = []
    for name in (name for name in ends[0] if name.startswith("validation_")):
        values = [end[name] for end in ends]
        infinite = values.count(None)
        spread = f"infinite in {infinite} of {len(values)} runs" if infinite else _spread(values)
        told.append(f"{name.removeprefix('validation_')} {spread}")
    return told


def _took(members: list[Record]) -> str:
    """The time of training all steps, told from those that were timed: a killed run says nothing of its last ones."""
    timed = [run for run in members if run["steps_timed"]]
    if not timed:
        return "training not timed"
    whole = statistics.mean(run["seconds"] / run["steps_timed"] * run["step"] for run in timed)
    took = f"{number(whole)} s of training each"
    seconds, steps = (sum(run[key] for run in timed) for key in ("seconds", "steps_timed"))
    if steps < (every := sum(run["step"] for run in members)):
        took += f", told from the {steps:,} of {every:,} steps that were timed"
    if epoch := timed[0]["epoch"]:
        took += f", {number(seconds / steps * epoch)} s an epoch"
    return took


def _row(name: str, shown: dict[str, str], columns: list[str]) -> str:
    return f"| {' | '.join(map(_cell, (name, *(shown.get(column, '') for column in columns))))} |"


def _cell(text: str) -> str:
    """A text that does not end the cell of a table."""
    return text.replace("|", "\\|")


def _figures(record: Record) -> dict[str, list[float]]:
    """Figures by name, one of every run; and the sequences until the criterion, where each run met it."""
    members = record["runs"]
    figures = {name: [run["test"][name] for run in members] for name in members[0]["test"]}
    if all(run.get("criterion_met") for run in members):
        figures["sequences"] = [run["sequences"] for run in members]
    return figures


def _to_criterion(record: Record) -> str:
    own, members = _figures(record), record["runs"]
    if "sequences" in own:
        return f"criterion after {_spread(own['sequences'])} sequences"
    return f"criterion not met in {sum(not run['criterion_met'] for run in members)} of {len(members)} runs"


def _baselines(record: Record) -> dict[str, dict[str, Any]]:
    """Means over the runs, whose test sequences may be drawn, in which a baseline has figures; else why it has none."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for run in record["runs"]:
        for who, row in run["baselines"].items():
            rows.setdefault(who, []).append(row)
    found = {who: [row for row in of if FAILED not in row] or of[:1] for who, of in rows.items()}
    return {who: of[0] if FAILED in of[0] else _means(of) for who, of in found.items()}


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.mean(row[name] for row in rows) for name in rows[0]}


def _best(record: Record, name: str) -> tuple[str, float] | None:
    """The best baseline by this figure."""
    rivals = {who: row[name] for who, row in _baselines(record).items() if name in row}
    return (max if rising(name) else min)(rivals.items(), key=operator.itemgetter(1), default=None)


def _verdict(own: dict[str, list[float]], figures: dict[str, float], name: str) -> str:
    if name not in own:
        return "not reached"
    gap = statistics.mean(own[name]) - figures[name]
    if (gap >= 0) if rising(name) else (gap <= 0):
        return "reached"
    return f"missed by {number(abs(gap))}"


def _spread(values: list[float]) -> str:
    mean = _counted(statistics.mean(values))
    return f"{mean} ± {_counted(statistics.stdev(values), digits=2)}" if len(values) > 1 else mean


def _counted(value: float, digits: int = 4) -> str:
    """To so many digits, but for whole numbers of sequences."""
    return f"{value:,.0f}" if value >= 1000 else f"{float(f'{value:.{digits}g}'):g}"


def _machine(environment: Record) -> str:
    cores = f"{environment['cpus']} core" + "s" * (environment["cpus"] != 1)
    python, jax = environment["python"], environment["jax"]
    return f"{environment['devices']} x {environment['device']}, {cores}, Python {python}, jax {jax}"


def _commit(git: dict | None) -> str:
    return "unknown" if git is None else git["commit"][:10] + " with changes" * git["dirty"]


def _curves(path: Path, members: dict[str, Record]) -> None:
    """Loss, and the metric where that is another, over steps, and a level line: the first published figure, or where
    none is of this name the best baseline.

    A star is what a run gave on the test split; an upright line is the step at which a published sequence count ends.
    """
    from matplotlib import rc_context  # takes a second
    from matplotlib.figure import Figure

    metric = next(iter(members.values()))["runs"][0]["metric"]
    shown = list(dict.fromkeys(("loss", metric)))
    with rc_context({"svg.hashsalt": path.stem}), runs.writing(path):
        figure = Figure(figsize=(4.2 * len(shown) + 2.6, 3.6), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            for color, (config, record) in zip(itertools.cycle(COLORS), members.items(), strict=False):
                _draw(axes, name, config, record, color)
            if not rising(name):
                logarithmic(axes)
            if any("criterion_met" in record["runs"][0] for record in members.values()):
                axes.set_xscale("log")
            axes.set(xlabel="step", ylabel=name)
            axes.grid(alpha=0.3)
        lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
        named = [line for label, line in lines.items() if not str(label).startswith("_")]
        figure.legend(handles=named, loc="outside right upper", fontsize="x-small")
        figure.savefig(path, metadata={"Date": None})


def _draw(axes, name: str, config: str, record: Record, color: str) -> None:
    """A thin line for each run: what held-out data gave, where that was watched."""
    logged = record["runs"][0]["curve"][-1]
    watched = next((key for key in (f"validation_{name}", name, f"train_{name}") if key in logged), None)
    label = f"{config}, {watched.partition('_')[0] if watched != name else 'train'}" if watched else ""
    for run in record["runs"] if watched else ():
        points = [(line["step"], line[watched]) for line in run["curve"] if line.get(watched) is not None]
        axes.plot(*zip(*points, strict=True), color=color, linewidth=1, label=label)
        label = None
        if name in run["test"]:
            axes.plot(run["curve"][-1]["step"], run["test"][name], "*", color=color, markersize=9, alpha=0.7)
    first = record["runs"][0]
    source, figures = next(iter(first["published"].items()), ("", {}))
    if "sequences" in figures:
        label = textwrap.fill(f"{config}, {figures['sequences']:,.0f} sequences, {source}", 36)
        step = figures["sequences"] * first["step"] / first["sequences"]
        axes.axvline(step, color=color, linestyle=":", linewidth=1, label=label)
    if beside := (source, figures[name]) if name in figures else _best(record, name):
        source, level = beside
        axes.axhline(
            level, color=color, linestyle="--", linewidth=1, label=textwrap.fill(f"{number(level)}, {source}", 36)
        )
