"""``python -m wsgi_isr MODULE:APP COMMAND``."""

from __future__ import annotations

import os
import sys
import typing as t
from importlib import import_module

try:
    import click
except ModuleNotFoundError as error:
    if error.name != "click":
        raise
    sys.exit("the command line needs click: pip install 'wsgi-isr[cli]'")

from .cli import App, group
from .middleware import ISRMiddleware

_NAMED = "the app is named MODULE:APP, as in 'wsgi:app' or 'wsgi:create_app()'"
#: Where frameworks and middlewares keep the application that they wrap, and how deep.
_INNER, _MAX_DEPTH = ("wsgi_app", "app", "application", "__self__"), 20


@click.group(commands=group.commands)
@click.argument("app", metavar="MODULE:APP")
@click.pass_context
def main(context: click.Context, app: str) -> None:
    """Act on the pages of an app.

    MODULE:APP is an ISRMiddleware, or has one as its wsgi_app, as in "wsgi:app" or
    "wsgi:create_app()".
    """
    # As for servers: an app in the working directory needs no installation.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module, _, name = app.removesuffix("()").partition(":")
    try:
        found = getattr(import_module(module), name, None) if module[:1] not in ("", ".") else None
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            # One that the app imports: the traceback says where.
            raise
        raise click.ClickException(f"{error}: {_NAMED}") from error
    if app.endswith("()") and callable(found):
        found = found()
    context.obj = _find(found)
    if context.obj is None:
        hint = f"if it is a factory, write '{app}()'" if callable(found) else _NAMED
        raise click.ClickException(f"{app!r} is not an ISRMiddleware and has none inside: {hint}")


def _find(app: t.Any) -> App | None:
    """The middleware of an app, or in it, and what its framework's extension says besides."""
    middleware = None
    for _ in range(_MAX_DEPTH):
        extensions = getattr(app, "extensions", None)
        extension: t.Any = extensions.get("isr") if isinstance(extensions, dict) else None
        if hasattr(extension, "cli_app"):
            return t.cast(App, extension.cli_app(app))
        if middleware is None and isinstance(app, ISRMiddleware):
            middleware = app
        app = next(filter(None, (getattr(app, name, None) for name in _INNER)), None)
    return None if middleware is None else App(middleware)


if __name__ == "__main__":
    main(prog_name="python -m wsgi_isr")
