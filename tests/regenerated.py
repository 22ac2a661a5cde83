"""A module as the command line names one: its stale pages are rendered by other processes.

``REGENERATED_STORE`` is the URL of the store. A page shows the process that has rendered it and the
text of the file ``REGENERATED_CONTENT``, in whose folder a file ``hold`` keeps renders from ending;
those that have begun leave a file ``begun-PID``. `Regenerator` is such a process, `web_worker` a
middleware of the test's own process for the same pages.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import typing as t
from pathlib import Path

from steps import HOLD, PATIENCE

from wsgi_isr import ISRMiddleware, Rule

OPTIONS: dict[str, t.Any] = {
    "rules": {"/**": Rule(revalidate=False, query=("q",), vary={"Accept-Language": ["en", "de"]})},
    "base_url": "http://localhost",
    "build_id": "a build",
    "workers": 0,
}


def render() -> str:
    content = Path(os.environ["REGENERATED_CONTENT"])
    text = content.read_text()
    hold = content.with_name("hold")
    if hold.exists():
        content.with_name(f"begun-{os.getpid()}").touch()
        deadline = time.monotonic() + HOLD
        while hold.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
    return f"{text} by {os.getpid()}"


def create_app() -> ISRMiddleware:
    def site(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [render().encode()]

    return ISRMiddleware(site, os.environ["REGENERATED_STORE"], **OPTIONS)


def create_flask_app() -> t.Any:
    from flask import Flask

    from wsgi_isr.flask import ISR

    app = Flask("regenerated")
    app.config.update(ISR_CACHE=os.environ["REGENERATED_STORE"])
    app.config.update({f"ISR_{name.upper()}": value for name, value in OPTIONS.items()})
    app.add_url_rule("/<path:path>", "page", lambda path: render())
    ISR(app)
    return app


#: The two commands.
PLAIN = ["wsgi_isr", "regenerated:create_app()"]
FLASK = ["flask", "--app", "regenerated:create_flask_app", "isr"]


class Regenerator:
    """A process that renders, and has said that it does."""

    def __init__(self, store: str, content: Path, command: list[str]) -> None:
        environment = {**os.environ, "REGENERATED_STORE": store}
        environment["REGENERATED_CONTENT"] = str(content)
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", *command, "regenerate"],
            cwd=Path(__file__).parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        assert any("Regenerating" in line for line in self.process.stdout)
        self.begun = content.with_name(f"begun-{self.process.pid}")

    @property
    def signature(self) -> str:
        return f"by {self.process.pid}"

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


def web_worker(store: str, content: Path, **options: t.Any) -> ISRMiddleware:
    def site(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"{content.read_text()} here".encode()]

    return ISRMiddleware(site, store, **{**OPTIONS, **options})
