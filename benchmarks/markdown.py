"""Pieces of a page that every section has."""

from collections.abc import Iterable
from typing import Any


def origin(results: dict[str, Any]) -> str:
    """The command that made a results file, and where it ran."""
    machine = results["machine"]
    names = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"`python -m benchmarks {results['grid']}` on {machine['processor']}, {machine['cores']} cores, "
        f"{machine['device']}; Python {machine['python']}, {names}. It took {results['took_seconds'] / 60:.0f} min"
    )


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def memory(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"


def sizes(shape: Iterable[int]) -> str:
    return ", ".join(map(str, shape))
