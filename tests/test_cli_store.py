"""The command line: commands that show or tidy up what is stored."""

from __future__ import annotations

import json
import os
import time
import types
import typing as t
from collections.abc import Callable
from pathlib import Path

import pytest
from cachelib import FileSystemCache
from commands import BASE, Command
from commands import command as command
from commands import module as module
from conftest import Browser, Clock, Make, Site, status_of
from redis_server import Redis
from steps import visit

from wsgi_isr import Rule
from wsgi_isr.cli import INTERRUPTED, REFRESH
from wsgi_isr.ondemand import called_by

Browse = Callable[..., Browser]


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
        head, one, two, three = (line.split() for line in command("list").stdout.splitlines())
        assert head == "URL STATUS STATE AGE TTL USED SIZE RENDER P95 TAGS LAST ERROR".split()
        assert one[:8] == f"{BASE}/a 200 fresh 2 min 2 min 0".split()
        assert one[9:11] == ["200", "kB"]
        assert one[-2:] == ["one,", "two"]
        assert two[:6] == f"{BASE}/b 200 fresh 2 min -".split()
        assert three[:7] == f"{BASE}/gone 404 stale 2 min -70 s".split()
        assert three[-3:] == ["the", "render", "failed"]

    def test_may_be_of_some_pages_in_some_order(
        self, site: Site, command: Command, browse: Browse, files: str, clock: Clock
    ) -> None:
        site.page("/blog/a", "x" * 100, tags=["one"])
        site.page("/blog/b", "x" * 10, revalidate=10, tags=["two"])
        site.page("/c", "x" * 1000, tags=["one", "three"])
        browser = browse(files, base_url=BASE, rules={"/broken": 60}, build_id="")
        browser.get("/c")
        clock.advance(20)
        browser.get("/blog/b")
        clock.advance(20)
        browser.get("/blog/a")
        site.fail("/broken")
        with pytest.raises(ZeroDivisionError):
            browser.get("/broken")
        command.module.app._clock = clock

        def paths(*args: str) -> list[str]:
            pages = json.loads(command("list", "--json", *args).stdout)
            return [page["url"].removeprefix(BASE) for page in pages]

        assert paths() == ["/blog/a", "/blog/b", "/broken", "/c"]
        assert paths("--failed") == ["/broken"]
        assert paths("--stale") == ["/blog/b"]
        assert paths("--tag", "one") == ["/blog/a", "/c"]
        assert paths("--tag", "one", "--tag", "two", "--match", "/blog/*") == ["/blog/a", "/blog/b"]
        assert paths("--match", "/blog/*", "--stale") == ["/blog/b"]
        assert paths("--sort", "size", "--limit", "2") == ["/c", "/blog/a"]
        assert paths("--sort", "age", "--limit", "1") == ["/c"]

    def test_may_begin_with_the_slowest(
        self, site: Site, command: Command, browse: Browse, files: str
    ) -> None:
        site.page("/a")
        site.page("/z", lambda environ: str(time.sleep(0.05)))
        browser = browse(files, base_url=BASE)
        browser.get("/a")
        browser.get("/z")
        assert command("list", "--sort", "render").stdout.splitlines()[1].startswith(f"{BASE}/z")

    def test_may_begin_with_what_makes_room_first(
        self, site: Site, command: Command, make: Make, shared: str, clock: Clock
    ) -> None:
        isr = make(shared, base_url=BASE)
        command.module.app = make(shared, base_url=BASE)
        for path in ("/a", "/z", "/gone", "/b"):
            status = "404 Not Found" if path == "/gone" else "200 OK"
            site.page(path, revalidate=600, status=status)
            visit(isr, path)
            # Their times are not to be the same.
            time.sleep(0.002)
        clock.advance(100)
        visit(isr, "/a")
        isr.stats()

        def order(*args: str) -> list[str]:
            pages = json.loads(command("list", "--sort", "use", "--json", *args).stdout)
            return [page["url"].removeprefix(BASE) for page in pages]

        assert order() == ["/gone", "/z", "/b", "/a"]
        isr.prune(max_pages=2)
        assert order() == ["/b", "/a"]

    def test_of_a_pattern_that_can_never_match_is_a_mistake(self, command: Command) -> None:
        result = command("list", "--match", "/a?page=2")
        assert result.exit_code == 1
        assert "can never match" in result.stderr

    def test_of_nothing_is_its_head(self, command: Command) -> None:
        result = command("list")
        assert (result.exit_code, len(result.stdout.splitlines())) == (0, 1)

    def test_is_json_for_programs(
        self, site: Site, command: Command, browse: Browse, files: str
    ) -> None:
        site.page("/a", "x", tags=["one"])
        site.page("/b", "x", revalidate=False)
        browser = browse(files, base_url=BASE)
        browser.get("/a")
        browser.get("/b")
        one, other = sorted(json.loads(command("list", "--json").stdout), key=lambda p: p["url"])
        assert one.pop("seconds") > 0
        (render,) = one.pop("renders")
        assert render[2] == "miss"
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
            "failures": 0,
            "used_at": one["used_at"],
        }
        assert time.time() - one["used_at"] < 60
        assert other["ttl"] is None

    def test_of_nothing_is_json_too(self, command: Command) -> None:
        assert json.loads(command("list", "--json").stdout) == []


class TestStats:
    @pytest.fixture
    def visitor(self, site: Site, browse: Browse, files: str) -> Browser:
        site.page("/")
        visitor = browse(files, base_url=BASE)
        for _ in range(4):
            visitor.get("/")
        visitor.isr.stats()
        return visitor

    def test_has_totals_and_a_line_for_each_process(
        self, command: Command, visitor: Browser
    ) -> None:
        lines = command("stats").stdout.splitlines()
        assert ["hits", "3"] in [line.split() for line in lines]
        assert ["hit", "ratio", "75.0%"] in [line.split() for line in lines]
        head, process = lines[-2].split(), lines[-1].split()
        assert (head[:2], process[0]) == (["PID", "HOST"], str(os.getpid()))
        periods = [line.split("%")[1] for line in lines if "since the" in line or "today" in line]
        assert len(periods) == 3 and all(what.startswith(" of 4 visits, ") for what in periods)

    def test_ends_with_the_last_calls(self, command: Command, visitor: Browser) -> None:
        with called_by("an editor"):
            visitor.isr.revalidate_tag("news", expire=True)
        visitor.isr.revalidate(f"{BASE}/")
        visitor.isr.stats()
        head, *calls = command("stats").stdout.splitlines()[-3:]
        assert head.split() == "WHEN CALL WHAT EFFECT BY PROCESS".split()
        assert [line.split()[3:-2] for line in calls] == [
            ["revalidate", "/", "1", "page", "rendered", "-"],
            ["tags", "news", "expired", "an", "editor"],
        ]
        json_calls = json.loads(command("stats", "--json").stdout)["calls"]
        assert [call["by"] for call in json_calls] == [None, "an editor"]

    def test_is_json_for_programs(self, command: Command, visitor: Browser) -> None:
        found = json.loads(command("stats", "--json").stdout)
        assert (found["hits"], found["misses"], found["hit_ratio"]) == (3, 1, 0.75)
        assert found["render_seconds"]["count"] == 1
        (worker,) = found["workers"]
        assert worker["pid"] == os.getpid()

    def test_is_shown_again_and_again(
        self, command: Command, visitor: Browser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rounds = iter(range(2))

        def sleep(seconds: float) -> None:
            if seconds == REFRESH:
                visitor.get("/")
                visitor.isr.stats()
                if next(rounds, None) is None:
                    raise KeyboardInterrupt

        monkeypatch.setattr("wsgi_isr.cli.time", types.SimpleNamespace(sleep=sleep))
        result = command("stats", "--watch", "--json")
        assert [json.loads(line)["hits"] for line in result.stdout.splitlines()] == [3, 4, 5]
        assert result.exit_code == INTERRUPTED

    def test_of_nothing(self, command: Command) -> None:
        result = command("stats")
        assert result.exit_code == 0
        assert ["hits", "0"] in [line.split() for line in result.stdout.splitlines()]


class TestExplain:
    def test_says_what_is_stored_and_why(
        self, site: Site, command: Command, browse: Browse, files: str
    ) -> None:
        site.page("/a", tags=["one"])
        browse(files, base_url=BASE).get("/a")
        lines = [line.split(maxsplit=1) for line in command("explain", "/a").stdout.splitlines()]
        assert ["url", f"{BASE}/a"] in lines
        assert ["reason", "miss"] in lines
        assert "error" not in [line[0] for line in lines]

    def test_names_who_has_invalidated_a_page(
        self, site: Site, command: Command, browse: Browse, files: str
    ) -> None:
        site.page("/a", tags=["one"])
        browse(files, base_url=BASE).get("/a")
        command("invalidate", "--tag", "one")
        said = command("explain", "/a").stdout
        assert ", tags, one, stale, isr invalidate (" in said

    def test_is_of_a_visitor_with_cookies_and_headers(
        self, site: Site, command: Command, make: Make, files: str
    ) -> None:
        vary = {"Accept-Language": ["en", "de"]}
        rules = {"/a": Rule(vary=vary), "/**": None}
        isr = make(files, base_url=BASE, rules=rules, bypass=["sessionid"])
        command.module.app = isr  # type: ignore[attr-defined]

        def explain(*args: str) -> t.Any:
            return json.loads(command("explain", "--json", "/a", *args).stdout)

        assert "fwd=uri-miss" in explain()["answer"]
        assert "detail=bypass" in explain("--cookie", "sessionid=1")["answer"]
        german = explain("--header", "Accept-Language: de")
        assert german["key"]["vary"] == [["accept-language", "de"]]
        assert german["rules"] == [
            "'/a' matches",
            "'/**' matches",
        ]
        assert command("explain", "/a", "--header", "nonsense").exit_code == 2

    def test_is_json_for_programs(self, site: Site, command: Command) -> None:
        found = json.loads(command("explain", "--json", "/never").stdout)
        assert (found["url"], found["state"]) == (f"{BASE}/never", "unknown")


class TestClear:
    @pytest.fixture
    def visitor(self, site: Site, browse: Browse, files: str) -> Browser:
        visitor = browse(files, base_url=BASE)
        for path in ("/", "/a", "/a/b"):
            site.page(path)
            visitor.get(path)
        return visitor

    def test_removes_all_pages_of_every_build_and_of_no_other_site(
        self, command: Command, visitor: Browser, browse: Browse, files: str
    ) -> None:
        browse(files, base_url=BASE, build_id="older").get("/")
        other = browse(files, base_url=BASE, key_prefix="other:")
        other.get("/")
        result = command("clear")
        assert (result.exit_code, result.stdout) == (0, "Removed: 4 pages\n")
        assert json.loads(command("list", "--json").stdout) == []
        assert len(list(other.isr.pages())) == 1
        assert status_of(other.get("/")).startswith("isr; hit")

    def test_running_workers_drop_what_they_have_in_memory(
        self, site: Site, command: Command, visitor: Browser
    ) -> None:
        command("clear")
        for path in ("/", "/a", "/a/b"):
            site.page(path, "new", revalidate=30)
            assert visitor.get(path).text == "new"
            assert status_of(visitor.get(path)) == "isr; hit; ttl=30"


class TestPrune:
    @pytest.fixture
    def visitor(self, site: Site, browse: Browse, files: str) -> Browser:
        visitor = browse(files, base_url=BASE)
        for number in range(10):
            site.page(f"/{number}", status="404 Not Found" if number < 3 else "200 OK")
            visitor.get(f"/{number}")
        return visitor

    def test_removes_down_to_a_number_of_pages(self, command: Command, visitor: Browser) -> None:
        visitor.isr.close()
        result = command("prune", "--max-pages", "4")
        assert (result.exit_code, result.stdout) == (0, "Removed: 6 pages\n")
        assert len(list(visitor.isr.pages())) == 4

    def test_by_default_to_the_bounds_of_the_url(
        self, command: Command, visitor: Browser, make: Make, files: str
    ) -> None:
        visitor.isr.close()
        command.module.app = make(f"{files}?max_pages=6")  # type: ignore[attr-defined]
        command("prune")
        assert len(list(visitor.isr.pages())) == 6

    def test_removes_older_builds(
        self, command: Command, visitor: Browser, make: Make, browse: Browse, files: str
    ) -> None:
        browse(files, base_url=BASE, build_id="two").get("/5")
        command.module.app = make(files, build_id="three")  # type: ignore[attr-defined]
        assert command("prune", "--keep-builds", "2").stdout == "Removed: 10 pages\n"

    def test_a_store_with_bounds_of_its_own_is_told(
        self, command: Command, make: Make, tmp_path: Path
    ) -> None:
        command.module.app = make(FileSystemCache(str(tmp_path / "c"), threshold=0))  # type: ignore[attr-defined]
        result = command("prune")
        assert result.exit_code == 1
        assert "Error: " in result.stderr


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
        assert result.stdout.startswith("Expired: all pages. None is removed: ")
        assert command("prerender", "/a").stdout.startswith("rendered")
        result = command("list")
        assert result.exit_code == 1
        assert "Error: " in result.stderr

    @pytest.mark.servers
    def test_redis(self, site: Site, command: Command, make: Make, tmp_path: Path) -> None:
        site.page("/a")
        server = Redis(tmp_path)
        try:
            isr = make(server.url, base_url=BASE)
            command.module.app = isr  # type: ignore[attr-defined]
            assert command("prerender", "/a").exit_code == 0
            assert "http://localhost/a" in command("list").stdout
            assert ["pages", "1"] in [x.split() for x in command("stats").stdout.splitlines()]
            assert command("prune").stdout == "Removed: 0 pages\n"
            assert command("clear").stdout == "Removed: 1 page\n"
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
        assert "Connection refused" in result.stderr
        assert "Traceback" not in result.stderr
