"""What the compilers of accelerators make of the loop, on a machine without one: `python -m benchmarks.compiled`.

`pip install -e '.[aot]'` brings the compilers. What they say of a TPU are static estimates, never times.
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lstmjax import lstm

ROOT = Path(__file__).parents[1]
TARGETS = {
    "v5e": {"platform": "tpu", "topology_name": "v5e:2x2"},
    "v6e": {"platform": "tpu", "topology_name": "v6e:2x2"},
    "h200": {"platform": "cuda", "topology_name": "h200", "topology": "1x1x1"},
}
WHEELS = {"tpu": "libtpu", "cuda": "jax-cuda12-plugin"}
KINDS = "forward", "gradient"
PLAIN = {"implementation": "scan", "unroll": 1}
BATCH, INPUTS, UNITS = 128, 512, 512
TIME = {"tpu": 16, "cuda": 64}  # the TPU's compiler walks through what lies outside the loop element by element


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


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.compiled", description=__doc__)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--units", type=int, default=UNITS, help="of the layer, and features of its inputs")
    given = parser.parse_args()
    shape = given.batch, given.units, given.units
    print(f"jax {jax.__version__}; B, inputs, units = {', '.join(map(str, shape))}, bfloat16\n")
    print("| static estimate: cycles a step, in the loops | plain scan | fused | ratio |\n| --- | --- | --- | --- |")
    for target in ("v5e", "v6e"):
        for kind in KINDS:
            plain, fused = (cycles(loops(target, kind, shape, **how)) for how in (PLAIN, {}))
            print(f"| {target}, {kind} | {plain:.0f} | {fused:.0f} | {fused / plain:.2f} |", flush=True)
    print(
        "\n| loops on H200 | steps an iteration | graphs | launches a step | copies |\n| --- | --- | --- | --- | --- |"
    )
    for name, how in (("plain scan", PLAIN), ("fused", {})):
        for kind in KINDS:
            for number, loop in enumerate(loops("h200", kind, shape, **how), 1):
                graphs = sum("kCommandBuffer" in line for line in loop.body)
                each = f"{launches(loop) / loop.steps:.2f} | {len(copies(loop))}"
                print(f"| {name}, {kind}, {number} | {loop.steps} | {graphs} | {each} |", flush=True)


def loops(target: str, kind: str, shape: tuple[int, int, int] = (BATCH, INPUTS, UNITS), **how: object) -> list[Loop]:
    """Compile in a process of its own, which the compiler may end, and read the loops.

    Args:
        target: one of TARGETS.
        kind: one of KINDS.
        shape: batch, inputs, units.
        how: arguments of `lstm.apply`.
    """
    with tempfile.TemporaryDirectory() as folder:
        platform = TARGETS[target]["platform"]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_dump_to={folder} --xla_dump_hlo_as_text" if platform == "cuda" else "",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_LOG_DIR": "disabled",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "LIBTPU_INIT_ARGS": f"--xla_jf_dump_static_llo_profile_to={folder}/profile",
        }
        code = "import json, sys; from benchmarks import compiled; compiled.compile_(*json.loads(sys.argv[1]))"
        command = [sys.executable, "-c", code, json.dumps([target, kind, shape, how, folder])]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{target} compiles no {kind}: {done.stderr[-2000:]}")
        return (_tpu_loops if platform == "tpu" else _gpu_loops)(Path(folder))


def compile_(target: str, kind: str, shape: tuple[int, int, int], how: dict, folder: str) -> None:
    """Compile in this process, and leave the program in a folder."""
    described = dict(TARGETS[target])
    if described["platform"] == "cuda":
        described["target_config"] = (ROOT / "benchmarks/h200.txtpb").read_text()
    device = topologies.get_topology_desc(**described).devices[0]
    place = NamedSharding(Mesh([device], ("device",)), PartitionSpec())
    batch, inputs, units = shape

    def outputs(params, xs):
        return lstm.apply(params, xs, **how)[0]

    def slopes(params, xs):
        return jax.value_and_grad(lambda *arrays: (outputs(*arrays) ** 2).sum(), argnums=(0, 1))(params, xs)

    def placed(array):
        return jax.ShapeDtypeStruct(array.shape, jnp.bfloat16, sharding=place)

    params = jax.eval_shape(lambda: lstm.init(jax.random.key(0), inputs, units))
    xs = jax.ShapeDtypeStruct((batch, TIME[described["platform"]], inputs), jnp.bfloat16)
    run = jax.jit(outputs if kind == "forward" else slopes)
    program = run.lower(*jax.tree.map(placed, (params, xs))).compile()
    (Path(folder) / "program.hlo").write_text(program.as_text() or "")


def cycles(found: list[Loop]) -> float:
    """Estimated cycles of all loops, for each step of the LSTM."""
    return sum((loop.cycles or 0) / loop.steps for loop in found)


def launches(loop: Loop) -> int:
    """Kernels and copies of one iteration, the graph that holds them not counted."""
    return sum(" kCommandBuffer " not in f" {line} " for line in loop.body)


def copies(loop: Loop) -> list[str]:
    return [line for line in loop.body if re.search(r"kCopy|kMemcpy|kDeviceToDevice|_copy", line)]


def fetches(loop: Loop, shape: tuple[int, int]) -> int:
    """How often an iteration on TPU reads a weight of that shape from the device's memory, and not from the core's."""
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


def _tpu_loops(folder: Path) -> list[Loop]:
    program = (folder / "program.hlo").read_text()
    estimates = {}
    for path in (folder / "profile").iterdir():
        for name, each, equal in re.findall(
            r'hlo_op_name: "(.*?)"\s+estimated_cycles: (\d+)\s+num_equivalent_hlos: (\d+)', path.read_text()
        ):
            estimates[name] = int(each) * int(equal)
    found = []
    for condition, body in re.findall(r" while\(.*?condition=%([\w.\-]+), body=%([\w.\-]+)", program):
        trips = int(re.findall(r"constant\((\d+)\)", _computation(program, condition))[-1])
        lines = re.findall(r"\n\s+(?:ROOT )?(%[\w.\-]+ = .*)", _computation(program, body))
        cycles = sum(estimates.get(line[1:].split(" ")[0], 0) for line in lines)
        found.append(Loop(TIME["tpu"] // trips, tuple(lines), cycles))
    return found


def _computation(program: str, name: str) -> str:
    found = re.search(rf"\n%{re.escape(name)} \(.*?\n}}", program, flags=re.DOTALL)
    assert found is not None
    return found[0]


def _gpu_loops(folder: Path) -> list[Loop]:
    program = (folder / "program.hlo").read_text()
    trips = [int(count) for count in re.findall(r' while\(.*"known_trip_count":{"n":"(\d+)"}', program)]
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
    return [Loop(TIME["cuda"] // count, tuple(body)) for count, body in zip(trips, bodies, strict=True)]


if __name__ == "__main__":
    main()
