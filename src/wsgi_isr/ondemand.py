"""On demand: paths rendered now, tags and patterns invalidated, pages prerendered and listed."""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import itertools
import logging
import os
import socket
import typing as t
from collections.abc import Callable, Iterable, Iterator, Sequence

from . import signals
from .key import Origin, PageKey
from .listing import (
    Explanation,
    PageInfo,
    Visit,
    explain_visit,
    failing,
    journal_of,
    matching,
    overview_of,
)
from .metadata import check_list, check_tags
from .naming import label_of, mounted, parse
from .outcome import Kind, Outcome
from .page import page_label
from .process import Process
from .render import RenderError, current_origin, rendering
from .rules import Rule, has_undeclared
from .signals import fields
from .store.protocol import Number, Record, StoreError

logger = logging.getLogger("wsgi_isr")

#: Pages of one path that a call renders; clients choose hosts, and the others expire.
MAX_VARIANTS = 64
#: Pages that `revalidate` and `prerender` render at a time where nothing says otherwise.
WORKERS = 2
#: Names of a call that the journal has, and characters of each.
MAX_NAMES, MAX_NAME = 50, 200
_caller: contextvars.ContextVar[str | None] = contextvars.ContextVar("wsgi_isr_by", default=None)


@contextlib.contextmanager
def called_by(who: str) -> Iterator[None]:
    """Let the log and the journal say who makes the on-demand calls in this block.

    .. code-block:: python

        with called_by(f"editor {user.id}"):
            isr.revalidate("/blog/1")
    """
    token = _caller.set(who[:MAX_NAME])
    try:
        yield
    finally:
        _caller.reset(token)


class Result(t.NamedTuple):
    """What came of one page.

    :param url: the page's whole URL.
    :param status: what the app answered, ``None`` if it did not.
    :param error: why it was not rendered and stored; ``None`` if it was, or is no page any more.
    :param outcome: ``"rendered"``, ``"withdrawn"``, ``"gone"`` (404, 410), ``"skipped"`` (fresh
        already, or rendered by another call) or ``"failed"``.
    """

    url: str
    status: int | None
    error: Exception | None = None
    outcome: str = "rendered"


class RefusedError(RenderError):
    """The app answered, but not with what may be stored as a page.

    :param detail: why, in the words of ``Cache-Status``.
    """

    def __init__(self, message: str, detail: str) -> None:
        super().__init__(message)
        self.detail = detail


class RevalidationError(Exception):
    """Pages were not rendered, or an invalidation may not hold. The old pages stay, as stale ones.

    :param failures: exception by path (or tag, or pattern).
    :param results: results of all pages, failed ones with their ``error``.
    """

    def __init__(self, failures: dict[str, Exception], results: Sequence[Result] = ()) -> None:
        self.failures = failures
        self.results = list(results)
        what = "; ".join(f"{path}: {error}" for path, error in failures.items())
        super().__init__(f"not revalidated: {what}")


class Requested(t.NamedTuple):
    """A path that was asked for, and the pages that it means.

    :param label: what is invalidated.
    :param place: where it is; ``None`` if only the store knows.
    """

    path: str
    label: str
    full_path: str
    place: Origin | None
    pages: dict[PageKey, Rule | None]


class OnDemand:
    """The operations of one process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._config = process.config
        self._pages = process.pages
        self._clock = process.clock

    # Paths.

    def revalidate(
        self,
        paths: Sequence[str],
        only_generated: bool,
        origin: Origin | None,
        workers: int | None = None,
        render: bool = True,
    ) -> list[Result]:
        found = list(self.each(paths, only_generated, origin, workers, render))
        order = {path: number for number, path in enumerate(paths)}
        found.sort(key=lambda item: (order[item[0]], item[1].url))
        results = [result for _, result in found]
        failures: dict[str, Exception] = {}
        for path, result in found:
            if result.error is not None:
                failures.setdefault(path, result.error)
        if failures:
            raise RevalidationError(failures, results)
        return results

    def check(
        self,
        paths: Sequence[str],
        tags: Sequence[str],
        patterns: Sequence[str],
        origin: Origin | None,
    ) -> None:
        """
        :raises ValueError: for what any of the operations would refuse.
        """
        check_tags(tags, None)
        for pattern in patterns:
            label_of(self._config.origins, pattern, origin)
        for path in paths:
            parse(self._config.origins, path, origin)

    def each(
        self,
        paths: Sequence[str],
        only_generated: bool,
        origin: Origin | None,
        workers: int | None = None,
        render: bool = True,
    ) -> Iterator[tuple[str, Result]]:
        """The same page by page, with the path that each was asked for by.

        :param render: false while the library is switched off: stored pages become stale.
        """
        workers = check_workers(workers)
        # All of them before any render: a mistake in the last path renders nothing.
        parsed = [(path, *parse(self._config.origins, path, origin)) for path in paths]
        requested = [self._requested(*each, only_generated) for each in parsed]
        requested = [each for each in requested if each.pages or not only_generated]
        if not requested:
            logger.info("on demand: no path was named, or none has a page")
            return
        # A page that calls this in its own render is an error below, and stays as it is.
        own = rendering.get()
        changed = [each for each in requested if not any(key in own for key in each.pages)]
        labels = [each.label for each in changed]
        try:
            pages = self._pages
            number = pages.invalidate(labels, False) if labels else pages.number()
            # Listed after that, so that nothing stored before it is overlooked.
            others = [page_label(key.name) for each in requested for key in self._others(each)]
            if others:
                self._pages.invalidate(others, True)
        except StoreError as error:
            failed = [Result(k.url, None, error, "failed") for r in requested for k in r.pages]
            raise RevalidationError({r.path: error for r in requested}, failed) from error
        if changed:
            count = sum(len(each.pages) for each in requested) if render else 0
            self._announce(False, number, count, paths=[each.full_path for each in changed])
        if not render:
            return
        jobs = ((r.path, key, rule, number) for r in requested for key, rule in r.pages.items())
        yield from _in_parallel(self._render, jobs, workers)

    def _render(
        self, path: str, key: PageKey, rule: Rule | None, number: Number
    ) -> tuple[str, Result]:
        try:
            outcome = self._process.renders.get(key, rule, "revalidate", after=number)
            outcome.discard()
        except RenderError as error:
            return path, Result(key.url, None, error, "failed")
        self._exists(key, rule, outcome)
        result = _result(key, outcome, demanded=True)
        if result.error is None:
            signals.send(
                signals.page_revalidated,
                self._config.middleware,
                url=result.url,
                status=result.status,
            )
        return path, result

    def _exists(self, key: PageKey, rule: Rule | None, outcome: Outcome) -> None:
        """Note that a path of ``fallback=False`` exists, whatever is evicted later."""
        if outcome.stored:
            self._process.not_pages.discard(key)
            if rule is not None and rule.fallback != "blocking":
                path, pages = key.full_path or "/", self._pages
                pages.guard.ask("paths", lambda: pages.store.list_path(path), write=True)

    def _requested(
        self,
        path: str,
        place: Origin | None,
        full_path: str,
        query_string: str,
        only_generated: bool,
    ) -> Requested:
        """The pages that a path means: on its host, and whatever variants of it are stored."""
        stored = self._stored(full_path)
        label = f"path:{full_path}"
        if place is not None and "://" in path.partition("?")[0]:
            label = f"host:{place.host}{full_path}"
            stored = [key for key in stored if key.host == place.host]
        stored = [key for key in stored if key.build == self._config.build_id]
        pages: dict[PageKey, Rule | None] = {}
        if place is not None:
            place = mounted(place, full_path, stored)
            local = full_path.removeprefix(place.mount)
            key, rule, excluded = self._config.describe(place, local, query_string)
            if excluded:
                raise ValueError(f"{path!r} has no page: a rule of None excludes it")
            if not only_generated or self._pages.find(key, self._clock()) is not None:
                pages[key] = rule
                if rule is not None:
                    variants = itertools.islice(rule.all_variants(), MAX_VARIANTS)
                    pages |= {key._replace(vary=vary): rule for vary in variants}
        for known in stored:
            if len(pages) >= MAX_VARIANTS:
                break
            if self._config.origins.trust(known.scheme, known.host) is None:
                continue
            here = Origin(known.scheme, known.host, known.mount)
            key, rule, _ = self._config.describe(here, known.path, query_string)
            if known.query == key.query and _is_declared(known, rule):
                pages[known] = rule
        if not pages and place is None and not only_generated:
            raise ValueError(
                f"no host is known for {path!r}: call revalidate() in a request, give a whole "
                "URL, or set base_url"
            )
        return Requested(path, label, full_path, place, pages)

    def _stored(self, full_path: str) -> list[PageKey]:
        """The keys of all stored pages of a path, of whatever build."""
        pages = self._pages
        try:
            found = pages.guard.ask("list", lambda: [p.page.key for p in pages.listed(full_path)])
        except NotImplementedError:
            found = None
        if found is None:
            found = [entry.page.key for entry in pages.memory.of_path(full_path)]
        return sorted(found, key=lambda key: key.url)

    def _others(self, requested: Requested) -> list[PageKey]:
        """What is stored of a path, and is not rendered now."""
        found = (key for key in self._stored(requested.full_path) if key not in requested.pages)
        host = requested.place.host if requested.label.startswith("host:") else None  # type: ignore[union-attr]
        return [key for key in found if host in (None, key.host)]

    # Tags and patterns: never a render.

    def revalidate_tag(self, tags: Sequence[str], expire: bool) -> None:
        tags = check_tags(tags, None)
        self._invalidate([f"tag:{tag}" for tag in tags], tags, expire, tags=tags)

    def invalidate(self, patterns: Sequence[str], expire: bool, origin: Origin | None) -> None:
        labels = [label_of(self._config.origins, pattern, origin) for pattern in patterns]
        self._invalidate(labels, patterns, expire, patterns=patterns)

    def _invalidate(
        self, labels: list[str], names: Sequence[str], expire: bool, **extra: t.Any
    ) -> None:
        if not labels:
            logger.info("on demand: nothing was named")
            return
        try:
            number = self._pages.invalidate(labels, expire)
        except StoreError as error:
            raise RevalidationError(dict.fromkeys(names, error)) from error
        self._announce(expire, number, **extra)

    def _announce(
        self,
        expire: bool,
        number: Number,
        pages: int | None = None,
        paths: Sequence[str] = (),
        tags: Sequence[str] = (),
        patterns: Sequence[str] = (),
    ) -> None:
        self._process.counters.invalidations += 1
        what = {"paths": tuple(paths), "tags": tuple(tags), "patterns": tuple(patterns)}
        kind, names = next(item for item in what.items() if item[1])
        call: dict[str, t.Any] = {
            "at": round(self._clock(), 3),
            "kind": {"paths": "revalidate", "patterns": "invalidate"}.get(kind, kind),
            "what": [name[:MAX_NAME] for name in names[:MAX_NAMES]],
            "expire": expire,
            "pages": pages,
            "number": number.sequence,
            "by": _caller.get(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        self._process.log(call)
        text = f"{kind} {', '.join(names)}"[:1000]
        done = "expired" if expire else "invalidated"
        count = "" if pages is None else f", pages to render: {pages}"
        by = f", by {call['by']}" if call["by"] else ""
        extra = fields("on-demand", **call)
        logger.info("on demand: %s %s%s%s", text, done, count, by, extra=extra)
        signals.send(signals.invalidated, self._config.middleware, expire=expire, **what)

    # Ahead of the visitors.

    def prerender(
        self, paths: Iterable[str], workers: int | None, origin: Origin | None
    ) -> Iterator[Result]:
        check_list("paths", paths, "/")
        jobs = (job for path in paths for job in self._variants(path, origin))
        return _in_parallel(self._prerender, jobs, check_workers(workers))

    def _variants(self, path: str, origin: Origin | None) -> Iterator[tuple[t.Any, ...]]:
        try:
            place, full_path, query_string = parse(self._config.origins, path, origin)
            if place is None:
                raise ValueError(f"no host is known for {path!r}: set base_url")
            if origin is None and not place.mount:
                place = mounted(place, full_path, self._stored(full_path))
            local = full_path.removeprefix(place.mount)
            key, rule, excluded = self._config.describe(place, local, query_string)
            if excluded:
                raise ValueError(f"{path!r} has no page: a rule of None excludes it")
        except ValueError as error:
            yield str(path), None, error
            return
        yield key.url, key, rule
        if rule is not None:
            for vary in itertools.islice(rule.all_variants(), MAX_VARIANTS):
                if vary != key.vary:
                    yield key.url, key._replace(vary=vary), rule

    def _prerender(self, url: str, key: PageKey | None, rule: t.Any) -> Result:
        if key is None:
            return Result(url, None, rule, "failed")
        try:
            outcome = self._process.renders.get(key, rule, "prerender", only_fresh=True)
        except RenderError as error:
            return Result(key.url, None, error, "failed")
        outcome.discard()
        self._exists(key, rule, outcome)
        return _result(key, outcome)

    def matching(
        self, after: str, matches: Callable[[Record], bool], path: str | None = None
    ) -> Iterator[tuple[str, PageInfo | None]]:
        """Stored pages after the one of a name, by name; ``None`` for one that does not match.

        :param path: the full path of all of them; ``None`` for any.
        :raises NotImplementedError: on a store that cannot list.
        """
        return matching(self._process, after, matches, path)

    def failing(self) -> Iterator[PageInfo]:
        """Pages whose last render failed.

        :raises NotImplementedError: on a store that cannot list.
        """
        return failing(self._process)

    def overview(self) -> dict[str, t.Any]:
        """What an operator asks first; see `wsgi_isr.listing.overview_of`."""
        return overview_of(self._process)

    def journal(self) -> list[dict[str, t.Any]]:
        """The last on-demand calls, latest first; see `wsgi_isr.listing.journal_of`."""
        return journal_of(self._process)

    def explain(
        self, url: str, origin: Origin | None, headers: Iterable[tuple[str, str]] = ()
    ) -> Explanation:
        """
        :param headers: of the visitor who asks for it, besides those of a canonical request.
        """
        place, full_path, query_string = parse(self._config.origins, url, origin)
        stored = self._stored(full_path)
        if place is None:
            if not stored:
                raise ValueError(f"no host is known for {url!r}: give a whole URL, or set base_url")
            place = Origin(stored[0].scheme, stored[0].host, stored[0].mount)
        place = mounted(place, full_path, stored)
        local = full_path.removeprefix(place.mount)
        config = self._config
        environ = PageKey(*place, local).to_environ("", config.middleware)
        del environ["wsgi_isr.reason"]
        environ["QUERY_STRING"] = query_string
        environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers}
        key, rule, excluded = config.find(place, environ)
        bypass = None if config.bypass is None else config.bypass(environ)
        considered = config.rules.consider(environ)
        undeclared = has_undeclared(query_string, config.parameters(rule))
        visit = Visit(key, rule, excluded, bypass, considered, undeclared)
        return explain_visit(self._process, visit)


def _is_declared(key: PageKey, rule: Rule | None) -> bool:
    """Whether a stored variant is still one of those that the rule declares."""
    variants = {} if rule is None else dict(rule.variants)
    names = [name for name, _ in key.vary]
    return names == list(variants) and all(value in variants[name] for name, value in key.vary)


def check_workers(workers: int | None) -> int:
    if workers is not None and (type(workers) is not int or workers < 1):
        raise ValueError(f"workers is at least 1, whole, or None for {WORKERS}, not {workers!r}")
    return workers or WORKERS


J = t.TypeVar("J", bound="tuple[t.Any, ...]")
R = t.TypeVar("R")


def _in_parallel(function: Callable[..., R], jobs: Iterable[J], workers: int) -> Iterator[R]:
    """The results of jobs as they end, several at a time.

    In threads of their own: some frameworks (Bottle) keep the request in thread-local variables,
    which a render in the middle of a request would overwrite. A window over the jobs: a million
    of them are not a million futures.
    """
    context = contextvars.copy_context()
    waiting = iter(jobs)
    first = list(itertools.islice(waiting, 2 * workers))
    if len(first) == 1 and current_origin.get() is None:
        yield function(*first[0])
        return
    try:
        executor = concurrent.futures.ThreadPoolExecutor(workers, "wsgi-isr-on-demand")
        running = {executor.submit(context.copy().run, function, *job) for job in first}
    except RuntimeError:
        # No threads in a sub-interpreter, at shutdown, or beyond the system's limit.
        for job in itertools.chain(first, waiting):
            yield function(*job)
        return
    try:
        while running:
            done, running = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                for job in itertools.islice(waiting, 1):
                    running.add(executor.submit(context.copy().run, function, *job))
                yield future.result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _result(key: PageKey, outcome: Outcome, demanded: bool = False) -> Result:
    if outcome.stored and outcome.entry is not None:
        code = outcome.entry.page.code
        gone = code in (404, 410)
        skipped = outcome.kind is Kind.FOUND and not demanded
        return Result(key.url, code, None, "skipped" if skipped else "gone" if gone else "rendered")
    if outcome.withdrawn:
        return Result(key.url, outcome.status, None, "withdrawn")
    if outcome.kind is Kind.NOT_A_PAGE and outcome.status in (404, 410):
        return Result(key.url, outcome.status, None, "gone")
    error = outcome.error or StoreError(f"not stored: {outcome.detail}")
    if outcome.kind is not Kind.FAILED and outcome.detail != "store-error":
        error = RefusedError(str(error), outcome.detail)
    status = outcome.status
    if status is None and outcome.response is not None:
        status = outcome.response.code
    return Result(key.url, status, error, "failed")
