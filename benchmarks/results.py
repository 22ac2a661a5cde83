"""What was measured, kept in a JSON file, part by part, so that a run can go on where it ended."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import typing as t
from pathlib import Path

#: Rows by name, with figures by column.
Table = dict[str, dict[str, float]]

#: Versions of what is measured.
PACKAGES = ("bjoern", "cachelib", "django", "flask", "flask-caching", "granian", "gunicorn",
            "werkzeug", "whitenoise")  # fmt: skip

_notes: list[str] = []


def note(text: str) -> None:
    """Say something about the part that is running, in the results too."""
    print(f"  {text}", flush=True)
    _notes.append(text)


class Part(t.TypedDict):
    table: Table
    notes: list[str]
    quick: bool
    machine: str
    versions: str


class Results:
    """Parts by name, on disk.

    :param path: of the JSON file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.parts: dict[str, Part] = {}
        if path.exists():
            self.parts = json.loads(path.read_text("utf-8"))

    def add(self, name: str, table: Table, quick: bool) -> None:
        rounded = {
            row: {column: float(f"{value:.4g}") for column, value in values.items()}
            for row, values in table.items()
        }
        self.parts[name] = {
            "table": rounded,
            "notes": _notes.copy(),
            "quick": quick,
            "machine": machine(),
            "versions": versions(),
        }
        _notes.clear()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.parts, indent=1, ensure_ascii=False)
        self._path.write_text(f"{text}\n", "utf-8")

    def get(self, part: str, row: str, column: str) -> float | None:
        """A figure, ``None`` where it was not measured."""
        found = self.parts.get(part)
        return None if found is None else found["table"].get(row, {}).get(column)


def machine() -> str:
    """The machine and the versions, as far as they matter."""
    model = "unknown processor"
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    cores = len(os.sched_getaffinity(0))
    system = f"{platform.system()} {platform.release().partition('-')[0]}"
    return f"{cores} cores of {model}, {system}, Python {platform.python_version()}"


def versions() -> str:
    """What is installed here of what is measured."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            pass
    for program, option in (("nginx", "-v"), ("varnishd", "-V"), ("wrk", "-v"), ("node", "-v")):
        try:
            said = subprocess.run([program, option], capture_output=True, text=True, check=False)
        except OSError:
            continue
        first = (said.stdout + said.stderr).strip().splitlines()[0]
        found.append(f"{program} {first}" if program == "node" else first.partition(" Copy")[0])
    return "; ".join(found)


def markdown(table: Table) -> str:
    """A table with a column for whatever figure a row has."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for name, row in table.items():
        cells = [figure(row[column]) if column in row else "" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(value: float) -> str:
    """Three digits."""
    if abs(value) >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"
