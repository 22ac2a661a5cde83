"""`isr_page` for views of Django, sync and async, and what `serve_page` lets other adapters do."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import typing as t
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar

from asgiref.sync import async_to_sync, iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from ..views import SHELL, CurrentPage, Declaration, IsrPage, View, declare

logger = logging.getLogger("wsgi_isr")

_current: ContextVar[CurrentPage | None] = ContextVar("wsgi_isr.page", default=None)
#: The page that is being rendered, if one is.
current_page = _current.get


def _decorate(view: View, declaration: Declaration) -> View:
    if not callable(view):
        raise TypeError("@isr_page stands on a view, not on the outcome of path()")
    # Not what it wraps: `method_decorator` wraps methods.
    is_method = inspect.isfunction(view) and "self" in view.__code__.co_varnames[:1]
    if isinstance(view, type) or is_method:
        raise TypeError(
            f"@isr_page stands on {view.__qualname__} through a class decorator: "
            "@method_decorator(isr_page(...), name='dispatch')"
        )
    is_async = iscoroutinefunction(view)

    def wrapper(request: HttpRequest, /, *args: t.Any, **values: t.Any) -> t.Any:
        if (shell := request.META.pop(SHELL, None)) is not None:
            if iscoroutinefunction(shell) != is_async:
                shell = sync_to_async(shell) if is_async else async_to_sync(shell)
            return shell(request, *args, **values)
        # Django's test client has no middleware around it.
        meta = request.META
        if "wsgi_isr.middleware" not in meta and meta.get("SERVER_NAME") != "testserver":
            _warn_once()
        current = declaration.begin(view, request.META, request, *args, **values)
        return serve_page(request, current, lambda: view(request, *args, **values))

    wrapper = declare(view, wrapper, declaration)
    return t.cast(View, markcoroutinefunction(wrapper)) if is_async else wrapper


isr_page = IsrPage(_decorate, current_page)


@functools.cache
def _warn_once() -> None:
    logger.warning(
        "@isr_page has no effect: in wsgi.py, import get_wsgi_application from wsgi_isr.django "
        "(there is no ASGI)"
    )


def serve_page(request: HttpRequest, current: CurrentPage, view: Callable[[], t.Any]) -> t.Any:
    """The response of a view, or an awaitable of it, as that of a page.

    While the view runs and its template is rendered, `isr_page.current` is ``current``.
    """
    with _rendering(request, current):
        response = view()
    if inspect.isawaitable(response):
        return _serve_later(request, current, response)
    return _finish(request, current, response)


async def _serve_later(request: HttpRequest, current: CurrentPage, view: Awaitable[t.Any]) -> t.Any:
    with _rendering(request, current):
        response = await view
    return _finish(request, current, response)


@contextlib.contextmanager
def _rendering(request: HttpRequest, current: CurrentPage) -> Iterator[None]:
    before = _current.get()
    _current.set(current)
    try:
        yield
    except BaseException:
        # A 404 that Django makes of it is a page, too.
        request._wsgi_isr_page = current
        raise
    finally:
        _current.set(before)


def _finish(request: HttpRequest, current: CurrentPage, response: t.Any) -> t.Any:
    def end(response: object) -> None:
        forget()
        write(request, current, response)

    if getattr(response, "is_rendered", True):
        write(request, current, response)
    else:
        # A TemplateResponse: its template may add tags.
        _current.set(current)
        response.add_post_render_callback(end)
    return response


def write(request: HttpRequest, current: CurrentPage, response: object) -> None:
    """Declare a response as a page, unless it says so itself."""
    if isinstance(response, HttpResponseBase) and not response.has_header("ISR-Revalidate"):
        for name, value in current.headers(request.get_full_path()):
            response[name] = value


def forget() -> None:
    """After a request: whatever became of its template."""
    _current.set(None)
