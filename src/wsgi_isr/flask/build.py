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

    A deploy thus never serves pages of older code.
    """
    digest = hashlib.sha256()
    for name, path in sorted(_files(app)):
        with open(path, "rb") as file:
            content = file.read()
        # Lengths keep names and contents apart.
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _files(app: Flask) -> Iterator[tuple[str, str]]:
    roots = [(app.root_path, (".py",))]
    if app.template_folder is not None:
        roots.append((os.path.join(app.root_path, app.template_folder), ("",)))
    for root, endings in roots:
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if _is_own(app, os.path.join(folder, name))]
            for name in names:
                path = os.path.join(folder, name)
                if name.endswith(endings) and not name.startswith(".") and os.path.isfile(path):
                    yield os.path.relpath(path, app.root_path).replace(os.sep, "/"), path


def _is_own(app: Flask, folder: str) -> bool:
    name = os.path.basename(folder)
    if name.startswith(".") or name in _FOREIGN or folder == app.instance_path:
        return False
    # A virtual environment beside the app.
    return not os.path.exists(os.path.join(folder, "pyvenv.cfg"))
