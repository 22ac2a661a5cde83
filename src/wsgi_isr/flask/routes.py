"""What the extension adds to an app: routes under ``/_isr``, and draft mode with its cookie."""

from __future__ import annotations

import typing as t

from flask import Flask, Response, current_app, request
from itsdangerous import BadData, URLSafeTimedSerializer
from werkzeug.sansio.http import parse_cookie

from ..middleware import ISRMiddleware
from ..route import answer
from ..status import PATHS, Status

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: What is never a page, whatever rules say.
ENDPOINTS = ("isr_revalidate", "isr_status")

COOKIE = "isr_draft"
#: Seconds that draft mode lasts.
LIFETIME = 3600


def add_route(app: Flask, middleware: ISRMiddleware, secret: str | bytes, prefix: str) -> None:
    """Let those who have the secret revalidate paths, tags and patterns, and see the status page.

    :raises ValueError: for a prefix that is no path.
    :raises TypeError: for a secret of the wrong kind.
    """
    if not isinstance(secret, str | bytes):
        raise TypeError("ISR_SECRET takes a string or bytes")
    if not isinstance(prefix, str) or not prefix.startswith("/"):
        raise ValueError(f"ISR_URL_PREFIX starts with /, as in '/_isr', not {prefix!r}")
    token = secret.encode() if isinstance(secret, str) else secret
    status = Status(middleware, secret=secret)

    def revalidate() -> t.Any:
        return answer(middleware, token, request)

    # Not through `add_url_rule`, which refuses rules once a request was served.
    prefix = prefix.rstrip("/")
    path = f"{prefix}/revalidate"
    app.view_functions["isr_revalidate"] = revalidate
    app.url_map.add(app.url_rule_class(path, endpoint="isr_revalidate", methods=["POST"]))

    def show_status() -> t.Any:
        root, _, name = request.environ["PATH_INFO"].rpartition("/")
        mount = request.environ.get("SCRIPT_NAME", "") + root
        environ = {**request.environ, "SCRIPT_NAME": mount, "PATH_INFO": f"/{name}"}
        return app.response_class.from_app(status, environ, buffered=True)

    app.view_functions["isr_status"] = show_status
    for path in PATHS:
        rule = app.url_rule_class(prefix + path, endpoint="isr_status", methods=["GET", "POST"])
        app.url_map.add(rule)


# Draft mode: a visitor with a signed cookie always gets a fresh render, which is never stored.


def _serializer(app: Flask) -> URLSafeTimedSerializer:
    if not app.secret_key:
        raise RuntimeError("draft mode needs a secret key: set app.secret_key")
    # As for Flask's sessions: older keys are still read. The newest one comes last.
    keys = [*(app.config.get("SECRET_KEY_FALLBACKS") or ()), app.secret_key]
    return URLSafeTimedSerializer(keys, salt="wsgi-isr-draft")


def _attributes() -> dict[str, t.Any]:
    path = current_app.config["APPLICATION_ROOT"]
    return {"httponly": True, "samesite": "Lax", "secure": request.is_secure, "path": path}


def enable_draft(response: Response) -> None:
    """Let the visitor see every page as a fresh render, for an hour.

    :raises RuntimeError: for an app without a secret key.
    """
    value = _serializer(current_app).dumps("draft")
    response.set_cookie(COOKIE, value, max_age=LIFETIME, **_attributes())


def disable_draft(response: Response) -> None:
    """Let the visitor see stored pages again."""
    response.delete_cookie(COOKIE, **_attributes())


def is_draft(app: Flask, environ: WSGIEnvironment) -> bool:
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
