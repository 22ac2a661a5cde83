"""`Page`: an immutable stored response, and its bytes in a store.

A page is stored as a *head*, a sealed JSON text (checksum, or HMAC with a signing key), and its raw
bodies, whose checksums stand in the head. So a head can be read without its bodies. Nothing read
from a store is ever executed, and whatever is not exactly such a page is a miss.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
import math
import re
import typing as t
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from .key import PageKey
from .metadata import (
    STORABLE,
    STORABLE_IF_DECLARED,
    Metadata,
    check_expire,
    check_revalidate,
    check_tags,
    is_sound,
    lifetime,
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
_STATUSES = STORABLE | STORABLE_IF_DECLARED
_DIGEST = re.compile(r"[0-9a-f]{32}")
_HISTORY = re.compile(r"(?:(?:;|^)[0-9]{1,12} [0-9]{1,5}\.[0-9]{3} [a-z]{0,20}){0,10}")


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
    :param history: its last renders as one short text, this one first; see `renders`.
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
    #: Request headers that a cache has to tell apart, for ``Vary``.
    vary: tuple[str, ...] = ()
    history: str = ""
    name: str = field(default="", compare=False)
    #: Names the body: the strong ``ETag``.
    digest: str = ""
    #: Bytes of memory that its words take, besides its bodies.
    weight: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if not self.name:
            self.name = self.key.name
        if not self.digest:
            self.digest = hashlib.sha256(self.bodies["identity"]).hexdigest()[:32]
        if not self.weight:
            self.weight = _weight(self.key, self.headers, self.metadata.tags)

    @property
    def renders(self) -> tuple[Render, ...]:
        """Its last renders, at most `MAX_RENDERS`, this one first."""
        found = (render.split(" ") for render in self.history.split(";") if render)
        return tuple(Render(float(at), float(took), reason) for at, took, reason in found)

    def rendered(self, at: float, seconds: float, reason: str, previous: Page | None) -> None:
        """Note the render that it comes from, before those of the page that it replaces."""
        self.generated_at, self.seconds, self.reason = at, seconds, reason
        before = previous.history.split(";") if previous is not None and previous.history else []
        this = f"{max(0, at):.0f} {min(seconds, 99999):.3f} {reason}"
        self.history = ";".join([this, *before[: MAX_RENDERS - 1]])

    @property
    def labels(self) -> tuple[str, ...]:
        """What the page can be invalidated by; made when it is looked up, which is rare."""
        tags = (f"tag:{tag}" for tag in self.metadata.tags)
        return (self.key.path_label, self.key.host_label, page_label(self.name), *tags)

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


def _weight(key: PageKey, headers: Iterable[tuple[str, str]], tags: Iterable[str]) -> int:
    words = sum(len(name) + len(value or "") for name, value in (*headers, *key.query, *key.vary))
    # The mount point and the path stand in requests by which the page is found, too.
    return words + 2 * len(key.full_path) + sum(len(tag) + TAG for tag in tags)


def page_label(name: str) -> str:
    """What names one page alone, whatever else shares its path."""
    return f"page:{name}"


class Codec:
    """Pages to bytes and back.

    :param signing_key: heads are authenticated with HMAC-SHA256, and have the SHA-256 of their
        bodies; others do not decode. Without a key a CRC finds damage, not malice.
    """

    def __init__(self, signing_key: bytes | None = None) -> None:
        self._signing_key = signing_key
        self._kind = _MAGIC + (b"c" if signing_key is None else b"h")
        self._start = len(self._kind) + (4 if signing_key is None else 32)

    def _check(self, payload: bytes | memoryview) -> bytes:
        if self._signing_key is None:
            return zlib.crc32(payload).to_bytes(4, "big")
        return hmac.digest(self._signing_key, t.cast(bytes, payload), hashlib.sha256)

    def _check_body(self, body: bytes) -> str:
        return f"{zlib.crc32(body):08x}" if self._signing_key is None else _sha256(body)

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
        head = json.dumps(
            {
                "key": page.key,
                "status": page.status,
                "headers": page.headers,
                "metadata": page.metadata,
                "generated_at": page.generated_at,
                "sequence": page.sequence,
                "lineage": page.lineage,
                "reason": page.reason,
                "seconds": round(page.seconds, 4),
                "vary": page.vary,
                "history": page.history,
                "digest": page.digest,
                "check": self._check_body(body),
                "bodies": [[coding, len(one)] for coding, one in page.bodies.items()],
            },
            separators=(",", ":"),
        ).encode()
        return self.seal(head), body

    def decode(self, head: object, body: bytes, key: PageKey | None = None) -> Page | None:
        """The page of a head and its bodies; ``None`` for what is damaged, forged or foreign.

        :param key: whose page it has to be: a page stored under another key's name is a miss.
        """
        found = self.decode_head(head)
        if found is None or (key is not None and found[0].key != key):
            return None
        page, sizes, check = found
        if self._check_body(body) != check or sum(size for _, size in sizes) != len(body):
            return None
        at = 0
        for coding, size in sizes:
            page.bodies[coding] = body[at : at + size]
            at += size
        return page

    def decode_head(self, head: object) -> tuple[Page, tuple[Size, ...], str] | None:
        """A page without its bodies, their sizes and their checksum; ``None`` as above."""
        payload = self.unseal(head)
        if payload is None:
            return None
        parse = _parse_head_once if len(payload) <= MAX_CACHED_HEAD else _parse_head
        try:
            fields, sizes, check = parse(payload)
        except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
            return None
        return Page(bodies={}, **fields), sizes, check


#: A content coding, and the length of the body in it.
Size: t.TypeAlias = "tuple[str, int]"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _parse_head(data: bytes) -> tuple[dict[str, t.Any], tuple[Size, ...], str]:
    """The fields of a page without its bodies, and their codings, lengths and checksum.

    A page may come from anybody who can write to the store: all that gets into an answer, or is
    computed with, is what a render could have made of it.
    """
    head = json.loads(data)
    key = parse_key(head["key"])
    vary = _strings(head["vary"])
    headers = shared_headers(_pairs(head["headers"]))
    status, lineage, digest, reason, history = _strings(
        [head[name] for name in ("status", "lineage", "digest", "reason", "history")]
    )
    # No header splitting on the way out.
    values = [*headers, *((name, "") for name in vary), ("Status", status)]
    if not all(is_sound(name, value) for name, value in values):
        raise ValueError("a header is not sound")
    if status_code(status) not in _STATUSES or not _DIGEST.fullmatch(digest):
        raise ValueError("not a stored response")
    metadata = _parse_metadata(*head["metadata"])
    generated_at, seconds = float(head["generated_at"]), round(float(head["seconds"]), 4)
    if not math.isfinite(generated_at) or not math.isfinite(seconds):
        raise ValueError("no time")
    if not _HISTORY.fullmatch(history):
        raise ValueError("no renders")
    fields = {
        "key": key,
        "status": status,
        "headers": headers,
        "metadata": metadata,
        "generated_at": generated_at,
        "sequence": _whole(head["sequence"]),
        "lineage": lineage,
        "reason": reason,
        "seconds": seconds,
        "vary": vary,
        "history": history,
        "name": key.name,
        "digest": digest,
        "weight": _weight(key, headers, metadata.tags),
    }
    sizes = tuple((coding, _whole(size)) for coding, size in head["bodies"])
    if "identity" not in _strings([coding for coding, _ in sizes]):
        raise ValueError("no body")
    (check,) = _strings([head["check"]])
    return fields, sizes, check


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
    key.url.encode("latin-1")
    return key


def _parse_metadata(revalidate: t.Any, expire: t.Any, tags: t.Any) -> Metadata:
    window = False if revalidate is None else revalidate
    check_revalidate(window)
    check_expire(expire, window)
    # Raises for a number that cannot be added to a time.
    float(window), float(expire or 0)
    return lifetime(revalidate, expire, check_tags(_strings(tags)))


def _pairs(items: t.Any) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in map(_strings, items))


def _strings(items: t.Any) -> tuple[str, ...]:
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise TypeError("not a list of strings")
    return tuple(items)


def _whole(value: t.Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("not a whole number")
    return value
