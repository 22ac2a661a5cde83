"""`isr_page`: a view whose responses are pages."""

from __future__ import annotations

import contextlib
import functools
import logging
import typing as t
import weakref
from collections.abc import Iterator

from flask import Flask, Response, after_this_request, current_app, g, has_request_context, request

from ..views import SHELL, CurrentPage, Declaration, IsrPage, View, declaration_of, declare

logger = logging.getLogger("wsgi_isr")

#: The views that `isr_page` stands on.
_decorated: weakref.WeakSet[t.Any] = weakref.WeakSet()


def mistakes(app: Flask) -> Iterator[str]:
    """What is wrong with the views of an app, though the site can go on."""
    views = app.view_functions
    declared = {name for name, view in views.items() if declaration_of(view) is not None}
    used = [getattr(views[name], "__wrapped__", None) for name in declared]
    for endpoint, view in views.items():
        if endpoint not in declared and _is_decorated(view) and view not in used:
            yield (
                f"@isr_page of {endpoint!r} has no effect, because it stands above the route "
                "decorator: put it below"
            )
    readable = {rule.endpoint for rule in app.url_map.iter_rules() if "GET" in (rule.methods or ())}
    for endpoint in sorted(declared - readable):
        yield f"@isr_page of {endpoint!r} has no effect: pages are answers to GET"


def _is_decorated(view: object) -> bool:
    try:
        return view in _decorated
    except TypeError:
        # What cannot be hashed, or has no weak references.
        return False


def _decorate(view: View, declaration: Declaration) -> View:
    if not callable(view):
        raise TypeError("put @isr_page on a view function, below the route decorator")
    if isinstance(view, type):
        raise TypeError(f"put @isr_page among the decorators of the class: {view.__qualname__}")

    def wrapper(*args: t.Any, **values: t.Any) -> t.Any:
        if (shell := request.environ.get(SHELL)) is not None:
            return current_app.ensure_sync(shell)(*args, **values)
        current = declaration.begin(view, request.environ, **values)
        g._wsgi_isr_page = current
        if "isr" not in current_app.extensions and "wsgi_isr.middleware" not in request.environ:
            _warn_once()
        # Also what an error handler makes of an exception: a 404 is a page, too.
        after_this_request(functools.partial(_write, current))
        return current_app.ensure_sync(view)(*args, **values)

    wrapper = declare(view, wrapper, declaration)
    with contextlib.suppress(TypeError):
        _decorated.add(view)
    return wrapper


isr_page = IsrPage(_decorate, lambda: g.get("_wsgi_isr_page") if has_request_context() else None)


@functools.cache
def _warn_once() -> None:
    logger.warning("@isr_page has no effect: the app has no extension, call ISR(app)")


def _write(current: CurrentPage, response: Response) -> Response:
    if "ISR-Revalidate" not in response.headers:
        response.headers.extend(current.headers(request.url))
    return response
