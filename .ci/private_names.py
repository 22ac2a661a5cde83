"""Finds private names of other packages: what they may change in any release.

    python .ci/private_names.py src/wsgi_isr

A name with one underscore in front is ours if the package itself defines it. Of a class that
extends another package's class, also the names that it would share with that one are found.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

# Documented, in spite of their names. On objects of others, as flask.g, ours begin with OURS.
DOCUMENTED = {"_asdict", "_exit", "_field_defaults", "_fields", "_make", "_meta", "_replace"}
OURS = ("_isr", "_wsgi_isr")
BY_NAME = {"attrgetter", "delattr", "getattr", "hasattr", "methodcaller", "setattr", "__setattr__"}


def is_private(name: str) -> bool:
    # Those of enum and ctypes, as _missing_, are documented.
    if name[:1] != "_" or name[:2] == "__" or name[-1] == "_":
        return False
    return name not in DOCUMENTED and not name.startswith(OURS)


def defined(tree: ast.AST) -> Iterator[str]:
    """The names that a module defines: in itself, in its classes, on ``self``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                yield node.attr
        elif isinstance(node, ast.Assign) and "__slots__" in map(ast.unparse, node.targets):
            yield from (c.value for c in ast.walk(node.value) if isinstance(c, ast.Constant))


def foreign_names(tree: ast.AST, package: str) -> dict[str, str]:
    """What a module imports from other packages: local name to full name."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return {name: full for name, full in names.items() if full.split(".")[0] != package}


def private_names_of(full: str) -> set[str]:
    """The private names of a class in another package, those on ``self`` included."""
    module, rest = full, []
    while module:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            rest.insert(0, last)
            continue
        for name in rest:
            found = getattr(found, name)
        break
    else:
        raise ModuleNotFoundError(full)
    names: set[str] = set()
    for base in inspect.getmro(found) if inspect.isclass(found) else ():
        names.update(vars(base))
        try:
            names.update(re.findall(r"\bself\.(_\w+)", inspect.getsource(base)))
        except (OSError, TypeError):  # built in
            pass
    return set(filter(is_private, names))


def private_modules(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        full = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and not node.level:
        full = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        return
    yield from (name for name in full if any(map(is_private, name.split("."))))


def check(tree: ast.Module, package: str, own: set[str]) -> Iterator[tuple[int, str]]:
    """The line and the text of each private name that a module takes from elsewhere."""
    foreign = foreign_names(tree, package)
    only_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        for name in private_modules(node):
            top = name.split(".")[0]
            if top != package and not (top == "_typeshed" and node in only_types):
                yield node.lineno, name
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            text = ast.unparse(node)
            root = re.split(r"\W", text)[0]
            if node.attr not in own or root in foreign:
                yield node.lineno, text
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in BY_NAME:
            for argument in node.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    for name in argument.value.split("."):
                        if is_private(name) and name not in own:
                            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            # What is in a __dict__, by its name.
            name = str(node.slice.value)
            if re.search(r"__dict__$|^vars\(", ast.unparse(node.value)) and is_private(name):
                if name not in own:
                    yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.ClassDef):
            yield from shared(node, foreign)


def shared(node: ast.ClassDef, foreign: dict[str, str]) -> Iterator[tuple[int, str]]:
    """The names that a class has together with a class of another package that it extends."""
    used = {name for name in defined(node) if is_private(name)}
    used |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and is_private(n.attr)}
    for base in node.bases if used else ():
        root, _, rest = ast.unparse(base).partition("[")[0].partition(".")
        full = ".".join(filter(None, [foreign.get(root, ""), rest]))
        if root in foreign and full.split(".")[0] != "typing":
            for name in sorted(used & private_names_of(full)):
                yield node.lineno, f"{name} of {full}, in {node.name}"


def main(folder: str) -> int:
    root = Path(folder)
    trees = {path: ast.parse(path.read_text("utf-8")) for path in sorted(root.rglob("*.py"))}
    own = {name for tree in trees.values() for name in defined(tree)}
    own |= {path.stem for path in trees}
    found = [
        f"{path}:{line}: private name of another package: {text}"
        for path, tree in trees.items()
        for line, text in sorted(set(check(tree, root.name, own)))
    ]
    print(*found, f"{len(trees)} files, {len(found)} private names", sep="\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
