"""The command line as a user meets it: every config runs, and what was stopped goes on as if it never was."""

import contextlib
import functools
import json
import math
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure

from experiments import commands, runs, train
from experiments.__main__ import main
from experiments.checkpoint import Checkpoints
from experiments.config import load, loads
from experiments.data import chorales, fashion, files, mnist, shakespeare, treebank
from experiments.tasks import swda
from experiments.train import initial_state

ANEW = {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # resuming must not need a compiled program

pytestmark = pytest.mark.training

SHORT = ("--train.steps=2", "--train.log-every=1", "--train.evaluate-every=1", "--train.save-every=1")

LONG = """
task = "adding"
[data]
length = 22
[model]
units = 8
[train]
steps = 600
batch = 4
schedule = "cosine"
log_every = 10
evaluate_every = 10
save_every = 50
"""


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """But that of `whole`: to lay out and draw one takes as long as to train a little."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: Path(path).touch())


@pytest.fixture(scope="module")
def whole(tmp_path_factory, call):
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "long.toml").write_text(LONG)
    code, out, err = call(folder, "run", "long.toml")
    assert code == 0, err
    return runs.Run(folder / "runs" / "long-001"), out


@functools.cache
def start(config):
    config = loads(config, Path("config.toml"))
    return initial_state(commands._task(config), config.train)


@functools.cache
def final_state(run):
    checkpoints = Checkpoints(run.checkpoints)
    return checkpoints.restore(checkpoints.steps()[0], start(run.config.read_text()))


def assert_same_end(run, other):
    for name in ("metrics", "result", "config"):
        assert getattr(run, name).read_bytes() == getattr(other, name).read_bytes(), name
    ours, theirs = (jax.tree.leaves(final_state(r)) for r in (run, other))
    assert [np.asarray(a).tobytes() for a in ours] == [np.asarray(b).tobytes() for b in theirs]
    assert int(final_state(run).step) == load(run.config).train.steps


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)


def test_run_leaves_all_that_is_needed_to_judge_and_repeat_it(whole):
    run, out = whole
    lines = runs.read(run.metrics)
    assert [line["step"] for line in lines] == list(range(10, 601, 10))
    assert set(lines[0]) == {"step", "sequences", "loss", "train_error"}
    assert run.curve.read_bytes().startswith(b"\x89PNG")
    result = json.loads(run.result.read_text())
    assert (result["sequences"], result["criterion_met"]) == (2400, False)
    assert result["parameters"] == 4 * 8 * (2 + 8 + 1) + 9
    for word in ("always 0.5", "criterion", "compiling", "training", "evaluate runs/long-001", "361"):
        assert word in out
    seconds = runs.read(run.timings)
    assert [set(t) for t in seconds] == [{"steps", "compile_seconds", "train_seconds", "git"}]


@pytest.mark.slow
def test_kill_9_then_resume_ends_bit_for_bit_where_the_whole_run_does(whole, launch, process, call, tmp_path):
    (tmp_path / "long.toml").write_text(LONG)
    run = runs.Run(tmp_path / "runs" / "long-001")
    killed = launch(tmp_path, "run", "long.toml")
    wait_for(lambda: (run.checkpoints / "150").is_dir(), killed)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not run.result.exists()
    with run.metrics.open("a") as file:
        file.write('{"step": 29')  # what a kill in the middle of a line leaves

    saved = Checkpoints(run.checkpoints).latest()
    assert 150 <= saved < 600
    code, out, err = process(tmp_path, "resume", "runs/long-001", **ANEW)
    assert code == 0, err
    assert f"on from step {saved}" in out
    assert_same_end(run, whole[0])

    before = run.metrics.read_bytes()
    code, out, _ = call(tmp_path, "resume", "runs/long-001")
    assert code == 0
    assert "is finished: nothing to resume" in out
    assert run.metrics.read_bytes() == before


TEXT = """
task = "chars"
[data]
steps = 20
[model]
units = 16
[train]
steps = 1000
batch = 4
log_every = 50
evaluate_every = 1000
save_every = 50
"""


@pytest.mark.long
def test_kill_9_does_not_break_what_is_carried_from_batch_to_batch(launch, call, tmp_path, monkeypatch):
    monkeypatch.setenv("LSTMJAX_DATA", str(tmp_path))
    path = tmp_path / shakespeare.FILE
    path.parent.mkdir()
    path.write_text("".join(np.random.default_rng(0).choice(["so ", "it ", "is.\n"], 2000)), encoding="ascii")
    (tmp_path / "text.toml").write_text(TEXT)
    whole, run = (runs.Run(tmp_path / "runs" / f"text-00{number}") for number in (1, 2))
    code, _, err = call(tmp_path, "run", "text.toml")
    assert code == 0, err

    process = launch(tmp_path, "run", "text.toml")
    wait_for(lambda: (run.checkpoints / "50").is_dir(), process)
    process.kill()
    process.communicate()
    saved = Checkpoints(run.checkpoints).latest()
    assert 50 <= saved < 1000
    code, out, err = call(tmp_path, "resume", "runs/text-002")
    assert code == 0, err
    assert f"on from step {saved}" in out
    assert_same_end(run, whole)
    assert np.abs(final_state(run).carried.c).max() > 0


def test_ctrl_c_saves_and_says_how_to_go_on(whole, launch, call, tmp_path):
    (tmp_path / "long.toml").write_text(LONG)
    run = runs.Run(tmp_path / "runs" / "long-001")
    process = launch(tmp_path, "run", "long.toml")
    wait_for(lambda: len(runs.read(run.metrics)) > 3, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    saved = Checkpoints(run.checkpoints).latest()
    assert f"stopped and saved at step {saved}" in out
    assert "python -m experiments resume runs/long-001" in out
    assert 30 < saved < 600
    assert runs.read(run.metrics)[-1]["step"] == saved
    code, _, err = call(tmp_path, "resume", "runs/long-001")
    assert code == 0, err
    assert_same_end(run, whole[0])


def test_resume_before_the_first_checkpoint_starts_over(whole, call, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    (tmp_path / "long.toml").write_text(LONG)
    with monkeypatch.context() as patch:
        patch.setattr(commands, "train", stop)
        assert call(tmp_path, "run", "long.toml")[0] == 130
    run = runs.Run(tmp_path / "runs" / "long-001")
    assert not runs.read(run.metrics)
    code, out, err = call(tmp_path, "resume", "runs/long-001")
    assert code == 0, err
    assert "on from step 0" in out
    assert_same_end(run, whole[0])


@pytest.mark.long
def test_killed_before_the_first_checkpoint_it_starts_over(whole, launch, tmp_path):
    (tmp_path / "long.toml").write_text(LONG)
    run = runs.Run(tmp_path / "runs" / "long-001")
    process = launch(tmp_path, "run", "long.toml", **ANEW)
    wait_for((run.folder / "environment.json").exists, process)
    process.kill()
    process.communicate()
    assert not runs.read(run.metrics)

    process = launch(tmp_path, "resume", "runs/long-001")
    wait_for(lambda: len(runs.read(run.metrics)) >= 3, process)
    process.kill()
    out, _ = process.communicate()
    assert "on from step 0" in out
    assert runs.read(run.metrics)[:3] == runs.read(whole[0].metrics)[:3]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder for LSTMJAX_DATA with two corpora: tags that go round, and words that come again."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 20), ("val", 3), ("test", 3)):
        (folder / "swda" / split).mkdir(parents=True)
        for number in range(count):
            lines = [f"{'AB'[n % 2]}|so w{10 * number + n % 10} {'?.'[n % 2]}|{'qs'[n % 2]}\n" for n in range(20)]
            (folder / "swda" / split / f"{split}{number}.txt").write_text("".join(lines))
    (folder / "conll2000").mkdir()
    for split, count in (("train", 1300), ("test", 5)):
        nouns = ["dog" + "".join("abcdefghijkl"[digit % 12] for digit in (n, n // 12)) for n in range(count)]
        text = "".join(f"The DT B-NP\n{noun} NN I-NP\nran VB B-VP\n\n" for noun in nouns)
        (folder / "conll2000" / f"{split}.txt").write_text(text)
    return folder


CONFIGS = sorted(p.name for p in (Path(__file__).parents[2] / "configs").glob("*.toml"))

# One of each kind of model that needs no baselines of much real data.
FIRST = {"adding_rnn.toml", "airline.toml", "recall.toml", "sort.toml", "swda.toml"}


def test_the_first_configs_are_there():
    assert set(CONFIGS) >= FIRST


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in FIRST else pytest.mark.long) for name in CONFIGS],
)
def test_config_runs(name, configs, call, tmp_path, written, monkeypatch):
    if name.startswith(("conll2000", "swda")):
        monkeypatch.setenv("LSTMJAX_DATA", str(written))
    read = {"mnist": mnist.FILE, "chars": shakespeare.FILE, "jsb": chorales.FILE, "ptb": treebank.FILE}
    for task, path in (read | {"fashion": next(iter(fashion.SHA256))}).items():
        if task in name and files.locate(path) is None:
            pytest.skip(f"{path} is not on this machine; running configs/{name} says how it gets there")
    text = (configs / name).read_text()
    command = "sweep" if "[sweep]" in text else "run"
    code, _, err = call(tmp_path, command, configs / name, "--train.steps=2")
    assert code == 0, err
    run = runs.all_runs(tmp_path / "runs")[0]
    assert json.loads(run.result.read_text())["step"] == 2
    assert text.startswith("# ")


def test_evaluate_measures_what_the_run_measured(whole, call):
    run, _ = whole
    code, out, err = call(run.folder.parent.parent, "evaluate", "runs/long-001")
    assert code == 0, err
    row = next(line for line in out.splitlines() if "LSTM" in line)
    assert all(f"{value:.4g}" in row for value in json.loads(run.result.read_text())["test"].values())
    assert "long-001 at step 600" in out


def test_sweep_runs_every_combination_and_compares_them(configs, call, tmp_path):
    text = f'base = "{configs / "airline.toml"}"\n[train]\nsteps = 2\n[sweep]\nmodel.units = [3, 5]\n'
    (tmp_path / "s.toml").write_text(text)
    code, out, err = call(tmp_path, "sweep", "s.toml")
    assert code == 0, err
    results = [json.loads(r.result.read_text()) for r in runs.all_runs(tmp_path / "runs")]
    assert [r["parameters"] for r in results] == [4 * u * (u + 2) + u + 1 for u in (3, 5)]
    table = out[out.index("sweep s.toml") :]
    for number, result in enumerate(results, 1):
        row = next(line for line in table.splitlines() if f"s-00{number}" in line)
        assert f"{result['test']['rmse']:.4g}" in row
    code, out, _ = call(tmp_path, "list")
    assert code == 0
    assert "s-001" in out
    assert f"{results[0]['test']['rmse']:.4g}" in out


def test_sweep_over_bases_and_seeds_gives_the_means_of_each_base(configs, call, tmp_path):
    for name, units in (("few", 3), ("many", 5)):
        base = f'base = "{configs / "airline.toml"}"\n[train]\nsteps = 2\n[model]\nunits = {units}\n'
        (tmp_path / f"{name}.toml").write_text(base)
    (tmp_path / "s.toml").write_text('[sweep]\nbase = ["few.toml", "many.toml"]\ntrain.seed = [4, 5]\n')
    code, out, err = call(tmp_path, "sweep", "s.toml")
    assert code == 0, err
    rows = [line.split("│")[1:-1] for line in out[out.index("sweep s.toml") :].splitlines() if "│" in line]
    rows = [[cell.strip() for cell in row] for row in rows]
    assert [row[:3] for row in rows[:4]] == [
        [f"runs/{base}-00{seed - 3}", f"{base}.toml", str(seed)] for base in ("few", "many") for seed in (4, 5)
    ]
    for row, base in zip(rows[4:], ("few", "many"), strict=True):
        results = [runs.Run(tmp_path / "runs" / f"{base}-00{n}").result for n in (1, 2)]
        one, other = (json.loads(result.read_text())["test"]["rmse"] for result in results)
        mean, deviation = (one + other) / 2, abs(one - other) / 2**0.5
        assert row[1:3] == [f"{base}.toml", "mean ± standard deviation"]
        assert f"{mean:.4g} ± {deviation:.4g}" in row


@pytest.fixture(scope="module")
def tagged(tmp_path_factory, configs, call, written):
    """The folder in which a run has learned tags of the written corpus."""
    folder = tmp_path_factory.mktemp("tagged")
    sizes = ("--model.no-crf", "--model.embedding=4", "--model.units=4", "--model.context=4")
    code, _, err = call(folder, "run", configs / "swda.toml", *SHORT, *sizes, LSTMJAX_DATA=str(written))
    assert code == 0, err
    return folder


def test_predict_prints_each_line_with_its_tag_and_probability(tagged, call, written):
    (tagged / "talk.txt").write_text("A|so w7 ?\n\nB|never heard of ☃ .\nA|\n")
    code, out, err = call(tagged, "predict", "runs/swda-001", "talk.txt", LSTMJAX_DATA=str(written))
    assert code == 0, err
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line for _, _, line in lines] == ["A|so w7 ?", "B|never heard of ☃ .", "A|"]
    assert {tag for tag, _, _ in lines} <= {"q", "s"}
    assert all(0 < float(probability) < 1 for _, probability, _ in lines)


def test_predict_warns_of_a_damaged_checkpoint_apart_from_what_it_prints(tagged, call, written, tmp_path):
    shutil.copytree(tagged / "runs", tmp_path / "runs")
    run = runs.Run(tmp_path / "runs" / "swda-001")
    (run.checkpoints / "2" / "default.json").touch()
    (tmp_path / "talk.txt").write_text("A|so w7 ?\n")
    code, out, err = call(tmp_path, "predict", run.folder, "talk.txt", LSTMJAX_DATA=str(written))
    assert code == 0
    assert len(out.splitlines()) == 1
    assert err.startswith(f"warning: {run.checkpoints / '2'} is not whole: default.json is not as SHA256SUMS has it; ")
    assert err.endswith(f"taking {run.checkpoints / '1'}\n")


def test_labels_stay_when_the_data_changes_or_goes(tagged, call, written, tmp_path):
    """Three lines more gave other labels; now nothing of the corpus is opened."""
    (tmp_path / "talk.txt").write_text("A|so w7 ?\nB|so w8 .\n")
    shutil.copytree(written, tmp_path / "data")

    def said(command, *rest):
        return call(tagged, command, "runs/swda-001", *rest, LSTMJAX_DATA=str(tmp_path / "data"))

    _, before, _ = said("predict", tmp_path / "talk.txt")
    _, figures, _ = said("evaluate")
    assert len(before.splitlines()) == 2
    with (tmp_path / "data/swda/train/train0.txt").open("a") as file:
        file.write("A|of all of them|q\n" * 3)
    assert said("predict", tmp_path / "talk.txt") == (0, before, "")
    code, _, err = said("evaluate")
    assert code == 1
    assert "swda/train/train0.txt has " in err
    code, again, err = said("evaluate", "--data-changed")
    assert code == 0, err
    rows = [[line for line in out.splitlines() if "TAGGER" in line] for out in (figures, again)]
    assert rows[0] == rows[1] != []
    shutil.rmtree(tmp_path / "data")
    assert said("predict", tmp_path / "talk.txt") == (0, before, "")
    assert said("evaluate")[0] == said("evaluate", "--data-changed")[0] == 1


@pytest.fixture(scope="module")
def task(tagged):
    """That of the run of `tagged`."""
    run = runs.Run(tagged / "runs" / "swda-001")
    return swda.labeller(load(run.config).model, json.loads(run.data.read_text())["kept"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "talk cannot be read: No such file or directory"),
        (b"", "talk has no lines"),
        (b" \n\n", "talk has no lines"),
        (b"\xff\x00", "talk is no text in UTF-8"),
        (b"A|so\nso\n", "talk, line 2: 'so' has 1 columns"),
    ],
)
def test_predict_says_once_what_is_wrong_with_a_file(tagged, monkeypatch, call, tmp_path, task, content, words):
    monkeypatch.setattr(swda, "labeller", lambda *_: task)
    monkeypatch.setattr(commands, "_trained", lambda *_: SimpleNamespace(params={}))
    if content is not None:
        (tmp_path / "talk").write_bytes(content)
    code, _, answer = call(tmp_path, "predict", tagged / "runs" / "swda-001", "talk")
    assert code == 1
    assert answer.startswith(f"error: {words}")
    assert answer.count("talk") == 1


def test_predict_needs_a_task_with_lines(whole, capsys):
    assert main(["predict", str(whole[0].folder), "talk"]) == 1
    assert "the task adding has no lines to label" in capsys.readouterr().err


def test_loss_that_is_no_number_ends_the_run_with_the_step_and_the_remedy(configs, call, tmp_path):
    arguments = ("--train.learning-rate", "1e38", "--train.clip", "1e38")
    code, _, err = call(tmp_path, "run", configs / "airline.toml", *arguments)
    assert code == 1
    assert "the loss is " in err
    assert "at step " in err
    assert "the last good checkpoint: there is none" in err
    assert "lower --train.learning_rate" in err


def test_parameters_that_are_no_numbers_are_not_saved(configs, tmp_path, monkeypatch, capsys):
    """The loss before the first update is finite; only the parameters after it are not."""
    monkeypatch.setattr(train, "_optimizer", lambda options: optax.scale(math.nan))
    assert main(["run", str(configs / "airline.toml"), f"--out={tmp_path}", *SHORT]) == 1
    assert "not all parameters are finite after step 1" in capsys.readouterr().err
    assert Checkpoints(tmp_path / "airline-001" / "checkpoints").latest() is None


def test_a_batch_of_more_than_there_is_to_train_on_leaves_no_run(configs, written, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LSTMJAX_DATA", str(written))
    assert main(["run", str(configs / "conll2000.toml"), f"--out={tmp_path}", "--train.batch=1000"]) == 2
    assert "conll2000: train.batch is 1000; there are only 300 training examples" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_resuming_at_another_commit_is_said_and_kept(configs, tmp_path, monkeypatch, capsys):
    at = [{"commit": letter * 40, "dirty": False} for letter in "ab"]
    monkeypatch.setattr(runs, "_git", lambda: at[0])
    monkeypatch.setattr(commands, "_interrupt", lambda run: contextlib.nullcontext(lambda: 143))
    assert main(["run", str(configs / "airline.toml"), f"--out={tmp_path}", *SHORT]) == 143
    monkeypatch.undo()
    monkeypatch.setattr(runs, "_git", lambda: at[1])
    assert main(["resume", str(tmp_path / "airline-001")]) == 0
    assert "git was {'commit': 'aaaa" in capsys.readouterr().out
    assert [line["git"] for line in runs.read(runs.Run(tmp_path / "airline-001").timings)] == at


def test_figures_that_are_no_numbers_are_no_result(configs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands, "_test", lambda *_: {"perplexity": math.inf, "loss": 1000.0})
    assert main(["run", str(configs / "airline.toml"), f"--out={tmp_path}", *SHORT]) == 1
    err = capsys.readouterr().err
    assert "airline-001: on the test split perplexity is inf; start again with a lower --train.learning_rate" in err
    assert not (tmp_path / "airline-001" / "result.json").exists()


def test_ctrl_c_before_the_first_step_stops_after_the_first_chunk(call, tmp_path, monkeypatch):
    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        return initial_state(*arguments)

    monkeypatch.setattr(commands, "initial_state", interrupted)
    (tmp_path / "long.toml").write_text(LONG)
    code, out, err = call(tmp_path, "run", "long.toml")
    assert code == 130, err
    assert "stopped and saved at step 10" in out
    assert "python -m experiments resume runs/long-001" in out
    assert Checkpoints(tmp_path / "runs" / "long-001" / "checkpoints").latest() == 10


@pytest.mark.slow
def test_ctrl_c_while_a_process_compiles_stops_after_the_first_chunk(launch, tmp_path):
    (tmp_path / "long.toml").write_text(LONG)
    run = runs.Run(tmp_path / "runs" / "long-001")
    process = launch(tmp_path, "run", "long.toml", **ANEW)
    wait_for(run.lock.exists, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopped and saved at step 10" in out
    assert "python -m experiments resume runs/long-001" in out
    assert Checkpoints(run.checkpoints).latest() == 10


def test_second_ctrl_c_stops_at_once_and_says_how_to_go_on(capsys, monkeypatch, request):
    """Whatever SIGINT does to the tests: a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    run = runs.Run(Path("runs/a-001"))

    def stopped_twice():
        with commands._interrupt(run) as interrupted:
            signal.raise_signal(signal.SIGINT)
            assert interrupted() == 130
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(commands, "show", stopped_twice)
    assert main(["list"]) == 130
    assert "python -m experiments resume runs/a-001" in capsys.readouterr().err


def test_sigterm_asks_for_another_exit_code_once():
    with commands._interrupt(runs.Run(Path("runs/a-001"))) as asked:
        assert asked() == 0
        signal.raise_signal(signal.SIGTERM)
        assert asked() == 143
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_changed_config_is_not_resumed(whole, call, tmp_path):
    shutil.copytree(whole[0].folder, tmp_path / "long-001")
    run = runs.Run(tmp_path / "long-001")
    run.config.write_text(run.config.read_text().replace("units = 8", "units = 9"))
    for command in ("resume", "evaluate"):
        code, _, err = call(tmp_path, command, "long-001")
        assert code == 1
        assert "config.toml was changed after the run began" in err


def test_list_shows_a_broken_run_as_that(process, tmp_path):
    """In a process of its own, which imports all without a warning and ends well."""
    run = runs.create(str(tmp_path / "runs"), "a", "")
    run.result.write_text("{")
    code, out, err = process(tmp_path, "list")
    assert code == 0, err
    assert "cannot be read" in out


def test_evaluate_without_a_checkpoint_is_an_error(tmp_path, call, configs):
    run = runs.create(str(tmp_path), "a", (configs / "adding.toml").read_text())
    code, _, err = call(tmp_path, "evaluate", run.folder)
    assert code == 1
    assert "no checkpoint yet" in err


def test_help_lists_every_option_with_its_value(configs, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", str(configs / "airline.toml"), "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    for option in ("--train.steps", "--model.units", "--data.look-back", "--train.learning-rate", "--out"):
        assert option in out
