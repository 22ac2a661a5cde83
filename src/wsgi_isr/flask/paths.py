"""What is prerendered: URL generators, in the vocabulary of Frozen-Flask.

A generator yields paths, dictionaries of URL values (the endpoint is its function's name), or
tuples of an endpoint and such a dictionary.
"""

from __future__ import annotations

import typing as t
import warnings
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from urllib.parse import unquote

from flask import Flask
from flask import request
from flask import url_for
from werkzeug.exceptions import HTTPException

from .pages import Declaration
from .pages import declaration_of

Generators: t.TypeAlias = "list[Callable[[], Iterable[t.Any]]]"


class MissingPathsWarning(UserWarning):
    """A declared page that no generator covers is not prerendered."""


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
    seen: set[str] = set()
    declared = declared_endpoints(app)
    covered: set[str] = set()
    # Generators are the user's code: they run in a request context, so that url_for works.
    with app.test_request_context():
        for endpoint, path in _all(app, generators, declared):
            covered.add(endpoint)
            if path is not None and path not in seen:
                seen.add(path)
                yield path
        endpoint_of = _matcher(app)
        for path in seen:
            if not set(declared) - covered:
                break
            covered.add(endpoint_of(path))
    for endpoint in sorted(set(declared) - covered):
        warnings.warn(
            f"no generator covers the page {endpoint!r}: give it paths with @isr.paths or "
            "isr_page(paths=...)",
            MissingPathsWarning,
            stacklevel=2,
        )


def paths_of(app: Flask, generators: Generators, endpoint: str) -> list[str]:
    """The paths of one endpoint."""
    declared = declared_endpoints(app)
    with app.test_request_context():
        endpoint_of = _matcher(app)
        return [
            path
            for name, path in _all(app, generators, declared)
            if path is not None and (name or endpoint_of(path)) == endpoint
        ]


def _matcher(app: Flask) -> Callable[[str], str]:
    """What tells the endpoint of a path, ``""`` for none, in the request context at hand."""
    adapter = app.create_url_adapter(None) or app.url_map.bind("localhost")
    root = request.script_root

    def endpoint_of(path: str) -> str:
        local = unquote(path.partition("?")[0]).removeprefix(root)
        try:
            return str(adapter.match(local, method="GET")[0])
        except HTTPException:
            return ""

    return endpoint_of


def _all(
    app: Flask, generators: Generators, declared: dict[str, Declaration]
) -> Iterator[tuple[str, str | None]]:
    """Endpoint (``""`` where only the path is known) and path; no path for an empty generator."""
    for rule in app.url_map.iter_rules():
        if rule.endpoint in declared and "GET" in (rule.methods or ()):
            if rule.arguments <= set(rule.defaults or ()):
                yield rule.endpoint, url_for(rule.endpoint, **(rule.defaults or {}))
    for generator in generators:
        name = generator.__name__
        yield name, None
        for item in generator():
            yield _read(item, name)
    for endpoint, declaration in declared.items():
        if declaration.paths is None:
            continue
        yield endpoint, None
        paths = declaration.paths
        for item in paths() if callable(paths) else paths:
            yield _read(item, endpoint)


def _read(item: t.Any, endpoint: str) -> tuple[str, str]:
    if isinstance(item, str):
        return "", item
    if isinstance(item, dict):
        return endpoint, url_for(endpoint, **item)
    if isinstance(item, tuple) and len(item) in (2, 3) and isinstance(item[1], dict):
        # Frozen-Flask's third element, the time of the last change, is of no use here.
        return item[0], url_for(item[0], **item[1])
    raise TypeError(
        f"a generator yields paths, dicts of URL values or (endpoint, dict), not {item!r}"
    )
