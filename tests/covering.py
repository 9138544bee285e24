"""Covering arrays: few rows of options in which every pair of values still occurs."""

import itertools

import pytest


def _places(options: dict[str, list]) -> list[tuple[int, ...]]:
    """The rows of `pairs` as places in the lists of values, since values need neither differ nor be comparable."""
    rows = list(itertools.product(*(range(len(values)) for values in options.values())))
    size = min(2, len(options))
    met = {row: set(itertools.combinations(enumerate(row), size)) for row in rows}
    missing = set().union(*met.values())
    found = []
    while missing:
        row = max(rows, key=lambda row: len(met[row] & missing))
        missing -= met[row]
        found.append(row)
    return found


def pairs(options: dict[str, list]) -> list[tuple]:
    """Rows of the product of `options` in which any two values of different options meet at least once.

    Greedy and deterministic: the next row is the one with most pairs that have not met yet (Cohen et al.,
    "The AETG system", 1997). With a single option, its values.
    """
    return [_values(options, row) for row in _places(options)]


def parametrize(options: dict[str, list], others: pytest.MarkDecorator = pytest.mark.slow):
    """The whole product of `options` as parameters of a test; all but `pairs` are marked as `others`."""
    default = set(_places(options))
    return pytest.mark.parametrize(
        tuple(options),
        [
            pytest.param(*_values(options, row), marks=[] if row in default else others)
            for row in itertools.product(*(range(len(values)) for values in options.values()))
        ],
    )


def _values(options, row):
    return tuple(values[place] for values, place in zip(options.values(), row, strict=True))
