"""One way out of a request: a page, ready to be sent (codings, conditionals, caches).

What an answer says of its page changes at most once a second, so it is made once a second: a hit
takes a ready one.
"""

from __future__ import annotations

import functools
import re
import typing as t
from collections.abc import Sequence

from werkzeug.http import (
    http_date,
    parse_accept_header,
    parse_date,
    parse_etags,
    quote_etag,
    unquote_etag,
)
from werkzeug.sansio.http import is_resource_modified

from .codings import PREFERENCE, is_compressible
from .freshness import Invalidated, Window, window_of
from .key import Origin, PageKey
from .metadata import Header, Headers, header, tags_value
from .page import MAX_CACHED_HEAD, Page
from .rules import Rule
from .store.memory import Entry

if t.TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

YEAR = 31536000
#: Longest time that caches have to understand (RFC 9111 section 1.2.2).
LONGEST = 2**31
#: Seconds for which a URL counts as "not a page".
NOT_A_PAGE = 60.0
#: Longest conditional that is parsed; a client has one tag, or a few.
MAX_CONDITIONAL = 8192

#: RFC 9110 section 15.4.5; Cache-Status says how a 304 came about, too.
_NOT_MODIFIED_HEADERS = frozenset(
    {
        "age",
        "cache-control",
        "cache-status",
        "cdn-cache-control",
        "content-location",
        "etag",
        "expires",
        "vary",
    }
)
#: True only of the bytes that the app sent (RFC 1864, RFC 3230, RFC 9530).
_DIGESTS = frozenset({"content-md5", "digest", "repr-digest", "content-digest"})
_ETAG = re.compile(r'(?:W/)?"[^"\x00-\x20\x7f]*"')


class Caching(t.NamedTuple):
    """What the site tells caches beyond what a page says.

    :param tags_header: the header in which a CDN gets a page's tags.
    :param cdn_purged: whether the site purges its CDN.
    """

    tags_header: str | None = None
    cdn_purged: bool = False


class Lasting(t.NamedTuple):
    """The headers of an answer that last as long as its page.

    :param own_control: whether the app has set ``Cache-Control`` itself.
    :param own_cdn: whether the app has set ``CDN-Cache-Control`` itself.
    :param statuses: the app's own ``Cache-Status``, before that of the library.
    :param is_dated: whether ``If-Modified-Since`` means anything.
    """

    headers: Headers
    etag: str
    own_control: bool
    own_cdn: bool
    statuses: str
    is_dated: bool


class Answer:
    """What is sent: the same objects for many requests, but for a copy of the headers."""

    __slots__ = (
        "_lasting",
        "_not_modified",
        "body",
        "etag",
        "etag_of_200",
        "headers",
        "is_dated",
        "status",
    )

    def __init__(self, page: Page, coding: str, caching: Caching) -> None:
        self._lasting = lasting = lasting_headers(page, coding, caching.tags_header)
        self.status = page.status
        self.body = page.bodies[coding]
        etag = self.etag = lasting.etag
        #: Other statuses are never answered with 304: no header equals this then.
        self.etag_of_200 = etag if etag and page.code == 200 else False
        self.headers: tuple[Header, ...] = ()
        self.is_dated = lasting.is_dated
        self._not_modified: tuple[tuple[Header, ...], tuple[Header, ...]] | None = None

    def set_moment(self, page: Page, window: Window, member: str, now: float, purged: bool) -> None:
        """Set the headers to what is true at a moment."""
        lasting = self._lasting
        _, left, stale, _ = window
        if lasting.own_control:
            # No remaining freshness in it, so caches need the age (RFC 9111 section 5.1).
            age = max(0, int(now - page.generated_at))
            moment: tuple[Header, ...] = (("Age", str(age)),)
        else:
            endless = page.metadata.revalidate is None
            moment = _cache_headers(left, stale, endless, lasting.own_cdn, purged)
        status = header("Cache-Status", lasting.statuses + member)
        self.headers = (*lasting.headers, *moment, status)

    def not_modified_headers(self) -> tuple[Header, ...]:
        """The headers of a 304, made once for each list of headers."""
        made = self._not_modified
        headers = self.headers
        # Of these very headers: another thread may have set newer ones meanwhile.
        if made is None or made[0] is not headers:
            fewer = tuple(item for item in headers if item[0].lower() in _NOT_MODIFIED_HEADERS)
            made = self._not_modified = headers, fewer
        return made[1]


@functools.lru_cache(1024)
def _cache_headers(
    left: int | None, stale: int | None, endless: bool, own_cdn: bool, purged: bool
) -> tuple[Header, ...]:
    """What browsers and shared caches are told; see the contract of `ISRMiddleware`.

    Browsers always ask again. CDNs may keep a page as long as it is fresh, and no longer unless
    the site purges them (RFC 9213, RFC 5861).

    :param left: seconds of freshness, 0 or negative for a stale page; ``None`` for ever.
    :param stale: seconds for which it may be served as a stale one; ``None`` for ever.
    :param endless: for a page that is fresh until it is revalidated.
    """
    seconds = YEAR if left is None and purged else max(0, left or 0)
    control = f"public, max-age=0, must-revalidate, s-maxage={seconds}"
    if own_cdn or (endless and not purged):
        return (("Cache-Control", control),)
    window = YEAR if stale is None else min(stale, LONGEST)
    cdn = f"max-age={seconds}, stale-while-revalidate={window}"
    return ("Cache-Control", control), ("CDN-Cache-Control", cdn)


@functools.lru_cache(1024)
def hit_member(left: int | None) -> str:
    """What ``Cache-Status`` says of a page from the store (RFC 9211).

    :param left: seconds of freshness, 0 or negative for a stale page; ``None`` for ever.
    """
    return "isr; hit" if left is None else f"isr; hit; ttl={left}"


class NotPage(t.NamedTuple):
    """A URL that is no page.

    :param detail: why; ``""`` where its answer has no metadata.
    """

    key: PageKey
    detail: str
    origin: Origin


class Hit(Answer):
    """The ready answer of a page, for a second at most; or that a URL is no page, for a minute.

    It holds under one generation: after an invalidation, of whatever, it is confirmed first.

    One class for both, because the interpreter reads attributes faster where it meets objects of
    one class (PEP 659), and requests of both kinds come mixed.
    """

    __slots__ = (
        "_purged",
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
    _purged: bool
    #: Whether there is nothing to do but to send it. A stale page is to be rendered, too.
    is_fresh: bool
    rule: Rule | None
    #: What it is about: one of the two.
    entry: Entry | None
    not_page: NotPage | None

    @classmethod
    def of_page(
        cls,
        entry: Entry,
        coding: str,
        now: float,
        offset: float,
        caching: Caching,
        rule: Rule | None,
    ) -> Hit | None:
        """The answer of a page in one content coding; ``None`` if it has expired."""
        hit = cls(entry.page, coding, caching)
        hit.entry, hit.not_page, hit.rule, hit._purged = entry, None, rule, caching.cdn_purged
        return hit if hit.renew(now, offset) else None

    @classmethod
    def of_no_page(cls, not_page: NotPage, now: float, generation: object) -> Hit:
        hit = cls.__new__(cls)
        hit.entry, hit.not_page, hit.is_fresh = None, not_page, False
        hit.since, hit.until, hit.generation = now, now + NOT_A_PAGE, generation
        return hit

    def renew(self, now: float, offset: float) -> bool:
        """Let the answer hold for another second, unless its page has expired.

        By one thread at a time.

        :param now: by the clock of this process.
        :param offset: seconds by which the store's clock is ahead of it.
        """
        entry = self.entry
        assert entry is not None
        generation, invalidated = entry.confirmed
        window = window_of(entry.page, invalidated, now + offset)
        if window is None:
            return False
        fresh, left, _, change = window
        until = now + 1.0
        change -= offset
        self.set_moment(entry.page, window, hit_member(left), now + offset, self._purged)
        self.is_fresh, self.since = fresh, now
        # Last what makes it hold: other threads read it meanwhile.
        self.generation, self.until = generation, change if change < until else until
        return True


def make_answer(
    page: Page, invalidated: Invalidated, coding: str, member: str, now: float, caching: Caching
) -> Answer:
    """The answer to one request, with what is true of the page at this moment."""
    answer = Answer(page, coding, caching)
    # It may have expired since it was rendered.
    window = window_of(page, invalidated, now) or (False, 0, 0, now)
    answer.set_moment(page, window, member, now, caching.cdn_purged)
    return answer


def lasting_headers(page: Page, coding: str, tags_header: str | None) -> Lasting:
    """All headers of an answer but those of the moment."""
    own = (_own_headers_once if page.weight <= MAX_CACHED_HEAD else _own_headers)(page.headers)
    headers = own.headers.copy()
    length = header("Content-Length", str(len(page.bodies[coding])))
    if coding == "identity":
        headers.append(length)
    else:
        headers = [item for item in headers if item[0].lower() not in _DIGESTS]
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
    statuses = []
    etag = ""
    names = set()
    for item in headers:
        name, value = item
        lower = name.lower()
        names.add(lower)
        if lower == "etag":
            etag = value
        elif lower == "cache-status":
            statuses.append(value)
        else:
            rest.append(item)
    before = "".join(f"{own}, " for own in statuses)
    own_control, own_cdn = "cache-control" in names, "cdn-cache-control" in names
    return Lasting(rest, etag, own_control, own_cdn, before, "last-modified" in names)


_own_headers_once = functools.lru_cache(1024)(_own_headers)


def _etag(page: Page, own: str | None, coding: str) -> str:
    """A tag for each coding (RFC 9110 section 8.8.3.3)."""
    if own and _ETAG.fullmatch(own) is None:
        # No tag that a client could send back: the app's own business, as long as it goes alone.
        return own if coding == "identity" else quote_etag(f"{page.digest}-{coding}")
    value, weak = unquote_etag(own) if own else (page.digest, False)
    if not value:
        return ""
    return quote_etag(value if coding == "identity" else f"{value}-{coding}", bool(weak))


def not_modified(environ: WSGIEnvironment, answer: Answer) -> bool:
    """Whether a conditional request finds what it already has (RFC 9110 section 13)."""
    tags = environ.get("HTTP_IF_NONE_MATCH")
    if not answer.status.startswith("200"):
        return False
    if tags is not None:
        if len(tags) > MAX_CONDITIONAL:
            return False
        found = parse_etags(tags)
        return found.star_tag or found.contains_weak(unquote_etag(answer.etag)[0] or "")
    try:
        since = parse_date(environ.get("HTTP_IF_MODIFIED_SINCE", "")[:100])
        modified = next((v for k, v in answer.headers if k.lower() == "last-modified"), None)
        return (
            since is not None
            and modified is not None
            and not is_resource_modified(
                http_if_modified_since=http_date(since), last_modified=parse_date(modified)
            )
        )
    except (ValueError, OverflowError):
        # A date that no calendar has.
        return False


def send(
    environ: WSGIEnvironment, start_response: StartResponse, answer: Answer
) -> Sequence[bytes]:
    """Answer a GET or HEAD request."""
    if "HTTP_IF_NONE_MATCH" in environ or "HTTP_IF_MODIFIED_SINCE" in environ:
        # A browser sends the very tag that it got: the common case takes no parsing.
        tags = environ.get("HTTP_IF_NONE_MATCH")
        if tags == answer.etag_of_200 or not_modified(environ, answer):
            start_response("304 Not Modified", [*answer.not_modified_headers()])
            return ()
    start_response(answer.status, [*answer.headers])
    return () if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]


#: A longer ``Accept-Encoding`` is not parsed: browsers send thirty characters.
_MAX_ACCEPTED = 1024


def choose_coding(accepted: str | None, page: Page) -> str:
    """The content coding of an answer, by ``Accept-Encoding`` (RFC 9110 section 12.5.3)."""
    if not accepted or len(page.bodies) == 1 or len(accepted) > _MAX_ACCEPTED:
        return "identity"
    return next((coding for coding in _preference(accepted) if coding in page.bodies), "identity")


@functools.lru_cache(1024)
def _preference(accepted: str) -> tuple[str, ...]:
    try:
        accept = parse_accept_header(accepted)
    except ValueError:
        return ()
    qualities = {coding: accept.quality(coding) for coding in PREFERENCE}
    identity = accept.quality("identity") if "identity" in accept.values() else 0
    usable = [coding for coding in PREFERENCE if qualities[coding] > 0]
    usable = [coding for coding in usable if qualities[coding] >= identity]
    return tuple(sorted(usable, key=lambda coding: -qualities[coding]))
