"""Part ``import``: processor time of an import, in fresh interpreters by turns."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from .results import Table
from .turns import median_and_spread

MODULES = ("wsgi_isr", "werkzeug.http", "wsgi_isr, again", "flask")
CODE = """
import time
begun = time.process_time_ns()
import {}
print(time.process_time_ns() - begun)
"""


def once(module: str, bytecode: str) -> float:
    """Milliseconds of an import.

    :param bytecode: folder for what has been compiled, as an installed package has it.
    """
    code = CODE.format(module.partition(",")[0])
    environ = os.environ | {"PYTHONPYCACHEPREFIX": bytecode}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, env=environ, text=True
    )
    return int(done.stdout) / 1e6


def measure(quick: bool) -> Table:
    times: dict[str, list[float]] = {module: [] for module in MODULES}
    with tempfile.TemporaryDirectory() as bytecode:
        for turn in range(6 if quick else 31):
            for module in MODULES:
                taken = once(module, bytecode)
                # The first one has compiled.
                if turn:
                    times[module].append(taken)
    table: Table = {}
    for module, values in times.items():
        middle, spread = median_and_spread(values)
        table[module] = {"ms": middle, "spread %": spread}
    for row in table.values():
        row["ratio"] = row["ms"] / table["werkzeug.http"]["ms"]
    return table
