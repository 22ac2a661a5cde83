"""`Leases`: the leases of one process, where a store on a network keeps them.

A lease may last as long as a render, a minute; nobody should wait a minute for a process that was
killed. So the store forgets it after a few seconds, and a thread extends it until then.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable

from .. import threads

#: Seconds for which a lease outlives its process, and between two extensions.
TERM, BEAT = 3.0, 1.0
#: Seconds for which a lease lasts where no thread extends it.
UNATTENDED = 60.0
#: Seconds for which a release that failed is said again.
RETRY = 60.0


class Lease:
    """As `protocol.Lease`; ``demanded`` as in `Store.lease`."""

    def __init__(self, leases: Leases, name: str, seconds: float, demanded: bool) -> None:
        self.token = secrets.token_hex(8)
        self.name, self.demanded = name, demanded
        self.deadline = time.monotonic() + seconds
        self.outcome: bytes | None = None
        self._leases = leases

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def release(self, outcome: bytes | None = None) -> None:
        self.outcome = outcome
        self._leases.release(self)


class Leases:
    """
    :param extend: extends a lease by so many seconds; false if the store has it no more. ``None``
        where all who share the store are in this process.
    :param end: gives one back, with its outcome. Both raise where the store does not answer.
    """

    def __init__(
        self, extend: Callable[[Lease, float], bool] | None, end: Callable[[Lease], object]
    ) -> None:
        self._extend, self._end = extend, end
        self._pid = os.getpid()
        self._beats = False
        #: By their tokens, and those that are over, which the store has not been able to hear.
        self.own: dict[str, Lease] = {}
        self._over: set[Lease] = set()
        self._lock = threading.Lock()

    def _start(self) -> bool:
        """Make sure that there is a thread; false where none would run."""
        with self._lock:
            if not self._beats and self._extend is not None:
                thread = threading.Thread(target=self._beat, name="wsgi-isr-leases", daemon=True)
                self._beats = threads.start(thread)
            return self._beats

    def add(self, lease: Lease) -> float:
        """Extend a lease from now on; gives the seconds for which the store is to keep it."""
        with self._lock:
            self.own[lease.token] = lease
        # Where nobody would extend it: rather a killed process in the way than two renders.
        return max(0.0, min(TERM if self._start() else UNATTENDED, lease.left))

    def drop(self, lease: Lease) -> None:
        with self._lock:
            self.own.pop(lease.token, None)

    def release(self, lease: Lease) -> None:
        said = self._say(lease)
        self.drop(lease)
        if not said:
            self.later(lease)

    def later(self, lease: Lease) -> None:
        """Release a lease that the store may have given, as soon as it answers."""
        self.drop(lease)
        lease.deadline = time.monotonic() + RETRY
        with self._lock:
            self._over.add(lease)
        self._start()

    def _say(self, lease: Lease) -> bool:
        with contextlib.suppress(Exception):
            self._end(lease)
            return True
        return False

    def say_again(self) -> None:
        """Release what could not be released before; it stops where the store does not answer."""
        for lease in list(self._over):
            if lease.left > 0 and not self._say(lease):
                return
            self._over.discard(lease)

    def _beat(self) -> None:
        idle = 0
        while True:
            time.sleep(BEAT)
            with self._lock:
                leases = list(self.own.values())
                idle = 0 if leases or self._over else idle + 1
                if idle > 3:
                    self._beats = False
                    return
            # An error ends the round: the store may be back before the leases have lapsed.
            with contextlib.suppress(Exception):
                for lease in leases:
                    extend = self._extend if lease.left > 0 else None
                    if not extend or not extend(lease, min(TERM, lease.left)):
                        self.drop(lease)
            self.say_again()

    def close(self) -> None:
        """Give everything back, but not what belongs to the process that forked this one."""
        if self._pid == os.getpid():
            with self._lock:
                leases, self.own = self.own, {}
            all(self._say(lease) for lease in {*leases.values(), *self._over})
