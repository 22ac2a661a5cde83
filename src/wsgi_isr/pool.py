"""A few daemon threads that render behind the visitors, started on first use.

Daemon threads, unlike those of `concurrent.futures`, let a process end at once; the job that is
lost is harmless, because the old page stands and its lease lapses.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
import typing as t
from collections.abc import Callable

from .threads import start

logger = logging.getLogger("wsgi_isr")

#: Threads of a pool, unless somebody says otherwise.
WORKERS = 2
#: Jobs in line, at the most; beyond it the next visitor of a page asks again.
QUEUE_LIMIT = 1000
#: Seconds after which a thread without work ends.
IDLE = 10.0
#: Seconds after which a job that no idle thread takes shows that threads do not run.
STALLED = 1.0
#: Threads that stand in for hung ones, per regular thread.
STAND_INS = 3


Job: t.TypeAlias = "Callable[[], None]"


class Pool(t.Protocol):
    """Where jobs run behind the visitors."""

    def submit(self, job: Job) -> bool:
        """Put a job in line; false, and never an error, where the line is full."""

    @property
    def is_stalled(self) -> bool:
        """Whether jobs wait although nothing is done: a visitor's thread has to help."""

    def run_one(self) -> None:
        """Run a job in this thread."""

    def stand_in(self) -> None:
        """See to it that a hung job does not hold up those behind it."""

    def wait(self, timeout: float) -> bool:
        """Wait until all jobs are done, at most that many seconds."""


def perform(job: Job) -> None:
    try:
        job()
    except BaseException:
        # Even SystemExit, which an app may raise, is not ours to obey.
        logger.exception("a regeneration failed")


class WorkerPool:
    """Runs jobs on at most ``workers`` threads.

    :param patience: seconds after which a job counts as hung and another thread stands in.
    """

    def __init__(self, workers: int, patience: float) -> None:
        self._workers = workers
        self._patience = patience
        self._queue: queue.Queue[Job] = queue.Queue(QUEUE_LIMIT)
        #: When each thread's job began; ``None`` for an idle one.
        self._threads: dict[threading.Thread, float | None] = {}
        self._idle = threading.Condition()
        self._pending = 0
        self._told = False
        #: When the jobs in line began to wait for a thread that does nothing.
        self._waiting_since = 0.0

    def submit(self, job: Job) -> bool:
        with self._idle:
            self._ensure_thread()
            if self._queue.empty():
                self._waiting_since = time.monotonic()
            try:
                self._queue.put_nowait(job)
            except queue.Full:
                return False
            self._pending += 1
            return True

    @property
    def is_stalled(self) -> bool:
        """Whether a job waits although all threads are idle: they do not run here.

        uWSGI without ``--enable-threads`` starts threads and never lets them run. What the
        option is called differs among its versions, so what happens is what counts.
        """
        if self._queue.empty():
            return False
        if not self._threads:
            return True
        if any(since is not None for since in self._threads.values()):
            return False
        return time.monotonic() - self._waiting_since > STALLED

    def has_room(self, timeout: float) -> bool:
        """Whether a job would begin at once; waits for that, at most so many seconds."""
        with self._idle:
            return self._idle.wait_for(lambda: self._pending < self._limit(), timeout)

    def run_one(self) -> None:
        try:
            job = self._queue.get_nowait()
        except queue.Empty:
            return
        perform(job)
        with self._idle:
            self._pending -= 1
            self._idle.notify_all()

    def stand_in(self) -> None:
        """Start a thread in place of a hung one, if jobs are still in line behind it."""
        with self._idle:
            if not self._queue.empty():
                self._ensure_thread()

    def _ensure_thread(self) -> None:
        """Start a thread unless one is free, or enough of them do work."""
        free = sum(1 for since in self._threads.values() if since is None)
        if free <= self._queue.qsize() and len(self._threads) < self._limit():
            thread = threading.Thread(target=self._run, name="wsgi-isr", daemon=True)
            self._threads[thread] = None
            if not start(thread):
                del self._threads[thread]
                if not self._told:
                    self._told = True
                    logger.warning(
                        "threads do not run here: stale pages are rendered by the threads of "
                        "visitors, once they have been served; under uWSGI set --enable-threads"
                    )

    def _limit(self) -> int:
        """How many threads there may be: one more for each that hangs, within reason."""
        now = time.monotonic()
        begun = list(self._threads.values())
        hung = sum(1 for since in begun if since is not None and now - since > self._patience)
        return self._workers + min(hung, STAND_INS * self._workers)

    def _run(self) -> None:
        thread = threading.current_thread()
        while True:
            job: Job | None = None
            with contextlib.suppress(queue.Empty):
                job = self._queue.get(timeout=IDLE)
            if job is not None:
                self._threads[thread] = time.monotonic()
                perform(job)
            with self._idle:
                if job is not None:
                    self._pending -= 1
                    self._idle.notify_all()
                    self._waiting_since = time.monotonic()
                surplus = len(self._threads) > self._workers
                if self._queue.empty() and (surplus or job is None):
                    del self._threads[thread]
                    return
                self._threads[thread] = None

    def wait(self, timeout: float) -> bool:
        """Wait until all jobs are done, at most that many seconds."""
        with self._idle:
            return self._idle.wait_for(lambda: self._pending == 0, timeout)
