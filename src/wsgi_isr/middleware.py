"""`ISRMiddleware`: the way of a request, readable from `__call__` down."""

from __future__ import annotations

import logging
import os
import threading
import typing as t
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from time import time

from . import options
from .executor import ExecutorLike
from .executor import open_pool
from .key import Origin
from .key import Origins
from .key import PageKey
from .known import Known
from .known import NotPage
from .ondemand import OnDemand
from .ondemand import PageInfo
from .ondemand import Result
from .page import Codec
from .passing import Passing
from .passing import PassThrough
from .pool import Pool
from .pool import WorkerPool
from .pool import WORKERS
from .process import Process
from .render import current_origin
from .render import Renderer
from .respond import Negotiation
from .respond import respond
from .rules import check_query
from .rules import make_resolver
from .rules import Resolver
from .rules import RuleLike
from .site import Site
from .stats import Stats
from .store.memory import Target
from .store.opening import CacheLike
from .store.opening import opener
from .visit import Visit

if t.TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse
    from _typeshed.wsgi import WSGIApplication
    from _typeshed.wsgi import WSGIEnvironment

logger = logging.getLogger("wsgi_isr")


class ISRMiddleware:
    """Incremental static regeneration for any WSGI app.

    Responses that carry ``ISR-Revalidate`` are pages: rendered once, stored, served to all while
    they are fresh, served once more while they are rendered anew behind the visitor, and kept
    when a render fails.

    :param app: any WSGI application. While pages are rendered it is called from several threads.
    :param cache: a cachelib cache; a callable that returns one, called once in each process; a
        URL (``memory://``, ``file:///var/cache/site?max_pages=100000&max_bytes=2147483648``,
        where the two bounds are the default); ``None``: files in ``.isr-cache`` under
        the working directory, which all workers of the machine share.
    :param rules: what is known of URLs before the app is asked: a mapping of path patterns to
        `Rule` or seconds, or a callable that takes an environ and returns a `Rule` or ``None``.
    :param query: query parameters that are part of a page's key, where no rule says otherwise.
    :param base_url: scheme and host under which pages are rendered, whatever the visitor's is.
    :param trusted_hosts: hosts that may have pages, as in Werkzeug's ``host_is_trusted``;
        ``None``: any.
    :param memory_size: bytes of rendered pages kept in this process; 0: none.
    :param max_body_size: bytes; a larger response is delivered, never stored.
    :param workers: threads that regenerate, per process; 0: stale pages are rendered by processes
        of their own, ``python -m wsgi_isr MODULE:APP regenerate``, on files or Redis.
    :param executor: regenerates in place of these threads: a `concurrent.futures.Executor`, or a
        callable that returns one, called once in each process.
    :param render_timeout: seconds after which a render no longer blocks another attempt.
    :param build_id: pages of different builds live side by side.
    :param previous_builds: builds before this one whose pages are served, as stale ones, until
        this one has rendered its own; before it are those that the store saw first before it.
    :param enabled: ``False``: every request goes to the app.
    :param key_prefix: tells several sites in one store apart.
    :param signing_key: entries are authenticated with HMAC-SHA256; others count as missing.
    :param tags_header: tells a CDN the tags of a page under the name it wants, as in
        ``"Cache-Tag"`` or ``"Surrogate-Key"``; ``None``: they stay here.
    :raises TypeError: for an argument of the wrong kind, with the remedy.
    :raises ValueError: for a value that cannot work, with the remedy.

    .. code-block:: python

        app = ISRMiddleware(app, "file:///var/cache/site", rules={"/blog/*": 60})
    """

    def __init__(
        self,
        app: WSGIApplication,
        cache: CacheLike = None,
        *,
        rules: Mapping[str, RuleLike] | Resolver | None = None,
        query: Iterable[str] = (),
        base_url: str | None = None,
        trusted_hosts: Iterable[str] | None = None,
        memory_size: int = 50 * 2**20,
        max_body_size: int = 10 * 2**20,
        workers: int = WORKERS,
        executor: ExecutorLike | None = None,
        render_timeout: float = 60,
        build_id: str = "",
        previous_builds: int = 0,
        enabled: bool = True,
        key_prefix: str = "isr:",
        signing_key: bytes | None = None,
        tags_header: str | None = None,
    ) -> None:
        options.check(
            app=app,
            cache=cache,
            memory_size=memory_size,
            max_body_size=max_body_size,
            workers=workers,
            executor=executor,
            render_timeout=render_timeout,
            build_id=build_id,
            previous_builds=previous_builds,
            key_prefix=key_prefix,
            signing_key=signing_key,
            tags_header=tags_header,
        )
        self.app = app
        #: Renders at a time, where somebody waits for many.
        self._workers = workers or WORKERS
        self._is_dedicated = workers == 0
        self._render_timeout = render_timeout
        self._clock: Callable[[], float] = time
        self._site = site = Site(
            app,
            self,
            make_resolver(rules),
            check_query(t.cast("tuple[str, ...]", query)),
            Origins(base_url, trusted_hosts),
            build_id,
            max_body_size,
            lambda: self._clock(),
            Negotiation(),
            tags_header,
            previous_builds=previous_builds,
        )
        self._bypass: Callable[[WSGIEnvironment], str | None] | None = None
        if not enabled:
            self.set_bypass(lambda environ: "disabled")
        #: Whether renders on demand are of any use now.
        self.is_enabled: Callable[[], bool] = lambda: enabled
        open_store = opener(cache, key_prefix)
        render = Renderer(app, self, max_body_size)
        codec = Codec(signing_key)

        made_in = os.getpid()

        def pool() -> Pool:
            if executor is not None:
                return open_pool(executor, made_in, self._workers, render_timeout)
            # With workers=0 it does what else there is to do, and stands in.
            return WorkerPool(workers or 1, render_timeout)

        def start(before: Process | None) -> Process:
            return Process(
                site,
                open_store,
                render,
                codec,
                memory_size,
                pool,
                render_timeout,
                workers == 0,
                before,
            )

        self._start = start
        self._process: Process | None = None
        self._process_lock = threading.Lock()
        self._lock_pid = os.getpid()
        self._known: dict[Target, Known] = {}
        self._signal: t.Any = (0, 0)
        self._stats = Stats()
        # Bound once, because that takes its time.
        self._pass_through = PassThrough(site, self._become_page).serve

    def __repr__(self) -> str:
        return f"<ISRMiddleware {self.app!r}>"

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        # A fresh page that this process knows, asked for in a spelling that it has seen: one
        # look-up, comparisons of numbers, a ready-made answer. No lock, no parsing.
        try:
            target = (
                environ["PATH_INFO"],
                # bjoern leaves an empty one out.
                environ.get("QUERY_STRING", ""),
                environ["HTTP_HOST"],
                environ["wsgi.url_scheme"],
                environ["SCRIPT_NAME"],
                environ.get("HTTP_ACCEPT_ENCODING"),
            )
        except KeyError:
            # PEP 3333 and HTTP/1.0 let some be absent.
            return Visit(self._site, self._here(), environ, start_response, None).serve()
        known = self._known.get(target)
        if known is not None:
            # A local, as below, because calling an attribute costs a look-up on the type.
            clock = self._clock
            now = clock()
            if (
                known.since <= now < known.until
                and known.generation == self._signal[0]
                or self._here().renew(known, now)
            ) and (self._bypass is None or self._bypass(environ) is None):
                method = environ["REQUEST_METHOD"]
                if known.is_fresh:
                    if (
                        method == "GET"
                        and "HTTP_IF_NONE_MATCH" not in environ
                        and (not known.is_dated or "HTTP_IF_MODIFIED_SINCE" not in environ)
                    ):
                        self._stats.hits += 1
                        start_response(known.status, [*known.headers])
                        # A list: servers take a shorter way with it than with other iterables.
                        return [known.body]
                    if method == "GET" or method == "HEAD":
                        self._stats.hits += 1
                        return respond(environ, start_response, known)
                elif method == "GET" or method == "HEAD":
                    if known.not_page is not None:
                        pass_through = self._pass_through
                        return pass_through(environ, start_response, known.not_page)
                    visit = Visit(self._site, self._here(), environ, start_response, target)
                    return visit.serve_stale(known)
        return Visit(self._site, self._here(), environ, start_response, target).serve()

    # What belongs to this process.

    def _here(self) -> Process:
        process = self._process
        if process is None or process.pid != os.getpid():
            if self._lock_pid != os.getpid():
                # The fork may have copied the lock while another thread held it.
                self._process_lock = threading.Lock()
                self._lock_pid = os.getpid()
            with self._process_lock:
                process = self._process
                if process is None or process.pid != os.getpid():
                    process = self._start(process)
                    self._known = process.memory.known
                    self._signal = process.signal
                    self._stats = process.stats
                    self._process = process
        return process

    def set_bypass(self, bypass: Callable[[WSGIEnvironment], str | None]) -> None:
        """Let a function say why a request does not get a page, whatever is stored.

        :param bypass: returns ``"draft"``, ``"disabled"`` or ``None``.
        """
        self._site.bypass = self._bypass = bypass

    def origin_of(self, environ: WSGIEnvironment) -> Origin | None:
        """Where a request came in, ``None`` if pages may not have that host."""
        return self._site.origins.of(environ)

    def _regenerate(self, key: PageKey) -> None:
        """Render a page that another process has handed over."""
        self._here().regeneration.regenerate(key, self._site.rule_of(key))

    def _become_page(
        self, environ: WSGIEnvironment, start_response: StartResponse, not_page: NotPage
    ) -> Passing:
        visit = Visit(self._site, self._here(), environ, start_response, None)
        return visit.passing_of(not_page)

    def _on_demand(self) -> OnDemand:
        return OnDemand(self._here(), self._site.origins, self._site.describe, self._site.clock)

    # What users call.

    def revalidate(self, *paths: str, only_generated: bool = False) -> list[Result]:
        """Render each path now and store it.

        When this returns, every later visitor, in whatever worker, gets a page whose render
        began after the call. Rendered are the page on the host of the current request (or of
        ``base_url``), and every host and ``vary`` variant of it that the store can list;
        whatever else is stored of the path becomes stale.

        :param paths: as a visitor's address bar shows them: percent-encoded, with the mount
            point and the declared query. A whole URL names one host.
        :param only_generated: skip paths that have no page yet.
        :raises RevalidationError: if a render failed, after all were tried. The old pages stay,
            as stale ones.
        :raises ValueError: before any render, for what is no path, or has no known host.

        While the library is switched off nothing is rendered; stored pages become stale.
        """
        origin = current_origin.get()
        return self._on_demand().revalidate(
            paths, only_generated, origin, self, mark_only=not self.is_enabled()
        )

    def revalidate_tag(self, *tags: str, expire: bool = False) -> None:
        """Make all pages with one of the tags stale; nothing is rendered in the call.

        :param expire: the next visitor of each waits for a new page, instead of getting the old
            one.
        :raises RevalidationError: if the store did not take it, so that it may not hold.
        :raises ValueError: for what is no tag.
        """
        self._on_demand().revalidate_tag(tags, expire)

    def invalidate(self, *patterns: str, expire: bool = False) -> None:
        """Make all pages whose path matches stale; nothing is rendered in the call.

        :param patterns: paths with ``*`` for one segment and ``**`` for any number.
        :param expire: the next visitor of each waits for a new page, instead of getting the old
            one.
        :raises RevalidationError: if the store did not take it, so that it may not hold.
        :raises ValueError: for what is no pattern.
        """
        self._on_demand().invalidate(patterns, expire)

    def prerender(self, paths: Iterable[str], workers: int | None = None) -> Iterator[Result]:
        """Render paths ahead of their visitors, going on after failures.

        A page that is fresh is not rendered again.

        :param workers: renders at a time; ``None``: as many as regenerate.
        :returns: results as they finish, one per path.
        """
        origin = current_origin.get()
        return self._on_demand().prerender(paths, workers or self._workers, origin)

    def pages(self) -> Iterator[PageInfo]:
        """All stored pages of this build.

        :raises NotImplementedError: on a backend that cannot list.
        """
        return self._on_demand().pages()

    def stats(self) -> dict[str, t.Any]:
        """Counters of this process, and seconds spent in renders."""
        return self._here().stats.as_dict()

    def all_stats(self) -> list[dict[str, t.Any]]:
        """The same of all processes that share the store, as each left it a moment ago.

        Each has ``pid``, ``host`` and ``build`` besides, and ``began`` and ``left``: when it did,
        in seconds since 1970. On stores that keep no counters: of this process alone.
        """
        return self._here().upkeep.all_stats()

    def close(self, timeout: float = 5) -> None:
        """Wait for running regenerations.

        :param timeout: seconds, at most.
        """
        process = self._process
        if process is not None and process.pid == os.getpid():
            process.pool.wait(timeout)
