"""What there is: the pages that are stored, totals and gauges, and why a page is as it is."""

from __future__ import annotations

import contextlib
import json
import math
import typing as t
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .attempt import refusal_name
from .key import PageKey
from .metadata import REDIRECTS
from .metrics import periods_of, totals_of
from .page import Invalidated, Page, Render, state_of, window_of
from .process import Process
from .refusals import remedy_of
from .rules import Rule, compile_pattern
from .store.memory import Entry
from .store.pages import Listed
from .store.protocol import Failure, Record


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
    :param failures: attempts that failed since then.
    :param renders: its last renders that ended well, the latest first.
    :param used_at: seconds since 1970 at which it was served last, within a minute or so; 0 where
        nobody can say.
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
    failures: int = 0
    renders: tuple[Render, ...] = ()
    used_at: float = 0.0

    def render_seconds(self, share: float) -> float:
        """Seconds within which such a share of its last renders ended; 0 where there are none."""
        return percentile([render.seconds for render in self.renders], share)


def percentile(values: Sequence[float], share: float) -> float:
    """The least of some values that so many of them, 0 to 1, do not exceed; 0 of none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else 0.0


@dataclass(frozen=True)
class Explanation:
    """What would happen to a request for a URL, and why; see `ISRMiddleware.explain`.

    :param rule: the rule that counts; ``"None"`` for one that excludes the URL.
    :param state: as in `PageInfo`; ``"excluded"``; or ``"unknown"`` where nothing is remembered.
    :param invalidated_by: the label that made it stale or expired, as ``"tag:post:1"``.
    :param refusal: why its app's answer was refused last, since the page was rendered.
    :param error: why its last renders failed.
    :param answer: what a visitor gets, with its ``Cache-Status``.
    :param rules: what was considered to find the rule, and what came of it.
    :param variants: what else is stored of its path: other hosts, queries, variants, builds.
    :param remedy: what to do about the refusal.
    :param invalidation: the call that invalidated it, from the journal: when, what, by whom.
    """

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
    answer: str = ""
    rules: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    status: int | None = None
    renders: tuple[Render, ...] = ()
    remedy: str | None = None
    failures: int = 0
    invalidation: dict[str, t.Any] | None = None


def pages_of(process: Process) -> Iterator[PageInfo]:
    """All stored pages of the build, then those that never rendered well.

    :raises NotImplementedError: on a store that cannot list.
    """
    failures: dict[str, Failure] = {}
    with contextlib.suppress(NotImplementedError):
        failures = _failures(process)
    for listed in process.pages.listed():
        yield _info(listed, process.clock(), failures.pop(listed.page.name, None))
    yield from filter(None, map(failed, failures.values()))


def failed(failure: Failure) -> PageInfo | None:
    """A page that never rendered well; ``None`` for one that was refused, or has no URL."""
    if not failure.times or not failure.url:
        return None
    error, times = failure.error, failure.times
    return PageInfo(failure.url, 0, "failed", 0.0, 0, (), 0, (), error, {}, failures=times)


def matching(
    process: Process, after: str, matches: Callable[[Record], bool], path: str | None
) -> Iterator[tuple[str, PageInfo | None]]:
    """Stored pages after the one of a name, by name; ``None`` for one that does not match.

    In the end, if it began with the first page of any path, those that never rendered well.
    """
    process.pages.catch_up()
    failures = _failures(process)
    for name, listed in process.pages.matching(after, matches, path):
        failure = failures.pop(name, None)
        yield name, listed and _info(listed, process.clock(), failure)
    if not after and path is None:
        yield from (("", failed(failure)) for failure in failures.values())


def failing(process: Process) -> Iterator[PageInfo]:
    """Pages whose last render failed, as if they had never rendered well."""
    yield from filter(None, map(failed, _failures(process).values()))


def _failures(process: Process) -> dict[str, Failure]:
    pages, build = process.pages, process.config.build_id
    found = pages.guard.ask("failures", lambda: list(pages.store.failures()))
    return {name: failure for name, failure in found or () if failure.build == build}


def _info(listed: Listed, now: float, failure: Failure | None) -> PageInfo:
    page, sizes, invalidated, used_at = listed
    if failure is not None and failure.retry_at < page.generated_at:
        # Another process has rendered it since.
        failure = None
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
        last_error=None if failure is None else failure.error,
        sizes=lengths,
        seconds=page.seconds,
        failures=0 if failure is None else failure.times,
        renders=page.renders,
        used_at=used_at,
    )


def stats_of(process: Process) -> dict[str, t.Any]:
    """Totals of all processes, and gauges."""
    found: dict[str, t.Any] = overview_of(process)["stats"]
    return found


def overview_of(process: Process) -> dict[str, t.Any]:
    """What an operator asks first.

    ``stats``, as `stats_of` gives them; ``periods``, the hits and misses since the store began,
    today (UTC) and since the build began; ``minutes``, the totals as each minute of the last hour
    began; ``workers``, what each process has now; ``store``, its kind, its state and since when
    that is so for all of them, and its bounds. Where it does not answer (``has_totals`` is false),
    totals are those of this process, and there are no ``periods``.
    """
    pages, memory = process.pages, process.pages.memory
    process.upkeep()
    sums = pages.guard.ask("totals", pages.store.totals)
    processes = pages.guard.ask("processes", pages.store.processes) or []
    mine = process.report()
    if mine is not None and not any(p.get("pid") == mine["pid"] for p in processes):
        processes = [*processes, mine]
    sizes = pages.guard.ask("sizes", pages.store.sizes)
    stored = None if sizes is None else sizes.pages
    stats = {
        **totals_of(process.counters.as_dict() if sums is None else sums),
        "pages": len(memory) if stored is None else stored,
        "bytes": memory.size if sizes is None or sizes.bytes is None else sizes.bytes,
        "memory_bytes": sum(int(p.get("memory_bytes", 0)) for p in processes) or memory.size,
        "rendering": sum(len(p.get("rendering", ())) for p in processes),
        "waiting": sum(int(p.get("waiting", 0)) for p in processes),
        "processes": len(processes),
    }
    # What this process has seen, or the last that any has; else all is as it was when they began.
    state = pages.guard.state
    alike = (float(p.get("since", 0)) for p in processes if p.get("store") == state)
    since = pages.guard.since or max(alike, default=0.0)
    began = min((float(p.get("began", 0)) for p in processes), default=process.began)
    store = {
        "kind": pages.store.kind.name,
        "state": state,
        "since": since or began,
        "has_totals": sums is not None,
        "max_pages": None if sizes is None else sizes.max_pages,
        "max_bytes": None if sizes is None else sizes.max_bytes,
    }
    return {
        "stats": stats,
        "periods": periods_of(sums or {}),
        "minutes": pages.guard.ask("minutes", pages.store.minutes) or {},
        "workers": processes,
        "store": store,
    }


def journal_of(process: Process) -> list[dict[str, t.Any]]:
    """The last on-demand calls, latest first.

    Each has ``at``, ``kind`` (``revalidate``, ``tags`` or ``invalidate``), ``what`` (a list),
    ``expire``, ``pages`` (how many were to be rendered, ``None`` for tags and patterns), ``number``
    (its place in the order of events), ``by``, ``host`` and ``pid``.
    """
    process.write_journal()
    pages, found = process.pages, []
    for data in pages.guard.ask("journal", pages.store.journal) or []:
        with contextlib.suppress(ValueError):
            if isinstance(entry := json.loads(data), dict):
                found.append(entry)
    return found


# Why a page is as it is.


class Visit(t.NamedTuple):
    """A request that `ISRMiddleware.explain` is asked about.

    :param bypass: why it gets no page, whatever is stored.
    :param rules: what was considered to find the rule.
    :param undeclared: whether it has query parameters that are not declared.
    """

    key: PageKey
    rule: Rule | None
    excluded: bool
    bypass: str | None
    rules: Sequence[str]
    undeclared: bool


def explain_visit(process: Process, visit: Visit) -> Explanation:
    """What would happen to a request for a page, and why."""
    key, rule, pages = visit.key, visit.rule, process.pages
    entry = None if visit.excluded else pages.find(key, process.clock())
    failure = pages.guard.ask("failure", lambda: pages.store.failure(key.name))
    refused = pages.guard.ask("failure", lambda: pages.store.failure(refusal_name(key.name)))
    if entry is not None and refused is not None and refused.retry_at < entry.page.generated_at:
        refused = None
    refusal = process.not_pages.get(key) if refused is None else refused.error
    about: dict[str, t.Any] = {
        "url": key.url,
        "key": key._asdict(),
        "rule": "None" if visit.excluded else None if rule is None else repr(rule),
        "state": "excluded" if visit.excluded else "unknown" if failure is None else "failed",
        "build": key.build,
        "refusal": refusal or None,
        "remedy": remedy_of(refusal or ""),
        "error": None if failure is None else failure.error,
        "failures": 0 if failure is None else failure.times,
        "rules": tuple(visit.rules),
        "variants": tuple(_others(process, key)),
    }
    if entry is not None:
        page = entry.page
        info = _info(Listed(page, (), entry.invalidated), process.clock(), failure)
        about |= {
            "state": info.state,
            "age": info.age,
            "ttl": info.ttl,
            "tags": info.tags,
            "status": page.code,
            "rendered_at": page.generated_at,
            "reason": page.reason,
            "seconds": page.seconds,
            "renders": page.renders,
            "error": info.last_error,
            "failures": info.failures,
        }
        if entry.invalidated:
            about |= _invalidation(process, entry)
    return Explanation(**about, answer=_answer(process, visit, about))


def _others(process: Process, key: PageKey) -> Iterator[str]:
    with contextlib.suppress(NotImplementedError):
        path = key.full_path or "/"
        found = process.pages.guard.ask("list", lambda: list(process.pages.listed(path)))
        for page, _, invalidated, _ in found or ():
            if page.key != key:
                words = [f"{name}: {value}" for name, value in page.key.vary]
                words += [f"build {page.key.build!r}"] if page.key.build != key.build else []
                state = state_of(page, invalidated, process.clock()).value
                yield ", ".join((f"{page.key.url} {state}", *words))


def _invalidation(process: Process, entry: Entry) -> dict[str, t.Any]:
    """What has made a page stale or expired, and the call that did so."""
    pages, page = process.pages, entry.page
    changes = pages.guard.ask("changes", lambda: pages.store.changes(entry.number))
    expired = entry.invalidated is Invalidated.EXPIRED
    made = [] if changes is None or not changes.complete else changes.invalidations
    about = [i for i in made if i.expire >= expired and _is_about(i.label, page)]
    if not about:
        return {"invalidated_by": "one that the store no longer lists"}
    last = max(about, key=lambda invalidation: invalidation.sequence)
    calls = (call for call in journal_of(process) if call.get("number") == last.sequence)
    return {"invalidated_by": last.label, "invalidation": next(calls, None)}


def _is_about(label: str, page: Page) -> bool:
    kind, _, name = label.partition(":")
    if kind == "pattern":
        return compile_pattern(name).fullmatch(page.key.full_path or "/") is not None
    return label in page.labels


def _answer(process: Process, visit: Visit, about: t.Mapping[str, t.Any]) -> str:
    """What a visitor gets."""
    rule, state, ttl = visit.rule, about["state"], about["ttl"] if "ttl" in about else 0
    if visit.bypass is not None:
        return f"the app's own answer (isr; fwd=bypass; detail={visit.bypass})"
    if visit.excluded:
        return "the app's own answer: a rule of None excludes this URL"
    is_redirect = state in ("fresh", "stale") and about["status"] in REDIRECTS
    if visit.undeclared and (is_redirect or rule is not None and rule.undeclared == "pass"):
        return "the app's own answer (isr; fwd=uri-miss; detail=query)"
    if state == "fresh":
        return f"the stored page (isr; hit{'' if ttl is None else f'; ttl={ttl}'})"
    if state == "stale":
        return f"the stored page, which is rendered anew afterwards (isr; hit; ttl={ttl or 0})"
    if state == "expired":
        return "a new page, which they wait for (isr; fwd=stale; stored)"
    if detail := (about["refusal"] or "").partition(":")[0]:
        return f"the app's own answer (isr; fwd=uri-miss; detail={detail})"
    if rule is None:
        return "the app's own answer, a page if it has ISR-Revalidate (isr; fwd=uri-miss; stored)"
    if rule.fallback != "blocking":
        return "what the rule's fallback says: a shell, or 404 for a path that is not listed"
    return "a new page, which they wait for (isr; fwd=uri-miss; stored)"
