"""Airline: forecasts are in passengers, the test months stay unseen, the baselines are what they claim."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from experiments.data.airline import PASSENGERS
from experiments.models import Model
from experiments.tasks import airline
from experiments.tasks.airline import Options

SETTINGS = [Options(log=log, seasonal_difference=d) for log, d in itertools.product([False, True], repeat=2)]


def task(options, batch=8):
    return airline.build(options, Model(units=4), batch, jax.random.key(0))


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_a_perfect_forecast_is_inverted_to_the_true_passengers(options, monkeypatch):
    built = task(options)
    for name in ("train", "test"):
        split = built.splits[name]
        monkeypatch.setattr(airline.models, "last", lambda model, params, xs, t=split["target"]: t[:, None])
        assert built.evaluate({}, split)["rmse"] < 1e-3


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_windows_are_the_months_before(options):
    split = task(options).splits["test"]
    shown = np.log(PASSENGERS) if options.log else PASSENGERS
    first = 12 if options.seasonal_difference else 0
    if options.seasonal_difference:
        shown = np.array([shown[t] - shown[t - 12] if t >= 12 else np.nan for t in range(144)])
    mean = sum(shown[first:96]) / (96 - first)
    deviation = (sum((shown[first:96] - mean) ** 2) / (96 - first)) ** 0.5
    for row, month in enumerate(range(96, 144)):
        window = [(shown[month - back] - mean) / deviation for back in range(12, 0, -1)]
        np.testing.assert_allclose(split["window"][row, :, 0], window, rtol=2e-5, atol=2e-5)
        assert split["passengers"][row] == PASSENGERS[month]
    assert len(split["target"]) == 48


@pytest.mark.parametrize("look_back", [2, 12])
@pytest.mark.parametrize("options", [*SETTINGS, Options(validation=24)], ids=str)
def test_nothing_of_later_months_reaches_training(options, look_back, monkeypatch):
    options = dataclasses.replace(options, look_back=look_back)
    before = task(options)
    fit = 96 - options.validation
    changed = PASSENGERS.copy()
    changed[fit:] *= 7
    monkeypatch.setattr(airline, "PASSENGERS", changed)
    after = task(options)
    for name, column in before.splits["train"].items():
        np.testing.assert_array_equal(column, after.splits["train"][name])
    np.testing.assert_array_equal(before.splits["test"]["passengers"] * 7, after.splits["test"]["passengers"])


def test_validation_months_are_the_last_of_the_training_part():
    splits = task(Options(validation=24)).splits
    np.testing.assert_array_equal(splits["validation"]["passengers"], PASSENGERS[72:96])
    np.testing.assert_array_equal(splits["train"]["passengers"], PASSENGERS[24:72])


def test_baselines_recomputed_month_by_month():
    y, log = PASSENGERS, np.log(PASSENGERS)
    normal, right = np.zeros((14, 14)), np.zeros(14)
    for t in range(13, 96):
        row = np.array([1.0, *(log[t - k] for k in range(1, 14))])
        normal += np.outer(row, row)
        right += row * log[t]
    weights = np.linalg.solve(normal, right)
    forecasts = {
        "persistence": lambda t: y[t - 1],
        "seasonal naive": lambda t: y[t - 12],
        "AR(13) on the log": lambda t: np.exp(weights[0] + sum(weights[k] * log[t - k] for k in range(1, 14))),
    }
    computed = task(Options()).baselines()
    assert list(computed) == list(forecasts)
    for name, forecast in forecasts.items():
        errors = np.array([forecast(t) - y[t] for t in range(96, 144)])
        assert float(computed[name]["rmse"]) == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-5)
        assert float(computed[name]["mae"]) == pytest.approx(np.mean(abs(errors)), rel=1e-5)


def test_baselines_are_the_known_figures():
    computed = {name: float(figures["rmse"]) for name, figures in task(Options()).baselines().items()}
    assert computed["seasonal naive"] == pytest.approx(41.9, abs=0.05)
    assert computed["AR(13) on the log"] == pytest.approx(14.0, abs=0.05)
    # Over all 48 months; the tutorials' windows leave out the first and the last of them, which gives 48.7.
    assert computed["persistence"] == pytest.approx(48.0, abs=0.05)
    months = np.arange(97, 143)
    rmse = np.sqrt(np.mean((PASSENGERS[months] - PASSENGERS[months - 1]) ** 2))
    assert rmse == pytest.approx(48.7, abs=0.05)


def test_too_few_months_are_refused():
    with pytest.raises(ValueError, match=r"12 months are left .* fewer than train\.batch = 16"):
        task(Options(look_back=60, validation=12), batch=16)
