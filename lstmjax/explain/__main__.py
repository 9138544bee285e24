"""Show an LSTM of any size with all its numbers: `python -m lstmjax.explain --inputs 1 --units 3 --steps 4`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from lstmjax.explain import equations, lesson, page, sources

GREATEST_DIFFERENCE = 1e-6
MOST = {"inputs": 256, "units": 256, "steps": 1000}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the worked example, or write it as a page.

    Returns:
        The exit code: 0, or 1 where numbers here are not those of the library; wrong arguments exit with 2.
    """
    parser = _parser()
    asked = parser.parse_args(arguments)
    try:
        example = sources.example(asked.inputs, asked.units, asked.steps, asked.params, asked.data)
        html = page.page(example) if asked.html else None
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    parts = equations.run(example.params, example.xs)
    in_float64, as_they_are, dtype = equations.differences(parts, example.params, example.xs)
    if not in_float64 <= GREATEST_DIFFERENCE:
        print(f"error: the numbers differ from the library's by {in_float64:.1e}, more than 1e-6.", file=sys.stderr)
        return 1
    if html is None:
        print(lesson.lesson(example, parts))
        print("\nCHECKED: the numbers above were computed from the equations in float64. The greatest difference from")
        print(f"  lstmjax.lstm.apply and lstmjax.inspect.trace is {in_float64:.1e} in float64,")
        print(f"  and {as_they_are:.1e} in {dtype}, which the weights are kept in.")
        return 0
    try:
        Path(asked.html).write_text(html, encoding="utf-8")
    except OSError as error:
        parser.error(f"--html {asked.html} cannot be written: {error.strerror}.")
    print(f"{asked.html} is written: open it in a browser. It needs no network.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lstmjax.explain",
        description="An LSTM of your own sizes with all its numbers: shapes, counts, every gate of every step.",
        allow_abbrev=False,
    )
    parser.add_argument("--inputs", type=_size("inputs"), metavar="N", help="length of one input vector x_t; default 1")
    parser.add_argument("--units", type=_size("units"), metavar="N", help="length of h and of c; default 3")
    parser.add_argument("--steps", type=_size("steps"), metavar="N", help="number of time steps; default 4")
    parser.add_argument("--params", metavar="FILE", help="your own weights, as lstmjax.files.save writes them")
    parser.add_argument("--data", metavar="FILE", help="your own data: a line of numbers for each time step")
    parser.add_argument("--html", metavar="FILE", help="write a page to explore, instead of printing")
    return parser


def _size(name: str):
    def size(text: str) -> int:
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST[name]):
            raise argparse.ArgumentTypeError(f"it must be a whole number from 1 to {MOST[name]}; got {text!r}.")
        return int(text)

    return size


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # what is small enough to be read; and TPUs have no float64
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)
