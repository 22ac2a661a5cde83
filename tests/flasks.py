"""A Flask app under the validators, and a client of it."""

from __future__ import annotations

import typing as t
from pathlib import Path

from conftest import Browser, Clock, status_of, strict
from flask import Flask

from wsgi_isr.flask import ISR, isr_page

COLD = "isr; fwd=uri-miss; stored"
HIT = "isr; hit"


def flask_app(folder: Path, name: str = "site", **options: t.Any) -> Flask:
    app = Flask(name, root_path=str(folder), instance_path=str(folder / "instance"), **options)
    app.secret_key = "not a secret"
    app.wsgi_app = strict(app.wsgi_app)  # type: ignore[method-assign]
    return app


def blog_app(folder: Path) -> Flask:
    """``/blog/<slug>`` shows a text, which tests change."""
    app = flask_app(folder)
    app.extensions["text"] = "old"

    @app.get("/blog/<slug>")
    @isr_page(tags=["posts"])
    def post(slug: str) -> str:
        if app.extensions["text"] == "broken":
            raise ZeroDivisionError("no database")
        return f"{app.extensions['text']} {slug}"

    return app


def flask_browser(app: Flask, clock: Clock | None = None, **options: t.Any) -> Browser:
    """Give the app the extension, and a visitor."""
    options.setdefault("cache", "memory://")
    middleware = ISR(app, **options).middleware
    if clock is not None:
        middleware._clock = clock
    browser = Browser(strict(app))
    browser.isr = middleware
    return browser


def settle(browser: Browser) -> None:
    """Wait for the renders that visitors started."""
    browser.isr._here().background.wait(10)


def twice(browser: Browser, url: str, **kwargs: t.Any) -> tuple[str, str]:
    """What the first and the second visitor are told; both get the same."""
    first, second = browser.get(url, **kwargs), browser.get(url, **kwargs)
    assert (first.status, first.data) == (second.status, second.data)
    assert not [name for name in second.headers.keys() if name.lower().startswith("isr-")]
    return status_of(first), status_of(second)
