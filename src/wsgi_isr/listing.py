"""What there is: the pages that are stored, totals and gauges, and why a page is as it is."""

from __future__ import annotations

import contextlib
import typing as t
from collections.abc import Iterator
from dataclasses import dataclass

from .freshness import state_of, window_of
from .key import PageKey
from .metrics import totals_of
from .process import Process
from .rules import Rule
from .store.pages import Listed
from .store.protocol import Failure


class PageInfo(t.NamedTuple):
    """A stored page, as `ISRMiddleware.pages` lists it.

    :param state: ``"fresh"``, ``"stale"``, ``"expired"``; or ``"failed"`` for a page that never
        rendered well.
    :param age: seconds since its render began.
    :param ttl: seconds of freshness left, 0 or negative for a stale page; ``None`` for a page
        that is fresh until it is revalidated.
    :param size: bytes of all its bodies.
    :param last_error: why the last attempts at it failed, ``None`` if they did not.
    :param sizes: bytes of each body, by content coding; the page as it is under ``"identity"``.
    :param seconds: how long its render took.
    """

    url: str
    status: int
    state: str
    age: float
    ttl: int | None
    tags: tuple[str, ...]
    size: int
    codings: tuple[str, ...]
    last_error: str | None
    sizes: dict[str, int]
    seconds: float = 0.0


@dataclass(frozen=True)
class Explanation:
    """What would happen to a request for a URL, and why; see `ISRMiddleware.explain`."""

    url: str
    key: dict[str, t.Any]
    rule: str | None
    state: str
    age: float | None = None
    ttl: int | None = None
    tags: tuple[str, ...] = ()
    build: str = ""
    rendered_at: float | None = None
    reason: str | None = None
    seconds: float | None = None
    invalidated_by: str | None = None
    refusal: str | None = None
    error: str | None = None


def pages_of(process: Process) -> Iterator[PageInfo]:
    """All stored pages of the build, then those that never rendered well.

    :raises NotImplementedError: on a store that cannot list.
    """
    pages, build = process.pages, process.config.build_id
    failures: dict[str, Failure] = {}
    with contextlib.suppress(NotImplementedError):
        failures = dict(pages.store.failures())
    for listed in pages.listed():
        failure = failures.pop(listed.page.name, None)
        yield _info(listed, process.clock(), None if failure is None else failure.error)
    for failure in failures.values():
        if failure.build == build and failure.url:
            yield PageInfo(failure.url, 0, "failed", 0.0, 0, (), 0, (), failure.error, {})


def _info(listed: Listed, now: float, error: str | None) -> PageInfo:
    page, sizes, invalidated = listed
    window = window_of(page, invalidated, now)
    left = 0 if window is None else window[1]
    if window is None and page.metadata.revalidate is not None:
        left = min(0, int(page.metadata.revalidate - (now - page.generated_at)))
    lengths = dict(sizes)
    return PageInfo(
        url=page.key.url,
        status=page.code,
        state=state_of(page, invalidated, now).value,
        age=max(0.0, now - page.generated_at),
        ttl=None if page.metadata.revalidate is None else left,
        tags=page.metadata.tags,
        size=sum(lengths.values()),
        codings=tuple(coding for coding in lengths if coding != "identity"),
        last_error=error,
        sizes=lengths,
        seconds=page.seconds,
    )


def stats_of(process: Process) -> dict[str, t.Any]:
    """Totals of all processes, and gauges."""
    pages, memory = process.pages, process.pages.memory
    process.upkeep()
    sums = pages.guard.ask("totals", pages.store.totals) or process.counters.as_dict()
    processes = pages.guard.ask("processes", pages.store.processes) or []
    mine = process.report()
    if mine is not None and not any(p.get("pid") == mine["pid"] for p in processes):
        processes = [*processes, mine]
    sizes = pages.guard.ask("sizes", pages.store.sizes)
    stored = None if sizes is None else sizes.pages
    return {
        **totals_of(sums),
        "pages": len(memory) if stored is None else stored,
        "bytes": memory.size if sizes is None or sizes.bytes is None else sizes.bytes,
        "memory_bytes": sum(int(p.get("memory_bytes", 0)) for p in processes) or memory.size,
        "rendering": sum(len(p.get("rendering", ())) for p in processes),
        "waiting": sum(int(p.get("waiting", 0)) for p in processes),
        "processes": len(processes),
    }


def explain_key(process: Process, key: PageKey, rule: Rule | None, excluded: bool) -> Explanation:
    """What would happen to a request for a page, and why."""
    pages = process.pages
    failure = pages.guard.ask("failure", lambda: pages.store.failure(key.name))
    entry = None if excluded else pages.find(key, process.clock())
    about: dict[str, t.Any] = {
        "url": key.url,
        "key": key._asdict(),
        "rule": "None" if excluded else None if rule is None else repr(rule),
        "state": "excluded" if excluded else "failed" if failure is not None else "unknown",
        "build": key.build,
        "refusal": process.not_pages.get(key) or None,
        "error": None if failure is None else failure.error,
    }
    if entry is not None:
        page = entry.page
        info = _info(Listed(page, (), entry.invalidated), process.clock(), None)
        about |= {
            "state": info.state,
            "age": info.age,
            "ttl": info.ttl,
            "tags": info.tags,
            "rendered_at": page.generated_at,
            "reason": page.reason,
            "seconds": page.seconds,
            "invalidated_by": entry.invalidated.name.lower() if entry.invalidated else None,
        }
    return Explanation(**about)
