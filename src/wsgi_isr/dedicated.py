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
from .store import PageStore
from .store.coordination import Jobs

logger = logging.getLogger("wsgi_isr")

#: Seconds between two looks at an empty line: from, to. Each is a round trip, or a system call.
PAUSE = (0.005, 0.05)
#: Seconds between two times that a line is said to be served.
SERVE = 1.0


class Line:
    """The pages of a build that wait to be rendered, in the store that all processes share.

    :param build_id: each build has a line of its own, for its code renders its pages.
    """

    def __init__(self, store: PageStore, jobs: Jobs, codec: Codec, build_id: str) -> None:
        self._store = store
        self._jobs = jobs
        self._codec = codec
        self._build_id = build_id
        self._name = hashlib.sha256(build_id.encode()).hexdigest()[:16]
        self._was_served = True

    def put(self, key: PageKey) -> bool:
        """Have a page rendered elsewhere; false if nobody is there to do it."""
        served = self.is_served
        if served:
            data = self._codec.seal(json.dumps(key).encode())
            self._store.ask("jobs", lambda: self._jobs.put(self._name, data), True)
        if served != self._was_served:
            self._was_served = served
            if served:
                logger.info("stale pages are rendered by processes of their own again")
            else:
                logger.warning(
                    "no process takes the stale pages that wait to be rendered, so they are "
                    "rendered here: start 'python -m wsgi_isr MODULE:APP regenerate'"
                )
        return served

    @property
    def is_served(self) -> bool:
        return bool(self._store.ask("jobs", lambda: self._jobs.is_served(self._name)))

    def take(self) -> PageKey | None:
        """The page that waits longest."""
        sealed = self._store.ask("jobs", lambda: self._jobs.take(self._name))
        payload = self._codec.unseal(sealed)
        key = None if payload is None else _parse(bytes(payload))
        return key if key is not None and key.build == self._build_id else None

    def serve(self) -> None:
        """Tell that somebody takes pages from the line."""
        self._store.ask("jobs", lambda: self._jobs.serve(self._name), True)

    def abandon(self) -> None:
        self._store.ask("jobs", lambda: self._jobs.abandon(self._name), True)


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


def work(
    line: Line, render: Callable[[PageKey], None], pool: WorkerPool, stop: threading.Event
) -> None:
    """Render what waits in line, until ``stop`` is set.

    :param pool: takes no more pages than it has threads, so that others are left to others.
    """
    served_at = 0.0
    pause = PAUSE[0]
    while not stop.is_set():
        if time.monotonic() - served_at >= SERVE:
            served_at = time.monotonic()
            line.serve()
        key = None if pool.is_busy else line.take()
        if key is not None:
            pause = PAUSE[0]
            pool.submit(_bound(render, key))
        else:
            stop.wait(pause)
            pause = min(2 * pause, PAUSE[1])
    line.abandon()


def _bound(render: Callable[[PageKey], None], key: PageKey) -> Callable[[], None]:
    return lambda: render(key)
