"""`ISR`: wraps a Flask app in the middleware, and finds the rules in its views."""

from __future__ import annotations

import difflib
import inspect
import logging
import os
import threading
import typing as t
import weakref
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import quote

import click
from flask import Flask, current_app, got_request_exception, has_request_context, request
from flask.cli import with_appcontext

from ..cli import App, group
from ..key import Origin
from ..middleware import ISRMiddleware
from ..ondemand import Result
from ..rules import EXCLUDED, Rule, digest_of
from ..views import Declared, ViewRules, declaration_of
from . import routes
from .build import build_digest
from .pages import mistakes
from .paths import Generators, listed, match, prerender_paths

if t.TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger("wsgi_isr")

GeneratorT = t.TypeVar("GeneratorT", bound="Callable[[], Iterable[t.Any]]")

#: Arguments of the middleware that are config keys as they are, as ``ISR_BASE_URL``; what is
#: treated here, and what the extension has beyond the middleware.
_OWN = {"cache", "rules", "enabled", "build_id", "secret", "url_prefix"}
_OPTIONS = set(inspect.signature(ISRMiddleware).parameters) - _OWN - {"app"}
_KEYS = {f"ISR_{name.upper()}" for name in _OPTIONS | _OWN}
_TRUTH = dict.fromkeys(("true", "1", "yes", "on"), True)
_TRUTH |= dict.fromkeys(("false", "0", "no", "off"), False)
#: Where an app has what belongs to it alone; an extension may have several apps.
_WRAPPED = "isr.wsgi_app"


class ISR:
    """Makes pages of a Flask app's views.

    Every argument of `wsgi_isr.ISRMiddleware` is an argument here, and a config key with the
    prefix ``ISR_``; the argument wins. The config is read at the first request, so it may be set
    after this. Defaults that differ: ``ISR_ENABLED`` is on, but neither in debug mode nor with
    ``TESTING``, as they stand when a request comes; ``ISR_CACHE`` is a folder in the instance
    folder; ``ISR_BUILD_ID`` is a digest of the app's Python files, its templates and its rules.

    :param app: the app, or ``None`` and `init_app` later.
    :raises TypeError: for an argument that does not exist.

    .. code-block:: python

        isr = ISR(app)
    """

    def __init__(self, app: Flask | None = None, **options: t.Any) -> None:
        if unknown := set(options) - _OPTIONS - _OWN:
            raise TypeError(f"ISR has no argument {', '.join(sorted(unknown))}")
        self._options = options
        self._generators: Generators = []
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
        options = {f"ISR_{name.upper()}": value for name, value in self._options.items()}
        app.extensions[_WRAPPED] = _Wrapped(app, options, self._generators)
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
        return prerender_paths(app, self._generators)

    enable_draft = staticmethod(routes.enable_draft)
    disable_draft = staticmethod(routes.disable_draft)

    @property
    def is_draft(self) -> bool:
        """Whether the current request is in draft mode; never while a page is rendered."""
        return routes.is_draft(current_app, request.environ)

    @property
    def middleware(self) -> ISRMiddleware:
        """The middleware of the current app, or of the only one.

        :raises RuntimeError: where it is not clear which app is meant.
        :raises ValueError: or ``TypeError``, for a config that cannot work.
        """
        if current_app and current_app.extensions.get("isr") is self:
            return _here()[0]
        if len(self._apps) == 1:
            (app,) = self._apps
            return _wrapped(app).middleware
        raise RuntimeError("work in an app context of an app that has the ISR extension")

    def cli_app(self, app: Flask) -> App:
        """What the command line acts on; it finds this method by its name."""
        middleware = _wrapped(app).middleware
        return App(middleware, lambda: self.prerender_paths(app), _origin(app, middleware))


class _Wrapped:
    """The ``wsgi_app`` of an app, in a middleware that is made when it is first needed."""

    def __init__(self, flask: Flask, options: dict[str, t.Any], generators: Generators) -> None:
        #: What is wrapped; the name is that of other middlewares.
        self.app: WSGIApplication = flask.wsgi_app
        self.flask = flask
        self._options = options
        self._generators = generators
        self._middleware: ISRMiddleware | None = None
        self._is_checked = False
        self._lock = threading.RLock()
        configured = {**flask.config, **options}.get("ISR_BUILD_ID")
        # Now, because files may be replaced before the first request: pages of this code would
        # count as pages of the next.
        self._digest = build_digest(flask) if configured is None else None

    def __repr__(self) -> str:
        return f"<ISR of {self.app!r}>"

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        middleware = self.middleware
        if not self._is_checked:
            self._is_checked = True
            for mistake in mistakes(self.flask):
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
                if self._middleware is None:
                    self._middleware = self._make()
        return self._middleware

    def _make(self) -> ISRMiddleware:
        flask, config = self.flask, self.flask.config
        config.update(self._options)
        _check_keys(config)
        for key in ("ISR_ENABLED", "ISR_CDN_PURGED"):
            config[key] = _truth(key, config.get(key))
        keys = {name: f"ISR_{name.upper()}" for name in _OPTIONS}
        options = {name: config[key] for name, key in keys.items() if config.get(key) is not None}
        rules = config.get("ISR_RULES")
        cache, build_id = config.get("ISR_CACHE"), config.get("ISR_BUILD_ID")
        if cache is None:
            # The name of the app, so that two apps in one folder have no pages in common.
            folder = os.path.join(flask.instance_path, "isr-cache", quote(flask.name, safe=""))
            cache = f"file://{quote(folder)}"
        if build_id is None:
            digests = (self._digest or build_digest(flask), digest_of(rules))
            build_id = "-".join(filter(None, digests))
        middleware = ISRMiddleware(
            self.app,
            cache,
            rules=ViewRules(rules, self._find, self._listed),
            build_id=build_id,
            **options,
        )

        def is_enabled() -> bool:
            enabled = config["ISR_ENABLED"]
            return not (config["DEBUG"] or config["TESTING"]) if enabled is None else bool(enabled)

        def bypass(environ: WSGIEnvironment) -> str | None:
            if not is_enabled():
                return "disabled"
            return "draft" if routes.is_draft(flask, environ) else None

        middleware.is_enabled = is_enabled
        middleware.set_bypass(bypass)
        if config.get("ISR_SECRET"):
            prefix = config.get("ISR_URL_PREFIX") or "/_isr"
            routes.add_route(flask, middleware, config["ISR_SECRET"], prefix)
        return middleware

    def _find(self, environ: WSGIEnvironment, other: Rule | None) -> tuple[str, Declared]:
        endpoint = match(self.flask, environ)
        if endpoint in routes.ENDPOINTS:
            return endpoint, EXCLUDED
        return endpoint, declaration_of(self.flask.view_functions.get(endpoint))

    def _listed(self) -> Iterator[str]:
        return listed(self.flask, self._generators)


def _check_keys(config: t.Mapping[str, t.Any]) -> None:
    for key in sorted(key for key in config if key.startswith("ISR_") and key not in _KEYS):
        names = [key.removeprefix("ISR_") for key in _KEYS]
        near = difflib.get_close_matches(key.removeprefix("ISR_"), names, 1, 0.7)
        if near:
            raise ValueError(f"there is no config key {key}: did you mean ISR_{near[0]}?")
        logger.warning("there is no config key %s: it has no effect", key)


def _truth(key: str, value: t.Any) -> bool | None:
    """A truth value, also as the environment has it."""
    if value is None:
        return None
    found = _TRUTH.get(str(value).strip().lower()) if isinstance(value, str | int) else None
    if found is None:
        raise TypeError(f"{key} takes True or False, not {value!r}")
    return found


def _note_error(app: Flask, exception: BaseException, **extra: t.Any) -> None:
    """Let `ISRMiddleware.pages` say what was raised, and not only that the answer was a 500."""
    ISRMiddleware.note_error(request.environ, exception)


def _wrapped(app: Flask) -> _Wrapped:
    return t.cast(_Wrapped, app.extensions[_WRAPPED])


def _origin(app: Flask, middleware: ISRMiddleware) -> Origin | None:
    """Where the pages are that a path names, as `flask.url_for` has it."""
    if has_request_context():
        return middleware.origin_of(request.environ)
    root = app.config["APPLICATION_ROOT"].rstrip("/")
    return middleware.origin_of(
        {
            "wsgi.url_scheme": app.config["PREFERRED_URL_SCHEME"],
            "HTTP_HOST": app.config["SERVER_NAME"] or "",
            "SCRIPT_NAME": root.encode().decode("latin-1"),
        }
    )


def _here() -> tuple[ISRMiddleware, Origin | None]:
    """The middleware of the current app, and where its pages are."""
    if not current_app:
        raise RuntimeError("work in an app context, or call the method of the middleware")
    if "isr" not in current_app.extensions:
        raise RuntimeError("this app has no ISR extension: call ISR(app) first")
    wrapped = _wrapped(current_app)
    return wrapped.middleware, _origin(wrapped.flask, wrapped.middleware)


def revalidate(
    *paths: str, only_generated: bool = False, workers: int | None = None
) -> list[Result]:
    """`wsgi_isr.ISRMiddleware.revalidate` of the current app.

    Commit first: the page is rendered by another request, which sees what is committed. Outside
    of a request ``SERVER_NAME``, ``PREFERRED_URL_SCHEME`` and ``APPLICATION_ROOT`` say where a
    page is, as they do for `flask.url_for`, unless ``ISR_BASE_URL`` does.
    """
    middleware, origin = _here()
    render = middleware.is_enabled()
    return middleware.on_demand().revalidate(paths, only_generated, origin, workers, render)


def revalidate_tag(*tags: str, expire: bool = False) -> None:
    """`wsgi_isr.ISRMiddleware.revalidate_tag` of the current app."""
    _here()[0].revalidate_tag(*tags, expire=expire)


def invalidate(*patterns: str, expire: bool = False) -> None:
    """`wsgi_isr.ISRMiddleware.invalidate` of the current app."""
    middleware, origin = _here()
    middleware.on_demand().invalidate(patterns, expire, origin)


@click.group("isr", commands=group.commands)
@with_appcontext
def commands() -> None:
    """Act on the pages of this app."""
    app = _wrapped(current_app).flask
    try:
        click.get_current_context().obj = app.extensions["isr"].cli_app(app)
    except (TypeError, ValueError, ImportError) as error:
        raise click.ClickException(str(error)) from error
