"""The command line of Flask apps, and as a program of its own."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
import types
import typing as t
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from commands import BASE, SEPARATE, Command
from commands import module as module
from conftest import Browser, Site, status_of
from flask import Flask
from steps import wait_until
from werkzeug.middleware.proxy_fix import ProxyFix

from wsgi_isr.flask import ISR, isr_page

Browse = Callable[..., Browser]


class TestFlask:
    @pytest.fixture
    def app(self, files: str, tmp_path: Path) -> Flask:
        app = Flask(__name__, instance_path=str(tmp_path / "instance"))
        app.config.update(ISR_CACHE=files, ISR_BASE_URL=BASE)
        return app

    @pytest.fixture
    def isr(self, app: Flask) -> ISR:
        isr = ISR(app)

        @app.get("/")
        @isr_page(revalidate=60)
        def home() -> str:
            return "home"

        @app.get("/<slug>")
        @isr_page(revalidate=60)
        def post(slug: str) -> str:
            return slug

        @isr.paths
        def post_paths() -> Iterator[tuple[str, dict[str, str]]]:
            yield from (("post", {"slug": slug}) for slug in ("a", "b"))

        return isr

    def run(self, app: Flask, *args: str) -> Result:
        return app.test_cli_runner(**SEPARATE).invoke(args=["isr", *args])

    @pytest.mark.usefixtures("isr")
    def test_prerenders_what_the_generators_list(self, app: Flask) -> None:
        result = self.run(app, "prerender")
        assert result.exit_code == 0
        assert "3 pages in" in result.stdout
        answer = app.test_client().get("/a")
        assert answer.text == "a"

    @pytest.mark.usefixtures("isr")
    def test_what_a_rule_excludes_is_skipped_unless_it_is_asked_for(self, app: Flask) -> None:
        app.config["ISR_RULES"] = {"/a": None}
        result = self.run(app, "prerender")
        assert result.exit_code == 0
        assert "skipped /a\n" in result.stdout
        assert "rendered 200 http://localhost/b\n" in result.stdout
        result = self.run(app, "prerender", "/a")
        assert result.exit_code == 1
        assert "a rule of None excludes it" in result.stdout

    @pytest.mark.usefixtures("isr")
    def test_or_only_some(self, app: Flask) -> None:
        assert "1 page in" in self.run(app, "prerender", "/a").stdout

    @pytest.mark.usefixtures("isr")
    def test_a_page_that_no_generator_covers_is_named(self, app: Flask) -> None:
        @app.get("/other/<slug>")
        @isr_page
        def other(slug: str) -> str:
            return slug

        result = self.run(app, "prerender")
        assert result.exit_code == 0
        assert "Warning: no generator covers the page 'other'" in result.stderr

    @pytest.mark.usefixtures("isr")
    @pytest.mark.parametrize("name", ["DEBUG", "TESTING"])
    def test_commands_work_also_where_the_library_is_off(self, app: Flask, name: str) -> None:
        app.config[name] = True
        assert self.run(app, "prerender").exit_code == 0
        result = self.run(app, "revalidate", "/a")
        assert result.stdout.startswith("rendered 200 http://localhost/a\n")
        assert "http://localhost/b" in self.run(app, "list").stdout
        assert self.run(app, "clear").stdout == "Removed: 3 pages\n"

    def test_the_server_name_tells_where_the_pages_are(self, app: Flask, isr: ISR) -> None:
        app.config["ISR_BASE_URL"] = None
        other = Flask("other", instance_path=app.instance_path)
        other.config.update(
            ISR_CACHE=app.config["ISR_CACHE"],
            SERVER_NAME="example.com",
            PREFERRED_URL_SCHEME="https",
            APPLICATION_ROOT="/blog",
        )
        ISR(other)
        other.add_url_rule("/x", "x", isr_page(revalidate=60)(lambda: "x"))
        assert "rendered 200 https://example.com/blog/x" in self.run(other, "prerender").stdout

    @pytest.mark.usefixtures("isr")
    @pytest.mark.parametrize("where", ["config", "option"])
    def test_a_mount_point_of_the_base_url_is_that_of_listed_paths(
        self, app: Flask, where: str
    ) -> None:
        url = f"{BASE}/mount"
        app.config["ISR_BASE_URL"] = url if where == "config" else None
        args = ["--base-url", url] if where == "option" else []
        result = self.run(app, "prerender", *args)
        assert f"rendered 200 {url}/a\n" in result.stdout
        assert "3 rendered" in result.stdout

    @pytest.mark.usefixtures("isr")
    def test_the_same_commands_for_any_wsgi_server(
        self, app: Flask, module: types.ModuleType
    ) -> None:
        module.app = app  # type: ignore[attr-defined]
        module.wrapped = ProxyFix(app)  # type: ignore[attr-defined]
        command = Command(module)
        assert "3 pages in" in command("prerender").stdout
        assert "3 skipped" in command("prerender", app="wrapped").stdout

    def test_there_are_none_without_the_extension(self, app: Flask) -> None:
        result = self.run(app, "list")
        assert result.exit_code == 2
        assert "No such command 'isr'" in result.stderr


SITE = """
import os, sys, time
from wsgi_isr import ISRMiddleware, page_headers

def site(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/slow":
        open(os.environ["STARTED"], "w").close()
        while not os.path.exists(os.environ["GO"]):
            time.sleep(0.01)
    if path == "/bad":
        raise ZeroDivisionError("the render failed")
    start_response("200 OK", [("Content-Type", "text/plain"), *page_headers(60)])
    return [b"a page"]

app = ISRMiddleware(site, os.environ["CACHE"], base_url="http://localhost")
"""

BLOG = """
import os, time
from flask import Flask
from wsgi_isr.flask import ISR, isr_page

app = Flask(__name__)
isr = ISR(app, cache=os.environ["CACHE"], base_url="http://localhost")

@app.get("/<slug>")
@isr_page
def post(slug):
    return slug

@isr.paths
def post():
    yield {"slug": "a"}
    open(os.environ["STARTED"], "w").close()
    while True:
        time.sleep(0.01)
"""


@pytest.mark.processes
class TestProgram:
    """``python -m wsgi_isr`` as it is typed."""

    @pytest.fixture
    def start(self, tmp_path: Path, files: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
        (tmp_path / "shop.py").write_text(SITE)
        started: list[subprocess.Popen[str]] = []

        def start(*args: str, app: str = "shop:app", **options: t.Any) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-m", "wsgi_isr", app, *args],
                cwd=tmp_path,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                    "CACHE": files,
                    "STARTED": str(tmp_path / "started"),
                    "GO": str(tmp_path / "go"),
                    "COLUMNS": "80",
                },
                text=True,
                # Who ignores SIGINT leaves that to children.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
            )
            started.append(process)
            return process

        yield start
        for process in started:
            process.kill()
            process.communicate()

    def test_holds_in_running_workers_at_once(
        self, start: t.Any, site: Site, browse: Browse, files: str
    ) -> None:
        site.page("/a", "old")
        visitor = browse(files, base_url=BASE)
        visitor.isr._clock = time.time
        visitor.get("/a")
        assert start("revalidate", "/a").wait(30) == 0
        answer = visitor.get("/a")
        assert (answer.text, status_of(answer)) == ("a page", "isr; hit; ttl=60")
        assert start("invalidate", "--expire", "/*").wait(30) == 0
        assert status_of(visitor.get("/a")) == "isr; fwd=stale; stored"

    def test_a_failure_is_in_its_exit_status(self, start: t.Any) -> None:
        process = start("prerender", "/a", "/bad")
        output, errors = process.communicate(timeout=30)
        assert process.returncode == 1
        assert "1 rendered, 1 failed" in output

    def test_ctrl_c_loses_nothing(
        self, start: t.Any, tmp_path: Path, browse: Browse, files: str
    ) -> None:
        process = start("prerender", "--workers", "1", "/a", "/b", "/slow", "/c")
        wait_until(lambda: (tmp_path / "started").exists())
        process.send_signal(signal.SIGINT)
        # The render that has begun is waited for.
        (tmp_path / "go").touch()
        output, errors = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "Interrupted after 2 of 4 paths.\n2 pages in" in output
        assert ": 2 rendered\n" in output
        assert "Traceback" not in errors
        stored = {page.url for page in browse(files, base_url=BASE).isr.pages()}
        assert stored == {f"{BASE}/a", f"{BASE}/b", f"{BASE}/slow"}

    def test_ctrl_c_while_generators_list_paths(
        self, start: t.Any, tmp_path: Path, files: str
    ) -> None:
        (tmp_path / "blog.py").write_text(BLOG)
        process = start("prerender", app="blog:app")
        wait_until(lambda: (tmp_path / "started").exists())
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
        assert process.returncode == 130
        assert output == ""
        assert errors.endswith("\nInterrupted.\n")
        assert "Traceback" not in errors

    def test_ctrl_c_while_a_page_is_revalidated(self, start: t.Any, tmp_path: Path) -> None:
        process = start("revalidate", "/a", "/slow", "/b")
        wait_until(lambda: (tmp_path / "started").exists())
        process.send_signal(signal.SIGINT)
        (tmp_path / "go").touch()
        output, errors = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "Interrupted after " in output
        assert "Traceback" not in errors

    def test_on_a_terminal_there_is_a_bar_and_then_the_summary(self, start: t.Any) -> None:
        output = self.on_terminal(start, "prerender", "/a", "/bad", "/b")
        assert "Prerendering" in output
        assert "3/3" in output
        assert "3 pages in" in output
        assert "failed http://localhost/bad: ZeroDivisionError: the render failed" in output
        assert "rendered 200" not in output

    def on_terminal(self, start: t.Any, *args: str) -> str:
        ours, theirs = pty.openpty()
        process = start(*args, stdout=theirs)
        os.close(theirs)
        output = b""
        try:
            while data := os.read(ours, 4096):
                output += data
        except OSError:
            # So Linux says that the other side was closed.
            pass
        finally:
            os.close(ours)
        process.communicate(timeout=30)
        return output.decode()

    def test_without_click_the_extra_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "click.py").write_text("raise ModuleNotFoundError('no click', name='click')")
        process = subprocess.run(
            [sys.executable, "-m", "wsgi_isr"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
            capture_output=True,
            text=True,
        )
        assert process.returncode == 1
        assert process.stderr == "the command line needs click: pip install 'wsgi-isr[cli]'\n"
