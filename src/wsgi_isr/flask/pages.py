"""What an app has: `isr_page` on its views, the paths of its pages, and its code.

A generator of paths has the vocabulary of Frozen-Flask. It yields paths, dictionaries of URL values
(the endpoint is its function's name), or tuples of an endpoint and such a dictionary.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import typing as t
import warnings
from collections.abc import Callable, Iterable, Iterator
from glob import glob
from pathlib import Path
from urllib.parse import urlsplit

from flask import (
    Flask,
    Response,
    after_this_request,
    current_app,
    request,
    url_for,
)
from werkzeug.exceptions import HTTPException

from ..config import INSTALLED, digest_of_code
from ..key import Origin
from ..rules import to_wsgi
from ..views import SHELL, CurrentPage, Declaration, IsrPage, View, declaration_of, declare

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

logger = logging.getLogger("wsgi_isr")

Generators: t.TypeAlias = "list[Callable[[], Iterable[t.Any]]]"

#: Where a request has the page that it is for.
_PAGE = "wsgi_isr.page"
#: Marks a view that `isr_page` stands on.
_DECORATED = "_wsgi_isr_decorated"


def _decorate(view: View, declaration: Declaration) -> View:
    if not callable(view):
        raise TypeError("put @isr_page on a view function, below the route decorator")
    if isinstance(view, type):
        raise TypeError(f"put @isr_page among the decorators of the class: {view.__qualname__}")

    def wrapper(*args: t.Any, **values: t.Any) -> t.Any:
        if (shell := request.environ.pop(SHELL, None)) is not None:
            return current_app.ensure_sync(shell)(*args, **values)
        if _PAGE in request.environ:
            # Another page's view calls this one.
            return current_app.ensure_sync(view)(*args, **values)
        current = declaration.begin(view, request.environ, **values)
        request.environ[_PAGE] = current
        if "isr" not in current_app.extensions and "wsgi_isr.middleware" not in request.environ:
            _warn_once()
        # Also what an error handler makes of an exception: a 404 is a page, too.
        after_this_request(functools.partial(_write, current))
        return current_app.ensure_sync(view)(*args, **values)

    wrapper = declare(view, wrapper, declaration)
    with contextlib.suppress(AttributeError):
        setattr(view, _DECORATED, True)
    return wrapper


isr_page = IsrPage(_decorate, lambda: request.environ.get(_PAGE) if request else None)


@functools.cache
def _warn_once() -> None:
    logger.warning("@isr_page has no effect: the app has no extension, call ISR(app)")


def _write(current: CurrentPage, response: Response) -> Response:
    if "ISR-Revalidate" not in response.headers:
        response.headers.extend(current.headers(request.url))
    return response


def _declared(app: Flask) -> dict[str, Declaration]:
    """What `isr_page` said of the views that answer GET requests, by endpoint."""
    found = {}
    for rule in app.url_map.iter_rules():
        declaration = declaration_of(app.view_functions.get(rule.endpoint))
        if declaration is not None and "GET" in (rule.methods or ()):
            found[rule.endpoint] = declaration
    return found


def mistakes(app: Flask) -> Iterator[str]:
    """What is wrong with the views of an app, though the site can go on."""
    views = app.view_functions
    declared = {name for name, view in views.items() if declaration_of(view) is not None}
    used = [getattr(views[name], "__wrapped__", None) for name in declared]
    for endpoint, view in views.items():
        if endpoint not in declared and getattr(view, _DECORATED, False) and view not in used:
            yield (
                f"@isr_page of {endpoint!r} has no effect, because it stands above the route "
                "decorator: put it below"
            )
    for endpoint in sorted(declared - set(_declared(app))):
        yield f"@isr_page of {endpoint!r} has no effect: pages are answers to GET"


def match(app: Flask, environ: WSGIEnvironment) -> str:
    """The endpoint of a GET request, ``""`` for none."""
    try:
        return _match(app, environ)
    except RuntimeError:
        # A converter of URL values needs the app. A context for all would end with the teardown
        # functions of the app, in the thread of a view that calls `revalidate`.
        with app.app_context():
            return _match(app, environ)


def _match(app: Flask, environ: WSGIEnvironment) -> str:
    try:
        adapter = app.create_url_adapter(app.request_class(environ, populate_request=False))
        return adapter.match(method="GET")[0] if adapter is not None else ""
    except HTTPException:
        # Unknown, or a redirect to a slash; the app says so better.
        return ""


def prerender_paths(app: Flask, generators: Generators, origin: Origin | None) -> Iterator[str]:
    """Every path once; a declared page that nothing covers is named in a warning."""
    found = listed(app, generators, origin)
    covered = {endpoint for endpoint, _ in found} | {each.__name__ for each in generators}
    for endpoint, declaration in sorted(_declared(app).items()):
        if declaration.paths is None and endpoint not in covered:
            text = f"no generator covers the page {endpoint!r}: give it paths with @isr.paths or "
            warnings.warn(f"{text}isr_page(paths=...)", stacklevel=2)
    yield from dict.fromkeys(path for _, path in found)


def listed(app: Flask, generators: Generators, origin: Origin | None) -> list[tuple[str, str]]:
    """Endpoints and paths of pages without URL values, and of what the generators yield.

    :param origin: where the app is, as `flask.url_for` is to have it.
    :raises TypeError: for what a generator may not yield.
    """
    declared, found = _declared(app), []
    sources: list[tuple[str, t.Any]] = [(each.__name__, each) for each in generators]
    sources += [(name, page.paths) for name, page in declared.items() if page.paths is not None]
    # Generators are the user's code: they run in a request context, so that url_for works.
    environ = app.test_request_context().request.environ
    with app.request_context({**environ, **(origin.to_environ() if origin else {})}):
        for rule in app.url_map.iter_rules():
            if rule.endpoint in declared and "GET" in (rule.methods or ()):
                if rule.arguments <= set(rule.defaults or ()):
                    found.append((rule.endpoint, url_for(rule.endpoint, **(rule.defaults or {}))))
        for name, source in sources:
            for item in source() if callable(source) else source:
                if isinstance(item, str):
                    found.append((_endpoint_of(app, item), item))
                    continue
                # Frozen-Flask's third element, the time of the last change, is of no use here.
                is_named = isinstance(item, tuple) and len(item) in (2, 3)
                endpoint, values = item[:2] if is_named else (name, item)
                if not isinstance(values, dict):
                    raise TypeError(
                        "a generator yields paths, dicts of URL values or (endpoint, dict), "
                        f"not {item!r}"
                    )
                found.append((endpoint, url_for(endpoint, **values)))
    return found


def _endpoint_of(app: Flask, url: str) -> str:
    """The endpoint of a path or a whole URL, ``""`` for none, in the request context at hand."""
    parts, environ = urlsplit(url), {**request.environ}
    environ["PATH_INFO"] = to_wsgi(parts.path).removeprefix(environ["SCRIPT_NAME"])
    if parts.netloc:
        environ |= {"HTTP_HOST": parts.netloc, "wsgi.url_scheme": parts.scheme}
    return match(app, environ)


def digest_of_app(app: Flask) -> str:
    """Names the code of an app, so that a deploy never serves pages of older code.

    It is in the app's package and in its template folder. A single module may stand in somebody's
    home folder: then it is in the modules and packages beside it, and in no other folder.
    """
    root, excluded = app.root_path, {app.instance_path}
    folders = {"": root, "translations": os.path.join(root, "translations")}
    if app.template_folder is not None:
        folders["templates"] = os.path.join(root, app.template_folder)
    if not os.path.isfile(os.path.join(root, "__init__.py")):
        packages = {os.path.dirname(name) for name in glob("*/__init__.py", root_dir=root)}
        beside = {os.path.dirname(name) for name in glob("*/", root_dir=root)}
        excluded.update(os.path.join(root, name) for name in beside - packages)
    return digest_of_code(folders, excluded)


def digest_of_blueprints(app: Flask) -> str:
    """The same of blueprints that stand elsewhere, or have templates elsewhere."""
    folders = {}
    for name, blueprint in app.blueprints.items():
        root = blueprint.root_path
        if INSTALLED.isdisjoint(Path(root).parts):
            if root != app.root_path:
                folders[name] = root
            if blueprint.template_folder is not None:
                folders[f"{name}/templates"] = os.path.join(root, blueprint.template_folder)
    return digest_of_code(folders) if folders else ""
