"""Pruning behind visitors, and what tells that it is time, and which pages are in use."""

from __future__ import annotations

import os
import time
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Browser
from conftest import Clock
from conftest import Site
from conftest import status_of
from folder import Folder
from folder import GONE
from steps import visit

from wsgi_isr import ISRMiddleware
from wsgi_isr.store.backend import FileStorage
from wsgi_isr.store.bounds import Bounds
from wsgi_isr.store.bounds import Growth
from wsgi_isr.store.prune import Pruned
from wsgi_isr.store.prune import Pruner

Browse = Callable[..., Browser]


def paths_of(isr: ISRMiddleware) -> set[str]:
    return {page.url.removeprefix("http://localhost") for page in isr.pages()}


class TestGrowth:
    @pytest.fixture
    def growth(self, tmp_path: Path) -> Callable[..., Growth]:
        return lambda pages=1000, size=10**9: Growth(str(tmp_path / "growth"), Bounds(pages, size))

    def test_a_twentieth_of_the_pages_is_due(self, growth: t.Any) -> None:
        process = growth()
        for _ in range(49):
            process.add(None, 0)
        assert not process.due
        process.add(None, 0)
        assert process.due

    def test_and_of_the_bytes(self, growth: t.Any) -> None:
        process = growth(10**9, 1000)
        process.add(None, 49)
        assert not process.due
        process.add(1000, 1005)
        assert process.due

    def test_a_page_in_place_of_another_adds_nothing(self, growth: t.Any, tmp_path: Path) -> None:
        process = growth()
        for _ in range(1000):
            process.add(100, 100)
        assert not process.due

    def test_all_processes_count_together(self, growth: t.Any) -> None:
        one, other = growth(), growth()
        for _ in range(25):
            one.add(None, 0)
            other.add(None, 0)
        assert other.due

    def test_processes_that_store_one_page_each_count_too(self, growth: t.Any) -> None:
        # Each adds a hundredth of what is told in one byte.
        processes = [growth(100_000) for _ in range(20_000)]
        for process in processes:
            process.add(None, 0)
        assert any(process.due for process in processes)

    def test_pruning_begins_to_count_anew(self, growth: t.Any) -> None:
        process = growth()
        for _ in range(60):
            process.add(None, 0)
        with process.pruning(0.0):
            pass
        assert not process.due
        process.add(None, 0)
        assert not process.due


class TestBehindVisitors:
    def crawl(self, browser: Browser, site: Site, real: int, invented: int) -> None:
        for number in range(real):
            site.page(f"/{number}")
            browser.get(f"/{number}")
        for number in range(invented):
            site.page(f"/invented/{number}", status=GONE)
            assert browser.get(f"/invented/{number}").status_code == 404
            browser.isr.close()

    def test_invented_addresses_do_not_push_real_pages_out(
        self, site: Site, browse: Browse, files: str
    ) -> None:
        browser = browse(f"{files}?max_pages=100")
        self.crawl(browser, site, 50, 150)
        stored = paths_of(browse(files).isr)
        assert len(stored) <= 60
        assert {f"/{number}" for number in range(50)} <= stored

    def test_the_bound_holds_at_every_moment(self, site: Site, browse: Browse, files: str) -> None:
        browser = browse(f"{files}?max_pages=40", memory_size=0)
        for number in range(120):
            site.page(f"/{number}")
            browser.get(f"/{number}")
            browser.isr.close()
            assert len(paths_of(browser.isr)) <= 40
        # Served although its file was removed long ago: it is just not there.
        assert status_of(browser.get("/0")) == "isr; fwd=uri-miss; stored"

    def test_when_real_pages_go_the_site_is_told_how_to_keep_them(
        self, site: Site, browse: Browse, files: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        browser = browse(f"{files}?max_pages=20")
        for number in range(30):
            site.page(f"/{number}")
            browser.get(f"/{number}")
            browser.isr.close()
        assert "raise them" in caplog.text

    def test_made_up_pages_go_without_a_word(
        self, site: Site, browse: Browse, files: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.crawl(browse(f"{files}?max_pages=20"), site, 0, 30)
        assert not caplog.records

    def test_a_folder_in_a_bad_state_is_one_line_in_the_log(
        self,
        site: Site,
        browse: Browse,
        files: str,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def broken(self: Pruner) -> Pruned:
            raise OSError("the disk is gone")

        monkeypatch.setattr(Pruner, "behind", broken)
        self.crawl(browse(f"{files}?max_pages=1"), site, 2, 0)
        assert "files were not pruned: the disk is gone" in caplog.text
        assert "Traceback" not in caplog.text

    def test_ten_thousand_of_them(self, tmp_path: Path) -> None:
        folder = Folder(tmp_path / "site", Bounds(500))
        real = {folder.put(f"/{number}") for number in range(400)}
        data = folder._codec.encode(folder.page("/invented", status=GONE))
        most = 0
        for number in range(10_000):
            folder.storage.set(f"{number:024x}.{number:064x}", data)
            if folder.pruner.due:
                most = max(most, len(folder.names()))
                folder.pruner.behind()
        assert most <= 500
        assert real <= folder.names()


class TestRecency:
    @pytest.fixture
    def age(self, site: Site, browse: Browse, files: str) -> Iterator[t.Any]:
        """Seconds since a page's last use as its file tells; it may be set."""

        def age(isr: ISRMiddleware, seconds: float | None = None) -> float:
            storage = isr._here().store.storage
            assert isinstance(storage, FileStorage)
            (path,) = (storage.path(name) for name in storage.names())
            if seconds is not None:
                os.utime(path, (time.time() - seconds,) * 2)
            return time.time() - os.stat(path).st_mtime

        site.page("/", revalidate=1000)
        yield age

    def test_a_page_read_from_its_file_is_used(
        self, browse: Browse, files: str, age: t.Any
    ) -> None:
        browse(files).get("/")
        other = browse(files)
        age(other.isr, 7200)
        other.get("/")
        assert age(other.isr) < 60

    def test_in_the_step_that_reads_it(self, browse: Browse, files: str, age: t.Any) -> None:
        isr = browse(files).isr
        visit(isr, "/")
        store = isr._here().store
        (entry,) = store.pages()
        age(isr, 7200)
        assert store.load(entry.page.key) is not None
        assert age(isr) < 60

    def test_a_page_served_from_memory_is_used(
        self, browse: Browse, files: str, age: t.Any, clock: Clock
    ) -> None:
        browser = browse(files)
        browser.get("/")
        age(browser.isr, 7200)
        clock.advance(61)
        browser.get("/")
        assert age(browser.isr) < 60

    def test_which_is_noted_once_a_minute(
        self, browse: Browse, files: str, age: t.Any, clock: Clock
    ) -> None:
        browser = browse(files)
        browser.get("/")
        browser.get("/")
        age(browser.isr, 7200)
        for _ in range(29):
            clock.advance(2)
            browser.get("/")
        assert age(browser.isr) > 7000

    def test_a_stale_page_is_used_too(
        self, site: Site, browse: Browse, files: str, age: t.Any, clock: Clock
    ) -> None:
        browser = browse(files)
        browser.get("/")
        site.fail("/")
        age(browser.isr, 7200)
        clock.advance(2000)
        browser.get("/")
        browser.isr.close()
        assert age(browser.isr) < 60

    def test_a_clock_that_was_set_back_does_not_make_a_page_look_unused(
        self, browse: Browse, files: str, age: t.Any
    ) -> None:
        browse(files).get("/")
        other = browse(files)
        age(other.isr, -7200)
        other.get("/")
        assert age(other.isr) > -60

    def test_to_be_listed_is_no_use(self, browse: Browse, files: str, age: t.Any) -> None:
        browser = browse(files)
        browser.get("/")
        age(browser.isr, 7200)
        assert len(list(browser.isr.pages())) == 1
        assert age(browser.isr) > 7000

    def test_a_file_that_cannot_be_touched_is_served_all_the_same(
        self, site: Site, browse: Browse, files: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site.page("/")
        browse(files).get("/")
        monkeypatch.setattr(os, "utime", lambda *args: (_ for _ in ()).throw(PermissionError()))
        other = browse(files)
        for _ in range(10):
            assert status_of(other.get("/")).startswith("isr; hit")
