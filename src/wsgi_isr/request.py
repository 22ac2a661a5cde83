"""Every request that a hit does not answer: which page it is for, and one of two ways out.

A request ends in an `Answer` (a page) or in `Passing` (the app's own answer), and nothing else.
"""

from __future__ import annotations

import logging
import typing as t
from collections.abc import Iterable

from werkzeug.wsgi import ClosingIterator

from .answer import Answer, choose_coding, send
from .key import Origin, PageKey, are_trackers, is_ambiguous, undeclared
from .metadata import NOT_NOW, REDIRECTS, InvalidMetadata, prepare, read_metadata
from .outcome import Kind, Outcome
from .page import State, state_of
from .passing import FALLBACK, Discovery, Passing, deliver, not_found, refreshing
from .process import Process
from .refusals import Refusal, undeclared_vary
from .render import Response, rendering
from .rules import Excluded, Rule
from .store.memory import Entry, Fingerprint

if t.TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

logger = logging.getLogger("wsgi_isr")


def miss(detail: str, forward: str = "uri-miss") -> str:
    """``Cache-Status`` of an answer that is not stored."""
    return f"isr; fwd={forward}; detail={detail}"


class Request:
    """One request, and its way to an answer."""

    _key: PageKey

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
        self._is_head = environ["REQUEST_METHOD"] == "HEAD"
        self.origin: Origin | None = None
        self.rule: Rule | None = None
        #: Whether the app was asked: what it raises is its own.
        self.has_asked = False

    # Which page.

    def serve(self) -> Iterable[bytes]:
        environ, config = self._environ, self._config
        prepare(environ, config.middleware)
        self.origin = config.origins.of(environ)
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return self._pass()
        why_not = self._identify()
        if why_not == "excluded":
            return self._pass()
        if config.bypass is not None and (detail := config.bypass(environ)) is not None:
            return self._bypass(detail, why_not in (None, "query"))
        if why_not is not None:
            self._process.counters.passed += 1
            return self._pass(miss(why_not), always=self.rule is not None)
        detail = self._process.not_pages.get(self._key)
        if detail:
            return self._serve_refused(detail)
        if detail == "" and self.rule is None:
            return self._discover()
        return self._serve_known()

    def _bypass(self, detail: str, has_key: bool) -> Iterable[bytes]:
        """Give a visitor the app's own answer, which is theirs alone where it could be a page."""
        self._process.counters.bypassed += 1
        always = False
        if has_key:
            rule = self.rule
            # Where only the rule makes it a page, the answer has no metadata.
            always = rule is not None and (rule.revalidate is not None or detail == "bypass")
            always = always or self._process.pages.memory.get(self._key) is not None
        private = detail != "disabled"
        return self._pass(f"isr; fwd=bypass; detail={detail}", private, always=always)

    def _identify(self) -> str | None:
        """Find the rule and the key of the request, or why it can have no page."""
        environ, config, origin = self._environ, self._config, self.origin
        if config.origins.base is not None:
            # The visitor's host is no part of the key, so the rule does not see it either.
            scheme, host, _ = config.origins.base
            environ = {**environ, "wsgi.url_scheme": scheme, "HTTP_HOST": host}
        rule = config.rules.resolve(environ)
        if isinstance(rule, Excluded):
            return "excluded"
        self.rule = rule
        if origin is None:
            return "host"
        if is_ambiguous(environ.get("PATH_INFO", ""), origin.mount):
            return "path"
        self._key = config.key(origin, environ, rule)
        if self._key.is_too_long:
            return "path"
        if rule is not None and rule.undeclared == "pass":
            if not are_trackers(self._undeclared()):
                return "query"
        return None

    def _undeclared(self) -> set[str]:
        query = self._environ.get("QUERY_STRING", "")
        return undeclared(query, self._config.parameters(self.rule))

    # A stored page.

    def _serve_known(self) -> Iterable[bytes]:
        """From memory or the store, if the page is there and may be served."""
        process, pages = self._process, self._process.pages
        process.poll()
        now = process.clock()
        entry = pages.find(self._key, now)
        if entry is not None:
            if state_of(entry.page, entry.invalidated, now) is State.EXPIRED:
                return self._wait("stale")
            return self._serve_page(entry)
        if self.rule is None:
            return self._discover()
        fallback = process.fallback(self._environ, self._key, self.rule)
        if fallback is None:
            return self._wait("uri-miss")
        process.counters.misses += 1
        if fallback is False:
            return not_found(self._environ, self._start_response)
        process.renders.start(self._key, None)
        self.has_asked = True
        shell = Passing(refreshing(self._start_response), self.origin, FALLBACK, always=True)
        return self._after(shell.run(fallback, self._environ))

    def _serve_page(self, entry: Entry, member: str | None = None) -> Iterable[bytes]:
        """A page that may be served.

        :param member: ``Cache-Status`` of one that the visitor has waited for.
        """
        process = self._process
        if entry.page.code in REDIRECTS and self._undeclared():
            # The app knows where to send them with those parameters.
            process.counters.passed += 1
            return self._pass(miss("query"), always=True)
        if member is not None:
            process.counters.misses += 1
            answer = self._answer(entry).saying(member)
            return self._after(send(self._environ, self._start_response, answer))
        entry.referenced = True
        process.pages.used(entry, self._config.clock())
        answer = self._answer(entry)
        if answer.is_expired:
            # Just now, or another thread has seen that it was invalidated.
            return self._serve_known()
        rule = self.rule
        # Fingerprints do not tell variants apart, nor visitors whose headers choose a rule.
        plain = rule is None or all(len(values) == 1 for _, values in rule.variants)
        if self._fingerprint is not None and plain and self._config.rules.by_url:
            process.pages.memory.add_hit(entry, self._fingerprint, answer)
        if not answer.is_fresh:
            return self._send_stale(answer, entry)
        process.counters.hits += 1
        return send(self._environ, self._start_response, answer)

    def _answer(self, entry: Entry) -> Answer:
        """The ready answer in the visitor's content coding."""
        process, config = self._process, self._config
        coding = choose_coding(self._environ.get("HTTP_ACCEPT_ENCODING"), entry.page)
        body = entry.page.bodies[coding]
        answer: Answer | None = next((it for it in entry.hits if it.body is body), None)
        if answer is None:
            answer = Answer(entry, coding, config.tags_header, config.cdn_purged)
            # They refer to each other, so a page that is not kept would linger.
            if process.pages.memory.get(self._key) is entry:
                entry.hits += (answer,)
        now, generation = self._config.clock(), process.pages.memory.generation
        if answer.generation != generation or not answer.since <= now < answer.until:
            process.make_anew(answer, now)
        return answer

    def serve_stale(self, answer: Answer) -> Iterable[bytes]:
        """A stale page, if it is still the newest."""
        entry = answer.entry
        assert entry is not None
        if not self._process.pages.is_newest(entry):
            return self.serve()
        return self._send_stale(answer, entry)

    def _send_stale(self, answer: Answer, entry: Entry) -> Iterable[bytes]:
        self._process.counters.stale_hits += 1
        self._process.renders.start(entry.page.key, entry)
        return self._after(send(self._environ, self._start_response, answer))

    def _after(self, answer: Iterable[bytes]) -> Iterable[bytes]:
        background = self._process.background
        # Where threads do not run, this one works when its visitor has been served.
        return ClosingIterator(answer, background.help) if background.is_stalled else answer

    # The visitor waits.

    def _wait(self, forward: str) -> Iterable[bytes]:
        """A canonical render, one's own or another's, for a declared or stored page."""
        if self._key in rendering.get():
            # The app asks itself for the page that it is rendering.
            return self._pass()
        reason = "miss" if forward == "uri-miss" else "stale"
        outcome = self._process.renders.get(self._key, reason)
        return self._serve_outcome(outcome, forward)

    def _serve_outcome(self, outcome: Outcome, forward: str = "uri-miss") -> Iterable[bytes]:
        if outcome.entry is not None:
            if outcome.kind is Kind.FOUND and not outcome.collapsed:
                return self._serve_page(outcome.entry)
            done = "stored" if outcome.stored else f"detail={outcome.detail}"
            collapsed = "; collapsed" if outcome.collapsed else ""
            return self._serve_page(outcome.entry, f"isr; fwd={forward}; {done}{collapsed}")
        self._process.counters.misses += 1
        member = miss(outcome.detail or "error", forward)
        if outcome.kind in (Kind.NOT_A_PAGE, Kind.UNSTORED):
            self._process.not_pages.add(self._key, outcome.detail, self._fingerprint)
        if outcome.kind is Kind.NOT_A_PAGE:
            return self._pass(member, always=True)
        self.has_asked = True
        if outcome.response is None:
            assert outcome.error is not None
            raise outcome.error
        private = outcome.kind is Kind.FAILED
        return deliver(outcome.response, self._start_response, member, private, self._is_head)

    def _serve_refused(self, detail: str) -> Iterable[bytes]:
        """A URL that was refused a moment ago."""
        process = self._process
        if detail == "too-large" and self.rule is not None:
            # The app sees only canonical requests for a declared URL, and nobody waits here.
            return self._serve_outcome(process.renders.alone(self._key, "miss"))
        process.counters.misses += 1
        return self._pass(miss(detail), always=self.rule is not None)

    def _remember_no_page(self, detail: str) -> None:
        config, key = self._config, self._key
        # What one visitor's headers made of the rules says nothing of others.
        if config.rules.by_url or config.rule_of(key) == self.rule:
            self._process.not_pages.add(key, detail, self._fingerprint)

    # The visitor's own request goes to the app.

    def _pass(
        self,
        member: str | None = None,
        private: bool = True,
        always: bool = False,
        discovery: Discovery | None = None,
    ) -> Iterable[bytes]:
        if member is None:
            self._process.counters.passed += 1
        self.has_asked = True
        passing = Passing(self._start_response, self.origin, member, private, always, discovery)
        return passing.run(self._config.app, self._environ)

    def _discover(self) -> Iterable[bytes]:
        """An undeclared URL: the answer shows whether it has a page."""
        if self._key in rendering.get():
            return self._pass()
        discovery = Discovery(self._config.max_body_size, self._discovered, self._no_page)
        return self._pass(miss("status"), discovery=discovery)

    def _passed(self, detail: str, code: int) -> None:
        self._process.counters.passed += 1

    def _no_page(self, detail: str, code: int) -> None:
        """The visitor's own answer is no page."""
        self._passed(detail, code)
        if detail:
            self._process.failures.reject(self._key, Refusal(detail))
        # Of an error's URL nobody can say whether it has one.
        if detail or 200 <= code < 400 or code == 404:
            self._remember_no_page(detail)

    def _discovered(self, first: Response) -> Iterable[bytes]:
        """Put the first answer of a page aside; the visitor gets the canonical one."""
        process, detail = self._process, "status"
        if first.code < 500 and first.code not in NOT_NOW:
            refused = _refusal_of(first)
            if refused is not None:
                process.failures.reject(self._key, refused)
                detail = refused.detail
            else:
                try:
                    outcome = process.renders.get(self._key, "miss")
                except Exception as error:
                    # The visitor has an answer.
                    logger.exception("%r: the request goes to the app", self._key.path)
                    outcome = Outcome(Kind.FAILED, error=error)
                if outcome.entry is not None or outcome.kind is Kind.UNSTORED:
                    process.not_pages.discard(self._key)
                    first.discard()
                    return self._serve_outcome(outcome)
                outcome.discard()
                detail = outcome.detail or "error"
            self._remember_no_page(detail)
        process.counters.misses += 1
        return deliver(first, self._start_response, miss(detail), True, self._is_head)


def _refusal_of(first: Response) -> Refusal | None:
    """Why a visitor's own answer shows already that its URL has no page."""
    try:
        read_metadata(first.headers)
    except InvalidMetadata as error:
        return Refusal("metadata", str(error))
    return undeclared_vary(first.headers)


def become_page(
    process: Process, environ: WSGIEnvironment, start_response: StartResponse, no_page: Answer
) -> Passing:
    """How the answer of a URL that was remembered as no page goes on, should it be one."""
    request = Request(process, environ, start_response, None)
    request._key, request.origin = no_page.key, no_page.origin
    discovery = Discovery(process.config.max_body_size, request._discovered, request._passed)
    return Passing(start_response, request.origin, miss("status"), discovery=discovery)
