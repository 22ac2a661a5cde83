"""``POST /_isr/revalidate``: what a CMS calls when something was published."""

from __future__ import annotations

import hmac
import typing as t
from collections.abc import Callable

from flask import Flask
from flask import request
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import RequestEntityTooLarge

from ..middleware import ISRMiddleware
from ..ondemand import Result
from ..ondemand import RevalidationError

#: Bytes of a call, and names of each kind in it.
MAX_LENGTH = 256 * 1024
MAX_NAMES = 1000

_KINDS = ("paths", "tags", "patterns")


def add_route(app: Flask, middleware: ISRMiddleware, secret: str | bytes, prefix: str) -> None:
    """Let whoever has the secret revalidate paths, tags and patterns.

    :raises ValueError: for a prefix that is no path.
    """
    if not prefix.startswith("/"):
        raise ValueError(f"ISR_URL_PREFIX starts with /, as in '/_isr', not {prefix!r}")
    token = secret.encode() if isinstance(secret, str) else secret

    def revalidate() -> t.Any:
        # One answer for every wrong or missing token, before anything else is looked at.
        if not _is_authorized(token):
            return {"error": "unauthorized"}, 401, {"WWW-Authenticate": "Bearer"}
        try:
            call = _read()
        except (ValueError, HTTPException) as error:
            code = 413 if isinstance(error, RequestEntityTooLarge) else 400
            return {"error": str(error)}, code
        return _perform(middleware, call)

    rule = prefix.rstrip("/") + "/revalidate"
    app.add_url_rule(rule, "isr_revalidate", revalidate, methods=["POST"])


def _is_authorized(token: bytes) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    # On bytes: compare_digest refuses texts beyond ASCII.
    matches = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token)
    return matches and scheme.lower() == "bearer"


def _read() -> dict[str, t.Any]:
    if (request.content_length or 0) > MAX_LENGTH:
        raise RequestEntityTooLarge(f"at most {MAX_LENGTH} bytes")
    request.max_content_length = MAX_LENGTH
    call = request.get_json(force=True, silent=True)
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
    expire = call.get("expire", False)
    failures: dict[str, str] = {}
    results: list[Result] = []

    def attempt(function: Callable[[], list[Result] | None]) -> None:
        try:
            results.extend(function() or [])
        except RevalidationError as error:
            results.extend(error.results)
            failures.update({name: str(why) for name, why in error.failures.items()})

    # Marks before renders, so that a page is rendered after all that the call is about.
    try:
        attempt(lambda: middleware.revalidate_tag(*call.get("tags", []), expire=expire))
        attempt(lambda: middleware.invalidate(*call.get("patterns", []), expire=expire))
        attempt(lambda: middleware.revalidate(*call.get("paths", [])))
    except ValueError as error:
        return {"error": str(error)}, 400
    answer = {
        "revalidated": not failures,
        "results": [
            {"url": url, "status": status, "error": None if error is None else str(error)}
            for url, status, error, *_ in results
        ],
        "failures": failures,
    }
    return answer, 500 if failures else 200
