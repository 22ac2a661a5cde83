"""Counters: of this process, and of all that share a store, as each left them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest
from cachelib import FileSystemCache
from cachelib import SimpleCache
from conftest import Browser
from conftest import Make
from conftest import Site
from redis_server import Redis
from steps import wait_until

from wsgi_isr import ISRMiddleware
from wsgi_isr import upkeep
from wsgi_isr.store import workers
from wsgi_isr.store.workers import WorkerFiles

Browse = Callable[..., Browser]

#: Serves a page, tells that its counters are there, and lives until its input ends.
WORKER = """
import sys
from wsgi_isr import ISRMiddleware, page_headers

def app(environ, start_response):
    start_response("200 OK", page_headers(60))
    return [b"a page"]

isr = ISRMiddleware(app, sys.argv[1], base_url="http://localhost")
assert isr.prerender(["/"]).__next__().error is None
isr._here().upkeep.leave_stats()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def worker(files: str) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    started = []

    def worker() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, files],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield worker
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "isr%3A" / "workers"


def leave(isr: ISRMiddleware) -> None:
    isr._here().upkeep.leave_stats()


class TestAllProcesses:
    def test_each_has_its_counters(self, site: Site, browse: Browse, files: str) -> None:
        site.page("/")
        one, other = browse(files), browse(files)
        for _ in range(3):
            one.get("/")
        other.get("/")
        leave(one.isr)
        leave(other.isr)
        found = browse(files).isr.all_stats()
        assert sorted(counters["hits"] for counters in found) == [1, 2]
        assert sum(counters["renders"] for counters in found) == 1

    def test_it_says_whose_they_are(self, site: Site, browse: Browse, files: str) -> None:
        site.page("/")
        before = time.time()
        browser = browse(files, build_id="b1")
        browser.get("/")
        leave(browser.isr)
        (found,) = browser.isr.all_stats()
        assert (found["pid"], found["build"]) == (os.getpid(), "b1")
        assert before <= found["began"] <= found["left"] <= time.time()

    def test_the_last_ones_count(self, site: Site, browse: Browse, files: str) -> None:
        site.page("/")
        browser = browse(files)
        for hits in range(3):
            browser.get("/")
            leave(browser.isr)
            (found,) = browser.isr.all_stats()
            assert found["hits"] == hits

    def test_they_are_left_by_themselves(
        self, site: Site, browse: Browse, files: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(upkeep, "FIRST", 0.01)
        monkeypatch.setattr(upkeep, "INTERVAL", 0.01)
        site.page("/")
        browser, other = browse(files), browse(files)
        for hits in range(5):
            browser.get("/")
            wait_until(lambda: [c["hits"] for c in other.isr.all_stats()] == [hits])  # noqa: B023

    def test_also_hits_that_nothing_follows(
        self, site: Site, browse: Browse, files: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(upkeep, "FIRST", 0.01)
        monkeypatch.setattr(upkeep, "INTERVAL", 0.05)
        site.page("/")
        browser = browse(files)
        for _ in range(50):
            browser.get("/")
        wait_until(lambda: [c["hits"] for c in browser.isr.all_stats()] == [49])

    def test_where_threads_do_not_run_a_visitor_leaves_them(
        self, site: Site, browse: Browse, files: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(upkeep.Upkeep, "_report", lambda self: None)
        monkeypatch.setattr(upkeep, "INTERVAL", -1.0)
        site.page("/")
        browser = browse(files)
        browser.get("/")
        browser.get("/")
        assert len(browser.isr.all_stats()) == 1

    def test_without_visitors_nothing_is_left(self, make: Make, files: str, folder: Path) -> None:
        isr = make(files)
        leave(isr)
        assert isr.all_stats() == []
        assert not folder.exists()

    def test_when_the_visitors_have_gone_nothing_runs(
        self, site: Site, browse: Browse, files: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(upkeep, "FIRST", 0.01)
        monkeypatch.setattr(upkeep, "INTERVAL", 0.01)
        site.page("/")
        browser = browse(files)
        browser.get("/")
        wait_until(browser.isr.all_stats)
        wait_until(lambda: not browser.isr._here().upkeep._running)

    @pytest.mark.parametrize("kind", ["memory", "cachelib"])
    def test_a_store_that_keeps_none_has_those_of_this_process(
        self, site: Site, browse: Browse, kind: str
    ) -> None:
        site.page("/")
        before = threading.active_count()
        browser = browse("memory://" if kind == "memory" else SimpleCache(threshold=10))
        browser.get("/")
        browser.get("/")
        (found,) = browser.isr.all_stats()
        assert (found["pid"], found["hits"]) == (os.getpid(), 1)
        assert threading.active_count() <= before  # others of earlier tests may end

    def test_files_of_cachelib_keep_them(self, site: Site, browse: Browse, tmp_path: Path) -> None:
        cache = FileSystemCache(str(tmp_path / "cachelib"), threshold=0)
        site.page("/")
        browser = browse(cache)
        browser.get("/")
        leave(browser.isr)
        assert len(browse(cache).isr.all_stats()) == 1


class TestWhatIsNoCounter:
    @pytest.mark.parametrize(
        "data",
        [b"", b"{}", b"[]", b"\xff", b'{"pid": 1}', b"no JSON", b"[" * 100_000],
    )
    def test_it_is_passed_over(self, make: Make, files: str, data: bytes) -> None:
        isr = make(files)
        isr._here().store.coordination.leave_stats(data)  # type: ignore[attr-defined]
        assert isr.all_stats() == []

    def test_a_count_that_is_none_is_passed_over(
        self, site: Site, browse: Browse, files: str, folder: Path
    ) -> None:
        site.page("/")
        browser = browse(files)
        browser.get("/")
        leave(browser.isr)
        found = browser.isr.all_stats()[0]
        coordination = t.cast(t.Any, browser.isr._here().store.coordination)
        coordination.leave_stats(json.dumps({**found, "hits": "many"}).encode())
        assert browser.isr.all_stats() == []

    def test_a_file_that_is_half_written_is_passed_over(self, tmp_path: Path) -> None:
        mine = WorkerFiles(str(tmp_path / "workers"))
        mine.leave(b"counters")
        (path,) = (tmp_path / "workers").iterdir()
        path.write_bytes(path.read_bytes()[:-4] + b"\n")
        assert WorkerFiles(str(tmp_path / "workers")).all() == []
        assert path.exists()


@pytest.mark.processes
class TestProcesses:
    def test_a_process_that_runs_is_there_however_long_ago_it_had_a_visitor(
        self, worker: t.Any, make: Make, files: str, folder: Path
    ) -> None:
        process = worker()
        (path,) = folder.iterdir()
        os.utime(path, (0, 0))
        assert [counters["pid"] for counters in make(files).all_stats()] == [process.pid]

    def test_a_process_that_ends_takes_them_along(
        self, worker: t.Any, make: Make, files: str, folder: Path
    ) -> None:
        process = worker()
        process.communicate("")
        assert process.returncode == 0
        assert list(folder.iterdir()) == []

    def test_those_of_a_killed_process_are_removed(
        self, worker: t.Any, make: Make, files: str, folder: Path
    ) -> None:
        process = worker()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(list(folder.iterdir())) == 1
        assert make(files).all_stats() == []
        assert list(folder.iterdir()) == []

    def test_by_the_upkeep_too(self, worker: t.Any, make: Make, files: str, folder: Path) -> None:
        process = worker()
        process.send_signal(signal.SIGKILL)
        process.wait()
        pruner = make(files)._here().store.pruner
        assert pruner is not None
        pruner.sweep()
        assert list(folder.iterdir()) == []

    # Python 3.12 and newer warn of any fork of a process with threads.
    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
    def test_a_forked_child_has_its_own(
        self, site: Site, browse: Browse, files: str, folder: Path
    ) -> None:
        site.page("/")
        browser = browse(files)
        browser.get("/")
        leave(browser.isr)
        child = os.fork()
        if not child:
            browser.get("/")
            leave(browser.isr)
            os._exit(0 if len(list(folder.iterdir())) == 2 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert [counters["pid"] for counters in browser.isr.all_stats()] == [os.getpid()]


class TestFiles:
    """The file of a process, whatever happens around it."""

    @pytest.fixture
    def files(self, tmp_path: Path) -> Callable[[], WorkerFiles]:
        return lambda: WorkerFiles(str(tmp_path / "workers"))

    def test_it_is_made_anew_where_somebody_removed_it(self, files: t.Any, tmp_path: Path) -> None:
        mine, others = files(), files()
        mine.leave(b"one")
        for path in (tmp_path / "workers").iterdir():
            path.unlink()
        mine.leave(b"two")
        assert others.all() == [b"two"]

    def test_a_folder_that_somebody_removed_is_not_made_anew(self, tmp_path: Path) -> None:
        (tmp_path / "site").mkdir()
        mine = WorkerFiles(str(tmp_path / "site" / "workers"))
        mine.leave(b"one")
        os.rename(tmp_path / "site", tmp_path / "removed")
        with pytest.raises(OSError):
            mine.leave(b"two")
        assert not (tmp_path / "site").exists()

    def test_shorter_counters_leave_nothing_of_longer_ones(self, files: t.Any) -> None:
        mine = files()
        mine.leave(b"a long text")
        mine.leave(b"short")
        assert mine.all() == [b"short"]

    def test_a_file_that_its_owner_is_about_to_lock_stays(
        self, files: t.Any, tmp_path: Path
    ) -> None:
        (tmp_path / "workers").mkdir()
        path = tmp_path / "workers" / "1-0123"
        path.touch()
        assert files().all() == []
        assert path.exists()
        os.utime(path, (time.time() - workers.YOUNG - 1,) * 2)
        assert files().all() == []
        assert not path.exists()

    def test_it_goes_with_its_coordination(self, files: t.Any, tmp_path: Path) -> None:
        mine = files()
        mine.leave(b"one")
        del mine
        assert list((tmp_path / "workers").iterdir()) == []


@pytest.mark.servers
class TestRedis:
    @pytest.fixture
    def redis(self, tmp_path: Path) -> Iterator[Redis]:
        server = Redis(tmp_path)
        yield server
        server.kill()

    def test_each_process_has_its_counters(self, site: Site, browse: Browse, redis: Redis) -> None:
        site.page("/")
        one, other = (browse(redis.url, key_prefix="a*:") for _ in range(2))
        for _ in range(3):
            one.get("/")
        other.get("/")
        leave(one.isr)
        leave(other.isr)
        found = browse(redis.url, key_prefix="a*:").isr.all_stats()
        assert sorted(counters["hits"] for counters in found) == [1, 2]

    def test_those_of_another_site_are_not_among_them(
        self, site: Site, browse: Browse, redis: Redis
    ) -> None:
        site.page("/")
        browser = browse(redis.url, key_prefix="ab:")
        browser.get("/")
        leave(browser.isr)
        assert browse(redis.url, key_prefix="a*:").isr.all_stats() == []

    def test_they_do_not_stay_for_ever(self, site: Site, browse: Browse, redis: Redis) -> None:
        site.page("/")
        browser = browse(redis.url)
        browser.get("/")
        leave(browser.isr)
        (key,) = redis.do("KEYS", "*worker:*")
        assert 0 < redis.do("TTL", key) <= workers.FORGOTTEN
