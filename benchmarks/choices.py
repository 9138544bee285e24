"""The measurements behind the choices in docs/measured.md: `python -m benchmarks.choices [--rounds 20]`.

Variants run interleaved in one process; the table gives medians of times, and medians of the ratios to the
first variant taken round by round, with their quartiles.
"""

import argparse
import platform
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import jax

from benchmarks import race
from benchmarks.markdown import sizes, table, used
from lstmjax import LSTMOptions, lstm
from lstmjax._src import chunking
from lstmjax._src.lstm.options import ACTIVATIONS

SHAPES = [
    (32, 50, 64, 128),
    (64, 100, 256, 256),
    (16, 200, 512, 512),
    (128, 28, 28, 128),
    (1, 500, 64, 128),
    (1, 336, 256, 256),
    (32, 336, 64, 64),
    (32, 336, 128, 128),
]


def main() -> None:
    parser = argparse.ArgumentParser(description="The measurements behind the choices in docs/measured.md.")
    parser.add_argument(
        "--rounds", type=race.count, default=20, help="timed rounds over all variants of a row, at least 2"
    )
    rounds = parser.parse_args().rounds
    print(f"jax {jax.__version__}, {jax.default_backend()}, {platform.processor() or platform.machine()}")
    for title, variants in (
        ("x W_x by a product ahead of some steps; forward", products_ahead()),
        (
            "gradients of weights by a product behind some steps; value and gradients of params and xs",
            products_behind(),
        ),
        ("activations of the gates; forward", activations()),
        ("derivatives of its own against the scan's; value and gradients of params and xs", backward_passes()),
        ("batch axes against jax.vmap; value and gradients of params and xs", batchings()),
    ):
        timings = {sizes(shape): measure(variants, shape, rounds) for shape in SHAPES}
        rows = ([case, *cells(found)] for case, found in timings.items())
        print(f"\n{title}\n", *table(["B, T, inputs, units", *variants], rows), sep="\n")
        print("", *used(each for found in timings.values() for each in found.values()), sep="\n", flush=True)


def measure(variants: dict[str, Callable], shape: tuple[int, int, int, int], rounds: int) -> dict[str, dict[str, Any]]:
    batch, steps, inputs, units = shape
    params = lstm.init(jax.random.key(0), inputs, units)
    xs = jax.random.normal(jax.random.key(1), (batch, steps, inputs))
    calls = {}
    for name, variant in variants.items():
        jax.clear_caches()  # two variants may differ in what they put behind the same jitted function
        calls[name] = partial(awaited, jax.jit(variant).lower(params, xs).compile(), params, xs)
    return race.here(calls, sizes(shape), rounds)


def awaited(program: Callable, *arguments: Any) -> None:
    jax.block_until_ready(program(*arguments))


def cells(found: dict[str, dict[str, Any]]) -> list[str]:
    first, *others = (cell["seconds"] for cell in found.values())
    return [race.seconds(statistics.median(first)), *(race.beside(taken, first) for taken in others)]


def products_ahead() -> dict[str, Callable]:
    return {
        "as chosen": lstm.apply,
        "of each step": partial(patched, chunking, "input_chunk", lambda *_: 1),
        "of all steps": partial(patched, chunking, "input_chunk", lambda *_: None),
    }


def products_behind() -> dict[str, Callable]:
    return {
        "as chosen": value_and_grad(lstm.apply),
        "of all steps": value_and_grad(partial(patched, chunking, "grad_chunk", lambda *_: None)),
    }


def activations() -> dict[str, Callable]:
    def apart(params, xs):
        with mock.patch.dict(ACTIVATIONS, another_sigmoid=jax.nn.sigmoid):
            return lstm.apply(params, xs, options=LSTMOptions(recurrent_activation="another_sigmoid"))

    return {"one sigmoid": lstm.apply, "three sigmoids and a tanh": apart}


def patched(module: Any, name: str, function: Callable, params: Any, xs: Any) -> Any:
    with mock.patch.object(module, name, function):
        return lstm.apply(params, xs)


def backward_passes() -> dict[str, Callable]:
    return {name: value_and_grad(partial(lstm.apply, implementation=name)) for name in ("scan", "fused")}


def batchings() -> dict[str, Callable]:
    def mapped(params, xs, implementation):
        return jax.vmap(partial(lstm.apply, params, implementation=implementation))(xs)

    return {
        "fused, batch axes": value_and_grad(partial(lstm.apply, implementation="fused")),
        "fused, vmap": value_and_grad(partial(mapped, implementation="fused")),
        "scan, vmap": value_and_grad(partial(mapped, implementation="scan")),
    }


def value_and_grad(apply: Callable) -> Callable:
    return jax.value_and_grad(lambda params, xs: (apply(params, xs)[0] ** 2).sum(), argnums=(0, 1))


if __name__ == "__main__":
    main()
