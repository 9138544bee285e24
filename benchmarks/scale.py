"""Exchanges, computation and memory over many devices, by a formula and as compiled for TPUs.

With `swda`, the training step of a config instead, on a slice of 4 x 4 chips.

`pip install -e '.[aot,experiments]'` brings the compiler, which needs no TPU.
"""

import argparse
import dataclasses
import itertools
import json
import math
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import compiled
from lstmjax import LSTMOptions, lstm, sharding

EXCHANGES = "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"
SLICES = {8: "v5e:2x4", 16: "v5e:4x4", 64: "v5e:8x8", 256: "v5e:16x16"}
LAYOUTS = (16, 1, 16), (4, 4, 4)  # of data, of units, and sequences in a batch, on 16 devices
MEMORY = 16 * 2**30  # bytes of a v5e
OPERATIONS = 4 * 2 * 128 * 128  # of a v5e in a cycle: four units of 128 * 128 multiplications and additions
ROWS, TIME, UNITS = 32, 512, 2048  # sequences for each part of the batch, their steps, and units and inputs


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost on one device; all but `memory` for one step of the LSTM, forward and backward.

    Args:
        cycles: of products, at the peak of the matrix units; as compiled, the estimates by which products are tiled.
        exchanged: bytes of h that a step gathers, and of its gradient that a step scatters.
        memory: bytes of params, their gradients, and what is kept between the two loops and used behind them.
    """

    cycles: float
    exchanged: tuple[int, int]
    memory: int


def model(data: int, parts: int, rows: int = ROWS, time: int = TIME, units: int = UNITS) -> Cost:
    """The cost as a formula, for bfloat16: `data * rows` sequences, units divided over `parts` devices.

    The products of a step are 8 * rows * units * (units + units) / parts operations forward, and twice that against
    time; h and its gradient are rows * units numbers. There are params and gradients, each in rows and in columns; x
    and h, whole; and for the units of a device z and its gradient, c, h and its gradients.
    """
    del data  # each part of the batch costs the same, whatever their number
    products = 8 * rows * units * 2 * units / parts
    own = units // parts
    weights = 4 * 2 * units * 4 * own * 2
    steps = time * rows * (2 * 2 * units + own * (2 * 4 * 4 + 4 + 2 + 2 + 4))
    return Cost(
        3 * products / OPERATIONS, (2 * rows * units, 2 * rows * units) if parts > 1 else (0, 0), weights + steps
    )


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.scale", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["lstm", "swda"], default="lstm")
    given = parser.parse_args()
    if given.what == "swda":
        return swda()
    print(
        f"jax {jax.__version__}, v5e, bfloat16, {ROWS} sequences a part of the batch, {TIME} steps, {UNITS} units and "
        "inputs; of one device: model, compiled\n"
    )
    heads = "data x model", "cycles a step", "bytes a step: h, its gradient", "MiB", "exchanges a step", "all others"
    print("| devices | " + " | ".join(heads) + " |\n|" + " --- |" * 7)
    for devices, parts in itertools.product((8, 64, 256), (1, 4, 8)):
        data = devices // parts
        made, said = model(data, parts), compile_lstm(devices, data, parts)
        each = "; ".join(", ".join(f"{n:g} {kind}" for kind, n in loop.items()) for loop in said["loops"]) or "none"
        cells = [
            f"{data} x {parts}",
            f"{made.cycles:.0f}, {said['cycles']:.0f}",
            f"{', '.join(map(str, made.exchanged))}; {', '.join(map(str, said['exchanged']))}",
            f"{made.memory / 2**20:.0f}, {said['memory'] / 2**20:.0f}",
            each,
            ", ".join(f"{n} {kind}" for kind, n in said["outside"].items()),
        ]
        print(f"| {devices} | " + " | ".join(cells) + " |", flush=True)


def swda() -> None:
    """Print what the training step of configs/swda.toml takes, data and units divided over 16 chips."""
    print(f"jax {jax.__version__}, configs/swda.toml on v5e 4x4; GiB of each of 16 devices, which has 16\n")
    print("| data x model, sequences | params and data | temporary | exchanges in loops |\n| --- | --- | --- | --- |")
    for data, parts, batch in LAYOUTS:
        said = compile_swda(data, parts, batch)
        loops = "; ".join(", ".join(f"{n} {kind}" for kind, n in loop.items()) for loop in said["loops"]) or "none"
        sizes = f"{said['arguments'] / 2**30:.2f} | {said['temporary'] / 2**30:.2f}"
        print(f"| {data} x {parts}, {batch} | {sizes} | {loops} |", flush=True)


def compile_lstm(devices: int, data: int, parts: int, time: int = TIME) -> dict[str, Any]:
    """Compile a value and its gradient, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        said = compiled._apart("lstm_", [devices, data, parts, time, folder], module="scale")
        program = compiled._of_tpu(Path(folder), time)
        loops, outside = collectives((Path(folder) / "program.hlo").read_text())
    steps = [loop.steps for loop in program.loops]
    each = [{kind: n / size for kind, n in loop.items()} for loop, size in zip(loops, steps, strict=False)]
    return json.loads(said.splitlines()[-1]) | {
        "cycles": program.cycles(whole=True),
        "loops": each,
        "outside": outside,
    }


def compile_swda(data: int, parts: int, batch: int) -> dict[str, Any]:
    """Compile the training step of the config, in a process of its own."""
    return json.loads(compiled._apart("swda_", [data, parts, batch], module="scale").splitlines()[-1])


def lstm_(devices: int, data: int, parts: int, time: int, folder: str) -> None:
    """Compile in this process, leave the program in a folder, and print its sizes."""
    mesh = _mesh(devices, data, parts)
    params = _placed(jax.eval_shape(lambda: lstm.init(jax.random.key(0), UNITS, UNITS, dtype=jnp.bfloat16)), mesh)
    place = NamedSharding(mesh, P("data"))
    xs = jax.ShapeDtypeStruct((data * ROWS, time, UNITS), jnp.bfloat16, sharding=place)

    def loss(params, xs):
        ys, _ = lstm.apply(params, xs, options=LSTMOptions(units_axis="model"))
        return jnp.mean(jnp.square(ys.astype(jnp.float32)))

    lie = NamedSharding(mesh, P()), jax.tree.map(lambda leaf: leaf.sharding, params)
    with jax.set_mesh(mesh):
        made = jax.jit(jax.value_and_grad(loss), out_shardings=lie).lower(params, xs).compile()
    text = made.as_text() or ""
    (Path(folder) / "program.hlo").write_text(text)
    sizes: Any = made.memory_analysis()
    memory = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    print(json.dumps({"memory": memory, "exchanged": exchanged(text, parts)}))


def swda_(data: int, parts: int, batch: int) -> None:
    """Compile the training step of the config in this process, and print its sizes."""
    from experiments import config, mesh, train
    from experiments.tasks import swda

    asked = ["--mesh.data", data, "--mesh.model", parts, "--train.batch", batch]
    read = config.load(compiled.ROOT / "configs/swda.toml", [str(word) for word in asked])
    task = swda.build(read.data, read.model, read.train.batch, jax.random.key(0))
    over = _mesh(16, data, parts)
    state = jax.eval_shape(lambda: train.make_state(task, read.train))
    lie = mesh.of_state(over, state)
    state = jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), state, lie)
    examples = jax.tree.map(lambda leaf: mesh.lying(over, leaf), task.splits["train"])
    with jax.set_mesh(over):
        made = train.chunk(task, read.train, lie, over).lower(state, examples).compile()
    sizes: Any = made.memory_analysis()
    loops, _ = collectives(made.as_text() or "")
    print(
        json.dumps(
            {
                "arguments": sizes.argument_size_in_bytes,
                "temporary": sizes.temp_size_in_bytes,
                "loops": loops,
            }
        )
    )


def collectives(text: str) -> tuple[list[Counter], Counter]:
    """Count the exchanges of a compiled program.

    A TPU's compiler may spread an exchange that stands outside of a loop over the loop's iterations; its pieces are of
    one chain, and are no exchange of a step.

    Args:
        text: the program, as `jax.stages.Compiled.as_text` gives it.

    Returns:
        By kind, those of one iteration of each loop that has any, in the order in which the loops stand; all others.
    """
    named = re.findall(r"^(ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", text, flags=re.MULTILINE | re.DOTALL)
    computations = {name: re.sub(r"[^\n]*chain_id=[^\n]*", "", body) for _, name, body in named}
    (entry,) = (name for is_entry, name, _ in named if is_entry)
    loops = dict.fromkeys(re.findall(r"body=%?([\w.\-]+)", text))

    def within(name: str) -> Counter:
        """Costs of a computation and what it calls, loops left out."""
        body = computations[name]
        found = Counter(re.findall(rf" ({'|'.join(EXCHANGES)})(?:-start)?\(", body))
        called = re.findall(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", body)
        for several in re.findall(r"(?:branch_computations|called_computations)=\{(.*?)\}", body):
            called += re.findall(r"[\w.\-]+", several)
        return sum((within(other) for other in called if other in computations), found)

    return [found for name in loops if (found := within(name))], within(entry)


def exchanged(text: str, parts: int) -> tuple[int, int]:
    """Bytes of what one all-gather makes and of what one reduce-scatter takes, of those that do not reach over time."""

    def size(kind):
        shapes = re.findall(rf"= bf16\[(\d+),(\d+)\]\S* {kind}\(", text)
        return max((2 * math.prod(map(int, shape)) for shape in shapes if int(shape[0]) == ROWS), default=0)

    return size("all-gather"), parts * size("reduce-scatter")


def _mesh(devices: int, data: int, parts: int) -> jax.sharding.Mesh:
    found = topologies.get_topology_desc(platform="tpu", topology_name=SLICES[devices]).devices
    return jax.make_mesh((data, parts), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=found)


def _placed(params: Any, mesh: jax.sharding.Mesh) -> Any:
    lie = sharding.shardings(params, mesh)
    return jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), params, lie)


if __name__ == "__main__":
    main()
