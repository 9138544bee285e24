"""Cost of a call from Python at a size without computation, here and for an LSTM written by hand."""

import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import grid, race
from benchmarks.markdown import origin, table, used
from lstmjax import LSTMParams, LSTMState, lstm

INPUTS = UNITS = 8
CALLS = 300
HAND, HAND_TUPLE = "by hand", "by hand, of a tuple"
STREAM = "step, in a loop"
JITTED, DIRECT = "lstmjax, jitted by the caller", "lstmjax"


def run(budget: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Every case; `budget` are the seconds that its rounds should take."""
    start, cells = time.perf_counter(), []
    where = grid.where(jax.devices()[0].device_kind, ("jax", "lstmjax"))
    for case, variants in cases().items():
        say(case)
        race.turns(variants, 1)
        timers = {name: race.Timer(call, *race.INSIDE) for name, call in variants.items()}
        rounds = int(np.clip(budget / (len(timers) * sum(race.INSIDE)), *grid.ROUNDS))
        for name, times in race.turns(timers, rounds).items():
            found = race.summary(times)
            seconds = [taken / CALLS if case == STREAM else taken for taken in found["seconds"]]
            cells.append({"case": case, "peer": name} | found | {"seconds": seconds})
    return {"grid": "overhead", **where, "took_seconds": time.perf_counter() - start, "cells": cells}


def cases() -> dict[str, dict[str, Callable[[], Any]]]:
    """By name, variants to be timed: one call of `apply`, or `CALLS` of `step`."""
    params = lstm.init(jax.random.key(0), INPUTS, UNITS)
    weights = params.w_x, params.w_h, params.bias
    made: dict[str, dict[str, Callable[[], Any]]] = {}
    for steps in (1, 4):
        xs = jnp.ones((1, steps, INPUTS))
        made[f"apply, T = {steps}, each call awaited"] = {
            HAND: partial(called, jax.jit(apply_params), params, xs),
            HAND_TUPLE: partial(called, jax.jit(apply), weights, xs),
            JITTED: partial(called, jax.jit(lstm.apply), params, xs),
            DIRECT: partial(called, lstm.apply, params, xs),
        }
    xs, state = [jnp.ones((1, INPUTS))] * CALLS, lstm.initial_state(params, (1,))
    made[STREAM] = {
        HAND: partial(streamed, jax.jit(step_params), params, xs, state),
        HAND_TUPLE: partial(streamed, jax.jit(step), weights, xs, (state.h, state.c)),
        JITTED: partial(streamed, jax.jit(lstm.step), params, xs, state),
        DIRECT: partial(streamed, lstm.step, params, xs, state),
    }
    return made


def called(apply: Callable, params: Any, xs: jax.Array) -> None:
    apply(params, xs)[0].block_until_ready()


def streamed(step: Callable, params: Any, xs: Iterable[jax.Array], state: Any) -> None:
    for x in xs:
        _, state = step(params, x, state)
    jax.block_until_ready(state)


def step(weights: Any, x: jax.Array, state: Any) -> Any:
    w_x, w_h, bias = weights
    h, c = state
    i, f, g, o = jnp.split(x @ w_x + h @ w_h + bias, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return h, (h, c)


def apply(weights: Any, xs: jax.Array) -> Any:
    def single(state, x):
        y, state = step(weights, x, state)
        return state, y

    zero = jnp.zeros((len(xs), UNITS))
    state, ys = jax.lax.scan(single, (zero, zero), jnp.moveaxis(xs, 1, 0))
    return jnp.moveaxis(ys, 0, 1), state


def step_params(params: LSTMParams, x: jax.Array, state: LSTMState) -> Any:
    y, (h, c) = step((params.w_x, params.w_h, params.bias), x, (state.h, state.c))
    return y, LSTMState(h, c)


def apply_params(params: LSTMParams, xs: jax.Array) -> Any:
    ys, (h, c) = apply((params.w_x, params.w_h, params.bias), xs)
    return ys, LSTMState(h, c)


def section(results: dict[str, Any]) -> str:
    """A row for each case: by hand, and how many times as long each of the others takes."""
    made: dict[str, dict[str, list[float]]] = {}
    for cell in results["cells"]:
        made.setdefault(cell["case"], {})[cell["peer"]] = cell["seconds"]
    rows = []
    for case, times in made.items():
        base = times[HAND]
        ratios = [race.ratio(times[name], base) for name in (HAND_TUPLE, JITTED, DIRECT)]
        texts = [f"{middle:.2f} ({low:.2f} to {high:.2f})" for middle, low, high in ratios]
        rows.append([case, race.seconds(statistics.median(base)), *texts])
    intro = (
        f"One sequence of {INPUTS} inputs, {UNITS} units, in one process; {HAND} is a jitted scan or step of "
        f'LSTMParams without any checks, and also of a tuple of three arrays. "{DIRECT} /" is the time of a call over '
        f"that of one {HAND}."
    )
    lines = table(["", HAND, *(f"{name} /" for name in (HAND_TUPLE, JITTED, DIRECT))], rows)
    head = f"{origin(results)}. {intro}"
    return "\n".join(["## Calls from Python", "", head, "", *lines, "", *used(results["cells"]), ""])
