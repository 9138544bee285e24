"""Numbers that remember how they were computed."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Number:
    """A number, and how it was computed: in names, and with numbers in their place.

    >>> units, inputs = Number.named("units", 3), Number.named("inputs", 2)
    >>> count = 4 * units * (inputs + units + 1)
    >>> print(count.value, "=", count.names, "=", count.numbers)
    72 = 4 * units * (inputs + units + 1) = 4 * 3 * (2 + 3 + 1)
    """

    value: int
    names: str
    numbers: str
    is_sum: bool = False

    @classmethod
    def named(cls, name: str, value: int) -> "Number":
        """A number with a name."""
        return cls(value, name, str(value))

    def __add__(self, other: "Number | int") -> "Number":
        other = _number(other)
        names, numbers = f"{self.names} + {other.names}", f"{self.numbers} + {other.numbers}"
        return Number(self.value + other.value, names, numbers, is_sum=True)

    def __mul__(self, other: "Number | int") -> "Number":
        one, other = _factor(self), _factor(_number(other))
        return Number(one.value * other.value, f"{one.names} * {other.names}", f"{one.numbers} * {other.numbers}")

    def __rmul__(self, other: int) -> "Number":
        return _number(other) * self


def _number(number: Number | int) -> Number:
    return number if isinstance(number, Number) else Number.named(str(number), number)


def _factor(number: Number) -> Number:
    if not number.is_sum:
        return number
    return Number(number.value, f"({number.names})", f"({number.numbers})")
