"""What is said of entries that are damaged or not ours: one line for each, once a minute."""

from __future__ import annotations

import logging
import time

from ..key import PageKey

logger = logging.getLogger("wsgi_isr")

#: Entries remembered, and seconds for which they are.
MAX_KNOWN = 1000
QUIET = 60.0


class Damage:
    def __init__(self) -> None:
        self._known: dict[str, float] = {}

    def report(self, name: str, key: PageKey | None) -> None:
        """
        :param key: whose page it should have been, if that is known.
        """
        now = time.monotonic()
        if now < self._known.get(name, 0.0):
            return
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[name] = now + QUIET
        logger.warning(
            "entry %s%s is damaged or not ours: treated as missing",
            name,
            f" of {key.url}" if key is not None else "",
        )
