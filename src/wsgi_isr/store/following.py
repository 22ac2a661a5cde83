"""A thread that keeps a process up to date with a store on the network."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable

from ..threads import start

#: Seconds between two looks at the store, whatever it announces by itself.
POLL = 0.5
#: Seconds without a look after which the thread counts as stuck, or as one that does not run.
LATE = 1.0
#: Seconds between two looks at a store that does not answer: from, to.
PAUSE = (0.1, 1.0)


class Follower:
    """Calls a method again and again, on a thread of its own.

    It begins with the first `start`, and ends when the method's object is gone.

    :param follow: looks at the store; it may wait for news, for `POLL` seconds in all.
    """

    def __init__(self, follow: Callable[[], None]) -> None:
        self._follow = weakref.WeakMethod(follow)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        #: When the store was last looked at, by this thread or by whoever else did.
        self.seen = 0.0
        #: What became of the thread's last look.
        self.error: Exception | None = None
        #: Since when the thread waits for the store, 0 while it does not.
        self.busy_since = 0.0

    def start(self) -> None:
        """See to it that the thread is there, where there are threads."""
        if self._thread is not None and self._thread.is_alive():
            return
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._run, name="wsgi-isr-follower", daemon=True)
                if start(thread):
                    self._thread = thread

    @property
    def is_late(self) -> bool:
        """Whether somebody else has to look: the thread does not run, or is stuck."""
        now = time.monotonic()
        return now - self.seen > LATE and now - self.busy_since > 2 * LATE

    def looked(self) -> None:
        self.seen = time.monotonic()
        self.error = None

    def _run(self) -> None:
        pause = PAUSE[0]
        while True:
            follow = self._follow()
            if follow is None:
                return
            try:
                follow()
                pause, rest = PAUSE[0], 0.0
            except Exception as error:
                self.error, self.busy_since = error, 0.0
                pause, rest = min(2 * pause, PAUSE[1]), pause
            del follow
            time.sleep(rest)
