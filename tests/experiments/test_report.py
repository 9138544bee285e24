"""What is shown: every figure beside its baselines, and a picture with its axes named."""

import io

import jax
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from experiments import report
from experiments.models import Model
from experiments.tasks import airline

TASK = airline.build(airline.Options(), Model(units=3), 8, jax.random.key(0))
BASELINES = TASK.baselines()


def test_table_gives_every_baseline_beside_the_model():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report.table({"LSTM": {"rmse": 12.3456, "mae": 9.0}}, BASELINES, "a run"))
    lines = console.export_text().splitlines()
    assert lines[0].startswith("a run")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert rows[0] == ["LSTM", "12.35", "9"]
    baselines = [[name, *(f"{float(f[m]):.4g}" for m in ("rmse", "mae"))] for name, f in BASELINES.items()]
    assert rows[1:] == baselines


def test_picture_names_its_axes_and_its_baselines(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, dpi: drawn.append(figure))
    lines = [
        {"step": s, "sequences": 8 * s, "loss": 1 / s, "train_mae": 5.0 + s, "train_rmse": 9.0 + s} for s in (1, 2)
    ]
    report.curve(tmp_path / "c.png", TASK, lines, {"LSTM": {"rmse": 14.0}}, BASELINES, "a run")
    left, right = drawn[0].axes
    assert (left.get_xlabel(), left.get_ylabel()) == ("training sequences", "loss")
    assert right.get_ylabel() == "rmse, thousands of passengers"
    named = {line.get_label(): line for line in right.get_lines()}
    assert list(named["train rmse"].get_ydata()) == [10.0, 11.0]
    assert list(named["LSTM on test, 14"].get_ydata()) == [14.0]
    rmse = float(BASELINES["persistence"]["rmse"])
    assert list(named[f"persistence on test, {rmse:.4g}"].get_ydata()) == pytest.approx([rmse] * 2)


def test_progress_off_a_terminal_is_ten_lines(capsys, monkeypatch):
    monkeypatch.setattr(report, "console", Console(width=100, force_terminal=False))
    with report.progress(steps=1000, first=0) as shown:
        for step in range(10, 1001, 10):
            shown({"step": step, "sequences": step, "loss": 0.5}, 3.0)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"step {100 * n}/1000  loss 0.5  3 steps/s" for n in range(1, 11)]
