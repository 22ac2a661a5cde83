"""`ISR`: wraps a Flask app in the middleware, and finds the rules in its views."""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
import os
import threading
import typing as t
import weakref
from collections.abc import Callable, Iterable, Iterator
from configparser import ConfigParser
from urllib.parse import quote

import click
from flask import Flask, Response, current_app, got_request_exception, has_request_context, request
from flask.cli import with_appcontext
from itsdangerous import BadData, URLSafeTimedSerializer
from werkzeug.sansio.http import parse_cookie

from ..cli import App, group
from ..key import Origin
from ..middleware import ISRMiddleware
from ..ondemand import OnDemand, Result
from ..rules import EXCLUDED, Rule, digest_of, to_wsgi
from ..status import PATHS, Status
from ..store.opening import DefaultFolder
from ..views import Declared, ViewRules, declaration_of
from . import pages

if t.TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger("wsgi_isr")

GeneratorT = t.TypeVar("GeneratorT", bound="Callable[[], Iterable[t.Any]]")

#: Arguments of the middleware are config keys, as ``ISR_BASE_URL``; the extension has two more.
_KEYS = {f"ISR_{name.upper()}": name for name in inspect.signature(ISRMiddleware).parameters}
del _KEYS["ISR_APP"]
_ALL_KEYS = {*_KEYS, "ISR_SECRET", "ISR_URL_PREFIX"}
#: Where an app has what belongs to it alone; an extension may have several apps.
_WRAPPED = "isr.wsgi_app"
#: The cookie of draft mode, and the seconds that it lasts.
COOKIE = "isr_draft"
LIFETIME = 3600


class ISR:
    """Makes pages of a Flask app's views.

    Every argument of `wsgi_isr.ISRMiddleware` is an argument here, and a config key with the
    prefix ``ISR_``; the argument wins. The config is read at the first request, so it may be set
    after this. Defaults that differ: ``ISR_ENABLED`` is on, but neither in debug mode nor with
    ``TESTING``, as they stand when a request comes; ``ISR_CACHE`` is a folder in the instance
    folder; ``ISR_BUILD_ID`` is a digest of the app's Python files, its templates, its compiled
    translations and its rules.

    :param app: the app, or ``None`` and `init_app` later.
    :raises TypeError: for an argument that does not exist.

    .. code-block:: python

        isr = ISR(app)
    """

    def __init__(self, app: Flask | None = None, **options: t.Any) -> None:
        if unknown := [name for name in options if f"ISR_{name.upper()}" not in _ALL_KEYS]:
            raise TypeError(f"ISR has no argument {', '.join(unknown)}")
        self._options = {f"ISR_{name.upper()}": value for name, value in options.items()}
        self._generators: pages.Generators = []
        self._apps: weakref.WeakSet[Flask] = weakref.WeakSet()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Wrap the app's ``wsgi_app``.

        Wrap it in ProxyFix afterwards, so that pages see the public scheme and host.

        :raises RuntimeError: for an app that has the extension already.
        """
        if "isr" in app.extensions:
            raise RuntimeError("ISR is registered on this app already")
        app.extensions["isr"] = self
        got_request_exception.connect(_note_error, app)
        app.cli.add_command(commands)
        app.extensions[_WRAPPED] = _ISRMiddleware(app, self)
        app.wsgi_app = app.extensions[_WRAPPED]  # type: ignore[method-assign]
        self._apps.add(app)

    def paths(self, generator: GeneratorT) -> GeneratorT:
        """Register a generator of what is prerendered; the endpoint is its function's name.

        It yields dictionaries of URL values, tuples of an endpoint and such a dictionary, or
        paths, as Frozen-Flask's URL generators do, and runs in a request context.

        .. code-block:: python

            @isr.paths
            def post():
                for p in all_posts():
                    yield {"slug": p.slug}
        """
        self._generators.append(generator)
        return generator

    #: As Frozen-Flask calls it, so that a module of generators works as it is.
    register_generator = paths

    def prerender_paths(self, app: Flask) -> Iterator[str]:
        """All that can be prerendered of an app: views without URL values, and its generators.

        A declared page that nothing covers is named in a warning.
        """
        origin = _origin(app, _middleware_of(app))
        return pages.prerender_paths(app, self._generators, origin)

    @staticmethod
    def enable_draft(response: Response) -> None:
        """Let the visitor see every page as a fresh render, for an hour.

        :raises RuntimeError: for an app without a secret key.
        """
        value = _serializer(current_app).dumps("draft")
        response.set_cookie(COOKIE, value, max_age=LIFETIME, **_cookie_attributes())

    @staticmethod
    def disable_draft(response: Response) -> None:
        """Let the visitor see stored pages again."""
        response.delete_cookie(COOKIE, **_cookie_attributes())

    @property
    def is_draft(self) -> bool:
        """Whether the current request is in draft mode; never while a page is rendered."""
        return _is_draft(current_app, request.environ)

    @property
    def middleware(self) -> ISRMiddleware:
        """The middleware of the current app, or of the only one.

        :raises RuntimeError: where it is not clear which app is meant.
        :raises ValueError: or ``TypeError``, for a config that cannot work.
        """
        if current_app and current_app.extensions.get("isr") is self:
            return _middleware_of(current_app)
        if len(self._apps) == 1:
            return _middleware_of(*self._apps)
        raise RuntimeError("work in an app context of an app that has the ISR extension")

    def cli_app(self, app: Flask) -> App:
        """What the command line acts on; it finds this method by its name."""
        middleware = _middleware_of(app)
        paths = functools.partial(pages.prerender_paths, app, self._generators)
        return App(middleware, paths, _origin(app, middleware))


class _ISRMiddleware:
    """The ``wsgi_app`` of an app, in a middleware that is made when it is first needed."""

    def __init__(self, flask: Flask, extension: ISR) -> None:
        #: What is wrapped; the name is that of other middlewares.
        self.app: WSGIApplication = flask.wsgi_app
        self.flask = flask
        self._options = extension._options
        self._generators = extension._generators
        self._operated: _Operated | None = None
        self._middleware: ISRMiddleware | None = None
        self._is_checked = False
        self._lock = threading.RLock()
        configured = {**flask.config, **self._options}.get("ISR_BUILD_ID")
        # Now, because files may be replaced before the first request: pages of this code would
        # count as pages of the next.
        self._digest = pages.digest_of_app(flask) if configured is None else None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        middleware = self.middleware
        if not self._is_checked:
            self._is_checked = True
            for mistake in pages.mistakes(self.flask):
                logger.warning("%s", mistake)
            if self.flask.wsgi_app is self:
                # The next request has a shorter way.
                self.flask.wsgi_app = middleware  # type: ignore[method-assign]
        return middleware(environ, start_response)

    @property
    def middleware(self) -> ISRMiddleware:
        """
        :raises ValueError: or ``TypeError``, for a config that cannot work.
        """
        if self._middleware is None:
            with self._lock:
                self._middleware = self._middleware or self._make()
        return self._middleware

    def _make(self) -> ISRMiddleware:
        flask, config = self.flask, self.flask.config
        config.update(self._options)
        _check_keys(config)
        for key in ("ISR_ENABLED", "ISR_CDN_PURGED"):
            config[key] = _truth(key, config.get(key))
        options = {name: config[key] for key, name in _KEYS.items() if config.get(key) is not None}
        # The name of the app, so that two apps in one folder have no pages in common.
        folder = os.path.join(flask.instance_path, "isr-cache", quote(flask.name, safe=""))
        options.setdefault("cache", DefaultFolder(folder))
        rules = options.pop("rules", None)
        if "build_id" not in options:
            code = (self._digest or pages.digest_of_app(flask), pages.digest_of_blueprints(flask))
            digests = (*code, digest_of(rules))
            options["build_id"] = "-".join(filter(None, digests))
        # Whether it is on may change from request to request.
        options["enabled"] = True
        app = self.app
        if secret := config.get("ISR_SECRET"):
            status = Status(self, secret=secret)
            app = self._operated = _Operated(self, status, config.get("ISR_URL_PREFIX") or "/_isr")
        middleware = ISRMiddleware(app, rules=ViewRules(rules, self._find, self._list), **options)

        def is_enabled() -> bool:
            enabled = config["ISR_ENABLED"]
            return not (config["DEBUG"] or config["TESTING"]) if enabled is None else bool(enabled)

        def bypass(environ: WSGIEnvironment) -> str | None:
            if not is_enabled():
                return "disabled"
            return "draft" if _is_draft(flask, environ) else None

        middleware.is_enabled = is_enabled
        middleware.set_bypass(bypass)
        return middleware

    def _list(self) -> Iterable[str]:
        origin = _origin(self.flask, self.middleware)
        return (path for _, path in pages.listed(self.flask, self._generators, origin))

    def _find(self, environ: WSGIEnvironment, other: Rule | None) -> tuple[str, Declared]:
        if self._operated is not None and environ.get("PATH_INFO") in self._operated.paths:
            return "_isr", EXCLUDED
        endpoint = pages.match(self.flask, environ)
        return endpoint, declaration_of(self.flask.view_functions.get(endpoint))


def _check_keys(config: t.Mapping[str, t.Any]) -> None:
    names = [key.removeprefix("ISR_") for key in _ALL_KEYS]
    for key in sorted(key for key in config if key.startswith("ISR_") and key not in _ALL_KEYS):
        near = difflib.get_close_matches(key.removeprefix("ISR_"), names, 1, 0.7)
        if near:
            raise ValueError(f"there is no config key {key}: did you mean ISR_{near[0]}?")
        logger.warning("there is no config key %s: it has no effect", key)


def _truth(key: str, value: t.Any) -> bool | None:
    """A truth value, also as the environment has it."""
    if value is None:
        return None
    found = ConfigParser.BOOLEAN_STATES.get(str(value).strip().lower())
    if found is None:
        raise TypeError(f"{key} takes True or False, not {value!r}")
    return found


class _Operated:
    """A site's app and, at some paths under a prefix, the status page.

    That is beside the site's own routes, hosts and hooks: a login in front of all views, or a token
    that all forms need, would lock programs out.

    :raises ValueError: for a prefix that is no path.
    """

    def __init__(self, wrapped: _ISRMiddleware, status: Status, prefix: str) -> None:
        if not str(prefix).startswith("/") or not prefix.strip("/"):
            words = "ISR_URL_PREFIX starts with / and is a path of its own, as in '/_isr'"
            raise ValueError(f"{words}, not {prefix!r}")
        self.app = wrapped.app
        self._flask = wrapped.flask
        self._status = status
        self._prefix = to_wsgi(prefix.rstrip("/"))
        self.paths = frozenset(map(self._prefix.__add__, PATHS))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path not in self.paths:
            return self.app(environ, start_response)
        mount = environ.get("SCRIPT_NAME", "") + self._prefix
        environ = {**environ, "SCRIPT_NAME": mount, "PATH_INFO": path[len(self._prefix) :]}
        # Receivers of signals may need one.
        with self._flask.app_context():
            return self._status(environ, start_response)


# Draft mode: a visitor with a signed cookie always gets a fresh render, which is never stored.


def _serializer(app: Flask) -> URLSafeTimedSerializer:
    if not app.secret_key:
        raise RuntimeError("draft mode needs a secret key: set app.secret_key")
    # As for Flask's sessions: older keys are still read. The newest one comes last.
    keys = [*(app.config.get("SECRET_KEY_FALLBACKS") or ()), app.secret_key]
    return URLSafeTimedSerializer(keys, salt="wsgi-isr-draft")


def _cookie_attributes() -> dict[str, t.Any]:
    path = current_app.config["APPLICATION_ROOT"]
    return {"httponly": True, "samesite": "Lax", "secure": request.is_secure, "path": path}


def _is_draft(app: Flask, environ: WSGIEnvironment) -> bool:
    """Whether a request has a draft cookie that is ours and not too old."""
    cookies = environ.get("HTTP_COOKIE")
    # All other visitors pay for this line alone.
    if not cookies or COOKIE not in cookies or not app.secret_key:
        return False
    # Not the function of `werkzeug.http`, which refuses bytes that are no UTF-8.
    value = parse_cookie(cookies).get(COOKIE, "")
    try:
        return bool(_serializer(app).loads(value, max_age=LIFETIME) == "draft")
    except (BadData, ValueError):
        # Whatever clients send, it is no draft.
        return False


def _note_error(app: Flask, exception: BaseException, **extra: t.Any) -> None:
    """Let `ISRMiddleware.pages` say what was raised, and not only that the answer was a 500."""
    ISRMiddleware.note_error(request.environ, exception)


def _middleware_of(app: Flask) -> ISRMiddleware:
    return t.cast(_ISRMiddleware, app.extensions[_WRAPPED]).middleware


def _origin(app: Flask, middleware: ISRMiddleware) -> Origin | None:
    """Where the pages are that a path names, as `flask.url_for` has it."""
    if has_request_context():
        return middleware.origin_of(request.environ)
    environ = app.test_request_context().request.environ
    return middleware.origin_of({**environ, "HTTP_HOST": app.config["SERVER_NAME"] or ""})


def _on_demand() -> OnDemand:
    """The operations on the pages of the current app."""
    if not current_app:
        raise RuntimeError("work in an app context, or call the method of the middleware")
    if "isr" not in current_app.extensions:
        raise RuntimeError("this app has no ISR extension: call ISR(app) first")
    middleware = _middleware_of(current_app)
    return middleware.on_demand(_origin(current_app, middleware), middleware.is_enabled())


def revalidate(
    *paths: str, only_generated: bool = False, workers: int | None = None
) -> list[Result]:
    """`wsgi_isr.ISRMiddleware.revalidate` of the current app.

    Commit first: the page is rendered by another request, which sees what is committed. Outside
    of a request ``SERVER_NAME``, ``PREFERRED_URL_SCHEME`` and ``APPLICATION_ROOT`` say where a
    page is, as they do for `flask.url_for`, unless ``ISR_BASE_URL`` does.
    """
    return _on_demand().revalidate(paths, only_generated, workers)


def revalidate_tag(*tags: str, expire: bool = False) -> None:
    """`wsgi_isr.ISRMiddleware.revalidate_tag` of the current app."""
    _on_demand().invalidate((), expire, tags)


def invalidate(*patterns: str, expire: bool = False) -> None:
    """`wsgi_isr.ISRMiddleware.invalidate` of the current app."""
    _on_demand().invalidate(patterns, expire)


@click.group("isr", commands=group.commands)
@with_appcontext
def commands() -> None:
    """Act on the pages of this app."""
    try:
        click.get_current_context().obj = current_app.extensions["isr"].cli_app(current_app)
    except (TypeError, ValueError, ImportError) as error:
        raise click.ClickException(str(error)) from error
