"""From a page and a request to status, headers and body: codings, conditionals, HEAD, caches.

The header list of a page changes at most once a second, so it is made once a second: a hit takes
a ready one.
"""

from __future__ import annotations

import functools
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
from .metadata import Header
from .metadata import header
from .metadata import Headers
from .metadata import status_code
from .metadata import tags_value
from .page import MAX_KNOWN_HEAD
from .page import Page
from .state import hold
from .state import Mark

if t.TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse
    from _typeshed.wsgi import WSGIEnvironment

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

    __slots__ = ("_not_modified", "body", "etag", "etag_of_200", "headers", "is_dated", "status")

    def __init__(
        self, page: Page, coding: str, lasting: Lasting, headers: tuple[Header, ...]
    ) -> None:
        self.status = page.status
        self.body = page.bodies[coding]
        etag = self.etag = lasting.etag
        #: Other statuses are never answered with 304; no header equals this then.
        self.etag_of_200 = etag if etag and page.code == 200 else False
        self.headers = headers
        self.is_dated = lasting.is_dated
        self._not_modified: tuple[tuple[Header, ...], tuple[Header, ...]] | None = None

    def not_modified_headers(self) -> tuple[Header, ...]:
        """Those of a 304, which are made once for each list of headers."""
        made = self._not_modified
        headers = self.headers
        # Of these very headers: another thread may have put newer ones there meanwhile.
        if made is None or made[0] is not headers:
            fewer = tuple(item for item in headers if item[0].lower() in _NOT_MODIFIED_HEADERS)
            made = self._not_modified = headers, fewer
        return made[1]


class Lasting(t.NamedTuple):
    """What of an answer's headers lasts as long as the page.

    :param control: the app's own ``Cache-Control``.
    :param statuses: its own ``Cache-Status``, before what the library says.
    :param is_dated: whether ``If-Modified-Since`` means anything.
    """

    headers: Headers
    etag: str
    control: Header | None
    statuses: str
    is_dated: bool


@functools.lru_cache(1024)
def moment_headers(left: int | None, stale: int | None, statuses: str) -> tuple[Header, Header]:
    """``Cache-Control`` and ``Cache-Status`` of a page from the store: many have the same.

    :param left: seconds of freshness, 0 or negative for a stale page; ``None`` for ever.
    :param stale: seconds for which it may be served as a stale one; ``None`` for ever.
    """
    control = _cache_control(
        YEAR if left is None else max(0, left), YEAR if stale is None else stale
    )
    return control, ("Cache-Status", statuses + hit_member(left))


def hit_member(left: int | None) -> str:
    """What ``Cache-Status`` says of a page from the store (RFC 9211).

    :param left: seconds of freshness, 0 or negative for a stale page; ``None`` for ever.
    """
    return "isr; hit" if left is None else f"isr; hit; ttl={left}"


def _cache_control(fresh: int, stale: int) -> Header:
    """What caches behind us may do (RFC 9111, RFC 5861).

    Without an ``Age``, so ``s-maxage`` is what is left.
    """
    value = f"public, max-age=0, s-maxage={fresh}, stale-while-revalidate={stale}"
    return "Cache-Control", value


def make_answer(
    page: Page, mark: Mark, coding: str, member: str, now: float, tags_header: str | None = None
) -> Answer:
    """The answer to a GET, with what the library says of the page at this moment.

    :param tags_header: the header that tells the page's tags, unless the app has set it.
    """
    lasting = lasting_headers(page, coding, tags_header)
    control = lasting.control
    if control is None:
        held = hold(page, mark, now)
        # It may have expired since it was rendered.
        left, stale = (0, 0) if held is None else held[1:3]
        control, _ = moment_headers(left, stale, "")
    status = "Cache-Status", lasting.statuses + member
    return Answer(page, coding, lasting, (*lasting.headers, control, status))


def lasting_headers(page: Page, coding: str, tags_header: str | None) -> Lasting:
    """All headers of an answer but the two that tell of the moment."""
    own = (_known_headers if page.weight <= MAX_KNOWN_HEAD else _own_headers)(page.headers)
    headers = own.headers.copy()
    length = header("Content-Length", str(len(page.bodies[coding])))
    if coding == "identity":
        headers.append(length)
    else:
        headers += header("Content-Encoding", coding), length
    etag = _etag(page, own.etag, coding)
    if etag:
        headers.append(("ETag", etag))
    if tags_header is not None and page.metadata.tags and page.header(tags_header.lower()) is None:
        headers.append((tags_header, tags_value(tags_header, page.metadata.tags)))
    vary = page.vary
    if len(page.bodies) > 1 or is_compressible(page):
        vary = "Accept-Encoding", *vary
    if vary:
        headers.append(header("Vary", ", ".join(vary)))
    return own._replace(headers=headers, etag=etag)


def _own_headers(headers: tuple[Header, ...]) -> Lasting:
    """What the app says."""
    rest: Headers = []
    controls = []
    statuses = []
    etag = ""
    is_dated = False
    for item in headers:
        name, value = item
        lower = name.lower()
        if lower == "cache-control":
            controls.append(value)
        elif lower == "etag":
            etag = value
        elif lower == "cache-status":
            statuses.append(value)
        else:
            is_dated = is_dated or lower == "last-modified"
            rest.append(item)
    control = header("Cache-Control", ", ".join(controls)) if controls else None
    return Lasting(rest, etag, control, "".join(f"{own}, " for own in statuses), is_dated)


_known_headers = functools.lru_cache(1024)(_own_headers)


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
            start_response("304 Not Modified", [*answer.not_modified_headers()])
            return ()
    start_response(answer.status, [*answer.headers])
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
