"""Renders by processes that do nothing else: web workers put stale pages in line, they take them.

A render that takes the processor all the time costs the visitors of a web worker milliseconds,
whichever thread it is in; in another process it costs them none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
import typing as t
from collections.abc import Callable

from .key import PageKey
from .page import Codec
from .pool import WorkerPool
from .site import Site
from .store import PageStore
from .store.coordination import Job
from .store.coordination import Jobs

logger = logging.getLogger("wsgi_isr")

#: Seconds between two times that a line is said to be served, and jobs to be done.
SERVE = 1.0
#: Longest wait for a job, or for a thread, in seconds: for so long nobody looks whether to stop.
WAIT = 0.25


class Task(t.NamedTuple):
    """A page to be rendered, and the job that told of it."""

    key: PageKey
    job: Job


class Line:
    """The pages of a build that wait to be rendered, in the store that all processes share."""

    def __init__(self, store: PageStore, jobs: Jobs, codec: Codec, site: Site) -> None:
        self._store = store
        self._jobs = jobs
        self._codec = codec
        self._site = site
        # Each build has a line of its own, for its code renders its pages.
        self._name = hashlib.sha256(site.build_id.encode()).hexdigest()[:16]
        self._was_served = True

    def put(self, key: PageKey) -> bool:
        """Have a page rendered elsewhere; false if that will not be."""
        if not self._site.is_canonical(key):
            return False
        data = self._codec.seal(json.dumps(key).encode())
        served = self._store.ask("jobs", lambda: self._jobs.put(self._name, data), True)
        if served is not None and served != self._was_served:
            self._was_served = served
            if served:
                logger.info("stale pages are rendered by processes of their own again")
            else:
                logger.warning(
                    "no process takes the stale pages that wait to be rendered, so they are "
                    "rendered here: start 'python -m wsgi_isr MODULE:APP regenerate'"
                )
        return bool(served)

    def take(self) -> Task | None:
        """The page that waits longest, which nobody else gets until it is done."""
        while True:
            job = self._store.ask("jobs", lambda: self._jobs.take(self._name), True)
            if job is None:
                return None
            payload = self._codec.unseal(job.data)
            key = None if payload is None else _parse(bytes(payload))
            if key is not None and self._site.is_canonical(key):
                return Task(key, job)
            # Whoever can write to the store can put anything in line.
            self.done(job)

    def keep(self, job: Job) -> None:
        """Tell that somebody is still at it."""
        self._store.ask("jobs", job.keep, True)

    def done(self, job: Job) -> None:
        self._store.ask("jobs", job.done, True)

    def wait(self, seconds: float) -> None:
        """Wait until something may be in line, at most that many seconds."""
        self._jobs.wait(self._name, seconds)

    def serve(self) -> None:
        """Tell that somebody takes pages from the line."""
        self._store.ask("jobs", lambda: self._jobs.serve(self._name), True)


def _parse(data: bytes) -> PageKey | None:
    """A key as it was put in line; ``None`` for what is none."""
    try:
        *texts, query, vary, build = json.loads(data)
        if not all(isinstance(text, str) for text in (*texts, build)):
            return None
        scheme, host, mount, path = texts
        return PageKey(scheme, host, mount, path, _pairs(query), _pairs(vary), build)
    except (ValueError, TypeError, RecursionError):
        return None


def _pairs(items: t.Any) -> tuple[tuple[str, str], ...]:
    pairs = tuple((name, value) for name, value in items)
    if not all(isinstance(text, str) for pair in pairs for text in pair):
        raise TypeError("a pair is not of strings")
    return pairs


class Regenerator:
    """Renders what waits in line.

    :param pool: gets no more pages than it has threads, so that others are left to others.
    :param patience: seconds after which a render counts as hung: others may do it.
    """

    def __init__(
        self, line: Line, render: Callable[[PageKey], None], pool: WorkerPool, patience: float
    ) -> None:
        self._line = line
        self._render = render
        self._pool = pool
        self._patience = patience
        #: When the jobs began that are being done.
        self._doing: dict[Job, float] = {}
        # Held while they are told of, so that none is when it has been done.
        self._lock = threading.Lock()

    def run(self, stop: threading.Event) -> None:
        """Render until ``stop`` is set; what has begun by then may still run."""
        served_at = 0.0
        while not stop.is_set():
            if time.monotonic() - served_at >= SERVE:
                served_at = time.monotonic()
                self._tell()
            if not self._pool.has_room(WAIT):
                continue
            task = self._line.take()
            if task is None:
                self._line.wait(WAIT)
                continue
            with self._lock:
                self._doing[task.job] = time.monotonic()
            self._pool.submit(lambda task=task: self._do(task))  # type: ignore[misc]

    def _tell(self) -> None:
        self._line.serve()
        now = time.monotonic()
        with self._lock:
            for job, began in self._doing.items():
                if now - began < self._patience:
                    self._line.keep(job)

    def _do(self, task: Task) -> None:
        try:
            self._render(task.key)
        finally:
            with self._lock:
                del self._doing[task.job]
            self._line.done(task.job)
