"""`get_wsgi_application`: Django's handler in the middleware, as the settings have it."""

from __future__ import annotations

import sys
import threading
import typing as t

import django
from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from ..metadata import GONE
from ..middleware import ISRMiddleware
from ..refusals import COOKIES
from ..rules import digest_of
from ..views import ViewRules
from . import config, pages, paths, routes

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: What to do about a cookie that keeps an answer from being a page, in Django's words.
_REMEDIES = {
    "CSRF_COOKIE_NAME": "a form with {% csrf_token %} belongs to one visitor: fetch it from a view "
    "that is no page, or let the view that takes it be csrf_exempt; or take isr_page off this view",
    "SESSION_COOKIE_NAME": "request.session is written, or gets a message, while the page is "
    "rendered: do that in a view that is no page, as the one that takes the form",
}
COOKIES["messages"] = (
    "messages are for one visitor: add them in the view that takes the form, and name the cookies "
    "of sessions and messages in ISR['BYPASS'], so that they are seen"
)
#: Whether this process has the application of ``wsgi.py``.
is_served = False
_middleware: ISRMiddleware | None = None
_lock = threading.Lock()


class Handler(WSGIHandler):
    """Django's handler, and what only it can see of pages."""

    def get_response(self, request: HttpRequest) -> HttpResponseBase:
        if routes.serves(request.path_info):
            request.urlconf = routes.__name__
        try:
            response: HttpResponseBase = super().get_response(request)
        finally:
            pages.forget()
        page = getattr(request, "_wsgi_isr_page", None)
        if page is not None and response.status_code in GONE:
            # The view raised Http404, and Django made a response of it.
            pages.write(request, page, response)
        return response


def get_wsgi_application() -> ISRMiddleware:
    """The WSGI application of the project; for ``wsgi.py``, in place of Django's own.

    :raises ImproperlyConfigured: for a key of the setting ``ISR`` that there is not, or without
        this app in ``INSTALLED_APPS``.
    :raises ValueError: or ``TypeError``, for a value that cannot work.
    """
    global _middleware, is_served
    django.setup(set_prefix=False)
    _middleware, is_served = make_middleware(), True
    return _middleware


def get_middleware() -> ISRMiddleware:
    """The middleware of this process; outside of a server (a command, a task queue) one like it."""
    global _middleware
    if _middleware is None:
        with _lock:
            _middleware = _middleware or make_middleware()
    return _middleware


def make_middleware() -> ISRMiddleware:
    """
    :raises ImproperlyConfigured: or ``ValueError``, ``TypeError``, for what cannot work.
    """
    if not apps.is_installed("wsgi_isr.django"):
        raise ImproperlyConfigured("add 'wsgi_isr.django' to INSTALLED_APPS")
    options, rules, build = config.options(), config.option("RULES"), config.option("BUILD_ID")
    if build is None:
        build = "-".join(filter(None, (config.build_digest(), digest_of(rules))))
    COOKIES.update({getattr(settings, name): what for name, what in _REMEDIES.items()})
    found = ViewRules(rules, paths.find, paths.listed)
    middleware = ISRMiddleware(Handler(), rules=found, build_id=build, **options)
    middleware.is_enabled = config.is_enabled
    middleware.set_bypass(_bypass)
    return middleware


def _bypass(environ: WSGIEnvironment) -> str | None:
    if not config.is_enabled():
        return "disabled"
    if settings.SECURE_SSL_REDIRECT and not _is_secure(environ):
        # Django redirects them to https.
        return "bypass"
    return None


def _is_secure(environ: WSGIEnvironment) -> bool:
    name, secure = settings.SECURE_PROXY_SSL_HEADER or ("", "")
    if name in environ:
        return bool(environ[name].partition(",")[0].strip() == secure)
    return bool(environ["wsgi.url_scheme"] == "https")


def note_error(sender: object, request: t.Any = None, **extra: t.Any) -> None:
    """Let `ISRMiddleware.pages` say what was raised, and not only that the answer was a 500."""
    error = sys.exception()
    if error is not None and request is not None:
        ISRMiddleware.note_error(request.META, error)
