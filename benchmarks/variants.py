"""What each part of a cell costs, and what checkpoints save: `python -m benchmarks.variants [--rounds 20]`.

Value and gradients of params and xs. Variants run interleaved in one process; ratios to the plain cell are medians of
ratios taken round by round, with their quartiles. Beside each stands the ratio of the matrix products' arithmetic.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import race
from lstmjax import Dropout, LSTMOptions, bidirectional, lstm

SHAPES = [(32, 50, 64, 128), (64, 100, 256, 256), (16, 200, 512, 512)]
LONG = (32, 2048, 256, 256)
KEY = jax.random.key(0)


def products(inputs: int, units: int, *, gates: int = 4, projection: int | None = None) -> int:
    """Multiplications of one step of one sequence."""
    outputs = projection or units
    return gates * units * (inputs + outputs) + (units * projection if projection else 0)


def variants(inputs: int, units: int) -> dict[str, tuple[Callable, Any, float]]:
    """Loss, its parameters, and arithmetic over that of the plain cell."""
    plain, half = products(inputs, units), units // 2

    def one(arithmetic=plain, *, init=None, **arguments):
        params = lstm.init(KEY, inputs, units, **(init or {}))
        return partial(loss, partial(lstm.apply, **arguments)), params, arithmetic / plain

    def dropped(**rates):
        return one(dropout=Dropout(**rates), key=KEY)

    both = partial(loss, bidirectional.apply), bidirectional.init(KEY, inputs, units), 2.0
    return {
        "plain": one(),
        "plain, by scan": one(implementation="scan"),
        "peepholes": one(init={"peepholes": True}),
        "coupled": one(products(inputs, units, gates=3), init={"coupled": True}),
        "clips": one(options=LSTMOptions(cell_clip=3.0, preactivation_clip=10.0)),
        f"projection to {half}": one(products(inputs, units, projection=half), init={"projection": half}),
        "layer norm": one(init={"layer_norm": True}),
        "dropout of inputs": dropped(inputs=0.2),
        "dropout of h": dropped(recurrent=0.2),
        "dropout of h per gate": dropped(recurrent=0.2, recurrent_kind="per_gate"),
        "dropout of the candidate": dropped(recurrent=0.2, recurrent_kind="candidate"),
        "dropout of outputs": dropped(outputs=0.2),
        "DropConnect": dropped(recurrent_weights=0.2),
        "zoneout of h and c": dropped(zoneout_h=0.1, zoneout_c=0.1),
        "bidirectional": both,
    }


def loss(apply: Callable, params: Any, xs: jax.Array) -> jax.Array:
    return (apply(params, xs)[0] ** 2).sum()


def compiled(function: Callable, params: Any, xs: Any) -> Any:
    return jax.jit(jax.value_and_grad(function, argnums=(0, 1))).lower(params, xs).compile()


def main() -> None:
    parser = argparse.ArgumentParser(description="What each part of a cell costs, and what checkpoints save.")
    parser.add_argument(
        "--rounds", type=race.count, default=20, help="timed rounds over all variants of a shape, at least 2"
    )
    rounds = parser.parse_args().rounds
    print(f"jax {jax.__version__}, {jax.default_backend()}, {platform.processor() or platform.machine()}")
    costs(rounds)
    memory()


def costs(rounds: int) -> None:
    columns = {shape: cost(shape, rounds) for shape in SHAPES}
    print("\n| B, T, inputs, units | " + " | ".join(", ".join(map(str, shape)) for shape in SHAPES) + " |")
    print("| --- |" + " --- |" * len(SHAPES))
    for rows in zip(*columns.values(), strict=True):
        name = rows[0][0].replace(f" to {SHAPES[0][3] // 2}", " to half of units")
        print(f"| {name} | " + " | ".join(text for _, text in rows) + " |")


def cost(shape: tuple[int, int, int, int], rounds: int) -> list[tuple[str, str]]:
    batch, steps, inputs, units = shape
    xs = jax.random.normal(KEY, (batch, steps, inputs))
    table = variants(inputs, units)
    calls = [partial(compiled(function, params, xs), params, xs) for function, params, _ in table.values()]
    times = [[] for _ in calls]
    for _ in range(rounds + 1):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call())
            taken.append(time.perf_counter() - start)
    plain = times[0][1:]
    rows = [("plain", f"{1e3 * statistics.median(plain):.1f} ms")]
    for (name, (_, _, arithmetic)), taken in list(zip(table.items(), times, strict=True))[1:]:
        low, middle, high = statistics.quantiles((a / b for a, b in zip(taken[1:], plain, strict=True)), n=4)
        rows.append((name, f"x {middle:.2f} ({low:.2f} to {high:.2f}); products x {arithmetic:.2f}"))
    return rows


def memory() -> None:
    batch, steps, inputs, units = LONG
    params = jax.eval_shape(lambda: lstm.init(KEY, inputs, units))
    xs = jax.ShapeDtypeStruct((batch, steps, inputs), jnp.float32)
    print(f"\nTemporary memory at B, T, inputs, units = {', '.join(map(str, LONG))}, as the compiler reports it\n")
    print("| | without checkpoint | checkpoint=True |\n| --- | --- | --- |")
    for implementation in ("fused", "scan"):
        sizes = []
        for checkpoint in (False, True):
            apply = partial(lstm.apply, implementation=implementation, checkpoint=checkpoint)
            sizes.append(compiled(partial(loss, apply), params, xs).memory_analysis().temp_size_in_bytes)
        cells = [f"{size / 2**20:.0f} MiB" for size in sizes]
        print(f"| {implementation} | {cells[0]} | {cells[1]}, x {sizes[1] / sizes[0]:.2f} |")


if __name__ == "__main__":
    main()
