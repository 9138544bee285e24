"""Parts that the sections of the page share."""

from collections.abc import Iterable
from typing import Any


def origin(results: dict[str, Any]) -> str:
    """The command that made a results file, of which commit, and where it ran."""
    machine = results["machine"]
    names = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    tree = results.get("tree")  # which older files do not have
    commit = f" at {tree['commit']}{' with changes' if tree['changed'] else ''}" if tree else ""
    return (
        f"`python -m benchmarks {results['grid']}`{commit} on {machine['processor']}, {machine['cores']} cores, "
        f"{machine['device']}; Python {machine['python']}, {names}. It took {results['took_seconds'] / 60:.0f} min"
    )


def threads(cells: Iterable[dict[str, Any]]) -> str:
    """For each library, the most threads that worked in any cell, and the most CPU seconds in a second."""
    most: dict[str, tuple[float, float]] = {}
    for cell in cells:
        if "threads" not in cell:
            return "Threads were not counted."
        count, cpu = most.get(cell["peer"], (0, 0.0))
        most[cell["peer"]] = max(count, cell["threads"]), max(cpu, cell["cpu"])
    each = "; ".join(f"{name} {worked(count, cpu)}" for name, (count, cpu) in most.items())
    return f"Threads that worked, and CPU seconds in a second, at most: {each}."


def worked(count: float, cpu: float) -> str:
    return f"{count:.0f} ({cpu:.2f})"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def memory(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"


def sizes(shape: Iterable[int]) -> str:
    return ", ".join(map(str, shape))
