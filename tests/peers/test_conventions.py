import re
from pathlib import Path

HERE = Path(__file__).parent


def test_the_tests_that_the_page_names_exist():
    page = (HERE.parents[1] / "docs" / "conventions.md").read_text()
    files = {path.stem: path.read_text() for path in HERE.glob("test_*.py")}
    defined = {name for text in files.values() for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}
    named = set(re.findall(r"`(test_\w+)`", page)) - set(files)
    assert named
    assert named <= defined
