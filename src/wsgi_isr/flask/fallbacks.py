"""Fallbacks of Flask views: a shell view, and 404 for what no generator lists."""

from __future__ import annotations

import dataclasses
import logging
import threading
import typing as t
from collections.abc import Iterable
from time import monotonic
from urllib.parse import unquote

from flask import Flask

from ..fallback import Unlisted
from ..rules import Rule
from .pages import Declaration
from .paths import paths_of

if t.TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse
    from _typeshed.wsgi import WSGIApplication
    from _typeshed.wsgi import WSGIEnvironment

    from .paths import Generators

logger = logging.getLogger("wsgi_isr")

#: Seconds for which the list of an endpoint's paths is taken to be complete.
LISTED = 60.0


class Listing:
    """The paths that the generators of an endpoint list, asked for at most once a minute."""

    def __init__(self, app: Flask, generators: Generators) -> None:
        self._app = app
        self._generators = generators
        #: ``None`` where a list was never to be had.
        self._known: dict[str, tuple[float, frozenset[str] | None]] = {}
        self._lock = threading.Lock()

    def has(self, endpoint: str, environ: WSGIEnvironment) -> bool:
        paths = self._paths(endpoint)
        if paths is None:
            # Nobody knows what there is, so the app is asked.
            return True
        request = self._app.request_class(environ, populate_request=False)
        return request.path in paths or request.script_root + request.path in paths

    def _paths(self, endpoint: str) -> frozenset[str] | None:
        with self._lock:
            until, paths = self._known.get(endpoint, (0.0, None))
            if monotonic() >= until:
                try:
                    found = paths_of(self._app, self._generators, endpoint)
                    # Decoded, as the paths of requests are.
                    paths = frozenset(unquote(path.partition("?")[0]) for path in found)
                except Exception:
                    logger.exception("no list of the paths of %r: a generator failed", endpoint)
                self._known[endpoint] = (monotonic() + LISTED, paths)
            return paths


def with_fallback(
    app: Flask, listing: Listing, endpoint: str, values: dict[str, t.Any], declared: Declaration
) -> Rule:
    """The rule of a view for one URL, with its fallback as the middleware wants it."""
    rule = declared.rule
    if rule.fallback is False:
        unlisted = Unlisted(lambda environ: listing.has(endpoint, environ))
        return dataclasses.replace(rule, fallback=unlisted)
    if callable(rule.fallback):
        return dataclasses.replace(rule, fallback=_shell(app, rule.fallback, values))
    return rule


def _shell(app: Flask, view: t.Any, values: dict[str, t.Any]) -> WSGIApplication:
    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with app.request_context(environ):
            try:
                try:
                    result = app.preprocess_request()
                    if result is None:
                        result = app.ensure_sync(view)(**values)
                except Exception as error:
                    # A 404 of the shell is one, and error handlers are asked.
                    result = app.handle_user_exception(error)
                response = app.finalize_request(result)
            except Exception as error:
                response = app.handle_exception(error)
            return response(environ, start_response)

    return answer
