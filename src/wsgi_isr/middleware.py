"""`ISRMiddleware`: the way of a request, readable from `__call__` down."""

from __future__ import annotations

import contextvars
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
from .attempt import Kind
from .attempt import Outcome
from .key import canonical_query
from .key import is_ambiguous
from .key import MAX_KEY_LENGTH
from .key import Origin
from .key import Origins
from .key import PageKey
from .metadata import InvalidMetadata
from .metadata import ISR_ENVIRON_KEYS
from .metadata import read_metadata
from .ondemand import OnDemand
from .ondemand import PageInfo
from .ondemand import Result
from .page import Codec
from .passing import deliver
from .passing import Discover
from .passing import Passing
from .process import Process
from .render import close
from .render import Renderer
from .render import rendering
from .render import Response
from .respond import Answer
from .respond import make_answer
from .respond import Negotiation
from .respond import not_modified
from .respond import PRIVATE
from .respond import respond
from .respond import Served
from .rules import check_query
from .rules import make_resolver
from .rules import Resolver
from .rules import Rule
from .rules import RuleLike
from .state import seconds_left
from .state import State
from .state import state_of
from .store.memory import Entry
from .store.memory import Target
from .store.opening import CacheLike
from .store.opening import opener

if t.TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse
    from _typeshed.wsgi import WSGIApplication
    from _typeshed.wsgi import WSGIEnvironment

logger = logging.getLogger("wsgi_isr")

#: Where the request came in that is being answered in this context.
current_origin: contextvars.ContextVar[Origin | None] = contextvars.ContextVar(
    "wsgi_isr.origin", default=None
)


class Visit:
    """One request on its way: what is known of it so far."""

    __slots__ = ("environ", "head", "key", "origin", "process", "rule", "start_response", "target")

    def __init__(
        self,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        process: Process,
        target: Target,
    ) -> None:
        self.environ = environ
        self.start_response = start_response
        self.process = process
        self.target = target
        self.head = environ["REQUEST_METHOD"] == "HEAD"
        self.origin: Origin | None = None
        self.rule: Rule | None = None
        self.key: PageKey | None = None


class ISRMiddleware:
    """Incremental static regeneration for any WSGI app.

    Responses that carry ``ISR-Revalidate`` are pages: rendered once, stored, served to all while
    they are fresh, served once more while they are rendered anew behind the visitor, and kept
    when a render fails.

    :param app: any WSGI application. While pages are rendered it is called from several threads.
    :param cache: a cachelib cache; a callable that returns one, called once in each process; a
        URL (``memory://``, ``file:///var/cache/site``); ``None``: files in ``.isr-cache`` under
        the working directory, which all workers of the machine share.
    :param rules: what is known of URLs before the app is asked: a mapping of path patterns to
        `Rule` or seconds, or a callable that takes an environ and returns a `Rule` or ``None``.
    :param query: query parameters that are part of a page's key, where no rule says otherwise.
    :param base_url: scheme and host under which pages are rendered, whatever the visitor's is.
    :param trusted_hosts: hosts that may have pages, as in Werkzeug's ``host_is_trusted``;
        ``None``: any.
    :param memory_size: bytes of rendered pages kept in this process; 0: none.
    :param max_body_size: bytes; a larger response is delivered, never stored.
    :param workers: threads that regenerate, per process.
    :param render_timeout: seconds after which a render no longer blocks another attempt.
    :param build_id: pages of different builds live side by side.
    :param enabled: ``False``: every request goes to the app.
    :param key_prefix: tells several sites in one store apart.
    :param signing_key: entries are authenticated with HMAC-SHA256; others count as missing.
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
        workers: int = 2,
        render_timeout: float = 60,
        build_id: str = "",
        enabled: bool = True,
        key_prefix: str = "isr:",
        signing_key: bytes | None = None,
    ) -> None:
        options.check(
            app=app,
            cache=cache,
            memory_size=memory_size,
            max_body_size=max_body_size,
            workers=workers,
            render_timeout=render_timeout,
            build_id=build_id,
            key_prefix=key_prefix,
            signing_key=signing_key,
        )
        self.app = app
        self._resolver = make_resolver(rules)
        self._query = check_query(t.cast("tuple[str, ...]", query))
        self._origins = Origins(base_url, trusted_hosts)
        self._build_id = build_id
        self._limit = max_body_size
        self._workers = workers
        self._clock: Callable[[], float] = time
        self._negotiation = Negotiation()
        #: Why a request does not get a page, whatever is stored: ``"draft"``, ``"disabled"``.
        self.bypass: Callable[[WSGIEnvironment], str | None] | None = None
        if not enabled:
            self.bypass = lambda environ: "disabled"
        #: Whether renders on demand are of any use now.
        self.is_enabled: Callable[[], bool] = lambda: enabled
        open_store = opener(cache, key_prefix)
        render = Renderer(app, self, max_body_size)
        codec = Codec(signing_key)

        def start(before: Process | None) -> Process:
            return Process(
                open_store,
                render,
                codec,
                memory_size,
                build_id,
                workers,
                render_timeout,
                self,
                self._clock,
                before,
            )

        self._start = start
        self._process: Process | None = None
        self._process_lock = threading.Lock()
        self._lock_pid = os.getpid()
        self._targets: dict[Target, Entry] = {}
        self._signal: t.Any = (0, 0)

    def __repr__(self) -> str:
        return f"<ISRMiddleware {self.app!r}>"

    # The way of a request.

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        get = environ.get
        target = (
            environ["PATH_INFO"] if "PATH_INFO" in environ else "",
            get("QUERY_STRING"),
            get("HTTP_HOST"),
            environ["wsgi.url_scheme"],
            get("SCRIPT_NAME"),
        )
        entry = self._targets.get(target)
        if entry is not None:
            served = entry.served
            if (
                served is not None
                and served.since <= self._clock() < served.until
                and entry.generation == self._signal[0]
                and environ["REQUEST_METHOD"] in ("GET", "HEAD")
                and (self.bypass is None or self.bypass(environ) is None)
                and self._process is not None
            ):
                self._process.stats.hits += 1
                entry.referenced = True
                answer = served.answer(self._negotiation.choose(environ, entry.page))
                return respond(environ, start_response, answer)
        return self._serve(Visit(environ, start_response, self._here(), target))

    def _serve(self, visit: Visit) -> Iterable[bytes]:
        environ = visit.environ
        for name in ISR_ENVIRON_KEYS:
            environ.pop(name, None)
        environ.pop("wsgi_isr.reason", None)
        environ["wsgi_isr.middleware"] = self
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return self._pass(visit)
        visit.origin = self._origins.of(environ)
        if self.bypass is not None and (detail := self.bypass(environ)) is not None:
            return self._pass(visit, f"isr; fwd=bypass; detail={detail}", detail == "draft")
        refused = self._identify(visit)
        if refused is not None:
            return self._pass(visit, f"isr; fwd=uri-miss; detail={refused}", True)
        assert visit.key is not None
        detail = visit.process.not_pages.get(visit.key)
        if detail:
            return self._serve_refused(visit, detail)
        if detail == "" and visit.rule is None:
            return self._discover(visit)
        now = self._clock()
        entry = visit.process.store.lookup(visit.key, now)
        if entry is not None:
            state = state_of(entry.page, entry.mark, now)
            if state is State.FRESH:
                return self._serve_hit(visit, entry, now)
            if state is State.STALE:
                return self._serve_stale(visit, entry, now)
        elif visit.rule is None:
            return self._discover(visit)
        elif visit.rule.fallback is False:
            return _not_found(visit)
        return self._serve_cold(visit, "uri-miss" if entry is None else "stale")

    def _identify(self, visit: Visit) -> str | None:
        """Find the rule and the key of a request, or why it can have no page."""
        environ = visit.environ
        path = environ.get("PATH_INFO", "")
        if visit.origin is None:
            return "host"
        if is_ambiguous(path or "/", visit.origin.mount if path else ""):
            return "path"
        visit.rule = self._resolver(environ) if self._resolver is not None else None
        visit.key = self._key(visit.origin, environ, visit.rule)
        if sum(len(name) + len(value) for name, value in visit.key.query) > MAX_KEY_LENGTH:
            return "path"
        return None

    def _key(self, origin: Origin, environ: WSGIEnvironment, rule: Rule | None) -> PageKey:
        declared = (rule.query if rule is not None else ()) or self._query
        return PageKey(
            *origin,
            environ.get("PATH_INFO", ""),
            canonical_query(environ.get("QUERY_STRING", ""), declared),
            () if rule is None else rule.vary_of(environ),
            self._build_id,
        )

    def _serve_hit(self, visit: Visit, entry: Entry, now: float) -> Iterable[bytes]:
        process = visit.process
        process.stats.hits += 1
        entry.referenced = True
        process.store.poll()
        served = entry.served
        if served is None or not served.since <= now < served.until:
            served = entry.served = Served(entry, now)
        if visit.rule is None or not visit.rule.variants:
            process.memory.add_target(entry, visit.target)
        answer = served.answer(self._negotiation.choose(visit.environ, entry.page))
        return respond(visit.environ, visit.start_response, answer)

    def _serve_stale(self, visit: Visit, entry: Entry, now: float) -> Iterable[bytes]:
        visit.process.stats.stale_hits += 1
        entry.referenced = True
        visit.process.store.poll()
        visit.process.regeneration.behind(entry, visit.rule)
        left = seconds_left(entry.page, entry.mark, now)
        return self._serve_page(visit, entry, f"isr; hit; ttl={min(0, left or 0)}", now)

    def _serve_page(
        self, visit: Visit, entry: Entry, member: str, now: float
    ) -> Iterable[bytes]:
        coding = self._negotiation.choose(visit.environ, entry.page)
        answer = make_answer(entry.page, entry.mark, coding, member, now)
        return respond(visit.environ, visit.start_response, answer)

    # The visitor waits.

    def _serve_cold(self, visit: Visit, forward: str) -> Iterable[bytes]:
        """A canonical render, own or shared, for a declared or known page."""
        assert visit.key is not None
        if visit.key in rendering.get():
            # The app asks itself for the page that it is rendering.
            return self._pass(visit)
        reason = "miss" if forward == "uri-miss" else "stale"
        outcome = visit.process.regeneration.cold(visit.key, visit.rule, reason)
        return self._serve_outcome(visit, outcome, forward)

    def _serve_outcome(self, visit: Visit, outcome: Outcome, forward: str) -> Iterable[bytes]:
        if outcome.entry is not None:
            return self._serve_rendered(visit, outcome, outcome.entry, forward)
        visit.process.stats.misses += 1
        member = f"isr; fwd={forward}; detail={outcome.detail or 'error'}"
        if outcome.response is not None and outcome.kind in (Kind.FAILED, Kind.UNSTORED):
            if outcome.kind is Kind.UNSTORED:
                self._mark_not_a_page(visit, outcome.detail)
            failed = outcome.kind is Kind.FAILED
            return deliver(
                outcome.response, visit.start_response, member, failed, visit.head
            )
        if outcome.kind is Kind.NOT_A_PAGE:
            self._mark_not_a_page(visit, outcome.detail)
            return self._pass(visit, member, True, always=True)
        assert outcome.error is not None
        raise outcome.error

    def _serve_rendered(
        self, visit: Visit, outcome: Outcome, entry: Entry, forward: str
    ) -> Iterable[bytes]:
        now = self._clock()
        if outcome.kind is Kind.FOUND and not outcome.collapsed:
            if state_of(entry.page, entry.mark, now) is State.STALE:
                return self._serve_stale(visit, entry, now)
            return self._serve_hit(visit, entry, now)
        visit.process.stats.misses += 1
        done = "stored" if outcome.stored else f"detail={outcome.detail}"
        collapsed = "; collapsed" if outcome.collapsed else ""
        return self._serve_page(visit, entry, f"isr; fwd={forward}; {done}{collapsed}", now)

    def _serve_refused(self, visit: Visit, detail: str) -> Iterable[bytes]:
        """A URL that was refused a moment ago."""
        if detail == "too-large" and visit.rule is not None:
            # The app sees only canonical requests for a declared URL; nobody waits in line.
            assert visit.key is not None
            outcome = visit.process.attempts(visit.key, "miss", visit.rule, None)
            return self._serve_outcome(visit, outcome, "uri-miss")
        member = f"isr; fwd=uri-miss; detail={detail}"
        return self._pass(visit, member, True, always=visit.rule is not None)

    def _mark_not_a_page(self, visit: Visit, detail: str) -> None:
        if visit.key is not None:
            visit.process.not_pages.add(visit.key, detail)

    # The visitor's own request goes to the app.

    def _pass(
        self,
        visit: Visit,
        member: str | None = None,
        private: bool = False,
        always: bool = False,
        discover: Discover | None = None,
    ) -> Iterable[bytes]:
        passing = Passing(
            visit.start_response,
            member,
            private,
            always,
            discover,
            None if discover is None else lambda: self._mark_not_a_page(visit, ""),
        )
        token = current_origin.set(visit.origin)
        try:
            iterable = self.app(visit.environ, passing.start_response)
        finally:
            current_origin.reset(token)
        return passing.finish(iterable, self._limit)

    def _discover(self, visit: Visit) -> Iterable[bytes]:
        """An undeclared URL: the answer tells whether it is a page."""
        member = "isr; fwd=uri-miss; detail=status"
        return self._pass(
            visit, member, True, discover=lambda first: self._discovered(visit, first)
        )

    def _discovered(self, visit: Visit, first: Response) -> Iterable[bytes]:
        """The first answer of a page is put aside; the visitor gets the canonical one."""
        assert visit.key is not None
        detail = "status"
        if first.failure is None and first.code < 500:
            try:
                read_metadata(first.headers, None)
            except InvalidMetadata as error:
                detail = "metadata"
                visit.process.stats.rejections += 1
                visit.process.attempts.warn_rejected(visit.key, detail, str(error))
                self._mark_not_a_page(visit, detail)
            else:
                outcome = visit.process.regeneration.cold(visit.key, None, "miss")
                if outcome.entry is not None or outcome.kind is Kind.UNSTORED:
                    close(first.rest)
                    return self._serve_outcome(visit, outcome, "uri-miss")
                detail = outcome.detail or "error"
                self._mark_not_a_page(visit, detail)
        visit.process.stats.misses += 1
        member = f"isr; fwd=uri-miss; detail={detail}"
        return deliver(first, visit.start_response, member, True, visit.head)

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
                    self._targets = process.memory.targets
                    self._signal = process.signal
                    self._process = process
        return process

    def origin_of(self, environ: WSGIEnvironment) -> Origin | None:
        """Where a request came in, ``None`` if pages may not have that host."""
        return self._origins.of(environ)

    def _on_demand(self) -> OnDemand:
        return OnDemand(self._here(), self._origins, self._describe, self._clock)

    def _describe(
        self, origin: Origin, path: str, query_string: str
    ) -> tuple[PageKey, Rule | None]:
        """The key and the rule of a page that is named, not visited."""
        environ = PageKey(*origin, path).to_environ("revalidate", self)
        environ["QUERY_STRING"] = query_string
        rule = self._resolver(environ) if self._resolver is not None else None
        return self._key(origin, environ, rule), rule

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

    def close(self, timeout: float = 5) -> None:
        """Wait for running regenerations.

        :param timeout: seconds, at most.
        """
        process = self._process
        if process is not None and process.pid == os.getpid():
            process.pool.wait(timeout)


def _not_found(visit: Visit) -> Iterable[bytes]:
    """A path that was not prerendered, of a rule that has no others."""
    body = b"Not Found\n"
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", PRIVATE),
    ]
    visit.start_response("404 Not Found", headers)
    return () if visit.head else (body,)
