"""How Sphinx builds the site; CONTRIBUTING.md has the command."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

import generated  # noqa: E402

project = "wsgi-isr"
author = copyright = "the wsgi-isr contributors"
version = release = generated.PROJECT["version"]

extensions = ["myst_parser", "pallets_sphinx_themes", "sphinx.ext.autodoc"]
exclude_patterns = ["plots"]
# What docstrings have in single backticks is code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
myst_heading_anchors = 3
# JSON and consoles with comments, or cut short.
suppress_warnings = ["misc.highlighting_failure", "myst.domains"]

html_theme = "werkzeug"
html_title = f"wsgi-isr {version}"
html_show_sourcelink = False
html_show_copyright = False
html_sidebars = {"**": ["searchbox.html", "globaltoc.html"]}
html_theme_options = {"globaltoc_collapse": True, "globaltoc_maxdepth": 2}


def complete(app: Sphinx, name: str, source: list[str]) -> None:
    """Put in what comes from the code, and leave out what only the tests read."""
    text = generated.complete(source[0])
    # Lines stay where they are, so that warnings name the right ones.
    hidden = re.compile(r"^<!--.*?-->$", re.DOTALL | re.MULTILINE)
    source[0] = hidden.sub(lambda found: "\n" * found[0].count("\n"), text)


def setup(app: Sphinx) -> None:
    app.connect("source-read", complete)
