"""``invalidate`` on the command line: pages become stale or expired, and are counted."""

from __future__ import annotations

import sys
import types
import typing as t
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Command
from conftest import Browser
from conftest import Make
from conftest import Site
from conftest import status_of

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
        assert (result.exit_code, result.output) == (0, "Stale: /blog/*\n2 pages known\n")
        assert self.states(visitor) == ["fresh", "stale", "stale"]

    def test_by_tag(self, command: Command, visitor: Browser) -> None:
        result = command("invalidate", "--tag", "home", "--tag", "b")
        assert result.output == "Stale: tag home, tag b\n2 pages known\n"
        assert self.states(visitor) == ["stale", "fresh", "stale"]

    def test_so_that_the_next_visitor_waits(self, command: Command, visitor: Browser) -> None:
        result = command("invalidate", "--expire", "--tag", "b", "/")
        assert result.output == "Expired: tag b, /\n2 pages known\n"
        assert self.states(visitor) == ["expired", "fresh", "expired"]
        assert status_of(visitor.get("/")) == "isr; fwd=stale; stored"

    def test_nothing_is_a_mistake(self, command: Command) -> None:
        assert command("invalidate").exit_code == 2

    @pytest.mark.parametrize("args", [["blog"], ["--tag", ""]])
    def test_a_mistake_is_told_and_marks_nothing(
        self, command: Command, visitor: Browser, args: list[str]
    ) -> None:
        result = command("invalidate", "--tag", "home", "/", *args)
        assert result.exit_code == 1
        assert result.output.startswith("Error: ")
        assert self.states(visitor) == ["fresh", "fresh", "fresh"]

    def test_pages_of_this_build_are_counted_where_files_tell(
        self, site: Site, command: Command, visitor: Browser, browse: Browse, files: str
    ) -> None:
        other = browse(files, base_url=BASE, build_id="another")
        other.get("/blog/a")
        # Each page once, whatever it is named by.
        result = command("invalidate", "--tag", "post", "--tag", "b", "/blog/*", "/blog/b")
        assert result.output.endswith("\n2 pages known\n")
        assert command("invalidate", "/none").output == "Stale: /none\n0 pages known\n"

    def test_an_entry_that_is_damaged_is_not_counted(
        self, command: Command, visitor: Browser, tmp_path: Path
    ) -> None:
        for file in (tmp_path / "cache").rglob("pages/*/*"):
            file.chmod(0o600)
            file.write_bytes(b"ISR\x01c0000" + bytes([0, 0, 0, 13]) + b'{"key": [1]}x')
        assert command("invalidate", "/**").output == "Stale: /**\n0 pages known\n"

    def test_a_store_that_fails_is_told(
        self, command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: object) -> t.NoReturn:
            raise OSError("the disk is gone")

        coordination = command.module.app._here().store.coordination
        monkeypatch.setattr(coordination, "invalidate", fail)
        result = command("invalidate", "/")
        assert result.exit_code == 1
        assert "the disk is gone" in result.output
