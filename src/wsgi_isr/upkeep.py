"""What a process does behind its visitors now and then: it leaves its counters, and prunes."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import typing as t

from .pool import Pool
from .stats import Stats
from .store import PageStore
from .store.coordination import StoreError
from .threads import start

logger = logging.getLogger("wsgi_isr")

#: Seconds between two times that counters are left, while they change; and before the first.
INTERVAL, FIRST = 2.0, 0.2


class Upkeep:
    """The upkeep of one process; idle while there are no visitors.

    :param stats: the counters to leave, where other processes can see them.
    """

    def __init__(self, store: PageStore, pool: Pool, stats: Stats, build_id: str) -> None:
        self._store = store
        self._pool = pool
        self._stats = stats
        self._who = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "build": build_id,
            "began": time.time(),
        }
        self._keeps_stats = store.keeps_stats
        self._left: dict[str, t.Any] = Stats().as_dict()
        self._left_at = 0.0
        self._leaving = threading.Lock()
        self._running = False
        self._pruning = False

    def look(self) -> None:
        """See whether there is something to do; called about once a second, and by visitors."""
        pruner = self._store.pruner
        if pruner is not None and pruner.due and not self._pruning:
            # Before the job runs: it may have ended when submit returns.
            self._pruning = True
            if not self._pool.submit(self._prune):
                self._pruning = False
        if not self._keeps_stats:
            return
        if not self._running:
            self._running = True
            self._left_at = time.monotonic()
            # A thread of its own: the others render. It ends with the traffic.
            start(threading.Thread(target=self._report, name="wsgi-isr-stats", daemon=True))
        elif time.monotonic() - self._left_at > 2 * INTERVAL:
            # Threads do not run here.
            self.leave_stats()

    def _report(self) -> None:
        time.sleep(FIRST)
        while self.leave_stats():
            self._store.note_build()
            time.sleep(INTERVAL)
        self._running = False

    def leave_stats(self) -> bool:
        """Let other processes see the counters; false if they are as they were."""
        # Whoever finds them as they were may rely on it that they have been written.
        with self._leaving:
            counters = self._stats.as_dict()
            self._left_at = time.monotonic()
            if counters == self._left:
                return False
            self._left = counters
            told = {**self._who, "left": time.time(), **counters}
            self._store.leave_stats(json.dumps(told).encode())
            return True

    def all_stats(self) -> list[dict[str, t.Any]]:
        """What each process left last; of this one alone where the store keeps no counters.

        :raises Exception: what the store raises.
        """
        if not self._keeps_stats:
            return [{**self._who, "left": time.time(), **self._stats.as_dict()}]
        found = map(_parse, self._store.all_stats())
        return [counters for counters in found if counters is not None]

    def _prune(self) -> None:
        try:
            if self._store.pruner is not None:
                self._store.pruner.behind()
        except (OSError, StoreError) as error:
            logger.warning("files were not pruned: %s", error)
        finally:
            self._pruning = False


def _parse(data: bytes) -> dict[str, t.Any] | None:
    """Counters of a process; ``None`` for what is none: of another version, or not ours."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    kinds = {"host": str, "build": str, "pid": int, "began": float, "left": float}
    kinds |= {name: type(count) for name, count in Stats().as_dict().items()}
    if not isinstance(value, dict) or value.keys() != kinds.keys():
        return None
    if any(not isinstance(value[name], kind) for name, kind in kinds.items()):
        return None
    return value
