"""`ISR`: wraps a Flask app in the middleware, and finds the rules in its views."""

from __future__ import annotations

import os
import typing as t
import weakref
from urllib.parse import quote

from flask import current_app
from flask import Flask
from flask import has_request_context
from flask import request
from werkzeug.exceptions import HTTPException

from ..middleware import ISRMiddleware
from ..ondemand import Result
from ..rules import make_resolver
from ..rules import Resolver
from ..rules import Rule
from ..visit import current_origin
from .build import build_digest
from .pages import declaration_of

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: Arguments of the middleware that are config keys as they are, as ``ISR_BASE_URL``.
_OPTIONS = (
    "query",
    "base_url",
    "trusted_hosts",
    "memory_size",
    "max_body_size",
    "workers",
    "render_timeout",
    "key_prefix",
    "signing_key",
)


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
        unknown = set(options) - {*_OPTIONS, "cache", "rules", "enabled", "build_id"}
        if unknown:
            raise TypeError(f"ISR has no argument {', '.join(sorted(unknown))}")
        self._options = options
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
            rules=_resolver(app, make_resolver(config.get("ISR_RULES"))),
            build_id=build_digest(app) if build_id is None else build_id,
            **options,
        )

        def is_enabled() -> bool:
            enabled = config["ISR_ENABLED"]
            return not (config["DEBUG"] or config["TESTING"]) if enabled is None else bool(enabled)

        middleware.is_enabled = is_enabled
        middleware.set_bypass(lambda environ: None if is_enabled() else "disabled")
        self._middlewares[app] = middleware
        app.extensions["isr"] = self
        app.wsgi_app = middleware  # type: ignore[method-assign]

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


def _resolver(app: Flask, others: Resolver | None) -> Resolver:
    """Rules of the views that are declared, then those of ``ISR_RULES``."""

    def resolve(environ: WSGIEnvironment) -> Rule | None:
        declared = _declared_rule(app, environ)
        if declared is not None or others is None:
            return declared
        return others(environ)

    return resolve


def _declared_rule(app: Flask, environ: WSGIEnvironment) -> Rule | None:
    try:
        adapter = app.create_url_adapter(app.request_class(environ, populate_request=False))
        if adapter is None:
            return None
        endpoint, _ = adapter.match(method="GET")
    except HTTPException:
        # Unknown, or a redirect to a slash; the app says so better.
        return None
    declaration = declaration_of(app.view_functions.get(endpoint))
    return None if declaration is None else declaration.rule


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
