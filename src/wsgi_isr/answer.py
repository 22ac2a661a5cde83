"""One way out of a request: a page, ready to be sent (content codings, conditionals, caches).

What an answer says of its page changes at most once a second, so it is made once a second: a hit
takes a ready one.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gzip
import importlib
import re
import typing as t
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from werkzeug.http import parse_accept_header, quote_etag, unquote_etag
from werkzeug.sansio.http import is_resource_modified

from .key import Origin, PageKey
from .metadata import Header, header, tags_value
from .page import Page, window_of
from .store.memory import Entry

if t.TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

YEAR = 31536000
#: Longest time that caches have to understand (RFC 9111 section 1.2.2).
LONGEST = 2**31
#: Seconds for which a URL counts as "not a page".
NOT_A_PAGE = 60.0
#: Longer ones are not parsed: a client has one tag, or a few, and accepts few codings.
MAX_CONDITIONAL, MAX_ACCEPTED = 8192, 1024

#: Of a page's own headers, those that a 304 has, too (RFC 9110 section 15.4.5).
_NOT_MODIFIED = frozenset(
    {"cache-control", "cdn-cache-control", "content-location", "etag", "expires", "vary"}
)
#: True only of the bytes that the app sent (RFC 1864, RFC 3230, RFC 9530).
_DIGESTS = frozenset({"content-md5", "digest", "repr-digest", "content-digest"})
#: In the order in which they are chosen at equal quality.
_PREFERENCE = ("zstd", "br", "gzip")

# Smaller bodies fit in one packet either way.
_MIN_LENGTH = 500
_COMPRESSIBLE = re.compile(
    r"text/.*|.*\+(?:json|xml)|application/(?:javascript|json|wasm|xml|x-ndjson)"
    r"|application/vnd\.ms-fontobject|font/(?:otf|ttf)|image/(?:bmp|x-icon)"
)
_ETAG = re.compile(r'(?:W/)?"[^"\x00-\x20\x7f]*"')


@dataclass(slots=True, init=False, eq=False)
class Answer:
    """The ready answer of a page, for a second at most; or that a URL is no page, for a minute.

    It holds under one generation: after an invalidation, of whatever, it is confirmed first.

    One class for both, because the interpreter reads attributes faster where it meets objects of
    one class (PEP 659), and requests of both kinds come mixed.

    :param tags_header: the header in which a CDN gets the page's tags.
    :param purged: whether the site purges its CDN.
    """

    #: What it is about; ``None`` for a URL that is no page.
    entry: Entry | None
    #: Of a URL that is no page, with the reason: ``""`` where the app's answer has no metadata.
    key: PageKey
    detail: str
    origin: Origin
    #: Whether there is nothing to do but to send it. A stale page is to be rendered, too.
    is_fresh: bool
    is_expired: bool
    #: Seconds since 1970 between which it holds, and the generation.
    since: float
    until: float
    generation: object
    status: str
    headers: tuple[Header, ...]
    headers_of_304: tuple[Header, ...]
    body: bytes
    #: What conditionals are compared to. Other statuses than 200 are never answered with 304: no
    #: header equals this then.
    validator: str | t.Literal[False]
    last_modified: str | None
    #: The app's own ``Cache-Status``, before that of the library.
    statuses: str
    #: The headers that last as long as the page, of the whole answer and of a 304.
    lasting: tuple[list[Header], list[Header]]
    #: Whether the app says itself what caches do, and what CDNs do; whether the site purges.
    caching: tuple[bool, bool, bool]

    def __init__(self, entry: Entry, coding: str, tags_header: str | None, purged: bool) -> None:
        page = entry.page
        own = {name.lower(): value for name, value in page.headers}
        left_out = {"etag", "cache-status"} | (_DIGESTS if coding != "identity" else set())
        headers = [item for item in page.headers if item[0].lower() not in left_out]
        if coding != "identity":
            headers.append(header("Content-Encoding", coding))
        headers.append(header("Content-Length", str(len(page.bodies[coding]))))
        etag = _etag(page, own.get("etag"), coding)
        if etag:
            headers.append(("ETag", etag))
        tags = page.metadata.tags
        if tags_header is not None and tags and tags_header.lower() not in own:
            value, is_whole = tags_value(tags_header, tags)
            headers.append((tags_header, value))
            # A CDN that does not have all of them keeps the page no longer than its window.
            purged = purged and is_whole
        vary = page.vary
        if len(page.bodies) > 1 or is_compressible(page):
            vary = "Accept-Encoding", *vary
        if vary:
            headers.append(header("Vary", ", ".join(vary)))
        self.entry = entry
        self.status, self.body = page.status, page.bodies[coding]
        self.lasting = headers, [it for it in headers if it[0].lower() in _NOT_MODIFIED]
        self.caching = "cache-control" in own, "cdn-cache-control" in own, purged
        self.statuses = "".join(f"{v}, " for k, v in page.headers if k.lower() == "cache-status")
        self.validator = etag if etag and page.code == 200 else False
        self.last_modified = own.get("last-modified") if page.code == 200 else None
        self.since = self.until = 0.0
        self.generation = None

    @classmethod
    def of_no_page(cls, key: PageKey, detail: str, now: float, generation: object) -> Answer:
        answer = cls.__new__(cls)
        answer.entry, answer.is_fresh = None, False
        answer.key, answer.detail = key, detail
        answer.origin = Origin(key.scheme, key.host, key.mount)
        answer.since, answer.until, answer.generation = now, now + NOT_A_PAGE, generation
        return answer

    def renew(self, now: float, offset: float) -> bool:
        """Say what is true at this moment, and hold for a second, unless the page has expired.

        By one thread at a time.

        :param now: by the clock of this process.
        :param offset: seconds by which the store's clock is ahead of it.
        """
        assert self.entry is not None
        page, (generation, invalidated) = self.entry.page, self.entry.confirmed
        window = window_of(page, invalidated, now + offset)
        self.is_expired = window is None
        # A page that expired while it was rendered goes out all the same.
        fresh, left, stale, change = window or (False, 0, 0, 0.0)
        own_control, own_cdn, purged = self.caching
        moment: tuple[Header, ...]
        if own_control:
            moment = (("Age", str(max(0, int(now + offset - page.generated_at)))),)
        else:
            # On demand only: a CDN that nobody purges would keep it.
            endless = page.metadata.revalidate is None and not purged
            moment = _cache_headers(left, stale, endless)[: 1 if own_cdn else 2]
        member = "isr; hit" if left is None else f"isr; hit; ttl={left}"
        moment = *moment, header("Cache-Status", self.statuses + member)
        whole, of_304 = self.lasting
        self.headers, self.headers_of_304 = (*whole, *moment), (*of_304, *moment)
        self.is_fresh, self.since = fresh, now
        # Last what makes it hold: other threads read it meanwhile.
        self.generation, self.until = generation, min(change - offset, now + 1.0)
        return not self.is_expired

    def saying(self, member: str) -> Answer:
        """The same with another ``Cache-Status``, for a visitor who waited for the page."""
        answer = copy.copy(self)
        answer.headers = (*self.headers[:-1], ("Cache-Status", self.statuses + member))
        answer.headers_of_304 = (*self.headers_of_304[:-1], answer.headers[-1])
        return answer


@functools.lru_cache(1024)
def _cache_headers(left: int | None, stale: int | None, endless: bool) -> tuple[Header, ...]:
    """What browsers and shared caches are told; see the contract of `ISRMiddleware`.

    Browsers always ask again. CDNs may keep a page as long as it is fresh, and no longer unless
    the site purges them (RFC 9213, RFC 5861).

    :param left: seconds of freshness, 0 or negative for a stale page; ``None`` for ever.
    :param stale: seconds for which it may be served as a stale one; ``None`` for ever.
    :param endless: whether only a purge would end that.
    """
    seconds = 0 if endless else YEAR if left is None else min(max(0, left), LONGEST)
    control = ("Cache-Control", f"public, max-age=0, must-revalidate, s-maxage={seconds}")
    if endless:
        return (control,)
    window = YEAR if stale is None else min(stale, LONGEST)
    cdn = f"max-age={seconds}, stale-while-revalidate={window}"
    return control, ("CDN-Cache-Control", cdn)


def _etag(page: Page, own: str | None, coding: str) -> str:
    """A tag for each coding (RFC 9110 section 8.8.3.3)."""
    if own and _ETAG.fullmatch(own) is None:
        # No tag that a client could send back: the app's own business, as long as it goes alone.
        return own if coding == "identity" else quote_etag(f"{page.digest}-{coding}")
    value, weak = unquote_etag(own) if own else (page.digest, False)
    if not value:
        return ""
    return quote_etag(value if coding == "identity" else f"{value}-{coding}", bool(weak))


def _is_unmodified(environ: WSGIEnvironment, answer: Answer) -> bool:
    """Whether a conditional request finds what it already has (RFC 9110 section 13)."""
    tags = environ.get("HTTP_IF_NONE_MATCH")
    since = environ.get("HTTP_IF_MODIFIED_SINCE", "")[:100] if tags is None else None
    if tags is not None and len(tags) > MAX_CONDITIONAL:
        return False
    try:
        return not is_resource_modified(
            http_if_none_match=tags,
            http_if_modified_since=since,
            etag=answer.validator or None,
            last_modified=answer.last_modified,
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
        if tags == answer.validator or _is_unmodified(environ, answer):
            start_response("304 Not Modified", [*answer.headers_of_304])
            return ()
    start_response(answer.status, [*answer.headers])
    return () if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]


# Content codings: made once, when a page is rendered, and never per request. gzip always;
# Brotli and Zstandard where their extras are installed.


@functools.cache
def encoders() -> dict[str, Callable[[bytes], bytes]]:
    """The codings that can be made here, by their names in HTTP.

    Their levels are those at which 20 KB take about a millisecond.
    """
    # A fixed mtime: the same body has the same bytes, and the same ETag.
    found: dict[str, Callable[[bytes], bytes]] = {
        "gzip": functools.partial(gzip.compress, compresslevel=6, mtime=0)
    }
    with contextlib.suppress(ImportError):
        found["br"] = functools.partial(importlib.import_module("brotli").compress, quality=5)
    with contextlib.suppress(ImportError):
        zstandard = importlib.import_module("zstandard")
        # With a compressor for each body: they are not safe to share among threads.
        found["zstd"] = functools.partial(zstandard.compress, level=9)
    return found


def is_compressible(page: Page) -> bool:
    """Whether codings of a page are worth having."""
    if len(page.bodies["identity"]) < _MIN_LENGTH or page.header("content-encoding") is not None:
        return False
    if "no-transform" in (page.header("cache-control") or "").lower():
        return False
    kind = (page.header("content-type") or "").partition(";")[0].strip().lower()
    return _COMPRESSIBLE.fullmatch(kind) is not None


def compress(page: Page) -> Page:
    """The page with its content codings, those that make it smaller."""
    if not is_compressible(page):
        return page
    body = page.bodies["identity"]
    bodies = {"identity": body}
    for coding, encode in encoders().items():
        packed = encode(body)
        if len(packed) < len(body):
            # A copy: zstandard's own bytes keep all the memory that they might have needed.
            bodies[coding] = bytes(memoryview(packed))
    return replace(page, bodies=bodies)


def choose_coding(accepted: str | None, page: Page) -> str:
    """The content coding of an answer, by ``Accept-Encoding`` (RFC 9110 section 12.5.3)."""
    if not accepted or len(page.bodies) == 1 or len(accepted) > MAX_ACCEPTED:
        return "identity"
    return next((coding for coding in _preference(accepted) if coding in page.bodies), "identity")


@functools.lru_cache(1024)
def _preference(accepted: str) -> tuple[str, ...]:
    try:
        accept = parse_accept_header(accepted)
    except ValueError:
        return ()
    identity = accept.quality("identity") if "identity" in accept.values() else 0
    usable = [it for it in _PREFERENCE if accept.quality(it) > 0 and accept.quality(it) >= identity]
    return tuple(sorted(usable, key=accept.quality, reverse=True))
