"""Who may import what: data flows one way, and the loop over time knows no cell."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INTERNAL = ROOT / "lstmjax" / "_src"
# What knows nothing of any cell or layer.
GENERAL = (
    "chunked_scan",
    "chunking",
    "custom_primitive",
    "dropout_masks",
    "layout",
    "mesh",
    "padding",
    "pytrees",
    "remat",
    "scan",
    "validation",
)


def imported(path):
    """The modules of this package that a file imports, functions in it included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            # Of `from package import module` the module, where there is such a file.
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                there = (ROOT / module.replace(".", "/")).with_suffix(".py").exists()
                found.add(module if there or (ROOT / module.replace(".", "/")).is_dir() else node.module)
    return {name for name in found if name.split(".")[0] == "lstmjax"}


def lines_of_code(path):
    """Lines that are no comment, docstring or blank line."""
    tree = ast.parse(path.read_text())
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    docstrings = [
        node.body[0]
        for node in ast.walk(tree)
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None
    ]
    skipped = {line for node in docstrings for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    lines = enumerate(path.read_text().splitlines(), 1)
    return [line for number, line in lines if number not in skipped and line.strip() and line.strip()[0] != "#"]


@pytest.mark.parametrize("name", GENERAL)
def test_what_is_general_imports_no_cell_and_no_layer(name):
    general = {f"lstmjax._src.{other}" for other in (*GENERAL, "keywords")}
    assert imported(INTERNAL / f"{name}.py") <= general


def test_the_public_loop_imports_no_cell_and_no_layer():
    assert imported(ROOT / "lstmjax" / "recurrent.py") <= {f"lstmjax._src.{name}" for name in (*GENERAL, "keywords")}


def test_the_cell_imports_its_params_alone():
    assert imported(INTERNAL / "lstm" / "cell.py") == {"lstmjax._src.lstm.params"}


def test_equations_know_no_loop():
    loops = {"scan", "chunked_scan", "remat", "lstm.fused", "lstm.implementations"}
    for name in ("cell", "variants", "params", "options"):
        assert not imported(INTERNAL / "lstm" / f"{name}.py") & {f"lstmjax._src.{loop}" for loop in loops}


def test_what_is_internal_is_imported_within_the_package_alone():
    for folder in ("experiments", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not {name for name in imported(path) if "._src" in name}, path


def test_sizes():
    assert len((INTERNAL / "lstm" / "cell.py").read_text().splitlines()) <= 80
    assert len(lines_of_code(INTERNAL / "scan.py")) <= 60


def test_the_cell_names_no_option_mask_or_mesh():
    names = {
        name
        for node in ast.walk(ast.parse((INTERNAL / "lstm" / "cell.py").read_text()))
        for name in (getattr(node, "id", None), getattr(node, "attr", None), getattr(node, "arg", None))
        if name
    }
    assert not {name for name in names for word in ("option", "mask", "axis", "mesh", "dropout") if word in name}


COUNT = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
import lstmjax
from lstmjax import lstm

folder, called = str(Path(lstmjax.__file__).parent), []
params, xs, lengths = lstm.init(jax.random.key(0), 3, 5), jnp.ones((2, 7, 3)), jnp.array([7, 3])
note = lambda frame, event, _: called.append(frame.f_code) if event == "call" else None
sys.setprofile(note)
lstm.apply(params, xs, lengths=lengths)
sys.setprofile(None)
ours = [code.co_name for code in called if code.co_filename.startswith(folder)]
print(len(ours), ours.count("validate"))
"""


def test_a_first_call_is_short_and_validates_once():
    """Calls of functions defined in this package while a program is traced; by a process without run-time checks."""
    ran = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True, cwd=ROOT)
    count, validations = map(int, ran.stdout.split())
    assert 50 < count <= 150
    assert validations == 1
