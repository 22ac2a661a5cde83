"""The command line: run parts, print their tables, write all results into the docs."""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path

from . import report, targets
from .results import Results, markdown
from .subjects import ROOT

#: Parts and their modules, in the order in which they run.
PARTS = {
    "hits": "hits",
    "memory": "scale",
    "files": "storing",
    "import": "imports",
    "http": "throughput",
    "load": "stampede",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="What a page costs, beside other caches. docs/benchmarks.md tells more.",
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all of them by default"
    )
    parser.add_argument("--quick", action="store_true", help="see that it works; not to be quoted")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "build" / "benchmarks",
        help="folder for benchmarks.md, benchmarks.json and plots/; parts that it has from "
        "earlier runs stay (default: build/benchmarks; docs: the documentation)",
    )
    arguments = parser.parse_args()
    for name in arguments.parts:
        if name not in PARTS:
            parser.error(f"no part is called {name!r}")
    results = Results(arguments.out / "benchmarks.json")
    for name in arguments.parts or PARTS:
        print(f"{name} ...", flush=True)
        begun = time.monotonic()
        module = importlib.import_module(f".{PARTS[name]}", __package__)
        table = module.measure(arguments.quick)
        results.add(name, table, arguments.quick)
        print(markdown(table))
        print(f"  {time.monotonic() - begun:.0f} s\n", flush=True)
    report.write(results, arguments.out)
    print(targets.table(results))
    print(f"\nWritten to {arguments.out}")


if __name__ == "__main__":
    main()
