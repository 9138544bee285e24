"""The LSTM of whatever tree this process imports; for other commits, only `lstm.init` and `lstm.apply` are used."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax

import lstmjax
from benchmarks import race
from lstmjax import lstm

CALL = "a call with lengths, outside of jit"
SECONDS = 0.05, 0.05  # of calls ahead of the clock, and of timed ones


class Server:
    """Prepares a case, and times it."""

    def __init__(self) -> None:
        self._timer: race.Timer

    def imported(self) -> str:
        return str(Path(lstmjax.__file__).resolve())

    def prepare(self, kind: str, *shape: int) -> None:
        batch, steps, inputs, units = shape
        keys = jax.random.split(jax.random.key(0), 3)
        params = lstm.init(keys[0], inputs, units)
        xs = jax.random.normal(keys[1], (batch, steps, inputs))
        dy = jax.random.normal(keys[2], (batch, steps, units))

        def forward(params, xs):
            return lstm.apply(params, xs)[0]

        def training(params, xs):
            return jax.grad(lambda params, xs: (forward(params, xs) * dy).sum(), argnums=(0, 1))(params, xs)

        if kind == CALL:
            call = partial(_with_lengths, params, xs, jax.numpy.full(batch, steps - 1))
        else:
            program = jax.jit({"forward": forward, "training": training}[kind]).lower(params, xs).compile()
            call = partial(_awaited, program, params, xs)
        call()
        self._timer = race.Timer(call, *SECONDS)

    def run(self) -> dict[str, Any]:
        return self._timer()


def _with_lengths(params: Any, xs: jax.Array, lengths: jax.Array) -> None:
    lstm.apply(params, xs, lengths=lengths)[0].block_until_ready()


def _awaited(program: Callable[..., Any], *arguments: Any) -> None:
    jax.block_until_ready(program(*arguments))


if __name__ == "__main__":
    server = Server()
    race.serve({"imported": server.imported, "prepare": server.prepare, "run": server.run})
