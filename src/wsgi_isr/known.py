"""What is known of a request by the way it came in, so that nothing of it has to be parsed.

It is the answer of a page, or that there is no page, so that the app is asked.
"""

from __future__ import annotations

import contextlib
import typing as t
from collections.abc import Callable

from .key import Origin
from .key import PageKey
from .respond import Answer
from .respond import lasting_headers
from .respond import moment_headers
from .rules import Rule
from .state import hold
from .store.memory import Entry
from .store.memory import is_long
from .store.memory import Target

#: Seconds for which a URL counts as "not a page".
NOT_A_PAGE = 60.0
#: URLs remembered as such.
MAX_NOT_PAGES = 10_000


class NotPage:
    """A URL that is no page.

    :param detail: why; ``""`` where its answer just did not call itself a page.
    """

    __slots__ = ("detail", "key", "origin")

    def __init__(self, key: PageKey, detail: str) -> None:
        self.key = key
        self.detail = detail
        self.origin = Origin(key.scheme, key.host, key.mount)


class Known(Answer):
    """The answer of a page, for a second at most; or that a URL has none, for a minute.

    It holds under one generation: after an invalidation it does not, whatever that was of.

    One class for both, because the interpreter is quick with attributes where it meets objects of
    one class (PEP 659), and requests of both kinds come mixed.
    """

    __slots__ = (
        "_own_control",
        "_statuses",
        "entry",
        "generation",
        "is_fresh",
        "not_page",
        "rule",
        "since",
        "until",
    )

    #: Seconds since 1970 between which it holds.
    since: float
    until: float
    generation: object
    _own_control: bool
    #: What the app says in ``Cache-Status`` itself.
    _statuses: str
    #: Whether nothing is to be done but to send it. A stale page is to be rendered, too.
    is_fresh: bool
    #: By which it is rendered.
    rule: Rule | None
    #: What it is about: one of the two.
    entry: Entry | None
    not_page: NotPage | None

    @classmethod
    def answer(
        cls, entry: Entry, coding: str, now: float, tags_header: str | None, rule: Rule | None
    ) -> Known | None:
        """The answer of a page in one content coding; ``None`` if it has expired."""
        lasting = lasting_headers(entry.page, coding, tags_header)
        control = lasting.control
        nothing = "", ""
        known = cls(entry.page, coding, lasting, (*lasting.headers, control or nothing, nothing))
        known.entry, known.not_page, known.rule = entry, None, rule
        known._own_control, known._statuses = control is not None, lasting.statuses
        return known if known.renew(now) else None

    @classmethod
    def without_answer(cls, not_page: NotPage, now: float, generation: object) -> Known:
        known = cls.__new__(cls)
        known.entry, known.not_page, known.is_fresh = None, not_page, False
        known.since, known.until, known.generation = now, now + NOT_A_PAGE, generation
        return known

    def renew(self, now: float) -> bool:
        """Let an answer hold for another second, unless its page has expired; by one at a time."""
        entry = self.entry
        assert entry is not None
        page = entry.page
        generation, mark = entry.confirmed
        held = hold(page, mark, now)
        if held is None:
            return False
        fresh, left, stale, change = held
        until = now + 1.0
        if change < until:
            until = change
        control, status = moment_headers(left, stale, self._statuses)
        if self._own_control:
            headers = (*self.headers[:-1], status)
        else:
            headers = (*self.headers[:-2], control, status)
        # Last what makes it hold: other threads are looking.
        self.headers, self.is_fresh, self.since = headers, fresh, now
        self.generation, self.until = generation, until
        return True


class NotPages:
    """URLs whose answers are no pages, for a minute or until something is invalidated.

    :param signal: of the store's coordination.
    :param known: what is known of requests as they come in.
    """

    def __init__(
        self, signal: t.Any, known: dict[Target, t.Any], clock: Callable[[], float]
    ) -> None:
        self._signal = signal
        self._clock = clock
        self._urls: dict[PageKey, Known] = {}
        self._known = known
        #: The targets in it that are ours: those whose answers just did not call themselves pages.
        self._targets: dict[Target, None] = {}

    def get(self, key: PageKey) -> str | None:
        """Why a URL is no page; ``""`` where its answer just did not say so."""
        found = self._urls.get(key)
        if found is None or found.not_page is None:
            return None
        if not found.since <= self._clock() < found.until or found.generation != self._signal[0]:
            self.discard(key)
            return None
        return found.not_page.detail

    def add(self, key: PageKey, detail: str = "") -> None:
        # A new object each time, so that no target holds longer, or for another reason.
        self.discard(key)
        if len(self._urls) >= MAX_NOT_PAGES:
            _drop_first(self._urls)
        found = Known.without_answer(NotPage(key, detail), self._clock(), self._signal[0])
        self._urls[key] = found

    def add_target(self, target: Target, key: PageKey) -> None:
        """Let a request be known by what it came in as, as long as its URL is."""
        found = self._urls.get(key)
        if found is None or is_long(target):
            return
        if target not in self._targets and len(self._targets) >= MAX_NOT_PAGES:
            self._known.pop(_drop_first(self._targets), None)
        self._targets[target] = None
        self._known[target] = found

    def discard(self, key: PageKey) -> None:
        """Forget a URL that has become a page."""
        found = self._urls.pop(key, None)
        if found is not None:
            found.until = 0.0


def _drop_first(table: dict[t.Any, t.Any]) -> t.Any:
    with contextlib.suppress(StopIteration, KeyError, RuntimeError):
        # Another thread may be doing the same.
        first = next(iter(table))
        del table[first]
        return first
