"""What ran is printed: the cases of each test, counted as they ran."""

import pytest
from fuzz import cases


@pytest.fixture(autouse=True)
def without_checks_of_annotations(untyped):
    """So that the package's own errors are seen."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    try:
        return (yield)
    finally:
        item.user_properties.append(("fuzz cases", sum(cases.RUN.values())))
        cases.RUN.clear()


def pytest_terminal_summary(terminalreporter):
    reports = [r for of in terminalreporter.stats.values() for r in of if getattr(r, "when", None) == "call"]
    counts = {r.nodeid: count for r in reports for name, count in r.user_properties if name == "fuzz cases" and count}
    if not counts:
        return
    terminalreporter.section("fuzz cases")
    for test, count in counts.items():
        terminalreporter.line(f"{count:>9,}  {test}")
    terminalreporter.line(f"{sum(counts.values()):>9,}  in all, of {cases.TOTAL:,} asked for")
