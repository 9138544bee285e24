"""`python -m sphinx -W --keep-going -b html docs docs/_build/html`: the site, with every example executed."""

import ast
import hashlib
import inspect
import os
import re
import sys
import textwrap
from importlib import metadata
from pathlib import Path

from sphinx import addnodes

import lstmjax

HERE = Path(__file__).parent
ROOT = HERE.parent

project = "lstmjax"
author = "the authors of lstmjax"
project_copyright = "the authors of lstmjax, Apache-2.0"
release = version = lstmjax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "lstmjax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp, .go"

# Pages are plain Markdown: headings have the anchors that GitHub gives them.
myst_heading_anchors = 4


def digest():
    """A name for all that an example may depend on next to its page: this code, the configs, Python and packages."""
    packages = sorted((package.name, package.version) for package in metadata.distributions())
    found = hashlib.sha256(f"{sys.version} {packages}".encode() + (HERE / "matplotlibrc").read_bytes())
    for path in sorted(path for folder in ("lstmjax", "experiments", "configs") for path in (ROOT / folder).rglob("*")):
        if path.suffix in (".py", ".toml", ".html", ".css", ".js"):
            found.update(path.read_bytes())
    return found.hexdigest()[:16]


# An example that no longer runs is an error. Pages that ran are kept until they, or the code, change.
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / "executed" / digest())
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

# Figures as SVG, in a style of their own. Kernels inherit the environment.
ipython = HERE / "_build" / "ipython"
(ipython / "profile_default").mkdir(parents=True, exist_ok=True)
(ipython / "profile_default" / "ipython_kernel_config.py").write_text(
    "c.InlineBackend.figure_formats = {'svg'}\nc.HistoryManager.enabled = False\nc.IPKernelApp.log_level = 'ERROR'\n"
)
os.environ |= {
    "IPYTHONDIR": str(ipython),
    "MATPLOTLIBRC": str(HERE / "matplotlibrc"),
    "JAX_PLATFORMS": "cpu",
    "COLUMNS": "100",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # `python` in a cell is this one
}

# Docstrings: napoleon reads Args, Returns and Raises; their Markdown is translated below.
autodoc_member_order = "bysource"
autodoc_typehints = "none"
default_role = "code"
maximum_signature_line_length = 88
napoleon_use_ivar = True
napoleon_use_rtype = False

# Where there is a network: `-b linkcheck -D nb_execution_mode=off -D suppress_warnings=myst-nb.lexer`.
linkcheck_timeout = 20
linkcheck_retries = 2


def setup(app):
    """Connect what follows to the events of Sphinx."""
    app.connect("autodoc-process-signature", as_written)
    app.connect("autodoc-process-docstring", as_rst, priority=400)  # before napoleon
    app.connect("doctree-read", folders_as_text)


def as_written(app, what, name, obj, options, signature, returns):
    """Show a function's signature as its source has it: an annotation of jaxtyping unfolds to a page of unions."""
    if what not in ("function", "method") or not inspect.isfunction(obj):
        return None
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(obj))).body
    arguments = function.args
    if what == "method":
        arguments.args = arguments.args[1:]
    return f"({ast.unparse(arguments)})", ast.unparse(function.returns) if function.returns else None


def as_rst(app, what, name, obj, options, lines):
    """Translate what docstrings have of Markdown: literal stars, code with a plural, equations in blocks, tables."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines).rstrip())
    lines[:] = [*"\n\n".join(map(paragraph_as_rst, paragraphs)).split("\n"), ""]


def paragraph_as_rst(text):
    """Translate one paragraph."""
    first = text.lstrip("\n").lstrip()
    if first.startswith(">>>"):
        return text
    if first.startswith("|"):
        rows = [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in text.split("\n")]
        cells = [
            f"   {'  -' if number else '* -'} {cell}" for row in rows[:1] + rows[2:] for number, cell in enumerate(row)
        ]
        return "\n".join([".. list-table::", "   :header-rows: 1", "", *cells])
    if text.startswith("    "):
        return ".. code-block:: text\n\n" + text
    parts = re.split(r"(`[^`]*`)", text)
    for number, part in enumerate(parts):
        if number % 2 == 0:
            parts[number] = (r"\ " if number and part[:1].isalnum() else "") + re.sub(
                r"([*|\\]|_(?=\W))", r"\\\1", part
            )
    return "".join(parts)


def folders_as_text(app, doctree):
    """A page links to folders of the repository, of which a site has none."""
    for link in list(doctree.findall(addnodes.pending_xref)):
        if (HERE / link["reftarget"]).is_dir():
            link.replace_self(link.children)
