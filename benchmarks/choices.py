"""The measurements behind the choices in docs/design.md: `python -m benchmarks.choices [--rounds 20]`.

Variants run interleaved in one process; the table gives medians of times, and medians of the ratios to the
first variant taken round by round, with their quartiles.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import jax

from benchmarks import race
from lstmjax import LSTMOptions, blocks, lstm
from lstmjax.options import ACTIVATIONS

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
    parser = argparse.ArgumentParser(description="The measurements behind the choices in docs/design.md.")
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
        print(f"\n{title}\n\n| B, T, inputs, units | " + " | ".join(variants) + " |")
        print("| --- |" + " --- |" * len(variants))
        for shape in SHAPES:
            print(
                f"| {', '.join(map(str, shape))} | " + " | ".join(measure(variants, shape, rounds)) + " |", flush=True
            )


def measure(variants: dict[str, Callable], shape: tuple[int, int, int, int], rounds: int) -> list[str]:
    batch, steps, inputs, units = shape
    params = lstm.init(jax.random.key(0), inputs, units)
    xs = jax.random.normal(jax.random.key(1), (batch, steps, inputs))
    compiled = []
    for variant in variants.values():
        jax.clear_caches()  # two variants may differ in what they put behind the same jitted function
        compiled.append(jax.jit(variant).lower(params, xs).compile())
    times = [[] for _ in compiled]
    for _ in range(rounds + 1):
        for call, taken in zip(compiled, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call(params, xs))
            taken.append(time.perf_counter() - start)
    times = [taken[1:] for taken in times]
    cells = [f"{1e3 * statistics.median(times[0]):.1f} ms"]
    for taken in times[1:]:
        low, middle, high = statistics.quantiles((a / b for a, b in zip(taken, times[0], strict=True)), n=4)
        cells.append(f"{1e3 * statistics.median(taken):.1f} ms, x {middle:.2f} ({low:.2f} to {high:.2f})")
    return cells


def products_ahead() -> dict[str, Callable]:
    return {
        "as chosen": lstm.apply,
        "of each step": partial(patched, blocks, "ahead", lambda *_: 1),
        "of all steps": partial(patched, blocks, "ahead", lambda *_: None),
    }


def products_behind() -> dict[str, Callable]:
    return {
        "as chosen": value_and_grad(lstm.apply),
        "of all steps": value_and_grad(partial(patched, blocks, "behind", lambda *_: None)),
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
