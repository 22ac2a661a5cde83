"""The default build id of a Flask app: a digest of its own Python files and templates."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

from flask import Flask

#: Folders that hold no code of the app.
_FOREIGN = frozenset({"__pycache__", "node_modules", "site-packages", "static"})


def build_digest(app: Flask) -> str:
    """The same for the same files, on every machine.

    A deploy thus never serves pages of older code. Files of the app are those of its package.
    Where it is a single module, they are the modules beside it and packages (folders with an
    ``__init__.py``), but no other folder: the module may stand in somebody's home folder.
    Templates are those of the app's template folder and of all ``templates`` folders in packages.
    """
    digest = hashlib.sha256()
    for name, path in sorted(_files(app).items()):
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError:
            # It vanished, or is not ours to read, so the app does not read it either.
            continue
        # Lengths keep names and contents apart.
        digest.update(b"%s\0%d\0" % (name, len(content)))
        digest.update(content)
    return digest.hexdigest()[:16]


def _files(app: Flask) -> dict[bytes, str]:
    """Paths of all files, by names that do not depend on where the app is installed."""
    root = app.root_path
    found = {}
    folders = [root]
    if not os.path.isfile(os.path.join(root, "__init__.py")):
        entries = _entries(root)
        found = {name: path for name, path in entries.items() if name.endswith(".py")}
        folders = [
            path
            for path in entries.values()
            if _is_own(app, path) and os.path.isfile(os.path.join(path, "__init__.py"))
        ]
    for folder in folders:
        for path in _walk(app, folder):
            name = os.path.relpath(path, root)
            if name.endswith(".py") or "templates" in name.split(os.sep)[:-1]:
                found[name] = path
    if app.template_folder is not None:
        folder = os.path.join(root, app.template_folder)
        for path in _walk(app, folder):
            # Wherever that folder is.
            found[os.path.join("templates", os.path.relpath(path, folder))] = path
    return {
        os.fsencode(name.replace(os.sep, "/")): path
        for name, path in found.items()
        if os.path.isfile(path)
    }


def _entries(folder: str) -> dict[str, str]:
    try:
        names = os.listdir(folder)
    except OSError:
        return {}
    return {name: os.path.join(folder, name) for name in names if not name.startswith(".")}


def _walk(app: Flask, root: str) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if _is_own(app, os.path.join(folder, name))]
        yield from (os.path.join(folder, name) for name in names if not name.startswith("."))


def _is_own(app: Flask, folder: str) -> bool:
    name = os.path.basename(folder)
    if name.startswith(".") or name in _FOREIGN or folder == app.instance_path:
        return False
    # A virtual environment beside the app.
    return not os.path.exists(os.path.join(folder, "pyvenv.cfg"))
