"""Builds in the order in which they were first seen, so that each knows the ones before it.

Not when they were last used: going back to an older build must not make it the newest.
"""

from __future__ import annotations

#: Builds that a store remembers.
MAX_BUILDS = 50


def add(known: list[str], build: str) -> list[str]:
    return known if build in known else [*known, build][-MAX_BUILDS:]


def before(known: list[str], build: str) -> list[str]:
    """Those that were there before a build, the last one first."""
    return known[: known.index(build)][::-1]
