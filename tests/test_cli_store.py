"""The command line: commands that show or tidy up what is stored."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from cachelib import FileSystemCache
from commands import Command
from conftest import Browser
from conftest import Clock
from conftest import Make
from conftest import Site
from conftest import status_of
from redis_server import Redis

Browse = Callable[..., Browser]

BASE = "http://localhost"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("a_module_of_a_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture
def command(module: types.ModuleType, make: Make, files: str) -> Command:
    """Commands on a middleware whose pages are on http://localhost."""
    module.app = make(files, base_url=BASE)  # type: ignore[attr-defined]
    return Command(module)


class TestList:
    def test_is_a_table(
        self, site: Site, command: Command, browse: Browse, files: str, clock: Clock
    ) -> None:
        site.page("/a", "x" * 200_000, revalidate=300, tags=["one", "two"])
        site.page("/b", "x", revalidate=False)
        site.page("/gone", "x", status="404 Not Found", revalidate=60)
        browser = browse(files, base_url=BASE)
        for path in ("/gone", "/b", "/a"):
            browser.get(path)
        clock.advance(130)
        command.module.app._clock = clock
        site.fail("/gone")
        browser.get("/gone")
        browser.isr.close()
        assert command("list").output == textwrap.dedent(
            """\
            URL                    STATUS  STATE    AGE    TTL    SIZE  TAGS      LAST ERROR
            http://localhost/a        200  fresh  2 min  2 min  200 kB  one, two
            http://localhost/b        200  fresh  2 min      -     1 B
            http://localhost/gone     404  stale  2 min  -70 s     1 B            the render failed
            """
        )

    def test_of_nothing_is_its_head(self, command: Command) -> None:
        result = command("list")
        assert (result.exit_code, len(result.output.splitlines())) == (0, 1)

    def test_is_json_for_programs(
        self, site: Site, command: Command, browse: Browse, files: str
    ) -> None:
        site.page("/a", "x", tags=["one"])
        site.page("/b", "x", revalidate=False)
        browser = browse(files, base_url=BASE)
        browser.get("/a")
        browser.get("/b")
        one, other = sorted(json.loads(command("list", "--json").output), key=lambda p: p["url"])
        assert one | {"age": 0} == {
            "url": "http://localhost/a",
            "status": 200,
            "state": "fresh",
            "age": 0,
            "ttl": 60,
            "tags": ["one"],
            "size": 1,
            "codings": [],
            "last_error": None,
            "sizes": {"identity": 1},
        }
        assert other["ttl"] is None

    def test_of_nothing_is_json_too(self, command: Command) -> None:
        assert json.loads(command("list", "--json").output) == []


class TestStats:
    def test_has_a_line_for_each_process_and_a_sum(
        self, site: Site, command: Command, browse: Browse, files: str
    ) -> None:
        site.page("/")
        for visits in (1234, 2):
            visitor = browse(files, base_url=BASE)
            for _ in range(visits):
                visitor.get("/")
            visitor.isr._here().upkeep.leave_stats()
        head, *lines = command("stats").output.splitlines()
        assert head.split()[:4] == ["PROCESS", "SINCE", "AS", "OF"]
        assert [line.split()[0] for line in lines] == [str(os.getpid())] * 2 + ["all"]
        assert lines[-1].split()[1:4] == ["1,235", "0", "1"]

    def test_is_json_for_programs(
        self, site: Site, command: Command, browse: Browse, files: str
    ) -> None:
        site.page("/")
        visitor = browse(files, base_url=BASE)
        visitor.get("/")
        visitor.isr._here().upkeep.leave_stats()
        (worker,) = json.loads(command("stats", "--json").output)
        assert (worker["pid"], worker["misses"], worker["renders"]) == (os.getpid(), 1, 1)

    def test_without_workers_that_is_told(self, command: Command) -> None:
        result = command("stats")
        assert (result.exit_code, result.output.split()[:3]) == (0, ["No", "worker", "is"])


class TestClear:
    @pytest.fixture
    def visitor(self, site: Site, browse: Browse, files: str) -> Browser:
        visitor = browse(files, base_url=BASE)
        for path in ("/", "/a", "/a/b"):
            site.page(path)
            visitor.get(path)
        return visitor

    def test_removes_all_pages(self, command: Command, visitor: Browser) -> None:
        result = command("clear")
        assert (result.exit_code, result.output) == (0, "Removed: 3 pages\n")
        assert list(command.module.app._here().store.storage.names()) == []

    @pytest.mark.parametrize("path", ["/", "/a", "/a/b"])
    def test_running_workers_drop_what_they_have_in_memory(
        self, site: Site, command: Command, visitor: Browser, path: str
    ) -> None:
        command("clear")
        site.page(path, "new")
        assert visitor.get(path).text == "new"

    def test_of_every_build(
        self, site: Site, command: Command, visitor: Browser, browse: Browse, files: str
    ) -> None:
        browse(files, base_url=BASE, build_id="older").get("/")
        assert command("clear").output == "Removed: 4 pages\n"

    def test_but_of_no_other_site(
        self, command: Command, visitor: Browser, browse: Browse, files: str
    ) -> None:
        other = browse(files, base_url=BASE, key_prefix="other:")
        other.get("/")
        command("clear")
        assert len(list(other.isr.pages())) == 1
        assert status_of(other.get("/")).startswith("isr; hit")

    def test_and_no_file_that_is_no_page(
        self, command: Command, visitor: Browser, tmp_path: Path
    ) -> None:
        name = next(command.module.app._here().store.storage.names())
        note = tmp_path / "cache" / "isr%3A" / "pages" / name[:2] / "README"
        note.write_text("not ours")
        command("clear")
        assert note.exists()

    def test_pages_of_a_build_in_use_go_on(
        self, command: Command, visitor: Browser, site: Site
    ) -> None:
        command("clear")
        visitor.get("/")
        assert status_of(visitor.get("/")) == "isr; hit; ttl=60"


class TestPrune:
    @pytest.fixture
    def visitor(self, site: Site, browse: Browse, files: str) -> Browser:
        visitor = browse(files, base_url=BASE)
        for number in range(10):
            site.page(f"/{number}", status="404 Not Found" if number < 3 else "200 OK")
            visitor.get(f"/{number}")
        return visitor

    def test_removes_down_to_a_number_of_pages(self, command: Command, visitor: Browser) -> None:
        result = command("prune", "--max-pages", "4")
        assert result.exit_code == 0
        assert result.output.startswith("Removed: 3 pages and 3 that were gone, ")
        assert len(list(visitor.isr._here().store.storage.names())) == 4

    def test_or_of_bytes(self, command: Command, visitor: Browser) -> None:
        command("prune", "--max-bytes", "1000")
        assert 0 < len(list(visitor.isr._here().store.storage.names())) < 4

    def test_by_default_to_the_bounds_of_the_url(
        self, command: Command, visitor: Browser, make: Make, files: str
    ) -> None:
        command.module.app = make(f"{files}?max_pages=6")  # type: ignore[attr-defined]
        command("prune")
        assert len(list(visitor.isr._here().store.storage.names())) == 6

    def test_removes_older_builds(
        self, command: Command, visitor: Browser, make: Make, browse: Browse, files: str
    ) -> None:
        browse(files, base_url=BASE, build_id="two").get("/5")
        command.module.app = make(files, build_id="three")  # type: ignore[attr-defined]
        assert command("prune", "--keep-builds", "2").output.startswith("Removed: 7 pages and 3 ")
        assert len(list(visitor.isr._here().store.storage.names())) == 1

    def test_a_store_with_bounds_of_its_own_is_told(
        self, command: Command, make: Make, tmp_path: Path
    ) -> None:
        command.module.app = make(FileSystemCache(str(tmp_path / "c"), threshold=0))  # type: ignore[attr-defined]
        result = command("prune")
        assert result.exit_code == 1
        assert "only files are pruned" in result.output


class TestOtherStores:
    """The same on other stores, as far as they can."""

    def test_one_that_cannot_list(
        self, site: Site, command: Command, make: Make, tmp_path: Path
    ) -> None:
        site.page("/a")
        cache = FileSystemCache(str(tmp_path / "cachelib"), threshold=0)
        command.module.app = make(cache, base_url=BASE)  # type: ignore[attr-defined]
        assert command("prerender", "/a").exit_code == 0
        result = command("clear")
        assert result.exit_code == 0
        assert result.output.startswith("Expired: all pages. None is removed: ")
        assert command("prerender", "/a").output.startswith("rendered")
        result = command("list")
        assert (result.exit_code, result.output[:7]) == (1, "Error: ")

    @pytest.mark.servers
    def test_redis(self, site: Site, command: Command, make: Make, tmp_path: Path) -> None:
        site.page("/a")
        server = Redis(tmp_path)
        try:
            isr = make(server.url, base_url=BASE)
            command.module.app = isr  # type: ignore[attr-defined]
            assert command("prerender", "/a").exit_code == 0
            assert "http://localhost/a" in command("list").output
            isr._here().upkeep.leave_stats()
            assert len(command("stats").output.splitlines()) == 2
            assert command("clear").output == "Removed: 1 page\n"
            assert "only files are pruned" in command("prune").output
        finally:
            server.kill()

    @pytest.mark.servers
    @pytest.mark.parametrize("name", ["list", "stats", "clear"])
    def test_a_server_that_is_down_is_told(
        self, command: Command, make: Make, tmp_path: Path, name: str
    ) -> None:
        server = Redis(tmp_path)
        server.kill()
        command.module.app = make(server.url, base_url=BASE)  # type: ignore[attr-defined]
        result = command(name)
        assert result.exit_code == 1
        assert "Connection refused" in result.output
        assert "Traceback" not in result.output
