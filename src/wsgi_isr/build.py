"""The default build id of an app: a digest of its own Python files and templates."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Container, Iterator, Mapping

#: Folders of packages that are installed.
INSTALLED = frozenset({"dist-packages", "site-packages"})
#: Folders that hold no code of the app.
_FOREIGN = INSTALLED | {"__pycache__", "node_modules", "static"}


def digest_of_files(files: Mapping[str, str]) -> str:
    """The same for the same files, on every machine.

    :param files: paths, by names that do not depend on where the app is installed.
    """
    digest = hashlib.sha256()
    for name, path in sorted((os.fsencode(n.replace(os.sep, "/")), p) for n, p in files.items()):
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


def files_under(root: str, excluded: Container[str] = ()) -> Iterator[str]:
    """All files of an app in a folder, those of foreign and hidden folders left out."""
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if is_own(os.path.join(folder, f), excluded)]
        for name in names:
            path = os.path.join(folder, name)
            if not name.startswith(".") and os.path.isfile(path):
                yield path


def is_own(folder: str, excluded: Container[str] = ()) -> bool:
    """Whether a folder may hold code of the app.

    :param excluded: folders with what users uploaded, and the like.
    """
    name = os.path.basename(folder)
    if name.startswith(".") or name in _FOREIGN or folder in excluded:
        return False
    # A virtual environment beside the app.
    return not os.path.exists(os.path.join(folder, "pyvenv.cfg"))


def is_code(name: str) -> bool:
    """Whether a file is a Python file, or in a folder of templates."""
    return name.endswith(".py") or "templates" in name.split(os.sep)[:-1]
