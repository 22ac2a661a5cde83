"""The first posts: docstrings of the modules of Python's standard library.

Sources are parsed, never imported: some modules do things when they are imported.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
import sysconfig
import textwrap
import typing as t
import warnings
from dataclasses import dataclass
from pathlib import Path

from .docstring import to_line, to_rest

#: Folders of the standard library that are not part of its documentation.
_SKIPPED = {
    "__pycache__",
    "config",
    "dist-packages",
    "ensurepip",
    "idlelib",
    "lib-dynload",
    "lib2to3",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}
#: Modules without a source file, which every interpreter has loaded anyway.
_BUILTIN = ("builtins", "errno", "gc", "itertools", "marshal", "sys", "time")

#: Tags for what a module is about, as in the contents of the library reference.
_SUBJECTS = {
    "compression": "bz2 compression gzip lzma tarfile zipfile zlib",
    "concurrency": """
        asyncio asyncore concurrent multiprocessing queue sched selectors signal
        socketserver subprocess threading
    """,
    "data-types": """
        array bisect calendar collections copy copyreg dataclasses datetime enum
        functools graphlib heapq itertools operator pprint reprlib types typing
        weakref zoneinfo
    """,
    "debugging": """
        bdb cgitb cProfile doctest faulthandler inspect pdb profile pstats timeit
        trace traceback tracemalloc unittest warnings
    """,
    "desktop": "tkinter turtle",
    "files": """
        configparser csv dbm filecmp fileinput fnmatch glob io linecache marshal
        mimetypes netrc ntpath os pathlib pickle pickletools plistlib posixpath
        shelve shutil sqlite3 stat tempfile tomllib
    """,
    "internet": """
        asynchat base64 cgi email ftplib http imaplib ipaddress json mailbox
        mailcap nntplib nturl2path poplib quopri smtpd smtplib socket ssl telnetlib
        urllib uu webbrowser wsgiref xmlrpc
    """,
    "language": """
        __future__ abc annotationlib ast builtins code codeop compileall contextlib
        dis gc imp importlib keyword modulefinder opcode pkgutil py_compile pyclbr
        runpy site symtable sys sysconfig tabnanny token tokenize zipimport
    """,
    "markup": "html xml",
    "multimedia": "aifc chunk colorsys imghdr sndhdr sunau wave",
    "numbers": """
        decimal fractions hashlib hmac numbers random secrets statistics time
    """,
    "packaging": "distutils venv zipapp",
    "terminal": """
        argparse cmd curses getopt getpass optparse pipes pty pydoc rlcompleter
        shlex tty
    """,
    "text": """
        codecs difflib encodings gettext locale re string stringprep textwrap
    """,
}


@dataclass(frozen=True)
class Module:
    """One post: the name is the title, the body is reStructuredText."""

    name: str
    summary: str
    body: str
    tags: tuple[str, ...]


def documented_modules() -> t.Iterator[Module]:
    """Read every public module that has a docstring."""
    for path, parts in _sources(Path(sysconfig.get_path("stdlib"))):
        try:
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        docstring = ast.get_docstring(tree)
        if docstring:
            is_package = path.stem == "__init__"
            yield _module(".".join(parts), docstring, _contents(tree), is_package)
    for name in sorted(set(_BUILTIN).intersection(sys.builtin_module_names)):
        docstring = importlib.import_module(name).__doc__
        if docstring:
            yield _module(name, docstring.expandtabs())


def tags(name: str, is_package: bool = False) -> tuple[str, ...]:
    """The package that a module belongs to, and what the package is about."""
    top, dot, _ = name.partition(".")
    found = {subject for subject, modules in _SUBJECTS.items() if top in modules.split()}
    if dot or is_package:
        found.add(top)
    return tuple(sorted(found or {"other"}))


def _sources(
    folder: Path, package: tuple[str, ...] = ()
) -> t.Iterator[tuple[Path, tuple[str, ...]]]:
    """Find the source files under a folder, with the names of their modules."""
    for path in sorted(folder.iterdir()):
        if path.name == "__init__.py" and package:
            yield path, package
        elif not _is_public(path.stem):
            continue
        elif path.suffix == ".py":
            yield path, (*package, path.stem)
        elif path.is_dir():
            yield from _sources(path, (*package, path.name))


def _is_public(part: str) -> bool:
    if part == "__future__":
        return True
    return not (part.startswith(("_", "config-")) or part in _SKIPPED)


def _module(name: str, docstring: str, contents: str = "", is_package: bool = False) -> Module:
    text = docstring.strip("\n")
    # Some docstrings begin with the module's name, as a heading or in a sentence.
    names = f"(?:{re.escape(name)}|{re.escape(name.rpartition('.')[2])})(?:\\.py)?"
    text = re.sub(rf"\A\W*{names}[ ~=-]*\n(?:[~=-]+\n)?", "", text).strip("\n")
    text = re.sub(rf"\A(?:Module )?{names} +--? +", "", text)
    summary, _, text = text.partition("\n\n")
    summary = re.sub(r"(?::\w+:)?`+([^`]+)`+", r"\1", summary)  # plain text, no code
    summary = textwrap.shorten(summary, 300, placeholder=" …")
    body = f"{to_rest(text)}\n\n{contents}".strip()
    return Module(name, summary, body, tags(name, is_package))


def _contents(tree: ast.Module) -> str:
    """List the public classes and functions of a module, with their docstrings."""
    names = _exported(tree)
    found: dict[str, list[str]] = {"Classes": [], "Functions": []}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            kind, arguments = "Classes", [ast.unparse(base) for base in node.bases]
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            kind, arguments = "Functions", [ast.unparse(node.args)]
        else:
            continue
        docstring = ast.get_docstring(node)
        if node.name.startswith("_") or (names and node.name not in names):
            continue
        if docstring:
            call = f"{node.name}({', '.join(arguments)})"
            if len(call) > 90 or "`" in call:
                call = f"{node.name}(…)"
            found[kind].append(f"``{call}``\n    {to_line(docstring)}")
    return "\n\n".join(
        f"{kind}\n{'-' * len(kind)}\n\n" + "\n".join(entries)
        for kind, entries in found.items()
        if entries
    )


def _exported(tree: ast.Module) -> set[str]:
    """Read ``__all__``, as far as it is written out."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return {
                item.value
                for item in ast.walk(node.value)
                if isinstance(item, ast.Constant) and isinstance(item.value, str)
            }
    return set()
