"""The command line: which app it acts on, and commands that render or invalidate."""

from __future__ import annotations

import gc
import sys
import threading
import tracemalloc
import types
import typing as t
from collections.abc import Callable

import pytest
from cachelib import SimpleCache
from click.testing import CliRunner
from commands import Command
from conftest import Browser
from conftest import Make
from conftest import Site
from conftest import status_of
from werkzeug.middleware.proxy_fix import ProxyFix

from wsgi_isr import ISRMiddleware
from wsgi_isr import page_headers
from wsgi_isr.cli import main

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


@pytest.fixture
def elsewhere(module: types.ModuleType, make: Make, files: str) -> Command:
    """Commands on a middleware that does not know where its pages are."""
    module.app = make(files)  # type: ignore[attr-defined]
    return Command(module)


class TestTheApp:
    @pytest.fixture
    def page(self, site: Site, browse: Browse, files: str) -> None:
        site.page("/")
        browse(files, base_url=BASE).get("/")

    @pytest.mark.usefixtures("page")
    def test_is_a_middleware(self, command: Command) -> None:
        assert "http://localhost/" in command("list").output

    @pytest.mark.usefixtures("page")
    @pytest.mark.parametrize(
        "app",
        ["with_one", "behind.it", "create_app()", "create_app('x', key=1)", "under_a_proxy"],
    )
    def test_or_has_one(self, command: Command, app: str) -> None:
        class App:
            wsgi_app: t.Any = None

        isr = command.module.app
        with_one, proxied = App(), App()
        with_one.wsgi_app, proxied.wsgi_app = isr, ProxyFix(isr)
        command.module.with_one = with_one  # type: ignore[attr-defined]
        command.module.under_a_proxy = proxied  # type: ignore[attr-defined]
        command.module.behind = types.SimpleNamespace(it=isr)  # type: ignore[attr-defined]
        command.module.create_app = lambda *args, **options: isr  # type: ignore[attr-defined]
        assert "http://localhost/" in command("list", app=app).output

    @pytest.mark.parametrize(
        ("app", "message"),
        [
            ("missing", "there is no 'missing'"),
            ("create_app", "write 'a_module_of_a_test:create_app()'"),
            ("number", "wrap the app in one"),
            ("app +", "a call with literal arguments"),
            ("create_app(app)", "a call with literal arguments"),
            ("[]", "a call with literal arguments"),
            ("", "MODULE:APP"),
        ],
    )
    def test_what_is_none_is_told(self, command: Command, app: str, message: str) -> None:
        command.module.create_app = lambda: command.module.app  # type: ignore[attr-defined]
        command.module.number = 1  # type: ignore[attr-defined]
        result = command("list", app=app)
        assert result.exit_code != 0
        assert message in result.output
        assert "Traceback" not in result.output

    @pytest.mark.parametrize("name", ["no_such_module_at_all", "os.no_such_module"])
    def test_a_module_that_is_not_there_is_told(self, name: str) -> None:
        result = CliRunner().invoke(main, [f"{name}:app", "list"])
        assert result.exit_code == 1
        assert "there is no module" in result.output

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
        assert "in memory only" in result.output


class TestPrerender:
    def test_renders_paths(self, site: Site, command: Command, browse: Browse, files: str) -> None:
        site.page("/a")
        site.page("/b")
        result = command("prerender", "/a", "/b")
        assert result.exit_code == 0
        assert sorted(result.output.splitlines()[:2]) == [
            "rendered 200 http://localhost/a",
            "rendered 200 http://localhost/b",
        ]
        assert result.output.splitlines()[2].endswith(": 2 rendered")
        browser = browse(files, base_url=BASE)
        assert status_of(browser.get("/b")) == "isr; hit; ttl=60"

    def test_a_fresh_page_is_not_rendered_again(self, site: Site, command: Command) -> None:
        site.page("/a")
        command("prerender", "/a")
        result = command("prerender", "/a")
        assert result.exit_code == 0
        assert result.output.startswith("fresh 200 http://localhost/a\n")
        assert ": 0 rendered, 1 fresh already" in result.output
        assert site.renders() == 1

    def test_paths_may_come_from_standard_input(self, site: Site, command: Command) -> None:
        for path in ("/a", "/b", "/c"):
            site.page(path)
        result = command("prerender", "/c", "-", input="/a\n\n /b \n/a\n")
        assert result.exit_code == 0
        assert [site.renders(path) for path in ("/a", "/b", "/c")] == [1, 1, 1]

    def test_without_paths_an_app_that_cannot_list_them_is_told(self, command: Command) -> None:
        result = command("prerender")
        assert result.exit_code == 2
        assert "name paths" in result.output

    def test_failures_are_told_and_the_others_go_on(self, site: Site, command: Command) -> None:
        site.page("/a")
        site.fail("/b")
        result = command("prerender", "/b", "/a")
        assert result.exit_code == 1
        assert "2 pages in" in result.output
        assert "1 rendered, 1 failed" in result.output
        assert (
            "failed (1): ZeroDivisionError: the render failed\n    http://localhost/b\n"
            in result.output
        )

    def test_refusals_are_told_with_their_remedy(self, site: Site, command: Command) -> None:
        site.page("/a", headers=[("Set-Cookie", "a=1")])
        result = command("prerender", "/a")
        assert result.exit_code == 1
        assert "1 refused" in result.output
        assert "set cookies on another URL" in result.output

    def test_what_is_no_page_is_refused(self, command: Command) -> None:
        result = command("prerender", "/nothing")
        assert result.exit_code == 1
        assert "refused 404 http://localhost/nothing: " in result.output

    def test_what_is_no_path_fails(self, command: Command) -> None:
        result = command("prerender", "blog")
        assert result.exit_code == 1
        assert "a path starts with /" in result.output

    def test_one_reason_is_told_once(self, site: Site, command: Command) -> None:
        paths = [f"/{number}" for number in range(15)]
        for path in paths:
            site.fail(path)
        summary = command("prerender", *paths).output.partition(" pages in")[2]
        assert summary.count("the render failed") == 1
        assert summary.count("http://localhost/") == 10
        assert "and 5 more" in summary

    def test_what_an_error_says_cannot_command_the_terminal(
        self, site: Site, command: Command
    ) -> None:
        def app(environ: t.Any, start_response: t.Any) -> t.NoReturn:
            raise ValueError("\x1b[2J\nrendered 200 http://localhost/a")

        site.answers["/a"] = app
        result = command("prerender", "/a")
        assert "\x1b" not in result.output
        assert result.output.startswith("failed http://localhost/a:  [2J rendered 200")

    def test_the_number_of_workers_is_that_of_renders_at_a_time(
        self, site: Site, command: Command
    ) -> None:
        barrier = threading.Barrier(5)
        for number in range(5):
            site.page(f"/{number}", lambda environ: str(barrier.wait(10)))
        paths = [f"/{number}" for number in range(5)]
        assert command("prerender", "--workers", "5", *paths).exit_code == 0

    def test_where_the_pages_are_is_an_option(self, site: Site, elsewhere: Command) -> None:
        site.page("/a", lambda environ: environ["wsgi.url_scheme"] + environ["HTTP_HOST"])
        result = elsewhere("prerender", "--base-url", "https://WWW.example.com:443", "/a")
        assert result.exit_code == 0
        assert "rendered 200 https://www.example.com/a" in result.output

    def test_with_the_mount_point(self, site: Site, elsewhere: Command) -> None:
        site.page("/a", lambda environ: environ["SCRIPT_NAME"])
        result = elsewhere("prerender", "--base-url", f"{BASE}/blog/", "/blog/a")
        assert "rendered 200 http://localhost/blog/a" in result.output

    def test_or_in_the_paths(self, site: Site, elsewhere: Command) -> None:
        site.page("/a")
        assert elsewhere("prerender", "https://example.com/a").exit_code == 0

    def test_without_it_nothing_is_tried(self, site: Site, elsewhere: Command) -> None:
        site.page("/a")
        result = elsewhere("prerender", "https://example.com/a", "/a")
        assert result.exit_code == 1
        assert "no host is known for '/a': give --base-url" in result.output
        assert site.renders() == 0

    @pytest.mark.parametrize(
        "url", ["www.example.com", "ftp://example.com", "http://", "http://a b", "http://x/?a=1"]
    )
    def test_what_is_no_place_is_told(self, elsewhere: Command, url: str) -> None:
        result = elsewhere("prerender", "--base-url", url, "/a")
        assert result.exit_code == 1
        assert "--base-url takes" in result.output

    def test_a_place_that_is_not_the_apps_is_told(self, command: Command) -> None:
        result = command("prerender", "--base-url", "https://example.com", "/a")
        assert result.exit_code == 1
        assert "the pages of this app are under http://localhost" in result.output

    def test_five_thousand_pages_take_the_memory_of_a_few(
        self, module: types.ModuleType, files: str
    ) -> None:
        sizes = []

        def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
            if environ["PATH_INFO"] in ("/1000", "/5000"):
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
            start_response("200 OK", page_headers(60))
            return [b"a page that does not get smaller by compression" * 10]

        module.app = ISRMiddleware(app, files, base_url=BASE)  # type: ignore[attr-defined]
        paths = "".join(f"/{number}\n" for number in range(1, 5001))
        # With the middlewares of earlier tests their threads end, which take memory as well.
        gc.collect()
        tracemalloc.start()
        try:
            result = Command(module)("prerender", "-", input=paths)
        finally:
            tracemalloc.stop()
        assert "5,000 pages in" in result.output
        # What is printed is kept by the test's runner.
        # Other threads of this process take a little, too.
        assert sizes[1] - sizes[0] < 3 * 2**20


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
        assert result.output.startswith("rendered 200 http://localhost/a\n1 page in")
        assert visitor.get("/a").text == "new"

    def test_hosts_come_from_the_store(
        self, site: Site, elsewhere: Command, browse: Browse, files: str
    ) -> None:
        site.page("/a")
        browse(files).get("/a", base_url="https://one.example")
        browse(files).get("/a", base_url="https://two.example")
        result = elsewhere("revalidate", "/a")
        assert result.exit_code == 0
        assert "https://one.example/a" in result.output
        assert "https://two.example/a" in result.output

    def test_a_path_without_a_host_is_told(self, elsewhere: Command) -> None:
        result = elsewhere("revalidate", "/a")
        assert result.exit_code == 1
        assert "no host is known for '/a'" in result.output
        assert "--base-url" in result.output
        assert "Traceback" not in result.output

    def test_a_mistake_in_the_last_path_renders_nothing(self, site: Site, command: Command) -> None:
        site.page("/a")
        result = command("revalidate", "/a", "blog")
        assert result.exit_code == 1
        assert "a path starts with /" in result.output
        assert site.renders() == 0

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
        assert "failed http://localhost/a: ZeroDivisionError: the render failed" in result.output
        assert "rendered 200 http://localhost/b" in result.output
        assert visitor.get("/a").text == "old"

    def test_paths_without_pages_may_be_skipped(self, site: Site, command: Command) -> None:
        site.page("/a")
        result = command("revalidate", "--only-generated", "/a")
        assert result.exit_code == 0
        assert result.output.startswith("0 pages")
        assert site.renders() == 0

    def test_pages_are_rendered_also_where_the_library_is_off(
        self, site: Site, command: Command, make: Make, files: str
    ) -> None:
        site.page("/a")
        command.module.app = make(files, base_url=BASE, enabled=False)  # type: ignore[attr-defined]
        assert command("revalidate", "/a").exit_code == 0
        assert command("prerender", "/a").output.startswith("fresh")
