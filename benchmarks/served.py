"""Subjects behind real servers: ``BENCHMARK_SUBJECT`` names one, in ``BENCHMARK_FOLDER``.

granian --interface wsgi benchmarks.served:application
python -m benchmarks.served PORT        # bjoern
"""

from __future__ import annotations

import os
import sys
import typing as t
from pathlib import Path

from wsgi_isr import ISRMiddleware

from .peers.packages import PACKAGES
from .subjects import App, DictCache, Environ, Response, app, request


def constant(**more: str) -> App:
    """What the server itself is able to: always the very answer that a hit gets."""
    isr = ISRMiddleware(app, "memory://")
    for _ in range(3):
        hit = Response(isr, request(**more))
    headers = list(hit.headers.items())
    isr.close()

    def answer(environ: Environ, start_response: t.Any) -> t.Any:
        start_response("200 OK", headers.copy())
        return [hit.body]

    return answer


def subject(name: str, folder: Path) -> App:
    if name == "constant":
        return constant()
    if name == "constant, gzip":
        return constant(HTTP_ACCEPT_ENCODING="gzip")
    if name == "by hand":
        return DictCache(constant())
    if name == "wsgi-isr":
        return ISRMiddleware(app, f"file://{folder}/pages")
    return PACKAGES[name](folder)


if "BENCHMARK_SUBJECT" in os.environ:
    application = subject(os.environ["BENCHMARK_SUBJECT"], Path(os.environ["BENCHMARK_FOLDER"]))

if __name__ == "__main__":
    import bjoern

    bjoern.run(application, "127.0.0.1", int(sys.argv[1]))
