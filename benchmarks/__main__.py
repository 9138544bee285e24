"""One layer of LSTM here and in every library that is installed.

python -m benchmarks cpu [--out cpu.json]         the grid of docs/speed.md; about 20 minutes on two cores
python -m benchmarks gpu [--out gpu.json]         the same on a GPU, at the shapes that others publish
python -m benchmarks tpu [--out tpu.json]         the kernel beside the other implementations on a TPU, in bfloat16
python -m benchmarks quick [--out quick.json]     two shapes, two minutes
python -m benchmarks growth [--out growth.json]   one axis at a time, here and in Flax; about eight minutes
python -m benchmarks stack [--out stack.json]     two bidirectional layers with lengths, their parts, and Flax's
python -m benchmarks overhead [--out overhead.json]   what a call from Python costs, beside an LSTM written by hand
python -m benchmarks page FILE ...                docs/speed.md, made of such files
python -m benchmarks compare FILE FILE            what took longer, or less, than before

Each library runs in a process of its own; rounds are interleaved; a ratio is the median of ratios taken round by round,
with its quartiles. `pip install -e '.[peers,flax]'` brings the others.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from benchmarks import grid, overhead, page


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in (*grid.GRIDS, "overhead"):
        command = commands.add_parser(name)
        command.add_argument("--out", type=Path, default=Path(f"{name}.json"), help="where the results go")
        command.add_argument("--budget", type=float, default=10.0, help="seconds for the rounds of a case")
    commands.add_parser("page").add_argument("files", type=Path, nargs="+")
    commands.add_parser("compare").add_argument("files", type=Path, nargs=2)
    given = parser.parse_args(argv)
    if given.command not in ("page", "compare"):
        run = overhead.run if given.command == "overhead" else partial(grid.run, given.command)
        results = run(given.budget, lambda line: print(line, file=sys.stderr, flush=True))
        given.out.write_text(page.stored(results))
        print(page.section(results))
        return 0
    files = [json.loads(path.read_text()) for path in given.files]
    print(page.compared(*files) if given.command == "compare" else page.page(files))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
