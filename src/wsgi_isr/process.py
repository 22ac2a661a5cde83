"""What belongs to one process: its store, its threads, its counters.

Nothing is opened or started before the first request, and all of it is made anew in a forked
child: locks, threads and connections of the parent are of no use there.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import logging
import os
import socket
import threading
import time
import typing as t
import weakref
import zlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from . import signals
from .answer import Answer
from .config import Config
from .key import PageKey
from .metrics import PERIODS, SERVED, Counters, beginning
from .outcome import Failures
from .page import Codec, parse_key
from .passing import is_crawler
from .renders import Renders
from .rules import Rule
from .store.memory import Fingerprint, is_long
from .store.opening import Opener
from .store.pages import Pages
from .store.protocol import MAX_JOURNAL, Wanted
from .threads import Background, start

logger = logging.getLogger("wsgi_isr")

#: Seconds after which a process asks its store for changes that no counter has shown.
POLL = 0.5
#: Seconds between two reports of a process, and the longest before its counts reach the store.
REPORT = 2.0
#: Seconds: a smaller difference between two clocks may come from the way to the server.
MIN_OFFSET = 0.1
DAY = 86_400
#: URLs remembered as no pages.
MAX_NOT_PAGES = 10_000
#: Seconds for which a page that was handed over is this process's to render; said again meanwhile.
CLAIM = 8.0
#: Longest wait for such a page, or for a thread: for so long nobody asks whether to stop.
WAIT = 0.25
#: Seconds for renders that have begun when it is to stop.
FINISHING = 10.0


class Process:
    """Everything of a middleware that belongs to one process.

    :param before: of the parent, after a fork; or the one before, after `close`.
    """

    def __init__(self, config: Config, open_store: Opener, before: Process | None) -> None:
        self.pid = os.getpid()
        self.config = config
        self._codec = codec = Codec(config.signing_key)
        self.counters = Counters()
        self.began = time.time()
        #: What the clock of the store is ahead of this process's.
        self.offset = 0.0
        store = open_store(None if before is None else before.pages.store)
        memory, build, earlier = config.memory_size, config.build_id, config.previous_builds
        pages = Pages(store, memory, codec, build, self._store_failed, earlier)
        self.pages: Pages = pages
        self.background = Background(
            config.workers or 1, config.render_timeout, config.executor, config.made_in
        )
        self.not_pages = NotPages(config, pages)
        self.failures = Failures(config, pages, self.counters, self.clock)
        self.renders = Renders(
            config, pages, codec, self.failures, self.background, self.clock, self.not_pages.add
        )
        self._renewing = threading.Lock()
        self._adding = threading.Lock()
        #: What was added to the totals.
        self._added: dict[str, float] = {}
        #: On-demand calls that the journal does not have yet.
        self._calls: deque[Mapping[str, t.Any]] = deque(maxlen=MAX_JOURNAL)
        #: Long ago: the first report comes soon, since a command line asks which processes serve.
        self._upkept_at = 0.0
        self._day = -1
        self.is_closed = False
        pages.follow()
        if pages.guard.is_well:
            self._set_clock()
        if before is not None and store.kind.shared == "process":
            # Only memory has these pages.
            pages.memory.take_over(before.pages.memory)
        # Weak, because a middleware may go without `close`.
        me = weakref.ref(self)
        name = "wsgi-isr-upkeep"
        self._has_thread = start(threading.Thread(target=_work, args=[me], name=name, daemon=True))
        atexit.register(_at_exit, me)
        if config.workers == 0 and not store.kind.wants:
            logger.warning(
                "workers=0 leaves renders to other processes, but this store cannot hand pages "
                "over to them, so they are rendered here: use a file:// URL or Redis"
            )

    @property
    def is_open(self) -> bool:
        """Whether this process may use it: it was neither closed nor made before a fork."""
        return self.pid == os.getpid() and not self.is_closed

    def clock(self) -> float:
        """Seconds since 1970 by the clock that all who share the store agree on."""
        return self.config.clock() + self.offset

    def _set_clock(self) -> None:
        with contextlib.suppress(Exception):
            if self.pages.store.kind.shared == "network":
                offset = self.pages.store.time() - time.time()
                self.offset = offset if abs(offset) > MIN_OFFSET else 0.0

    def _store_failed(self, operation: str, error: Exception) -> None:
        self.counters.store_errors += 1
        signals.send(signals.store_failed, self.config.middleware, operation=operation, error=error)

    def fallback(self, environ: dict[str, t.Any], key: PageKey, rule: Rule) -> t.Any:
        """What answers in place of a page: an app, ``False`` (404); ``None``: a visitor waits."""
        if rule.fallback is False:
            if self.config.rules.lists(environ):
                return None
            # Where nobody can say what exists, the app is asked.
            path = key.full_path or "/"
            exists = self.pages.guard.read(self.pages.store.has_path, path) is not False
            return None if exists else False
        # A visitor who gets a shell again and again never learns that the render fails.
        waits = rule.fallback == "blocking" or is_crawler(environ) or self.failures.find(key.name)
        return None if waits else rule.fallback

    # What a visitor's thread does once a second for a page.

    def renew(self, hit: Answer, now: float) -> bool:
        """Let a ready answer hold for another second, if its page may still be served."""
        entry = hit.entry
        self.poll()
        if entry is None:
            return False
        entry.referenced = True
        self.pages.memory.confirm(entry)
        self.pages.used(entry, now)
        return self.make_anew(hit, now)

    def make_anew(self, hit: Answer, now: float) -> bool:
        """The same without following."""
        # Two threads at once could mix their fields, and one may not know yet what has happened.
        with self._renewing:
            return hit.renew(now, self.offset)

    def poll(self) -> None:
        """Follow what others do, if there is something to follow or some time has passed."""
        now = time.monotonic()
        if self.pages.memory.generation != self.pages.signal[0] or (
            not self._has_thread and now - self.pages.followed_at > POLL
        ):
            self.pages.follow()
        if not self._has_thread and now - self._upkept_at > REPORT:
            self.upkeep()

    # What its thread does.

    def work(self) -> None:
        """Wait a moment, or for what others do, and let the store have what is new here."""
        pages = self.pages
        try:
            # On one machine the signal shows what is new; whether it is still that of the
            # neighbours, only following does.
            if pages.is_local:
                time.sleep(POLL)
                if self.is_closed:
                    return
                pages.follow()
            elif pages.store.listen(POLL) or time.monotonic() - pages.followed_at >= POLL:
                pages.follow()
        except Exception as error:
            pages.guard.failed("listen", error)
            time.sleep(POLL)
        pages.guard.probe()
        self.write_journal()
        if time.monotonic() - self._upkept_at >= REPORT:
            self.upkeep()

    def upkeep(self) -> None:
        """Let the store have what this process counted, and say what it has now."""
        self._upkept_at = time.monotonic()
        self.pages.tell()
        self.write_journal()
        if not self.pages.guard.is_well:
            return
        # Not through the guard: nothing else depends on these.
        with contextlib.suppress(Exception):
            self._add()
            self._set_clock()
            self.pages.catch_up()
            report = self.report()
            if report is not None:
                self.pages.store.report(report)
                self.pages.earlier_builds()

    def _add(self) -> None:
        """Add to the totals what was counted since; after an error that is counted later."""
        # Under a lock, so that all of it is there when this returns, whichever thread took it.
        with self._adding:
            now = self.counters.as_dict()
            new = {name: count - self._added.get(name, 0) for name, count in now.items()}
            if new := {name: count for name, count in new.items() if count}:
                self._begin_periods()
                self.pages.store.add(new)
                self._added = now

    def _begin_periods(self) -> None:
        """Let the store remember the totals with which the store, a day or a build begins."""
        day = int(self.clock() // DAY)
        if day == self._day:
            return
        store, sums = self.pages.store, self.pages.store.totals()
        build = zlib.crc32(self.config.build_id.encode())
        for period, identity in zip(PERIODS, (1, day, build), strict=True):
            # While two builds take turns, the newer one has begun last.
            is_new = sums.get(f"{period}:id") != identity
            if is_new and store.once(f"began:{period}:{identity}", DAY / 2):
                store.add(beginning(period, identity, self.clock(), sums))
        self._day = day

    def log(self, call: Mapping[str, t.Any]) -> None:
        """Have the journal get an on-demand call soon: its caller does not wait for that."""
        self._calls.append(call)
        if not self._has_thread:
            self.write_journal()

    def write_journal(self) -> None:
        """Let the journal have the calls that it does not have yet."""
        with self._adding:
            calls = [self._calls.popleft() for _ in range(len(self._calls))]
            if entries := [json.dumps(call).encode() for call in calls]:
                self.pages.guard.write(self.pages.store.log, *entries)

    def report(self) -> dict[str, t.Any] | None:
        """What this process has now; ``None`` for one that neither serves nor renders."""
        counted = self.counters.as_dict()
        served = any(counted[name] for name in (*SERVED, "renders", "passed", "bypassed"))
        running, waiting = self.renders.running, len(self.renders.waiting)
        if not (served or waiting or running):
            return None
        return {
            "pid": self.pid,
            "host": socket.gethostname(),
            "build": self.config.build_id,
            "began": round(self.began, 3),
            "memory_bytes": self.pages.memory.size,
            "memory_pages": len(self.pages.memory),
            "rendering": [key.url for key in running[:20]],
            "waiting": waiting,
            "store": self.pages.guard.state,
            "since": round(self.pages.guard.since, 3),
            # The last invalidation that it has taken in: who have the same serve the same.
            "followed": self.pages.memory.at.sequence,
            **{name: int(counted[name]) for name in (*SERVED, "renders", "failures")},
        }

    # The end.

    def close(self, timeout: float) -> None:
        """Wait for running regenerations, and give back all that this process holds."""
        self.background.close(timeout)
        self.upkeep()
        self.is_closed = True
        self.pages.store.close()

    # Renders that cost no visitor of a web worker the processor.

    def regenerate(self, stop: threading.Event, workers: int) -> None:
        """Render the pages that web workers hand over, until ``stop`` is set.

        :raises NotImplementedError: on a store that cannot hand pages over.
        """
        pages, build = self.pages, self.config.build_id
        store, guard = pages.store, pages.guard
        if not store.kind.wants:
            raise NotImplementedError("this store cannot hand pages over: use file:// or Redis")
        background = Background(workers, self.config.render_timeout)
        while not stop.is_set():
            self.poll()
            if not background.has_room(WAIT):
                continue
            wanted = guard.write(store.take, build, CLAIM)
            if wanted is not None:
                background.submit(functools.partial(self._render, wanted))
            elif not (pages.is_local and guard.is_well) or not guard.read(store.listen, WAIT):
                stop.wait(WAIT / 5)
        background.wait(FINISHING)

    def _render(self, wanted: Wanted) -> None:
        try:
            payload = self._codec.unseal(wanted.data)
            key = None if payload is None else parse_key(json.loads(payload))
            # Anybody who can write to the store can ask for anything.
            if key is not None and self.config.is_canonical(key):
                self.renders.get(key, "stale").discard()
        except (ValueError, TypeError, RecursionError):
            pass
        finally:
            done, build = self.pages.store.done, self.config.build_id
            self.pages.guard.write(done, build, wanted.name)


def _work(reference: weakref.ref[Process]) -> None:
    while (process := reference()) is not None and not process.is_closed:
        process.work()
        # It may be the last reference.
        del process
    if process is not None:
        # It may have connected once more.
        process.pages.store.close()


def _at_exit(reference: weakref.ref[Process]) -> None:
    process = reference()
    if process is not None and process.is_open:
        process.close(0)


@dataclass(eq=False)
class NotPages:
    """URLs whose answers are no pages, for a minute or until something is invalidated."""

    _config: Config
    _pages: Pages
    _urls: dict[PageKey, Answer] = field(default_factory=dict)
    #: The fingerprints in the hit table that are for these URLs.
    _fingerprints: set[Fingerprint] = field(default_factory=set)

    def get(self, key: PageKey) -> str | None:
        """Why a URL is no page; ``""`` where its answer has no metadata."""
        found = self._urls.get(key)
        if found is None:
            return None
        is_recent = found.since <= self._config.clock() < found.until
        if not is_recent or found.generation != self._pages.signal[0]:
            self.discard(key)
            return None
        return found.detail

    def add(self, key: PageKey, detail: str, fingerprint: Fingerprint | None = None) -> None:
        """Remember a URL.

        :param fingerprint: of requests that pass without being parsed from now on, unless there is
            more to say than that its answer has no metadata.
        """
        by_url, hits = self._config.rules.by_url, self._pages.memory.hits
        # A new object each time, so that no fingerprint holds longer, or for another reason.
        self.discard(key)
        if len(self._urls) >= MAX_NOT_PAGES:
            self._urls.clear()
        now, generation = self._config.clock(), self._pages.signal[0]
        self._urls[key] = answer = Answer.of_no_page(key, detail, now, generation)
        if detail or not by_url or fingerprint is None or is_long(fingerprint):
            return
        if len(self._fingerprints) >= MAX_NOT_PAGES:
            with contextlib.suppress(KeyError):
                # Another thread may be doing the same.
                while self._fingerprints:
                    hits.pop(self._fingerprints.pop(), None)
        self._fingerprints.add(fingerprint)
        hits[fingerprint] = answer

    def discard(self, key: PageKey) -> None:
        """Forget a URL that has become a page."""
        found = self._urls.pop(key, None)
        if found is not None:
            found.until = 0.0
