"""A circuit breaker: a store that fails is left alone until somebody has found it well again.

A store on the network is left alone from the first failure on, because that has cost a visitor
the client's timeout; a thread finds out when it is back, so that no visitor pays twice. Where
nothing can be probed, or no thread runs, one visitor tries now and then.
"""

from __future__ import annotations

import enum
import logging
import threading
import time
import typing as t
import weakref
from collections.abc import Callable

from ..threads import start
from .coordination import TooLarge
from .coordination import WritesRefused

logger = logging.getLogger("wsgi_isr")

T = t.TypeVar("T")

#: Failures in a row after which a store that is not probed is left alone.
THRESHOLD = 3
#: Seconds it is left alone, doubled with each failed attempt up to the second number.
PAUSE = (0.5, 10.0)
#: The same between two probes, which cost no visitor anything.
PROBE = (0.05, 2.0)
#: Seconds between two log lines on a store that is not probed.
QUIET = 60.0
#: Seconds without a probe after which the thread counts as one that does not run.
OVERDUE = 5.0


class Level(enum.IntEnum):
    """What the store is not asked for."""

    NOTHING = 0
    WRITES = 1
    ANYTHING = 2


class Breaker:
    """Calls a store and never raises.

    :param on_error: called with the operation and the error.
    :param probe: raises while the store is not well, `WritesRefused` if it can still be read.
    """

    def __init__(
        self,
        on_error: Callable[[str, Exception], None],
        probe: Callable[[], None] | None = None,
    ) -> None:
        self._on_error = on_error
        self._probe = probe
        self._threshold = THRESHOLD if probe is None else 1
        self._level = Level.NOTHING
        self._failures = 0
        self._retry_at = 0.0
        self._quiet_until = 0.0
        self._watched = False
        self._lock = threading.Lock()

    @property
    def open(self) -> bool:
        """Whether the store is being left alone."""
        return self._level is Level.ANYTHING

    @property
    def well(self) -> bool:
        """Whether the store has answered what it was asked last."""
        return self._failures == 0 and self._level is Level.NOTHING

    def call(self, operation: str, function: Callable[[], T], write: bool = False) -> T | None:
        """What the store answers, or ``None`` if it does not.

        :param write: whether a store that takes no writes need not be asked.
        :raises NotImplementedError: what a backend cannot do at all is no failure.
        :raises TooLarge: nor is what it says about one page.
        """
        alone = self._level > (Level.NOTHING if write else Level.WRITES)
        if alone and not self._may_try():
            return None
        try:
            result = function()
        except (NotImplementedError, TooLarge):
            raise
        except Exception as error:
            self.failed(operation, error)
            return None
        if alone or (self._failures and self._level is Level.NOTHING):
            self._recovered()
        return result

    def _may_try(self) -> bool:
        with self._lock:
            now = time.monotonic()
            if now < self._retry_at:
                return False
            # The others go on without the store until this attempt has shown how it is.
            self._retry_at = now + PAUSE[1]
            return True

    def failed(self, operation: str, error: Exception) -> None:
        with self._lock:
            self._failures += 1
            first = self._failures == 1
            level = self._level
            if self._failures >= self._threshold:
                level = max(level, _level_of(error))
            told = level is not self._level
            self._level = level
            if self._probe is None:
                # Where some of it works, as reading on a full disk, each failure is the first.
                told = first and time.monotonic() >= self._quiet_until
                if told:
                    self._quiet_until = time.monotonic() + QUIET
                pause = PAUSE[0] * 2 ** min(max(0, self._failures - self._threshold), 10)
                self._retry_at = time.monotonic() + min(pause, PAUSE[1])
            elif not self._watched:
                self._retry_at = time.monotonic() + OVERDUE
                thread = threading.Thread(
                    target=_watch, args=[weakref.ref(self)], name="wsgi-isr-probe", daemon=True
                )
                self._watched = start(thread)
        if told:
            _report(operation, error)
        self._on_error(operation, error)

    def _recovered(self, watched: bool | None = None) -> None:
        with self._lock:
            if watched is not None:
                self._watched = watched
            answered = self._level is not Level.NOTHING
            self._failures = 0
            self._level = Level.NOTHING
        if answered:
            self._quiet_until = 0.0
            logger.warning("the store answers again")

    def probe(self) -> bool:
        """See how the store is by now; true if it is well."""
        self._retry_at = time.monotonic() + PROBE[1] + OVERDUE
        try:
            t.cast(Callable[[], None], self._probe)()
        except Exception as error:
            with self._lock:
                level = _level_of(error)
                changed, self._level = level is not self._level, level
            if changed:
                _report("probe", error)
            return False
        self._recovered(watched=False)
        return True


def _level_of(error: Exception) -> Level:
    return Level.WRITES if isinstance(error, WritesRefused) else Level.ANYTHING


def _report(operation: str, error: Exception) -> None:
    if _level_of(error) is Level.WRITES:
        logger.warning(
            "the store takes no writes (%s: %s); new pages are kept in memory only",
            operation,
            error,
        )
        return
    logger.warning(
        "the store failed (%s: %s: %s); pages come from memory or are rendered",
        operation,
        type(error).__name__,
        error,
    )


def _watch(reference: weakref.ref[Breaker]) -> None:
    pause = PROBE[0]
    while True:
        time.sleep(pause)
        breaker = reference()
        if breaker is None or breaker.probe():
            return
        del breaker
        pause = min(2 * pause, PROBE[1])
