"""On demand: paths rendered now, tags and patterns invalidated, pages prerendered and listed."""

from __future__ import annotations

import concurrent.futures
import contextvars
import itertools
import re
import threading
import typing as t
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes
from urllib.parse import urlsplit

from . import signals
from .attempt import Kind
from .attempt import Outcome
from .key import is_ambiguous
from .key import Origin
from .key import Origins
from .key import PageKey
from .metadata import check_tags
from .process import Process
from .render import current_origin
from .render import RenderError
from .rules import compile_pattern
from .rules import Rule
from .state import seconds_left
from .state import State
from .state import state_of
from .store.coordination import Number
from .store.coordination import StoreError
from .store.memory import Entry

#: Pages of one path that a call renders; clients choose hosts, and the others become stale.
MAX_VARIANTS = 100

_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f]")


class Result(t.NamedTuple):
    """What came of one page.

    :param url: the page's whole URL.
    :param status: status that the app answered with, ``None`` if it did not.
    :param error: why it was not rendered and stored, ``None`` if it was; a `RefusedError` for
        an answer that may not be stored.
    :param rendered: ``False`` for a page that `ISRMiddleware.prerender` found fresh.
    """

    url: str
    status: int | None
    error: Exception | None = None
    rendered: bool = True


class RefusedError(RenderError):
    """The app answered, but not with what may be stored as a page.

    :param detail: why, in the words of ``Cache-Status``.
    """

    def __init__(self, message: str, detail: str) -> None:
        super().__init__(message)
        self.detail = detail


class RevalidationError(Exception):
    """Pages were not rendered, or an invalidation may not hold; the old pages stay, as stale.

    :param failures: exception by path (or tag, or pattern).
    :param results: results of all pages, failed ones with their ``error``.
    """

    def __init__(self, failures: dict[str, Exception], results: Sequence[Result] = ()) -> None:
        self.failures = failures
        self.results = list(results)
        what = "; ".join(f"{path}: {error}" for path, error in failures.items())
        super().__init__(f"not revalidated: {what}")


class PageInfo(t.NamedTuple):
    """A stored page, as `ISRMiddleware.pages` lists it.

    :param state: ``"fresh"``, ``"stale"`` or ``"expired"``.
    :param age: seconds since its render began.
    :param ttl: seconds of freshness left, 0 or negative for a stale page; ``None`` for a page
        that is fresh until it is revalidated.
    :param size: bytes of all its bodies.
    :param sizes: bytes of each, by content coding; the page as it is under ``"identity"``.
    :param last_error: why the last attempts at it failed, ``None`` if they did not.
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


class Target(t.NamedTuple):
    """A path that was asked for, and the pages that it means."""

    path: str
    label: str
    pages: dict[PageKey, Rule | None]


Describe: t.TypeAlias = "Callable[[Origin, str, str], tuple[PageKey, Rule | None]]"


class OnDemand:
    """The operations of one process.

    :param describe: gives the key and the rule of an origin, a path and a query string.
    """

    def __init__(
        self, process: Process, origins: Origins, describe: Describe, clock: Callable[[], float]
    ) -> None:
        self._process = process
        self._store = process.store
        self._origins = origins
        self._describe = describe
        self._clock = clock

    def revalidate(
        self,
        paths: Sequence[str],
        only_generated: bool,
        origin: Origin | None,
        sender: object,
        mark_only: bool = False,
    ) -> list[Result]:
        results = []
        failures: dict[str, Exception] = {}
        for path, result in self.each(paths, only_generated, origin, sender, mark_only):
            results.append(result)
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
        check_tags(tags)
        for pattern in patterns:
            compile_pattern(pattern)
        for path in paths:
            self._target(path, False, origin)

    def each(
        self,
        paths: Sequence[str],
        only_generated: bool,
        origin: Origin | None,
        sender: object,
        mark_only: bool = False,
    ) -> Iterator[tuple[str, Result]]:
        """The same page by page, with the path that each was asked for by."""
        # All of them before any render: a mistake in the last path renders nothing.
        targets = [self._target(path, only_generated, origin) for path in paths]
        targets = [target for target in targets if target.pages]
        if not targets:
            return
        try:
            number = self._store.invalidate([target.label for target in targets], False)
        except StoreError as error:
            failed = [Result(k.url, None, error) for target in targets for k in target.pages]
            raise RevalidationError({target.path: error for target in targets}, failed) from error
        if mark_only:
            return
        for target in targets:
            for key, rule in target.pages.items():
                result = self._render(key, rule, number)
                if result.error is None:
                    signals.send(
                        signals.page_revalidated, sender, url=result.url, status=result.status
                    )
                yield target.path, result

    def _render(self, key: PageKey, rule: Rule | None, number: Number) -> Result:
        known = self._store.newest(key) is not None
        try:
            outcome = _apart(lambda: self._process.regeneration.on_demand(key, rule, number))
        except RenderError as error:
            return Result(key.url, None, error)
        if known and outcome.kind is Kind.NOT_A_PAGE and outcome.detail == "not-a-page":
            if outcome.response is not None and outcome.response.code == 200:
                # It is no page any more, and was dropped: visitors get what the app says now.
                return Result(key.url, 200)
        return _result(key, outcome)

    def _target(self, path: str, only_generated: bool, origin: Origin | None) -> Target:
        place, full_path, query_string = self._parse(path, origin)
        siblings = self._store.siblings(full_path)
        label = f"path:{full_path}"
        if place is not None and path.partition("?")[0].count("://"):
            siblings = [k for k in siblings if (k.scheme, k.host) == (place.scheme, place.host)]
            label = f"host:{place.host}{full_path}"
        pages: dict[PageKey, Rule | None] = {}
        if place is not None:
            key, rule = self._describe(place, full_path.removeprefix(place.mount), query_string)
            if not only_generated or key in siblings or self._is_known(key):
                pages[key] = rule
        for known in siblings[:MAX_VARIANTS]:
            if self._origins.trust(known.scheme, known.host) is None:
                continue
            here = Origin(known.scheme, known.host, known.mount)
            key, rule = self._describe(here, known.path, query_string)
            if known.query == key.query:
                pages[known] = rule
        if not pages and place is None and not only_generated:
            raise ValueError(
                f"no host is known for {path!r}: call revalidate() in a request, give a whole URL, "
                "or set base_url"
            )
        return Target(path, label, pages)

    def _is_known(self, key: PageKey) -> bool:
        return self._store.newest(key) is not None or self._store.borrow(key) is not None

    def _parse(self, path: str, origin: Origin | None) -> tuple[Origin | None, str, str]:
        """Where a path leads: origin if known, decoded path with mount point, query string."""
        if not isinstance(path, str) or not path or _UNPRINTABLE.search(path):
            raise ValueError(f"a path starts with / and is percent-encoded, not {path!r}")
        place = origin
        local = path
        if "://" in path.partition("?")[0]:
            parts = urlsplit(path)
            host = self._origins.trust(parts.scheme, parts.netloc)
            if host is None:
                raise ValueError(f"{path!r} is on a host that has no pages")
            place = Origin(parts.scheme, host, origin.mount if origin is not None else "")
            local = path.split("://", 1)[1][len(parts.netloc) :] or "/"
        elif self._origins.base is not None:
            place = Origin(*self._origins.base, origin.mount if origin is not None else "")
        if not local.startswith("/") or "#" in local:
            raise ValueError(f"a path starts with / and has no fragment: {path!r}")
        local, _, query_string = local.partition("?")
        full_path = unquote_to_bytes(local).decode("latin-1")
        if is_ambiguous(full_path):
            raise ValueError(f"{path!r} has //, dot segments, \\ or control characters")
        if place is not None:
            place = self._mounted(place, full_path, origin is not None, path)
        return place, full_path, query_string

    def _mounted(self, place: Origin, full_path: str, certain: bool, path: str) -> Origin:
        """The origin with the mount point that a path is under."""
        mounts = [place.mount] if certain else sorted(self._process.mounts, key=len, reverse=True)
        for mount in mounts:
            if full_path == mount or full_path.startswith(mount + "/"):
                return place._replace(mount=mount)
        if certain:
            raise ValueError(f"{path!r} is not under the mount point {place.mount!r}")
        return place._replace(mount="")

    # Tags and patterns: marks only, never a render.

    def revalidate_tag(self, tags: Sequence[str], expire: bool) -> None:
        self._mark([f"tag:{tag}" for tag in check_tags(tags)], tags, expire)

    def invalidate(self, patterns: Sequence[str], expire: bool) -> None:
        for pattern in patterns:
            compile_pattern(pattern)
        self._mark([f"pattern:{pattern}" for pattern in patterns], patterns, expire)

    def _mark(self, labels: list[str], names: Sequence[str], expire: bool) -> None:
        if not labels:
            return
        try:
            self._store.invalidate(labels, expire)
        except StoreError as error:
            raise RevalidationError(dict.fromkeys(names, error)) from error

    # Ahead of the visitors.

    def prerender(
        self, paths: Iterable[str], workers: int, origin: Origin | None
    ) -> Iterator[Result]:
        waiting = iter(paths)
        with concurrent.futures.ThreadPoolExecutor(workers, "wsgi-isr-prerender") as executor:
            # A window over the paths: a million of them are not a million futures.
            running = {
                executor.submit(self._prerender, path, origin)
                for path in itertools.islice(waiting, 2 * workers)
            }
            try:
                while running:
                    done, running = concurrent.futures.wait(
                        running, return_when=concurrent.futures.FIRST_COMPLETED
                    )
                    for future in done:
                        running.update(
                            executor.submit(self._prerender, path, origin)
                            for path in itertools.islice(waiting, 1)
                        )
                        yield future.result()
            finally:
                executor.shutdown(wait=False, cancel_futures=True)

    def _prerender(self, path: str, origin: Origin | None) -> Result:
        try:
            place, full_path, query_string = self._parse(path, origin)
            if place is None:
                raise ValueError(f"no host is known for {path!r}: set base_url")
        except ValueError as error:
            return Result(str(path), None, error)
        key, rule = self._describe(place, full_path.removeprefix(place.mount), query_string)
        entry = self._store.lookup(key, self._clock())
        if entry is not None and self._state(entry) is State.FRESH:
            return Result(key.url, entry.page.code, rendered=False)
        outcome = self._process.regeneration.cold(key, rule, "prerender", stale_will_do=False)
        outcome.discard()
        if outcome.stored:
            self._process.not_pages.discard(key)
        return _result(key, outcome)._replace(rendered=outcome.kind is not Kind.FOUND)

    # What there is.

    def pages(self) -> Iterator[PageInfo]:
        for entry in self._store.pages():
            page = entry.page
            now = self._clock()
            failure = self._store.failure(page.name)
            left = seconds_left(page, entry.mark, now)
            yield PageInfo(
                url=page.key.url,
                status=page.code,
                state=self._state(entry).value,
                age=max(0.0, now - page.generated_at),
                ttl=None if page.metadata.revalidate is None else left,
                tags=page.metadata.tags,
                size=page.size,
                codings=page.codings,
                last_error=None if failure is None else failure.error,
                sizes={coding: len(body) for coding, body in page.bodies.items()},
            )

    def _state(self, entry: Entry) -> State:
        return state_of(entry.page, entry.mark, self._clock())


def _apart(render: Callable[[], Outcome]) -> Outcome:
    """Render in a thread of its own where a request is under way in this one.

    Some frameworks (Bottle) keep the request at hand and its response in thread-local variables,
    which a render in the middle of it would overwrite.
    """
    if current_origin.get() is None:
        return render()
    outcome: concurrent.futures.Future[Outcome] = concurrent.futures.Future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            outcome.set_result(context.run(render))
        except BaseException as error:
            outcome.set_exception(error)

    try:
        threading.Thread(target=run, name="wsgi-isr-on-demand", daemon=True).start()
    except RuntimeError:
        # No threads in a sub-interpreter, at shutdown, or beyond the system's limit.
        return render()
    return outcome.result()


def _result(key: PageKey, outcome: Outcome) -> Result:
    if outcome.stored and outcome.entry is not None:
        return Result(key.url, outcome.entry.page.code)
    error = outcome.error or RenderError(f"not stored: {outcome.detail}")
    if outcome.kind is not Kind.FAILED and outcome.detail != "store-error":
        error = RefusedError(str(error), outcome.detail)
    status = outcome.response.code if outcome.response is not None else None
    return Result(key.url, status, error)
