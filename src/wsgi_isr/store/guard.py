"""The one place where a store may fail: a circuit breaker around each call that leaves the process.

A store that fails is not asked again until a probe, or any call that was made all the same, has
succeeded. One slow answer is no outage. Log lines: one when it begins, one when it ends.
"""

from __future__ import annotations

import enum
import logging
import threading
import time
import typing as t
import weakref
from collections.abc import Callable

from ..signals import fields
from ..threads import start
from .protocol import ReadOnly, Store, TooLarge

logger = logging.getLogger("wsgi_isr")

T = t.TypeVar("T")

#: Failures in a row after which the circuit opens.
THRESHOLD = 2
#: Seconds between two probes: the first, and the longest.
PROBE = (0.05, 2.0)
#: Seconds without a probe after which a caller tries: the thread does not run.
OVERDUE = 5.0
#: Seconds between two log lines of one kind.
QUIET = 60.0


class Circuit(enum.IntEnum):
    """What the store is not asked for."""

    CLOSED = 0
    WRITES = 1
    OPEN = 2


MESSAGES = {
    Circuit.CLOSED: "the store answers again",
    Circuit.WRITES: "the store takes no writes (%s: %s: %s): new pages stay in memory only, and "
    "on-demand calls fail",
    Circuit.OPEN: "the store is away (%s: %s: %s): pages come from memory or are rendered, and "
    "on-demand calls fail",
}


class Guard:
    """Calls a store.

    :param on_error: called with the operation and the error.
    """

    def __init__(self, store: Store, on_error: Callable[[str, Exception], None]) -> None:
        self.store = store
        self._on_error = on_error
        self._circuit = Circuit.CLOSED
        self._failures = 0
        self._try_at = 0.0
        self._probing = False
        #: Until when the change to a circuit is not logged again.
        self._quiet = dict.fromkeys(Circuit, 0.0)
        self._announced = False
        #: Seconds since 1970 at which its state last changed; 0 before it does.
        self.since = 0.0
        self._lock = threading.Lock()
        self._closed = False

    @property
    def is_well(self) -> bool:
        """Whether the store did what it was asked last."""
        return self._failures == 0 and self._circuit is Circuit.CLOSED

    @property
    def state(self) -> str:
        """How the store is, in a word: ``"ok"``, ``"read-only"`` or ``"away"``."""
        return ("ok", "read-only", "away")[self._circuit]

    def ask(self, operation: str, function: Callable[[], T], write: bool = False) -> T | None:
        """What the store answers, or ``None`` where it does not. It never raises, except

        :raises NotImplementedError: for what this kind of store cannot do,
        :raises TooLarge: for a page that it does not take.
        """
        if self._circuit > (Circuit.CLOSED if write else Circuit.WRITES) and not self._may_try():
            return None
        try:
            return self.demand(operation, function, write)
        except (NotImplementedError, TooLarge):
            raise
        except Exception:
            return None

    def demand(self, operation: str, function: Callable[[], T], write: bool = False) -> T:
        """The same without the breaker, for a call whose failure must not pass in silence.

        :raises Exception: what the store raises.
        """
        try:
            result = function()
        except (NotImplementedError, TooLarge, ValueError):
            raise
        except Exception as error:
            self.failed(operation, error)
            raise
        if self._failures and (write or self._circuit is not Circuit.WRITES):
            self._recovered()
        return result

    def _may_try(self) -> bool:
        with self._lock:
            now = time.monotonic()
            may_try = now >= self._try_at
            if may_try:
                # Others go on without the store until this call has shown how it is.
                self._try_at = now + OVERDUE
            return may_try

    def failed(self, operation: str, error: Exception) -> None:
        """Note that the store did not do what it was asked."""
        with self._lock:
            self._failures += 1
            circuit = self._circuit
            if isinstance(error, ReadOnly):
                circuit = max(circuit, Circuit.WRITES)
            elif self._failures >= THRESHOLD:
                circuit = Circuit.OPEN
            probe = circuit is not Circuit.CLOSED and not self._probing and not self._closed
            if probe:
                self._probing, self._try_at = True, time.monotonic() + OVERDUE
        self._become(circuit, operation, error)
        if probe:
            thread = threading.Thread(
                target=_probe, args=[weakref.ref(self)], name="wsgi-isr-probe", daemon=True
            )
            self._probing = start(thread)
        self._on_error(operation, error)

    def _become(self, circuit: Circuit, operation: str, error: Exception | None) -> None:
        with self._lock:
            if circuit is self._circuit:
                return
            self._circuit, self.since, now = circuit, time.time(), time.monotonic()
            # An end is announced if its beginning was.
            announced = (
                self._announced if circuit is Circuit.CLOSED else now >= self._quiet[circuit]
            )
            self._quiet[circuit] = now + QUIET if announced else self._quiet[circuit]
            self._announced = circuit is not Circuit.CLOSED and (announced or self._announced)
        if announced:
            facts = (operation, type(error).__name__, error) if error is not None else ()
            extra = fields("store", state=self.state, operation=operation, error=str(error or ""))
            logger.warning(MESSAGES[circuit], *facts, extra=extra)

    def _recovered(self) -> None:
        self._failures = 0
        self._become(Circuit.CLOSED, "", None)

    def probe(self) -> bool:
        """Find out how the store is; true if it is well."""
        try:
            self.store.probe()
        except Exception as error:
            self._try_at = time.monotonic() + PROBE[1] + OVERDUE
            circuit = Circuit.WRITES if isinstance(error, ReadOnly) else Circuit.OPEN
            self._become(circuit, "probe", error)
            return False
        self._recovered()
        return True

    def probe_ends(self) -> bool:
        """Probe; true where no further probe is needed."""
        if not self._closed and self._circuit is not Circuit.CLOSED and not self.probe():
            return False
        self._probing = False
        return True

    def close(self) -> None:
        self._closed = True
        self.store.close()


def _probe(reference: weakref.ref[Guard]) -> None:
    pause = PROBE[0]
    while True:
        time.sleep(pause)
        guard = reference()
        if guard is None or guard.probe_ends():
            return
        del guard
        pause = min(2 * pause, PROBE[1])
