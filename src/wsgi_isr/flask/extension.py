"""`ISR`: wraps a Flask app in the middleware, and finds the rules in its views."""

from __future__ import annotations

import os
import typing as t
import weakref
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from urllib.parse import quote

from flask import current_app
from flask import Flask
from flask import got_request_exception
from flask import has_request_context
from flask import request
from flask import Response
from werkzeug.exceptions import HTTPException

from ..middleware import ISRMiddleware
from ..ondemand import Result
from ..render import current_origin
from ..render import ERROR
from ..rules import make_resolver
from ..rules import Resolver
from ..rules import Rule
from . import draft
from .build import build_digest
from .commands import commands
from .fallbacks import Listing
from .fallbacks import with_fallback
from .pages import declaration_of
from .paths import Generators
from .paths import prerender_paths
from .route import add_route

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

GeneratorT = t.TypeVar("GeneratorT", bound="Callable[[], Iterable[t.Any]]")

#: Arguments of the middleware that are config keys as they are, as ``ISR_BASE_URL``.
_OPTIONS = (
    "query",
    "base_url",
    "trusted_hosts",
    "memory_size",
    "max_body_size",
    "workers",
    "executor",
    "render_timeout",
    "previous_builds",
    "key_prefix",
    "signing_key",
    "tags_header",
)
#: Those that are treated here, and those that the extension has beyond the middleware.
_OWN_OPTIONS = ("cache", "rules", "enabled", "build_id", "secret", "url_prefix")


class ISR:
    """Makes pages of a Flask app's views.

    Every argument of `wsgi_isr.ISRMiddleware` is an argument here, and a config key with the
    prefix ``ISR_``; the argument wins. Defaults that differ: ``ISR_ENABLED`` is on, but neither
    in debug mode nor with ``TESTING``, as they stand when a request comes; ``ISR_CACHE`` is files
    in the instance folder; ``ISR_BUILD_ID`` is a digest of the app's Python files and templates.

    :param app: the app, or ``None`` and `init_app` later.
    :raises TypeError: for an argument that does not exist.

    .. code-block:: python

        isr = ISR(app)
    """

    def __init__(self, app: Flask | None = None, **options: t.Any) -> None:
        unknown = set(options) - {*_OPTIONS, *_OWN_OPTIONS}
        if unknown:
            raise TypeError(f"ISR has no argument {', '.join(sorted(unknown))}")
        self._options = options
        self._generators: Generators = []
        self._middlewares: weakref.WeakKeyDictionary[Flask, ISRMiddleware] = (
            weakref.WeakKeyDictionary()
        )
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Wrap the app's ``wsgi_app``.

        Wrap it in ProxyFix afterwards, so that pages see the public scheme and host.

        :raises RuntimeError: for an app that has the extension already.
        """
        if "isr" in app.extensions:
            raise RuntimeError("ISR is registered on this app already")
        config = app.config
        config.setdefault("ISR_ENABLED", None)
        for name, value in self._options.items():
            config[f"ISR_{name.upper()}"] = value
        options = {
            name: config[f"ISR_{name.upper()}"]
            for name in _OPTIONS
            if config.get(f"ISR_{name.upper()}") is not None
        }
        cache = config.get("ISR_CACHE")
        if cache is None:
            cache = "file://" + quote(os.path.join(app.instance_path, "isr-cache"))
        build_id = config.get("ISR_BUILD_ID")
        middleware = ISRMiddleware(
            app.wsgi_app,
            cache,
            rules=self._resolver(app, make_resolver(config.get("ISR_RULES"))),
            build_id=build_digest(app) if build_id is None else build_id,
            **options,
        )

        def is_enabled() -> bool:
            enabled = config["ISR_ENABLED"]
            return not (config["DEBUG"] or config["TESTING"]) if enabled is None else bool(enabled)

        middleware.is_enabled = is_enabled

        def bypass(environ: WSGIEnvironment) -> str | None:
            if not is_enabled():
                return "disabled"
            return "draft" if draft.is_draft(app, environ) else None

        middleware.set_bypass(bypass)
        secret = config.get("ISR_SECRET")
        if secret:
            add_route(app, middleware, secret, config.get("ISR_URL_PREFIX") or "/_isr")
        got_request_exception.connect(_note_error, app)
        app.cli.add_command(commands)
        self._middlewares[app] = middleware
        app.extensions["isr"] = self
        app.wsgi_app = middleware  # type: ignore[method-assign]

    def _resolver(self, app: Flask, others: Resolver | None) -> Resolver:
        """Rules of the views that are declared, then those of ``ISR_RULES``."""
        listing = Listing(app, self._generators)

        def resolve(environ: WSGIEnvironment) -> Rule | None:
            rule = None
            try:
                request = app.request_class(environ, populate_request=False)
                adapter = app.create_url_adapter(request)
                endpoint, values = adapter.match(method="GET") if adapter else ("", {})
            except HTTPException:
                # Unknown, or a redirect to a slash; the app says so better.
                pass
            else:
                declared = declaration_of(app.view_functions.get(endpoint))
                if declared is not None:
                    rule = with_fallback(app, listing, endpoint, dict(values), declared)
            return others(environ) if rule is None and others is not None else rule

        return resolve

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

    def enable_draft(self, response: Response) -> None:
        """Let the visitor see every page as a fresh render, for an hour.

        :raises RuntimeError: for an app without a secret key.
        """
        draft.enable(response)

    def disable_draft(self, response: Response) -> None:
        """Let the visitor see stored pages again."""
        draft.disable(response)

    @property
    def is_draft(self) -> bool:
        """Whether the current request is in draft mode; never while a page is rendered."""
        return draft.is_draft(current_app, request.environ)

    @property
    def middleware(self) -> ISRMiddleware:
        """The middleware of the current app, or of the only one.

        :raises RuntimeError: where it is not clear which app is meant.
        """
        if current_app:
            app = current_app._get_current_object()  # type: ignore[attr-defined]
            if app in self._middlewares:
                return self._middlewares[app]
        if len(self._middlewares) == 1:
            return next(iter(self._middlewares.values()))
        raise RuntimeError("work in an app context of an app that has the ISR extension")


def _note_error(app: Flask, exception: BaseException | None = None, **extra: t.Any) -> None:
    """Let `ISRMiddleware.pages` say what was raised, and not only that the answer was a 500."""
    if "wsgi_isr.reason" in request.environ:
        request.environ[ERROR] = exception


def _middleware() -> ISRMiddleware:
    if not current_app:
        raise RuntimeError("work in an app context, or call the method of the middleware")
    extension = current_app.extensions.get("isr")
    if extension is None:
        raise RuntimeError("this app has no ISR extension: call ISR(app) first")
    return t.cast(ISR, extension).middleware


def revalidate(*paths: str, only_generated: bool = False) -> list[Result]:
    """`wsgi_isr.ISRMiddleware.revalidate` of the current app.

    Commit first: the page is rendered by another request, which sees what is committed.
    """
    middleware = _middleware()
    if current_origin.get() is None and has_request_context():
        token = current_origin.set(middleware.origin_of(request.environ))
        try:
            return middleware.revalidate(*paths, only_generated=only_generated)
        finally:
            current_origin.reset(token)
    return middleware.revalidate(*paths, only_generated=only_generated)


def revalidate_tag(*tags: str, expire: bool = False) -> None:
    """`wsgi_isr.ISRMiddleware.revalidate_tag` of the current app."""
    _middleware().revalidate_tag(*tags, expire=expire)


def invalidate(*patterns: str, expire: bool = False) -> None:
    """`wsgi_isr.ISRMiddleware.invalidate` of the current app."""
    _middleware().invalidate(*patterns, expire=expire)
