"""Costs of each part of a cell, and savings by checkpoints: `python -m benchmarks.variants [--rounds 20]`.

Value and gradients of params and xs. Variants run interleaved in one process; ratios to the plain cell are medians of
ratios taken round by round, with their quartiles. Beside each stands the ratio of the matrix products' arithmetic.
"""

import argparse
import platform
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import race
from benchmarks.choices import awaited
from benchmarks.markdown import sizes, table, used
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
        "projection to half of units": one(products(inputs, units, projection=half), init={"projection": half}),
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
    names = columns[SHAPES[0]]
    rows = [[name, *(_text(found[name], found["plain"]) for found in columns.values())] for name in names]
    print("", *table(["B, T, inputs, units", *map(sizes, SHAPES)], rows), sep="\n")
    print("", *used(each for found in columns.values() for each in found.values()), sep="\n")


def cost(shape: tuple[int, int, int, int], rounds: int) -> dict[str, dict[str, Any]]:
    batch, steps, inputs, units = shape
    xs = jax.random.normal(KEY, (batch, steps, inputs))
    made = variants(inputs, units)
    calls = {name: partial(awaited, compiled(run, params, xs), params, xs) for name, (run, params, _) in made.items()}
    found = race.here(calls, sizes(shape), rounds)
    return {name: cell | {"products": made[name][2]} for name, cell in found.items()}


def _text(cell: dict[str, Any], plain: dict[str, Any]) -> str:
    if cell is plain:
        return race.seconds(statistics.median(plain["seconds"]))
    return f"{race.beside(cell['seconds'], plain['seconds'])}; products x {cell['products']:.2f}"


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
