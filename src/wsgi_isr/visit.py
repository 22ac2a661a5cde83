"""The way of a request that a hit does not answer: which page it is for, and what becomes of it."""

from __future__ import annotations

import typing as t
from collections.abc import Iterable

from .attempt import Kind
from .attempt import Outcome
from .fallback import fallback
from .fallback import Shell
from .key import is_ambiguous
from .key import MAX_KEY_LENGTH
from .key import Origin
from .known import Known
from .known import NotPage
from .metadata import InvalidMetadata
from .metadata import read_metadata
from .metadata import remove_isr
from .passing import AfterAnswer
from .passing import deliver
from .passing import Discover
from .passing import Passing
from .process import Process
from .render import close
from .render import current_origin
from .render import rendering
from .render import Response
from .respond import make_answer
from .respond import respond
from .rules import Rule
from .site import Site
from .state import State
from .state import state_of
from .store.memory import Entry
from .store.memory import Target

if t.TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse
    from _typeshed.wsgi import WSGIEnvironment


class Visit:
    """One request: what is known of it so far, and its way to an answer."""

    def __init__(
        self,
        site: Site,
        process: Process,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        target: Target | None,
    ) -> None:
        self._site = site
        self._process = process
        self._environ = environ
        self._start_response = start_response
        self._target = target
        self._head = environ["REQUEST_METHOD"] == "HEAD"
        self._origin: Origin | None = None
        self._rule: Rule | None = None

    def serve(self) -> Iterable[bytes]:
        environ = self._environ
        remove_isr(environ)
        environ["wsgi_isr.middleware"] = self._site.middleware
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            self._origin = self._site.origins.of(environ)
            return self._pass()
        bypass = self._site.bypass
        if bypass is not None and (detail := bypass(environ)) is not None:
            self._origin = self._site.origins.of(environ)
            return self._pass_by(detail)
        self._origin = self._site.origins.of(environ)
        refused = self._identify()
        if refused is not None:
            return self._pass(f"isr; fwd=uri-miss; detail={refused}", True)
        detail = self._process.not_pages.get(self._key)
        if detail:
            return self._serve_refused(detail)
        if detail == "" and self._rule is None:
            return self._discover()
        return self._serve_known()

    def _pass_by(self, detail: str) -> Iterable[bytes]:
        """A draft is its visitor's alone; while the library is off, the app is left alone."""
        rule = self._find_rule()
        # Where only the rule makes it a page, the answer does not call itself one.
        would_be = rule is not None and rule.revalidate is not None
        member = f"isr; fwd=bypass; detail={detail}"
        return self._pass(member, detail == "draft", always=would_be)

    def _identify(self) -> str | None:
        """Find the rule and the key of the request, or why it can have no page."""
        environ = self._environ
        if self._origin is None:
            return "host"
        path = environ.get("PATH_INFO", "")
        if is_ambiguous(path or "/", self._origin.mount if path else ""):
            return "path"
        self._rule = self._find_rule()
        self._key = self._site.key(self._origin, environ, self._rule)
        query = self._key.query
        if query and sum(len(name) + len(value) for name, value in query) > MAX_KEY_LENGTH:
            return "path"
        self._process.see_mount(self._origin.mount)
        return None

    def _find_rule(self) -> Rule | None:
        site, environ = self._site, self._environ
        if site.resolver is None:
            return None
        if site.origins.base is not None:
            # The visitor's host is no part of the key, so it has no say in the rule either.
            scheme, host = site.origins.base
            environ = {**environ, "wsgi.url_scheme": scheme, "HTTP_HOST": host}
        return site.resolver(environ)

    def _serve_known(self) -> Iterable[bytes]:
        """From the store, if the page is there and may be served."""
        now = self._site.clock()
        entry = self._process.store.lookup(self._key, now)
        if entry is not None:
            generation, mark = entry.confirmed
            if state_of(entry.page, mark, now) is State.EXPIRED:
                return self._serve_cold("stale")
            return self._serve_stored(entry, generation, now)
        if self._rule is None:
            return self._discover()
        instead = fallback(self._rule, self._environ)
        if instead is None:
            return self._serve_cold("uri-miss")
        if isinstance(instead, Shell) and not self._process.regeneration.ahead(
            self._key, self._rule
        ):
            return self._serve_cold("uri-miss")
        self._process.stats.misses += 1
        answer = instead(self._environ, self._start_response)
        return self._after(answer) if isinstance(instead, Shell) else answer

    def _serve_stored(self, entry: Entry, generation: object, now: float) -> Iterable[bytes]:
        """A fresh or a stale page."""
        process = self._process
        entry.referenced = True
        process.look(now)
        process.store.used(entry, now)
        known = self._known(entry, generation, now)
        if known is None:
            # It has expired, or another thread has seen that it was invalidated, a moment ago.
            return self._serve_known()
        # A target does not tell variants apart.
        if self._target is not None and (self._rule is None or not self._rule.variants):
            process.memory.let_hit(entry, self._target, known)
        if not known.is_fresh:
            return self._serve_stale(known, entry)
        process.stats.hits += 1
        return respond(self._environ, self._start_response, known)

    def _known(self, entry: Entry, generation: object, now: float) -> Known | None:
        coding = self._coding(entry)
        body = entry.page.bodies[coding]
        known: Known | None = next((a for a in entry.answers if a.body is body), None)
        if known is None:
            known = Known.answer(entry, coding, now, self._site.tags_header, self._rule)
            # They refer to each other, so a page that is not kept would linger.
            if known is not None and self._process.memory.get(self._key) is entry:
                entry.answers += (known,)
            return known
        holds = known.generation == generation and known.since <= now < known.until
        return known if holds or self._process.make_anew(known, now) else None

    def serve_stale(self, known: Known) -> Iterable[bytes]:
        """A stale page, if it is still the newest."""
        entry = known.entry
        assert entry is not None
        if not self._process.store.is_newest(entry):
            return self.serve()
        return self._serve_stale(known, entry)

    def _serve_stale(self, known: Known, entry: Entry) -> Iterable[bytes]:
        self._process.stats.stale_hits += 1
        self._process.regeneration.behind(entry, known.rule)
        return self._after(respond(self._environ, self._start_response, known))

    def _after(self, answer: Iterable[bytes]) -> Iterable[bytes]:
        if self._process.pool.is_stalled:
            # Threads do not run here: this one renders, when its visitor has been served.
            return AfterAnswer(answer, self._process.pool.run_one)
        return answer

    def _serve_page(self, entry: Entry, member: str, now: float) -> Iterable[bytes]:
        coding = self._coding(entry)
        answer = make_answer(entry.page, entry.mark, coding, member, now, self._site.tags_header)
        return respond(self._environ, self._start_response, answer)

    def _coding(self, entry: Entry) -> str:
        accepted = self._environ.get("HTTP_ACCEPT_ENCODING")
        return self._site.negotiation.choose(accepted, entry.page)

    # The visitor waits.

    def _serve_cold(self, forward: str) -> Iterable[bytes]:
        """A canonical render, own or shared, for a declared or known page."""
        if self._key in rendering.get():
            # The app asks itself for the page that it is rendering.
            return self._pass()
        reason = "miss" if forward == "uri-miss" else "stale"
        outcome = self._process.regeneration.cold(self._key, self._rule, reason)
        return self._serve_outcome(outcome, forward)

    def _serve_outcome(self, outcome: Outcome, forward: str) -> Iterable[bytes]:
        if outcome.entry is not None:
            return self._serve_rendered(outcome, outcome.entry, forward)
        self._process.stats.misses += 1
        member = f"isr; fwd={forward}; detail={outcome.detail or 'error'}"
        if outcome.kind is Kind.NOT_A_PAGE:
            self._mark_not_a_page(outcome.detail)
            return self._pass(member, True, always=True)
        if outcome.response is None:
            assert outcome.error is not None
            raise outcome.error
        if outcome.kind is Kind.UNSTORED:
            self._mark_not_a_page(outcome.detail)
        failed = outcome.kind is Kind.FAILED
        return deliver(outcome.response, self._start_response, member, failed, self._head)

    def _serve_rendered(self, outcome: Outcome, entry: Entry, forward: str) -> Iterable[bytes]:
        now = self._site.clock()
        if outcome.kind is Kind.FOUND and not outcome.collapsed:
            return self._serve_stored(entry, entry.confirmed[0], now)
        self._process.stats.misses += 1
        done = "stored" if outcome.stored else f"detail={outcome.detail}"
        collapsed = "; collapsed" if outcome.collapsed else ""
        return self._serve_page(entry, f"isr; fwd={forward}; {done}{collapsed}", now)

    def _serve_refused(self, detail: str) -> Iterable[bytes]:
        """A URL that was refused a moment ago."""
        if detail == "too-large" and self._rule is not None:
            # The app sees only canonical requests for a declared URL; nobody waits in line.
            outcome = self._process.attempts(self._key, "miss", self._rule, None)
            return self._serve_outcome(outcome, "uri-miss")
        member = f"isr; fwd=uri-miss; detail={detail}"
        return self._pass(member, True, always=self._rule is not None)

    def _mark_not_a_page(self, detail: str = "") -> None:
        self._process.not_pages.add(self._key, detail)
        if not detail and self._target is not None:
            self._process.not_pages.add_target(self._target, self._key)

    # The visitor's own request goes to the app.

    def _pass(
        self,
        member: str | None = None,
        private: bool = False,
        always: bool = False,
        discover: Discover | None = None,
    ) -> Iterable[bytes]:
        passing = Passing(
            self._start_response,
            member,
            private,
            always,
            discover,
            None if discover is None else self._mark_not_a_page,
            self._origin,
        )
        token = current_origin.set(self._origin)
        try:
            iterable = self._site.app(self._environ, passing.start_response)
        finally:
            current_origin.reset(token)
        return passing.finish(iterable, self._site.limit)

    def _discover(self) -> Iterable[bytes]:
        """An undeclared URL: the answer tells whether it is a page."""
        return self._pass("isr; fwd=uri-miss; detail=status", True, discover=self._discovered)

    def _discovered(self, first: Response) -> Iterable[bytes]:
        """The first answer of a page is put aside; the visitor gets the canonical one."""
        detail = "status"
        if first.failure is None and first.code < 500:
            try:
                read_metadata(first.headers, None)
            except InvalidMetadata as error:
                detail = "metadata"
                self._process.stats.rejections += 1
                self._process.attempts.warn_rejected(self._key, detail, str(error))
                self._mark_not_a_page(detail)
            else:
                outcome = self._process.regeneration.cold(self._key, None, "miss")
                if outcome.entry is not None or outcome.kind is Kind.UNSTORED:
                    self._process.not_pages.discard(self._key)
                    close(first.rest)
                    return self._serve_outcome(outcome, "uri-miss")
                outcome.discard()
                detail = outcome.detail or "error"
                self._mark_not_a_page(detail)
        self._process.stats.misses += 1
        member = f"isr; fwd=uri-miss; detail={detail}"
        return deliver(first, self._start_response, member, True, self._head)

    def passing_of(self, not_page: NotPage) -> Passing:
        """How the answer of a URL that is no page goes on, should it have become one."""
        self._key, self._origin = not_page.key, not_page.origin
        member = "isr; fwd=uri-miss; detail=status"
        return Passing(
            self._start_response, member, True, False, self._discovered, None, not_page.origin
        )
