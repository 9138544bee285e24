"""The tasks by name.

Each module has `Options`, what [data] in a config may say; `build`, which makes a `Task`; `MODELS`, the kinds of
model it takes, where that is not an LSTM alone; and `CITED`, where published figures stand. Where data is read and not
drawn, `sources` gives the content of all its files by name, and `build` takes `Task.kept` of a run in place of what it
would find in the data, and reads by `files.content`, or tells `files.note` of what it read otherwise; where lines can
be labelled, `labeller` makes of `Task.kept` a `Task` without any data.
"""

from types import ModuleType

from experiments.tasks import (
    adding,
    airline,
    chars,
    conll2000,
    copy,
    jsb,
    mnist_rows,
    ptb,
    recall,
    rewrite,
    swda,
    temporal_order,
)

TASKS: dict[str, ModuleType] = {
    "airline": airline,
    "mnist_rows": mnist_rows,
    "adding": adding,
    "temporal_order": temporal_order,
    "copy": copy,
    "recall": recall,
    "rewrite": rewrite,
    "chars": chars,
    "ptb": ptb,
    "jsb": jsb,
    "conll2000": conll2000,
    "swda": swda,
}
