"""`Page`: an immutable stored response, how long it is fresh, and its bytes in a store.

A page is stored as a *head*, a sealed JSON text (checksum, or HMAC with a signing key), and its raw
bodies, whose checksum stands in the head. So a head can be read without its bodies. Nothing read
from a store is ever executed, and whatever is not exactly such a page is a miss.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import hmac
import itertools
import json
import math
import operator
import re
import typing as t
import zlib
from dataclasses import dataclass, field, fields

from .key import PageKey
from .metadata import (
    STORABLE,
    STORABLE_IF_DECLARED,
    Metadata,
    check_expire,
    check_revalidate,
    check_tags,
    is_sound,
    shared_headers,
    status_code,
)

_MAGIC = b"ISR\x02"
#: Bytes of a head that is parsed only once while it is in use.
MAX_CACHED_HEAD = 4096
#: Bytes that a tag costs in memory beyond its characters.
TAG = 80
#: Renders of a page that are remembered with it.
MAX_RENDERS = 10
#: Seconds by which the clocks of two machines may differ. A page from further in the future comes
#: from a clock that is wrong.
CLOCK_TOLERANCE = 5.0
_STATUSES = STORABLE | STORABLE_IF_DECLARED
_DIGEST = re.compile(r"[0-9a-f]{32}")
_HISTORY = re.compile(r"(?:(?:;|^)[0-9]{1,12} [0-9]{1,5}\.[0-9]{3} [a-z]{0,20}){0,10}")
#: What a head says of a page, as it is in `Page`.
_TEXTS = ("status", "lineage", "reason", "history", "digest")
_FIELDS = ("key", "headers", "metadata", "vary", "generated_at", "seconds", "sequence", *_TEXTS)

#: A content coding, and the length of the body in it.
Size: t.TypeAlias = "tuple[str, int]"


class Render(t.NamedTuple):
    """A render of a page that ended well.

    :param at: seconds since 1970 at which it began.
    :param seconds: how long it took.
    :param reason: ``"miss"``, ``"stale"``, ``"revalidate"`` or ``"prerender"``.
    """

    at: float
    seconds: float
    reason: str


# Not frozen: that makes it four times as slow to build one, which is a tenth of reading a file.
@dataclass(slots=True)
class Page:
    """A response that its app has declared incrementally regenerable. Nobody changes a page.

    :param status: the status line, as in ``"200 OK"``.
    :param headers: end-to-end headers, without those that the library writes itself.
    :param bodies: the body by content coding; ``"identity"`` is always there.
    :param generated_at: seconds since 1970 at which the render began.
    :param sequence: number of the render in the order of all renders and invalidations.
    :param lineage: names the counter that the number comes from.
    :param reason: why it was rendered: ``"miss"``, ``"stale"``, ``"revalidate"``, ``"prerender"``.
    :param seconds: how long its render took.
    :param vary: request headers that a cache has to tell apart.
    :param history: its last renders as one short text, this one first; see `renders`.
    :param digest: names the body: the strong ``ETag``.
    :param weight: bytes of memory that its words take, besides its bodies.
    """

    key: PageKey
    status: str
    headers: tuple[tuple[str, str], ...]
    bodies: dict[str, bytes]
    metadata: Metadata
    generated_at: float
    sequence: int = 0
    lineage: str = ""
    reason: str = ""
    seconds: float = 0.0
    vary: tuple[str, ...] = ()
    history: str = ""
    digest: str = ""
    name: str = field(default="", compare=False)
    weight: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if not self.name:
            self.name = self.key.name
        if not self.digest:
            self.digest = hashlib.sha256(self.bodies["identity"]).hexdigest()[:32]
        if not self.weight:
            pairs = (*self.headers, *self.key.query, *self.key.vary)
            words = sum(len(name) + len(value or "") for name, value in pairs)
            tags = sum(len(tag) + TAG for tag in self.metadata.tags)
            # Mount point and path stand in the requests by which the page is found, too.
            self.weight = words + tags + 2 * len(self.key.full_path)

    @property
    def renders(self) -> tuple[Render, ...]:
        """Its last renders, at most `MAX_RENDERS`, this one first."""
        found = (render.split(" ") for render in self.history.split(";") if render)
        return tuple(Render(float(at), float(took), reason) for at, took, reason in found)

    def rendered(self, at: float, seconds: float, reason: str, previous: Page | None) -> None:
        """Note the render that it comes from, before those of the page that it replaces."""
        self.generated_at, self.seconds, self.reason = at, round(seconds, 4), reason
        before = previous.history.split(";") if previous is not None and previous.history else []
        this = f"{max(0, at):.0f} {min(seconds, 99999):.3f} {reason}"
        self.history = ";".join([this, *before[: MAX_RENDERS - 1]])

    @property
    def labels(self) -> tuple[str, ...]:
        """What the page can be invalidated by; made when it is looked up, which is rare."""
        return (*self.key.labels, *(f"tag:{tag}" for tag in self.metadata.tags))

    @property
    def render(self) -> tuple[object, ...]:
        """What pages that come from one render have in common, whatever their codings."""
        return self.lineage, self.sequence, self.generated_at, self.digest

    @property
    def code(self) -> int:
        return status_code(self.status)

    @property
    def size(self) -> int:
        """Bytes of all its bodies."""
        return sum(map(len, self.bodies.values()))

    @property
    def codings(self) -> tuple[str, ...]:
        return tuple(coding for coding in self.bodies if coding != "identity")

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)


# Is a page fresh, stale or expired, and for how long does that hold? No I/O, and no clock.


class State(enum.Enum):
    FRESH = "fresh"
    STALE = "stale"
    EXPIRED = "expired"


class Invalidated(enum.IntEnum):
    """What invalidations since its render began have made of a page."""

    NO = 0
    STALE = 1
    EXPIRED = 2


# Looked up once: reading a member of an enumeration takes time.
_EXPIRED = Invalidated.EXPIRED

#: Whether a page is fresh; seconds of freshness left, rounded up, 0 or negative for a stale page,
#: ``None`` for ever; seconds for which a stale page may be served, counted from the end of its
#: window or, once it is stale, from now, ``None`` for ever; and the time at which this changes, in
#: seconds since 1970.
Window: t.TypeAlias = "tuple[bool, int | None, int | None, float]"


def state_of(page: Page, invalidated: Invalidated, now: float) -> State:
    """The state of a page.

    :param now: seconds since 1970.
    """
    window = window_of(page, invalidated, now)
    if window is None:
        return State.EXPIRED
    return State.FRESH if window[0] else State.STALE


def window_of(page: Page, invalidated: Invalidated, now: float) -> Window | None:
    """What an answer says of a page that may be served; ``None`` for an expired page.

    One step, because every page that is asked for takes it once a second.

    :param now: seconds since 1970.
    """
    window, expire, _ = page.metadata
    age = now - page.generated_at
    if invalidated is _EXPIRED or (expire is not None and age >= expire):
        return None
    fresh = not invalidated and age >= -CLOCK_TOLERANCE and (window is None or age < window)
    if window is None:
        return fresh, None if fresh else 0, None, math.inf
    # A page from the future has all its freshness left.
    age = max(age, 0.0)
    left = math.ceil(window - age)
    change = page.generated_at + window - left + 1
    if fresh:
        return True, left, None if expire is None else expire - window, change
    return False, min(0, left), None if expire is None else math.floor(expire - age), change


# Pages to bytes and back.


class Head(t.NamedTuple):
    """A page without its bodies, their sizes and their checksum, and the labels of the page."""

    page: Page
    sizes: tuple[Size, ...]
    check: str
    labels: tuple[str, ...]


class Codec:
    """Pages to bytes and back.

    :param signing_key: heads and bodies are authenticated with HMAC-SHA256; others do not decode.
        Without a key a CRC finds damage, not malice.
    """

    def __init__(self, signing_key: bytes | None = None) -> None:
        self._signing_key = signing_key
        self._kind = _MAGIC + (b"c" if signing_key is None else b"h")
        self._start = len(self._kind) + (4 if signing_key is None else 32)

    def _check(self, payload: bytes) -> bytes:
        if self._signing_key is None:
            return zlib.crc32(payload).to_bytes(4, "big")
        return hmac.digest(self._signing_key, payload, hashlib.sha256)

    def seal(self, payload: bytes) -> bytes:
        return self._kind + self._check(payload) + payload

    def unseal(self, data: object) -> bytes | None:
        """The payload, or ``None`` where the bytes are damaged, forged or foreign."""
        if not isinstance(data, bytes) or not data.startswith(self._kind):
            return None
        payload = data[self._start :]
        check = data[len(self._kind) : self._start]
        return payload if hmac.compare_digest(check, self._check(payload)) else None

    def encode(self, page: Page) -> tuple[bytes, bytes]:
        """The head of a page, and its bodies."""
        body = b"".join(page.bodies.values())
        fields = {name: getattr(page, name) for name in _FIELDS}
        fields["check"] = self._check(body).hex()
        fields["bodies"] = [[coding, len(one)] for coding, one in page.bodies.items()]
        return self.seal(json.dumps(fields, separators=(",", ":")).encode()), body

    def decode(self, head: Head, body: bytes) -> Page | None:
        """The page of a head, with its bodies; ``None`` where they are damaged or forged."""
        page, sizes, check, _ = head
        if self._check(body).hex() != check:
            return None
        bodies, at = {}, 0
        for coding, size in sizes:
            bodies[coding] = body[at : at + size]
            at += size
        # A new one, because heads are shared. `replace` takes three times as long.
        key, status, headers, _, *others = _values(page)
        return Page(key, status, headers, bodies, *others) if at == len(body) else None

    def decode_head(self, data: object) -> Head | None:
        """What a head says; ``None`` for one that is damaged, forged or foreign."""
        payload = self.unseal(data) or b"damaged"
        parse = _parse_head_once if len(payload) <= MAX_CACHED_HEAD else _parse_head
        try:
            return parse(payload)
        except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
            return None


def _parse_head(data: bytes) -> Head:
    """A page may come from anybody who can write to the store: all that gets into an answer, or is
    computed with, is what a render could have made of it.
    """
    head = json.loads(data.decode())
    *words, check = _strings([head[name] for name in (*_TEXTS, "check")])
    texts: dict[str, t.Any] = dict(zip(_TEXTS, words, strict=True))
    sizes = tuple((coding, _whole(size)) for coding, size in head["bodies"])
    page = Page(
        key=parse_key(head["key"]),
        headers=shared_headers(_pairs(head["headers"])),
        bodies={},
        metadata=_parse_metadata(*head["metadata"]),
        generated_at=float(head["generated_at"]),
        seconds=float(head["seconds"]),
        sequence=_whole(head["sequence"]),
        vary=_strings(head["vary"]),
        **texts,
    )
    # No header splitting on the way out.
    values = [*page.headers, *((name, "") for name in page.vary), ("Status", page.status)]
    if not (
        all(is_sound(name, value) for name, value in values)
        and page.code in _STATUSES
        and _DIGEST.fullmatch(page.digest)
        and _HISTORY.fullmatch(page.history)
        and math.isfinite(page.generated_at)
        and math.isfinite(page.seconds)
        and "identity" in _strings([coding for coding, _ in sizes])
    ):
        raise ValueError("no render makes such a page")
    return Head(page, sizes, check, page.labels)


_values = operator.attrgetter(*(field.name for field in fields(Page)))
_parse_head_once = functools.lru_cache(1024)(_parse_head)


def parse_key(fields: t.Any) -> PageKey:
    """
    :raises ValueError: or TypeError, for what is no key of a page.
    """
    scheme, host, mount, path, query, vary, build = fields
    scheme, host, mount, path, build = _strings([scheme, host, mount, path, build])
    variant = tuple(
        (name, value if value is None else _strings([value])[0])
        for name, value in ((_strings([name])[0], value) for name, value in vary)
    )
    key = PageKey(scheme, host, mount, path, _pairs(query), variant, build)
    # Raises for what is no URL: lists of pages show it.
    "".join([host, mount, path, *itertools.chain(*key.query)]).encode("latin-1")
    return key


def _parse_metadata(revalidate: t.Any, expire: t.Any, tags: t.Any) -> Metadata:
    window = False if revalidate is None else revalidate
    check_revalidate(window)
    check_expire(expire, window)
    return Metadata(revalidate, expire, check_tags(_strings(tags)))


def _pairs(items: t.Any) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in map(_strings, items))


def _strings(items: t.Any) -> tuple[str, ...]:
    if type(items) is not list or set(map(type, items)) - {str}:
        raise TypeError("not a list of strings")
    return tuple(items)


def _whole(value: t.Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("not a whole number")
    return value
