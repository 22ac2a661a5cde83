"""`Page`: an immutable stored response, and its bytes on disk or wire.

An entry is a sealed envelope (checksum, or HMAC with a signing key), a JSON head and raw bodies.
Nothing read from a store is ever executed, and whatever is not exactly such an entry is a miss.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
import math
import re
import struct
import typing as t
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import field

from .key import PageKey
from .metadata import check_expire
from .metadata import check_revalidate
from .metadata import check_tags
from .metadata import is_sound
from .metadata import lifetime
from .metadata import Metadata
from .metadata import shared_headers
from .metadata import status_code
from .metadata import STORABLE
from .metadata import STORABLE_IF_DECLARED

_MAGIC = b"ISR\x01"
_HEAD_LENGTH = struct.Struct("!I")
#: Bytes of a head that is parsed but once while it is in use.
MAX_KNOWN_HEAD = 4096
#: Bytes that a tag costs in memory beyond its characters.
TAG = 80
_STATUSES = STORABLE | STORABLE_IF_DECLARED
_DIGEST = re.compile(r"[0-9a-f]{32}")


# Not frozen: that makes it four times as slow to build one, which is a tenth of reading a file.
@dataclass(slots=True)
class Page:
    """A response that its app has declared incrementally regenerable. Nobody changes one.

    :param status: the status line, as in ``"200 OK"``.
    :param headers: end-to-end headers, without those that the library writes itself.
    :param bodies: the body by content coding; ``"identity"`` is always there.
    :param generated_at: seconds since 1970 at which the render began.
    :param sequence: number of the render in the order of all renders and invalidations.
    :param lineage: the store's counter that the number belongs to.
    """

    key: PageKey
    status: str
    headers: tuple[tuple[str, str], ...]
    bodies: dict[str, bytes]
    metadata: Metadata
    generated_at: float
    sequence: int = 0
    lineage: str = ""
    #: Request headers that a cache has to tell apart, for ``Vary``.
    vary: tuple[str, ...] = ()
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
    words = sum(len(name) + len(value) for name, value in (*headers, *key.query, *key.vary))
    # The mount point and the path stand in requests by which the page is found, too.
    return words + 2 * len(key.full_path) + sum(len(tag) + TAG for tag in tags)


def page_label(name: str) -> str:
    """What names one page alone, whatever else shares its path."""
    return f"page:{name}"


class Codec:
    """Pages to bytes and back.

    :param signing_key: entries are authenticated with HMAC-SHA256; others do not decode. Without
        one a CRC finds damage, not malice.
    """

    def __init__(self, signing_key: bytes | None = None) -> None:
        self._signing_key = signing_key
        self._check_length = 4 if signing_key is None else 32
        self._start = len(_MAGIC) + 1 + self._check_length

    def _check(self, payload: bytes | memoryview) -> bytes:
        if self._signing_key is None:
            return zlib.crc32(payload).to_bytes(4, "big")
        return hmac.digest(self._signing_key, t.cast(bytes, payload), hashlib.sha256)

    def seal(self, payload: bytes) -> bytes:
        kind = b"c" if self._signing_key is None else b"h"
        return _MAGIC + kind + self._check(payload) + payload

    def unseal(self, data: object) -> memoryview | None:
        """The payload, or ``None`` where the bytes are damaged, forged or foreign."""
        if not isinstance(data, bytes) or len(data) < self._start:
            return None
        kind = b"c" if self._signing_key is None else b"h"
        if data[:5] != _MAGIC + kind:
            return None
        payload = memoryview(data)[self._start :]
        check = data[5 : self._start]
        return payload if hmac.compare_digest(check, self._check(payload)) else None

    def encode(self, page: Page) -> bytes:
        head = json.dumps(
            {
                "key": page.key,
                "status": page.status,
                "headers": page.headers,
                "metadata": page.metadata,
                "generated_at": page.generated_at,
                "sequence": page.sequence,
                "lineage": page.lineage,
                "vary": page.vary,
                "digest": page.digest,
                "bodies": [[coding, len(body)] for coding, body in page.bodies.items()],
            },
            separators=(",", ":"),
        ).encode()
        return self.seal(_HEAD_LENGTH.pack(len(head)) + head + b"".join(page.bodies.values()))

    def decode(self, data: object, key: PageKey | None = None) -> Page | None:
        """The page in an entry.

        :param key: whose page it has to be; an entry that was put under another key's name is a
            miss.
        """
        payload = self.unseal(data)
        if payload is None:
            return None
        try:
            page = _parse(t.cast(bytes, data), self._start)
        except (ValueError, TypeError, LookupError, ArithmeticError, struct.error, RecursionError):
            return None
        return page if key is None or page.key == key else None


def peek(data: bytes) -> dict[str, t.Any] | None:
    """The head of an entry, from its first bytes alone: to sort it by, never to serve it.

    Nothing of it is checked, nor does it take the signing key.
    """
    checks = {b"c": 4, b"h": 32}
    start = len(_MAGIC) + 1 + checks.get(data[4:5], 0)
    try:
        (length,) = _HEAD_LENGTH.unpack_from(data, start)
        at = start + _HEAD_LENGTH.size
        head = json.loads(data[at : at + length])
    except (ValueError, struct.error, RecursionError):
        return None
    return head if isinstance(head, dict) and data[:4] == _MAGIC else None


def _parse(data: bytes, start: int) -> Page:
    (length,) = _HEAD_LENGTH.unpack_from(data, start)
    start += _HEAD_LENGTH.size
    at = start + length
    head = data[start:at]
    fields, sizes = _known_head(head) if length <= MAX_KNOWN_HEAD else _parse_head(head)
    bodies = {}
    for coding, size in sizes:
        bodies[coding] = data[at : at + size]
        at += size
    if at != len(data) or "identity" not in bodies:
        raise ValueError("bodies and their lengths differ")
    return Page(bodies=bodies, **fields)


def _parse_head(data: bytes) -> tuple[dict[str, t.Any], list[tuple[str, int]]]:
    """The fields of a page without its bodies, and their codings and lengths.

    An entry may come from whoever can write to the store: all that gets into an answer, or is
    computed with, is what a render could have made of it.
    """
    head = json.loads(data)
    key = _parse_key(head["key"])
    vary = _strings(head["vary"])
    headers = shared_headers(_pairs(head["headers"]))
    (status, lineage, digest) = _strings([head["status"], head["lineage"], head["digest"]])
    # No header splitting on the way out.
    values = [*headers, *((name, "") for name in vary), ("Status", status)]
    if not all(is_sound(name, value) for name, value in values):
        raise ValueError("a header is not sound")
    if status_code(status) not in _STATUSES or not _DIGEST.fullmatch(digest):
        raise ValueError("not a stored response")
    metadata = _parse_metadata(*head["metadata"])
    generated_at = float(head["generated_at"])
    if not math.isfinite(generated_at):
        raise ValueError("no time")
    fields = {
        "key": key,
        "status": status,
        "headers": headers,
        "metadata": metadata,
        "generated_at": generated_at,
        "sequence": _whole(head["sequence"]),
        "lineage": lineage,
        "vary": vary,
        "name": key.name,
        "digest": digest,
        "weight": _weight(key, headers, metadata.tags),
    }
    codings = [coding for coding, _ in head["bodies"]]
    sizes = [_whole(size) for _, size in head["bodies"]]
    return fields, list(zip(_strings(codings), sizes, strict=True))


def _parse_key(fields: t.Any) -> PageKey:
    scheme, host, mount, path, query, vary, build = fields
    scheme, host, mount, path, build = _strings([scheme, host, mount, path, build])
    key = PageKey(scheme, host, mount, path, _pairs(query), _pairs(vary), build)
    # Raises for what is no URL: lists of pages show it.
    key.url.encode("latin-1")
    return key


def _parse_metadata(revalidate: t.Any, expire: t.Any, tags: t.Any) -> Metadata:
    window = False if revalidate is None else revalidate
    check_revalidate(window)
    check_expire(expire, window)
    # Raises for what no time can be added to.
    float(window), float(expire or 0)
    return lifetime(revalidate, expire, check_tags(_strings(tags)))


_known_head = functools.lru_cache(1024)(_parse_head)


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
