"""Prints each dependency of an extra at its lower bound, as constraints for pip.

    python .ci/lowest.py test-core > lowest.txt
    pip install --constraint lowest.txt '.[test-core]'

A bound that was never released fails there; one without a bound fails here.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

REQUIREMENT = re.compile(r"([\w.-]+)(?:\[([\w,-]+)\])?\s*([^;]*)(;.*)?")


def requirements(project: dict[str, object], extra: str) -> Iterator[str]:
    """What an extra needs, with the extras of our own that it names."""
    for text in project["optional-dependencies"][extra]:  # type: ignore[index]
        found = REQUIREMENT.fullmatch(text)
        if found and found[1] == project["name"]:
            for other in (found[2] or "").split(","):
                yield from requirements(project, other)
        else:
            yield text


def lowest(project: dict[str, object], extra: str) -> list[str]:
    bounds: dict[str, str] = {}
    texts = [*project["dependencies"], *requirements(project, extra)]  # type: ignore[misc]
    for text in texts:
        found = REQUIREMENT.fullmatch(text)
        bound = found and re.search(r">=\s*([\w.]+)", found[3])
        if not found or not bound:
            raise ValueError(f"no lower bound: {text}")
        constraint = f"{found[1]}=={bound[1]}{found[4] or ''}"
        if bounds.setdefault(found[1].lower(), constraint) != constraint:
            raise ValueError(f"two lower bounds: {bounds[found[1].lower()]} and {constraint}")
    return sorted(bounds.values())


def main(extra: str, pyproject: str = "pyproject.toml") -> None:
    project = tomllib.loads(Path(pyproject).read_text("utf-8"))["project"]
    print(*lowest(project, extra), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
