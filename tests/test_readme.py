import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def run(file):
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", (ROOT / file).read_text(), flags=re.DOTALL)), names)
    return names


def test_examples_run_and_give_the_shapes_they_say():
    names = run("README.md")
    expected = {"prediction": (8, 1), "y": (8, 3), "tokens": (2, 3, 4), "words_in": (2, 3), "utterances_in": (2,)}
    expected |= {"ys": (2, 3, 64), "tags": (2, 3), "score": (2,), "loss": (2,)}
    assert {name: names[name].shape for name in expected} == expected


@pytest.mark.usefixtures("four_devices")
def test_the_example_of_many_devices_runs():
    assert run("docs/scale.md")["ys"].shape == (4, 10, 16)


def functions(source):
    """Functions by name, without docstrings and annotations."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for argument in node.args.args:
                argument.annotation = None
            node.body = node.body[ast.get_docstring(node) is not None :]
            found[node.name] = ast.unparse(node)
    return found


def test_the_equations_are_the_code_that_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (quoted,) = (block for block in blocks if "def standard_update" in block)
    code = functions((ROOT / "lstmjax" / "_src" / "lstm" / "cell.py").read_text())
    shown = functions(quoted)
    assert set(shown) == {"standard_update", "gate_activations"}
    assert shown == {name: code[name] for name in shown}
    assert len(quoted.splitlines()) <= 12
