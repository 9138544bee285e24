"""Forecast next month's airline passengers from the months before.

The first 96 of 144 months are for training, as in the tutorials on this series; the last 48 are forecast one month
ahead, each from the true counts before it. Errors are in thousands of passengers, whatever the model was shown.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments import models
from experiments.data import files
from experiments.data.airline import NAME, PASSENGERS, SHA256
from experiments.data.order import shuffled
from experiments.task import Carried, Published, Task, each
from lstmjax import windows

TRAIN = 96
SEASON = 12
CITED = (
    "Brownlee, Time Series Prediction with LSTM Recurrent Neural Networks in Python with Keras, "
    "machinelearningmastery.com, 2016.",
)

PUBLISHED = (Published("the best LSTM of the tutorials", {"rmse": 47.5}),)


@dataclasses.dataclass(frozen=True)
class Options:
    look_back: int = 12
    """Months the model sees before the one it forecasts."""
    log: bool = True
    """Show the model logarithms."""
    seasonal_difference: bool = True
    """Show the model the change since the same month last year."""
    validation: int = 0
    """Months at the end of the training part kept aside, to choose settings by."""

    def __post_init__(self):
        if self.look_back < 1:
            raise ValueError(f"data.look_back is {self.look_back}; it must be at least 1")
        if self.validation < 0:
            raise ValueError(f"data.validation is {self.validation}; it must be at least 0")


def sources(options: Options) -> Iterator[tuple[str, bytes]]:
    del options
    yield NAME, PASSENGERS.tobytes()


def build(
    options: Options, model: models.Model, batch: int, key: Array, kept: Mapping[str, float] | None = None
) -> Task:
    models.check_whole(model)
    del key  # nothing is drawn
    files.note({name: files.described(name, content) for name, content in sources(options)})
    fit = TRAIN - options.validation
    first = options.look_back + (SEASON if options.seasonal_difference else 0)
    if fit - first < batch:
        raise ValueError(
            f"{max(fit - first, 0)} months are left to train on after data.look_back and data.validation, fewer "
            f"than train.batch = {batch}"
        )
    shown = transform(files.finite(PASSENGERS, f"PASSENGERS in {NAME}"), options)
    if kept is None:
        kept = {"center": float(np.nanmean(shown[:fit])), "scale": float(np.nanstd(shown[:fit]))}
    shown = (shown - kept["center"]) / kept["scale"]
    months = {"train": (first, fit), "validation": (fit, TRAIN), "test": (TRAIN, len(PASSENGERS))}
    if not options.validation:
        del months["validation"]
    splits = {name: _windows(shown, options, *span) for name, span in months.items()}
    to_passengers = functools.partial(invert, options=options, **kept)
    return Task(
        init=functools.partial(models.init, inputs=1, outputs=1, model=model),
        batches=functools.partial(_batches, batch=batch),
        loss=functools.partial(_loss, model, to_passengers=to_passengers),
        evaluate=functools.partial(_evaluate, model, to_passengers=to_passengers),
        splits=splits,
        metric="rmse",
        unit="thousands of passengers",
        measure="mae",
        baselines=functools.partial(baselines, PASSENGERS, TRAIN),
        kept=kept,
        watch=tuple(name for name in months if name != "test"),
        published=PUBLISHED if files.digest(PASSENGERS.tolist()) == SHA256 else (),
        epoch=len(splits["train"]["target"]) // batch,
    )


def transform(series: np.ndarray, options: Options) -> np.ndarray:
    """Inputs of the model for each month; NaN where there is no month a year before."""
    shown = np.log(series) if options.log else series
    if options.seasonal_difference:
        shown = np.concatenate([np.full(SEASON, np.nan), shown[SEASON:] - shown[:-SEASON]])
    return shown


def invert(shown, year_before, options: Options, center: float, scale: float):
    """Passengers from the scaled value the model deals in and the passengers of the same month a year before."""
    shown = shown * scale + center
    if options.seasonal_difference:
        shown = shown + (jnp.log(year_before) if options.log else year_before)
    return jnp.exp(shown) if options.log else shown


def baselines(series: np.ndarray, train: int) -> Mapping[str, Mapping[str, Any]]:
    """One-month-ahead errors over the months from `train` on, fitted on those before."""
    months = np.arange(train, len(series))
    forecasts = {
        "persistence": lambda: series[months - 1],
        "seasonal naive": lambda: series[months - SEASON],
        "AR(13) on the log": lambda: np.exp(_autoregression(np.log(series), train, order=13)),
    }

    def errors(forecast):
        return {key: float(value) for key, value in _errors(forecast() - series[months]).items()}

    return each({name: functools.partial(errors, forecast) for name, forecast in forecasts.items()})


def _autoregression(series: np.ndarray, train: int, order: int) -> np.ndarray:
    """Least squares on a constant and the `order` values before, one step ahead."""
    lags = np.stack([series[order - k : len(series) - k] for k in range(1, order + 1)], axis=1)
    design = np.concatenate([np.ones((len(lags), 1)), lags], axis=1)
    fit = train - order
    weights, *_ = np.linalg.lstsq(design[:fit], series[order:train], rcond=None)
    return design[fit:] @ weights


def _errors(error) -> dict:
    return {"rmse": jnp.sqrt(jnp.mean(error**2)), "mae": jnp.mean(jnp.abs(error))}


def _windows(shown: np.ndarray, options: Options, start: int, end: int) -> dict[str, Array]:
    """For each month from `start` to `end`: the months before it, itself, and what inverting it needs."""
    months = np.arange(start, end)
    window, target = windows.look_back(shown[start - options.look_back : end, None], options.look_back)
    columns = {
        "window": window,
        "target": target[:, 0],
        "passengers": PASSENGERS[months],
    }
    if options.seasonal_difference:
        columns["year_before"] = PASSENGERS[months - SEASON]
    return {name: jnp.asarray(column, jnp.float32) for name, column in columns.items()}


def _batches(train: dict[str, Array], key: Array, steps: Array, batch: int) -> dict[str, Array]:
    rows = shuffled(key, steps, examples=len(train["target"]), batch=batch)
    return {name: column[rows] for name, column in train.items()}


def _loss(model: models.Model, params: models.Params, months: dict[str, Array], carried: Carried, to_passengers):
    forecast = models.last(model, params, months["window"])[:, 0]
    error = to_passengers(forecast, months.get("year_before")) - months["passengers"]
    return jnp.mean((forecast - months["target"]) ** 2), (jnp.abs(error), carried)


def _evaluate(model: models.Model, params: models.Params, months: dict[str, Array], to_passengers):
    forecast = models.last(model, params, months["window"])[:, 0]
    return _errors(to_passengers(forecast, months.get("year_before")) - months["passengers"])
