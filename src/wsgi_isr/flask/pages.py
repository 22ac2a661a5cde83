"""`isr_page`: a view whose responses are pages."""

from __future__ import annotations

import contextlib
import functools
import logging
import typing as t
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flask import Flask, Response, after_this_request, current_app, g, has_request_context, request

from ..metadata import check_expire, check_revalidate, check_tags, page_headers
from ..rules import Rule

logger = logging.getLogger("wsgi_isr")

View: t.TypeAlias = "Callable[..., t.Any]"
Tags: t.TypeAlias = "Iterable[str] | Callable[..., Iterable[str]]"

_ATTRIBUTE = "_wsgi_isr_page"
#: The views that `isr_page` stands on.
_decorated: weakref.WeakSet[t.Any] = weakref.WeakSet()


@dataclass
class CurrentPage:
    """What a view says of the page that it is rendering; it may change its mind.

    :param revalidate: seconds the page is fresh, or ``False``.
    :param expire: seconds after which the stale page is not served any more.
    :param reason: why the library renders: ``"miss"``, ``"stale"``, ``"revalidate"``,
        ``"prerender"``; ``None`` where a visitor's own request is answered.
    """

    revalidate: int | t.Literal[False]
    expire: int | None
    tags: set[str] = field(default_factory=set)
    reason: str | None = None


@dataclass(frozen=True)
class Declaration:
    """What a decorator says of a view's pages."""

    rule: Rule
    revalidate: int | t.Literal[False]
    expire: int | None
    tags: Tags
    paths: t.Any = None


def declaration_of(view: object) -> Declaration | None:
    """What `isr_page` said of a view; decorators that use `functools.wraps` may be between."""
    return getattr(view, _ATTRIBUTE, None)


def mistakes(app: Flask) -> Iterator[str]:
    """What is wrong with the views of an app, though the site can go on."""
    views = app.view_functions
    declared = {name for name, view in views.items() if declaration_of(view) is not None}
    used = [getattr(views[name], "__wrapped__", None) for name in declared]
    for endpoint, view in views.items():
        if endpoint not in declared and _is_decorated(view) and view not in used:
            yield (
                f"@isr_page of {endpoint!r} has no effect, because it stands above the route "
                "decorator: put it below"
            )
    readable = {rule.endpoint for rule in app.url_map.iter_rules() if "GET" in (rule.methods or ())}
    for endpoint in sorted(declared - readable):
        yield f"@isr_page of {endpoint!r} has no effect: pages are answers to GET"


def _is_decorated(view: object) -> bool:
    try:
        return view in _decorated
    except TypeError:
        # What cannot be hashed, or has no weak references.
        return False


class IsrPage:
    """Declares that a view's responses are pages.

    It stands below the route decorator, on async views too, and in the ``decorators`` of a
    ``MethodView``. The app then sees only canonical requests for the view's URLs: no cookies, no
    credentials, no query parameters but the declared ones.

    :param revalidate: seconds a page is fresh, 1 or more; ``False``: until it is revalidated on
        demand.
    :param expire: seconds after which a stale page is not served any more.
    :param tags: names by which pages are invalidated together, or a callable that takes the
        URL's values and returns them.
    :param query: query parameters that are part of a page's key.
    :param vary: request headers that are part of a page's key, each with the values that it is
        reduced to; ``None`` among them stands for its absence.
    :param paths: what to prerender: a generator function, or an iterable.
    :param fallback: ``"blocking"``: the first visitor waits. ``False``: 404 for what was not
        prerendered. A view: answers a browser at once while the page is rendered behind.
    :raises ValueError: for values that the middleware would refuse.
    :raises TypeError: for a text in place of a list, or for what is no view.

    .. code-block:: python

        @app.get("/blog/<slug>")
        @isr_page(revalidate=60, tags=lambda slug: [f"post:{slug}"])
        def post(slug): ...
    """

    @t.overload
    def __call__(self, view: View, /) -> View: ...

    @t.overload
    def __call__(
        self,
        view: None = None,
        /,
        *,
        revalidate: int | t.Literal[False] = False,
        expire: int | None = None,
        tags: Tags = (),
        query: Sequence[str] = (),
        vary: Mapping[str, Sequence[str | None]] | None = None,
        paths: t.Any = None,
        fallback: t.Any = "blocking",
    ) -> Callable[[View], View]: ...

    def __call__(
        self,
        view: View | None = None,
        /,
        *,
        revalidate: int | t.Literal[False] = False,
        expire: int | None = None,
        tags: Tags = (),
        query: Sequence[str] = (),
        vary: Mapping[str, Sequence[str | None]] | None = None,
        paths: t.Any = None,
        fallback: t.Any = "blocking",
    ) -> t.Any:
        if view is not None and not callable(view):
            raise TypeError(
                f"isr_page takes a view, or keyword arguments, as in isr_page(revalidate={view!r})"
            )
        check_revalidate(revalidate)
        check_expire(expire, revalidate)
        if not callable(tags):
            tags = check_tags(tags)
        if isinstance(paths, str):
            raise TypeError(f"paths takes a list of paths, as in [{paths!r}], or a function")
        if paths is not None and not callable(paths):
            # What can be iterated but once is listed more than once.
            paths = tuple(paths)
        # The response says how long its page is fresh: the view may have changed that.
        rule = Rule(query=query, vary=vary, fallback=fallback)
        declaration = Declaration(rule, revalidate, expire, tags, paths)
        if view is not None:
            return _declare(view, declaration)
        return functools.partial(_declare, declaration=declaration)

    @property
    def current(self) -> CurrentPage:
        """The metadata of the page that is being rendered.

        :raises RuntimeError: outside of a view with this decorator.
        """
        current = g.get("_wsgi_isr_page") if has_request_context() else None
        if current is None:
            raise RuntimeError("isr_page.current is there only while a view with @isr_page runs")
        return t.cast(CurrentPage, current)


isr_page = IsrPage()


def _declare(view: View, declaration: Declaration) -> View:
    if not callable(view):
        raise TypeError("@isr_page stands on a view function, below the route decorator")
    if isinstance(view, type):
        raise TypeError(f"@isr_page stands among the decorators of a class: {view.__qualname__}")
    if declaration_of(view) is not None:
        raise TypeError(f"@isr_page stands twice on {_name(view)}")

    @functools.wraps(view)
    def wrapper(*args: t.Any, **values: t.Any) -> t.Any:
        tags = declaration.tags
        if callable(tags):
            tags = tags(**values)
            if isinstance(tags, str | bytes):
                raise TypeError(f"tags of {_name(view)} returns a text, not a list: {tags!r}")
        reason = request.environ.get("wsgi_isr.reason")
        g._wsgi_isr_page = current = CurrentPage(
            declaration.revalidate, declaration.expire, set(tags), reason
        )
        if "isr" not in current_app.extensions and "wsgi_isr.middleware" not in request.environ:
            _warn_once()
        # Also what an error handler makes of an exception: a 404 is a page, too.
        after_this_request(functools.partial(_write, current))
        return current_app.ensure_sync(view)(*args, **values)

    setattr(wrapper, _ATTRIBUTE, declaration)
    with contextlib.suppress(TypeError):
        _decorated.add(view)
    return wrapper


def _name(view: View) -> str:
    return getattr(view, "__qualname__", None) or repr(view)


@functools.cache
def _warn_once() -> None:
    logger.warning("@isr_page has no effect: the app has no extension, call ISR(app)")


def _write(current: CurrentPage, response: Response) -> Response:
    if "ISR-Revalidate" not in response.headers:
        tags = current.tags
        try:
            # A text is left as it is, because `page_headers` refuses it.
            names = tags if isinstance(tags, str) else sorted(tags)
            headers = page_headers(current.revalidate, current.expire, names)
        except (TypeError, ValueError) as error:
            logger.warning("%s is not stored: %s", request.url, error)
        else:
            response.headers.extend(headers)
    return response
