"""What operators reach under ``ISR["URL_PREFIX"]``; this module is the URLconf of its requests."""

from __future__ import annotations

import functools
import hashlib
import hmac
from urllib.parse import quote

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseNotFound
from django.urls import re_path
from django.views.decorators.csrf import csrf_exempt
from werkzeug.wrappers import Response

from ..middleware import ISRMiddleware
from ..rules import to_wsgi
from ..status import PATHS, Status
from .config import option

#: Where a request says that a member of the staff sent it.
_STAFF = "wsgi_isr.staff"


def _name(path: str) -> str | None:
    """What follows the prefix of these paths; ``None`` for other paths."""
    prefix = str(option("URL_PREFIX", "/_isr")).rstrip("/")
    return path.removeprefix(prefix) if f"{path}/".startswith(f"{prefix}/") else None


def serves(path: str) -> bool:
    """Whether a path is one of these."""
    return _name(path) in PATHS


@csrf_exempt
def operate(request: HttpRequest) -> HttpResponse:
    """Let the staff, and those who have the secret, see and change what is stored."""
    middleware: ISRMiddleware = request.META["wsgi_isr.middleware"]
    secret = option("SECRET") or b""
    secret = secret.encode() if isinstance(secret, str) else secret
    name = _name(request.path_info) or ""
    user = getattr(request, "user", None)
    is_staff = bool(user is not None and user.is_active and user.is_staff)
    if not secret and (not is_staff or name == "/revalidate"):
        return HttpResponseNotFound()
    # Django knows the mount point that visitors see, also by `FORCE_SCRIPT_NAME`.
    root = to_wsgi(quote(request.path.removesuffix(name)))
    environ = {**request.META, _STAFF: is_staff, "SCRIPT_NAME": root, "PATH_INFO": name}
    response = Response.from_app(_status(middleware, secret), environ, buffered=True)
    # One cookie at most.
    headers = dict(response.headers)
    return HttpResponse(response.get_data(), status=response.status_code, headers=headers)


@functools.lru_cache(2)
def _status(middleware: ISRMiddleware, secret: bytes) -> Status:
    """One for all requests, because it counts attempts to log in."""
    if not secret:
        # The same in all workers, and nobody logs in with it.
        key = settings.SECRET_KEY
        secret = hmac.digest(key.encode() if isinstance(key, str) else key, b"isr", hashlib.sha256)
    return Status(middleware, secret=secret, admit=lambda environ: environ.get(_STAFF))


#: For `LoginRequiredMiddleware`: these have a login of their own.
operate.login_required = False
urlpatterns = [re_path("", operate)]
