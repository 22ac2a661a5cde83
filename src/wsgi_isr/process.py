"""What belongs to one process: its store, its threads, its counters.

Nothing is opened or started before the first request, and all of it is made anew in a forked
child: locks, threads and connections of the parent are of no use there.
"""

from __future__ import annotations

import atexit
import contextlib
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
from collections.abc import Callable, Mapping

from . import signals
from .answer import Answer
from .attempt import Attempts
from .config import Config
from .key import PageKey
from .metrics import PERIODS, SERVED, Counters, beginning
from .page import Codec
from .render import Renderer
from .renders import Renders
from .rules import Rule
from .store.memory import Fingerprint, is_long
from .store.opening import Opener
from .store.pages import Pages
from .store.protocol import MAX_JOURNAL, Changes
from .threads import Background, ExecutorLike, start

logger = logging.getLogger("wsgi_isr")

#: Seconds after which a process asks its store for changes that no counter has shown.
POLL = 0.5
#: Seconds between two reports of a process, and the longest before its counts reach the store.
REPORT = 2.0
#: Seconds from an on-demand call until the journal gets it, and what is called meanwhile.
SETTLING = 0.02
#: Seconds: a smaller difference between two clocks may come from the way to the server.
MIN_OFFSET = 0.1
DAY = 86_400
#: URLs remembered as no pages.
MAX_NOT_PAGES = 10_000


class Process:
    """Everything of a middleware that belongs to one process.

    :param before: of the parent, after a fork; or the one before, after `close`.
    """

    def __init__(
        self,
        config: Config,
        open_store: Opener,
        codec: Codec,
        open_executor: Callable[[], ExecutorLike | None],
        before: Process | None,
    ) -> None:
        self.pid = os.getpid()
        self.config = config
        self.unseal = codec.unseal
        self.counters = Counters()
        self.began = time.time()
        self._offset = 0.0
        store = open_store(None if before is None else before.pages.store)
        self.pages: Pages = Pages(
            store,
            config.memory_size,
            codec,
            config.build_id,
            self._store_failed,
            self._changed,
            config.previous_builds,
        )
        self.background = Background(config.workers or 1, config.render_timeout, open_executor())
        render = Renderer(
            config.app, config.middleware, config.max_body_size, config.render_timeout
        )
        self.attempts = Attempts(
            config, render, self.pages, self.counters, self.background.submit, self.clock
        )
        self.renders = Renders(
            config,
            self.pages,
            self.attempts,
            self.background,
            self.clock,
            codec.seal,
            codec.unseal,
            self.add_no_page,
        )
        self.not_pages = NotPages(self.pages, self.local_clock)
        self._renewing = threading.Lock()
        self._adding = threading.Lock()
        #: On-demand calls that the journal does not have yet.
        self._calls: deque[Mapping[str, t.Any]] = deque(maxlen=MAX_JOURNAL)
        self.wake = threading.Event()
        self._upkept_at = time.monotonic()
        self._day = -1
        self.is_closed = False
        self.pages.follow()
        if self.pages.guard.is_well:
            self._set_clock()
        if before is not None and store.kind.shared == "process":
            # Only memory has these pages.
            self.pages.memory.take_over(before.pages.memory)
        thread = threading.Thread(
            target=_upkeep, args=[weakref.ref(self)], name="wsgi-isr-upkeep", daemon=True
        )
        self._has_thread = start(thread)
        _processes.add(self)
        # Anew, so that it runs before what the store does at exit.
        atexit.unregister(_at_exit)
        atexit.register(_at_exit)
        if config.workers == 0 and not store.kind.wants:
            logger.warning(
                "workers=0 leaves renders to other processes, but this store cannot hand pages "
                "over to them, so they are rendered here: use a file:// URL or Redis"
            )

    @property
    def is_open(self) -> bool:
        """Whether this process may use it: it was neither closed nor made before a fork."""
        return self.pid == os.getpid() and not self.is_closed

    def local_clock(self) -> float:
        return self.config.clock()

    def clock(self) -> float:
        """Seconds since 1970 by the clock that all who share the store agree on."""
        return self.local_clock() + self._offset

    @property
    def offset(self) -> float:
        """What the clock of the store is ahead of this process's."""
        return self._offset

    def _store_failed(self, operation: str, error: Exception) -> None:
        self.counters.store_errors += 1
        signals.send(signals.store_failed, self.config.middleware, operation=operation, error=error)

    def _changed(self, changes: Changes) -> None:
        self.renders.invalidated(changes)

    def add_no_page(self, key: PageKey, rule: Rule | None, detail: str) -> bool:
        """Remember that a URL is no page, unless it may be so for one visitor alone."""
        if not self.config.rules.by_url and self.config.rule_of(key) != rule:
            # What one visitor's headers made of the rules says nothing of others.
            return False
        self.not_pages.add(key, detail)
        return True

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
            return hit.renew(now, self._offset)

    def poll(self) -> None:
        """Follow what others do, if there is something to follow or some time has passed."""
        now = time.monotonic()
        if self.pages.memory.generation != self.pages.signal[0] or (
            now - self.pages.followed_at > POLL and (self.pages.is_local or not self._has_thread)
        ):
            self.pages.follow()
        if not self._has_thread and now - self._upkept_at > REPORT:
            self.upkeep()

    # What its thread does.

    def upkeep(self) -> None:
        """Let the store have what this process counted, and say what it has now."""
        self._upkept_at = time.monotonic()
        self.pages.tell_used()
        self.write_journal()
        if not self.pages.guard.is_well:
            return
        # Not through the guard: these are extras, and nothing else depends on them. Under a lock,
        # so that all that was counted is there when this returns, whichever thread took it.
        with self._adding:
            counts = self.counters.take()
            try:
                if counts:
                    self._begin_periods()
                    self.pages.store.add(counts)
            except Exception:
                self.counters.give_back(counts)
                return
        self._set_clock()
        with contextlib.suppress(Exception):
            self.pages.catch_up()
            report = self.report()
            if report is not None:
                self.pages.store.report(report)
                self.pages.earlier_builds()

    def log(self, call: Mapping[str, t.Any]) -> None:
        """Have the journal get an on-demand call soon: its caller does not wait for that."""
        self._calls.append(call)
        self.wake.set()
        if not self._has_thread:
            self.write_journal()

    def write_journal(self) -> None:
        """Let the journal have the calls that it does not have yet."""
        with self._adding:
            calls = [self._calls.popleft() for _ in range(len(self._calls))]
            if entries := [json.dumps(call).encode() for call in calls]:
                store = self.pages.store
                self.pages.guard.ask("log", lambda: store.log(*entries), write=True)

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

    def _set_clock(self) -> None:
        with contextlib.suppress(Exception):
            if self.pages.store.kind.shared == "network":
                offset = self.pages.store.time() - time.time()
                self._offset = offset if abs(offset) > MIN_OFFSET else 0.0

    def report(self) -> dict[str, t.Any] | None:
        """What this process has now; ``None`` for one that neither serves nor renders."""
        counted = self.counters.as_dict()
        served = any(counted[name] for name in (*SERVED, "renders", "passed", "bypassed"))
        if not (served or self.renders.waiting or self.renders.running):
            return None
        return {
            "pid": self.pid,
            "host": socket.gethostname(),
            "build": self.config.build_id,
            "began": round(self.began, 3),
            "memory_bytes": self.pages.memory.size,
            "memory_pages": len(self.pages.memory),
            "rendering": [key.url for key in self.renders.running[:20]],
            "waiting": self.renders.waiting,
            "store": self.pages.guard.state,
            "since": round(self.pages.guard.since, 3),
            # The last invalidation that it has taken in: who have the same serve the same.
            "followed": self.pages.memory.at.sequence,
            **{name: int(counted[name]) for name in (*SERVED, "renders", "failures")},
        }

    def listen(self) -> None:
        """Wait for what others do, and follow it; for a store on a network."""
        try:
            changed = self.pages.store.listen(POLL)
        except Exception as error:
            self.pages.guard.failed("listen", error)
            time.sleep(POLL)
            return
        if changed or time.monotonic() - self.pages.followed_at >= POLL:
            self.pages.follow()

    def close(self, timeout: float) -> None:
        """Wait for running regenerations, and give back all that this process holds."""
        self.background.wait(timeout)
        self.sign_off()
        self.is_closed = True
        self.wake.set()
        self.pages.guard.close()

    def sign_off(self) -> None:
        """Let the store have the last of what was counted and called, and count one process less.

        At exit, too, where nobody closes.
        """
        self.upkeep()
        with contextlib.suppress(Exception):
            if self.pages.guard.is_well:
                self.pages.store.report(None)


def _upkeep(reference: weakref.ref[Process]) -> None:
    reported = time.monotonic() - REPORT
    is_announced = False
    while True:
        process = reference()
        if process is None or process.is_closed:
            return
        wake = process.wake
        wake.clear()
        if not process.pages.is_local:
            process.listen()
        process.write_journal()
        # The first report comes soon: a command line asks which processes serve.
        is_new = not is_announced and process.report() is not None
        if is_new or time.monotonic() - reported >= REPORT:
            process.upkeep()
            reported, is_announced = time.monotonic(), is_announced or is_new
        is_local = process.pages.is_local
        del process
        if is_local:
            if wake.wait(POLL if is_announced else POLL / 5):
                # Those who call once mostly call again: all of it is written in one step.
                time.sleep(SETTLING)


#: Those of this interpreter that have not been collected.
_processes: weakref.WeakSet[Process] = weakref.WeakSet()


def _at_exit() -> None:
    for process in list(_processes):
        if process.is_open:
            process.sign_off()


class NotPages:
    """URLs whose answers are no pages, for a minute or until something is invalidated."""

    def __init__(self, pages: Pages, clock: Callable[[], float]) -> None:
        self._pages = pages
        self._clock = clock
        self._urls: dict[PageKey, Answer] = {}
        #: The fingerprints in the hit table that are for these URLs.
        self._fingerprints: dict[Fingerprint, None] = {}

    def get(self, key: PageKey) -> str | None:
        """Why a URL is no page; ``""`` where its answer has no metadata."""
        found = self._urls.get(key)
        if found is None:
            return None
        generation = self._pages.signal[0]
        if not found.since <= self._clock() < found.until or found.generation != generation:
            self.discard(key)
            return None
        return found.detail

    def add(self, key: PageKey, detail: str = "") -> None:
        # A new object each time, so that no fingerprint holds longer, or for another reason.
        self.discard(key)
        if len(self._urls) >= MAX_NOT_PAGES:
            _drop_first(self._urls)
        self._urls[key] = Answer.of_no_page(key, detail, self._clock(), self._pages.signal[0])

    def add_fingerprint(self, fingerprint: Fingerprint, key: PageKey) -> None:
        """Let a request pass without being parsed, as long as its URL is no page."""
        found = self._urls.get(key)
        if found is None or is_long(fingerprint):
            return
        hits = self._pages.memory.hits
        if fingerprint not in self._fingerprints and len(self._fingerprints) >= MAX_NOT_PAGES:
            hits.pop(_drop_first(self._fingerprints), None)
        self._fingerprints[fingerprint] = None
        hits[fingerprint] = found

    def discard(self, key: PageKey) -> None:
        """Forget a URL that has become a page."""
        found = self._urls.pop(key, None)
        if found is not None:
            found.until = 0.0


def _drop_first(table: dict[t.Any, t.Any]) -> t.Any:
    with contextlib.suppress(StopIteration, KeyError, RuntimeError):
        # Another thread may be doing the same.
        first = next(iter(table))
        del table[first]
        return first
