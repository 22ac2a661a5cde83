"""The command line: which app it acts on, and commands that prerender."""

from __future__ import annotations

import gc
import threading
import tracemalloc
import types
import typing as t
from collections.abc import Callable
from pathlib import Path

import pytest
from cachelib import SimpleCache
from click.testing import CliRunner
from commands import BASE, SEPARATE, Command
from commands import command as command
from commands import elsewhere as elsewhere
from commands import module as module
from conftest import Browser, Make, Site, status_of
from redis_server import Redis
from werkzeug.middleware.proxy_fix import ProxyFix

from wsgi_isr import ISRMiddleware, page_headers
from wsgi_isr.__main__ import main

Browse = Callable[..., Browser]


class TestTheApp:
    @pytest.fixture
    def page(self, site: Site, browse: Browse, files: str) -> None:
        site.page("/")
        browse(files, base_url=BASE).get("/")

    @pytest.mark.usefixtures("page")
    def test_is_a_middleware(self, command: Command) -> None:
        assert "http://localhost/" in command("list").stdout

    @pytest.mark.usefixtures("page")
    @pytest.mark.parametrize(
        "app",
        ["with_one", "create_app()", "under_a_proxy"],
    )
    def test_or_has_one(self, command: Command, app: str) -> None:
        class App:
            wsgi_app: t.Any = None

        isr = command.module.app
        with_one, proxied = App(), App()
        with_one.wsgi_app, proxied.wsgi_app = isr, ProxyFix(isr)
        command.module.with_one = with_one  # type: ignore[attr-defined]
        command.module.under_a_proxy = proxied  # type: ignore[attr-defined]
        command.module.create_app = lambda: isr  # type: ignore[attr-defined]
        assert "http://localhost/" in command("list", app=app).stdout

    @pytest.mark.parametrize(
        ("app", "message"),
        [
            ("missing", ":missing"),
            ("create_app", "write 'a_module_of_a_test:create_app()'"),
            ("number", "has none inside"),
            ("missing()", "the app is named MODULE:APP"),
            ("create_app(app)", "the app is named MODULE:APP"),
            ("", "the app is named MODULE:APP"),
        ],
    )
    def test_what_is_none_is_told(self, command: Command, app: str, message: str) -> None:
        command.module.create_app = lambda: command.module.app  # type: ignore[attr-defined]
        command.module.number = 1  # type: ignore[attr-defined]
        result = command("list", app=app)
        assert result.exit_code != 0
        assert message in result.stderr
        assert "Traceback" not in result.stderr

    @pytest.mark.parametrize("name", ["no_such_module_at_all", "os.no_such_module", "", ".os"])
    def test_a_module_that_is_not_there_is_told(self, name: str) -> None:
        result = CliRunner(**SEPARATE).invoke(main, [f"{name}:app", "list"])
        assert result.exit_code == 1
        assert "the app is named MODULE:APP" in result.stderr
        assert name in result.stderr

    def test_one_that_the_app_imports_comes_out_as_it_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "has_an_import.py").write_text("import no_such_module_at_all")
        monkeypatch.syspath_prepend(tmp_path)
        result = CliRunner(**SEPARATE).invoke(main, ["has_an_import:app", "list"])
        assert isinstance(result.exception, ModuleNotFoundError)

    def test_an_error_in_the_app_comes_out_as_it_is(self, command: Command) -> None:
        def create_app() -> t.NoReturn:
            raise ZeroDivisionError

        command.module.create_app = create_app  # type: ignore[attr-defined]
        assert isinstance(command("list", app="create_app()").exception, ZeroDivisionError)

    @pytest.mark.parametrize("cache", ["memory://", SimpleCache(threshold=10)])
    @pytest.mark.parametrize("name", ["list", "stats", "clear", "prune"])
    def test_pages_that_no_command_reaches_are_told(
        self, command: Command, make: Make, cache: t.Any, name: str
    ) -> None:
        command.module.app = make(cache)  # type: ignore[attr-defined]
        result = command(name)
        assert result.exit_code == 1
        assert "in memory only" in result.stderr


class TestWhatItActsOn:
    def test_is_named(self, command: Command, tmp_path: Path) -> None:
        error = command("list").stderr
        assert error.startswith(f"Store: sqlite, {tmp_path}/cache/")
        assert "; build ''\n" in error

    @pytest.mark.servers
    def test_is_named_without_passwords(self, command: Command, make: Make, redis: Redis) -> None:
        redis.do("ACL", "SETUSER", "me", "on", ">secret", "~*", "&*", "+@all")
        url = redis.url.replace("redis://", "redis://me:secret@")
        command.module.app = make(url)  # type: ignore[attr-defined]
        error = command("list").stderr
        assert error.startswith(f"Store: redis, {redis.url}; build ''\n")

    def test_a_store_that_no_worker_has_used_is_a_warning(
        self, site: Site, command: Command, browse: Browse, files: str
    ) -> None:
        site.page("/a")
        assert "no worker has used this store" in command("prerender", "/a").stderr
        # Renders of a command are none of a worker.
        assert "no worker has used this store" in command("list").stderr
        visitor = browse(files, base_url=BASE)
        visitor.get("/a")
        visitor.isr.close()
        assert "Warning" not in command("list").stderr

    def test_running_workers_of_another_build_are_a_warning(
        self, site: Site, command: Command, make: Make, browse: Browse, files: str
    ) -> None:
        site.page("/a")
        visitor = browse(files, base_url=BASE, build_id="one")
        visitor.get("/a")
        visitor.isr.stats()
        command.module.app = make(files, base_url=BASE, build_id="one")  # type: ignore[attr-defined]
        assert "Warning" not in command("list").stderr
        command.module.app = make(files, base_url=BASE, build_id="two")  # type: ignore[attr-defined]
        result = command("list")
        assert "Warning: workers run other builds, 'one'" in result.stderr
        assert "http://localhost/a" not in result.stdout


class TestPrerender:
    def test_renders_paths(self, site: Site, command: Command, browse: Browse, files: str) -> None:
        site.page("/a")
        site.page("/b")
        result = command("prerender", "/a", "/b")
        assert result.exit_code == 0
        assert sorted(result.stdout.splitlines()[:2]) == [
            "rendered 200 http://localhost/a",
            "rendered 200 http://localhost/b",
        ]
        assert result.stdout.splitlines()[2].endswith(": 2 rendered")
        browser = browse(files, base_url=BASE)
        assert status_of(browser.get("/b")) == "isr; hit; ttl=60"

    def test_what_it_counted_is_in_the_store_and_it_is_no_worker(
        self, site: Site, command: Command, make: Make, files: str
    ) -> None:
        site.page("/a")
        command("prerender", "/a")
        store = make(files).store
        assert (store.totals()["renders"], store.processes()) == (1, [])

    def test_paths_may_come_from_standard_input(self, site: Site, command: Command) -> None:
        for path in ("/a", "/b", "/c"):
            site.page(path)
        result = command("prerender", "/c", "-", input="/a\n\n /b \n/a\n")
        assert result.exit_code == 0
        assert [site.renders(path) for path in ("/a", "/b", "/c")] == [1, 1, 1]

    def test_without_paths_an_app_that_cannot_list_them_is_told(self, command: Command) -> None:
        result = command("prerender")
        assert result.exit_code == 2
        assert "name paths" in result.stderr

    def test_failures_are_told_and_the_others_go_on(self, site: Site, command: Command) -> None:
        site.page("/a")
        site.fail("/b")
        result = command("prerender", "/b", "/a")
        assert result.exit_code == 1
        assert "2 pages in" in result.stdout
        assert "1 rendered, 1 failed" in result.stdout
        assert "failed http://localhost/b: ZeroDivisionError: the render failed\n" in result.stdout

    @pytest.mark.parametrize(
        ("path", "status", "told"),
        [
            ("/refused", 1, "a page is the same for everybody"),
            ("/nothing", 0, "gone 404 http://localhost/nothing\n"),
            ("blog", 1, "a path starts with /"),
        ],
    )
    def test_what_is_no_page_is_told_with_its_remedy(
        self, site: Site, command: Command, path: str, status: int, told: str
    ) -> None:
        site.page("/refused", headers=[("Set-Cookie", "a=1")])
        result = command("prerender", path)
        assert result.exit_code == status
        assert told in result.stdout

    def test_what_an_error_says_cannot_command_the_terminal(
        self, site: Site, command: Command
    ) -> None:
        def app(environ: t.Any, start_response: t.Any) -> t.NoReturn:
            raise ValueError("\x1b[2J\nrendered 200 http://localhost/a")

        site.answers["/a"] = app
        result = command("prerender", "/a")
        assert "\x1b" not in result.stdout
        assert result.stdout.startswith("failed http://localhost/a:  [2J rendered 200")

    def test_the_number_of_workers_is_that_of_renders_at_a_time(
        self, site: Site, command: Command
    ) -> None:
        barrier = threading.Barrier(5)
        for number in range(5):
            site.page(f"/{number}", lambda environ: str(barrier.wait(10)))
        paths = [f"/{number}" for number in range(5)]
        assert command("prerender", "--workers", "5", *paths).exit_code == 0

    @pytest.mark.parametrize(
        ("args", "url"),
        [
            (
                ("--base-url", "https://WWW.example.com:443", "/a"),
                "https://www.example.com/a",
            ),
            (("--base-url", f"{BASE}/blog/", "/blog/a"), "http://localhost/blog/a"),
            (("https://example.com/a",), "https://example.com/a"),
        ],
    )
    def test_where_the_pages_are_is_an_option_or_in_the_paths(
        self, site: Site, elsewhere: Command, args: tuple[str, ...], url: str
    ) -> None:
        site.page("/a")
        result = elsewhere("prerender", *args)
        assert result.exit_code == 0
        assert f"rendered 200 {url}\n" in result.stdout

    def test_without_it_a_path_fails(self, site: Site, elsewhere: Command) -> None:
        site.page("/a")
        result = elsewhere("prerender", "https://example.com/b", "/a")
        assert result.exit_code == 1
        assert "failed /a: no host is known for '/a': " in result.stdout
        assert "set base_url (for a command --base-url)" in result.stdout
        assert site.renders("/a") == 0

    @pytest.mark.parametrize(
        "url", ["www.example.com", "ftp://example.com", "http://", "http://a b", "http://x/?a=1"]
    )
    def test_what_is_no_place_is_told(self, elsewhere: Command, url: str) -> None:
        result = elsewhere("prerender", "--base-url", url, "/a")
        assert result.exit_code == 2
        assert "Invalid value for '--base-url': base_url takes" in result.stderr

    def test_a_place_that_is_not_the_apps_is_told(self, command: Command) -> None:
        result = command("prerender", "--base-url", "http://localhost.example", "/a")
        assert result.exit_code == 2
        assert "has no pages of this app: they are on http://localhost" in result.stderr

    def test_a_thousand_pages_take_the_memory_of_a_few(
        self, module: types.ModuleType, files: str
    ) -> None:
        sizes = []

        def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
            if environ["PATH_INFO"] in ("/200", "/1000"):
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
            start_response("200 OK", page_headers(60))
            return [b"a page that does not get smaller by compression" * 10]

        module.app = ISRMiddleware(app, files, base_url=BASE, memory_size=0)  # type: ignore[attr-defined]
        paths = "".join(f"/{number}\n" for number in range(1, 1001))
        # With the middlewares of earlier tests their threads end, which take memory as well.
        gc.collect()
        tracemalloc.start()
        try:
            result = Command(module)("prerender", "-", input=paths)
        finally:
            tracemalloc.stop()
        assert "1,000 pages in" in result.stdout
        # What is printed is kept by the test's runner.
        # Other threads of this process take a little, too.
        assert sizes[1] - sizes[0] < 2**20
