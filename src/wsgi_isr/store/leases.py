"""Leases in a store on the network, kept up by their holder's process while it lives.

A lease may last as long as a render, a minute; nobody should wait a minute for a process that was
killed. So the server forgets it after a few seconds, and a thread extends it until then.
"""

from __future__ import annotations

import secrets
import threading
import time
import typing as t
from collections.abc import Callable

from ..threads import start

#: Seconds for which a lease outlives its process.
LEASE = 5.0
#: Seconds between two extensions: two of them may fail.
BEAT = 1.25
#: Seconds for which a lease is given back that the server may have given.
GIVE_BACK = 60.0
#: Seconds for which an outcome is there for those who waited; they look 20 times a second.
OUTCOME = 2.0
#: Seconds for which a failure is remembered. Each further one renews that.
FAILURE = 24 * 3600


class RemoteLease:
    """A lease that the server forgets unless it is extended.

    :param seconds: for which it is extended at most.
    :param extend: asks the server for a number of seconds more; false if the lease is lost.
    :param give_back: gives it back, with an outcome.
    """

    def __init__(
        self,
        name: str,
        seconds: float,
        on_demand: bool,
        extend: Callable[[RemoteLease, float], bool],
        give_back: Callable[[RemoteLease, bytes | None], None],
    ) -> None:
        self.token = secrets.token_hex(8)
        self.name = name
        self.on_demand = on_demand
        self.deadline = time.monotonic() + seconds
        self.extend = extend
        self._give_back = give_back
        self._heart: Heart | None = None
        #: Whether the server may have given it without anybody having heard of that.
        self.is_lost = False

    @property
    def next_term(self) -> float:
        """Seconds for which the server shall keep it now; 0 or less past its deadline."""
        return min(LEASE, self.deadline - time.monotonic())

    def keep_up(self, heart: Heart) -> bool:
        self._heart = heart
        return heart.add(self)

    def let_go(self) -> None:
        """Do not extend it any more."""
        if self._heart is not None:
            self._heart.discard(self)

    def release(self, outcome: bytes | None = None) -> None:
        self.let_go()
        self._give_back(self, outcome)


class Heart:
    """One thread that extends the leases of this process, while there are any."""

    def __init__(self) -> None:
        self._leases: dict[str, RemoteLease] = {}
        self._beating = False
        self._lock = threading.Lock()

    def add(self, lease: RemoteLease) -> bool:
        """Extend a lease from now on; false where threads cannot be started."""
        with self._lock:
            if not self._beating:
                thread = threading.Thread(target=self._beat, name="wsgi-isr-leases", daemon=True)
                if not start(thread):
                    return False
                self._beating = True
            self._leases[lease.token] = lease
            return True

    def discard(self, lease: RemoteLease) -> None:
        with self._lock:
            self._leases.pop(lease.token, None)

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT)
            with self._lock:
                leases = list(self._leases.values())
                if not leases:
                    self._beating = False
                    return
            for lease in leases:
                if not lease.is_lost and not _extend(lease):
                    self.discard(lease)
            for lease in leases:
                if lease.is_lost and not self._give_back(lease):
                    break

    def _give_back(self, lease: RemoteLease) -> bool:
        """False if the server does not answer yet: the others would have to wait, too."""
        try:
            lease.release()
        except Exception:
            if time.monotonic() < lease.deadline:
                self.add(lease)
            return False
        return True


def _extend(lease: RemoteLease) -> bool:
    term = lease.next_term
    if term <= 0:
        return False
    try:
        return lease.extend(lease, term)
    except Exception:
        # The server may be back before the lease has lapsed.
        return True


def take(
    heart: Heart, lease: RemoteLease, seconds: float, acquire: Callable[[float], t.Any]
) -> t.Any:
    """Have a server give a lease, and keep it up.

    :param acquire: asks for it for some seconds; returns who has it, if somebody has.
    """
    try:
        held = acquire(min(LEASE, seconds))
    except Exception:
        # A server that was too slow may have given it, and others would wait until it lapses.
        lease.is_lost = True
        lease.deadline = time.monotonic() + GIVE_BACK
        lease.keep_up(heart)
        raise
    if held is None and not lease.keep_up(heart) and seconds > LEASE:
        # Nobody will extend it: rather a killed process in the way than two renders at once.
        lease.extend(lease, seconds)
    return held
