"""Programs in processes of their own, timed in turn, and what can be said of such times.

A process answers each line of its standard input with one line. Rounds are interleaved, each in another order, so that
what slows the machine for a while slows all alike; a ratio is the median of ratios taken round by round, with its
quartiles.
"""

import contextlib
import importlib.metadata
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any


class Process:
    """One program at work: `ask` hands it a request, which becomes one line of JSON, and waits for what it answers."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]):
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=os.environ | dict(environment),
        )
        self._answer()

    def ask(self, *request: Any) -> Any:
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """No more requests; wait until it has ended."""
        with self._process:
            pass

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.name} ended; its own words stand above")
        return json.loads(line)


@contextlib.contextmanager
def started(
    commands: Mapping[str, Sequence[str]], environments: Mapping[str, Mapping[str, str]] | None = None
) -> Iterator[dict[str, Process]]:
    """Processes by name, each `python -m` of its command, which end with the block."""
    with contextlib.ExitStack() as stack:
        processes = {}
        for name, command in commands.items():
            processes[name] = Process(name, command, (environments or {}).get(name, {}))
            stack.callback(processes[name].close)
        yield processes


def serve(answers: Mapping[str, Callable[..., Any]]) -> None:
    """In a process: answer each request [name, ...] by the function of that name, until there are no more.

    Whatever else is printed goes to standard error.
    """
    out, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps("ready"), file=out, flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(answers[name](*arguments)), file=out, flush=True)


def turns(timed: Mapping[str, Callable[[], Any]], count: int) -> dict[str, list[Any]]:
    """What each gives, so many times, in turn; in another order each time.

    For a while after a call the threads of some libraries go on spinning, on the cores of whoever comes next.
    """
    given: dict[str, list[Any]] = {name: [] for name in timed}
    orders = random.Random(0)
    for _ in range(count):
        for name in orders.sample(list(timed), len(timed)):
            given[name].append(timed[name]())
    return given


def rounds(processes: Mapping[str, Process], count: int, *request: Any) -> dict[str, list[Any]]:
    """What each answers to the same request, so many times, in turn."""
    return turns({name: partial(process.ask, *request) for name, process in processes.items()}, count)


def ratio(times: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """The median of `times` over `base`, round by round, and its lower and upper quartile."""
    ratios = [a / b for a, b in zip(times, base, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return middle, low, high


def missing(distributions: Sequence[str]) -> str | None:
    """The first that is not installed."""
    for distribution in distributions:
        try:
            importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            return distribution
    return None


def seconds(time: float) -> str:
    if time >= 1:
        return f"{time:.2f} s"
    return f"{1e3 * time:.1f} ms" if time >= 1e-3 else f"{1e6 * time:.0f} µs"


def beside(times: Sequence[float], base: Sequence[float]) -> str:
    """How long, and how many times as long as `base`."""
    middle, low, high = ratio(times, base)
    return f"{seconds(statistics.median(times))}, x {middle:.2f} ({low:.2f} to {high:.2f})"
