"""How many cases run, how long one may take, and what counts as a refusal.

FUZZ in the environment is the number of cases of all tests together, drawn anew in every run; without it the few
hundred of the ordinary suite are drawn, the same ones every time.
"""

import functools
import os
import re
import signal
import traceback
from collections import Counter
from datetime import timedelta
from pathlib import Path

import hypothesis

import lstmjax

ORDINARY = 600
LONG = "FUZZ" in os.environ
TOTAL = int(os.environ.get("FUZZ", ORDINARY))
LONGEST = 60  # seconds, of a case with its compiling on a busy machine
RUN: Counter[str] = Counter()  # cases by the name of the test, as they were run
PACKAGE = Path(lstmjax.__file__).parent


def fuzz(percent, **strategies):
    """Run a test on this share of all cases, each of which counts, and has to end in time."""

    def decorate(test):
        @functools.wraps(test)
        def case(*arguments, **drawn):
            RUN[test.__name__] += 1
            before = signal.signal(signal.SIGALRM, functools.partial(_too_long, drawn))
            signal.alarm(LONGEST)
            try:
                test(*arguments, **drawn)
            finally:
                signal.alarm(0)
                signal.signal(signal.SIGALRM, before)

        settings = hypothesis.settings(
            max_examples=max(5, round(TOTAL * percent / 100)),
            derandomize=not LONG,
            deadline=timedelta(seconds=LONGEST),
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        return settings(hypothesis.given(**strategies)(case))

    return decorate


def check_refusal(error, names):
    """Raise unless this is an error of the package itself, and names one of the arguments."""
    assert isinstance(error, ValueError | TypeError), f"refused by {type(error).__name__}"
    *_, last = traceback.extract_tb(error.__traceback__)
    assert Path(last.filename).is_relative_to(PACKAGE), f"refused by {last.filename}, not by the package: {error}"
    message = str(error)
    assert any(re.search(rf"(?<![\w']){re.escape(name)}(?![\w'])", message, re.IGNORECASE) for name in names), (
        f"refused without any of {', '.join(names)}: {message}"
    )


def _too_long(drawn, *_):
    raise AssertionError(f"still running after {LONGEST} s: {drawn!r}")
