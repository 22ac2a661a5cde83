"""``workers=0``: stale pages are rendered by processes that do nothing else."""

from __future__ import annotations

import logging
import signal
import threading
import typing as t
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cachelib import SimpleCache
from conftest import Make, Site
from regenerated import FLASK, OPTIONS, PLAIN, Regenerator, web_worker
from steps import PATIENCE, start, visit, wait_until

from wsgi_isr import ISRMiddleware, Rule
from wsgi_isr.store.protocol import ReadOnly, Wanted

Regenerate = Callable[..., Regenerator]


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


@pytest.fixture
def busy(isr: ISRMiddleware, content: Path, regenerator: Regenerate) -> Iterator[Regenerator]:
    """A process in the middle of a render of ``/page``, which goes on when the test ends."""
    there = regenerator()
    visit(isr, "/page")
    content.with_name("hold").touch()
    change(content, isr, "second")
    visit(isr, "/page")
    wait_until(there.begun.exists)
    yield there
    content.with_name("hold").unlink(missing_ok=True)


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
        german = {"Accept-Language": "de"}
        pages: list[tuple[str, dict[str, str]]] = [
            ("/page", {}),
            ("/page?q=%C3%A9&q=", {}),
            ("/page", german),
        ]
        for url, headers in pages:
            assert visit(isr, url, headers=headers).text == "first here"
        change(content, isr, "second")
        text = f"second {there.signature}"
        for url, headers in pages:
            assert visit(isr, url, headers=headers).text == "first here"
            wait_until(lambda url=url, h=headers: visit(isr, url, headers=h).text == text)
        wait_until(lambda: isr.stats()["renders"] == 6)

    def test_is_rendered_here_while_nobody_is_there(
        self, isr: ISRMiddleware, content: Path, regenerator: Regenerate
    ) -> None:
        visit(isr, "/page")
        for text in ("second", "third"):
            change(content, isr, text)
            visit(isr, "/page")
            wait_until(lambda text=text: visit(isr, "/page").text == f"{text} here")
        # And when the last one has ended.
        assert regenerator().end(signal.SIGKILL) == -signal.SIGKILL
        change(content, isr, "fourth")
        wait_until(lambda: visit(isr, "/page").text == "fourth here", 3 * PATIENCE)

    def test_is_rendered_here_where_the_store_takes_no_writes(
        self, isr: ISRMiddleware, content: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*args: t.Any) -> bool:
            raise ReadOnly("full")

        visit(isr, "/page")
        change(content, isr, "second")
        monkeypatch.setattr(isr.store, "want", refuse)
        wait_until(lambda: visit(isr, "/page").text == "second here")

    def test_is_rendered_here_where_its_canonical_request_has_another_key(
        self, shared: str, content: Path, regenerator: Regenerate
    ) -> None:
        """No other process could say by which rule."""
        regenerator()

        def rules(environ: dict[str, t.Any]) -> t.Any:
            asked = "HTTP_X_ASKED" in environ
            return Rule(revalidate=False, vary={"Accept-Language": ["en"]} if asked else None)

        isr = web_worker(shared, content, rules=rules)
        headers = {"X-Asked": "1"}
        visit(isr, "/page", headers=headers)
        change(content, isr, "second")
        wait_until(lambda: visit(isr, "/page", headers=headers).text == "second here")
        isr.close()

    def test_is_rendered_by_the_call_on_demand(
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
        rule = replace(OPTIONS["rules"]["/**"], revalidate=1)
        isr = web_worker(shared, content, rules={"/**": rule})
        visit(isr, "/page")
        content.write_text("second")
        (record,) = [stored.record for stored in isr.store.records(build="a build")]
        isr.store.delete(record.name)
        text = f"second {there.signature}"
        wait_until(lambda: visit(isr, "/page").text == text)
        isr.close()


@pytest.mark.processes
class TestProcesses:
    def test_share_what_waits(
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
        self, isr: ISRMiddleware, content: Path, busy: Regenerator, regenerator: Regenerate
    ) -> None:
        # No visitor comes any more.
        busy.end(signal.SIGKILL)
        second = regenerator()
        wait_until(second.begun.exists, 3 * PATIENCE)
        content.with_name("hold").unlink()
        wait_until(lambda: visit(isr, "/page").text == f"second {second.signature}")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_finish_what_they_have_begun(
        self, isr: ISRMiddleware, content: Path, busy: Regenerator, number: int
    ) -> None:
        busy.process.send_signal(number)
        content.with_name("hold").unlink()
        assert busy.process.wait(PATIENCE) == 0
        wait_until(lambda: visit(isr, "/page").text == f"second {busy.signature}")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_end_at_once_when_they_get_a_second_signal(
        self, busy: Regenerator, number: int
    ) -> None:
        def send() -> bool:
            busy.process.send_signal(number)
            return busy.process.poll() is not None

        wait_until(send)
        assert busy.process.returncode == -number

    def test_end_when_they_get_a_signal_and_wait(self, regenerator: Regenerate) -> None:
        assert regenerator().end() == 0


class TestWhatIsWanted:
    """Anybody who can write to the store can write it."""

    @pytest.mark.parametrize(
        "key",
        [
            b"",
            b"no JSON",
            b"[" * 100_000,
            b'["http", "localhost", "", "/page"]',
            b'["http", "evil.example", "", "/page", [], [["accept-language", "en"]], "a build"]',
            b'["http", "localhost", "", "/a//b", [], [["accept-language", "en"]], "a build"]',
            b'["http", "localhost", "", "/p", [["x", ""]], [["accept-language", "en"]], "a build"]',
            b'["http", "localhost", "", "/page", [], [["accept-language", "fr"]], "a build"]',
            b'["http", "localhost", "", "/page", [], [["accept-language", "en"]], "other"]',
        ],
    )
    def test_is_not_believed(
        self, files: str, content: Path, caplog: pytest.LogCaptureFixture, key: bytes
    ) -> None:
        isr = web_worker(files, content)
        stop = threading.Event()
        running = start(isr.regenerate, stop)
        data = isr._here()._codec.seal(key)
        # It says that it is there before it takes anything.
        wait_until(lambda: isr.store.want("a build", Wanted("name", data)))
        isr.store.want("a build", Wanted("other", key))
        wait_until(lambda: isr.store.take("a build", 1.0) is None)
        stop.set()
        running.result(PATIENCE)
        assert isr.stats()["renders"] == 0
        assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
        isr.close()


class TestMistakes:
    @pytest.mark.parametrize("cache", ["memory://", "memcached://localhost", SimpleCache()])
    def test_a_store_that_cannot_hand_over_is_refused(self, cache: t.Any) -> None:
        if cache == "memcached://localhost":
            pytest.importorskip("pymemcache")
        with pytest.raises(ValueError, match="file:// URL or Redis"):
            ISRMiddleware(Site(), cache, workers=0)
        with pytest.raises(NotImplementedError, match="cannot hand pages over"):
            ISRMiddleware(Site(), "memory://").regenerate(threading.Event())

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
