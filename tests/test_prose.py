"""Phrases of a dialect of our own, which the code and the documentation do without."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PHRASES = (
    "what stands",
    "hears",
    "circulates",
    "is said of",
    "goes on on",
    "starts afresh",
    "those that are",
    "as they are",
    "so far as",
    "reaches nothing",
    "read last to first",
    "the loop against time",
)
REFUSED = re.compile(r"\b(" + "|".join(phrase.replace(" ", r"\s+") for phrase in PHRASES) + r")\b", re.IGNORECASE)


def sources():
    """All text of the project that people write; records of runs are printed."""
    found = [
        path
        for folder in ("lstmjax", "experiments", "benchmarks", "docs", "tests")
        for path in ROOT.glob(f"{folder}/**/*")
    ]
    texts = [path for path in [*found, *ROOT.glob("*.md")] if path.suffix in (".py", ".md")]
    built = {ROOT / "docs" / name for name in ("_build", "results", "results.md")}
    return sorted(path for path in texts if not built & {path, *path.parents} and path != Path(__file__))


@pytest.mark.parametrize("phrase", PHRASES)
def test_a_phrase_is_found_over_lines(phrase):
    assert REFUSED.search(f"a text: {phrase.title().replace(' ', chr(10))}.")
    assert not REFUSED.search(phrase.replace("s", "x"))


def test_no_phrase_is_used():
    used = [(path.name, match.group()) for path in sources() for match in REFUSED.finditer(path.read_text())]
    assert used == []


def first_words(path):
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, documented)]
    return [text.split()[0] for text in map(ast.get_docstring, nodes) if text]


def test_docstrings_begin_with_what_a_thing_is_or_does():
    packages = [path for name in ("lstmjax", "experiments", "benchmarks") for path in ROOT.glob(f"{name}/**/*.py")]
    words = {str(path): set(first_words(path)) & {"What", "Of", "Those", "Whether", "That"} for path in packages}
    assert len(words) == len(packages) > 100
    assert {name: found for name, found in words.items() if found} == {}
