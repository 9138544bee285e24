"""Programs of the loop compiled for accelerators, on a machine without one: `python -m benchmarks.compiled`.

With `kernel`, of the TPU kernel at many sizes; with `blocks`, of what it takes with other blocks than its own.

`pip install -e '.[aot]'` brings the compilers. What they say of a TPU are static estimates, never times.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lstmjax import bidirectional, lstm
from lstmjax._src.lstm.pallas_tpu import tpu

ROOT = Path(__file__).parents[1]
TARGETS = {
    "v4": {"platform": "tpu", "topology_name": "v4:2x2x1"},
    "v5e": {"platform": "tpu", "topology_name": "v5e:2x2"},
    "v5p": {"platform": "tpu", "topology_name": "v5p:2x2x1"},
    "v6e": {"platform": "tpu", "topology_name": "v6e:2x2"},
    "tpu7x": {"platform": "tpu", "topology_name": "tpu7x:2x2x1"},
    "h200": {"platform": "cuda", "topology_name": "h200", "topology": "1x1x1"},
}
WHEELS = {"tpu": "libtpu", "cuda": "jax-cuda12-plugin"}
TPUS = [name for name, described in TARGETS.items() if described["platform"] == "tpu"]
KINDS = "forward", "gradient"
KERNELS = "forward", "saving", "backward"  # for inference, for training, and against time
CASES = "bfloat16", "float32", "ragged", "resets", "bidirectional", "sharded"  # the last four in bfloat16
PLAIN = {"implementation": "scan", "unroll": 1}
KERNEL = {"implementation": "pallas_tpu"}
BATCH, TIME, INPUTS, UNITS = SHAPE = 128, 16, 512, 512


@dataclasses.dataclass(frozen=True)
class Loop:
    """One loop of a program.

    Args:
        steps: of the LSTM, in one iteration.
        body: its instructions, HLO on TPU and launches on GPU.
        cycles: of one iteration, as the TPU's compiler estimates them; None on GPU.
    """

    steps: int
    body: tuple[str, ...]
    cycles: int | None = None


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Args:
        time: steps of the LSTM.
        loops: in the order in which they stand.
        outside: estimated cycles of all else; None on GPU.
    """

    time: int
    loops: tuple[Loop, ...]
    outside: int | None = None

    def cycles(self, *, whole: bool) -> float:
        """Estimated cycles for each step of the LSTM, of all or of the loops alone."""
        loops = sum((loop.cycles or 0) / loop.steps for loop in self.loops)
        return loops + (self.outside or 0) / self.time * whole


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.compiled", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["programs", "kernel", "blocks"], default="programs")
    parser.add_argument("--dtype", default="bfloat16", help="of the kernel; float32 for what it takes then")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--time", type=int, default=TIME, help="64 takes minutes to compile for a TPU")
    parser.add_argument("--units", type=int, default=UNITS, help="of the layer, and features of its inputs")
    given = parser.parse_args()
    if given.what == "kernel":
        return kernels(given.dtype)
    if given.what == "blocks":
        return blocks()
    shape = given.batch, given.time, given.units, given.units
    print(f"jax {jax.__version__}; B, T, inputs, units = {', '.join(map(str, shape))}, bfloat16\n")
    heads = "plain scan: loops, all", "fused: loops, all", "ratio: loops, all", "kernel: all", "to plain, to fused: all"
    print("| static estimate, cycles a step | " + " | ".join(heads) + " |")
    print("| --- | --- | --- | --- | --- | --- |")
    for target in ("v5e", "v6e"):
        for kind in KINDS:
            plain, fused, kernel = (
                [made.cycles(whole=whole) for whole in (False, True)]
                for made in (program(target, kind, shape=shape, **how) for how in (PLAIN, {}, KERNEL))
            )
            ratios = [f / p for f, p in zip(fused, plain, strict=True)]
            cells = [", ".join(f"{number:.0f}" for number in numbers) for numbers in (plain, fused)]
            cells += [", ".join(f"{ratio:.2f}" for ratio in ratios), f"{kernel[1]:.0f}"]
            cells += [", ".join(f"{kernel[1] / other[1]:.2f}" for other in (plain, fused))]
            print(f"| {target}, {kind} | " + " | ".join(cells) + " |", flush=True)
    print("\n| loops on H200 | steps an iteration | graphs | launches a step | copies |")
    print("| --- | --- | --- | --- | --- |")
    for name, how in (("plain scan", PLAIN), ("fused", {})):
        for kind in KINDS:
            for number, loop in enumerate(program("h200", kind, shape=shape, **how).loops, 1):
                each = f"{graphs(loop)} | {launches(loop) / loop.steps:.2f} | {len(copies(loop))}"
                print(f"| {name}, {kind}, {number} | {loop.steps} | {each} |", flush=True)


def kernels(dtype: str) -> None:
    """Print what each kernel takes, by TPU and size."""
    print(
        f"jax {jax.__version__}; {dtype}; bundles a step: forward, saving, backward; and the most VMEM that one takes\n"
    )
    print("| B, units | " + " | ".join(TPUS) + " |\n| --- |" + " --- |" * len(TPUS))
    for batch, units in itertools.product((8, 32, 128, 256), (128, 256, 512, 1024)):
        cells = [_cell(target, (batch, 512, units, units), dtype) for target in TPUS]
        print(f"| {batch}, {units} | " + " | ".join(cells) + " |", flush=True)


def blocks() -> None:
    """Print what the constants of `kernels/tpu.py` rest on: bundles with each of them halved and doubled."""
    sizes = [(8, 128), (32, 512), (128, 512), (256, 512)]
    columns = [(target, batch, units) for target in ("v5e", "v6e", "tpu7x") for batch, units in sizes]
    print(f"jax {jax.__version__}; bfloat16; bundles a step of all rows: saving, backward\n")
    print("| of a block | " + " | ".join("{}: {}, {}".format(*column) for column in columns) + " |")
    print("| --- |" + " --- |" * len(columns))
    own = {name: getattr(tpu, name) for name in ("ROWS", "CHUNK", "UNROLLED")}
    for chosen in ({}, *({name: size * by // 2} for name, size in own.items() for by in (1, 4))):
        cells = []
        for target, batch, units in columns:
            made = [kernel(target, kind, (batch, 512, units, units), "bfloat16", **chosen) for kind in KERNELS[1:]]
            cells.append(", ".join(f"{one.bundles * one.row_blocks:.0f}" if one else "refused" for one in made))
        of = ", ".join(f"{name} {size}" for name, size in (own | chosen).items())
        print(f"| {of} | " + " | ".join(cells) + " |", flush=True)


def _cell(target, shape, dtype):
    made = [one for kind in KERNELS if (one := kernel(target, kind, shape, dtype))]
    if len(made) < len(KERNELS):
        return "refused"
    return ", ".join(f"{one.bundles:.0f}" for one in made) + f"; {max(one.vmem for one in made) / 2**20:.0f} MiB"


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel as a TPU's compiler made it.

    Args:
        bundles: instructions, each for all units at once, of one step of a block of rows.
        row_blocks: how many there are.
        spills: vectors stored of one step because registers ran out.
        vmem: bytes of the core's memory that it may take.
        limit: bytes that the core has.
    """

    bundles: float
    row_blocks: int
    spills: float
    vmem: int
    limit: int


def kernel(target: str, kind: str, shape: tuple[int, int, int, int], dtype: str, **chosen: int) -> Kernel | None:
    """Compile one kernel in a process of its own; None where it is refused.

    Args:
        target: one of TPUS.
        kind: one of KERNELS.
        shape: batch, time, inputs, units.
        dtype: of weights and xs.
        chosen: constants of `kernels/tpu.py`, where not its own.
    """
    dumps = "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final"
    with tempfile.TemporaryDirectory() as folder:
        said = _apart("compile_kernel_", [target, kind, shape, dtype, chosen], LIBTPU_INIT_ARGS=dumps.format(folder))
        if not said:
            return None
        (text,) = (
            path.read_text() for path in Path(folder).glob("*lstm_*-final_bundles.txt") if "analysis" not in path.name
        )
        (table,) = (path.read_text() for path in Path(folder).glob("*lstm_*per-bundle-utilization.txt"))
    depths = [len(depth) for depth in re.findall(r"^\s*0x[0-9a-f]+\s*:?\s*(>*)", text, flags=re.MULTILINE)]
    loop = [depth == max(depths) for depth in depths]
    rows = [line.split() for line in table.split("== UTILIZATION:\n")[1].splitlines() if line.strip()]
    names = table.splitlines()[1].split(", ")
    spilled = sum(int(row[names.index("VSTORE:SPILL")]) for row in rows)
    made = json.loads(said.splitlines()[-1])
    steps = made["chunk"] if max(depths) > 1 else made["steps"]
    return Kernel(sum(loop) / steps, made["row_blocks"], spilled / steps, made["bytes"], made["limit"])


def compile_kernel_(target: str, kind: str, shape: tuple[int, int, int, int], dtype: str, chosen: dict) -> None:
    """Compile in this process, and print how it goes over its arrays."""
    for name, size in chosen.items():
        setattr(tpu, name, size)
    device = topologies.get_topology_desc(**TARGETS[target]).devices[0]
    mesh = Mesh([device], ("device",))
    batch, time, inputs, units = shape

    def array(*shape, dtype=dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    state = lstm.LSTMState(h=array(batch, units), c=array(batch, units, dtype="float32"))
    rows, w_h = tpu.Rows(state, None), array(units, 4 * units)
    if kind == "backward":
        kept = tpu.Kept(array(time, batch, 4 * units), array(time, batch, units, dtype="float32"), None)
        run, arguments = tpu.backward, (w_h, rows, dataclasses.replace(kept, d_ys=array(time, batch, units)))
    else:
        weights = tpu.Weights(array(inputs, 4 * units), w_h, array(4 * units, dtype="float32"), None)
        run = functools.partial(tpu.forward, save=kind == "saving", return_sequences=True)
        arguments = weights, rows, tpu.Steps(array(time, batch, inputs), None)
    with jax.set_mesh(mesh):
        size = tpu.Shape(time, batch, inputs, units, jnp.dtype(dtype).itemsize, 4)
        made = tpu.plan(size, backward=kind == "backward", save=kind == "saving", vmem=tpu.vmem())
        if made is not None:
            jax.jit(run).lower(*arguments).compile()
            print(json.dumps(dataclasses.asdict(made) | {"limit": tpu.vmem()}))


def program(
    target: str,
    kind: str,
    case: str = "bfloat16",
    shape: tuple[int, int, int, int] = SHAPE,
    **how: object,
) -> Program:
    """Compile in a process of its own, which the compiler may end, and read what it made.

    Args:
        target: one of TARGETS.
        kind: one of KINDS.
        case: one of CASES.
        shape: batch, time, inputs, units.
        how: arguments of `lstm.apply`.
    """
    with tempfile.TemporaryDirectory() as folder:
        platform = TARGETS[target]["platform"]
        _apart(
            "compile_",
            [target, kind, case, shape, how, folder],
            XLA_FLAGS=f"--xla_dump_to={folder} --xla_dump_hlo_as_text" if platform == "cuda" else "",
            LIBTPU_INIT_ARGS=f"--xla_jf_dump_static_llo_profile_to={folder}/profile",
        )
        return (_of_tpu if platform == "tpu" else _of_gpu)(Path(folder), shape[1])


def _apart(function, arguments, module="compiled", **environment):
    """Run a function of a sibling module in a process of its own, and return what it prints."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # what the compiler writes while it works is read
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_LOG_DIR": "disabled",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        **environment,
    }
    code = f"import json, sys; from benchmarks import {module}; {module}.{function}(*json.loads(sys.argv[1]))"
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{function} of {arguments} failed: {done.stderr[-2000:]}")
    return done.stdout


def compile_(target: str, kind: str, case: str, shape: tuple[int, int, int, int], how: dict, folder: str) -> None:
    """Compile in this process, and leave the program in a folder."""
    described = dict(TARGETS[target])
    if described["platform"] == "cuda":
        described["target_config"] = (ROOT / "benchmarks/h200.txtpb").read_text()
    devices = topologies.get_topology_desc(**described).devices
    mesh = Mesh(devices if case == "sharded" else devices[:1], ("device",))
    layer = bidirectional if case == "bidirectional" else lstm
    dtype = jnp.float32 if case == "float32" else jnp.bfloat16
    batch, time, inputs, units = shape

    def outputs(params, xs, lengths, resets):
        return layer.apply(params, xs, lengths=lengths, resets=resets, **how)[0]

    of_batch = PartitionSpec("device" if case == "sharded" else None)
    shared = jax.shard_map(outputs, in_specs=(PartitionSpec(), *[of_batch] * 3), out_specs=of_batch)
    run: Callable = shared if case == "sharded" else outputs

    def slopes(params, xs, lengths, resets):
        return jax.value_and_grad(lambda *of: (run(*of, lengths, resets) ** 2).sum(), argnums=(0, 1))(params, xs)

    def placed(tree, of):
        place = NamedSharding(mesh, of)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)

    params = jax.eval_shape(lambda: layer.init(jax.random.key(0), inputs, units, dtype=dtype))
    xs = jax.ShapeDtypeStruct((batch, time, inputs), dtype)
    lengths = jax.ShapeDtypeStruct((batch,), jnp.int32) if case == "ragged" else None
    resets = jax.ShapeDtypeStruct((batch, time), jnp.bool_) if case == "resets" else None
    arguments = placed(params, PartitionSpec()), *placed((xs, lengths, resets), of_batch)
    with jax.set_mesh(mesh):
        made = jax.jit(run if kind == "forward" else slopes).lower(*arguments).compile()
    (Path(folder) / "program.hlo").write_text(made.as_text() or "")


def graphs(loop: Loop) -> int:
    """CUDA graphs of one iteration."""
    return sum("kCommandBuffer" in line for line in loop.body)


def launches(loop: Loop) -> int:
    """Kernels and copies of one iteration, the graph that holds them not counted."""
    return sum(" kCommandBuffer " not in f" {line} " for line in loop.body)


def copies(loop: Loop) -> list[str]:
    return [line for line in loop.body if re.search(r"kCopy|kMemcpy|kDeviceToDevice|_copy", line)]


def fetches(loop: Loop, shape: tuple[int, int]) -> int:
    """Number of reads of a weight of that shape from the device's memory in an iteration on TPU."""
    weight = rf"(?:bf16|f32)\[{shape[0]},{shape[1]}\](?:{{[^}}]*}})?"
    count = 0
    for line in loop.body:
        parameter = re.match(rf"%([\w.\-]+) = ({weight}) get-tuple-element", line)
        if parameter and "S(1)" not in parameter[2]:
            count += sum(bool(re.search(rf"\(.*%{re.escape(parameter[1])}[,)]", other)) for other in loop.body)
    return count


def made(loop: Loop, shape: tuple[int, int]) -> list[str]:
    """The instructions that compute an array of that shape, or of its transpose, within a loop on TPU."""
    sizes = {",".join(map(str, shape)), ",".join(map(str, shape[::-1]))}
    passed = "get-tuple-element", "parameter", "bitcast", "tuple", "while"
    found = []
    for line in loop.body:
        result, operation = re.match(r"%[\w.\-]+ = (.*?) ([\w\-]+)\(%?", line).groups()  # pyright: ignore
        moved = operation.endswith(("-start", "-done", "copy"))
        if operation not in passed and not moved and any(f"f32[{size}]" in result for size in sizes):
            found.append(line)
    return found


def _of_tpu(folder: Path, time: int) -> Program:
    text = (folder / "program.hlo").read_text()
    entry = re.findall(r"\nENTRY %([\w.\-]+)", text)[0]
    bodies = re.findall(r" while\(.*?condition=%([\w.\-]+), body=%([\w.\-]+)", text)
    lines = {
        name: tuple(re.findall(r"\n\s+(?:ROOT )?(%[\w.\-]+ = .*)", _computation(text, name)))
        for name in (entry, *(body for _, body in bodies))
    }
    estimates = _estimates(folder / "profile", [line for body in lines.values() for line in body])
    cycles = {name: sum(estimates[line] for line in body) for name, body in lines.items()}
    found = []
    for condition, body in bodies:
        trips = int(re.findall(r"constant\((\d+)\)", _computation(text, condition))[-1])
        found.append(Loop(time // trips, lines[body], cycles[body]))
    return Program(time, tuple(found), cycles[entry])


def _estimates(profile: Path, lines: list[str]) -> dict[str, int]:
    """Cycles of each instruction; those of products alone where there is no profile.

    The profile names one of several equal instructions. It has 0 for a product that reads its arguments from the
    device's memory; there the estimate by which the compiler chose that product's tiles counts.
    """

    def kind(line):
        return re.sub(r"metadata={.*?}|\"scoped_memory_configs.*|%[\w.\-]+", "", line)

    named = {line[1:].split(" ")[0]: line for line in lines}
    profiled = {}
    for path in profile.iterdir() if profile.exists() else ():
        for name, cycles in re.findall(r'hlo_op_name: "(.*?)"\s+estimated_cycles: (\d+)', path.read_text()):
            profiled[name] = int(cycles)
    alike = {kind(named[name]): cycles for name, cycles in profiled.items() if name in named}
    planned = {line: int((re.findall(r'estimated_cycles":"(\d+)"', line) or [0])[0]) for line in lines}
    return {line: profiled.get(name, alike.get(kind(line), 0)) or planned[line] for name, line in named.items()}


def _computation(text: str, name: str) -> str:
    found = re.search(rf"\n(?:ENTRY )?%{re.escape(name)} \(.*?\n}}", text, flags=re.DOTALL)
    assert found is not None
    return found[0]


def _of_gpu(folder: Path, time: int) -> Program:
    text = (folder / "program.hlo").read_text()
    trips = [int(count) for count in re.findall(r' while\(.*"known_trip_count":{"n":"(\d+)"}', text)]
    (path,) = folder.glob("*thunk_sequence_after_thunk_passes.txt")
    bodies: list[list[str]] = []
    inside = False
    for line in path.read_text().splitlines():
        if line.strip() == "body:":
            bodies.append([])
            inside = True
        elif not line.startswith("    "):
            inside = False
        elif inside:
            bodies[-1].append(line.strip().split(": ", 1)[1])
    return Program(time, tuple(Loop(time // count, tuple(body)) for count, body in zip(trips, bodies, strict=True)))


if __name__ == "__main__":
    main()
