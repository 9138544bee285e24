"""One layer of LSTM here and in every library that is installed.

python -m benchmarks cpu [--out cpu.json]         the grid and the check; about 30 minutes on two cores
python -m benchmarks check [--out check.json]     each library in turn with others, and alone by its defaults
python -m benchmarks gpu [--out gpu.json]         the same on a GPU, at the shapes that others publish
python -m benchmarks tpu [--out tpu.json]         the kernel and the other implementations on a TPU, in bfloat16
python -m benchmarks quick [--out quick.json]     two shapes, two minutes
python -m benchmarks growth [--out growth.json]   one axis at a time, here and in Flax; about eight minutes
python -m benchmarks stack [--out stack.json]     two bidirectional layers with lengths, their parts, and Flax's
python -m benchmarks overhead [--out overhead.json]   what a call from Python costs, next to an LSTM written by hand
python -m benchmarks compare --against COMMIT     ours in this tree and at a commit, in turn; about seven minutes
python -m benchmarks page FILE ...                docs/speed.md, made of such files

Each library runs in a process of its own, which is stopped while others run; rounds are interleaved; a ratio is the
median of ratios taken round by round, with its quartiles. `pip install -e '.[peers,flax]'` brings the others.
`cpu` and `check` exit with 1 if the check fails anywhere.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from benchmarks import against, grid, overhead, page, race


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in (*grid.GRIDS, "overhead"):
        command = commands.add_parser(name)
        command.add_argument("--out", type=Path, default=Path(f"{name}.json"), help="where the results go")
        command.add_argument("--budget", type=float, default=10.0, help="seconds for the rounds of a case")
    command = commands.add_parser("compare")
    command.add_argument("--out", type=Path, default=Path("compare.json"), help="where the results go")
    command.add_argument("--against", required=True, type=against.commit, metavar="COMMIT", help="as git names it")
    command.add_argument("--rounds", type=race.count, default=against.ROUNDS, help="of each case, at least 2")
    command.add_argument(
        "--shapes", nargs="+", type=shape, default=grid.GRIDS["cpu"].shapes, help="such as 32,50,64,128; all of cpu's"
    )
    commands.add_parser("page").add_argument("files", type=Path, nargs="+")
    given = parser.parse_args(argv)
    if given.command == "page":
        print(page.page(json.loads(path.read_text()) for path in given.files))
        return 0
    if given.command == "compare":
        run = partial(against.run, given.against, given.shapes, given.rounds)
    else:
        run = partial(overhead.run if given.command == "overhead" else partial(grid.run, given.command), given.budget)
    results = run(lambda line: print(line, file=sys.stderr, flush=True))
    given.out.write_text(page.stored(results))
    print(page.section(results))
    return int(any(not check["holds"] for check in results.get("checks", [])))


def shape(text: str) -> tuple[int, ...]:
    sizes = tuple(map(int, text.split(",")))
    if len(sizes) != 4:
        raise argparse.ArgumentTypeError(f"four numbers, such as 32,50,64,128; got {text!r}")
    return sizes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
