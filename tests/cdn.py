"""A shared cache in front of a site, in simulated time: RFC 9111, RFC 5861 and RFC 9213."""

from __future__ import annotations

import typing as t

from conftest import Clock
from werkzeug.http import parse_dict_header, parse_set_header
from werkzeug.test import Client


class Stored(t.NamedTuple):
    """An answer that the cache keeps.

    :param fresh_until: seconds since 1970.
    :param stale_until: the same; until then it is served while it is fetched anew.
    :param wanted: request headers that its ``Vary`` names, as its request had them.
    """

    body: str
    headers: t.Any
    fresh_until: float
    stale_until: float
    wanted: dict[str, str | None]


class Served(t.NamedTuple):
    body: str
    #: ``"miss"``, ``"fresh"`` or ``"stale"``.
    how: str


class CDN:
    """Keeps what it may for as long as it may, and not a moment shorter.

    :param origin: the site.
    :param settle: called when the site has answered, to let it do what it does behind.
    """

    #: In the order in which a network like this obeys them.
    CONTROLS = ("CDN-Cache-Control", "Surrogate-Control", "Cache-Control")

    def __init__(self, origin: Client, clock: Clock, settle: t.Callable[[], None]) -> None:
        self._origin = origin
        self._clock = clock
        self._settle = settle
        self._stored: dict[str, list[Stored]] = {}
        self.fetches = 0

    def get(self, path: str, **headers: str) -> Served:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        found = self._find(path, headers)
        now = self._clock()
        if found is not None and now < found.fresh_until:
            return Served(found.body, "fresh")
        if found is not None and now < found.stale_until:
            self._fetch(path, headers, found)
            return Served(found.body, "stale")
        return Served(self._fetch(path, headers, found), "miss")

    def purge(self, *paths: str) -> None:
        for path in paths:
            self._stored.pop(path, None)

    def _find(self, path: str, headers: dict[str, str]) -> Stored | None:
        for stored in self._stored.get(path, []):
            if all(headers.get(name) == value for name, value in stored.wanted.items()):
                return stored
        return None

    def _fetch(self, path: str, headers: dict[str, str], old: Stored | None) -> str:
        self.fetches += 1
        asked = dict(headers)
        if old is not None and "ETag" in old.headers:
            asked["If-None-Match"] = old.headers["ETag"]
        began = self._clock()
        answer = self._origin.get(path, headers=asked)
        body = old.body if old is not None and answer.status_code == 304 else answer.text
        if old is not None:
            self._stored[path].remove(old)
        self._keep(path, headers, answer, body, began)
        self._settle()
        return body

    def _keep(
        self, path: str, headers: dict[str, str], answer: t.Any, body: str, began: float
    ) -> None:
        names = parse_set_header(answer.headers.get("Vary"))
        if answer.status_code >= 500 or "*" in names:
            return
        value = next(answer.headers[name] for name in self.CONTROLS if name in answer.headers)
        control = parse_dict_header(value)
        if {"no-store", "private"} & set(control):
            return
        fresh = int(control.get("s-maxage") or control.get("max-age") or 0)
        stale = int(control.get("stale-while-revalidate") or 0)
        wanted = {name: headers.get(name) for name in map(str.title, names)}
        fresh_until = began + fresh
        kept = Stored(body, answer.headers, fresh_until, fresh_until + stale, wanted)
        self._stored.setdefault(path, []).append(kept)
