"""Coordination of the workers of one machine, on files beside the pages.

``sequence``  the lineage, the last number given, and that of the last invalidation
``epochs``    a log of invalidations, a line each; readers follow its end
``leases/``   a file per page being rendered, locked by its holder: a killed one frees it at once
``outcomes/`` what renders without a page left for those who waited
``failures/`` a file per page whose renders fail
``builds``    which builds there were, in their order
``workers/``  a file per process with its counters
``jobs/``     pages that wait for a process that does nothing but render

Every change is made under one advisory lock, held for microseconds. That something changed is
told through two counters in shared memory, because a ``stat`` per hit costs a microsecond.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import threading
import time
import typing as t
from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence

from ..state import Epochs
from ..state import Invalidation
from .coordination import Accept
from .coordination import Failure
from .coordination import Held
from .coordination import Lease
from .coordination import MAX_LABELS
from .coordination import Number
from .coordination import StoreError
from .coordination import WATCH
from .file_leases import FileLease
from .file_leases import parse_lease
from .jobs import JobFiles
from .lending import note_in_file
from .records import format_line
from .records import is_at
from .records import lock_within
from .records import NoFile
from .records import open_file
from .records import parse_line
from .records import read_file
from .records import write_file
from .shared import open_signal
from .workers import WorkerFiles

if t.TYPE_CHECKING:
    from .backend import Storage

logger = logging.getLogger("wsgi_isr")

#: Longest wait for the lock: a frozen process may hold it.
LOCK_TIMEOUT = 2.0
#: Seconds after which a change by somebody who does not share the counters is noticed.
POLL_INTERVAL = 1.0
#: Outcomes that a process leaves lying for those who waited elsewhere, at the most.
MAX_OUTCOMES = 100


class FileCoordination:
    """Coordination of all processes that share a folder.

    :param folder: it exists, and nobody else writes to it.
    """

    watch = WATCH

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._sequence = os.path.join(folder, "sequence")
        self._log = os.path.join(folder, "epochs")
        self._epochs = Epochs("")
        self._offset = 0
        self._records = 0
        self._identity: object = None
        self._loaded: object = None
        self._polled = 0.0
        #: Leases of this process that were given back with an outcome.
        self._outcomes: deque[str] = deque()
        self._workers = WorkerFiles(os.path.join(folder, "workers"))
        self.jobs = JobFiles(os.path.join(folder, "jobs"))
        self._lock = threading.RLock()
        self.signal = open_signal(folder)

    def after_fork(self) -> None:
        self._lock = threading.RLock()
        self._workers.after_fork()

    # The lock, and what is only done under it.

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """The one lock, over threads and processes; released by the kernel if we are killed."""
        if not self._lock.acquire(timeout=LOCK_TIMEOUT):
            raise StoreError("another thread holds the lock of the cache folder")
        try:
            descriptor = open_file(os.path.join(self.folder, "lock"), os.O_RDWR | os.O_CREAT)
            try:
                lock_within(descriptor, LOCK_TIMEOUT)
                try:
                    yield
                finally:
                    # Closing is not enough: a child forked meanwhile has the descriptor too.
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
            finally:
                os.close(descriptor)
        finally:
            self._lock.release()

    def _clock(self) -> _Clock | None:
        return _parse_clock(read_file(self._sequence))

    def _write_clock(self, clock: _Clock) -> None:
        descriptor = open_file(self._sequence, os.O_RDWR | os.O_CREAT)
        try:
            os.pwrite(descriptor, _format_clock(clock), 0)
        finally:
            os.close(descriptor)

    def _take_number(self) -> _Clock:
        clock = self._clock() or self._begin_lineage()
        clock = clock._replace(sequence=clock.sequence + 1)
        self._write_clock(clock)
        return clock

    def _begin_lineage(self) -> _Clock:
        """Start anew after damage: all that is stored counts as stale from now on."""
        clock = _Clock(secrets.token_hex(8), 0, 0)
        if os.path.lexists(self._log):
            logger.warning("%s: damaged; its pages count as stale", self.folder)
        self._rewrite(Epochs(clock.lineage))
        write_file(self._sequence, _format_clock(clock))
        self.signal[0] += 1
        return clock

    def _rewrite(self, epochs: Epochs) -> None:
        head = {"lineage": epochs.lineage, "floor": epochs.floor, "sequence": epochs.sequence}
        lines = [format_line(head)]
        for label, (last, hard) in epochs.items():
            if hard:
                lines.append(format_line([hard, label, True]))
            if last > hard:
                lines.append(format_line([last, label, False]))
        write_file(self._log, b"".join(lines))

    def stored(self, name: str) -> object:
        return self.signal[1]

    # Renders and invalidations in one order.

    def epochs(self) -> Epochs:
        generation = self.signal[0]
        if generation != self._loaded:
            with self._lock:
                if not self._follow():
                    with self.exclusive():
                        if not self._follow():
                            self._begin_lineage()
                            self._follow()
                self._loaded = generation
        return self._epochs

    def _follow(self) -> bool:
        """Read what was added to the log; false if it is missing or damaged."""
        try:
            descriptor = open_file(self._log, os.O_RDONLY)
        except (FileNotFoundError, NoFile):
            return False
        with os.fdopen(descriptor, "rb") as log:
            status = os.fstat(descriptor)
            if status.st_ino != self._identity or status.st_size < self._offset:
                self._offset = 0
            # Before the log is read: what is added to it meanwhile has a later number.
            clock = self._clock() if self._offset == 0 else None
            log.seek(self._offset)
            # A line without its end is being written, or was when its writer was killed.
            data, newline, _ = log.read().rpartition(b"\n")
        epochs, offset, records = self._epochs, self._offset, self._records
        lines = data.split(b"\n") if newline else []
        if offset == 0:
            head = parse_line(lines.pop(0)) if lines else None
            if not isinstance(head, dict):
                return False
            try:
                epochs = Epochs(str(head["lineage"]), int(head["sequence"]))
                epochs.floor = Invalidation(*map(int, head["floor"]))
            except (LookupError, TypeError, ValueError):
                return False
            records = 0
        for line in lines:
            if not _apply(epochs, parse_line(line)):
                return False
        if offset == 0 and not _is_whole(epochs, clock):
            return False
        self._epochs = epochs
        self._offset = offset + len(data) + len(newline)
        self._records = records + len(lines)
        self._identity = status.st_ino
        return True

    def next_number(self) -> Number:
        with self.exclusive():
            return self._take_number().number

    def invalidate(self, labels: Sequence[str], hard: bool) -> Number:
        with self.exclusive():
            clock = self._take_number()
            if not self._follow() or self._epochs.lineage != clock.lineage:
                self._begin_lineage()
                clock = self._take_number()
                self._follow()
            descriptor = open_file(self._log, os.O_RDWR)
            try:
                # Cut off what a killed writer left: it never returned, so it never held.
                os.ftruncate(descriptor, self._offset)
                lines = [format_line([clock.sequence, label, hard]) for label in labels]
                os.pwrite(descriptor, b"".join(lines), self._offset)
            finally:
                os.close(descriptor)
            self._write_clock(clock._replace(changed=clock.sequence))
            self._follow()
            if self._records > 2 * len(self._epochs) + 1000 or len(self._epochs) > MAX_LABELS:
                if len(self._epochs) > MAX_LABELS:
                    self._epochs.forget_oldest(MAX_LABELS // 2)
                self._rewrite(self._epochs)
                self._follow()
            self.signal[0] += 1
            return clock.number

    def poll(self) -> None:
        now = time.monotonic()
        if now - self._polled < POLL_INTERVAL:
            return
        self._polled = now
        try:
            status = os.stat(self._log)
            changed = (status.st_ino, status.st_size) != (self._identity, self._offset)
        except FileNotFoundError:
            changed = True
        if changed:
            with self.exclusive():
                self.signal[0] += 1

    # One render of a page.

    def acquire(self, name: str, seconds: float, on_demand: bool) -> Lease | Held:
        path = os.path.join(self.folder, "leases", name)
        with self.exclusive():
            descriptor = open_file(path, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with os.fdopen(descriptor, "rb") as file:
                    record = parse_lease(file.read())
                if record is not None and time.time() < record.deadline:
                    if record.on_demand or not on_demand:
                        return Held(record.token)
                # Its holder hangs, or began too early: a new file takes the place of his.
                temporary = f"{path}.{secrets.token_hex(8)}"
                descriptor = open_file(temporary, os.O_RDWR | os.O_CREAT)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                os.replace(temporary, path)
            return FileLease(self, path, descriptor, seconds, on_demand)

    def drop_lease(self, path: str, descriptor: int) -> None:
        with self.exclusive():
            if is_at(descriptor, path):
                os.unlink(path)

    def drop_dead_lease(self, path: str) -> bool:
        """Remove the lease of a holder that was killed, unless somebody has it now."""
        with self.exclusive():
            try:
                descriptor = open_file(path, os.O_RDWR)
            except FileNotFoundError:
                return False
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            except (BlockingIOError, FileNotFoundError):
                return False
            finally:
                os.close(descriptor)
            return True

    def leave_outcome(self, name: str, token: str, outcome: bytes) -> None:
        path = os.path.join(self.folder, "outcomes", name)
        write_file(path, format_line([token]) + outcome)
        # Somebody may ask for a million URLs whose renders leave no page.
        self._outcomes.append(path)
        while len(self._outcomes) > MAX_OUTCOMES:
            with contextlib.suppress(OSError):
                os.unlink(self._outcomes.popleft())

    def outcome(self, name: str, token: str) -> bytes | None:
        data = read_file(os.path.join(self.folder, "outcomes", name)) or b""
        line, _, outcome = data.partition(b"\n")
        return outcome if parse_line(line) == [token] else None

    # Pages.

    def swap(self, storage: Storage, name: str, data: bytes, accept: Accept) -> bool:
        with self.exclusive():
            if not accept(storage.get(name)):
                return False
            storage.set(name, data)
            self.signal[1] += 1
            return True

    def remove(self, storage: Storage, name: str) -> None:
        with self.exclusive():
            storage.delete(name)
            self.signal[1] += 1

    def failure(self, name: str) -> Failure | None:
        record = parse_line((read_file(os.path.join(self.folder, "failures", name)) or b"").strip())
        return Failure.from_record(record)

    def set_failure(self, name: str, failure: Failure | None) -> None:
        path = os.path.join(self.folder, "failures", name)
        if failure is not None:
            write_file(path, format_line(list(failure)))
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def note_build(self, build: str) -> list[str]:
        with self.exclusive():
            return note_in_file(os.path.join(self.folder, "builds"), build)

    # Counters of all processes.

    def leave_stats(self, data: bytes) -> None:
        self._workers.leave(data)

    def all_stats(self) -> list[bytes]:
        return self._workers.all()

    def sweep_stats(self) -> int:
        return self._workers.sweep()


class _Clock(t.NamedTuple):
    """What the file ``sequence`` says.

    :param changed: number of the last invalidation; a log without it has lost its end.
    """

    lineage: str
    sequence: int
    changed: int

    @property
    def number(self) -> Number:
        return Number(self.lineage, self.sequence)


def _is_whole(epochs: Epochs, clock: _Clock | None) -> bool:
    """Whether a log has all invalidations up to a time."""
    return (
        clock is not None
        and clock.lineage == epochs.lineage
        and clock.changed <= epochs.sequence <= clock.sequence
    )


def _apply(epochs: Epochs, record: object) -> bool:
    """Take in a line of the log; false if it is none."""
    if not isinstance(record, list) or [type(value) for value in record] != [int, str, bool]:
        return False
    # A pattern may be none.
    with contextlib.suppress(ValueError):
        epochs.apply(*record)
        return True
    return False


def _format_clock(clock: _Clock) -> bytes:
    # Of one length, so that it is written in place.
    return format_line([clock.lineage, f"{clock.sequence:020d}", f"{clock.changed:020d}"])


def _parse_clock(data: bytes | None) -> _Clock | None:
    try:
        lineage, sequence, changed = parse_line((data or b"").strip())
        return _Clock(str(lineage), int(sequence), int(changed))
    except (TypeError, ValueError):
        return None
