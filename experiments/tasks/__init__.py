"""The tasks by name. Each module has `Options`, what [data] in a config may say, and `build`, which makes a `Task`."""

from types import ModuleType

from experiments.tasks import adding, airline, copy, mnist_rows, temporal_order

TASKS: dict[str, ModuleType] = {
    "airline": airline,
    "mnist_rows": mnist_rows,
    "adding": adding,
    "temporal_order": temporal_order,
    "copy": copy,
}
