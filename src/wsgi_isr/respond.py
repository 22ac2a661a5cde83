"""From a page and a request to status, headers and body: codings, conditionals, HEAD, caches.

The header list of a page changes at most once a second, so it is made once a second: a hit takes
a ready one.
"""

from __future__ import annotations

import math
import re
import typing as t
from collections.abc import Sequence

from werkzeug.http import http_date
from werkzeug.http import parse_accept_header
from werkzeug.http import parse_date
from werkzeug.http import parse_etags
from werkzeug.http import quote_etag
from werkzeug.http import unquote_etag
from werkzeug.sansio.http import is_resource_modified

from .codings import is_compressible
from .codings import PREFERENCE
from .metadata import Headers
from .metadata import status_code
from .metadata import tags_value
from .page import Page
from .state import Mark
from .state import seconds_left
from .state import State
from .state import state_of

if t.TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse
    from _typeshed.wsgi import WSGIEnvironment

    from .store.memory import Entry

YEAR = 31536000
PRIVATE = "private, no-store"

#: RFC 9110 section 15.4.5; Cache-Status tells how a 304 came about, too.
_NOT_MODIFIED_HEADERS = frozenset(
    {"cache-control", "cache-status", "content-location", "etag", "expires", "vary"}
)


_ETAG = re.compile(r'(?:W/)?"[^"\x00-\x20\x7f]*"')


class Answer:
    """What is sent: the same objects for many requests, but for a copy of the header list.

    :param headers: the last two are ``Cache-Control`` and ``Cache-Status``.
    """

    __slots__ = ("body", "etag", "etag_of_200", "headers", "not_modified_headers", "status")

    def __init__(self, status: str, headers: Headers, body: bytes, etag: str) -> None:
        self.status = status
        self.body = body
        self.etag = etag
        #: Other statuses are never answered with 304; no header equals this then.
        self.etag_of_200 = etag if etag and status_code(status) == 200 else False
        self.headers = headers
        self.not_modified_headers = [
            item for item in headers if item[0].lower() in _NOT_MODIFIED_HEADERS
        ]


class FreshAnswer(Answer):
    """The answer of a fresh page, in one content coding, which holds for a second at most.

    It holds under one generation: after an invalidation it does not, whatever that was of.

    :param entry: confirmed to be fresh.
    """

    __slots__ = ("_own_control", "_statuses", "entry", "generation", "since", "until")

    def __init__(self, entry: Entry, coding: str, now: float, tags_header: str | None) -> None:
        answer = make_answer(entry.page, Mark.NONE, coding, "", now, tags_header)
        super().__init__(answer.status, answer.headers, answer.body, answer.etag)
        self.entry = entry
        self._own_control = entry.page.header("cache-control") is not None
        #: What the app says itself, before what the library says.
        self._statuses = answer.headers[-1][1]
        self.renew(now)

    def renew(self, now: float) -> bool:
        """Let it hold for another second, unless the page is not fresh any more."""
        entry = self.entry
        page = entry.page
        generation, mark = entry.confirmed
        if state_of(page, mark, now) is not State.FRESH:
            return False
        left = seconds_left(page, mark, now)
        window = page.metadata.revalidate
        until = now + 1.0
        member = "isr; hit"
        if left is not None and window is not None:
            # The number of seconds left stays the same until then.
            until = min(until, page.generated_at + window - left + 1)
            member = f"isr; hit; ttl={left}"
        headers = self.headers.copy()
        if not self._own_control:
            headers[-2] = ("Cache-Control", cache_control(page, mark, now))
        headers[-1] = ("Cache-Status", self._statuses + member)
        self.not_modified_headers = [
            item for item in headers if item[0].lower() in _NOT_MODIFIED_HEADERS
        ]
        # Last what makes it hold: another thread may be looking.
        self.headers, self.since = headers, now
        self.generation, self.until = generation, until
        return True


def cache_control(page: Page, mark: Mark, now: float) -> str:
    """What caches behind us may do (RFC 9111, RFC 5861).

    Without an ``Age``, so ``s-maxage`` is what is left; a stale answer grants no freshness.
    """
    window, expire, _ = page.metadata
    left = seconds_left(page, mark, now)
    if state_of(page, mark, now) is State.FRESH:
        fresh, stale = YEAR if left is None else left, YEAR
        if expire is not None and window is not None:
            stale = expire - window
    else:
        fresh = 0
        age = max(0.0, now - page.generated_at)
        stale = YEAR if expire is None else max(0, math.floor(expire - age))
    return f"public, max-age=0, s-maxage={fresh}, stale-while-revalidate={stale}"


def make_answer(
    page: Page, mark: Mark, coding: str, member: str, now: float, tags_header: str | None = None
) -> Answer:
    """The answer to a GET, with what the library says of the page at this moment.

    :param tags_header: the header that tells the page's tags, unless the app has set it.
    """
    headers: Headers = []
    control = etag = None
    statuses = []
    for name, value in page.headers:
        lower = name.lower()
        if lower == "cache-control":
            control = value if control is None else f"{control}, {value}"
        elif lower == "etag":
            etag = value
        elif lower == "cache-status":
            statuses.append(value)
        else:
            headers.append((name, value))
    body = page.bodies[coding]
    if coding != "identity":
        headers.append(("Content-Encoding", coding))
    headers.append(("Content-Length", str(len(body))))
    etag = _etag(page, etag, coding)
    if etag:
        headers.append(("ETag", etag))
    if tags_header is not None and page.metadata.tags and page.header(tags_header.lower()) is None:
        headers.append((tags_header, tags_value(tags_header, page.metadata.tags)))
    vary = (*(("Accept-Encoding",) if page.codings or is_compressible(page) else ()), *page.vary)
    if vary:
        headers.append(("Vary", ", ".join(vary)))
    headers.append(("Cache-Control", control or cache_control(page, mark, now)))
    headers.append(("Cache-Status", ", ".join([*statuses, member])))
    return Answer(page.status, headers, body, etag)


def _etag(page: Page, own: str | None, coding: str) -> str:
    """A tag for each coding (RFC 9110 section 8.8.3.3)."""
    if own and _ETAG.fullmatch(own) is None:
        # No tag that a client could send back; the app's own business, as long as it goes alone.
        return own if coding == "identity" else quote_etag(f"{page.digest}-{coding}")
    value, weak = unquote_etag(own) if own else (page.digest, False)
    if not value:
        return ""
    return quote_etag(value if coding == "identity" else f"{value}-{coding}", bool(weak))


def not_modified(environ: WSGIEnvironment, answer: Answer) -> bool:
    """Whether a conditional request finds what it already has (RFC 9110 section 13)."""
    tags = environ.get("HTTP_IF_NONE_MATCH")
    if tags is None and "HTTP_IF_MODIFIED_SINCE" not in environ:
        return False
    if status_code(answer.status) != 200:
        return False
    if tags is not None:
        known = parse_etags(tags)
        return known.star_tag or known.contains_weak(unquote_etag(answer.etag)[0] or "")
    since = parse_date(environ.get("HTTP_IF_MODIFIED_SINCE"))
    if since is None:
        return False
    modified = next((v for k, v in answer.headers if k.lower() == "last-modified"), None)
    return modified is not None and not is_resource_modified(
        http_if_modified_since=http_date(since), last_modified=parse_date(modified)
    )


def respond(
    environ: WSGIEnvironment, start_response: StartResponse, answer: Answer
) -> Sequence[bytes]:
    """Send an answer to a GET or HEAD request."""
    if "HTTP_IF_NONE_MATCH" in environ or "HTTP_IF_MODIFIED_SINCE" in environ:
        # A browser sends the very tag that it got: the common case takes no parsing.
        tags = environ.get("HTTP_IF_NONE_MATCH")
        if tags == answer.etag_of_200 or not_modified(environ, answer):
            start_response("304 Not Modified", answer.not_modified_headers.copy())
            return ()
    start_response(answer.status, answer.headers.copy())
    return () if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]


class Negotiation:
    """Chooses a content coding by the visitor's ``Accept-Encoding`` (RFC 9110 section 12.5.3)."""

    #: Spellings remembered; clients choose them.
    LIMIT = 1000
    #: A longer one is not parsed: browsers send thirty characters.
    MAX_LENGTH = 1024

    def __init__(self) -> None:
        self._preferences: dict[str, tuple[str, ...]] = {}

    def choose(self, accepted: str | None, page: Page) -> str:
        if not accepted or len(page.bodies) == 1 or len(accepted) > self.MAX_LENGTH:
            return "identity"
        preference = self._preferences.get(accepted)
        if preference is None:
            if len(self._preferences) >= self.LIMIT:
                self._preferences.clear()
            preference = self._preferences[accepted] = _preference(accepted)
        return next((coding for coding in preference if coding in page.bodies), "identity")


def _preference(accepted: str) -> tuple[str, ...]:
    accept = parse_accept_header(accepted)
    qualities = {coding: accept.quality(coding) for coding in PREFERENCE}
    identity = accept.quality("identity") if "identity" in accept.values() else 0
    usable = [coding for coding in PREFERENCE if qualities[coding] > 0]
    usable = [coding for coding in usable if qualities[coding] >= identity]
    return tuple(sorted(usable, key=lambda coding: -qualities[coding]))
