"""``workers=0``: stale pages are rendered by processes that do nothing else."""

from __future__ import annotations

import logging
import signal
import threading
import time
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cachelib import SimpleCache
from click.testing import CliRunner
from conftest import Make
from conftest import Site
from regenerated import FLASK
from regenerated import line_of
from regenerated import OPTIONS
from regenerated import PLAIN
from regenerated import Regenerator
from regenerated import web_worker
from steps import PATIENCE
from steps import start
from steps import visit
from steps import wait_until

from wsgi_isr import dedicated
from wsgi_isr import ISRMiddleware
from wsgi_isr import Rule
from wsgi_isr.cli import regenerate
from wsgi_isr.key import PageKey
from wsgi_isr.loading import App
from wsgi_isr.pool import WorkerPool
from wsgi_isr.store.coordination import WritesRefused

Regenerate = Callable[..., Regenerator]

KEY = PageKey(
    "http", "localhost", "", "/page", vary=(("accept-language", "en"),), build="a build"
)  # fmt: skip


@pytest.fixture
def content(tmp_path: Path) -> Path:
    path = tmp_path / "content"
    path.write_text("first")
    return path


@pytest.fixture
def regenerator(shared: str, content: Path) -> Iterator[Regenerate]:
    made = []

    def start(command: list[str] = PLAIN) -> Regenerator:
        made.append(Regenerator(shared, content, command))
        return made[-1]

    yield start
    for one in made:
        one.process.kill()
        one.process.communicate()


@pytest.fixture
def isr(shared: str, content: Path) -> Iterator[ISRMiddleware]:
    """A web worker."""
    isr = web_worker(shared, content)
    yield isr
    isr.close()


def change(content: Path, isr: ISRMiddleware, text: str) -> None:
    content.write_text(text)
    isr.invalidate("/**")


@pytest.mark.processes
class TestAStalePage:
    @pytest.mark.parametrize("command", [PLAIN, FLASK])
    def test_is_rendered_there(
        self, isr: ISRMiddleware, content: Path, regenerator: Regenerate, command: list[str]
    ) -> None:
        there = regenerator(command)
        assert visit(isr, "/page").text == "first here"
        change(content, isr, "second")
        assert visit(isr, "/page").text == "first here"
        wait_until(lambda: visit(isr, "/page").text == f"second {there.signature}")
        assert isr.stats()["renders"] == 1

    @pytest.mark.parametrize(
        ("url", "headers"), [("/page?q=%C3%A9&q=", {}), ("/page", {"Accept-Language": "de"})]
    )
    def test_is_named_there_with_its_query_and_its_variant(
        self,
        isr: ISRMiddleware,
        content: Path,
        regenerator: Regenerate,
        url: str,
        headers: dict[str, str],
    ) -> None:
        there = regenerator()
        visit(isr, url, headers=headers)
        change(content, isr, "second")
        visit(isr, url, headers=headers)
        wait_until(lambda: visit(isr, url, headers=headers).text == f"second {there.signature}")

    def test_is_rendered_here_while_nobody_is_there(
        self, isr: ISRMiddleware, content: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        visit(isr, "/page")
        for text in ("second", "third"):
            change(content, isr, text)
            visit(isr, "/page")
            isr.close()
            assert visit(isr, "/page").text == f"{text} here"
        (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert "start 'python -m wsgi_isr MODULE:APP regenerate'" in record.getMessage()

    def test_is_rendered_here_when_the_last_one_has_ended(
        self, isr: ISRMiddleware, content: Path, regenerator: Regenerate
    ) -> None:
        there = regenerator()
        visit(isr, "/page")
        assert there.end(signal.SIGKILL) == -signal.SIGKILL
        change(content, isr, "second")
        wait_until(lambda: visit(isr, "/page").text == "second here", 3 * PATIENCE)

    def test_is_rendered_here_where_the_store_takes_no_jobs(
        self, isr: ISRMiddleware, content: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(line: str, data: bytes) -> bool:
            raise WritesRefused("full")

        line_of(isr)._jobs.put = refuse  # type: ignore[method-assign]
        visit(isr, "/page")
        change(content, isr, "second")
        visit(isr, "/page")
        isr.close()
        assert visit(isr, "/page").text == "second here"
        assert "start 'python" not in caplog.text

    def test_is_rendered_here_where_its_canonical_request_has_another_key(
        self, shared: str, content: Path
    ) -> None:
        """No other process could know by which rule."""

        def rules(environ: dict[str, t.Any]) -> t.Any:
            asked = "HTTP_X_ASKED" in environ
            return Rule(revalidate=False, vary={"Accept-Language": ["en"]} if asked else None)

        isr = web_worker(shared, content, rules=rules)
        line_of(isr).serve()
        visit(isr, "/page", headers={"X-Asked": "1"})
        change(content, isr, "second")
        visit(isr, "/page", headers={"X-Asked": "1"})
        isr.close()
        assert visit(isr, "/page", headers={"X-Asked": "1"}).text == "second here"

    def test_is_rendered_by_the_call_where_somebody_demands_it(
        self, isr: ISRMiddleware, content: Path, regenerator: Regenerate
    ) -> None:
        regenerator()
        visit(isr, "/page")
        content.write_text("second")
        isr.revalidate("/page")
        assert visit(isr, "/page").text == "second here"

    def test_that_the_store_has_lost_is_rendered_there(
        self, shared: str, content: Path, regenerator: Regenerate
    ) -> None:
        """A server may evict what a web worker has in memory."""
        there = regenerator()
        rule = replace(OPTIONS["rules"]["/**"], revalidate=60)
        isr = web_worker(shared, content, rules={"/**": rule})
        visit(isr, "/page")
        content.write_text("second")
        isr._here().store.storage.delete(KEY.name)
        isr._clock = lambda: time.time() + 120
        assert visit(isr, "/page").text == "first here"
        wait_until(lambda: visit(isr, "/page").text == f"second {there.signature}")
        isr.close()

    def test_that_is_fresh_by_now_is_not_rendered(self, isr: ISRMiddleware) -> None:
        visit(isr, "/page")
        isr._regenerate(KEY)
        assert isr.stats()["renders"] == 1


@pytest.mark.processes
class TestProcesses:
    def test_share_what_is_in_line(
        self, isr: ISRMiddleware, content: Path, regenerator: Regenerate
    ) -> None:
        both = [regenerator(), regenerator()]
        paths = [f"/{number}" for number in range(6)]
        for path in paths:
            visit(isr, path)
        # Each renders two at a time, so that two are left when one of them has all it can do.
        content.with_name("hold").touch()
        change(content, isr, "second")
        for path in paths:
            visit(isr, path)
        wait_until(lambda: all(one.begun.exists() for one in both))
        content.with_name("hold").unlink()
        for path in paths:
            wait_until(lambda path=path: visit(isr, path).text.startswith("second"))
        signatures = {visit(isr, path).text.removeprefix("second ") for path in paths}
        assert signatures == {one.signature for one in both}

    def test_that_are_killed_in_a_render_leave_it_to_others(
        self, isr: ISRMiddleware, content: Path, regenerator: Regenerate
    ) -> None:
        first = regenerator()
        visit(isr, "/page")
        content.with_name("hold").touch()
        change(content, isr, "second")
        visit(isr, "/page")
        wait_until(first.begun.exists)
        # No visitor comes any more.
        first.end(signal.SIGKILL)
        second = regenerator()
        wait_until(second.begun.exists, 3 * PATIENCE)
        content.with_name("hold").unlink()
        wait_until(lambda: visit(isr, "/page").text == f"second {second.signature}")

    def test_find_what_came_while_none_was_there(
        self, isr: ISRMiddleware, content: Path, regenerator: Regenerate
    ) -> None:
        visit(isr, "/page")
        change(content, isr, "second")
        line_of(isr).serve()
        visit(isr, "/page")
        isr.close()
        there = regenerator()
        wait_until(lambda: isr._here().store.newest(KEY).page.bodies["identity"][:6] == b"second")  # type: ignore[union-attr]
        assert visit(isr, "/page").text == f"second {there.signature}"

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_finish_what_they_have_begun(
        self, isr: ISRMiddleware, content: Path, regenerator: Regenerate, number: int
    ) -> None:
        there = regenerator()
        visit(isr, "/page")
        content.with_name("hold").touch()
        change(content, isr, "second")
        visit(isr, "/page")
        wait_until(there.begun.exists)
        there.process.send_signal(number)
        content.with_name("hold").unlink()
        assert there.process.wait(PATIENCE) == 0
        assert visit(isr, "/page").text == f"second {there.signature}"

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_end_when_they_are_told(self, regenerator: Regenerate, number: int) -> None:
        assert regenerator().end(number) == 0

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_end_at_once_when_they_are_told_twice(
        self, isr: ISRMiddleware, content: Path, regenerator: Regenerate, number: int
    ) -> None:
        there = regenerator()
        visit(isr, "/page")
        content.with_name("hold").touch()
        change(content, isr, "second")
        visit(isr, "/page")
        wait_until(there.begun.exists)

        def tell() -> bool:
            there.process.send_signal(number)
            return there.process.poll() is not None

        wait_until(tell)
        assert there.process.returncode == -number

    def test_are_counted_with_the_others(
        self, isr: ISRMiddleware, content: Path, regenerator: Regenerate
    ) -> None:
        there = regenerator()
        visit(isr, "/page")
        change(content, isr, "second")
        visit(isr, "/page")

        def renders() -> list[int]:
            return [
                worker["renders"]
                for worker in isr.all_stats()
                if worker["pid"] == there.process.pid
            ]

        wait_until(lambda: renders() == [1])


class TestAHungRender:
    """Others may do the job of one that takes longer than `render_timeout`."""

    @pytest.mark.parametrize(("patience", "kept"), [(3600, True), (0, False)])
    def test_is_told_to_be_at_work_only_so_long(
        self,
        files: str,
        content: Path,
        monkeypatch: pytest.MonkeyPatch,
        patience: float,
        kept: bool,
    ) -> None:
        monkeypatch.setattr(dedicated, "SERVE", 0.0)
        monkeypatch.setattr(dedicated, "WAIT", 0.01)
        isr = web_worker(files, content)
        line = line_of(isr)
        told = []
        served = threading.Semaphore(0)
        serve = line.serve
        monkeypatch.setattr(line, "serve", lambda: (serve(), served.release()))
        monkeypatch.setattr(line, "keep", told.append)
        begun, go_on, stop = threading.Event(), threading.Event(), threading.Event()

        def render(key: PageKey) -> None:
            begun.set()
            assert go_on.wait(PATIENCE)

        line.serve()
        line.put(KEY)
        pool = WorkerPool(1, PATIENCE)
        running = start(dedicated.Regenerator(line, render, pool, patience).run, stop)
        assert begun.wait(PATIENCE)
        while served.acquire(blocking=False):
            pass
        assert all(served.acquire(timeout=PATIENCE) for _ in range(3))
        stop.set()
        running.result(PATIENCE)
        assert bool(told) is kept
        go_on.set()
        assert pool.wait(PATIENCE)

    def test_or_one_that_fails_is_in_line_no_more(self, files: str, content: Path) -> None:
        line = line_of(web_worker(files, content))
        stop = threading.Event()

        def render(key: PageKey) -> None:
            stop.set()
            raise ZeroDivisionError

        line.serve()
        line.put(KEY)
        pool = WorkerPool(1, PATIENCE)
        dedicated.Regenerator(line, render, pool, PATIENCE).run(stop)
        assert pool.wait(PATIENCE)
        assert line.take() is None
        line.put(KEY)
        assert line.take() is not None


class TestMistakes:
    @pytest.mark.parametrize("cache", ["memory://", "memcached://localhost", SimpleCache()])
    def test_a_store_that_cannot_hand_over_is_refused(self, cache: t.Any) -> None:
        with pytest.raises(ValueError, match="files, or Redis"):
            ISRMiddleware(Site(), cache, workers=0)

    def test_a_cache_of_a_callable_that_cannot_renders_here(
        self, site: Site, make: Make, clock: t.Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        site.page("/", lambda environ: f"render {site.renders('/')}", revalidate=10)
        isr = make(lambda: SimpleCache(threshold=0), workers=0)
        visit(isr)
        clock.advance(11)
        visit(isr)
        isr.close()
        assert visit(isr).text == "render 2"
        assert "workers=0 leaves renders to other processes" in caplog.text

    def test_the_command_tells_of_web_workers_that_render_themselves(
        self, files: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wsgi_isr.cli.Regenerator.run", lambda regenerator, stop: None)
        monkeypatch.setattr(signal, "signal", lambda number, handler: None)
        for workers, tells in ((2, True), (0, False)):
            isr = ISRMiddleware(Site(), files, workers=workers)
            result = CliRunner().invoke(regenerate, obj=App(isr))
            assert result.exit_code == 0
            assert ("Warning: web workers render themselves" in result.output) is tells

    def test_the_command_tells_of_a_store_that_cannot(self) -> None:
        pytest.importorskip("pymemcache")
        isr = ISRMiddleware(Site(), "memcached://localhost:9")
        result = CliRunner().invoke(regenerate, obj=App(isr))
        assert "this store cannot hand over pages: files and Redis can" in result.output
        assert result.exit_code == 1
