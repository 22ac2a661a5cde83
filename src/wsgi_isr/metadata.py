"""The ISR-* response headers: read, written, and the rules by which a response may be stored.

Pure functions over statuses and headers; nothing here does I/O.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import typing as t
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from werkzeug.http import is_hop_by_hop_header, parse_set_header

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

logger = logging.getLogger("wsgi_isr")

Header: t.TypeAlias = "tuple[str, str]"
Headers: t.TypeAlias = "list[Header]"

MAX_TAGS = 128
MAX_TAG_LENGTH = 256
_NAMES = ("ISR-Revalidate", "ISR-Expire", "ISR-Tags")
ISR_HEADERS = frozenset(name.lower() for name in _NAMES)
#: Names of other response headers, as apps spell them: a set is faster than `str.lower`.
HARMLESS: set[str] = set()
MAX_HARMLESS = 1000

#: Statuses that are results; 302 and 307 only where the response itself has metadata.
STORABLE = frozenset({200, 301, 308, 404, 410})
STORABLE_IF_DECLARED = frozenset({302, 307})
GONE = frozenset({404, 410})
REDIRECTS = frozenset({301, 302, 307, 308})
#: Answers that say "not now" (RFC 9110, RFC 8470, RFC 6585): a render that gets one has failed.
NOT_NOW = frozenset({408, 425, 429})
#: Bodies without an end, which are never collected.
ENDLESS = ("text/event-stream", "multipart/x-mixed-replace")

_BAD_TAG = re.compile(r"[\x00-\x1f,\x7f-\x9f\ud800-\udfff]")
_WHOLE = re.compile(r"[0-9]{1,15}")
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_BAD_VALUE = re.compile(r"[^\t\x20-\x7e\x80-\xff]")
_TAG_SAFE = "".join(map(chr, range(0x21, 0x7F)))
# Written by the library itself, or true for one answer only.
_NOT_STORED = frozenset(
    {"accept-ranges", "age", "content-length", "date", "set-cookie", "vary", *ISR_HEADERS}
)
#: Bytes of tags that a CDN is told.
MAX_TAGS_VALUE = 4096
#: Headers that the library writes or leaves out cannot carry tags.
_NOT_FOR_TAGS = _NOT_STORED | {"cache-control", "cache-status", "connection", "content-encoding"}
_NOT_FOR_TAGS |= {"content-type", "etag", "last-modified", "location", "transfer-encoding"}


class Metadata(t.NamedTuple):
    """How long a page lives.

    :param revalidate: seconds it is fresh; ``None``: until it is revalidated on demand.
    :param expire: seconds after which it is not served any more; ``None``: no limit.
    """

    revalidate: int | None
    expire: int | None = None
    tags: tuple[str, ...] = ()


class InvalidMetadata(ValueError):
    """An ISR header with a value that does not parse; the message names both."""

    detail = "metadata"


def check_revalidate(value: object) -> None:
    if value is not False and not _is_whole(value):
        raise ValueError(f"revalidate takes whole seconds, 1 or more, or False, not {value!r}")


def _is_whole(value: object) -> t.TypeGuard[int]:
    # As many digits as a header may have.
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 10**15


def check_expire(expire: object, revalidate: int | t.Literal[False] | None) -> None:
    if expire is None:
        return
    if not _is_whole(expire):
        raise ValueError(f"expire takes whole seconds, 1 or more, not {expire!r}")
    if revalidate is False:
        raise ValueError("a page that is fresh until it is revalidated (False) cannot expire")
    if revalidate is not None and expire < revalidate:
        raise ValueError(f"expire ({expire}) must be at least revalidate ({revalidate})")


def check_iterable(name: str, value: object, example: str) -> Iterable[t.Any]:
    """
    :raises TypeError: for a string, or for anything else that is not a list, with the remedy.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        shown = value if isinstance(value, str) else example
        raise TypeError(f"{name} takes a list, as in [{shown!r}], not {value!r}")
    return value


def check_list(name: str, value: object, example: str) -> tuple[t.Any, ...]:
    """What is listed; the same error for what is no list."""
    return tuple(check_iterable(name, value, example))


def check_tags(tags: Iterable[str], limit: int | None = MAX_TAGS) -> tuple[str, ...]:
    """Tags without doubles, in their order.

    :param limit: how many there may be; ``None`` for any number.
    :raises TypeError: for a string in place of a list.
    :raises ValueError: for too many, or one that is empty, longer than 256 characters, has a comma
        or control characters, or cannot be encoded as UTF-8.
    """
    tags = check_list("tags", tags, "posts")
    for tag in tags:
        if not isinstance(tag, str) or not tag or tag != tag.strip() or _BAD_TAG.search(tag):
            raise ValueError(
                "a tag is a text that UTF-8 can encode, without commas, control characters and "
                f"outer spaces, not {tag!r}"
            )
        if len(tag) > MAX_TAG_LENGTH:
            raise ValueError(f"a tag has at most {MAX_TAG_LENGTH} characters: {tag!r}")
    unique = tuple(dict.fromkeys(tags))
    if limit is not None and len(unique) > limit:
        raise ValueError(f"a page may have at most {limit} tags, not {len(unique)}")
    return unique


def page_headers(
    revalidate: int | t.Literal[False] = False,
    expire: int | None = None,
    tags: Iterable[str] = (),
) -> list[tuple[str, str]]:
    """The response headers that declare a page, for apps without a framework.

    :param revalidate: seconds the page is fresh, 1 or more; ``False``: until it is revalidated
        on demand.
    :param expire: seconds after which the stale page is not served any more, at least
        ``revalidate``.
    :param tags: names by which many pages are invalidated at once.
    :raises ValueError: for values that the middleware would refuse.

    .. code-block:: python

        start_response("200 OK", [("Content-Type", "text/html"), *page_headers(60)])
    """
    check_revalidate(revalidate)
    check_expire(expire, revalidate)
    tags = check_tags(tags)
    headers = [("ISR-Revalidate", "false" if revalidate is False else str(revalidate))]
    if expire is not None:
        headers.append(("ISR-Expire", str(expire)))
    if tags:
        # Header values are latin-1 in WSGI; other characters travel as UTF-8 bytes in it.
        headers.append(("ISR-Tags", ", ".join(tags).encode().decode("latin-1")))
    return headers


T = t.TypeVar("T", bound=t.Hashable)

#: Characters of what is interned: it stays after its pages.
MAX_INTERNED = 200


def intern(value: T) -> T:
    """One object for all equal values: many pages have the same headers."""
    return t.cast(T, _intern(value))


# Typed, because a named tuple equals a plain one.
@functools.lru_cache(4096, typed=True)
def _intern(value: t.Any) -> t.Any:
    return value


def header(name: str, value: str) -> Header:
    """A header that many pages have."""
    return intern((name, value)) if len(value) <= MAX_INTERNED else (name, value)


def declares_page(headers: Iterable[tuple[str, str]]) -> bool:
    """Whether a response calls itself a page, if only by mistake."""
    return any(name not in HARMLESS and is_isr_header(name) for name, _ in headers)


def is_isr_header(name: str) -> bool:
    """Whether a response header is the library's; one that is not is `HARMLESS` from now on."""
    if name.lower() in ISR_HEADERS:
        return True
    if name.lower().startswith("isr-"):
        logger.warning("%s means nothing: the headers of pages are %s", name, ", ".join(_NAMES))
    if len(HARMLESS) < MAX_HARMLESS:
        HARMLESS.add(name)
    return False


def prepare(environ: WSGIEnvironment, middleware: object) -> None:
    """Take from a visitor's request what means nothing in it, and what only a render has."""
    for name in ("HTTP_ISR_REVALIDATE", "HTTP_ISR_EXPIRE", "HTTP_ISR_TAGS", "wsgi_isr.reason"):
        environ.pop(name, None)
    environ["wsgi_isr.middleware"] = middleware


def without_isr(headers: Iterable[tuple[str, str]]) -> Headers:
    return [item for item in headers if item[0].lower() not in ISR_HEADERS]


def read_metadata(
    headers: Iterable[Header],
    revalidate: int | t.Literal[False] | None = None,
    expire: int | None = None,
    tags: Iterable[str] = (),
) -> Metadata | None:
    """What a response says of its page, and else its rule; ``None`` where it is none.

    :raises InvalidMetadata: for a value that does not parse.
    """
    found: dict[str, list[str]] = {}
    for name, value in headers:
        if name.lower() in ISR_HEADERS:
            found.setdefault(name.lower(), []).append(value.strip(" \t"))
    own = {name: ", ".join(values) for name, values in found.items()}
    try:
        if "isr-revalidate" in own:
            revalidate = _number(own["isr-revalidate"])
            check_revalidate(revalidate)
        if revalidate is None:
            if own:
                raise ValueError(f"{', '.join(sorted(own))} without ISR-Revalidate")
            return None
        if "isr-expire" in own:
            expire = _number(own["isr-expire"])
            check_expire(expire, revalidate)
        elif expire is not None and (revalidate is False or expire < revalidate):
            # The response's own window wins over its rule, whose expiry is for another window.
            expire = None if revalidate is False else revalidate
        if "isr-tags" in own:
            tags = _read_tags(own["isr-tags"])
    except ValueError as error:
        said = "; ".join(f"{name}: {value[:100]!r}" for name, value in own.items())
        raise InvalidMetadata(f"{said} ({error})") from None
    return Metadata(None if revalidate is False else revalidate, expire, tuple(tags))


def _number(value: str) -> int | t.Literal[False]:
    if value.lower() == "false":
        return False
    if not _WHOLE.fullmatch(value):
        raise ValueError("this is neither whole seconds, 1 or more, nor false")
    return int(value)


def _read_tags(value: str) -> tuple[str, ...]:
    with contextlib.suppress(UnicodeError):
        value = value.encode("latin-1").decode()
    return check_tags(tag.strip(" \t") for tag in value.split(",") if tag.strip(" \t"))


def check_tags_header(name: object) -> None:
    is_name = isinstance(name, str) and HEADER_NAME.fullmatch(name)
    if not is_name or str(name).lower() in _NOT_FOR_TAGS:
        raise ValueError(
            "tags_header takes the name of a header that has no other use, as in 'Surrogate-Key', "
            f"not {name!r}"
        )


def tags_value(header: str, tags: Iterable[str]) -> tuple[str, bool]:
    """The value of a header that tells a cache the tags of a page, and whether it has all of them.

    Spaces separate keys for Fastly and Varnish, commas do so elsewhere. Networks take printable
    ASCII without spaces, so all else is percent-encoded.
    """
    separator = " " if header.lower() in ("surrogate-key", "xkey", "x-xkey") else ","
    whole = separator.join(quote(tag, safe=_TAG_SAFE) for tag in tags)
    if len(whole) <= MAX_TAGS_VALUE:
        return whole, True
    return whole[: MAX_TAGS_VALUE + 1].rpartition(separator)[0], False


@functools.lru_cache(256)
def status_code(status: str) -> int:
    """The number of a status line; 0 for one that has none."""
    code = status.partition(" ")[0]
    return int(code) if len(code) == 3 and code.isdecimal() else 0


def fields_of(headers: Iterable[Header], listing: str) -> set[str]:
    """All fields, in lower case, that headers of a name in lower case list."""
    values = (value for name, value in headers if name.lower() == listing)
    return {item.lower() for value in values for item in parse_set_header(value)}


def is_sound(name: str, value: str) -> bool:
    """Whether a header can go over the wire as it is (RFC 9110 section 5.5)."""
    return HEADER_NAME.fullmatch(name) is not None and not _BAD_VALUE.search(value)


def end_to_end(headers: Sequence[Header]) -> tuple[Header, ...]:
    """The headers of a response that are stored with the page (RFC 9110 section 7.6.1)."""
    dropped = _NOT_STORED.union(fields_of(headers, "connection"))
    return shared_headers(
        (name, value)
        for name, value in headers
        if name.lower() not in dropped and not is_hop_by_hop_header(name)
    )


def shared_headers(headers: Iterable[Header]) -> tuple[Header, ...]:
    """Headers that many pages have, all together or at least some."""
    lines = tuple(header(name, value) for name, value in headers)
    return intern(lines) if sum(len(value) for _, value in lines) <= MAX_INTERNED else lines
