"""``POST /_isr/revalidate``: what a CMS calls when something was published."""

from __future__ import annotations

import hmac
import json
import typing as t
from collections.abc import Callable

from flask import Flask
from flask import request
from werkzeug.exceptions import RequestEntityTooLarge

from ..middleware import ISRMiddleware
from ..ondemand import RevalidationError
from ..render import current_origin

#: Bytes of a call, and names of each kind in it.
MAX_LENGTH = 256 * 1024
MAX_NAMES = 1000

_KINDS = ("paths", "tags", "patterns")


def add_route(app: Flask, middleware: ISRMiddleware, secret: str | bytes, prefix: str) -> None:
    """Let whoever has the secret revalidate paths, tags and patterns.

    :raises ValueError: for a prefix that is no path.
    :raises TypeError: for a secret of the wrong kind.
    """
    if not isinstance(secret, str | bytes):
        raise TypeError("ISR_SECRET takes a text or bytes")
    if not prefix.startswith("/"):
        raise ValueError(f"ISR_URL_PREFIX starts with /, as in '/_isr', not {prefix!r}")
    token = secret.encode() if isinstance(secret, str) else secret

    def revalidate() -> t.Any:
        # One answer for every wrong or missing token, before anything else is looked at.
        if not _is_authorized(token):
            return {"error": "unauthorized"}, 401, {"WWW-Authenticate": "Bearer"}
        try:
            call = _read()
            return _perform(middleware, call)
        except RequestEntityTooLarge:
            return {"error": f"the body has at most {MAX_LENGTH} bytes"}, 413
        except ValueError as error:
            return {"error": str(error)}, 400

    rule = prefix.rstrip("/") + "/revalidate"
    app.add_url_rule(rule, "isr_revalidate", revalidate, methods=["POST"])


def _is_authorized(token: bytes) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    # On bytes, which WSGI spells as latin-1: compare_digest refuses texts beyond ASCII.
    matches = hmac.compare_digest(given.strip().encode("latin-1", "replace"), token)
    return matches and scheme.lower() == "bearer"


def _read_body() -> bytes:
    """
    :raises RequestEntityTooLarge: for a body over our bound, or over that of the app.
    """
    body = b""
    while block := request.stream.read(MAX_LENGTH + 1 - len(body)):
        body += block
        if len(body) > MAX_LENGTH:
            raise RequestEntityTooLarge
    return body


def _read() -> dict[str, t.Any]:
    try:
        call = json.loads(_read_body())
    except (ValueError, RecursionError):
        call = None
    if not isinstance(call, dict):
        raise ValueError('the body is a JSON object, as in {"paths": ["/blog/1"]}')
    unknown = set(call) - {*_KINDS, "expire"}
    if unknown:
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
    return call


def _perform(middleware: ISRMiddleware, call: dict[str, t.Any]) -> t.Any:
    """
    :raises ValueError: before anything is done, for what is no path, tag or pattern.
    """
    paths, tags, patterns = (call.get(kind, []) for kind in _KINDS)
    expire = call.get("expire", False)
    ondemand, origin = middleware._on_demand(), current_origin.get()
    ondemand.check(paths, tags, patterns, origin)
    failures: dict[str, str] = {}
    results: list[dict[str, t.Any]] = []

    def attempt(function: Callable[[], None]) -> None:
        try:
            function()
        except RevalidationError as error:
            failures.update({name: str(why) for name, why in error.failures.items()})

    def render() -> None:
        rendered = ondemand.each(paths, False, origin, middleware, not middleware.is_enabled())
        for path, result in rendered:
            error = result.error
            why = None if error is None else str(error) or type(error).__name__
            url, status = result.url, result.status
            results.append({"path": path, "url": url, "status": status, "error": why})
            if why is not None:
                failures.setdefault(path, why)

    # Marks before renders, so that a page is rendered after all that the call is about.
    attempt(lambda: middleware.revalidate_tag(*tags, expire=expire))
    attempt(lambda: middleware.invalidate(*patterns, expire=expire))
    attempt(render)
    answer = {"revalidated": not failures, "results": results, "failures": failures}
    return answer, 500 if failures else 200
