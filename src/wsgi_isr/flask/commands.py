"""``flask isr COMMAND``."""

from __future__ import annotations

from urllib.parse import quote

import click
from flask import current_app
from flask import Flask
from flask.cli import with_appcontext

from ..cli import COMMANDS
from ..key import Origin
from ..loading import App


@click.group("isr", commands=COMMANDS)
@with_appcontext
def commands() -> None:
    """Act on the pages of this app."""
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    click.get_current_context().obj = app_of(app)


def app_of(app: Flask) -> App:
    """What the commands need to know of an app that has the extension."""
    extension = app.extensions["isr"]
    with app.app_context():
        middleware = extension.middleware
    mount = app.config["APPLICATION_ROOT"]
    base_url = None
    # Without a request these two tell where the app is, as they do for `flask.url_for`.
    scheme, host = app.config["PREFERRED_URL_SCHEME"], app.config["SERVER_NAME"]
    origin: Origin | None = middleware.origin_of(
        {"wsgi.url_scheme": scheme, "HTTP_HOST": host or "", "SCRIPT_NAME": ""}
    )
    if origin is not None:
        base_url = f"{origin.scheme}://{origin.host}{quote(mount.rstrip('/'))}"
    return App(middleware, lambda: extension.prerender_paths(app), base_url)
