"""What the commands act on, and how ``MODULE:APP`` names it."""

from __future__ import annotations

import ast
import importlib
import os
import sys
import typing as t
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes
from urllib.parse import urlsplit

import click

from .key import normalize_host
from .key import Origin
from .middleware import ISRMiddleware
from .store import PageStore
from .store.backend import NullStorage
from .store.backend import SimpleCacheStorage
from .store.coordination import LocalCoordination

#: Where frameworks and middlewares keep the application that they wrap.
_INNER = ("wsgi_app", "app", "application")
#: Middlewares around each other that are looked through.
_MAX_DEPTH = 20


class App(t.NamedTuple):
    """What the commands act on.

    :param paths: gives all paths that can be prerendered, where the app can list them.
    :param base_url: where pages are if no option says so, with the mount point.
    """

    middleware: ISRMiddleware
    paths: Callable[[], Iterable[str]] | None = None
    base_url: str | None = None

    def open(self) -> PageStore:
        """The store that running workers share.

        :raises click.ClickException: for one that no other process sees.
        """
        store = self.middleware._here().store
        if isinstance(store.storage, NullStorage | SimpleCacheStorage):
            raise click.ClickException(
                "pages are kept in memory only, where no command reaches those of running "
                "workers: use files (file:///var/cache/site) or a store on the network, and run "
                "this as the user whose workers write there"
            )
        # A command has no visitors: what it keeps in memory is read by nobody.
        store.memory.limit = 0
        if isinstance(store.coordination, LocalCoordination):
            click.echo(
                "Warning: this store does not tell running workers of changes; what they have "
                "in memory stays until it is stale",
                err=True,
            )
        return store

    def origin(self, base_url: str | None) -> Origin | None:
        """Where the pages are that a path names; ``None`` if only the store knows.

        :raises click.ClickException: for a host that has no pages.
        """
        if base_url is None:
            return None if self.base_url is None else self._origin(self.base_url)
        origin = self._origin(base_url)
        parts = urlsplit(base_url)
        if origin is None or parts.query or parts.fragment:
            raise click.ClickException(
                "--base-url takes scheme and host of pages, as in https://www.example.com, "
                f"not {base_url!r}"
            )
        if (origin.scheme, origin.host) != (
            parts.scheme,
            normalize_host(parts.netloc, parts.scheme),
        ):
            raise click.ClickException(
                f"the pages of this app are under {origin.scheme}://{origin.host}, "
                f"not under {base_url}"
            )
        return origin

    def _origin(self, base_url: str) -> Origin | None:
        parts = urlsplit(base_url)
        return self.middleware.origin_of(
            {
                "wsgi.url_scheme": parts.scheme,
                "HTTP_HOST": parts.netloc,
                "SCRIPT_NAME": unquote_to_bytes(parts.path.rstrip("/")).decode("latin-1"),
            }
        )


def load(text: str) -> App:
    """
    :raises click.ClickException: where there is no such app, or no middleware in it. What the
        app's own code raises comes out as it is.
    """
    module, _, expression = text.partition(":")
    if not module or not expression:
        raise click.UsageError(
            f"the app is named MODULE:APP, as in 'site:app' or 'site:create_app()', not {text!r}"
        )
    return _choose(_evaluate(_import(module), expression, text), text)


def _import(name: str) -> object:
    # As for servers: an app in the working directory needs no installation.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise click.ClickException(f"there is no module {error.name!r}") from None


def _evaluate(module: object, expression: str, text: str) -> object:
    """A name, names with dots, or a call of one with literal arguments."""
    try:
        node: ast.expr = ast.parse(expression.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else None
        names = _names(node if call is None else call.func)
        arguments = [ast.literal_eval(item) for item in call.args] if call else []
        options = (
            {str(item.arg): ast.literal_eval(item.value) for item in call.keywords} if call else {}
        )
    except (SyntaxError, ValueError):
        raise click.UsageError(
            f"APP is a name, or a call with literal arguments, not {expression!r}"
        ) from None
    found = module
    for name in names:
        try:
            found = getattr(found, name)
        except AttributeError:
            raise click.ClickException(f"{text!r}: there is no {name!r}") from None
    return t.cast(t.Any, found)(*arguments, **options) if call is not None else found


def _arguments(call: ast.Call | None) -> tuple[list[t.Any], dict[str, t.Any]]:
    if call is None:
        return [], {}
    options = {str(item.arg): ast.literal_eval(item.value) for item in call.keywords}
    return [ast.literal_eval(item) for item in call.args], options


def _names(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        return [*_names(node.value), node.attr]
    raise ValueError(node)


def _choose(found: object, text: str) -> App:
    middleware = None
    for inner in _unwrap(found):
        chosen = _from_flask(inner)
        if chosen is not None:
            return chosen
        if middleware is None and isinstance(inner, ISRMiddleware):
            middleware = inner
    if middleware is not None:
        return App(middleware)
    remedy = "wrap the app in one"
    if callable(found) and not any(hasattr(found, name) for name in _INNER):
        remedy += f"; if it is a factory, write '{text}()'"
    raise click.ClickException(
        f"{text!r} is no ISRMiddleware and has none as its wsgi_app: {remedy}"
    )


def _unwrap(found: object) -> Iterator[object]:
    """An object, the application that it wraps, and so on."""
    for _ in range(_MAX_DEPTH):
        yield found
        # The app that an ISRMiddleware wraps may be a method: Flask's wsgi_app.
        owner = getattr(found, "__self__", None)
        inner = [getattr(found, name, None) for name in _INNER]
        following = next((item for item in (*inner, owner) if item is not None), None)
        if following is None:
            return
        found = following


def _from_flask(found: object) -> App | None:
    flask = sys.modules.get("flask")
    if flask is None or not isinstance(found, flask.Flask) or "isr" not in found.extensions:
        return None
    from .flask.commands import app_of

    return app_of(found)
