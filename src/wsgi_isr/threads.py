"""Jobs that run after the answer: on a few daemon threads, or on an executor of the app's own.

The threads are daemons, unlike those of `concurrent.futures`, so a process ends at once. A lost
job is harmless: the old page stays, and its lease ends with the process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import typing as t
from collections import deque
from collections.abc import Callable

logger = logging.getLogger("wsgi_isr")

#: Jobs that wait, at most; beyond it the next visitor of a page asks again.
MAX_QUEUE = 1000
#: Seconds after which a thread without work ends.
IDLE = 10.0
#: Seconds after which a job that nothing runs shows that threads do not run here.
STALLED = 1.0
#: Threads that replace hung ones, for each regular thread.
REPLACEMENTS = 3

Job: t.TypeAlias = "Callable[[], None]"


class ExecutorLike(t.Protocol):
    """Anything with the `submit` of a `concurrent.futures.Executor`."""

    def submit(self, fn: Callable[[], t.Any], /) -> t.Any: ...


def open_executor(executor: t.Any, made_in: int) -> tuple[ExecutorLike | None, bool]:
    """The executor of this process, if any, and whether it was made here.

    It never raises: by now a request waits.
    """
    try:
        # A class that has it makes one.
        is_made = executor is not None and (
            isinstance(executor, type) or not hasattr(executor, "submit")
        )
        if is_made and not hasattr(executor := executor(), "submit"):
            raise TypeError(f"the callable returned {executor!r}, which has no submit")
        if executor is not None and not is_made and made_in != os.getpid():
            raise RuntimeError("it was made before the fork: hand over a callable")
        return t.cast("ExecutorLike | None", executor), is_made
    except Exception as error:
        logger.warning("executor cannot be used, threads of wsgi-isr replace it: %s", error)
        return None, False


def start(thread: threading.Thread) -> bool:
    """Start a thread; false where it does not run between requests.

    uWSGI without ``--enable-threads`` or ``--threads`` freezes threads between requests, in some
    versions with the locks that they hold.
    """
    uwsgi = sys.modules.get("uwsgi")
    options = getattr(uwsgi, "opt", {}) if uwsgi is not None else {"threads": True}
    # Their names are bytes or text, depending on the version.
    if not {"threads", "enable-threads", b"threads", b"enable-threads"} & set(options):
        return False
    try:
        thread.start()
    except RuntimeError:
        # None in a sub-interpreter, at shutdown, or beyond the system's limit.
        return False
    return True


class Background:
    """Runs jobs on a few threads, or on an executor in their place unless that refuses them.

    :param patience: seconds after which a job counts as hung, and another thread may be started.
    :param made_in: the process that an executor belongs to.
    """

    def __init__(
        self, workers: int, patience: float, executor: t.Any = None, made_in: int = 0
    ) -> None:
        self._workers = workers
        self._patience = patience
        self._executor, is_made = open_executor(executor, made_in)
        self._made = self._executor if is_made else None
        self._jobs: deque[Job] = deque()
        #: When each running job began, by a token of its own.
        self._running: dict[object, float] = {}
        self._threads = 0
        self._changed = threading.Condition()
        #: When the first of the waiting jobs began to wait while nothing ran.
        self._waiting_since = 0.0
        self._warned = False

    def submit(self, job: Job) -> bool:
        """Have a job run; false, and never an error, where too many wait."""
        with self._changed:
            if len(self._jobs) >= MAX_QUEUE:
                return False
            if not self._jobs:
                self._waiting_since = time.monotonic()
            self._jobs.append(job)
            self._changed.notify()
        if self._executor is not None:
            self._hand_over(self._executor)
        else:
            self.provide()
        return True

    def _hand_over(self, executor: ExecutorLike) -> None:
        try:
            # It takes the job that is first by then: a visitor's thread may have run some.
            future = executor.submit(self.run_one)
            if (add := getattr(future, "add_done_callback", None)) is not None:
                add(self._check)
        except Exception as error:
            self._give_up(error)

    def provide(self) -> None:
        """Start a thread if jobs wait, and no executor takes them: others may hang."""
        with self._changed:
            is_idle = self._threads - len(self._running) >= len(self._jobs)
            if is_idle or self._executor is not None or self._threads >= self._limit():
                return
            self._threads += 1
        if start(threading.Thread(target=self._work, name="wsgi-isr", daemon=True)):
            return
        with self._changed:
            self._threads -= 1
            warned, self._warned = self._warned, True
        if not warned:
            logger.warning(
                "threads do not run here: each visitor's thread renders a stale page after its "
                "answer was sent; under uWSGI set --enable-threads"
            )

    def _check(self, future: t.Any) -> None:
        """Find out whether the executor ran what it was given; some cancel or pickle it."""
        try:
            # Errors of jobs never get here.
            future.result()
        except BaseException as error:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        if self._executor is not None:
            self._executor = None
            logger.warning("executor runs no jobs, threads of wsgi-isr replace it: %r", error)
        for _ in range(len(self._jobs)):
            self.provide()

    def _hung(self) -> int:
        now = time.monotonic()
        return sum(now - began > self._patience for began in self._running.values())

    def _limit(self) -> int:
        return self._workers + min(self._hung(), REPLACEMENTS * self._workers)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs, IDLE)
                if not self._jobs or self._threads > self._limit():
                    self._threads -= 1
                    return
            self.run_one()

    def run_one(self) -> None:
        """Run a job in this thread, if one waits."""
        token = object()
        with self._changed:
            if not self._jobs:
                return
            job = self._jobs.popleft()
            self._running[token] = time.monotonic()
        try:
            job()
        except BaseException:
            # Even a SystemExit of the app does not end our thread.
            logger.exception("a job failed")
        finally:
            with self._changed:
                del self._running[token]
                self._waiting_since = time.monotonic()
                self._changed.notify_all()

    def help(self) -> None:
        """Run what waits in this thread, as long as nothing else does."""
        while self.is_stalled:
            self.run_one()

    @property
    def is_stalled(self) -> bool:
        """Whether jobs wait although none runs: a visitor's thread has to help.

        What happens is what counts: uWSGI without ``--enable-threads`` starts threads and never
        lets them run, and an executor may drop what it is given.
        """
        if not self._jobs:
            return False
        if self._executor is None and not self._threads:
            return True
        with self._changed:
            is_idle = self._hung() == len(self._running)
        return is_idle and time.monotonic() - self._waiting_since > STALLED

    def has_room(self, timeout: float) -> bool:
        """Whether a job would begin at once; waits for that, at most so many seconds."""
        with self._changed:
            return self._changed.wait_for(
                lambda: len(self._jobs) + len(self._running) < self._limit(), timeout
            )

    def wait(self, timeout: float) -> bool:
        """Wait until all jobs are done, at most so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs and not self._running, timeout)

    def close(self, timeout: float) -> None:
        """The same, and shut down an executor that was made here."""
        self.wait(timeout)
        # Some have no such method, or one without this argument.
        with contextlib.suppress(AttributeError, TypeError):
            t.cast("t.Any", self._made).shutdown(wait=False)
