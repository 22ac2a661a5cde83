"""`ISRMiddleware`: the hit, the one guard around our own code, and what users call."""

from __future__ import annotations

import logging
import os
import threading
import typing as t
from collections.abc import Callable, Iterable, Iterator, Mapping
from time import time

from .answer import Answer, send
from .config import Config, make_bypass, mistakes, name_of
from .explain import Explanation
from .key import Origin, Origins
from .listing import PageInfo
from .metadata import prepare
from .metrics import Counters
from .ondemand import OnDemand, Result, check_workers
from .passing import Passing, make_pass_through
from .process import Process
from .render import ERROR, current_origin
from .request import Request, become_page
from .rules import Resolver, RuleLike, Rules, check_query, digest_of, guarded, make_rules
from .store.memory import Fingerprint
from .store.opening import CacheLike, plan
from .store.protocol import Store
from .threads import ExecutorLike

if t.TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger("wsgi_isr")


class ISRMiddleware:
    """Incremental static regeneration for any WSGI app.

    Responses that carry ``ISR-Revalidate`` are pages. A page is rendered once, stored, and served
    to everybody: fresh, then once more while it is rendered anew. It stays when a render fails.

    :param app: any WSGI application. While pages are rendered, several threads call it.
    :param cache: where pages are kept. ``None``: a database in ``.isr-cache`` under the working
        directory, which all workers of the machine share. A URL, as ``file:///var/cache/site``,
        ``redis://host:6379/0`` or ``memory://``; a cachelib cache; a callable that returns one,
        called once in each process; or a `wsgi_isr.store.protocol.Store`.
    :param rules: a mapping of path patterns to `Rule` or seconds, where ``None`` excludes a URL;
        or a callable that takes an environ and returns a `Rule` or ``None``. What it says of the
        canonical request counts for a render.
    :param query: query parameters that are part of a page's key, where no rule says otherwise.
    :param base_url: scheme, host and perhaps mount point under which pages are rendered.
    :param trusted_hosts: may have pages, with a port only where one is named; ``None``: any host.
    :param bypass: visitors who always get the app's own answer, never stored: names of cookies,
        or a callable that takes an environ and returns true for them.
    :param memory_size: bytes of rendered pages kept in this process; 0: none.
    :param max_body_size: bytes; a larger response is delivered, never stored.
    :param workers: threads that regenerate, per process; 0: processes of
        ``python -m wsgi_isr MODULE:APP regenerate`` render stale pages.
    :param executor: regenerates in place of these threads: anything with ``submit``, or a
        callable that makes one, called once in each process.
    :param render_timeout: seconds until a render blocks no other, and ends between two blocks.
    :param build_id: builds have pages of their own. ``None``: a digest of a mapping of rules.
    :param previous_builds: earlier builds whose pages are served, stale, until this one has them.
    :param enabled: ``False``: every request goes to the app.
    :param key_prefix: keeps several sites in one store apart.
    :param signing_key: 16 bytes or more, or text: pages without its HMAC-SHA256 count as missing.
    :param tags_header: tells a CDN the tags of a page: ``"Cache-Tag"`` or ``"Surrogate-Key"``.
    :param cdn_purged: whether the site purges its CDN, which may keep pages until then.
    :raises TypeError: for an argument of the wrong kind, with the remedy.
    :raises ValueError: for a value that cannot work, with the remedy.
    :raises ImportError: for a cache whose client is not installed, with the extra to install.

    .. code-block:: python

        app = ISRMiddleware(app, "file:///var/cache/site", rules={"/blog/*": 60})
    """

    def __init__(
        self,
        app: WSGIApplication,
        cache: CacheLike | Store = None,
        *,
        rules: Mapping[str, RuleLike] | Resolver | Rules | None = None,
        query: Iterable[str] = (),
        base_url: str | None = None,
        trusted_hosts: Iterable[str] | None = None,
        bypass: Iterable[str] | Callable[[WSGIEnvironment], object] = (),
        memory_size: int = 50 * 2**20,
        max_body_size: int = 10 * 2**20,
        workers: int = 2,
        executor: ExecutorLike | Callable[[], ExecutorLike] | None = None,
        render_timeout: float = 60,
        build_id: str | None = None,
        previous_builds: int = 0,
        enabled: bool = True,
        key_prefix: str = "isr:",
        signing_key: bytes | str | None = None,
        tags_header: str | None = None,
        cdn_purged: bool = False,
    ) -> None:
        self.app = app
        #: What was handed over. A URL may have a password in it.
        self.cache = cache
        self._clock: Callable[[], float] = time
        kind, self._open_store = plan(cache, key_prefix, name_of(app))
        self._config = Config(
            app=app,
            middleware=self,
            kind=kind,
            rules=make_rules(rules),
            query=check_query(query),
            origins=Origins(base_url, trusted_hosts),
            memory_size=memory_size,
            max_body_size=max_body_size,
            workers=workers,
            executor=executor,
            render_timeout=render_timeout,
            build_id=digest_of(rules) if build_id is None else build_id,
            previous_builds=previous_builds,
            key_prefix=key_prefix,
            signing_key=signing_key.encode() if isinstance(signing_key, str) else signing_key,
            tags_header=tags_header,
            cdn_purged=cdn_purged,
            clock=lambda: self._clock(),
            bypass=make_bypass(enabled, bypass),
        )
        for mistake in mistakes(self._config, trusted_hosts, rules):
            logger.warning("%s", mistake)
        self._bypass = self._config.bypass
        #: Whether renders on demand are of any use now.
        self.is_enabled: Callable[[], bool] = lambda: enabled
        self._process: Process | None = None
        # One for each process: a fork may copy one that another thread has taken.
        self._locks: dict[int, threading.Lock] = {}
        self._hits: dict[Fingerprint, Answer] = {}
        #: See `Pages.signal`: replaced with the counters of this process's store.
        self._signal: t.Any = (0, 0)
        self._counters = Counters()
        # Bound once, because binding takes time.
        self._pass_through = make_pass_through(
            app, self, lambda *request: become_page(self._here(), *request)
        )

    def __repr__(self) -> str:
        return f"<ISRMiddleware {self.app!r}>"

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        # A hit: one look-up, comparisons of numbers, a ready answer. No lock, no parsing. Why the
        # answer is right:
        # - It was made for a request with the same six values, and nothing else of a request is
        #   part of its page's key: pages with variants, and rules that read other headers, are
        #   never found here. Conditionals and the method are handled below.
        # - Nothing was invalidated since it was confirmed: `_signal[0]` changes with every
        #   invalidation of any process, before that call returns.
        # - It is made anew each second, so its age and its freshness are right.
        # - A visitor who never gets a page (`bypass`, draft mode) gets none here either.
        try:
            fingerprint = (
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
            return self._serve(environ, start_response, None)
        hit = self._hits.get(fingerprint)
        if hit is not None:
            # A local, because calling an attribute looks it up on the type first.
            clock = self._clock
            now = clock()
            if (
                hit.since <= now < hit.until
                and hit.generation == self._signal[0]
                or self._renew(hit, now)
            ) and (self._bypass is None or self._bypass(environ) is None):
                method = environ["REQUEST_METHOD"]
                if hit.is_fresh:
                    if (
                        method == "GET"
                        and "HTTP_IF_NONE_MATCH" not in environ
                        and (hit.last_modified is None or "HTTP_IF_MODIFIED_SINCE" not in environ)
                    ):
                        self._counters.hits += 1
                        start_response(hit.status, [*hit.headers])
                        # A list: servers are faster with it than with other iterables.
                        return [hit.body]
                    if method == "GET" or method == "HEAD":
                        self._counters.hits += 1
                        return send(environ, start_response, hit)
                elif method == "GET" or method == "HEAD":
                    if hit.entry is None:
                        pass_through = self._pass_through
                        return pass_through(environ, start_response, hit, self._counters)
                    return self._serve(environ, start_response, fingerprint, hit)
        return self._serve(environ, start_response, fingerprint)

    def _serve(
        self,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        fingerprint: Fingerprint | None,
        stale: Answer | None = None,
    ) -> Iterable[bytes]:
        """Every other request. What our own code raises before the app is asked goes to the log."""
        request = None
        try:
            request = Request(self._here(), environ, start_response, fingerprint)
            return request.serve() if stale is None else request.serve_stale(stale)
        except Exception:
            if request is not None and request.has_asked:
                raise
            logger.exception("%r: the request goes to the app", environ.get("PATH_INFO", "")[:200])
        self._counters.bypassed += 1
        prepare(environ, self)
        rule, origin = (None, None) if request is None else (request.rule, request.origin)
        member, always = "isr; fwd=bypass; detail=error", rule is not None
        return Passing(start_response, origin, member, always=always).run(self.app, environ)

    def _renew(self, hit: Answer, now: float) -> bool:
        try:
            process = self._here()
            renewed = process.renew(hit, now)
        except Exception:
            # A hit asks it, outside of the guard in `_serve`.
            logger.exception("a page was not confirmed")
            return False
        self._signal = process.pages.signal
        return renewed

    def _here(self) -> Process:
        process = self._process
        if process is None or not process.is_open:
            with self._locks.setdefault(os.getpid(), threading.Lock()):
                process = self._process
                if process is None or not process.is_open:
                    process = Process(self._config, self._open_store, process)
                    self._hits = process.pages.memory.hits
                    self._counters = process.counters
                    self._process = process
        self._signal = process.pages.signal
        return process

    def set_bypass(self, bypass: Callable[[WSGIEnvironment], str | None]) -> None:
        """Let a function be asked before `Config.bypass`; for adapters of frameworks."""
        other = self._bypass or (lambda environ: None)
        both = guarded("bypass", lambda environ: bypass(environ) or other(environ), "bypass")
        self._config.bypass = self._bypass = both

    @staticmethod
    def note_error(environ: WSGIEnvironment, error: BaseException) -> None:
        """Let `pages` say what a framework has made an answer of; for adapters of frameworks."""
        if "wsgi_isr.reason" in environ:
            environ[ERROR] = error

    def origin_of(self, environ: WSGIEnvironment) -> Origin | None:
        """Where a request came in, ``None`` if that host may not have pages."""
        return self._config.origins.of(environ)

    @property
    def build_id(self) -> str:
        """The build whose pages this middleware serves."""
        return self._config.build_id

    @property
    def workers(self) -> int:
        """Threads that regenerate in each process; 0 where other processes do."""
        return self._config.workers

    @property
    def store(self) -> Store:
        """The store of this process."""
        return self._here().pages.store

    def on_demand(self, origin: Origin | None = None, render: bool = True) -> OnDemand:
        """The operations behind the methods below, result by result; for command lines.

        :param origin: where the paths of a call are; ``None``: where the current request is.
        :param render: whether renders are of any use.
        """
        return OnDemand(self._here(), origin or current_origin.get(), render)

    # What users call.

    def revalidate(
        self, *paths: str, only_generated: bool = False, workers: int | None = None
    ) -> list[Result]:
        """Render each path now and store it.

        When this returns, every later visitor, in any worker, gets a page whose render began
        after the call. It renders the page on the host of the current request (or of
        ``base_url``), and every host and declared variant of it that the store can list. Whatever
        else is stored of the path expires. A page that its app no longer offers is removed. While
        the library is switched off nothing is rendered; stored pages become stale.

        :param paths: as a visitor's address bar shows them: percent-encoded, with the mount
            point and the declared query. A whole URL names one host.
        :param only_generated: skip paths that have no page yet.
        :param workers: renders at a time; ``None``: two.
        :raises RevalidationError: if a render failed, after all were tried. The old pages stay,
            as stale ones.
        :raises ValueError: before any render, for what is no path, or has no known host.
        """
        return self.on_demand(render=self.is_enabled()).revalidate(paths, only_generated, workers)

    def revalidate_tag(self, *tags: str, expire: bool = False) -> None:
        """Make all pages with one of the tags stale; nothing is rendered in the call.

        :param expire: the next visitor of each waits for a new page, and gets no old one.
        :raises RevalidationError: if the store did not take it, so that it may not hold.
        :raises ValueError: for what is no tag.
        """
        self.on_demand().invalidate((), expire, tags)

    def invalidate(self, *patterns: str, expire: bool = False) -> None:
        """Make all pages whose path matches stale; nothing is rendered in the call.

        :param patterns: paths with ``*`` for one segment and ``**`` for any number.
        :param expire: the next visitor of each waits for a new page, and gets no old one.
        :raises RevalidationError: if the store did not take it, so that it may not hold.
        :raises ValueError: for a pattern that can never match.
        """
        self.on_demand().invalidate(patterns, expire)

    def prerender(self, paths: Iterable[str], workers: int | None = None) -> Iterator[Result]:
        """Render paths ahead of their visitors, in all declared variants, going on after failures.

        A page that is fresh is not rendered again. While the library is off all are skipped.

        :param workers: renders at a time; ``None``: two.
        :returns: results as they end.
        """
        return self.on_demand(render=self.is_enabled()).prerender(paths, workers)

    def pages(self) -> Iterator[PageInfo]:
        """All stored pages of this build.

        :raises NotImplementedError: on a store that cannot list.
        """
        return self.on_demand().pages()

    def stats(self) -> dict[str, t.Any]:
        """Totals of all processes since the store began, and what there is now.

        Totals never go down: ``hits``, ``stale_hits``, ``misses``, ``passed``, ``bypassed``,
        ``renders``, ``failures``, ``rejections``, ``evictions``, ``store_errors``,
        ``invalidations``, and ``render_seconds``, a histogram. Gauges: ``pages``, ``bytes``,
        ``memory_bytes``, ``rendering``, ``waiting``, ``processes``.
        """
        return t.cast("dict[str, t.Any]", self.on_demand().overview()["stats"])

    def explain(self, url: str) -> Explanation:
        """What would happen to a request for a URL, and why.

        :raises ValueError: for what is no path, or has no known host.
        """
        return self.on_demand().explain(url)

    def regenerate(self, stop: threading.Event, workers: int | None = None) -> None:
        """Render the stale pages that web workers with ``workers=0`` hand over.

        :param stop: ends it when set.
        :param workers: renders at a time; ``None``: two.
        :raises NotImplementedError: on a store that cannot hand pages over.
        """
        self._here().regenerate(stop, check_workers(workers))

    def prune(
        self,
        *,
        max_pages: int | None = None,
        max_bytes: int | None = None,
        keep_builds: int | None = None,
        everything: bool = False,
    ) -> int:
        """Remove the pages that were used least, and return how many were removed.

        :param keep_builds: keep this build and the others used last, so many in all.
        :param everything: remove all pages, of whatever build.
        :raises NotImplementedError: on a store that cannot list.
        :raises ValueError: for a number of builds that is not at least 1.
        """
        return self.on_demand().prune(
            keep_builds, everything, max_pages=max_pages, max_bytes=max_bytes
        )

    def close(self, timeout: float = 5) -> None:
        """Wait for running regenerations, and close what was opened.

        A later request opens it again; pages that only memory has are still there.

        :param timeout: seconds, at most.
        """
        process = self._process
        if process is not None and process.is_open:
            process.close(timeout)
            self._hits = {}
