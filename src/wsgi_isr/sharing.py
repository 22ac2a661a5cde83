"""One object for what many pages have: less memory, and the processor's cache has it."""

from __future__ import annotations

import functools
import typing as t

T = t.TypeVar("T")

#: Characters of what is shared: it is kept after its pages.
MAX_SHARED = 200


def shared(value: T) -> T:
    """The first one of all equal values.

    :param value: short, for clients and apps choose what these are.
    """
    first: T = _first(value)
    return first


# Typed, because a named tuple equals a plain one.
@functools.lru_cache(4096, typed=True)
def _first(value: t.Any) -> t.Any:
    return value
