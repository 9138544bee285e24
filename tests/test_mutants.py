"""The table of changes that the suite must notice; `python -m tests.mutants` tries them."""

import ast
import importlib
from pathlib import Path

import mutants
import pytest

ROOT = Path(__file__).parents[1]

every_mutant = pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)


def test_packages_are_imported_from_this_tree():
    for name in ("lstmjax", "experiments"):
        assert Path(importlib.import_module(name).__file__).parents[1] == ROOT


def test_names_differ():
    assert len({mutant.name for mutant in mutants.MUTANTS}) == len(mutants.MUTANTS)


@every_mutant
def test_a_change_is_of_text_that_is_there_once_and_gives_python(mutant):
    text = (ROOT / mutant.file).read_text()
    before, after = ast.parse(text), ast.parse(mutant.changed(text))
    assert ast.dump(before) != ast.dump(after)


@every_mutant
def test_the_tests_of_a_change_are_there(mutant):
    assert mutant.tests
    for test in mutant.tests:
        file, *names = test.split("[")[0].split("::")
        node = ast.parse((ROOT / file).read_text())
        for name in names:
            (node,) = (part for part in node.body if getattr(part, "name", None) == name)


@pytest.mark.parametrize("text", ["", "x + x", "y"])
def test_a_change_of_text_that_is_not_there_once_is_refused(text):
    mutant = mutants.Mutant("x becomes y", "a.py", "x", "y", ())
    with pytest.raises(mutants.Unusable, match=r"x becomes y: a\.py must contain once, and contains [02] times: x"):
        mutant.changed(text)
    assert mutant.changed("x + 1") == "y + 1"


@pytest.mark.parametrize(
    ("code", "expected"), [(0, "survived"), (1, "killed"), (2, "error"), (4, "error"), (5, "error"), (None, "error")]
)
def test_what_pytest_says_of_a_change(code, expected):
    assert mutants.verdict(mutants.Ran(code, "", 0.0)) == expected


def test_the_tests_that_passed_are_read_from_what_pytest_printed():
    output = """
PASSED tests/test_a.py::test_one[4-a - b]
PASSED tests/test_a.py::TestB::test_two
SKIPPED [1] tests/test_a.py:3: no data
FAILED tests/test_a.py::test_three - assert 0
ERROR tests/test_c.py::test_four
"""
    ran = mutants.Ran(1, output, 0.0)
    assert ran.tests("FAILED", "ERROR") == ["tests/test_a.py::test_three", "tests/test_c.py::test_four"]
    passed = ["tests/test_a.py", "tests/test_a.py::test_one", "tests/test_a.py::TestB"]
    others = ["tests/test_c.py", "tests/test_a.py::test_three", "tests/test_a.py::test_one[5]"]
    mutant = mutants.Mutant("x becomes y", "a.py", "x", "y", (*passed, *others))
    assert mutants.without_a_pass([mutant], ran) == others
