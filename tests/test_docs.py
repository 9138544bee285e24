"""What the documentation points to is there, and what it says is run; the examples run as the site is built."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted(page for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")] if "_build" not in page.parts)
FENCE = re.compile(r"^ *(```+|~~~+).*?^ *\1 *$", re.DOTALL | re.MULTILINE)
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
IMPORTED = re.compile(r"^from ([\w.]+) import (\w+) as \2$", re.MULTILINE)
LINK = re.compile(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)")


def anchors(page):
    """Those of headings, as GitHub and MyST make them."""
    found = []
    for heading in re.findall(r"^#+ +(.*?) *#*$", FENCE.sub("", page.read_text()), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")
        again = found.count(slug)
        found.append(f"{slug}-{again}" if again else slug)
    return found


def broken(page):
    """Relative links that lead nowhere."""
    wrong = []
    for target in LINK.findall(re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        if not there.exists() or (anchor and (there.suffix != ".md" or anchor not in anchors(there))):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    assert broken(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "other.md").write_text("# What `units` means\n\n## Is it 1x1?\n\n## Is it 1x1?\n")
    good = "[a](other.md) [b](other.md#what-units-means) [c](other.md#is-it-1x1-1) [d](#here) <http://x.y> `[e](none)`"
    bad = "[a](none.md) [b](other.md#nowhere) [c](#nowhere) [d](other.md#is-it-1x1-2)"
    page = tmp_path / "page.md"
    page.write_text(f"# Here\n\n{good}\n\n```\n[f](none.md)\n```\n\n{bad}\n")
    assert broken(page) == ["none.md", "other.md#nowhere", "#nowhere", "other.md#is-it-1x1-2"]


def test_every_page_is_in_a_table_of_contents():
    listed = {ROOT / "docs" / "index.md"}
    for page in PAGES:
        for entries in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL):
            listed |= {page.parent / f"{name}.md" for name in re.findall(r"^\w[\w/]*$", entries, re.MULTILINE)}
    assert listed == {page for page in PAGES if page.is_relative_to(ROOT / "docs")}


def test_all_that_is_public_is_in_the_api_reference():
    reference = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    modules = dict(re.findall(r"automodule:: (lstmjax\.[\w.]+)\n +:members:(.*)", reference))
    named = {name.strip() for names in modules.values() for name in names.split(",")}
    named |= set(re.findall(r"auto(?:class|function):: lstmjax\.(?:\w+\.)*(\w+)", reference))
    whole = {module for module, names in modules.items() if not names}  # with all that they define
    offered = [line for file in ROOT.glob("lstmjax/**/__init__.py") for line in IMPORTED.findall(file.read_text())]
    assert len(offered) > 50
    wanting = [f"{source}.{name}" for source, name in offered if name not in named and source not in whole]
    assert [name for name in wanting if name not in modules] == []


@pytest.mark.parametrize("page", ["docs/migrate.md"])
def test_every_line_said_to_be_the_same_here_is_run(page):
    text = (ROOT / page).read_text()
    run = "".join(CELL.findall(text))
    rows = re.findall(r"^\|.*\| here \|\n\|[- |]*\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    lines = [
        line for table in rows for row in table.splitlines() for line in re.findall(r"`([^`]+)`", row.split("|")[-2])
    ]
    assert len(lines) > 50
    assert [line for line in lines if line not in run] == []
