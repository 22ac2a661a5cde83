"""Pure decisions: is a page fresh, stale or expired, and for how long does that hold.

No I/O and no clock of its own.
"""

from __future__ import annotations

import enum
import math
import typing as t

from .page import Page

#: Seconds by which the clocks of two machines may differ. A page from further in the future comes
#: from a clock that is wrong.
CLOCK_TOLERANCE = 5.0


class State(enum.Enum):
    FRESH = "fresh"
    STALE = "stale"
    EXPIRED = "expired"


class Invalidated(enum.IntEnum):
    """What invalidations since its render began have made of a page."""

    NO = 0
    STALE = 1
    EXPIRED = 2


# Looked up once: reading a member of an enumeration takes time.
_EXPIRED = Invalidated.EXPIRED

#: Whether a page is fresh; seconds of freshness left, rounded up, 0 or negative for a stale page,
#: ``None`` for ever; seconds for which a stale page may be served, counted from the end of its
#: window or, once it is stale, from now, ``None`` for ever; and the time at which this changes, in
#: seconds since 1970.
Window: t.TypeAlias = "tuple[bool, int | None, int | None, float]"


def state_of(page: Page, invalidated: Invalidated, now: float) -> State:
    """The state of a page.

    :param now: seconds since 1970.
    """
    age = now - page.generated_at
    window, expire, _ = page.metadata
    if invalidated is Invalidated.EXPIRED or (expire is not None and age >= expire):
        return State.EXPIRED
    if invalidated is Invalidated.STALE or age < -CLOCK_TOLERANCE:
        return State.STALE
    return State.STALE if window is not None and age >= window else State.FRESH


def window_of(page: Page, invalidated: Invalidated, now: float) -> Window | None:
    """What an answer says of a page that may be served; ``None`` for an expired page.

    One step, because every page that is asked for takes it once a second.

    :param now: seconds since 1970.
    """
    window, expire, _ = page.metadata
    age = now - page.generated_at
    if invalidated is _EXPIRED or (expire is not None and age >= expire):
        return None
    fresh = not invalidated and age >= -CLOCK_TOLERANCE and (window is None or age < window)
    if window is None:
        return fresh, None if fresh else 0, None, math.inf
    # A page from the future has all its freshness left.
    age = max(age, 0.0)
    left = math.ceil(window - age)
    change = page.generated_at + window - left + 1
    if fresh:
        return True, left, None if expire is None else expire - window, change
    return False, min(0, left), None if expire is None else math.floor(expire - age), change
