"""Renders behind visitors on an executor of the app's own choice (PEP 3148)."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
import typing as t
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from concurrent.futures import Executor
from concurrent.futures import Future

from .pool import Job
from .pool import perform
from .pool import Pool
from .pool import QUEUE_LIMIT
from .pool import STALLED
from .pool import WorkerPool

logger = logging.getLogger("wsgi_isr")

ExecutorLike: t.TypeAlias = "Executor | Callable[[], Executor]"


def check_executor(executor: object) -> None:
    """
    :raises TypeError: for what is no executor, or one whose jobs run in other processes.
    """
    # Here, because it takes a sixth of the time of `import wsgi_isr`, and few have an executor.
    from concurrent.futures import ProcessPoolExecutor

    if isinstance(executor, ProcessPoolExecutor):
        raise TypeError(
            "executor runs jobs in this process, where the app and its store are: to render in "
            "others, set workers=0 and start 'python -m wsgi_isr MODULE:APP regenerate'"
        )
    if not isinstance(executor, Executor) and not callable(executor):
        raise TypeError(
            "executor takes a concurrent.futures.Executor, or a callable that returns one, "
            f"not {executor!r}"
        )


def open_pool(executor: ExecutorLike, made_in: int, workers: int, patience: float) -> Pool:
    """The pool of this process; by now a request waits, which an error would not help.

    :param made_in: id of the process in which the executor was handed over.
    :param workers: threads of our own, where the executor is of no use.
    """
    own = WorkerPool(workers, patience)
    try:
        if isinstance(executor, Executor):
            if made_in != os.getpid():
                raise RuntimeError("it was made before the fork: hand over a callable")
            return ExecutorPool(executor, own, patience)
        made = executor()
        check_executor(made)
        return ExecutorPool(made, own, patience)
    except Exception as error:
        logger.warning("executor cannot be used, threads of wsgi-isr take its place: %s", error)
        return own


class ExecutorPool:
    """Runs jobs on an executor.

    :param instead: runs them where the executor takes none any more.
    :param patience: seconds after which a job counts as hung.
    """

    def __init__(self, executor: Executor, instead: WorkerPool, patience: float) -> None:
        self._executor = executor
        self._patience = patience
        self._instead = instead
        self._jobs: deque[Job] = deque()
        self._done = threading.Condition()
        #: When each job began that runs, by its number.
        self._running: dict[int, float] = {}
        self._numbers = itertools.count()
        #: When the jobs in line began to wait while none ran.
        self._waiting_since = 0.0
        self._shut_down = False

    def submit(self, job: Job) -> bool:
        """Put a job in line; false, and never an error, where the line is full."""
        with self._done:
            if len(self._jobs) >= QUEUE_LIMIT:
                return False
            if self._shut_down:
                return self._instead.submit(job)
            if not self._jobs:
                self._waiting_since = time.monotonic()
            self._jobs.append(job)
        try:
            # It takes whichever job is first by then: a visitor may have run some.
            self._executor.submit(self.run_one).add_done_callback(self._look)
        except Exception as error:
            self._give_up(error)
        return True

    def _look(self, future: Future[None]) -> None:
        """See whether the executor has run what it was given."""
        if future.cancelled():
            self._give_up(CancelledError("it has cancelled one"))
        elif (error := future.exception()) is not None:
            # Not of a job: it was never called, as by an executor that pickles what it runs.
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        """Let threads of our own do what is in line, and what comes."""
        with self._done:
            if not self._shut_down:
                logger.warning(
                    "executor runs no jobs, threads of wsgi-isr take its place: %s", error
                )
            self._shut_down = True
            while self._jobs:
                self._instead.submit(self._jobs.popleft())
            self._done.notify_all()

    @property
    def is_stalled(self) -> bool:
        """Whether jobs wait although none runs: the executor has dropped them, or hangs."""
        if self._shut_down:
            return self._instead.is_stalled
        if not self._jobs:
            return False
        now = time.monotonic()
        with self._done:
            if any(now - began < self._patience for began in self._running.values()):
                return False
        return now - self._waiting_since > STALLED

    def run_one(self) -> None:
        """Run a job in this thread."""
        if self._shut_down:
            self._instead.run_one()
            return
        with self._done:
            if not self._jobs:
                return
            job = self._jobs.popleft()
            number = next(self._numbers)
            self._running[number] = time.monotonic()
        perform(job)
        with self._done:
            del self._running[number]
            self._waiting_since = time.monotonic()
            self._done.notify_all()

    def stand_in(self) -> None:
        """How many threads an executor has is its own affair."""
        if self._shut_down:
            self._instead.stand_in()

    def wait(self, timeout: float) -> bool:
        """Wait until all jobs are done, at most that many seconds."""
        deadline = time.monotonic() + timeout
        with self._done:
            done = self._done.wait_for(lambda: not self._jobs and not self._running, timeout)
        return done and self._instead.wait(max(0.0, deadline - time.monotonic()))
