"""``workers=0``: stale pages are rendered by processes that do nothing else."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Make
from conftest import Site
from redis_server import Redis
from redis_server import running
from steps import PATIENCE
from steps import visit
from steps import wait_until

from wsgi_isr import ISRMiddleware
from wsgi_isr import Rule
from wsgi_isr.dedicated import Line
from wsgi_isr.key import PageKey
from wsgi_isr.store.jobs import JobFiles
from wsgi_isr.store.jobs import LIMIT

pytestmark = pytest.mark.processes

TESTS = Path(__file__).parent
RULES = {"/**": Rule(revalidate=False)}
KEY = PageKey("http", "localhost", "", "/page")


@pytest.fixture(
    params=["files", pytest.param("redis", marks=pytest.mark.servers)],
)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Every store that can hand over pages, as a URL."""
    if request.param == "files":
        yield f"file://{tmp_path}/cache"
        return
    folder = tmp_path / "redis"
    folder.mkdir()
    with running(Redis(folder)) as server:
        assert isinstance(server, Redis)
        yield server.url


@pytest.fixture
def content(tmp_path: Path) -> Path:
    path = tmp_path / "content"
    path.write_text("first")
    return path


class Regenerator:
    """``python -m wsgi_isr MODULE:APP regenerate``."""

    def __init__(self, store: str, content: Path) -> None:
        environment = {**os.environ, "REGENERATED_STORE": store}
        environment["REGENERATED_CONTENT"] = str(content)
        command = [sys.executable, "-u", "-m", "wsgi_isr", "regenerated:app", "regenerate"]
        self.process = subprocess.Popen(
            command, cwd=TESTS, env=environment, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()
        self.begun = content.with_name(f"begun-{self.process.pid}")

    @property
    def signature(self) -> str:
        return f"by {self.process.pid}"

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@pytest.fixture
def regenerator(store: str, content: Path) -> Iterator[t.Callable[[], Regenerator]]:
    made = []

    def start() -> Regenerator:
        made.append(Regenerator(store, content))
        # It says that it is there a moment after it is.
        wait_until(lambda: _line(make_isr(store, content)).is_served)
        return made[-1]

    yield start
    for one in made:
        one.process.kill()
        one.process.communicate()


def make_isr(store: str, content: Path) -> ISRMiddleware:
    def site(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"{content.read_text()} here".encode()]

    return ISRMiddleware(site, store, rules=RULES, base_url="http://localhost", workers=0)


def _line(isr: ISRMiddleware) -> Line:
    line = isr._here().line
    assert line is not None
    return line


@pytest.fixture
def isr(store: str, content: Path) -> Iterator[ISRMiddleware]:
    """A web worker."""
    isr = make_isr(store, content)
    yield isr
    isr.close()


def change(content: Path, isr: ISRMiddleware, text: str) -> None:
    content.write_text(text)
    isr.invalidate("/page")


class TestAStalePage:
    def test_is_rendered_there(self, isr: ISRMiddleware, content: Path, regenerator: t.Any) -> None:
        there = regenerator()
        assert visit(isr, "/page").text == "first here"
        change(content, isr, "second")
        assert visit(isr, "/page").text == "first here"
        wait_until(lambda: visit(isr, "/page").text == f"second {there.signature}")
        assert isr.stats()["renders"] == 1

    def test_is_in_line_once(
        self, isr: ISRMiddleware, content: Path, store: str, regenerator: t.Any
    ) -> None:
        there = regenerator()
        visit(isr, "/page")
        there.process.send_signal(signal.SIGSTOP)
        change(content, isr, "second")
        for worker in (isr, make_isr(store, content), make_isr(store, content)):
            visit(worker, "/page")
            worker.close()
        line = _line(isr)
        assert line.take() == KEY._replace(path="/page")
        assert line.take() is None

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
        self, isr: ISRMiddleware, content: Path, regenerator: t.Any
    ) -> None:
        there = regenerator()
        visit(isr, "/page")
        assert there.end() == 0
        change(content, isr, "second")
        visit(isr, "/page")
        isr.close()
        assert visit(isr, "/page").text == "second here"

    def test_is_rendered_by_the_call_where_somebody_demands_it(
        self, isr: ISRMiddleware, content: Path, regenerator: t.Any
    ) -> None:
        regenerator()
        visit(isr, "/page")
        content.write_text("second")
        isr.revalidate("/page")
        assert visit(isr, "/page").text == "second here"


class TestProcesses:
    def test_share_what_is_in_line(
        self, isr: ISRMiddleware, content: Path, regenerator: t.Any
    ) -> None:
        both = [regenerator(), regenerator()]
        paths = [f"/{number}" for number in range(6)]
        for path in paths:
            visit(isr, path)
        content.write_text("second")
        # Each renders two at a time, so that two are left when one of them has all it can do.
        content.with_name("hold").touch()
        isr.invalidate("/**")
        for path in paths:
            visit(isr, path)
        wait_until(lambda: all(one.begun.exists() for one in both))
        content.with_name("hold").unlink()
        for path in paths:
            wait_until(lambda path=path: visit(isr, path).text.startswith("second"))
        signatures = {visit(isr, path).text.removeprefix("second ") for path in paths}
        assert signatures == {one.signature for one in both}

    def test_that_are_killed_in_a_render_are_replaced_by_others(
        self, isr: ISRMiddleware, content: Path, regenerator: t.Any
    ) -> None:
        first = regenerator()
        visit(isr, "/page")
        content.with_name("hold").touch()
        change(content, isr, "second")
        visit(isr, "/page")
        wait_until(first.begun.exists)
        first.process.kill()
        first.process.wait(PATIENCE)
        content.with_name("hold").unlink()
        second = regenerator()
        wait_until(lambda: visit(isr, "/page").text == f"second {second.signature}")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_finish_what_they_have_begun(
        self, isr: ISRMiddleware, content: Path, regenerator: t.Any, number: int
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

    def test_are_counted_with_the_others(
        self, isr: ISRMiddleware, content: Path, regenerator: t.Any
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


class TestTheLine:
    def test_is_taken_from_in_the_order_of_its_jobs(self, isr: ISRMiddleware) -> None:
        line = _line(isr)
        line.serve()
        keys = [KEY._replace(path=f"/{number}") for number in (2, 1, 3)]
        for key in keys:
            assert line.put(key)
        assert [line.take() for _ in range(4)] == [*keys, None]

    def test_is_bounded(self, isr: ISRMiddleware) -> None:
        line = _line(isr)
        line.serve()
        for number in range(LIMIT + 10):
            line.put(KEY._replace(path=f"/{number}"))
        taken = 0
        while line.take() is not None:
            taken += 1
        assert taken == LIMIT

    def test_is_left_by_one_of_several_only_for_a_moment(self, isr: ISRMiddleware) -> None:
        line = _line(isr)
        line.serve()
        line.abandon()
        assert not line.is_served
        line.serve()
        assert line.is_served

    @pytest.mark.parametrize(
        "garbage",
        [
            b"",
            b"cos\nsystem\n(S'exit 1'\ntR.",
            b"[" * 50_000,
            b'["http", "localhost", "", 3, [], [], ""]',
            b'["http", "localhost", "", "/page", [[1, 2]], [], ""]',
            b'["http", "localhost", "", "/page", [], [], "another build"]',
            b"{}",
        ],
    )
    def test_is_not_believed(self, isr: ISRMiddleware, garbage: bytes) -> None:
        """Jobs come from whoever can write to the store."""
        line = _line(isr)
        for data in (garbage, line._codec.seal(garbage)):
            line._jobs.put(line._name, data)
            assert line.take() is None

    def test_takes_no_job_without_its_checksum(self, isr: ISRMiddleware) -> None:
        line = _line(isr)
        line._jobs.put(line._name, b'["http", "localhost", "", "/page", [], [], ""]')
        assert line.take() is None

    def test_of_another_signing_key_is_another(self, store: str, content: Path) -> None:
        keys = [b"0123456789abcdef", b"fedcba9876543210"]
        one, other = (
            ISRMiddleware(Site(), store, workers=0, signing_key=key)._here().line for key in keys
        )
        assert one is not None and other is not None
        one.serve()
        one.put(KEY)
        assert other.take() is None


class TestJobFiles:
    def test_what_is_no_file_makes_way(self, tmp_path: Path) -> None:
        jobs = JobFiles(str(tmp_path))
        (tmp_path / "line" / "folder").mkdir(parents=True)
        os.mkfifo(tmp_path / "line" / "pipe")
        jobs.put("line", b"job")
        taken = [jobs.take("line") for _ in range(4)]
        assert sorted(filter(None, taken)) == [b"job"]
        assert list((tmp_path / "line").iterdir()) == []


class TestMistakes:
    @pytest.mark.parametrize("cache", ["memory://", "memcached://localhost"])
    def test_a_store_that_cannot_hand_over_is_refused(self, cache: str) -> None:
        with pytest.raises(ValueError, match="files, or Redis"):
            ISRMiddleware(Site(), cache, workers=0)

    def test_a_cache_that_cannot_renders_here(
        self, site: Site, make: Make, clock: t.Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        from cachelib import SimpleCache

        site.page("/", lambda environ: f"render {site.renders('/')}", revalidate=10)
        isr = make(SimpleCache(threshold=0), workers=0)
        visit(isr)
        clock.advance(11)
        visit(isr)
        isr.close()
        assert visit(isr).text == "render 2"
        assert "workers=0 leaves renders to other processes" in caplog.text
