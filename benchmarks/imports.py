"""Part ``import``: processor time of an import, in fresh interpreters by turns."""

from __future__ import annotations

import subprocess
import sys

from .results import Table
from .turns import median_and_spread

MODULES = ("wsgi_isr", "werkzeug.http", "wsgi_isr, again", "flask")
CODE = """
import time
begun = time.process_time_ns()
import {}
print(time.process_time_ns() - begun)
"""


def once(module: str) -> float:
    """Milliseconds; the file system's cache is warm, bytecode is written."""
    code = CODE.format(module.partition(",")[0])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    return int(done.stdout) / 1e6


def measure(quick: bool) -> Table:
    times: dict[str, list[float]] = {module: [] for module in MODULES}
    for turn in range(6 if quick else 31):
        for module in MODULES:
            taken = once(module)
            # The first one may have compiled.
            if turn:
                times[module].append(taken)
    table: Table = {}
    for module, values in times.items():
        middle, spread = median_and_spread(values)
        table[module] = {"ms": middle, "spread %": spread}
    for row in table.values():
        row["ratio"] = row["ms"] / table["werkzeug.http"]["ms"]
    return table
