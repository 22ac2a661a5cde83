"""The default build id of an app: a digest of its own code."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Container, Iterator, Mapping

#: Folders of packages that are installed.
INSTALLED = frozenset({"dist-packages", "site-packages"})
#: Folders that hold no code of the app.
_FOREIGN = INSTALLED | {"__pycache__", "node_modules", "static"}


def digest_of_code(folders: Mapping[str, str], excluded: Container[str] = ()) -> str:
    """The same for the same code, on every machine.

    Code is Python files, compiled translations, and all that is in folders of templates.

    :param folders: paths, by names that do not depend on where the app is installed.
    :param excluded: paths of folders with what users uploaded, and the like.
    """
    found: dict[bytes, str] = {}
    for label, root in folders.items():
        for path in _files_under(root, excluded):
            name = os.path.join(label, os.path.relpath(path, root)).replace(os.sep, "/")
            if name.endswith((".py", ".mo")) or "templates" in name.split("/")[:-1]:
                found[os.fsencode(name)] = path
    digest = hashlib.sha256()
    for encoded, path in sorted(found.items()):
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError:
            # It vanished, or is not ours to read, so the app does not read it either.
            continue
        # Lengths keep names and contents apart.
        digest.update(b"%s\0%d\0" % (encoded, len(content)))
        digest.update(content)
    return digest.hexdigest()[:16]


def _files_under(root: str, excluded: Container[str]) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if _is_own(os.path.join(folder, name), excluded)]
        for name in names:
            path = os.path.join(folder, name)
            if not name.startswith(".") and os.path.isfile(path):
                yield path


def _is_own(folder: str, excluded: Container[str]) -> bool:
    name = os.path.basename(folder)
    if name.startswith(".") or name in _FOREIGN or folder in excluded:
        return False
    # A virtual environment beside the app.
    return not os.path.exists(os.path.join(folder, "pyvenv.cfg"))
