"""An attempt at a page as the threads of one process see it: one makes it, others wait for it."""

from __future__ import annotations

import threading
import time

from .attempt import Outcome
from .store.coordination import Number


class Flight:
    """An attempt that is being made in this process."""

    __slots__ = ("done", "number", "outcome", "started")

    def __init__(self, number: Number | None = None) -> None:
        self.started = time.monotonic()
        self.done = threading.Event()
        self.outcome: Outcome | None = None
        #: The invalidation that the render has to be later than.
        self.number = number

    def land(self, outcome: Outcome | None) -> None:
        self.outcome = outcome
        self.done.set()


class Lane:
    """On-demand renders of one page: the one that runs, and the one for all who came since."""

    __slots__ = ("running", "waiting")

    def __init__(self) -> None:
        self.running: Flight | None = None
        self.waiting: Flight | None = None
