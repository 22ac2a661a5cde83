"""The one place where a store may fail: a circuit breaker around each call that leaves the process.

A store that fails is not asked again until a probe, or any call that was made all the same, has
succeeded. One slow answer is no outage. Log lines: one when it begins, one when it ends.
"""

from __future__ import annotations

import enum
import functools
import logging
import threading
import time
import typing as t
from collections.abc import Callable

from ..signals import fields
from .protocol import ReadOnly, Store

logger = logging.getLogger("wsgi_isr")

T = t.TypeVar("T")
P = t.ParamSpec("P")

#: Failures in a row after which the circuit opens.
THRESHOLD = 2
#: Seconds without a probe after which a caller tries: the thread that probes does not run.
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
    """Calls a store. A thread of the process calls `probe` now and then.

    :param on_error: called with the operation and the error.
    """

    def __init__(self, store: Store, on_error: Callable[[str, Exception], None]) -> None:
        self.store = store
        self._on_error = on_error
        self._circuit = Circuit.CLOSED
        self._failures = 0
        self._try_at = 0.0
        #: Until when the change to a circuit is not logged again.
        self._quiet = dict.fromkeys(Circuit, 0.0)
        self._is_announced = False
        #: Seconds since 1970 at which its state last changed; 0 before it does.
        self.since = 0.0
        self._lock = threading.Lock()

    @property
    def is_well(self) -> bool:
        """Whether the store did what it was asked last."""
        return self._failures == 0 and self._circuit is Circuit.CLOSED

    @property
    def state(self) -> str:
        """How the store is, in a word: ``"ok"``, ``"read-only"`` or ``"away"``."""
        return ("ok", "read-only", "away")[self._circuit]

    def read(self, step: Callable[P, T], *args: P.args, **options: P.kwargs) -> T | None:
        """What the store answers to a step, or ``None`` where it does not. It never raises."""
        return self._ask(functools.partial(step, *args, **options), False)

    def write(self, step: Callable[P, T], *args: P.args, **options: P.kwargs) -> T | None:
        """The same for a step that writes."""
        return self._ask(functools.partial(step, *args, **options), True)

    def demand(self, step: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """The same without the breaker, for a step whose failure must not pass in silence.

        :raises Exception: what the store raises.
        """
        return self._do(functools.partial(step, *args, **options), True)

    def _ask(self, step: functools.partial[T], writes: bool) -> T | None:
        if self._circuit > (Circuit.CLOSED if writes else Circuit.WRITES):
            with self._lock:
                now = time.monotonic()
                if now < self._try_at:
                    return None
                # Others go on without the store until this call has shown how it is.
                self._try_at = now + OVERDUE
        try:
            return self._do(step, writes)
        except Exception:
            return None

    def _do(self, step: functools.partial[T], writes: bool) -> T:
        try:
            result = step()
        except Exception as error:
            self.failed(getattr(step.func, "__name__", "").strip("_"), error)
            raise
        if self._failures and (writes or self._circuit is not Circuit.WRITES):
            self._failures = 0
            self._become(Circuit.CLOSED)
        return result

    def failed(self, operation: str, error: Exception) -> None:
        """Note that the store did not do what it was asked."""
        with self._lock:
            self._failures += 1
            circuit = self._circuit
            if isinstance(error, ReadOnly):
                circuit = max(circuit, Circuit.WRITES)
            elif self._failures >= THRESHOLD:
                circuit = Circuit.OPEN
        self._become(circuit, operation, error)
        self._on_error(operation, error)

    def probe(self) -> None:
        """Find out how a store is that failed, so that no visitor has to."""
        if self._circuit is Circuit.CLOSED:
            return
        self._try_at = time.monotonic() + OVERDUE
        try:
            self.store.probe()
        except Exception as error:
            circuit = Circuit.WRITES if isinstance(error, ReadOnly) else Circuit.OPEN
            self._become(circuit, "probe", error)
        else:
            self._failures = 0
            self._become(Circuit.CLOSED)

    def _become(
        self, circuit: Circuit, operation: str = "", error: Exception | None = None
    ) -> None:
        with self._lock:
            if circuit is self._circuit:
                return
            now = time.monotonic()
            self._circuit, self.since, self._try_at = circuit, time.time(), now + OVERDUE
            if circuit is Circuit.CLOSED:
                # An end is announced if its beginning was.
                is_new, self._is_announced = self._is_announced, False
            elif is_new := now >= self._quiet[circuit]:
                self._quiet[circuit], self._is_announced = now + QUIET, True
        if is_new:
            facts = (operation, type(error).__name__, error) if error is not None else ()
            extra = fields("store", state=self.state, operation=operation, error=str(error or ""))
            logger.warning(MESSAGES[circuit], *facts, extra=extra)
