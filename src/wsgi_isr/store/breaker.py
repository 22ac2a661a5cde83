"""A circuit breaker: a store that fails is left alone for a while, and asked again by one."""

from __future__ import annotations

import logging
import threading
import time
import typing as t
from collections.abc import Callable

logger = logging.getLogger("wsgi_isr")

T = t.TypeVar("T")

#: Failures in a row after which the store is left alone.
THRESHOLD = 3
#: Seconds it is left alone, doubled with each failed attempt up to the second number.
PAUSE = (0.5, 10.0)


class Breaker:
    """Calls a store and never raises.

    :param on_error: called with the operation and the error.
    """

    def __init__(self, on_error: Callable[[str, Exception], None]) -> None:
        self._on_error = on_error
        self._failures = 0
        self._retry_at = 0.0
        self._lock = threading.Lock()

    @property
    def open(self) -> bool:
        """Whether the store is being left alone."""
        return self._failures >= THRESHOLD and time.monotonic() < self._retry_at

    def call(self, operation: str, function: Callable[[], T]) -> T | None:
        """What the store answers, or ``None`` if it does not.

        :raises NotImplementedError: what a backend cannot do at all is no failure.
        """
        if self._failures >= THRESHOLD and not self._may_try():
            return None
        try:
            result = function()
        except NotImplementedError:
            raise
        except Exception as error:
            self.failed(operation, error)
            return None
        if self._failures:
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
            pause = min(PAUSE[0] * 2 ** max(0, self._failures - THRESHOLD), PAUSE[1])
            self._retry_at = time.monotonic() + pause
            first = self._failures == 1
        if first:
            logger.warning(
                "the store failed (%s: %s: %s); pages come from memory or are rendered",
                operation,
                type(error).__name__,
                error,
            )
        self._on_error(operation, error)

    def _recovered(self) -> None:
        with self._lock:
            answered = self._failures >= THRESHOLD
            self._failures = 0
        if answered:
            logger.warning("the store answers again")
