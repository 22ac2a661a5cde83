"""What the extension adds to an app: ``POST /_isr/revalidate``, and draft mode with its cookie."""

from __future__ import annotations

import hmac
import json
import logging
import typing as t
from collections.abc import Callable

from flask import Flask, Response, current_app, request
from itsdangerous import BadData, URLSafeTimedSerializer
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.sansio.http import parse_cookie

from ..middleware import ISRMiddleware
from ..ondemand import RevalidationError

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

logger = logging.getLogger("wsgi_isr")

#: Bytes of a call, names of each kind in it, and renders at a time.
MAX_LENGTH = 256 * 1024
MAX_NAMES = 1000
MAX_WORKERS = 16
#: Characters of a secret under which it can be guessed.
MIN_SECRET = 16

_KINDS = ("paths", "tags", "patterns")

COOKIE = "isr_draft"
#: Seconds that draft mode lasts.
LIFETIME = 3600


def add_route(app: Flask, middleware: ISRMiddleware, secret: str | bytes, prefix: str) -> None:
    """Let those who have the secret revalidate paths, tags and patterns.

    :raises ValueError: for a prefix that is no path.
    :raises TypeError: for a secret of the wrong kind.
    """
    if not isinstance(secret, str | bytes):
        raise TypeError("ISR_SECRET takes a text or bytes")
    if not isinstance(prefix, str) or not prefix.startswith("/"):
        raise ValueError(f"ISR_URL_PREFIX starts with /, as in '/_isr', not {prefix!r}")
    token = secret.encode() if isinstance(secret, str) else secret
    if len(token) < MIN_SECRET:
        logger.warning("ISR_SECRET has fewer than %d characters: it can be guessed", MIN_SECRET)

    def revalidate() -> t.Any:
        # One answer for every wrong or missing token, before anything else is read.
        if not _is_authorized(token):
            return {"error": "unauthorized"}, 401, {"WWW-Authenticate": "Bearer"}
        try:
            return _perform(middleware, _read())
        except RequestEntityTooLarge:
            return {"error": f"the body has at most {MAX_LENGTH} bytes"}, 413
        except ValueError as error:
            return {"error": str(error)}, 400

    # Not through `add_url_rule`, which refuses rules once a request was served.
    path = f"{prefix.rstrip('/')}/revalidate"
    app.view_functions["isr_revalidate"] = revalidate
    app.url_map.add(app.url_rule_class(path, endpoint="isr_revalidate", methods=["POST"]))


def _is_authorized(token: bytes) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    # On bytes, which WSGI spells as latin-1: compare_digest refuses texts beyond ASCII.
    matches = hmac.compare_digest(given.strip().encode("latin-1", "replace"), token)
    return matches and scheme.lower() == "bearer"


def _read() -> dict[str, t.Any]:
    """
    :raises RequestEntityTooLarge: for a body over our bound, or over that of the app.
    :raises ValueError: for one that asks for nothing that there is.
    """
    body = b""
    while block := request.stream.read(MAX_LENGTH + 1 - len(body)):
        body += block
        if len(body) > MAX_LENGTH:
            raise RequestEntityTooLarge
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):
        call = None
    if not isinstance(call, dict):
        raise ValueError('the body is a JSON object, as in {"paths": ["/blog/1"]}')
    if unknown := set(call) - {*_KINDS, "expire", "workers"}:
        raise ValueError(f"unknown: {', '.join(sorted(unknown))}; there are paths, tags, patterns")
    for kind in _KINDS:
        names = call.get(kind, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{kind} is a list of texts")
        if len(names) > MAX_NAMES:
            raise ValueError(f"{kind} has at most {MAX_NAMES} items")
    if not any(call.get(kind) for kind in _KINDS):
        raise ValueError("name at least one of paths, tags, patterns")
    if not isinstance(call.get("expire", False), bool):
        raise ValueError("expire is true or false")
    workers = call.get("workers", 1)
    if type(workers) is not int or not 1 <= workers <= MAX_WORKERS:
        raise ValueError(f"workers is a whole number from 1 to {MAX_WORKERS}")
    return call


def _perform(middleware: ISRMiddleware, call: dict[str, t.Any]) -> t.Any:
    """
    :raises ValueError: before anything is done, for what is no path, tag or pattern.
    """
    paths, tags, patterns = (call.get(kind, []) for kind in _KINDS)
    expire = call.get("expire", False)
    on_demand, origin = middleware.on_demand(), middleware.origin_of(request.environ)
    on_demand.check(paths, tags, patterns, origin)
    failures: dict[str, str] = {}
    results: list[dict[str, t.Any]] = []

    def attempt(function: Callable[[], None]) -> None:
        try:
            function()
        except RevalidationError as error:
            failures.update({name: str(why) for name, why in error.failures.items()})

    def render() -> None:
        is_enabled = middleware.is_enabled()
        rendered = on_demand.each(paths, False, origin, call.get("workers"), is_enabled)
        for path, result in rendered:
            error = result.error
            why = None if error is None else str(error) or type(error).__name__
            results.append({"path": path, **result._asdict(), "error": why})
            if why is not None:
                failures.setdefault(path, why)

    # Invalidations before renders, so that a page is rendered after all that the call is about.
    attempt(lambda: on_demand.revalidate_tag(tags, expire))
    attempt(lambda: on_demand.invalidate(patterns, expire, origin))
    attempt(render)
    answer = {"revalidated": not failures, "results": results, "failures": failures}
    return answer, 500 if failures else 200


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
