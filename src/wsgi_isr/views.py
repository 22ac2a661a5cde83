"""What views say of their pages, in whatever framework: `isr_page`, and which paths exist."""

from __future__ import annotations

import functools
import logging
import typing as t
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from urllib.parse import urlsplit

from .key import Origin
from .metadata import check_expire, check_list, check_revalidate, check_tags, page_headers
from .rules import Excluded, Rule, Rules, make_rules, to_wsgi

if t.TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger("wsgi_isr")

View: t.TypeAlias = "Callable[..., t.Any]"
Tags: t.TypeAlias = "Iterable[str] | Callable[..., Iterable[str]]"

#: Seconds for which a list of paths is taken to be complete.
LISTED = 60.0
#: Where a request says which view answers in place of the declared one.
SHELL = "wsgi_isr.shell"
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
        """The response headers that declare the page; a bad value is one that is refused."""
        tags = self.tags
        try:
            # A text is left as it is, because `page_headers` refuses it.
            names = tags if isinstance(tags, str) else sorted(tags)
            return page_headers(self.revalidate, self.expire, names)
        except (TypeError, ValueError) as error:
            if self.reason is None:
                # Nobody else reads a visitor's own answer, as while the library is switched off.
                logger.warning("%s is not stored: %s", url, error)
            return [("ISR-Revalidate", str(error).encode("ascii", "backslashreplace").decode())]


@dataclass(kw_only=True)
class Declaration:
    """What `IsrPage` was given for a view; `rule` is what that says before the view is asked."""

    revalidate: int | t.Literal[False] = False
    expire: int | None = None
    tags: Tags = ()
    query: Sequence[str] = ()
    vary: Mapping[str, Sequence[str | None]] | None = None
    paths: t.Any = None
    fallback: t.Any = "blocking"
    rule: Rule = field(init=False)

    def __post_init__(self) -> None:
        check_revalidate(self.revalidate)
        check_expire(self.expire, self.revalidate)
        if not callable(self.tags):
            self.tags = check_tags(self.tags)
        if self.paths is not None and not callable(self.paths):
            # What can be iterated but once is listed more than once.
            self.paths = check_list("paths", self.paths, "/blog")
        shell = _shell_app(self.fallback) if callable(self.fallback) else self.fallback
        # The response says how long its page is fresh: the view may have changed that.
        self.rule = Rule(query=self.query, vary=self.vary, fallback=shell)

    def begin(
        self, view: View, environ: WSGIEnvironment, /, *args: t.Any, **values: t.Any
    ) -> CurrentPage:
        """The metadata of a page as its view begins, called with these arguments."""
        tags = self.tags
        if callable(tags):
            tags = check_list(f"tags of {name_of(view)}", tags(*args, **values), "posts")
        reason = environ.get("wsgi_isr.reason")
        return CurrentPage(self.revalidate, self.expire, set(tags), reason)


def _shell_app(view: View) -> WSGIApplication:
    """The app with a shell in place of the declared view of a URL."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        app: WSGIApplication = environ["wsgi_isr.middleware"].app
        return app({**environ, SHELL: view}, start_response)

    return answer


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

    def __call__(self, view: View | None = None, /, **options: t.Any) -> t.Any:
        if view is not None and not callable(view):
            raise TypeError(
                f"isr_page takes a view, or keyword arguments, as in isr_page(revalidate={view!r})"
            )
        declaration = Declaration(**options)
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


def _place_of(url: str, origin_of: Callable[[WSGIEnvironment], Origin | None]) -> tuple[str, str]:
    parts = urlsplit(url)
    whole = {"wsgi.url_scheme": parts.scheme, "HTTP_HOST": parts.netloc}
    origin = origin_of(whole) if parts.netloc else None
    return origin.host if origin else parts.netloc, to_wsgi(parts.path)


#: What is declared of a view; ``None``: nothing.
Declared: t.TypeAlias = "Declaration | Rule | Excluded | None"


class ViewRules(Rules):
    """The rules of a framework's app.

    What the site's own rules exclude comes first, then the views that are declared, then the
    other rules of the site.

    :param rules: the site's own.
    :param find: which view a request is for, ``""`` for none, and what is declared of it; it is
        also given what the other rules say.
    :param urls: gives the paths and whole URLs that exist of views with ``fallback=False``.
    """

    def __init__(
        self,
        rules: t.Any,
        find: Callable[[WSGIEnvironment, Rule | None], tuple[str, Declared]],
        urls: Callable[[], Iterable[str]],
    ) -> None:
        self._others = make_rules(rules)
        self.by_url = self._others.by_url
        self._find = find
        self._urls = urls
        self._listed_until = 0.0
        #: Hosts (``""`` for any) and paths; ``None`` where the list was never to be had.
        self._places: frozenset[tuple[str, str]] | None = None

    def resolve(self, environ: WSGIEnvironment) -> Rule | Excluded | None:
        rule = self._others.resolve(environ)
        if isinstance(rule, Excluded):
            return rule
        found = self._find(environ, rule)[1]
        if isinstance(found, Declaration):
            return found.rule
        return rule if found is None else found

    def lists(self, environ: WSGIEnvironment) -> bool:
        """Whether the path of a request is listed, alone or in a whole URL."""
        origin_of = environ["wsgi_isr.middleware"].origin_of
        if monotonic() >= self._listed_until:
            if self._places is not None:
                # Meanwhile others do with the list that there is.
                self._listed_until = monotonic() + LISTED
            try:
                self._places = frozenset(_place_of(url, origin_of) for url in self._urls())
            except Exception:
                logger.exception("no list of the paths that exist: a generator failed")
            self._listed_until = monotonic() + LISTED
        places, origin = self._places, origin_of(environ)
        if places is None or origin is None:
            # Nobody can say what exists, so the app is asked.
            return True
        path = environ.get("PATH_INFO", "")
        paths = (path, origin.mount + path)
        return any((host, path) in places for host in ("", origin.host) for path in paths)

    def consider(self, environ: WSGIEnvironment) -> list[str]:
        rule = self._others.resolve(environ)
        name, found = self._find(environ, rule if isinstance(rule, Rule) else None)
        has = "an" if isinstance(found, Declaration) else "no"
        view = f"view {name!r} has {has} @isr_page" if name else "no view matches"
        return [view, *self._others.consider(environ)]
