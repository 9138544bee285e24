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
from unittest import mock

import jax
import jax.numpy as jnp

from lstmjax import lstm

SHAPES = [(32, 50, 64, 128), (64, 100, 256, 256), (16, 200, 512, 512), (128, 28, 28, 128), (1, 500, 64, 128)]


def main() -> None:
    parser = argparse.ArgumentParser(description="The measurements behind the choices in docs/design.md.")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds over all variants of a row")
    rounds = parser.parse_args().rounds
    print(f"jax {jax.__version__}, {jax.default_backend()}, {platform.processor() or platform.machine()}")
    for title, variants in (
        ("x W_x + b inside each step, ahead of the loop, in blocks of steps; a plain loop, forward", projections()),
        ("the same in the fused path; value and gradients of params and xs", fused_projections()),
        ("derivatives of its own against the scan's; value and gradients of params and xs", backward_passes()),
        ("weight gradients behind a barrier and folded; value and gradients of params and xs", weight_gradients()),
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


def projections() -> dict[str, Callable]:
    def cell(params, state, projected):
        h, c = state
        i, f, g, o = jnp.split(projected + h @ params.w_h, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    def zeros(params, xs):
        return jnp.zeros((xs.shape[1], params.units)), jnp.zeros((xs.shape[1], params.units))

    def blocked(size, params, xs):
        def block(state, xs):
            return jax.lax.scan(partial(cell, params), state, xs @ params.w_x + params.bias)

        xs = jnp.moveaxis(xs, 1, 0)
        state = zeros(params, xs)
        count = xs.shape[0] // size
        whole, rest = xs[: count * size], xs[count * size :]
        state, ys = jax.lax.scan(block, state, whole.reshape(count, size, *xs.shape[1:]))
        _, last = block(state, rest)
        return jnp.moveaxis(jnp.concatenate([ys.reshape(count * size, *ys.shape[2:]), last]), 0, 1)

    def ahead(params, xs):
        return blocked(xs.shape[1], params, xs)

    def inside(params, xs):
        xs = jnp.moveaxis(xs, 1, 0)
        state = zeros(params, xs)
        _, ys = jax.lax.scan(lambda state, x: cell(params, state, x @ params.w_x + params.bias), state, xs)
        return jnp.moveaxis(ys, 0, 1)

    return {"inside": inside, "ahead": ahead, "blocks of 8": partial(blocked, 8), "blocks of 25": partial(blocked, 25)}


def fused_projections() -> dict[str, Callable]:
    def on(branch, params, xs):
        with mock.patch.object(jax.lax, "platform_dependent", lambda *arrays, **branches: branches[branch](*arrays)):
            return lstm.apply(params, xs, implementation="fused")

    return {"inside": value_and_grad(partial(on, "cpu")), "ahead": value_and_grad(partial(on, "default"))}


def weight_gradients() -> dict[str, Callable]:
    def folded(params, xs):
        with mock.patch.object(jax.lax, "optimization_barrier", lambda weights: weights):
            return lstm.apply(params, xs, implementation="fused")

    return {"barrier": value_and_grad(partial(lstm.apply, implementation="fused")), "folded": value_and_grad(folded)}


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
