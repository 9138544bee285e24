"""What programs for many devices exchange, and the memory they take, as the compilers of accelerators make them."""

import re
from collections import Counter

EXCHANGES = "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"


def collectives(text: str) -> tuple[list[Counter], Counter]:
    """Count the exchanges of a compiled program.

    Args:
        text: the program, as `jax.stages.Compiled.as_text` gives it.

    Returns:
        Those of one iteration of each loop that has any, and all others, by kind.
    """
    named = re.findall(r"^(ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", text, flags=re.MULTILINE | re.DOTALL)
    computations = {name: body for _, name, body in named}
    (entry,) = (name for is_entry, name, _ in named if is_entry)
    loops = set(re.findall(r"body=%?([\w.\-]+)", text))

    def within(name: str) -> Counter:
        """Of a computation and what it calls, loops left out."""
        body = computations[name]
        found = Counter(re.findall(rf" ({'|'.join(EXCHANGES)})(?:-start)?\(", body))
        called = re.findall(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", body)
        for several in re.findall(r"(?:branch_computations|called_computations)=\{(.*?)\}", body):
            called += re.findall(r"[\w.\-]+", several)
        return sum((within(other) for other in called if other in computations), found)

    return [found for name in sorted(loops) if (found := within(name))], within(entry)
