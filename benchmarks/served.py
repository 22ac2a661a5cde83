"""Subjects behind real servers: ``BENCHMARK_SUBJECT`` names one, in ``BENCHMARK_FOLDER``.

granian --interface wsgi benchmarks.served:application
python -m benchmarks.served PORT        # bjoern
"""

from __future__ import annotations

import gzip
import os
import sys
import typing as t
from pathlib import Path

from wsgi_isr import ISRMiddleware

from .peers.packages import PACKAGES
from .subjects import App
from .subjects import app
from .subjects import BODY
from .subjects import Environ
from .subjects import HTML


def constant(body: bytes, *more: tuple[str, str]) -> App:
    """What the server itself is able to."""
    headers = [HTML, ("Content-Length", str(len(body))), *more]

    def answer(environ: Environ, start_response: t.Any) -> t.Any:
        start_response("200 OK", headers.copy())
        return [body]

    return answer


def subject(name: str, folder: Path) -> App:
    if name == "constant":
        return constant(BODY)
    if name == "constant, gzip":
        return constant(gzip.compress(BODY), ("Content-Encoding", "gzip"))
    if name == "wsgi-isr":
        return ISRMiddleware(app, f"file://{folder}/pages")
    return PACKAGES[name](folder)


if "BENCHMARK_SUBJECT" in os.environ:
    application = subject(os.environ["BENCHMARK_SUBJECT"], Path(os.environ["BENCHMARK_FOLDER"]))

if __name__ == "__main__":
    import bjoern

    bjoern.run(application, "127.0.0.1", int(sys.argv[1]))
