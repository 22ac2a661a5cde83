"""What names a page: the `PageKey`, and the canonical request built from it alone.

Everything an app can see while a page is rendered is part of its key or a constant. The type
is the proof: the renderer takes a `PageKey` and there is no way to hand it a visitor's environ.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import logging
import re
import sys
import typing as t
from collections.abc import Iterable
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlencode, urlsplit

from .metadata import check_list

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

logger = logging.getLogger("wsgi_isr")

DEFAULT_PORTS = {"http": "80", "https": "443"}

#: Longer keys are not stored: every byte of a key is chosen by the client.
MAX_KEY_LENGTH = 2048

# Paths that proxies, frameworks and file systems read differently (web cache deception).
# Control characters are those of C1 too, which are two bytes in UTF-8.
_AMBIGUOUS = re.compile(r"//|\\|[\x00-\x1f\x7f]|\xc2[\x80-\x9f]|/\.\.?(?:/|\Z)")
_HOST = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_.-]{0,252})|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?")

#: What campaigns and click trackers add to URLs, and apps do not read.
_TRACKERS = re.compile(
    r"utm_.*|fbclid|gclid|gclsrc|dclid|wbraid|gbraid|msclkid|yclid|twclid|ttclid|li_fat_id|igshid"
    r"|mc_cid|mc_eid|_ga|_gl|_hsenc|_hsmi|mkt_tok|srsltid"
)

# RFC 3986 pchar, so that a URL reads as in a browser's address bar; a * would make it a pattern.
_PATH_SAFE = "/!$&'()+,;=:@~"


class PageKey(t.NamedTuple):
    """Identity of a page.

    :param scheme: ``http`` or ``https``.
    :param host: lower case, without the scheme's default port.
    :param mount: ``SCRIPT_NAME``, as WSGI spells it (latin-1 code points for bytes).
    :param path: ``PATH_INFO``, exactly the bytes the app gets.
    :param query: declared query parameters, sorted by name, repeated values in their order.
    :param vary: declared request headers with their normalised values; ``None`` for an absent one.
    :param build: pages of different builds live side by side.
    """

    scheme: str
    host: str
    mount: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    vary: tuple[tuple[str, str | None], ...] = ()
    build: str = ""

    @property
    def full_path(self) -> str:
        """The path with the mount point, decoded, in WSGI's latin-1 spelling."""
        return self.mount + self.path

    @property
    def query_string(self) -> str:
        return urlencode(self.query, encoding="latin-1")

    @property
    def url(self) -> str:
        """The page's URL as an address bar shows it."""
        path = address_of(self.full_path)
        query = f"?{self.query_string}" if self.query else ""
        return f"{self.scheme}://{self.host}{path}{query}"

    @property
    def is_too_long(self) -> bool:
        """Whether its query is so long that it is never stored."""
        return sum(len(name) + len(value) for name, value in self.query) > MAX_KEY_LENGTH

    @property
    def name(self) -> str:
        """Name of the page in a store: a digest of its path, then a digest of the whole key.

        JSON keeps the borders between fields apart, so that no two keys share a digest
        (Django's ``('a', 'bc')`` and ``('ab', 'c')``).
        """
        return _name(self)

    @property
    def labels(self) -> tuple[str, str, str]:
        """What the page can be invalidated by, whatever its tags are."""
        path = self.full_path or "/"
        return f"path:{path}", f"host:{self.host}{path}", page_label(self.name)

    def to_environ(self, reason: str, middleware: object) -> WSGIEnvironment:
        """The canonical request: an allow-list, never a copy of a visitor's environ.

        There is no ``REMOTE_ADDR``: 127.0.0.1 would open debug pages, and the documentation
        networks count as private in Python.
        """
        name, port = _split_port(self.host)
        environ: WSGIEnvironment = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": self.mount,
            "PATH_INFO": self.path,
            "QUERY_STRING": self.query_string,
            "SERVER_NAME": name,
            "SERVER_PORT": port or DEFAULT_PORTS.get(self.scheme, "80"),
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": self.host,
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": self.scheme,
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi_isr.middleware": middleware,
            "wsgi_isr.reason": reason,
        }
        for header, value in self.vary:
            if value is not None:
                environ["HTTP_" + header.upper().replace("-", "_")] = value
        return environ


def address_of(path: str) -> str:
    """A decoded path as an address bar shows it."""
    return quote(path.encode("latin-1"), safe=_PATH_SAFE)


def page_label(name: str) -> str:
    """What names one page alone, whatever else shares its path."""
    return f"page:{name}"


@functools.lru_cache(1024)
def _name(key: PageKey) -> str:
    path = hashlib.sha256(key.full_path.encode("latin-1")).hexdigest()
    return f"{path[:24]}.{hashlib.sha256(json.dumps(key).encode()).hexdigest()}"


def is_ambiguous(path: str, mount: str = "") -> bool:
    """Whether a path is one that is never stored (RFC 3986 section 6, cache deception)."""
    full = mount + path or "/"
    if len(full) > MAX_KEY_LENGTH or _AMBIGUOUS.search(full):
        return True
    if not full.startswith("/") or path and not path.startswith("/"):
        return True
    try:
        full.encode("latin-1").decode()
    except UnicodeError:
        return True
    return False


def normalize_host(host: str, scheme: str) -> str | None:
    """Lower case, no trailing dot, no default port; ``None`` for what is no host at all."""
    name, port = _split_port(host.lower())
    name = name.removesuffix(".")
    # Checked with its port: without it "a:80:80" would look like a host.
    if name.endswith(".") or not _HOST.fullmatch(f"{name}:{port}" if port else name):
        return None
    return f"{name}:{port}" if port and port != DEFAULT_PORTS.get(scheme) else name


def canonical_query(query_string: str, declared: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """The declared parameters of a query string, sorted by name; undeclared ones are dropped.

    ``;`` is no separator, so ``a=1;cb=x`` is one value of ``a``. Bytes survive as latin-1.
    """
    declared = tuple(declared)
    found = (pair for pair in _pairs(query_string) if pair[0] in declared) if declared else ()
    return tuple(sorted(found, key=lambda pair: pair[0]))


def undeclared(query_string: str, declared: Iterable[str]) -> set[str]:
    """The names of a query's parameters that are not declared."""
    return {name for name, _ in _pairs(query_string)}.difference(declared)


def are_trackers(names: Iterable[str]) -> bool:
    """Whether all parameters of these names are those of campaigns and click trackers."""
    return all(map(_TRACKERS.fullmatch, names))


def _pairs(query_string: str) -> list[tuple[str, str]]:
    return parse_qsl(query_string, keep_blank_values=True, encoding="latin-1", errors="replace")


class Origin(t.NamedTuple):
    """Where a visitor is: scheme, host and mount point."""

    scheme: str
    host: str
    mount: str

    def to_environ(self) -> WSGIEnvironment:
        """What a request says of it."""
        return {
            "wsgi.url_scheme": self.scheme,
            "HTTP_HOST": self.host,
            "SCRIPT_NAME": self.mount,
        }


class Origins:
    """Decides which hosts have pages, and under which scheme, host and mount point they render.

    :param base_url: scheme, host and perhaps mount point of every page; the visitor's do not
        matter then.
    :param trusted_hosts: hosts that may have pages, as in Werkzeug, with a port only where one is
        named; ``None`` for any.
    """

    def __init__(self, base_url: str | None, trusted_hosts: Iterable[str] | None) -> None:
        self._trusted: list[tuple[bool, str, str]] | None = None
        #: Whether somebody has come by a trusted host, or a warning has said that nobody does.
        self._is_used = False
        if trusted_hosts is not None:
            hosts = check_list("trusted_hosts", trusted_hosts, "www.example.com")
            self._trusted = [_parse_trusted(host) for host in hosts]
            if not self._trusted:
                raise ValueError("trusted_hosts is empty: name a host, or leave it None for any")
        #: What ``base_url`` says; an empty mount point is the visitor's.
        self.base: Origin | None = None if base_url is None else _parse_base_url(base_url)

    def of(self, environ: WSGIEnvironment) -> Origin | None:
        """The origin that a visitor's request is for, or ``None`` where it may not have pages."""
        mount = environ.get("SCRIPT_NAME", "")
        if self.base is not None:
            return self.base if self.base.mount or not mount else self.base._replace(mount=mount)
        scheme = environ["wsgi.url_scheme"]
        host = environ.get("HTTP_HOST")
        if host is None:
            host = f"{environ['SERVER_NAME']}:{environ['SERVER_PORT']}"
        trusted = self.trust(scheme, host)
        if trusted is not None:
            self._is_used = True
            return Origin(scheme, trusted, mount)
        if not self._is_used and normalize_host(host, scheme) is not None:
            self._is_used = True
            logger.warning("%r is not among trusted_hosts: requests for it get no pages", host)
        return None

    def trust(self, scheme: str, host: str) -> str | None:
        """The normalised host if it may have pages."""
        if scheme not in DEFAULT_PORTS:
            return None
        normal = normalize_host(host, scheme)
        if normal is None:
            return None
        if self.base is not None:
            return normal if (scheme, normal) == self.base[:2] else None
        if self._trusted is None:
            return normal
        (name, port), default = _split_port(normal), DEFAULT_PORTS[scheme]
        for is_domain, trusted, its_port in self._trusted:
            if name == trusted or is_domain and name.endswith(f".{trusted}"):
                if (its_port or default) in ("*", port or default):
                    return normal
        return None


def _split_port(host: str) -> tuple[str, str]:
    name, colon, port = host.rpartition(":")
    return (name, port) if colon and not port.endswith("]") else (host, "")


def _parse_trusted(host: object) -> tuple[bool, str, str]:
    """Whether subdomains are trusted, too (a dot says so), the name, and the port.

    A port of ``*`` is any, for adapters of frameworks that trust hosts without their ports.
    """
    text = host.lower() if isinstance(host, str) else ""
    name, port = _split_port(text.removeprefix("."))
    with contextlib.suppress(UnicodeError):
        name = name.removesuffix(".").encode("idna").decode()
    if normalize_host(name if port in ("", "*") else f"{name}:{port}", "") is None:
        raise ValueError(
            "trusted_hosts takes hosts, as in ['www.example.com'], or '.example.com' with its "
            f"subdomains, not URLs and no *; None trusts any; not {host!r}"
        )
    return text.startswith("."), name, port


def _parse_base_url(base_url: str) -> Origin:
    try:
        parts = urlsplit(str(base_url))
    except ValueError:
        parts = urlsplit("")
    host = normalize_host(parts.netloc, parts.scheme) if parts.scheme in DEFAULT_PORTS else None
    mount = unquote_to_bytes(parts.path.rstrip("/")).decode("latin-1")
    if host is None or parts.query or parts.fragment or is_ambiguous("", mount):
        raise ValueError(
            "base_url takes a scheme, a host and perhaps the mount point, as in "
            f"'https://www.example.com', not {base_url!r}"
        )
    return Origin(parts.scheme, host, mount)
