"""Tables show what was measured, on the data that they name."""

import dataclasses
import gzip
import hashlib
import io
import json
import math
import pickle
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
from matplotlib.figure import Figure
from rich.console import Console

from experiments import commands, linear, ngram, report, results, runs
from experiments.__main__ import main
from experiments.data import chorales, chunks, dialogues, files, mnist, shakespeare
from experiments.data.chunks import Sentence
from experiments.data.dialogues import Conversation
from experiments.models import Model
from experiments.tagger import Tagger
from experiments.task import FAILED, each
from experiments.tasks import airline, chars, conll2000, jsb, mnist_rows, ptb, recall, swda
from experiments.train import Hooks, Train, initial_state, train

KEY = jax.random.key(0)
RUN = "task = 'airline'\n[train]\nbatch = 8\nsteps = 1\nlog_every = 1\nevaluate_every = 1\nsave_every = 1\n"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: path.touch())
    (tmp_path / "a.toml").write_text(RUN)
    return tmp_path


@pytest.fixture
def forget():
    def clear():
        for made in (swda._read, swda._splits, swda._vectors, swda._baselines):
            made.cache_clear()

    clear()
    yield
    clear()


def talk(name, size, tags="xyz"):
    said = tuple(tags[n % len(tags)] for n in range(size))
    return Conversation(name, ("A",) * size, said, said)


def of_chars(root):
    path = root / shakespeare.FILE
    path.parent.mkdir()
    path.write_text("A user's own text, of some length.\n" * 30)
    return chars.build(chars.Options(steps=2), Model(units=3), 2, KEY)


def of_conll2000(root):
    (root / "conll2000").mkdir()
    for name in chunks.FILES.values():
        (root / name).write_text("a DT B-NP\nb NN I-NP\n\n" * 3)
    return conll2000.build(conll2000.Options(rare=1), Tagger(embedding=2, units=3), 1, KEY)


def of_swda(root):
    for folder in dialogues.FOLDERS.values():
        (root / "swda" / folder).mkdir(parents=True)
        (root / "swda" / folder / f"{folder}.txt").write_text("A|one two|x\nB|two three|y\n")
    return swda.build(swda.Options(rare=1), Tagger(embedding=2, units=3), 1, KEY)


def of_airline(root):
    return airline.build(airline.Options(), Model(units=3), 8, KEY)


@pytest.mark.parametrize("build", [of_chars, of_conll2000, of_swda, of_airline])
def test_other_data_under_a_known_name_has_no_published_figures(build, place, monkeypatch, forget):
    monkeypatch.setenv("LSTMJAX_DATA", str(place))
    monkeypatch.setattr(chunks, "VALIDATION", 1)
    monkeypatch.setattr(airline, "PASSENGERS", airline.PASSENGERS * 2)
    assert build(place).published == ()


def test_published_data_has_its_published_figures():
    assert of_airline(None).published == airline.PUBLISHED


PUBLIC = {
    chars: (shakespeare.FILE, lambda: files.digest(shakespeare.load()) == shakespeare.SHA256),
    conll2000: (chunks.FILES["train"], lambda: chunks.published(chunks.load())),
}


@pytest.mark.parametrize("module", PUBLIC)
def test_real_data_is_known_if_it_is_here(module):
    path, known = PUBLIC[module]
    if files.locate(path) is None:
        pytest.skip(f"{path} is not on this machine: LSTMJAX_DATA names no folder that has it")
    assert known()


@pytest.mark.slow
def test_real_switchboard_is_known_if_it_is_here(switchboard):
    assert dialogues.published(switchboard)


def test_runs_on_other_data_are_in_no_common_mean():
    runs_ = [{"seed": n, "data": data, "published": {"a": {}}} for n, data in enumerate(("x", None, "x"))]
    results._check_one_data("little", runs_)
    for other in ({"data": "y"}, {"published": {}}):
        with pytest.raises(runs.RunError, match="runs of little with seeds 0 and 2 are of different data"):
            results._check_one_data("little", [*runs_[:2], runs_[2] | other])


# What the mean of a task's measure is over.


def test_the_measure_is_a_mean_over_what_was_counted():
    """Of the sequences that count; and a batch without any has no part in the loss either."""
    built = of_airline(None)

    def loss(params, batch, carried):
        far = batch["passengers"]
        return jnp.mean(far), (jnp.where(far > 390, far, 0.0), carried)

    far_only = {"counted": lambda batch: batch["passengers"] > 390, "watch": ()}
    task = dataclasses.replace(built, loss=loss, **far_only)
    options = Train(steps=12, batch=8, log_every=6, evaluate_every=6, save_every=6)
    lines, state = [], initial_state(task, options)
    rows = jax.jit(lambda steps: task.batches(task.splits["train"], jax.random.wrap_key_data(state.key), steps))
    far = np.asarray(jax.device_get(rows(jnp.arange(12)))["passengers"])
    train(task, options, state, Hooks(lambda line, rate: lines.append(line), lambda state: None, lambda: False))
    for line, chunk in zip(lines, (far[:6], far[6:]), strict=True):
        some = (chunk > 390).any(axis=1)
        assert not some.all()
        if some.any():
            assert line["train_mae"] == pytest.approx(chunk[chunk > 390].mean())
            assert line["loss"] == pytest.approx(chunk.mean(axis=1)[some].mean())
        else:
            assert line["train_mae"] is line["loss"] is None
    assert any(line["loss"] is not None for line in lines)


@pytest.mark.training
def test_train_nll_is_that_of_the_conversations_alone(monkeypatch, forget):
    """Of seven conversations in three batches, two of which have an empty slot."""
    sizes = (9, 4, 12, 1, 7, 10, 3)
    corpus = {"train": [talk(f"t{n}", size) for n, size in enumerate(sizes)], "validation": [talk("v", 4)]}
    monkeypatch.setattr(swda.dialogues, "load", lambda folder, column: corpus | {"test": [talk("e", 5)]})
    model = Tagger(embedding=3, units=3, dropout=0.0, crf=False)
    task = swda.build(swda.Options(rare=1), model, 3, KEY)
    lengths = np.asarray(task.splits["train"]["lengths"])
    assert np.sum(lengths == 0) == 2
    options = Train(steps=3, batch=3, learning_rate=1e-12, log_every=3, evaluate_every=3, save_every=3)
    lines, state = [], initial_state(task, options)
    loss = jax.jit(lambda params, batch: task.loss(params, batch, None)[1][0])
    nll = np.concatenate(
        [loss(state.params, jax.tree.map(lambda a, n=n: a[n], task.splits["train"])) for n in range(3)]
    )
    train(task, options, state, Hooks(lambda line, rate: lines.append(line), lambda state: None, lambda: False))
    assert lines[0]["train_nll"] == pytest.approx(nll[lengths.ravel() > 0].mean(), rel=1e-4)
    assert lines[0]["train_nll"] > 1.1 * nll.mean()


COUNTED = {
    "swda": ({"lengths": np.array([3, 0, 1])}, [True, False, True]),
    "jsb": ({"length": np.array([3, 0, 1])}, [True, False, True]),
    "recall": ({"asked": np.array([[0, 1], [0, 0]], bool)}, [True, True]),
    "recall, nothing asked": ({"asked": np.zeros((2, 2), bool)}, [False, False]),
}


@pytest.mark.parametrize("name", COUNTED)
def test_slots_without_a_sequence_do_not_count(name, monkeypatch):
    rolls = {split: [np.zeros((4, 88), np.uint8)] * 3 for split in chorales.SPLITS}
    monkeypatch.setattr(chorales, "load", lambda: rolls)
    made = {
        "swda": lambda: swda.labeller(Tagger(embedding=2, units=2), {"words": [""], "characters": [""], "tags": ["x"]}),
        "jsb": lambda: jsb.build(jsb.Options(), Model(units=2), 1, KEY),
        "recall": lambda: recall.build(recall.Options(episode=4, steps=2), Model(units=2), 2, KEY),
    }
    batch, counted = COUNTED[name]
    assert np.asarray(made[name.partition(",")[0]]().counted(batch)).tolist() == counted


# What a run leaves when a baseline fails.


def fail(*arguments, **options):
    raise RuntimeError("no such luck\nand more lines")


def test_result_is_there_before_the_baselines_and_stays(place, monkeypatch, capsys):
    seen = []

    def baselines(series, train):
        seen.append((json.loads((place / "runs/a-001/result.json").read_text()), capsys.readouterr().out))
        fail()

    monkeypatch.setattr(airline, "baselines", baselines)
    assert main(["run", "a.toml"]) == 0, capsys.readouterr().err
    result = json.loads((place / "runs/a-001/result.json").read_text())
    before, said = seen[0]
    assert before == {name: value for name, value in result.items() if name != "baselines"}
    assert set(before["test"]) == {"rmse", "mae"}
    assert said.splitlines()[-1].startswith("baselines ")
    assert "minutes" in said.splitlines()[-1]
    assert result["baselines"] == {"baselines": {FAILED: "RuntimeError: no such luck"}}
    assert "failed: RuntimeError: no such luck" in capsys.readouterr().out
    assert main(["evaluate", "runs/a-001"]) == 0
    assert "failed: RuntimeError: no such luck" in capsys.readouterr().out
    assert main(["list"]) == 0
    assert main(["resume", "runs/a-001"]) == 0
    assert "nothing to resume" in capsys.readouterr().out


def test_stop_during_the_baselines_is_made_good_by_resume(place, monkeypatch, capsys):
    """And the result is the same as that of a run that nothing stopped."""

    assert main(["run", "a.toml"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(airline, "baselines", interrupt)
        assert main(["run", "a.toml"]) == 130
    whole, stopped = (runs.Run(place / f"runs/a-00{number}") for number in (1, 2))
    assert "baselines" not in runs.result(stopped)
    assert any("a-002 is not finished" in reason for reason in left_out(place, stopped))
    capsys.readouterr()
    with monkeypatch.context() as patch:  # baselines of other data than the result is of are none
        patch.setattr(airline, "PASSENGERS", airline.PASSENGERS * 2)
        assert main(["resume", "runs/a-002", "--data-changed"]) == 1
    assert "the data is not what the run began with" in capsys.readouterr().err
    assert main(["resume", "runs/a-002"]) == 0
    assert "its baselines are missing" in capsys.readouterr().out
    assert stopped.result.read_bytes() == whole.result.read_bytes()


SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture
def handlers():
    """Whatever signals do to the tests: a shell's background jobs ignore SIGINT."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.training
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", ["run", "resume"])
def test_signal_during_the_baselines_stops_at_once(command, number, place, monkeypatch, capsys, handlers):
    done = []

    def slow(series, train):
        signal.raise_signal(number)
        done.append(True)
        return {}

    if command == "resume":
        with monkeypatch.context() as patch:
            patch.setattr(airline, "baselines", interrupt)
            assert main(["run", "a.toml"]) == 130
    with monkeypatch.context() as patch:
        patch.setattr(airline, "baselines", slow)
        assert main([command, "a.toml" if command == "run" else "runs/a-001"]) == SIGNALS[number]
    assert not done
    said = capsys.readouterr().err
    assert "after this chunk" not in said
    assert "runs/a-001 has its result, but no baselines yet" in said
    assert "python -m experiments resume runs/a-001" in said
    assert "baselines" not in runs.result(runs.Run(place / "runs/a-001"))
    assert signal.getsignal(signal.SIGTERM) == handlers[signal.SIGTERM]
    assert main(["resume", "runs/a-001"]) == 0
    assert len(runs.result(runs.Run(place / "runs/a-001"))["baselines"]) == 3


@pytest.mark.training
@pytest.mark.parametrize("number", SIGNALS)
def test_signal_in_the_last_chunk_stops_before_the_baselines(number, place, monkeypatch, capsys, handlers):
    def signalled(*arguments):
        signal.raise_signal(number)
        return initial_state(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(commands, "initial_state", signalled)
        assert main(["run", "a.toml"]) == SIGNALS[number]
    assert "baselines" not in runs.result(runs.Run(place / "runs/a-001"))
    assert "python -m experiments resume runs/a-001" in capsys.readouterr().out
    assert main(["resume", "runs/a-001"]) == 0
    assert "baselines" in runs.result(runs.Run(place / "runs/a-001"))


def interrupt(series, train):
    raise KeyboardInterrupt


def left_out(place, run):
    (place / "configs").mkdir()
    (place / "configs/a.toml").write_text(RUN)
    return results.collect([run], place / "configs", place / "records", named=False)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_baseline_that_is_no_number_is_a_row_with_its_reason(value, monkeypatch):
    task = dataclasses.replace(of_airline(None), baselines=lambda: {"a": {"mae": value, "rmse": 1}, "b": {"mae": 2}})
    assert commands._baselines(task) == {"a": {FAILED: f"mae is {value}"}, "b": {"mae": 2.0}}


@pytest.mark.parametrize("given", [None, 1.0, {"mae": None}, {"mae": "much"}])
def test_baseline_that_gives_no_figures_leaves_the_others(given):
    task = dataclasses.replace(of_airline(None), baselines=lambda: {"a": given, "b": {"mae": 2}})
    rows = commands._baselines(task)
    assert rows["b"] == {"mae": 2.0}
    assert rows["a"][FAILED].startswith(("TypeError: ", "ValueError: "))
    assert FAILED in each({"a": lambda: None})["a"]
    assert FAILED in commands._baselines(dataclasses.replace(task, baselines=lambda: None))["baselines"]


@pytest.mark.parametrize("module", [chars, ptb])
def test_ngrams_that_fail_leave_the_unigram(module, monkeypatch):
    whole = module.baselines(of_text(), 7)
    monkeypatch.setattr(ngram, "probabilities", orders(ngram.probabilities))
    rows = module.baselines(of_text(), 7)
    assert rows["unigram"] == whole["unigram"]
    assert rows["n-gram, Witten-Bell"] == {FAILED: "RuntimeError: no such luck"}
    assert len(rows) == len(whole) == 2


def test_digits_have_their_other_baselines_where_there_is_no_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    rows = of_images()
    assert "sklearn" in rows["linear, all pixels"][FAILED]
    assert FAILED not in rows["commonest"] | rows["nearest mean image"]


REASON = "shapes of q[batch, time] and [/red] differ: a | b :warning: [bold]"


@pytest.mark.training
def test_reasons_are_shown_as_they_are(place, monkeypatch, capsys):
    """Brackets are no markup, and a bar ends no cell of a table."""
    (place / "configs").mkdir()
    (place / "docs").mkdir()
    (place / "configs/a.toml").write_text(RUN)

    def wrong(*arguments, **options):
        raise ValueError(REASON)

    monkeypatch.setattr(airline, "_autoregression", wrong)
    monkeypatch.setattr(report.console, "width", 200)
    assert main(["run", "a.toml"]) == 0
    assert f"failed: ValueError: {REASON}" in capsys.readouterr().out
    assert (place / "runs/a-001/curve.png").exists()
    assert main(["evaluate", "runs/a-001"]) == 0
    assert f"failed: ValueError: {REASON}" in capsys.readouterr().out
    assert main(["report"]) == 0
    (line,) = (line for line in (place / "docs/results.md").read_text().splitlines() if "[/red]" in line)
    assert REASON.replace("|", "\\|") in line
    assert line.replace("\\|", "").count("|") == 4  # a name and two figures


def test_tables_of_other_consoles_take_no_markup_either():
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report.table({"LSTM": {"rmse": 1.0}}, {"a [b]": {FAILED: REASON}}, "runs/a[b]-001"))
    said = console.export_text()
    for words in (REASON, "a [b]", "runs/a[b]-001"):
        assert words in said


@pytest.mark.parametrize("name", ["a[batch, time]", "[/red]a", "a$x^$ b", ":warning:"])
def test_names_are_shown_as_they_are(name, capsys, tmp_path, monkeypatch):
    monkeypatch.undo()
    report.console.print(name)
    assert capsys.readouterr().out == f"{name}\n"
    lines = [{"step": 1, "sequences": 8, "loss": 1.0, "rmse": 2.0}]
    report.curve(tmp_path / "c.png", of_airline(None), lines, {}, {}, name)


def of_sentences():
    found = [Sentence(("a", "b"), ("D", "N"), ("B-NP", "I-NP"))] * 3
    return conll2000.baselines(found, found)


def of_talks():
    found = [talk(f"t{n}", 6) for n in range(3)]
    return linear.baselines(found, found)


def of_rolls():
    found = [np.eye(4, 88, dtype=np.uint8)] * 3
    return jsb.baselines(found, found)


def of_images():
    split = {"rows": jnp.asarray(np.random.default_rng(0).random((20, 28, 28))), "digit": jnp.arange(20) % 10}
    return mnist_rows._baselines({"train": split, "test": split})


def of_text(symbols=7):
    return {name: np.arange(60) % symbols for name in ("train", "validation", "test")}


def orders(real):
    """The n-grams of more than one symbol fail."""
    return lambda train, text, symbols, longest: real(train, text, symbols, 1) if longest == 1 else fail()


ROWS = {
    "airline": (lambda: airline.baselines(airline.PASSENGERS, 96), airline, "_autoregression", "AR(13) on the log"),
    "conll2000": (of_sentences, conll2000, "_pos", "commonest tag of the part of speech"),
    "swda": (of_talks, linear, "predicted", "linear, words and pairs"),
    "jsb": (of_rolls, jsb, "linear", "linear, the step before"),
    "mnist": (of_images, "sklearn.linear_model.LogisticRegression", "fit", "linear, all pixels"),
}


@pytest.mark.parametrize("name", ROWS)
def test_baseline_that_fails_leaves_the_others(name, monkeypatch):
    compute, module, inner, row = ROWS[name]
    monkeypatch.setattr(*([f"{module}.{inner}"] if isinstance(module, str) else [module, inner]), fail)
    rows = compute()
    assert rows[row] == {FAILED: "RuntimeError: no such luck"}
    assert len(rows) > 1
    assert all(FAILED not in figures for other, figures in rows.items() if other != row)


def test_failed_baseline_is_shown_where_no_run_has_its_figures():
    figures = [{"linear": {"f1": 0.5}, "worse": {FAILED: "why"}}, {"linear": {FAILED: "once"}}, {"linear": {"f1": 0.7}}]
    record = {"runs": [{"baselines": rows} for rows in figures]}
    assert results._baselines(record) == {"linear": {"f1": pytest.approx(0.6)}, "worse": {FAILED: "why"}}
    assert results._best(record, "f1") == ("linear", pytest.approx(0.6))


def test_each_lets_an_interrupt_through():
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        each({"a": stop})


# Data that is no number.


def series(place, monkeypatch):
    passengers = airline.PASSENGERS.copy()
    passengers[30] = np.nan
    monkeypatch.setattr(airline, "PASSENGERS", passengers)
    return (
        "task = 'airline'\n",
        "PASSENGERS in experiments/data/airline.py: the data is nan in row 30; it must be finite",
    )


def notes(place, monkeypatch):
    (place / chorales.FILE).parent.mkdir()
    cells = np.empty((1, 3), object)
    for n in range(3):
        cells[0, n] = np.zeros((5, 88))
    cells[0, 1][3, 40] = np.nan
    scipy.io.savemat(place / chorales.FILE, dict.fromkeys(chorales.SPLITS.values(), cells))
    trusted(place, chorales, monkeypatch)
    return "task = 'jsb'\n", f"{chorales.FILE}, traindata, chorale 1: the data is nan in row 3, column 40"


def pixels(place, monkeypatch):
    (place / mnist.FILE).parent.mkdir()
    splits = tuple((np.zeros((10, 784), np.float32), np.arange(10)) for _ in range(3))
    splits[1][0][7, 30] = np.inf
    content = pickle.dumps(splits, protocol=3).replace(b"numpy._core", b"numpy.core")
    (place / mnist.FILE).write_bytes(gzip.compress(content))
    trusted(place, mnist, monkeypatch)
    return "task = 'mnist_rows'\n", f"{mnist.FILE}, images of validation: the data is inf in row 7, column 1, place 2"


def split(place, monkeypatch):
    """Whatever a loader lets through."""
    rolls = {name: [np.zeros((5, 88))] * 3 for name in chorales.SPLITS}
    rolls["test"][2] = np.full((5, 88), np.nan)
    monkeypatch.setattr(chorales, "load", lambda: rolls)
    return "task = 'jsb'\n", "jsb, chords of the split test: the data is nan in row 2, column 0, place 0"


def trusted(place, module, monkeypatch):
    monkeypatch.setattr(module, "SHA256", hashlib.sha256((place / module.FILE).read_bytes()).hexdigest())


@pytest.mark.parametrize("wrong", [series, notes, pixels, split])
def test_data_that_is_no_number_is_named_before_training(wrong, place, monkeypatch, capsys):
    monkeypatch.setenv("LSTMJAX_DATA", str(place))
    config, words = wrong(place, monkeypatch)
    (place / "b.toml").write_text(config + "[train]\nbatch = 2\n")
    assert main(["run", "b.toml"]) == 1
    said = capsys.readouterr().err
    assert words in said
    assert "learning_rate" not in said
    assert not (place / "runs").exists()


def test_what_is_not_there_is_not_taken_for_data():
    """Without a difference to the year before, months have no year before: no NaN stands for it."""
    options = airline.Options(look_back=2, seasonal_difference=False)
    for columns in airline.build(options, Model(units=3), 8, KEY).splits.values():
        assert all(np.isfinite(column).all() for column in columns.values())
