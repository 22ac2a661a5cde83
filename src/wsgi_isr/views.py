"""What views say of their pages, in whatever framework: `isr_page`, and which paths exist."""

from __future__ import annotations

import functools
import logging
import os
import threading
import typing as t
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from urllib.parse import unquote, urlsplit

from werkzeug.wrappers import Request

from .key import Origin
from .metadata import check_expire, check_revalidate, check_tags, page_headers
from .rules import Rule

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

logger = logging.getLogger("wsgi_isr")

View: t.TypeAlias = "Callable[..., t.Any]"
Tags: t.TypeAlias = "Iterable[str] | Callable[..., Iterable[str]]"

#: Seconds for which a list of paths is taken to be complete.
LISTED = 60.0
_ATTRIBUTE = "_wsgi_isr_page"


@dataclass
class CurrentPage:
    """What a view says of the page that it is rendering; it may change its mind.

    :param revalidate: seconds the page is fresh, or ``False``.
    :param expire: seconds after which the stale page is not served any more.
    :param reason: why the library renders: ``"miss"``, ``"stale"``, ``"revalidate"``,
        ``"prerender"``; ``None`` where a visitor's own request is answered.
    """

    revalidate: int | t.Literal[False]
    expire: int | None = None
    tags: set[str] = field(default_factory=set)
    reason: str | None = None

    def headers(self, url: str) -> list[tuple[str, str]]:
        """The response headers that declare the page.

        For a bad value there is a warning, and none; or, where a page may be stored, one that
        fails its render, so that it stays.
        """
        tags = self.tags
        try:
            # A text is left as it is, because `page_headers` refuses it.
            names = tags if isinstance(tags, str) else sorted(tags)
            return page_headers(self.revalidate, self.expire, names)
        except (TypeError, ValueError) as error:
            logger.warning("%s is not stored: %s", url, error)
            if self.reason in (None, "miss"):
                return []
            return [("ISR-Revalidate", str(error).encode("ascii", "backslashreplace").decode())]


@dataclass(frozen=True)
class Declaration:
    """What a decorator says of a view's pages."""

    rule: Rule
    revalidate: int | t.Literal[False]
    expire: int | None
    tags: Tags
    paths: t.Any = None

    def begin(
        self, view: View, environ: WSGIEnvironment, /, *args: t.Any, **values: t.Any
    ) -> t.Any:
        """The metadata of a page as its view begins, called with these arguments."""
        tags = self.tags
        if callable(tags):
            tags = tags(*args, **values)
            if isinstance(tags, str | bytes):
                raise TypeError(f"tags of {name_of(view)} returns a string, not a list: {tags!r}")
        reason = environ.get("wsgi_isr.reason")
        return CurrentPage(self.revalidate, self.expire, set(tags), reason)


def declaration_of(view: object) -> Declaration | None:
    """What `isr_page` said of a view; decorators that use `functools.wraps` may be between."""
    return getattr(view, _ATTRIBUTE, None)


def declare(view: View, wrapper: View, declaration: Declaration) -> View:
    """Let a wrapper of a view carry its declaration.

    :raises TypeError: for a view that has one.
    """
    if declaration_of(view) is not None:
        raise TypeError(f"@isr_page stands twice on {name_of(view)}")
    wrapper = functools.wraps(view)(wrapper)
    setattr(wrapper, _ATTRIBUTE, declaration)
    return wrapper


def name_of(view: View) -> str:
    return getattr(view, "__qualname__", None) or repr(view)


class IsrPage:
    """Declares that a view's responses are pages.

    In Flask it stands below the route decorator, on async views too, and in the ``decorators`` of
    a ``MethodView``. In Django it stands on function views, around ``as_view()``, and on classes
    through ``method_decorator(isr_page(...), name="dispatch")``. The app then sees only canonical
    requests for the view's URLs: no cookies, no credentials, no query parameters but the declared
    ones.

    :param revalidate: seconds a page is fresh, 1 or more; ``False``: until it is revalidated on
        demand.
    :param expire: seconds after which a stale page is not served any more.
    :param tags: names by which pages are invalidated together, or a callable that takes what the
        view takes and returns them.
    :param query: query parameters that are part of a page's key.
    :param vary: request headers that are part of a page's key, each with the values that it is
        reduced to; ``None`` among them stands for its absence.
    :param paths: what to prerender: a generator function, or an iterable.
    :param fallback: ``"blocking"``: the first visitor waits. ``False``: 404 for what was not
        prerendered. A view: answers a browser at once while the page is rendered.
    :raises ValueError: for values that the middleware would refuse.
    :raises TypeError: for a string in place of a list, or for what is not a view.

    .. code-block:: python

        @app.get("/blog/<slug>")
        @isr_page(revalidate=60, tags=lambda slug: [f"post:{slug}"])
        def post(slug): ...
    """

    def __init__(
        self,
        decorate: Callable[[View, Declaration], View],
        current: Callable[[], CurrentPage | None],
    ) -> None:
        self._decorate = decorate
        self._current = current

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
            return self._decorate(view, declaration)
        return lambda view: self._decorate(view, declaration)

    @property
    def current(self) -> CurrentPage:
        """The metadata of the page that is being rendered.

        :raises RuntimeError: outside of a view with this decorator.
        """
        current = self._current()
        if current is None:
            raise RuntimeError("isr_page.current exists only while a view with @isr_page runs")
        return current


class MissingPathsWarning(UserWarning):
    """A declared page that nothing lists paths of is not prerendered."""


class Listing:
    """The paths that exist of a view with ``fallback=False``, asked for at most once a minute.

    :param urls: gives the paths and whole URLs of a view, by what names it.
    """

    def __init__(self, urls: Callable[[t.Any], Iterable[str]]) -> None:
        self._urls = urls
        #: ``None`` where a list was never to be had.
        self._listed: dict[t.Hashable, tuple[float, frozenset[tuple[str, str]] | None]] = {}
        # One for each process: a fork may copy one that another thread has taken.
        self._locks: dict[int, threading.Lock] = {}

    def has(self, name: t.Hashable, environ: WSGIEnvironment) -> bool:
        """Whether the path of a request is listed, alone or in a whole URL."""
        origin_of = environ["wsgi_isr.middleware"].origin_of
        places = self._places(name, origin_of)
        origin = origin_of(environ)
        if places is None or origin is None:
            # Nobody can say what exists, so the app is asked.
            return True
        request = Request(environ, populate_request=False)
        paths = (request.path, request.root_path + request.path)
        return any((host, path) in places for host in ("", origin.host) for path in paths)

    def _places(
        self, name: t.Hashable, origin_of: Callable[[WSGIEnvironment], Origin | None]
    ) -> frozenset[tuple[str, str]] | None:
        """Pairs of a host (``""`` for any) and a path, decoded as the paths of requests are."""
        with self._locks.setdefault(os.getpid(), threading.Lock()):
            until, places = self._listed.get(name, (0.0, None))
            if monotonic() >= until:
                try:
                    found = set()
                    for url in self._urls(name):
                        parts = urlsplit(url)
                        whole = {"wsgi.url_scheme": parts.scheme, "HTTP_HOST": parts.netloc}
                        origin = origin_of(whole) if parts.netloc else None
                        found.add((origin.host if origin else parts.netloc, unquote(parts.path)))
                    places = frozenset(found)
                except Exception:
                    logger.exception("no list of the paths of %r: a generator failed", name)
                self._listed[name] = (monotonic() + LISTED, places)
            return places
