"""The page of results says what the runs said, and what it compares them with."""

import dataclasses
import json
import statistics

import pytest
from matplotlib.figure import Figure

from experiments import results, runs
from experiments.__main__ import main
from experiments.config import dumps, load
from experiments.runs import RunError

CONFIG = """# A little of the adding problem.
#
# Tried: {tried}
task = "adding"

[train]
seed = 7
log_every = 1
evaluate_every = 1
save_every = 1
"""


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """The figures of a page, which are not drawn: to lay one out takes longer than all the rest."""
    figures = []

    def keep(figure, path, **options):
        figures.append(figure)
        path.touch()

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


@pytest.fixture
def place(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "little.toml").write_text(CONFIG.format(tried="a smaller\n# rate."))
    (tmp_path / "configs" / "many.toml").write_text('base = "little.toml"\n[sweep]\ntrain.seed = [1, 2]\n')
    return tmp_path


def finished(place, seed, sequences, criterion_met=True, **test):
    """A finished run of little.toml."""
    config = load(place / "configs" / "little.toml")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
    run = runs.create(str(place / "runs"), "little", dumps(config))
    lines = [{"step": s, "sequences": 4 * s, "loss": 1 / s, "train_error": 2 / s} for s in range(1, 251)]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.timings.write_text(
        json.dumps({"steps": 100, "train_seconds": 3.0, "compile_seconds": 9.0})
        + "\n"
        + json.dumps({"steps": 150, "train_seconds": 7.0, "compile_seconds": 9.0})
        + "\n"
    )
    result = {"task": "adding", "step": 250, "sequences": sequences, "parameters": 12345, "metric": "error", "unit": ""}
    result |= {"test": {"error": 0.01, "wrong of 2560": 3.0} | test, "criterion_met": criterion_met}
    result |= {"baselines": {"always 0.5": {"error": 0.2 + seed}}, "epoch": 25}
    result |= {"published": {"the paper": {"sequences": 1500.0, "wrong of 2560": 1.0}}}
    run.result.write_text(json.dumps(result))
    return run


def page(place, found):
    results.collect(found, place / "configs", place / "results")
    return results.write(place / "configs", place / "results").read_text()


def cells(text, start):
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_mean_spread_and_what_is_reached_or_missed(place):
    counts, wrong = (1000, 2000, 1200), (0.0, 4.0, 5.0)
    found = [finished(place, n, c, **{"wrong of 2560": w}) for n, (c, w) in enumerate(zip(counts, wrong, strict=True))]
    text = page(place, found)
    assert cells(text, "[little]")[1:] == [
        "3",
        "criterion after 1,400 ± 530 sequences",
        "1500, the paper: reached",
        "error 1.2, always 0.5",
    ]
    assert cells(text, "**little**") == ["**little**", "0.01 ± 0", f"3 ± {statistics.stdev(wrong):.2g}", "1,400 ± 530"]
    assert cells(text, "published: the paper")[1:] == ["", "1", "1500"]
    assert cells(text, "baseline: always 0.5")[1:] == ["1.2", "", ""]
    assert "Published in: Hochreiter & Schmidhuber, Long Short-Term Memory, Neural Computation 9(8), 1997" in text
    assert "Beside the paper: sequences reached, wrong of 2560 missed by 2." in text
    assert "**little**: A little of the adding problem." in text
    assert "Tried: a smaller rate." in text
    assert "seeds 0, 1, 2; 12,345 parameters; 10 s of training each, 1 s an epoch" in text
    commit = json.loads(found[0].environment.read_text())["git"]
    assert commit is None or commit["commit"][:10] in text


@pytest.mark.parametrize(
    ("timed", "took"),
    [
        # Killed before it said what 150 steps took.
        ([(100, 3.0)], "7.5 s of training each, told from the 100 of 250 steps that were timed, 0.75 s an epoch"),
        ([(250, 5.0), (50, 1.0)], "5 s of training each, 0.5 s an epoch"),  # 50 steps were done twice
        ([(0, 0.0)], "training not timed"),
    ],
)
def test_the_time_is_that_of_all_steps_where_a_run_was_killed(place, timed, took):
    run = finished(place, 0, 1000)
    lines = ({"steps": steps, "train_seconds": seconds, "compile_seconds": 9.0} for steps, seconds in timed)
    run.timings.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert f"12,345 parameters; {took}, on " in page(place, [run])


def test_what_the_validation_split_gave_at_the_end_is_told(place):
    found = [finished(place, seed, 1000) for seed in (0, 1)]
    assert "validation" not in page(place, found)
    for run, loss in zip(found, (0.25, 0.35), strict=True):
        runs.append(run.metrics, {"step": 251, "sequences": 1004, "loss": 1.0, "validation_loss": loss})
    assert "On the validation split at the end: loss 0.3 ± 0.071." in page(place, found)


def test_a_validation_figure_that_ended_infinite_is_told(place):
    found = [finished(place, seed, 1000) for seed in (0, 1)]
    for run, loss in zip(found, (float("inf"), 0.35), strict=True):
        runs.append(run.metrics, {"step": 251, "sequences": 1004, "loss": 1.0, "validation_loss": loss})
    assert "On the validation split at the end: loss infinite in 1 of 2 runs." in page(place, found)


def test_rivals_with_other_figures_beside_another_config_are_told_apart():
    rows = [
        ("short", {"paper": {"loss": 1}, "chance": {"loss": 9}}),
        ("long", {"paper": {"loss": 2}, "chance": {"loss": 9}}),
        ("plain", {"paper": {"loss": 1}, "chance": {"loss": 9}, "linear": {"loss": 5}}),
    ]
    assert results._distinct(rows) == {
        "paper (short, plain)": {"loss": 1},
        "paper (long)": {"loss": 2},
        "chance": {"loss": 9},
        "linear (plain)": {"loss": 5},
    }


def test_machines_and_commits_are_those_of_all_runs(place):
    found = [finished(place, seed, 1000) for seed in (0, 1, 2)]
    environment = json.loads(found[1].environment.read_text())
    there = {"device": "TPU v5e", "devices": 8, "cpus": 1, "python": "3.13.0", "git": {"commit": "a" * 40, "dirty": 1}}
    found[1].environment.write_text(json.dumps(environment | there))
    runs.append(found[2].timings, {"steps": 0, "train_seconds": 0.0, "git": {"commit": "b" * 40, "dirty": False}})
    text, jax = page(place, found), environment["packages"]["jax"]
    here = f"{environment['devices']} x {environment['device']}, {environment['cpus']} core"
    assert f", on {here}" in text
    assert f" and on 8 x TPU v5e, 1 core, Python 3.13.0, jax {jax}; commit " in text
    assert "aaaaaaaaaa with changes" in text
    assert "bbbbbbbbbb" in text
    assert text.count(here) == 1


def test_a_criterion_that_one_run_did_not_meet_is_not_reached(place):
    text = page(place, [finished(place, 0, 1000), finished(place, 1, 9000, criterion_met=False)])
    assert cells(text, "[little]")[2] == "criterion not met in 1 of 2 runs"
    assert cells(text, "[little]")[3] == "1500, the paper: not reached"


def test_a_task_without_a_criterion_shows_its_metric_and_unit(place):
    run = finished(place, 0, 1000)
    result = json.loads(run.result.read_text()) | {"unit": "mm", "published": {"paper": {"error": 0.5}}}
    del result["criterion_met"]
    run.result.write_text(json.dumps(result))
    assert cells(page(place, [run]), "[little]")[2:4] == ["error 0.01 mm", "0.5, paper: reached"]


def test_papers_are_cited_where_a_published_row_is(place):
    run = finished(place, 0, 1000)
    assert "Published in: " in page(place, [run])
    run.result.write_text(json.dumps(json.loads(run.result.read_text()) | {"published": {}}))
    (place / "results/little.json").unlink()
    assert "Published in: " not in page(place, [run])


def test_a_rising_figure_is_missed_from_below(place):
    assert results._verdict({"accuracy": [0.5, 0.7]}, {"accuracy": 0.7}, "accuracy") == "missed by 0.1"
    assert results._verdict({"exact match": [0.75]}, {"exact match": 0.7}, "exact match") == "reached"
    assert results._verdict({"nll": [8.0]}, {"nll": 8.1}, "nll") == "reached"


def test_the_page_can_be_written_again_without_the_runs_and_knows_an_older_config(place):
    text = page(place, [finished(place, 0, 1000)])
    again = results.write(place / "configs", place / "results").read_text()
    assert again == text
    assert "older" not in text
    little = place / "configs" / "little.toml"
    little.write_text(little.read_text().replace("[train]", "[train]\nbatch = 3"))
    assert (
        "These are runs of an older configs/little.toml"
        in results.write(place / "configs", place / "results").read_text()
    )


def test_a_curve_keeps_its_end_and_a_hundred_points(place, monkeypatch):
    monkeypatch.undo()
    page(place, [finished(place, 0, 1000)])
    (run,) = json.loads((place / "results" / "little.json").read_text())["runs"]
    steps = [line["step"] for line in run["curve"]]
    assert steps == [*range(3, 250, 3), 250]
    assert run["curve"][0] == {"step": 3, "sequences": 12, "loss": 0.3333, "train_error": 0.6667}
    assert (place / "results" / "adding.svg").read_text().startswith("<?xml")


def test_a_curve_keeps_all_that_the_validation_split_gave(place):
    run = finished(place, 0, 1000)
    lines = runs.read(run.metrics)
    for line in lines[::50]:
        line["validation_loss"] = 0.5
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page(place, [run])
    (record,) = json.loads((place / "results" / "little.json").read_text())["runs"]
    assert [line["step"] for line in record["curve"] if "validation_loss" in line] == [1, 51, 101, 151, 201]


def test_what_was_infinite_on_the_way_is_no_point_of_a_curve(place):
    run = finished(place, 0, 1000)
    runs.append(run.metrics, {"step": 251, "sequences": 1004, "loss": 2.0, "train_error": float("inf")})
    page(place, [run])
    (record,) = json.loads((place / "results" / "little.json").read_text())["runs"]
    assert record["curve"][-1] == {"step": 251, "sequences": 1004, "loss": 2.0, "train_error": None}


def test_runs_that_cannot_be_reported_are_refused_where_they_are_named(place):
    run, configs, records = finished(place, 0, 1000), place / "configs", place / "results"
    with pytest.raises(RunError, match="no record"):
        results.write(configs, records)
    content = (configs / "little.toml").read_text()
    (configs / "little.toml").write_text('task = "adding"\n')
    with pytest.raises(RunError, match=r"little-001: no config in .*configs is that of this run"):
        results.collect([run], configs, records)
    (configs / "little.toml").write_text(content)
    other = finished(place, 1, 1000)
    run.result.unlink()
    with pytest.raises(RunError, match="little-001 is not finished"):
        results.collect([run, other], configs, records)
    (reason,) = results.collect([run, other], configs, records, named=False)
    assert "little-001 is not finished" in reason
    assert "seeds 1;" in results.write(configs, records).read_text()


def test_report_says_which_runs_it_leaves_out(place, monkeypatch, capsys):
    finished(place, 0, 1000)
    finished(place, 1, 1000).result.unlink()
    monkeypatch.chdir(place)
    (place / "docs").mkdir()
    assert main(["report"]) == 0
    assert "left out: runs/little-002 is not finished" in capsys.readouterr().out
    assert "seeds 0;" in (place / "docs" / "results.md").read_text()


def test_two_runs_of_one_seed_are_refused(place):
    found = [finished(place, 3, 1000), finished(place, 3, 2000)]
    with pytest.raises(RunError, match=r"little-001 and .*little-002 are both little with seed 3; name one"):
        results.collect(found, place / "configs", place / "results")


def test_a_run_takes_the_place_of_its_seed_and_leaves_the_others(place):
    page(place, [finished(place, seed, 1000 + seed) for seed in (0, 1, 2)])
    page(place, [finished(place, 1, 5000)])
    record = json.loads((place / "results" / "little.json").read_text())
    assert [(run["seed"], run["sequences"]) for run in record["runs"]] == [(0, 1000), (1, 5000), (2, 1002)]
    little = place / "configs" / "little.toml"
    little.write_text(little.read_text().replace("[train]", "[train]\nbatch = 3"))
    page(place, [finished(place, 1, 7000)])
    record = json.loads((place / "results" / "little.json").read_text())
    assert [(run["seed"], run["sequences"]) for run in record["runs"]] == [(1, 7000)]


def test_a_published_count_of_sequences_is_an_upright_line(place, drawn):
    page(place, [finished(place, 0, 1000)])
    for axes in drawn[0].axes:
        (upright,) = (
            line for line in axes.get_lines() if len({x for x, _ in line.get_xydata()}) == 1 < len(line.get_xydata())
        )
        assert upright.get_xdata()[0] == pytest.approx(1500 * 250 / 1000)
        assert "little, 1,500 sequences, the paper" in upright.get_label().replace("\n", " ")
        assert axes.get_xscale() == "log"


@pytest.mark.parametrize(
    ("published", "level", "label"), [({}, 0.7, "0.7, always 0.5"), ({"error": 0.5}, 0.5, "0.5, paper")]
)
def test_a_picture_has_each_run_its_test_figure_and_what_it_is_beside(place, drawn, published, level, label):
    found = [finished(place, seed, 1000, error=0.1 + seed) for seed in (0, 1)]
    for run in found:
        result = json.loads(run.result.read_text()) | {"published": {"paper": published} if published else {}}
        run.result.write_text(json.dumps(result))
    page(place, found)
    _, axes = drawn[0].axes
    lines = [line.get_xydata().tolist() for line in axes.get_lines()]
    assert [line[-1] for line in lines if len(line) > 2] == [[250, pytest.approx(2 / 250)]] * 2
    assert [line[0] for line in lines if len(line) == 1] == [[250, 0.1], [250, 1.1]]
    assert [line[0][1] for line in lines if len(line) == 2] == [pytest.approx(level)]
    assert label in [text.get_text() for text in drawn[0].legends[0].get_texts()]
