"""A module as the command line names one: its stale pages are rendered by other processes.

``REGENERATED_STORE`` is the URL of the store. A page shows the process that has rendered it and the
text of the file ``REGENERATED_CONTENT``, in whose folder a file ``hold`` keeps renders from ending;
those that have begun leave a file ``begun-PID``.
"""

from __future__ import annotations

import os
import time
import typing as t
from pathlib import Path

from steps import HOLD

from wsgi_isr import ISRMiddleware
from wsgi_isr import Rule

CONTENT = Path(os.environ["REGENERATED_CONTENT"])


def site(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
    text = CONTENT.read_text()
    hold = CONTENT.with_name("hold")
    if hold.exists():
        CONTENT.with_name(f"begun-{os.getpid()}").touch()
        deadline = time.monotonic() + HOLD
        while hold.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{text} by {os.getpid()}".encode()]


app = ISRMiddleware(
    site,
    os.environ["REGENERATED_STORE"],
    rules={"/**": Rule(revalidate=False)},
    base_url="http://localhost",
    workers=0,
)
