"""The command line: commands that revalidate or invalidate."""

from __future__ import annotations

import typing as t
from collections.abc import Callable

import pytest
from commands import BASE, Command
from commands import command as command
from commands import elsewhere as elsewhere
from commands import module as module
from conftest import Browser, Make, Site, status_of

Browse = Callable[..., Browser]


class TestRevalidate:
    def test_renders_a_page_now(
        self, site: Site, command: Command, browse: Browse, files: str
    ) -> None:
        site.page("/a", "old")
        visitor = browse(files, base_url=BASE)
        visitor.get("/a")
        site.page("/a", "new")
        result = command("revalidate", "/a")
        assert result.exit_code == 0
        assert result.stdout.startswith("rendered 200 http://localhost/a\n1 page in")
        assert visitor.get("/a").text == "new"

    def test_a_path_without_a_host_is_told(self, elsewhere: Command) -> None:
        result = elsewhere("revalidate", "/a")
        assert result.exit_code == 1
        assert "no host is known for '/a'" in result.stderr
        assert "--base-url" in result.stderr
        assert "Traceback" not in result.stderr

    def test_a_failure_is_told_and_the_old_page_stays(
        self, site: Site, command: Command, browse: Browse, files: str
    ) -> None:
        site.page("/a", "old")
        site.page("/b")
        visitor = browse(files, base_url=BASE)
        visitor.get("/a")
        site.fail("/a")
        result = command("revalidate", "/a", "/b")
        assert result.exit_code == 1
        assert "failed http://localhost/a: ZeroDivisionError: the render failed" in result.stdout
        assert "rendered 200 http://localhost/b" in result.stdout
        assert visitor.get("/a").text == "old"

    def test_paths_without_pages_may_be_skipped(self, site: Site, command: Command) -> None:
        site.page("/a")
        result = command("revalidate", "--only-generated", "/a")
        assert result.exit_code == 0
        assert result.stdout.startswith("0 pages")
        assert site.renders() == 0

    def test_pages_are_rendered_also_where_the_library_is_off(
        self, site: Site, command: Command, make: Make, files: str
    ) -> None:
        site.page("/a")
        command.module.app = make(files, base_url=BASE, enabled=False)  # type: ignore[attr-defined]
        assert command("revalidate", "/a").exit_code == 0
        assert command("prerender", "/a").stdout.startswith("skipped")


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
