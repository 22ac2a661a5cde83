"""``POST /_isr/revalidate``: what a CMS calls when something was published."""

from __future__ import annotations

import hmac
import json
import typing as t
from collections.abc import Callable

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.wrappers import Request, Response

from .metrics import bearer
from .middleware import ISRMiddleware
from .ondemand import RevalidationError, called_by

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: Bytes of a call, names of each kind in it, and renders at a time.
MAX_LENGTH = 256 * 1024
MAX_NAMES = 1000
MAX_WORKERS = 16
_KINDS = ("paths", "tags", "patterns")


def answer(middleware: ISRMiddleware, token: bytes, request: Request) -> Response:
    """Let those who have the secret revalidate paths, tags and patterns."""
    # One answer for every wrong or missing token, before anything else is read.
    if not hmac.compare_digest(bearer(request.environ), token):
        response = _json({"error": "unauthorized"}, 401)
        response.headers["WWW-Authenticate"] = "Bearer"
        return response
    try:
        with called_by(f"POST {request.path} from {request.remote_addr}"):
            return _json(*_perform(middleware, _read(request.stream), request.environ))
    except RequestEntityTooLarge:
        return _json({"error": f"the body has at most {MAX_LENGTH} bytes"}, 413)
    except ValueError as error:
        return _json({"error": str(error)}, 400)


def _json(content: dict[str, t.Any], status: int) -> Response:
    return Response(json.dumps(content), status, mimetype="application/json")


def _read(stream: t.IO[bytes]) -> dict[str, t.Any]:
    """
    :raises RequestEntityTooLarge: for a body over our bound, or over that of the app.
    :raises ValueError: for one that asks for nothing that there is.
    """
    body = b""
    while block := stream.read(MAX_LENGTH + 1 - len(body)):
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
            raise ValueError(f"{kind} is a list of strings")
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


def _perform(
    middleware: ISRMiddleware, call: dict[str, t.Any], environ: WSGIEnvironment
) -> tuple[dict[str, t.Any], int]:
    """
    :raises ValueError: before anything is done, for what is no path, tag or pattern.
    """
    paths, tags, patterns = (call.get(kind, []) for kind in _KINDS)
    expire = call.get("expire", False)
    on_demand, origin = middleware.on_demand(), middleware.origin_of(environ)
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
    results.sort(key=lambda result: (paths.index(result["path"]), result["url"]))
    answer = {"revalidated": not failures, "results": results, "failures": failures}
    return answer, 500 if failures else 200
