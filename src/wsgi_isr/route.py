"""``POST /_isr/revalidate``: what a CMS calls when something was published."""

from __future__ import annotations

import json
import typing as t

from werkzeug.exceptions import MethodNotAllowed, RequestEntityTooLarge
from werkzeug.wrappers import Request, Response

from .middleware import ISRMiddleware
from .ondemand import RevalidationError, called_by

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: Bytes of a call, names of each kind in it, and renders at a time.
MAX_LENGTH = 256 * 1024
MAX_NAMES = 1000
MAX_WORKERS = 16
_KINDS = ("paths", "tags", "patterns")


def answer(middleware: ISRMiddleware, environ: WSGIEnvironment, has_token: bool) -> Response:
    """Let those who have the secret revalidate paths, tags and patterns."""
    request = Request(environ)
    if request.method != "POST":
        return MethodNotAllowed(["POST"]).get_response()
    # One answer for every wrong or missing token, before anything else is read.
    if not has_token:
        response = _json({"error": "unauthorized"}, 401)
        response.headers["WWW-Authenticate"] = "Bearer"
        return response
    request.max_content_length = MAX_LENGTH
    try:
        call = _read(request.get_data())
        with called_by(f"POST {request.root_path}{request.path} from {request.remote_addr}"):
            return _perform(middleware, call)
    except RequestEntityTooLarge:
        return _json({"error": f"the body has at most {MAX_LENGTH} bytes"}, 413)
    except ValueError as error:
        return _json({"error": str(error)}, 400)


def _json(content: dict[str, t.Any], status: int) -> Response:
    return Response(json.dumps(content), status, mimetype="application/json")


def _read(body: bytes) -> dict[str, t.Any]:
    """
    :raises ValueError: for a body that asks for nothing that there is.
    """
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):
        call = None
    if not isinstance(call, dict):
        raise ValueError('the body is a JSON object, as in {"paths": ["/blog/1"]}')
    if unknown := set(call) - {*_KINDS, "expire", "workers"}:
        raise ValueError(f"unknown: {', '.join(sorted(unknown))}; there are paths, tags, patterns")
    for kind in _KINDS:
        names = call.setdefault(kind, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{kind} is a list of strings")
        if len(names) > MAX_NAMES:
            raise ValueError(f"{kind} has at most {MAX_NAMES} items")
    if not any(call[kind] for kind in _KINDS):
        raise ValueError("name at least one of paths, tags, patterns")
    if not isinstance(call.setdefault("expire", False), bool):
        raise ValueError("expire is true or false")
    workers = call.setdefault("workers", None)
    if workers is not None and (type(workers) is not int or not 1 <= workers <= MAX_WORKERS):
        raise ValueError(f"workers is a whole number from 1 to {MAX_WORKERS}")
    return call


def _perform(middleware: ISRMiddleware, call: dict[str, t.Any]) -> Response:
    """
    :raises ValueError: before anything is done, for what is no path, tag or pattern.
    """
    paths, tags, patterns = (call[kind] for kind in _KINDS)
    on_demand = middleware.on_demand(render=middleware.is_enabled())
    renders = on_demand.each(paths, workers=call["workers"])
    failures: dict[str, str] = {}
    results: list[dict[str, t.Any]] = []
    try:
        # Before the renders, so that a page is rendered after all that the call is about.
        if tags or patterns:
            on_demand.invalidate(patterns, call["expire"], tags)
        for path, result in renders if paths else ():
            why = None if result.error is None else str(result.error) or type(result.error).__name__
            results.append({"path": path, **result._asdict(), "error": why})
            if why is not None:
                failures.setdefault(path, why)
    except RevalidationError as error:
        # The store has failed, so nothing is rendered.
        failures = dict.fromkeys(paths, str(error))
        failures |= {name: str(why) for name, why in error.failures.items()}
    results.sort(key=lambda result: (paths.index(result["path"]), result["url"]))
    answer = {"revalidated": not failures, "results": results, "failures": failures}
    return _json(answer, 500 if failures else 200)
