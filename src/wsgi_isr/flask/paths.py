"""What is prerendered of an app: URL generators, in the vocabulary of Frozen-Flask.

A generator yields paths, dictionaries of URL values (the endpoint is its function's name), or
tuples of an endpoint and such a dictionary.
"""

from __future__ import annotations

import typing as t
import warnings
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import unquote_to_bytes, urlsplit

from flask import Flask, request, url_for
from werkzeug.exceptions import HTTPException

from ..views import Declaration, declaration_of
from ..views import MissingPathsWarning as MissingPathsWarning

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

Generators: t.TypeAlias = "list[Callable[[], Iterable[t.Any]]]"


def match(app: Flask, environ: WSGIEnvironment) -> str:
    """The endpoint of a GET request, ``""`` for none."""
    try:
        adapter = app.create_url_adapter(app.request_class(environ, populate_request=False))
        return adapter.match(method="GET")[0] if adapter is not None else ""
    except HTTPException:
        # Unknown, or a redirect to a slash; the app says so better.
        return ""


def declared_endpoints(app: Flask) -> dict[str, Declaration]:
    """All views with `isr_page` that answer GET requests, by endpoint."""
    found = {}
    for rule in app.url_map.iter_rules():
        declaration = declaration_of(app.view_functions.get(rule.endpoint))
        if declaration is not None and "GET" in (rule.methods or ()):
            found[rule.endpoint] = declaration
    return found


def prerender_paths(app: Flask, generators: Generators) -> Iterator[str]:
    """Every path once: of pages without URL values, and of what the generators yield.

    :raises TypeError: for what a generator may not yield.

    A declared page that nothing covers is named in a `MissingPathsWarning`.
    """
    seen: set[str | None] = {None}
    missing = set(declared_endpoints(app))
    for endpoint, path in _all(app, generators):
        missing.discard(endpoint)
        if path not in seen:
            seen.add(path)
            yield t.cast(str, path)
    for endpoint in sorted(missing):
        warnings.warn(
            f"no generator covers the page {endpoint!r}: give it paths with @isr.paths or "
            "isr_page(paths=...)",
            MissingPathsWarning,
            stacklevel=2,
        )


def listed(app: Flask, generators: Generators) -> Iterator[str]:
    """What the generators list."""
    return (url for _, url in _all(app, generators) if url is not None)


def _all(app: Flask, generators: Generators) -> Iterator[tuple[str, str | None]]:
    """Endpoints and paths; no path for a generator itself, which may be empty."""
    declared = declared_endpoints(app)
    sources: list[tuple[str, t.Any]] = [(each.__name__, each) for each in generators]
    sources += [(name, d.paths) for name, d in declared.items() if d.paths is not None]
    # Generators are the user's code: they run in a request context, so that url_for works.
    with app.test_request_context():
        for rule in app.url_map.iter_rules():
            if rule.endpoint in declared and "GET" in (rule.methods or ()):
                if rule.arguments <= set(rule.defaults or ()):
                    yield rule.endpoint, url_for(rule.endpoint, **(rule.defaults or {}))
        for name, source in sources:
            yield name, None
            for item in source() if callable(source) else source:
                yield _read(app, item, name)


def _read(app: Flask, item: t.Any, endpoint: str) -> tuple[str, str]:
    if isinstance(item, str):
        return _endpoint_of(app, item), item
    if isinstance(item, dict):
        return endpoint, url_for(endpoint, **item)
    if isinstance(item, tuple) and len(item) in (2, 3) and isinstance(item[1], dict):
        # Frozen-Flask's third element, the time of the last change, is of no use here.
        return item[0], url_for(item[0], **item[1])
    raise TypeError(
        f"a generator yields paths, dicts of URL values or (endpoint, dict), not {item!r}"
    )


def _endpoint_of(app: Flask, path: str) -> str:
    """The endpoint of a path or a whole URL, ``""`` for none, in the request context at hand."""
    environ = request.environ
    parts = urlsplit(path)
    local = unquote_to_bytes(parts.path).decode("latin-1") or "/"
    host = {"HTTP_HOST": parts.netloc, "wsgi.url_scheme": parts.scheme} if parts.netloc else {}
    path_info = local.removeprefix(environ["SCRIPT_NAME"])
    return match(app, {**environ, "PATH_INFO": path_info, "QUERY_STRING": "", **host})
