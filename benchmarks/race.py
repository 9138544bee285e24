"""Programs in processes of their own, timed in turn, and statistics of their times.

A process answers each line of its standard input with one line, and is stopped while it has nothing to answer: after a
call the threads of some libraries spin for a while, on cores that the next one needs. Rounds are interleaved, each in
another order, so that what slows the machine for a while slows all alike; a ratio is the median of ratios taken round
by round, with its quartiles.
"""

import argparse
import contextlib
import ctypes
import importlib.metadata
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

INSIDE = 0.02, 0.01  # seconds of calls ahead of the clock, and of timed ones
LONG = 0.1  # seconds
PR_SET_PDEATHSIG = 1  # of Linux' prctl
WORKED = 0.05  # of the CPU seconds of all threads: one that took less did not work


class Process:
    """One program: `ask` hands it a request, which becomes one line of JSON, and waits for its answer."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path | None = None):
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=os.environ | dict(environment),
            cwd=folder,
        )
        self._answer()

    def ask(self, *request: Any) -> Any:
        self._process.send_signal(signal.SIGCONT)
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """No more requests; wait until it has ended."""
        self._process.send_signal(signal.SIGCONT)
        with self._process:
            pass

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.name} ended; its message is above")
        self._process.send_signal(signal.SIGSTOP)
        return json.loads(line)


@contextlib.contextmanager
def started(
    commands: Mapping[str, Sequence[str]],
    environment: Mapping[str, str] | None = None,
    folders: Mapping[str, Path] | None = None,
) -> Iterator[dict[str, Process]]:
    """Processes by name, each `python -m` of its command in its folder, which end with the block."""
    with contextlib.ExitStack() as stack:
        processes = {}
        for name, command in commands.items():
            processes[name] = Process(name, command, environment or {}, (folders or {}).get(name))
            stack.callback(processes[name].close)
        yield processes


def serve(answers: Mapping[str, Callable[..., Any]]) -> None:
    """In a process: answer each request [name, ...] by the function of that name, until there are no more.

    Whatever else is printed goes to standard error.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a stopped process would outlive a parent that is killed
    out, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps("ready"), file=out, flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(answers[name](*arguments)), file=out, flush=True)


def timed(call: Callable[[], Any], warm: float, window: float) -> dict[str, Any]:
    """Time a call, and measure the cores that it uses.

    Args:
        call: returns when all is computed.
        warm: seconds of calls ahead of the clock, which wake threads and fill caches.
        window: seconds of timed calls, of which there is at least one.

    Returns:
        "seconds", the median of the timed calls; "cpu", the CPU seconds that the process took in a second of them; and
        "threads", how many of its threads took more than `WORKED` of those, at once or in turn.
    """
    start = time.perf_counter()
    while time.perf_counter() - start < warm:
        call()
    before, used, calls = _clocks(), time.process_time(), []
    begun = start = time.perf_counter()
    while start - begun < window or not calls:
        call()
        end = time.perf_counter()
        calls.append(end - start)
        start = end
    used = time.process_time() - used
    worked = [thread for thread, clock in _clocks().items() if clock - before.get(thread, 0.0) > WORKED * used]
    return {"seconds": statistics.median(calls), "cpu": used / sum(calls), "threads": len(worked)}


class Timer:
    """A call to be timed in each round, in a window of seconds, after others ahead of the clock unless it is long."""

    def __init__(self, call: Callable[[], Any], warm: float, window: float):
        self._call, self._window = call, window
        self._warm = 0.0 if timed(call, 0.0, 0.0)["seconds"] > LONG else warm

    def __call__(self) -> dict[str, Any]:
        return timed(self._call, self._warm, self._window)


def summary(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The seconds of each round, and the medians of threads and CPU seconds."""
    middle = {key: statistics.median(one[key] for one in rounds) for key in ("threads", "cpu")}
    return {"seconds": [one["seconds"] for one in rounds]} | middle


def _clocks() -> dict[int, float]:
    """CPU seconds of each thread of this process, by the clock that Linux derives from a thread's number."""
    clocks = {}
    for thread in map(int, os.listdir("/proc/self/task")):
        with contextlib.suppress(OSError):  # it ended after it was listed
            clocks[thread] = time.clock_gettime(~thread << 3 | 0b110)
    return clocks


def turns(timed: Mapping[Any, Callable[[], Any]], count: int) -> dict[Any, list[Any]]:
    """Call each so many times, in turn, in another order each time, and return all results."""
    given: dict[Any, list[Any]] = {name: [] for name in timed}
    orders = random.Random(0)
    for _ in range(count):
        for name in orders.sample(list(timed), len(timed)):
            given[name].append(timed[name]())
    return given


def here(calls: Mapping[str, Callable[[], Any]], case: str, count: int) -> dict[str, dict[str, Any]]:
    """In this process: one call of each ahead of the clock, then so many, in turn; a cell for each, by its name."""
    turns(calls, 1)
    taken = turns({name: partial(timed, call, 0.0, 0.0) for name, call in calls.items()}, count)
    return {name: {"case": case, "peer": name} | summary(each) for name, each in taken.items()}


def rounds(processes: Mapping[str, Process], count: int, *request: Any) -> dict[str, list[Any]]:
    """Send each the same request so many times, in turn, and return all answers."""
    return turns({name: partial(process.ask, *request) for name, process in processes.items()}, count)


def ratio(times: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """The median of `times` over `base`, round by round, and its lower and upper quartile."""
    return quartiles([a / b for a, b in zip(times, base, strict=True)])


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, and the lower and upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def count(text: str) -> int:
    """Parse a number of rounds for argparse; quartiles take two."""
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"quartiles take a whole number of rounds of at least 2; got {text!r}")
    return int(text)


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
    """Format a time, and its ratio to `base`."""
    middle, low, high = ratio(times, base)
    return f"{seconds(statistics.median(times))}, x {middle:.2f} ({low:.2f} to {high:.2f})"
