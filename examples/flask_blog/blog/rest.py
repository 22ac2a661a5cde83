"""reStructuredText to HTML, with docutils.

Anybody can open the editor. So docutils passes no raw HTML and reads no files, and only
harmless links stay.
"""

from __future__ import annotations

import re
import threading
import typing as t

from docutils import nodes
from docutils.core import publish_doctree, publish_from_doctree
from docutils.parsers.rst import roles
from docutils.writers.html5_polyglot import Writer
from markupsafe import Markup

#: Levels of what docutils complains about.
_WARNING = 2
_ERROR = 3

_SETTINGS: dict[str, t.Any] = {
    "_disable_config": True,
    "doctitle_xform": False,
    "embed_stylesheet": False,
    "file_insertion_enabled": False,
    "halt_level": 5,
    "initial_header_level": "2",
    "output_encoding": "unicode",
    "raw_enabled": False,
    "report_level": _WARNING,
    "syntax_highlight": "none",
    "warning_stream": False,
}
_SAFE_LINK = re.compile(r"(?:https?|ftp|mailto):|[#/]", re.IGNORECASE)

#: docutils keeps state in its modules, and several threads render pages.
_lock = threading.Lock()

# The roles of Sphinx that the documentation of Python is full of.
for _role in "attr class const data exc func keyword meth mod".split():
    roles.register_generic_role(_role, nodes.literal)


def render(text: str) -> Markup:
    """Turn reStructuredText into HTML that is safe on a page.

    A text with errors in it is shown as it was typed.
    """
    with _lock:
        document = _parse(text)
        if _messages(document, _ERROR):
            return Markup('<pre class="plain">{}</pre>').format(text)
        _tidy(document)
        writer = Writer()
        publish_from_doctree(document, writer=writer, settings_overrides=_SETTINGS)
    return Markup(writer.parts["fragment"])


def complaints(text: str) -> list[str]:
    """What is wrong with a text, warnings included."""
    with _lock:
        messages = _messages(_parse(text), _WARNING)
    return [f"line {m.get('line', '?')}: {m.children[0].astext()}" for m in messages]


def is_table(text: str) -> bool:
    """Whether a text is a table that docutils understands."""
    with _lock:
        document = _parse(text)
        return not _messages(document, _WARNING) and any(document.findall(nodes.table))


def _parse(text: str) -> nodes.document:
    return publish_doctree(text, settings_overrides=_SETTINGS)


def _messages(document: nodes.document, level: int) -> list[nodes.system_message]:
    return [m for m in document.findall(nodes.system_message) if m["level"] >= level]


def _tidy(document: nodes.document) -> None:
    """Remove the warnings, which are for the editor, and links that may run code."""
    for message in _messages(document, 0):
        message.parent.remove(message)
    for problem in list(document.findall(nodes.problematic)):
        problem.parent.replace(problem, nodes.Text(problem.astext()))
    for link in list(document.findall(nodes.reference)):
        if "refuri" in link and not _SAFE_LINK.match(link["refuri"]):
            link.parent.replace(link, link.children)
