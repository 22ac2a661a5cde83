"""A site whose renders take 200 ms, for `benchmarks.stampede`: gunicorn serves ``application``.

/sleeps/NAME    /computes/NAME    /cold/NAME    pages, whose renders are written down
/ready                                          no page
"""

from __future__ import annotations

import os
import time
import typing as t

from wsgi_isr import ISRMiddleware

from .subjects import BODY, HTML, Environ

#: Seconds that a render takes, and that a page is fresh.
RENDER, WINDOW = 0.2, 1
RULES = {"/cold/*": 3600, "/sleeps/*": WINDOW, "/computes/*": WINDOW}
#: Options with which workers leave renders to processes that do nothing else.
DEDICATED: dict[str, t.Any] = {"workers": 0}


def app(environ: Environ, start_response: t.Any) -> t.Any:
    kind = environ["PATH_INFO"].split("/")[1]
    if kind == "computes":
        # Of the processor, and all the time with the interpreter's lock.
        end = time.thread_time() + RENDER
        while time.thread_time() < end:
            pass
    elif f"/{kind}/*" in RULES:
        time.sleep(RENDER)
    if f"/{kind}/*" in RULES:
        with open(os.environ["BENCHMARK_RENDERS"], "a") as file:
            file.write(f"{environ['PATH_INFO']}\n")
    start_response("200 OK", [HTML, ("Content-Length", str(len(BODY)))])
    return [BODY]


if "BENCHMARK_RENDERS" in os.environ:
    options = DEDICATED if "BENCHMARK_DEDICATED" in os.environ else {}
    url = f"file://{os.environ['BENCHMARK_FOLDER']}"
    application = ISRMiddleware(app, url, rules=t.cast(t.Any, RULES), **options)
