"""`LocalStore`: the order of events in the memory of one process.

The memory level keeps the pages of ``memory://``, so there is no second copy of them here.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
import typing as t
from collections import deque
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence

from . import protocol
from .epochs import Epochs
from .protocol import Busy
from .protocol import Changes
from .protocol import Failure
from .protocol import Invalidation
from .protocol import Number
from .protocol import Record
from .protocol import Stored
from .protocol import Validity

KIND = protocol.Kind("memory", "process", True, True, True, False, False)
#: Outcomes that are kept for those who wait for a render.
MAX_OUTCOMES = 1000

_Value = t.TypeVar("_Value")


class Plain:
    """What stores without an engine have in common: what they cannot do."""

    kind: protocol.Kind

    def __init__(self) -> None:
        # Not from 0: what a process had in memory before a fork has the parent's numbers.
        self.signal = [secrets.randbits(62), secrets.randbits(62)]

    def records(self, *, build: str | None = None, path: str | None = None) -> Iterator[Stored]:
        raise self._unlisted()

    def failures(self) -> Iterator[tuple[str, Failure]]:
        raise self._unlisted()

    def prune(self, **bounds: t.Any) -> int:
        raise self._unlisted()

    def _unlisted(self) -> NotImplementedError:
        return NotImplementedError(
            f"a store of the kind {self.kind.name} cannot list what it has; SQLite (a file:// URL) "
            "and Redis can"
        )

    def used(self, names: Iterable[str]) -> None:
        """A cache itself sees what is read."""

    def stored(self, name: str) -> object:
        return self.signal[1]

    def want(self, build: str, wanted: protocol.Wanted) -> bool:
        return False

    def take(self, build: str, seconds: float) -> protocol.Wanted | None:
        return None

    def done(self, build: str, name: str) -> None:
        """Nothing was taken."""

    def sizes(self) -> protocol.Sizes:
        return protocol.Sizes(None, None)

    def time(self) -> float:
        return time.time()


class Lease:
    """The right to render a page; ``end`` takes it back."""

    def __init__(
        self, end: Callable[[Lease, bytes | None], None], name: str, seconds: float, demanded: bool
    ) -> None:
        self.token = secrets.token_hex(8)
        self.name, self.demanded = name, demanded
        self.deadline = time.monotonic() + seconds
        self._end = end

    def release(self, outcome: bytes | None = None) -> None:
        # What cannot be said lapses by itself.
        with contextlib.suppress(Exception):
            self._end(self, outcome)


class LocalStore(Plain):
    """The order of events for the threads of one process; it takes all pages, and keeps none."""

    kind = KIND

    def __init__(self) -> None:
        super().__init__()
        self._pid = os.getpid()
        self._sequence = 0
        self._epochs = Epochs(secrets.token_hex(8))
        self._history: deque[Invalidation] = deque(maxlen=protocol.MAX_HISTORY)
        self._leases: dict[str, Lease] = {}
        self._outcomes: dict[str, bytes] = {}
        self._failures: dict[str, Failure] = {}
        self._paths: set[str] = set()
        self._builds: list[str] = []
        self._totals: dict[str, float] = {}
        self._report: dict[str, t.Any] | None = None
        self._lock = threading.RLock()

    def after_fork(self) -> None:
        """Go on in a child, without what a thread of the parent may have."""
        if self._pid != os.getpid():
            self._pid, self._lock, self._leases = os.getpid(), threading.RLock(), {}

    # Pages.

    def get(self, name: str) -> Stored | None:
        return None

    def put(self, record: Record) -> Validity | None:
        with self._lock:
            self.signal[1] += 1
            return self._validity(record)

    def delete(self, name: str) -> None:
        with self._lock:
            self.signal[1] += 1

    def records(self, *, build: str | None = None, path: str | None = None) -> Iterator[Stored]:
        return iter(())

    def prune(self, **bounds: t.Any) -> int:
        return 0

    # The order.

    def _at(self) -> Number:
        return Number(self._epochs.lineage, self._epochs.changed)

    def _validity(self, record: Record) -> Validity:
        made = self._epochs.validity(record.labels, record.path, record.number)
        return Validity(made, self._at())

    def number(self) -> Number:
        with self._lock:
            self._sequence += 1
            return Number(self._epochs.lineage, self._sequence)

    def invalidate(self, labels: Sequence[str], expire: bool) -> Number:
        with self._lock:
            self._sequence += 1
            for label in labels:
                invalidation = Invalidation(label, self._sequence, expire)
                self._epochs.apply(invalidation)
                self._history.append(invalidation)
            self._epochs.changed = self._sequence
            if len(self._epochs.labels) > protocol.MAX_LABELS:
                # A tenth at a time, for it takes a while.
                self._epochs.forget_oldest(protocol.MAX_LABELS * 9 // 10)
            self.signal[0] += 1
            return self._at()

    def changes(self, since: Number) -> Changes:
        with self._lock:
            at, history = self._at(), self._history
            is_full = len(history) == history.maxlen
            lost = is_full and since.sequence < history[0].sequence
            if since.lineage != at.lineage or lost:
                return Changes(at, False, ())
            return Changes(at, True, tuple(one for one in history if one[1] > since.sequence))

    # Renders.

    def lease(self, name: str, seconds: float, demanded: bool) -> Lease | Busy:
        with self._lock:
            found = self._leases.get(name)
            if found is not None and time.monotonic() < found.deadline:
                if found.demanded or not demanded:
                    return Busy(found.token)
            lease = self._leases[name] = Lease(self._end, name, seconds, demanded)
            return lease

    def _end(self, lease: Lease, outcome: bytes | None) -> None:
        with self._lock:
            # Unless another has taken it over.
            if self._leases.get(lease.name) is lease:
                del self._leases[lease.name]
                if outcome is not None:
                    _keep(self._outcomes, lease.token, outcome, MAX_OUTCOMES)

    def outcome(self, token: str) -> bytes | None:
        return self._outcomes.get(token)

    def failure(self, name: str) -> Failure | None:
        return self._failures.get(name)

    def set_failure(self, name: str, failure: Failure | None) -> None:
        with self._lock:
            self._failures.pop(name, None)
            if failure is not None:
                _keep(self._failures, name, failure, protocol.MAX_FAILURES)

    def failures(self) -> Iterator[tuple[str, Failure]]:
        with self._lock:
            return iter(list(self._failures.items()))

    # What exists, and what was counted.

    def list_path(self, path: str) -> None:
        self._paths.add(path)

    def has_path(self, path: str) -> bool:
        return path in self._paths

    def builds(self, build: str) -> list[str]:
        with self._lock:
            if build not in self._builds:
                self._builds.append(build)
                del self._builds[: -protocol.MAX_BUILDS]
            return self._builds[: self._builds.index(build)][::-1]

    def add(self, counts: Mapping[str, float]) -> None:
        with self._lock:
            for name, count in counts.items():
                self._totals[name] = self._totals.get(name, 0) + count

    def totals(self) -> dict[str, float]:
        with self._lock:
            return dict(self._totals)

    def report(self, process: Mapping[str, t.Any] | None) -> None:
        self._report = None if process is None else dict(process)

    def processes(self) -> list[dict[str, t.Any]]:
        report = self._report
        return [] if report is None else [dict(report)]

    # The process.

    def listen(self, seconds: float) -> bool:
        return False

    def probe(self) -> None:
        """Memory reads and writes."""

    def close(self) -> None:
        """Others in this process may share it, and there is nothing to give back."""


def _keep(table: dict[str, _Value], name: str, value: _Value, most: int) -> None:
    table[name] = value
    if len(table) > most:
        del table[next(iter(table))]
