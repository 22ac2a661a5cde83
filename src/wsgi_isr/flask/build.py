"""The default build id of a Flask app: a digest of its own Python files and templates."""

from __future__ import annotations

import os

from flask import Flask

from ..build import digest_of_files, files_under, is_code, is_own


def build_digest(app: Flask) -> str:
    """The same for the same files, on every machine.

    A deploy thus never serves pages of older code. Files of the app are those of its package.
    Where it is a single module, they are the modules beside it and packages (folders with an
    ``__init__.py``), but no other folder: the module may stand in somebody's home folder.
    Templates are those of the app's template folder and of all ``templates`` folders in packages.
    """
    root = app.root_path
    found = {}
    folders = [root]
    excluded = {app.instance_path}
    if not os.path.isfile(os.path.join(root, "__init__.py")):
        entries = _entries(root)
        found = {name: path for name, path in entries.items() if name.endswith(".py")}
        folders = [
            path
            for path in entries.values()
            if is_own(path, excluded) and os.path.isfile(os.path.join(path, "__init__.py"))
        ]
    for folder in folders:
        for path in files_under(folder, excluded):
            name = os.path.relpath(path, root)
            if is_code(name):
                found[name] = path
    if app.template_folder is not None:
        folder = os.path.join(root, app.template_folder)
        for path in files_under(folder, excluded):
            # Wherever that folder is.
            found[os.path.join("templates", os.path.relpath(path, folder))] = path
    return digest_of_files(found)


def _entries(folder: str) -> dict[str, str]:
    try:
        names = os.listdir(folder)
    except OSError:
        return {}
    paths = {name: os.path.join(folder, name) for name in names if not name.startswith(".")}
    return {
        name: path
        for name, path in paths.items()
        if not name.endswith(".py") or os.path.isfile(path)
    }
