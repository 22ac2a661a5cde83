"""On demand: paths rendered now, tags and patterns invalidated, pages prerendered."""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import functools
import itertools
import logging
import os
import socket
import typing as t
from collections.abc import Callable, Iterable, Iterator, Sequence

from . import signals
from .explain import Lookup, Named, label_of, parse
from .key import PageKey, address_of, canonical_query, page_label
from .metadata import GONE, check_iterable, check_tags
from .outcome import Kind
from .page import Invalidated
from .refusals import remedy_of
from .render import RenderError, rendering
from .signals import fields
from .store.protocol import Number, StoreError

logger = logging.getLogger("wsgi_isr")

#: Pages of one path that a call renders; clients choose hosts, and the others expire.
MAX_VARIANTS = 64
#: Pages that `revalidate` and `prerender` render at a time where nothing says otherwise.
WORKERS = 2
#: Names of a call that the journal has, and characters of each.
MAX_NAMES, MAX_NAME = 50, 200
#: What a call is, by what it names.
_CALLS = {"paths": "revalidate", "tags": "tags", "patterns": "invalidate"}
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


class Hint(str):
    """A URL from a list that is not made for pages, as a sitemap: it may have none."""


class Result(t.NamedTuple):
    """What came of one page.

    :param url: the page's whole URL.
    :param status: what the app answered, ``None`` if it did not.
    :param error: why it was not rendered and stored; ``None`` if it was, or is no page any more.
    :param outcome: ``"rendered"``, ``"withdrawn"``, ``"gone"`` (404, 410), ``"skipped"`` (fresh
        already, rendered by another call, named by a sitemap only and no page, listed though a
        rule excludes it, or the library is off) or ``"failed"``.
    """

    url: str
    status: int | None
    error: Exception | None = None
    outcome: str = "rendered"


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


class OnDemand(Lookup):
    """The operations of one process."""

    # Paths.

    def revalidate(
        self, paths: Sequence[str], only_generated: bool = False, workers: int | None = None
    ) -> list[Result]:
        """
        :raises RevalidationError: if a render failed, after all were tried.
        """
        found = list(self.each(paths, only_generated, workers))
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

    def each(
        self, paths: Iterable[str], only_generated: bool = False, workers: int | None = None
    ) -> Iterator[tuple[str, Result]]:
        """The same page by page, with the path that each was asked for by.

        Nothing is done before the first one is asked for.

        :raises ValueError: at once, for a mistake in any path.
        """
        workers = check_workers(workers)
        requested = [self._requested(path, only_generated) for path in paths]
        found = [each for each in requested if each.pages or not only_generated]
        return self._revalidate(found, workers)

    def _revalidate(self, requested: Sequence[Named], workers: int) -> Iterator[tuple[str, Result]]:
        if not requested:
            logger.info("on demand: no path was named, or none has a page")
            return
        # A page that calls this in its own render is an error below, and stays as it is.
        own, pages = rendering.get(), self._pages
        changed = [each for each in requested if not any(key in own for key in each.pages)]
        labels = [each.label for each in changed]
        rendered = {key for each in requested for key in each.pages}
        try:
            number = pages.invalidate(labels, False) if labels else pages.number()
            # Listed after that, so that nothing stored before it is overlooked.
            others = [
                page_label(listed.page.name)
                for each in requested
                for listed in self._stored(each.path)
                if each.host in (None, listed.page.key.host)
                and listed.page.key not in rendered
                and listed.invalidated is not Invalidated.EXPIRED
            ]
            if others:
                pages.invalidate(others, True)
        except StoreError as error:
            failed = [Result(k.url, None, error, "failed") for r in requested for k in r.pages]
            raise RevalidationError({r.asked: error for r in requested}, failed) from error
        if changed:
            count = sum(len(each.pages) for each in requested) if self._may_render else 0
            paths = [address_of(each.path) for each in changed]
            self._announce(number, False, count, paths=paths)
        if self._may_render:
            jobs = (
                functools.partial(self._demanded, each, key, number)
                for each in requested
                for key in each.pages
            )
            yield from _in_parallel(jobs, workers)

    def _requested(self, path: str, only_generated: bool) -> Named:
        """The pages that a path means: on its host, and whatever variants of it are stored."""
        config, named = self._config, self._named(path)
        pages: list[PageKey] = []
        for key in (listed.page.key for listed in named.stored):
            if named.host in (None, key.host) and config.is_canonical(key):
                declared = config.parameters(config.rule_of(key))
                if key.query == canonical_query(named.query_string, declared):
                    pages.append(key)
        if named.place is not None or not (pages or only_generated):
            own = self._variants(named)
            if not only_generated or self._pages.find(own[0], self._clock()) is not None:
                pages = list(dict.fromkeys(own + pages))
        return named._replace(pages=pages[:MAX_VARIANTS])

    def _variants(self, named: Named) -> list[PageKey]:
        """The page that a path names, and its declared variants.

        :raises ValueError: where no host is known, or a rule excludes it.
        """
        _, key, rule, excluded = self._find(named)
        if excluded:
            raise ValueError(f"{named.asked!r} has no page: a rule of None excludes it")
        found = () if rule is None else itertools.islice(rule.all_variants(), MAX_VARIANTS)
        return list(dict.fromkeys([key, *(key._replace(vary=vary) for vary in found)]))

    def _demanded(self, named: Named, key: PageKey, after: Number) -> tuple[str, Result]:
        # A page of an earlier build is one, too; by now this call has expired it.
        was_page = any(
            listed.page.key._replace(build=key.build) == key
            and listed.invalidated is not Invalidated.EXPIRED
            for listed in named.stored
        )
        result = self._render(key, after, was_page)
        if result.error is None:
            url, status = result.url, result.status
            signals.send(signals.page_revalidated, self._config.middleware, url=url, status=status)
        return named.asked, result

    def _render(
        self, key: PageKey, after: Number | None = None, was_page: bool = False, hint: bool = False
    ) -> Result:
        """A page rendered after an invalidation; or ahead of its visitors, unless it is fresh."""
        reason = "prerender" if after is None else "revalidate"
        try:
            found = self._process.renders.get(key, reason, after)
        except RenderError as error:
            return Result(key.url, None, error, "failed")
        found.discard()
        if found.stored:
            self._process.not_pages.discard(key)
            rule = self._config.rule_of(key)
            if rule is not None and rule.fallback != "blocking":
                # It exists, whatever is evicted later.
                path, pages = key.full_path or "/", self._pages
                pages.guard.write(pages.store.list_path, path)
        status, outcome, why = found.status, "failed", None
        is_refused = found.kind is not Kind.FAILED and found.detail != "store-error"
        if found.stored:
            is_skipped = after is None and found.kind is Kind.FOUND
            outcome = "skipped" if is_skipped else "gone" if status in GONE else "rendered"
        elif is_refused and status in GONE and not found.withdrawn:
            outcome = "gone"
        elif is_refused and (was_page or found.withdrawn):
            outcome = "withdrawn"
        else:
            outcome = "skipped" if is_refused and hint else outcome
            why = found.error or StoreError(f"not stored: {found.detail}")
        return Result(key.url, status, why, outcome)

    # Tags and patterns: never a render.

    def invalidate(self, patterns: Sequence[str], expire: bool, tags: Sequence[str] = ()) -> None:
        """Make pages with a tag, or whose path matches, stale or expired, in one step.

        :raises ValueError: for a mistake in any of them, and then nothing is invalidated.
        """
        labels = self.check((), tags, patterns)
        if not labels:
            logger.info("on demand: nothing was named")
            return
        try:
            number = self._pages.invalidate(labels, expire)
        except StoreError as error:
            raise RevalidationError(dict.fromkeys([*tags, *patterns], error)) from error
        self._announce(number, expire, tags=tags, patterns=patterns)

    def check(
        self, paths: Sequence[str], tags: Sequence[str], patterns: Sequence[str]
    ) -> list[str]:
        """The labels that tags and patterns mean.

        :raises ValueError: for what any of the operations would refuse.
        """
        origins, origin = self._config.origins, self._origin
        for path in paths:
            parse(origins, path, origin)
        labels = [f"tag:{tag}" for tag in check_tags(tags, None)]
        return labels + [label_of(origins, pattern, origin) for pattern in patterns]

    def _announce(
        self, number: Number, expire: bool, pages: int = 0, **named: Sequence[str]
    ) -> None:
        """Let the journal, the log and the signal say what was called."""
        by = _caller.get()
        for kind, names in named.items():
            if not names:
                continue
            self._process.counters.invalidations += 1
            call: dict[str, t.Any] = {
                "at": round(self._clock(), 3),
                "kind": _CALLS[kind],
                "what": [name[:MAX_NAME] for name in names[:MAX_NAMES]],
                "expire": expire,
                "pages": pages,
                "number": number.sequence,
                "by": by,
                "host": socket.gethostname(),
                "pid": os.getpid(),
            }
            self._process.log(call)
            logger.info(
                "on demand: %s %s%s%s",
                f"{kind} {', '.join(names)}"[:1000],
                "expired" if expire else "invalidated",
                f", pages to render: {pages}" if pages else "",
                f", by {by}" if by else "",
                extra=fields("on-demand", **call),
            )
        what = {kind: tuple(named.get(kind, ())) for kind in _CALLS}
        signals.send(signals.invalidated, self._config.middleware, expire=expire, **what)

    # Ahead of the visitors.

    def prerender(
        self, paths: Iterable[str], workers: int | None, is_listed: bool = False
    ) -> Iterator[Result]:
        paths = check_iterable("paths", paths, "/")
        jobs = (job for path in paths for job in self._ahead(path, is_listed))
        return _in_parallel(jobs, check_workers(workers))

    def _ahead(self, path: str, is_listed: bool) -> list[Callable[[], Result]]:
        hint = isinstance(path, Hint)
        try:
            named = self._named(path)
            if is_listed and self._find(named)[-1]:
                return [functools.partial(Result, path, None, None, "skipped")]
            variants = self._variants(named)
        except ValueError as error:
            outcome = "skipped" if hint else "failed"
            return [functools.partial(Result, str(path), None, error, outcome)]
        if self._may_render:
            return [functools.partial(self._render, key, hint=hint) for key in variants]
        return [functools.partial(Result, key.url, None, None, "skipped") for key in variants]

    # What is used least.

    def prune(self, keep_builds: int | None, everything: bool, **bounds: int | None) -> int:
        builds = None
        if keep_builds is not None:
            if keep_builds < 1:
                raise ValueError(f"keep_builds is at least 1, this build, not {keep_builds}")
            builds = [self._config.build_id, *self._pages.earlier_builds()[: keep_builds - 1]]
        if everything:
            # First, so that other processes do not serve what they have in memory.
            self.invalidate(["/**"], True)
        return self._pages.store.prune(keep_builds=builds, everything=everything, **bounds)


def describe(error: Exception) -> str:
    """An error for those who read a line, with its remedy."""
    is_ours = type(error).__module__.startswith("wsgi_isr")
    if not is_ours and not isinstance(error, ValueError | NotImplementedError):
        return f"{type(error).__name__}: {error}"
    remedy = remedy_of(str(error).partition("(")[2].removesuffix(")")) if is_ours else None
    return f"{error}; {remedy}" if remedy else str(error)


def check_workers(workers: int | None) -> int:
    if workers is not None and (type(workers) is not int or workers < 1):
        raise ValueError(f"workers is at least 1, whole, or None for {WORKERS}, not {workers!r}")
    return workers or WORKERS


R = t.TypeVar("R")


def _in_parallel(jobs: Iterable[Callable[[], R]], workers: int) -> Iterator[R]:
    """The results of jobs as they end, several at a time.

    In threads of their own, one job as well: a render in the thread of a caller would take what is
    theirs there, as the request of some frameworks (Bottle) and the connections of Django. A
    window over the jobs: a million of them are not a million futures.
    """
    context = contextvars.copy_context()
    executor = concurrent.futures.ThreadPoolExecutor(workers, "wsgi-isr-on-demand")
    running: set[concurrent.futures.Future[R]] = set()
    try:
        for job in jobs:
            try:
                running.add(executor.submit(context.copy().run, job))
            except RuntimeError:
                # No threads in a sub-interpreter, at shutdown, or beyond the system's limit.
                yield job()
            if len(running) >= 2 * workers:
                done, running = concurrent.futures.wait(
                    running, return_when=concurrent.futures.FIRST_COMPLETED
                )
                yield from (future.result() for future in done)
        yield from (future.result() for future in concurrent.futures.as_completed(running))
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
