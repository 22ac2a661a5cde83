"""``invalidate`` on the command line: pages become stale or expired, and are counted."""

from __future__ import annotations

import sys
import types
import typing as t
from collections.abc import Callable

import pytest
from commands import Command
from conftest import Browser, Make, Site, status_of

Browse = Callable[..., Browser]

BASE = "http://localhost"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, make: Make, files: str) -> Command:
    """Commands on a middleware whose pages are on http://localhost."""
    module = types.ModuleType("a_module_of_a_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.app = make(files, base_url=BASE)  # type: ignore[attr-defined]
    return Command(module)


class TestInvalidate:
    @pytest.fixture
    def visitor(self, site: Site, browse: Browse, files: str) -> Browser:
        visitor = browse(files, base_url=BASE)
        for path, tags in (("/", ["home"]), ("/blog/a", ["post"]), ("/blog/b", ["post", "b"])):
            site.page(path, tags=tags)
            visitor.get(path)
        return visitor

    def states(self, visitor: Browser) -> list[str]:
        return [page.state for page in sorted(visitor.isr.pages())]

    def test_by_pattern(self, command: Command, visitor: Browser) -> None:
        result = command("invalidate", "/blog/*")
        assert (result.exit_code, result.stdout) == (0, "Stale: /blog/*\n2 pages of this build\n")
        assert self.states(visitor) == ["fresh", "stale", "stale"]

    def test_by_tag(self, command: Command, visitor: Browser) -> None:
        result = command("invalidate", "--tag", "home", "--tag", "b")
        assert result.stdout == "Stale: tag home, tag b\n2 pages of this build\n"
        assert self.states(visitor) == ["stale", "fresh", "stale"]

    def test_so_that_the_next_visitor_waits(self, command: Command, visitor: Browser) -> None:
        result = command("invalidate", "--expire", "--tag", "b", "/")
        assert result.stdout == "Expired: tag b, /\n2 pages of this build\n"
        assert self.states(visitor) == ["expired", "fresh", "expired"]
        assert status_of(visitor.get("/")) == "isr; fwd=stale; stored"

    def test_nothing_is_a_mistake(self, command: Command) -> None:
        assert command("invalidate").exit_code == 2

    @pytest.mark.parametrize("args", [["blog"], ["--tag", ""]])
    def test_a_mistake_is_told_and_invalidates_nothing(
        self, command: Command, visitor: Browser, args: list[str]
    ) -> None:
        result = command("invalidate", "--tag", "home", "/", *args)
        assert result.exit_code == 1
        assert "\nError: " in result.stderr
        assert self.states(visitor) == ["fresh", "fresh", "fresh"]

    def test_pages_of_this_build_are_counted(
        self, site: Site, command: Command, visitor: Browser, browse: Browse, files: str
    ) -> None:
        other = browse(files, base_url=BASE, build_id="another")
        other.get("/blog/a")
        # Each page once, whatever it is named by.
        result = command("invalidate", "--tag", "post", "--tag", "b", "/blog/*", "/blog/b")
        assert result.stdout.endswith("\n2 pages of this build\n")
        assert command("invalidate", "/none").stdout == "Stale: /none\n0 pages of this build\n"

    def test_a_store_that_fails_is_told(
        self, command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: object) -> t.NoReturn:
            raise OSError("the disk is gone")

        monkeypatch.setattr(command.module.app.store, "invalidate", fail)
        result = command("invalidate", "/")
        assert result.exit_code == 1
        assert "the disk is gone" in result.stderr
