"""The measurements behind `crf` in docs/measured.md: `python -m benchmarks.crf [--rounds 20]`.

The log-likelihood and its gradients in the emissions and the parameters, in one process and interleaved; the table
gives medians of times, and medians of the ratios to the first variant taken round by round, with their quartiles.
"""

import argparse
import platform
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks import race
from benchmarks.choices import awaited, cells
from benchmarks.markdown import sizes, table, used
from lstmjax import crf
from lstmjax._src.crf import linear_chain

SHAPES = [(16, 170, 41), (32, 64, 23), (64, 30, 9), (1, 5000, 10)]


def main() -> None:
    parser = argparse.ArgumentParser(description="The measurements behind `crf` in docs/measured.md.")
    parser.add_argument(
        "--rounds", type=race.count, default=20, help="timed rounds over all variants of a row, at least 2"
    )
    rounds = parser.parse_args().rounds
    print(f"jax {jax.__version__}, {jax.default_backend()}, {platform.processor() or platform.machine()}\n")
    timings = {sizes(shape): measure(shape, rounds) for shape in SHAPES}
    print(*table(["B, T, tags", *VARIANTS], ([case, *cells(found)] for case, found in timings.items())), sep="\n")
    print("", *used(each for found in timings.values() for each in found.values()), sep="\n")


def measure(shape: tuple[int, int, int], rounds: int) -> dict[str, dict[str, Any]]:
    batch, steps, tags = shape
    keys = jax.random.split(jax.random.key(0), 3)
    params = crf.init(keys[0], tags, transitions_init=jax.nn.initializers.normal(1.0))
    emissions = jax.random.normal(keys[1], (batch, steps, tags))
    path = jax.random.randint(keys[2], (batch, steps), 0, tags)
    calls = {}
    for name, variant in VARIANTS.items():
        jax.clear_caches()  # variants may differ in what they put behind the same jitted function
        program = jax.jit(jax.value_and_grad(variant, argnums=(0, 1))).lower(params, emissions, path).compile()
        calls[name] = partial(awaited, program, params, emissions, path)
    return race.here(calls, sizes(shape), rounds)


def likelihood(params, emissions, path):
    return crf.log_likelihood(params, emissions, path).sum()


def mapped(params, emissions, path):
    return jax.vmap(partial(crf.log_likelihood, params))(emissions, path).sum()


def in_logarithms(params, emissions, path):
    def predict(transitions):
        return lambda alpha: linear_chain._log_sum(alpha[:, None] + transitions, 0)

    with mock.patch.object(linear_chain, "_product", predict), mock.patch.object(jax.lax, "cond", without_fallback):
        return likelihood(params, emissions, path)


def without_guard(params, emissions, path):
    with mock.patch.object(jax.lax, "cond", without_fallback):
        return likelihood(params, emissions, path)


def from_marginals(params, emissions, path):
    """Its own derivative: forward and backward in logarithms, then the probabilities of tags and of pairs of them."""

    def recursion(transitions, emissions):
        predict = lambda alpha: linear_chain._log_sum(alpha[:, None] + transitions, 0)  # noqa: E731
        return linear_chain._recursion(predict, emissions, len(emissions))

    @jax.custom_jvp
    def log_partition(transitions, emissions):
        alphas, norms = recursion(transitions, emissions)
        return norms.sum() + linear_chain._log_sum(alphas[-1], 0)

    @log_partition.defjvp
    def _(primals, tangents):
        transitions, emissions = primals
        (alphas, norms), (betas, _) = recursion(transitions, emissions), recursion(transitions.T, emissions[::-1])
        betas = betas[::-1]
        joint = alphas + betas - emissions
        totals = linear_chain._log_sum(joint, 1)
        later = betas[1:] - (totals + norms)[1:, None]
        pairs = jnp.exp(alphas[:-1, :, None] + transitions + later[:, None, :]).sum(axis=0)
        tangent = (jnp.exp(joint - totals[:, None]) * tangents[1]).sum() + (pairs * tangents[0]).sum()
        return norms.sum() + linear_chain._log_sum(alphas[-1], 0), tangent

    def instead(transitions, emissions, length):
        del length
        return log_partition(transitions, emissions)

    with mock.patch.object(linear_chain, "log_partition", instead):
        return likelihood(params, emissions, path)


def without_fallback(holds, fast, exact, *operands):
    del holds, exact
    return fast(*operands)


VARIANTS: dict[str, Callable] = {
    "scan": likelihood,
    "scan, vmap": mapped,
    "without its guard": without_guard,
    "in logarithms": in_logarithms,
    "in logarithms, derivative from marginals": from_marginals,
}


if __name__ == "__main__":
    main()
