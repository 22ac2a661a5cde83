"""One process of the project, in which tests edit and visit: lines of Python in, JSON out."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

from library.wsgi import application  # noqa: F401 - models are there from now on

from shelf import editing


def main() -> None:
    Path(os.environ["LIBRARY_DATA"]).mkdir(exist_ok=True)
    editing.call_command("migrate", verbosity=0, run_syncdb=True)
    editing.build()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps(None), file=out, flush=True)
    for line in sys.stdin:
        code = json.loads(line)
        try:
            try:
                answer = {"value": eval(code, vars(editing))}
            except SyntaxError:
                exec(code, vars(editing))
                answer = {"value": None}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer, default=str), file=out, flush=True)


if __name__ == "__main__":
    main()
