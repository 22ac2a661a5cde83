"""`LocalStore`: the order of events in the memory of one process."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import typing as t
from collections.abc import Iterator

from cachelib import BaseCache, NullCache, SimpleCache

from .cachelib import CachelibStore, Clock
from .entries import RETENTION, Entries
from .epochs import Epochs
from .leases import Leases
from .protocol import MAX_LABELS, Changes, Failure, Kind, Number, Record, Validity

MEMORY = Kind("memory", "process", True, True, True, False, False)
#: That of a store with a cache, whose pages it cannot list. When it forgets the oldest labels, all
#: pages from before them count as stale.
LOCAL = MEMORY._replace(name="local", lists=False)
#: Entries that are kept of those that `CachelibStore` keeps for a week or less.
MAX_BRIEF = 20_000


class MemoryEntries(Entries):
    """The same in the memory of one process: nothing is encoded, and all locks are one."""

    def __init__(self) -> None:
        super().__init__(NullCache(), "")
        self._lasting: dict[str, t.Any] = {}
        self._brief: dict[str, t.Any] = {}
        self._mutex = threading.RLock()

    def after_fork(self) -> None:
        # A thread of the parent may have the other one.
        self._mutex = threading.RLock()

    def __iter__(self) -> Iterator[str]:
        return iter([*self._lasting, *self._brief])

    def get(self, name: str) -> t.Any:
        return self._lasting.get(name, self._brief.get(name))

    def read(self, name: str, length: int) -> t.Any:
        return self.get(name)

    def set(self, name: str, data: t.Any, seconds: int = RETENTION) -> None:
        with self._mutex:
            (self._lasting if seconds == RETENTION else self._brief)[name] = data
            if len(self._brief) > MAX_BRIEF:
                del self._brief[next(iter(self._brief))]

    write = set  # type: ignore[assignment]

    def delete(self, name: str) -> None:
        self._lasting.pop(name, None)
        self._brief.pop(name, None)

    def is_dead(self, name: str, entry: object, seconds: float) -> bool:
        """What nobody in this process has is its parent's."""
        return True

    @contextlib.contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        with self._mutex:
            yield


class LocalStore(CachelibStore):
    """The order of events in the memory of one process, and its pages in a cache, if it has one.

    Without a cache it takes all pages and keeps none: the memory level keeps those of
    ``memory://``. Several middlewares may share it, and a child goes on with what its parent had,
    but with new pages in a new cache: the other may have locks that nobody gives back there.
    """

    def __init__(self, cache: BaseCache | None = None, prefix: str = "") -> None:
        kind = MEMORY if cache is None else LOCAL
        super().__init__(NullCache() if cache is None else cache, prefix, kind)
        self._prefix, self._pid = prefix, os.getpid()
        self._entries: MemoryEntries = MemoryEntries()
        self._leases = Leases(None, self._end)
        clock = Clock(secrets.token_hex(8), 0, 0)
        self._epochs = self._save(clock, Epochs(clock.lineage))[1]

    def after_fork(self) -> None:
        if self._pid != os.getpid():
            self._pid, self._leases = os.getpid(), Leases(None, self._end)
            self._entries.after_fork()
            if self.kind == LOCAL:
                self._pages = Entries(SimpleCache(), self._prefix)

    # All of the order is read and changed under one lock.

    def _sync(self) -> Epochs:
        return self._epochs

    def _order(self) -> tuple[Clock, Epochs]:
        return Clock(*self._entries.get("clock")), self._epochs

    def _save(self, clock: Clock, epochs: Epochs) -> tuple[Clock, Epochs]:
        if len(epochs.labels) > MAX_LABELS:
            # A tenth at a time, for it takes a while.
            epochs.forget_oldest(MAX_LABELS * 9 // 10)
        self._entries.set("clock", clock)
        return clock, epochs

    def _adopt(self, epochs: Epochs) -> Epochs:
        self.signal[0] += 1
        return epochs

    def changes(self, since: Number) -> Changes:
        with self._entries.exclusive("clock"):
            return super().changes(since)

    def _validity(self, record: Record) -> Validity:
        with self._entries.exclusive("clock"):
            return super()._validity(record)

    # What a kind of one process can say besides.

    def records(self, **where: t.Any) -> t.Any:
        return iter(()) if self.kind.lists else super().records()

    def prune(self, **bounds: t.Any) -> t.Any:
        return 0 if self.kind.lists else super().prune()

    def failures(self, **where: t.Any) -> Iterator[tuple[str, Failure]]:
        names = [name[8:] for name in self._entries if name.startswith("failure:")]
        found = ((name, self.failure(name)) for name in names)
        return ((name, failure) for name, failure in found if failure is not None)

    def has_path(self, path: str) -> bool:
        return bool(super().has_path(path))

    def listen(self, seconds: float) -> bool:
        return False

    def close(self) -> None:
        """Others in this process may share it, and there is nothing to give back."""
