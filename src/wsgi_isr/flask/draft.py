"""Draft mode: a visitor with a signed cookie always gets a fresh render, which is never stored."""

from __future__ import annotations

import typing as t

from flask import current_app
from flask import Flask
from flask import request
from flask import Response
from itsdangerous import BadSignature
from itsdangerous import URLSafeTimedSerializer
from werkzeug.http import parse_cookie

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

COOKIE = "isr_draft"
#: Seconds that draft mode lasts.
LIFETIME = 3600


def _serializer(app: Flask) -> URLSafeTimedSerializer:
    if not app.secret_key:
        raise RuntimeError("draft mode needs a secret key: set app.secret_key")
    # As for Flask's sessions: older keys are still read. The newest one comes last.
    keys = [*(app.config.get("SECRET_KEY_FALLBACKS") or ()), app.secret_key]
    return URLSafeTimedSerializer(keys, salt="wsgi-isr-draft")


def enable(response: Response) -> None:
    value = _serializer(current_app).dumps("draft")
    response.set_cookie(
        COOKIE,
        value,
        max_age=LIFETIME,
        httponly=True,
        samesite="Lax",
        secure=request.is_secure,
        path=current_app.config["APPLICATION_ROOT"],
    )


def disable(response: Response) -> None:
    response.delete_cookie(
        COOKIE,
        httponly=True,
        samesite="Lax",
        secure=request.is_secure,
        path=current_app.config["APPLICATION_ROOT"],
    )


def is_draft(app: Flask, environ: WSGIEnvironment) -> bool:
    """Whether a request has a draft cookie that is ours and not too old."""
    cookies = environ.get("HTTP_COOKIE")
    # All other visitors pay for this line alone.
    if not cookies or COOKIE not in cookies or not app.secret_key:
        return False
    value = parse_cookie(environ).get(COOKIE, "")
    try:
        return bool(_serializer(app).loads(value, max_age=LIFETIME) == "draft")
    except BadSignature:
        return False
