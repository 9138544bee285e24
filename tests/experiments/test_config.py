"""Configs: bases, overrides, sweeps, and every mistake answered with its place and the nearest right name."""

import dataclasses

import pytest

from experiments import __main__, config, tasks
from experiments.config import ConfigError
from experiments.models import TCN, Model

AIRLINE = """
task = "airline"
[data]
look_back = 6
[model]
units = 4
[train]
steps = 20
batch = 8
log_every = 10
evaluate_every = 10
save_every = 10
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="a.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_file_fills_the_dataclasses_and_the_rest_is_default(write):
    read = config.load(write(AIRLINE))
    assert (read.task, read.name, read.out) == ("airline", "a", "runs")
    assert (read.data.look_back, read.data.log) == (6, True)
    assert (read.model.units, read.train.steps, read.train.schedule) == (4, 20, "constant")


def test_command_line_has_the_last_word(write):
    read = config.load(write(AIRLINE), ["--train.steps", "7", "--data.no-log", "--out", "there"])
    assert (read.train.steps, read.data.log, read.out) == (7, False, "there")
    assert read.model.units == 4


@pytest.mark.parametrize("name", ['a "b" \\c', "\U0001f600 é"])
def test_resolved_config_reads_back_equal(write, name):
    read = config.load(write(AIRLINE), ["--train.learning-rate", "1e-5", "--name", name])
    assert config.load(write(config.dumps(read), "resolved.toml")) == read


def test_file_wins_over_its_base_table_by_table(write):
    write(AIRLINE, "base.toml")
    path = write('base = "base.toml"\n[train]\nsteps = 30\n')
    read, under = config.load(path), config.load(path.parent / "base.toml")
    assert (read.train.steps, read.name) == (30, "a")
    train = dataclasses.replace(under.train, steps=30)
    assert read == dataclasses.replace(under, name="a", train=train)


def test_every_config_is_of_a_kind_that_its_task_takes(configs):
    for path in sorted(configs.glob("*.toml")):
        several = "[sweep]" in path.read_text()
        for read in [c for _, c in config.load_sweep(path)] if several else [config.load(path)]:
            kinds = getattr(tasks.TASKS[read.task], "MODELS", ("lstm",))
            named = path.stem.rpartition("_")[2]
            assert read.model.kind == (named if named in ("rnn", "tcn") else kinds[0])


def test_kind_decides_what_model_may_say(write):
    text = AIRLINE.replace('"airline"', '"jsb"').replace("look_back = 6", "")
    tcn = text.replace("[model]", '[model]\nkind = "tcn"\nblocks = 4')
    read = config.load(write(tcn), ["--model.dropout", "0.25"])
    assert read.model == TCN(units=4, blocks=4, dropout=0.25)
    assert config.load(write(config.dumps(read), "resolved.toml")) == read
    assert config.load(write(text)).model == Model(units=4)
    with pytest.raises(ConfigError, match="has no key 'blocks'"):
        config.load(write(tcn.replace('"tcn"', '"lstm"')))


def test_base_is_found_from_the_file_that_names_it(write, tmp_path, monkeypatch):
    (tmp_path / "deeper").mkdir()
    write(AIRLINE, "base.toml")
    path = write('base = "../base.toml"\n', "deeper/b.toml")
    monkeypatch.chdir("/")
    assert config.load(path).model.units == 4


def test_base_that_leads_back_is_refused(write):
    write('base = "b.toml"\n', "a.toml")
    path = write('base = "a.toml"\n', "b.toml")
    with pytest.raises(ConfigError, match=r"its base leads back to itself: .*b\.toml -> .*a\.toml"):
        config.load(path)


def test_sweep_is_the_product_of_its_lists(write):
    path = write(AIRLINE + "[sweep]\ntrain.seed = [1, 2]\nmodel.units = [3, 5, 8]\n")
    swept = config.load_sweep(path, ["--train.batch", "4"])
    found = [(c.train.seed, c.model.units, c.train.batch) for _, c in swept]
    assert found == [(s, u, 4) for s in (1, 2) for u in (3, 5, 8)]
    assert [list(choice.items()) for choice, _ in swept[:1]] == [[("train.seed", 1), ("model.units", 3)]]


# What is written, and what the answer must name: the place, the mistake, the remedy.
MISTAKES = {
    "key": (AIRLINE.replace("steps", "stepz"), ["a.toml", "[train]", "'stepz'", "did you mean 'steps'?"]),
    "task's key": (AIRLINE.replace("look_back", "lookback"), ["[data]", "did you mean 'look_back'?"]),
    "table": (AIRLINE.replace("[model]", "[modle]"), ["top level", "'modle'", "did you mean 'model'?"]),
    "top key": ('outt = "x"\n' + AIRLINE, ["top level", "'outt'", "did you mean 'out'?"]),
    "task": (AIRLINE.replace('"airline"', '"arline"'), ["no task 'arline'", "did you mean 'airline'?"]),
    "task's own key": (AIRLINE.replace("task", "taks"), ["top level", "'taks'", "did you mean 'task'?"]),
    "no forget bias": (
        AIRLINE.replace("[model]", "[model]\nforget_bias = nan"),
        ["a.toml", "model.forget_bias is nan"],
    ),
    "no learning rate": (AIRLINE + "learning_rate = inf\n", ["a.toml", "train.learning_rate is inf", "float32"]),
    "more than float32": (
        AIRLINE + "learning_rate = 1e39\n",
        ["a.toml", "learning_rate is 1e+39", "at most 3.4028e+38"],
    ),
    "no character": ('name = "a\\u0000"\n' + AIRLINE, ["a.toml", "name is 'a\\x00'", "printable"]),
    "long number": (AIRLINE + f"seed = {'1' * 5000}\n", ["a.toml", "cannot be read as TOML", "4300 digits"]),
    "depth": (AIRLINE + f"seed = {'[' * 5000}\n", ["a.toml", "cannot be read as TOML"]),
    "no base": ('base = ""\n', ["a.toml: base is ''", "name of a TOML file"]),
    "base that is none": ('base = "\\u0000"\n', ["cannot be read as TOML", "null byte"]),
    "name": ('name = "a/b"\n' + AIRLINE, ["name is 'a/b'", "name of a folder"]),
    "seed": (AIRLINE + "seed = 99999999999\n", ["train.seed is 99999999999", "2**31"]),
    "steps": (AIRLINE.replace("= 20", "= 3000000000"), ["train.steps is 3000000000", "below 2**31"]),
    "no number": (AIRLINE + "clip = nan\n", ["train.clip is nan", "above 0"]),
    "no task": (AIRLINE.replace("task", "name"), ["says no task", 'task = "airline"']),
    "text for int": (AIRLINE.replace("= 20", '= "20"'), ["train.steps", "'20'", "type int"]),
    "float for int": (AIRLINE.replace("= 20", "= 2.5"), ["train.steps", "2.5", "type int"]),
    "bool for int": (AIRLINE.replace("= 20", "= true"), ["train.steps", "True", "type int"]),
    "value for table": ("train = 3\n" + AIRLINE.split("[train]")[0], ["train is 3", "must be a table"]),
    "choice": (AIRLINE + 'schedule = "cosin"\n', ["train.schedule", "did you mean 'cosine'?"]),
    "kind": (AIRLINE.replace("[model]", '[model]\nkind = "lstn"'), ["a.toml: model.kind is 'lstn'", "'lstm'?"]),
    "kind for the task": (
        AIRLINE.replace("[model]", '[model]\nkind = "tcn"'),
        ["model.kind is 'tcn'", "(one of: lstm)"],
    ),
    "value": (AIRLINE.replace("= 20", "= 0"), ["a.toml", "train.steps is 0", "above 0"]),
    "grid": (AIRLINE.replace("save_every = 10", "save_every = 15"), ["train.save_every is 15", "10"]),
    "too many": (AIRLINE.replace("batch = 8", "batch = 80"), ["78 months", "train.batch = 80"]),
    "syntax": ("task = airline\n", ["a.toml", "cannot be read as TOML"]),
    "base": ('base = "bse.toml"\n', ["there is no config", "bse.toml"]),
    "base's type": ("base = 3\n", ["base is 3", "name of a TOML file"]),
    "sweep in run": (AIRLINE + "[sweep]\ntrain.seed = [1]\n", ["[sweep]", "several runs", "sweep "]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_named_with_its_place_and_remedy(mistake, write, capsys, monkeypatch, tmp_path):
    text, words = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    assert __main__.main(["run", str(write(text))]) == 2
    answer = capsys.readouterr().err
    assert [word for word in words if word not in answer] == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ("train.stepz = [1]", ["in [sweep]: ", "[train]", "did you mean 'steps'?"]),
        ("train.steps = 1", ["in [sweep]", "steps", "list of values"]),
        ("train.steps = []", ["in [sweep]", "steps", "list of values"]),
        ('train.steps = [1, "2"]', ["in [sweep]: ", "train.steps", "'2'"]),
        ('task = ["airline", "copy"]', ["in [sweep]", "task is varied"]),
        ("", ["there is no [sweep] table"]),
    ],
)
def test_mistake_in_a_sweep(sweep, words, write, capsys):
    path = write(AIRLINE + f"[sweep]\n{sweep}\n")
    assert __main__.main(["sweep", str(path)]) == 2
    answer = capsys.readouterr().err
    assert [word for word in words if word not in answer] == []


def test_sweep_over_bases_is_a_run_for_each_under_its_own_name(write):
    write(AIRLINE, "one.toml")
    write('base = "one.toml"\n[model]\nunits = 9\n[train]\nsteps = 50\n', "two.toml")
    path = write('[sweep]\nbase = ["one.toml", "two.toml"]\ntrain.seed = [1, 2]\n[train]\nbatch = 5\n', "both.toml")
    swept = config.load_sweep(path, ["--train.clip", "3"])
    found = [(c.name, c.model.units, c.train.steps, c.train.seed, c.train.batch, c.train.clip) for _, c in swept]
    assert found == [
        *(("one", 4, 20, seed, 5, 3.0) for seed in (1, 2)),
        *(("two", 9, 50, seed, 5, 3.0) for seed in (1, 2)),
    ]
    assert [choice for choice, _ in swept[::3]] == [
        {"base": "one.toml", "train.seed": 1},
        {"base": "two.toml", "train.seed": 2},
    ]


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ('[sweep]\nbase = ["one.toml", "tow.toml"]', ["there is no config", "tow.toml"]),
        ("[sweep]\nbase = [3]", ["both.toml: base is 3", "name of a TOML file"]),
        ('[sweep]\nbase = ["both.toml"]', ["its base leads back to itself"]),
        ('base = "one.toml"\n[sweep]\nbase = ["two.toml"]', ["both.toml: base is named", "one of the two"]),
        ('[sweep]\nbase = ["one.toml", "copy.toml"]', ["both.toml: in [sweep]", "tasks airline and copy"]),
        ('[sweep]\nbase = ["wrong.toml"]', ["wrong.toml: [train]", "did you mean 'steps'?"]),
        ('[sweep]\nbase = ["one.toml"]\ntrain.stepz = [1]', ["both.toml, in [sweep]: [train]", "'stepz'"]),
        ('[sweep]\nbase = ["one.toml"]\n[train]\nstepz = 1', ["both.toml: [train]", "'stepz'"]),
    ],
)
def test_mistake_in_a_sweep_over_bases_is_placed(sweep, words, write, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write(AIRLINE, "one.toml")
    write(AIRLINE, "two.toml")
    write('task = "copy"\n', "copy.toml")
    write(AIRLINE.replace("steps", "stepz"), "wrong.toml")
    assert __main__.main(["sweep", str(write(sweep + "\n", "both.toml"))]) == 2
    answer = capsys.readouterr().err
    assert [word for word in words if word not in answer] == []


@pytest.mark.parametrize("override", [["--train.log-every", "5"], ["--train.log_every=5"]])
def test_sweep_refuses_an_override_of_what_it_varies(override, write, capsys):
    path = write(AIRLINE + "[sweep]\ntrain.log_every = [1, 2]\n")
    assert __main__.main(["sweep", str(path), *override]) == 2
    assert f"{override[0]} is varied by [sweep]" in capsys.readouterr().err


def test_mistake_in_a_base_is_placed_in_the_base(write, capsys):
    write(AIRLINE.replace("units", "unitz"), "base.toml")
    assert __main__.main(["run", str(write('base = "base.toml"\n'))]) == 2
    answer = capsys.readouterr().err
    assert "base.toml: [model] has no key 'unitz'; did you mean 'units'?" in answer


def test_missing_config_names_the_nearest(write, capsys):
    path = write(AIRLINE, "airline.toml")
    assert __main__.main(["run", str(path.with_name("arline.toml"))]) == 2
    assert f"did you mean '{path}'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (["--train.stepz", "3"], ["--train.stepz", "--train.steps"]),
        (["--modle.units", "3"], ["--modle.units", "--model.units"]),
        (["--train.steps", "x"], ["--train.steps", "'x'"]),
        (["--train.steps", "0"], ["train.steps is 0", "above 0"]),
        (["--train.schedule", "cosin"], ["cosin", "cosine"]),
    ],
)
def test_mistake_on_the_command_line(override, words, write, capsys):
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["run", str(write(AIRLINE)), *override])
    assert stopped.value.code == 2
    answer = capsys.readouterr().err
    assert [word for word in words if word not in answer] == []


@pytest.mark.parametrize("argv", [[], ["ran", "x.toml"], ["run"], ["resume"], ["list", "x"], ["run", "--x"]])
def test_command_that_is_none_is_answered_with_those_there_are(argv, capsys):
    assert __main__.main(argv) == 2
    assert "python -m experiments run CONFIG" in capsys.readouterr().err
