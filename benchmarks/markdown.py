"""Parts that the sections of the page share."""

from collections.abc import Iterable
from typing import Any

WORKED = "Cores that worked: CPU seconds in a second (and the threads that took them, which may be in turn)."


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


def used(cells: Iterable[dict[str, Any]]) -> list[str]:
    """A row for each case, and a column for each library with the cores that worked, or that they were not counted."""
    rows: dict[str, dict[str, str]] = {}
    for cell in cells:
        if "cpu" not in cell:
            return ["The cores that worked were not counted."]
        case = cell["case"] if "case" in cell else f"{sizes(cell['shape'])}, {cell['kind']}"
        rows.setdefault(case, {})[cell["peer"]] = worked(cell)
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = table(["", *names], ([case, *(row.get(name, "") for name in names)] for case, row in rows.items()))
    return [WORKED, "", *lines]


def worked(cell: dict[str, Any]) -> str:
    return f"{cell['cpu']:.2f} ({cell['threads']:.0f})"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def memory(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"


def sizes(shape: Iterable[int]) -> str:
    return ", ".join(map(str, shape))
