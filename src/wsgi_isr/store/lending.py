"""Pages of earlier builds, lent to a build that has not rendered its own yet."""

from __future__ import annotations

import typing as t
from collections.abc import Callable
from dataclasses import replace

from ..key import PageKey
from ..metadata import GONE
from ..page import Page
from . import builds
from .coordination import Coordination
from .coordination import KnowsBuilds
from .records import format_line
from .records import parse_line
from .records import read_file
from .records import write_file

#: Asks the store, as `PageStore.ask` does.
Ask: t.TypeAlias = "Callable[[str, Callable[[], list[str]], bool], list[str] | None]"


class Lending:
    """Which builds lend pages to one, and which page is lent.

    :param count: builds that are asked, at the most.
    """

    def __init__(self, coordination: Coordination, ask: Ask, build_id: str, count: int) -> None:
        self._coordination = coordination
        self._ask = ask
        self._build_id = build_id
        self._count = count
        #: Builds before this one, once they are known.
        self._earlier: list[str] | None = None

    @property
    def is_possible(self) -> bool:
        return isinstance(self._coordination, KnowsBuilds)

    def earlier(self) -> list[str]:
        """Let later builds know of this one; those before it, the last one first."""
        if self._earlier is None and isinstance(self._coordination, KnowsBuilds):
            note = self._coordination.note_build
            self._earlier = self._ask("builds", lambda: note(self._build_id), True)
        return self._earlier or []

    def find(self, key: PageKey, read: Callable[[PageKey], Page | None]) -> Page | None:
        """The page that is lent, under its new name: all that happened to it since counts.

        What is gone is not lent: newer code may well have it.
        """
        if self._count:
            for build in self.earlier()[: self._count]:
                page = read(key._replace(build=build))
                if page is not None and page.code not in GONE:
                    return replace(page, key=key, name=key.name)
        return None


def note_in_file(path: str, build: str) -> list[str]:
    """Note a build in a file; those before it, the last one first. A damaged list begins anew."""
    value = parse_line((read_file(path) or b"").strip())
    known = [str(name) for name in value] if isinstance(value, list) else []
    if build not in known:
        known = builds.add(known, build)
        write_file(path, format_line(known))
    return builds.before(known, build)
