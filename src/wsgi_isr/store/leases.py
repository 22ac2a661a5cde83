"""`Leases`: the leases of one process, and those that it still has to give back.

A lease may last as long as a render, a minute; nobody should wait a minute for a process that was
killed. So a store on a network forgets it after a few seconds, and a thread extends it until then.
"""

from __future__ import annotations

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
#: Seconds for which a release that failed is tried again.
RETRY = 60.0


class Lease:
    """As `protocol.Lease`; ``demanded`` as in `Store.lease`."""

    def __init__(self, leases: Leases, name: str, seconds: float, demanded: bool) -> None:
        self.token = secrets.token_hex(8)
        self.name, self.demanded = name, demanded
        self.deadline = time.monotonic() + seconds
        self.is_over = False
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
        where nothing has to be extended.
    :param end: gives one back, with its outcome. Both raise where the store does not answer.
    """

    def __init__(
        self, extend: Callable[[Lease, float], bool] | None, end: Callable[[Lease], object]
    ) -> None:
        self._extend, self._end = extend, end
        self._pid = os.getpid()
        self._leases: set[Lease] = set()
        self._beats = False
        self._lock = threading.Lock()

    def add(self, lease: Lease) -> float:
        """Extend a lease from now on; gives the seconds for which the store is to keep it."""
        with self._lock:
            self._leases.add(lease)
            if not self._beats and self._extend is not None:
                thread = threading.Thread(target=self._beat, name="wsgi-isr-leases", daemon=True)
                self._beats = threads.start(thread)
        # Where nobody would extend it: rather a killed process in the way than two renders.
        return max(0.0, min(TERM if self._beats else UNATTENDED, lease.left))

    def drop(self, lease: Lease) -> None:
        with self._lock:
            self._leases.discard(lease)

    def has_lapsed(self, token: str) -> bool:
        """Whether a lease is one of this process whose time is over."""
        return any(one.token == token and one.left <= 0 for one in list(self._leases))

    def later(self, lease: Lease) -> None:
        """Release a lease that the store may have given, as soon as it answers."""
        lease.is_over, lease.deadline = True, time.monotonic() + RETRY
        self.add(lease)

    def release(self, lease: Lease) -> None:
        self.later(lease)
        if not self._settle(lease):
            # Who comes from now on did not wait for that render.
            lease.outcome = None

    def say_again(self) -> None:
        """Release what could not be released before; it stops where the store does not answer."""
        all(self._settle(lease) for lease in list(self._leases) if lease.is_over)

    def _settle(self, lease: Lease) -> bool:
        """Extend a lease, or end it; false where the store does not answer."""
        try:
            if lease.is_over:
                if lease.left > 0:
                    self._end(lease)
            elif lease.left <= 0 or not self._extend or self._extend(lease, min(TERM, lease.left)):
                # A render that hangs has it until it ends.
                return True
        except Exception:
            return False
        self.drop(lease)
        return True

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT)
            with self._lock:
                leases = list(self._leases)
                self._beats = bool(leases)
            if not leases:
                return
            # An error ends the round: the store may be back before the leases have lapsed.
            all(self._settle(lease) for lease in leases)

    def close(self) -> None:
        """Give everything back, but not what belongs to the process that forked this one."""
        if self._pid == os.getpid():
            for lease in list(self._leases):
                lease.is_over = True
            self.say_again()
