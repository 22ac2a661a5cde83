"""Every request that a hit does not answer: which page it is for, and one of two ways out.

A request ends in an `Answer` (a page) or in `Passing` (the app's own answer), and nothing else.
"""

from __future__ import annotations

import typing as t
from collections.abc import Iterable

from .answer import Hit, NotPage, choose_coding, make_answer, send
from .fallback import Unlisted, is_crawler, not_found, serve_shell
from .freshness import State, state_of
from .key import MAX_KEY_LENGTH, Origin, PageKey, is_ambiguous
from .metadata import NOT_NOW, REDIRECTS, InvalidMetadata, read_metadata, remove_isr, vary_fields
from .outcome import Kind, Outcome
from .passing import Afterwards, Discover, Passing, deliver
from .process import Process
from .refusals import Refusal
from .render import Response, rendering
from .rules import Excluded, Rule, has_undeclared
from .store.memory import Entry, Fingerprint

if t.TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

#: ``Cache-Status`` after an exception of our own.
UNREAD = "isr; fwd=bypass; detail=error"


class Request:
    """One request, and its way to an answer."""

    def __init__(
        self,
        process: Process,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        fingerprint: Fingerprint | None,
    ) -> None:
        self._process = process
        self._config = process.config
        self._environ = environ
        self._start_response = start_response
        self._fingerprint = fingerprint
        self._head = environ["REQUEST_METHOD"] == "HEAD"
        self._origin: Origin | None = None
        self._rule: Rule | None = None
        #: Whether the app was asked: what it raises is its own.
        self.has_asked = False

    # Which page.

    def serve(self) -> Iterable[bytes]:
        environ, config = self._environ, self._config
        remove_isr(environ)
        environ["wsgi_isr.middleware"] = config.middleware
        self._origin = config.origins.of(environ)
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return self._pass()
        if config.bypass is not None and (detail := config.bypass(environ)) is not None:
            return self._bypass(detail)
        detail = self._identify()
        if detail == "excluded":
            return self._pass()
        if detail is not None:
            self._process.counters.passed += 1
            return self._pass(f"isr; fwd=uri-miss; detail={detail}", True, always=detail == "query")
        detail = self._process.not_pages.get(self._key)
        if detail:
            return self._serve_refused(detail)
        if detail == "" and self._rule is None:
            return self._discover()
        return self._serve_known()

    def _bypass(self, detail: str) -> Iterable[bytes]:
        """Give a visitor the app's own answer, which is theirs alone where it could be a page."""
        self._process.counters.bypassed += 1
        always = False
        if self._identify() is None:
            rule = self._rule
            # Where only the rule makes it a page, the answer has no metadata.
            always = rule is not None and (rule.revalidate is not None or detail == "bypass")
            always = always or self._process.pages.memory.get(self._key) is not None
        return self._pass(f"isr; fwd=bypass; detail={detail}", detail != "disabled", always=always)

    def _identify(self) -> str | None:
        """Find the rule and the key of the request, or why it can have no page."""
        environ, config = self._environ, self._config
        if self._origin is None:
            return "host"
        path = environ.get("PATH_INFO", "")
        if is_ambiguous(path or "/", self._origin.mount if path else ""):
            return "path"
        if config.origins.base is not None:
            # The visitor's host is no part of the key, so the rule does not see it either.
            scheme, host, _ = config.origins.base
            environ = {**environ, "wsgi.url_scheme": scheme, "HTTP_HOST": host}
        rule = config.rules.resolve(environ)
        if isinstance(rule, Excluded):
            return "excluded"
        self._rule = rule
        self._key: PageKey = config.key(self._origin, environ, rule)
        query = self._key.query
        if query and sum(len(name) + len(value) for name, value in query) > MAX_KEY_LENGTH:
            return "path"
        if rule is not None and rule.undeclared == "pass" and self._has_undeclared():
            return "query"
        return None

    def _has_undeclared(self) -> bool:
        query = self._environ.get("QUERY_STRING", "")
        return has_undeclared(query, self._config.parameters(self._rule))

    # A stored page.

    def _serve_known(self) -> Iterable[bytes]:
        """From memory or the store, if the page is there and may be served."""
        process = self._process
        now = process.clock()
        entry = process.pages.find(self._key, now)
        if entry is not None:
            if state_of(entry.page, entry.invalidated, now) is State.EXPIRED:
                return self._serve_cold("stale")
            return self._serve_stored(entry)
        rule = self._rule
        if rule is None:
            return self._discover()
        if rule.fallback == "blocking":
            return self._serve_cold("uri-miss")
        if rule.fallback is False or isinstance(rule.fallback, Unlisted):
            if self._exists(rule.fallback):
                return self._serve_cold("uri-miss")
            process.counters.misses += 1
            return not_found(self._environ, self._start_response)
        if is_crawler(self._environ) or self._has_failed():
            return self._serve_cold("uri-miss")
        process.renders.start(self._key, rule, None)
        process.counters.misses += 1
        self.has_asked = True
        shell = serve_shell(rule.fallback, self._environ, self._start_response)
        return self._after(shell)

    def _exists(self, fallback: object) -> bool:
        """Whether a path of ``fallback=False`` exists; where nobody can say, the app is asked."""
        if isinstance(fallback, Unlisted) and fallback.is_listed(self._environ):
            return True
        pages = self._process.pages
        path = self._key.full_path or "/"
        return pages.guard.ask("paths", lambda: pages.store.has_path(path)) is not False

    def _has_failed(self) -> bool:
        """Whether the page's render has failed: a visitor with a shell would never learn why."""
        pages, name = self._process.pages, self._key.name
        return pages.guard.ask("failure", lambda: pages.store.failure(name)) is not None

    def _serve_stored(self, entry: Entry) -> Iterable[bytes]:
        """A fresh or a stale page."""
        process = self._process
        if entry.page.code in REDIRECTS and self._has_undeclared():
            # The app knows where to send them with those parameters.
            process.counters.passed += 1
            return self._pass("isr; fwd=uri-miss; detail=query", True, always=True)
        now = process.local_clock()
        entry.referenced = True
        process.poll()
        process.pages.used(entry, now)
        hit = self._hit(entry, now)
        if hit is None:
            # It has expired, or another thread has seen that it was invalidated, a moment ago.
            return self._serve_known()
        rule = self._rule
        # Fingerprints do not tell variants apart, nor visitors whose headers choose a rule.
        plain = rule is None or all(len(values) == 1 for _, values in rule.variants)
        if self._fingerprint is not None and plain and self._config.rules.by_url:
            if entry.page.code not in REDIRECTS or not self._environ.get("QUERY_STRING"):
                process.pages.memory.add_hit(entry, self._fingerprint, hit)
        if not hit.is_fresh:
            return self._send_stale(hit, entry)
        process.counters.hits += 1
        return send(self._environ, self._start_response, hit)

    def _hit(self, entry: Entry, now: float) -> Hit | None:
        """The ready answer in the visitor's content coding."""
        process = self._process
        coding = self._coding(entry)
        body = entry.page.bodies[coding]
        hit: Hit | None = next((a for a in entry.hits if a.body is body), None)
        if hit is None:
            hit = Hit.of_page(entry, coding, now, process.offset, self._config.caching, self._rule)
            # They refer to each other, so a page that is not kept would linger.
            if hit is not None and process.pages.memory.get(self._key) is entry:
                entry.hits += (hit,)
            return hit
        generation = process.pages.memory.generation
        holds = hit.generation == generation and hit.since <= now < hit.until
        return hit if holds or process.make_anew(hit, now) else None

    def serve_stale(self, hit: Hit) -> Iterable[bytes]:
        """A stale page, if it is still the newest."""
        entry = hit.entry
        assert entry is not None
        if not self._process.pages.is_newest(entry):
            return self.serve()
        return self._send_stale(hit, entry)

    def _send_stale(self, hit: Hit, entry: Entry) -> Iterable[bytes]:
        self._process.counters.stale_hits += 1
        self._process.renders.start(entry.page.key, hit.rule, entry)
        return self._after(send(self._environ, self._start_response, hit))

    def _after(self, answer: Iterable[bytes]) -> Iterable[bytes]:
        background = self._process.background
        # Where threads do not run, this one renders when its visitor has been served.
        return Afterwards(answer, background.run_one) if background.is_stalled else answer

    def _coding(self, entry: Entry) -> str:
        return choose_coding(self._environ.get("HTTP_ACCEPT_ENCODING"), entry.page)

    # The visitor waits.

    def _serve_cold(self, forward: str) -> Iterable[bytes]:
        """A canonical render, one's own or another's, for a declared or stored page."""
        if self._key in rendering.get():
            # The app asks itself for the page that it is rendering.
            return self._pass()
        reason = "miss" if forward == "uri-miss" else "stale"
        self.has_asked = True
        outcome = self._process.renders.get(self._key, self._rule, reason)
        return self._serve_outcome(outcome, forward)

    def _serve_outcome(self, outcome: Outcome, forward: str) -> Iterable[bytes]:
        if outcome.entry is not None:
            return self._serve_rendered(outcome, outcome.entry, forward)
        self._process.counters.misses += 1
        member = f"isr; fwd={forward}; detail={outcome.detail or 'error'}"
        if outcome.kind is Kind.NOT_A_PAGE:
            self._remember_no_page(outcome.detail)
            return self._pass(member, True, always=True)
        if outcome.response is None:
            assert outcome.error is not None
            raise outcome.error
        if outcome.kind is Kind.UNSTORED:
            self._remember_no_page(outcome.detail)
        private = outcome.kind is Kind.FAILED
        return deliver(outcome.response, self._start_response, member, private, self._head)

    def _serve_rendered(self, outcome: Outcome, entry: Entry, forward: str) -> Iterable[bytes]:
        if outcome.kind is Kind.FOUND and not outcome.collapsed:
            return self._serve_stored(entry)
        if entry.page.code in REDIRECTS and self._has_undeclared():
            return self._serve_stored(entry)
        self._process.counters.misses += 1
        done = "stored" if outcome.stored else f"detail={outcome.detail}"
        collapsed = "; collapsed" if outcome.collapsed else ""
        member = f"isr; fwd={forward}; {done}{collapsed}"
        answer = make_answer(
            entry.page,
            entry.invalidated,
            self._coding(entry),
            member,
            self._process.clock(),
            self._config.caching,
        )
        return send(self._environ, self._start_response, answer)

    def _serve_refused(self, detail: str) -> Iterable[bytes]:
        """A URL that was refused a moment ago."""
        if detail == "too-large" and self._rule is not None:
            # The app sees only canonical requests for a declared URL, and nobody waits here.
            process = self._process
            self.has_asked = True
            number = process.pages.number()
            outcome = process.attempts(self._key, "miss", self._rule, None, number)
            return self._serve_outcome(outcome, "uri-miss")
        self._process.counters.misses += 1
        member = f"isr; fwd=uri-miss; detail={detail}"
        return self._pass(member, True, always=self._rule is not None)

    def _remember_no_page(self, detail: str = "") -> None:
        rule = self._rule
        if not self._process.add_no_page(self._key, rule, detail):
            return
        if not detail and self._fingerprint is not None and self._config.rules.by_url:
            if rule is None or rule.undeclared != "pass":
                self._process.not_pages.add_fingerprint(self._fingerprint, self._key)

    # The visitor's own request goes to the app.

    def _pass(
        self,
        member: str | None = None,
        private: bool = False,
        always: bool = False,
        discover: Discover | None = None,
    ) -> Iterable[bytes]:
        if member is None:
            self._process.counters.passed += 1
        passing = Passing(
            self._start_response,
            member,
            private,
            always,
            discover,
            None if discover is None else self._no_page,
            self._origin,
            self._config.limit,
        )
        self.has_asked = True
        return passing.run(self._config.app, self._environ)

    def _discover(self) -> Iterable[bytes]:
        """An undeclared URL: the answer shows whether it has a page."""
        if self._key in rendering.get():
            return self._pass()
        return self._pass("isr; fwd=uri-miss; detail=status", True, discover=self._discovered)

    def _no_page(self, detail: str, code: int) -> None:
        """The visitor's own answer is no page."""
        self._process.counters.passed += 1
        if detail:
            self._process.attempts.reject(self._key, Refusal(detail))
        # Of an error's URL nobody can say whether it has one.
        if detail or 200 <= code < 400 or code == 404:
            self._remember_no_page(detail)

    def _discovered(self, first: Response) -> Iterable[bytes]:
        """Put the first answer of a page aside; the visitor gets the canonical one."""
        detail = "status"
        if first.code < 500 and first.code not in NOT_NOW:
            outcome = None
            refused = self._refusal_of(first)
            if refused is None:
                outcome = self._process.renders.get(self._key, None, "miss")
                if outcome.entry is not None or outcome.kind is Kind.UNSTORED:
                    self._process.not_pages.discard(self._key)
                    first.discard()
                    return self._serve_outcome(outcome, "uri-miss")
                outcome.discard()
                refused = Refusal(outcome.detail or "error")
            detail = refused.detail
            self._remember_no_page(detail)
        self._process.counters.misses += 1
        member = f"isr; fwd=uri-miss; detail={detail}"
        return deliver(first, self._start_response, member, True, self._head)

    def _refusal_of(self, first: Response) -> Refusal | None:
        """Why a visitor's own answer shows already that its URL has no page."""
        refused = None
        try:
            read_metadata(first.headers)
            fields = vary_fields(first.headers)
            unknown = fields - {"accept-encoding", "cookie", "authorization"}
            if unknown:
                refused = Refusal("vary", ", ".join(sorted(unknown)))
        except InvalidMetadata as error:
            refused = Refusal("metadata", str(error))
        if refused is not None:
            self._process.attempts.reject(self._key, refused)
        return refused

    def passing_of(self, not_page: NotPage) -> Passing:
        """How the answer of a URL that was remembered as no page goes on, should it be one."""
        self._key, self._origin = not_page.key, not_page.origin
        member = "isr; fwd=uri-miss; detail=status"
        return Passing(
            self._start_response,
            member,
            True,
            discover=self._discovered,
            origin=not_page.origin,
            limit=self._config.limit,
        )

    def pass_unread(self) -> Iterable[bytes]:
        """After an exception of our own: the app's own answer, for this visitor alone."""
        self._process.counters.bypassed += 1
        return self._pass(UNREAD, True, always=self._rule is not None)
