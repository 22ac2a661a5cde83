"""The line of pages that wait to be rendered, in files and on Redis."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis_server import Redis
from regenerated import line_of
from regenerated import web_worker
from steps import HOLD
from steps import visit

from wsgi_isr import ISRMiddleware
from wsgi_isr.dedicated import Line
from wsgi_isr.key import PageKey
from wsgi_isr.store import jobs
from wsgi_isr.store import redis_jobs
from wsgi_isr.store.backend import FileStorage
from wsgi_isr.store.coordination import CLAIM
from wsgi_isr.store.coordination import MAX_JOBS
from wsgi_isr.store.files import FileCoordination
from wsgi_isr.store.jobs import FileJob
from wsgi_isr.store.jobs import JobFiles
from wsgi_isr.store.prune import Pruner
from wsgi_isr.store.records import LITTER_AGE

LANGUAGE = (("accept-language", "en"),)
KEY = PageKey("http", "localhost", "", "/page", vary=LANGUAGE, build="a build")


@pytest.fixture
def isr(shared: str, tmp_path: Path) -> Iterator[ISRMiddleware]:
    content = tmp_path / "content"
    content.write_text("text")
    isr = web_worker(shared, content)
    yield isr
    isr.close()


@pytest.fixture
def line(isr: ISRMiddleware) -> Line:
    """A line from which somebody takes."""
    line = line_of(isr)
    line.serve()
    return line


def page(number: int) -> PageKey:
    return KEY._replace(path=f"/{number}")


def take(line: Line) -> PageKey | None:
    """Take a page, and have it done."""
    task = line.take()
    if task is None:
        return None
    line.done(task.job)
    return task.key


class TestALine:
    def test_is_taken_from_in_its_order(self, line: Line) -> None:
        pages = [page(number) for number in (2, 1, 3)]
        for key in pages:
            assert line.put(key)
        assert [take(line) for _ in range(4)] == [*pages, None]

    def test_has_a_page_once_however_many_ask(
        self, isr: ISRMiddleware, line: Line, shared: str, tmp_path: Path
    ) -> None:
        visit(isr, "/page")
        isr.invalidate("/page")
        for worker in (isr, *(web_worker(shared, tmp_path / "content") for _ in range(3))):
            for _ in range(5):
                visit(worker, "/page")
            worker.close()
        assert [take(line), take(line)] == [KEY, None]

    def test_has_a_page_once_while_it_is_being_done(self, line: Line) -> None:
        line.put(KEY)
        task = line.take()
        assert task is not None
        assert line.put(KEY)
        assert line.take() is None
        line.done(task.job)
        assert line.take() is None
        line.put(KEY)
        assert take(line) == KEY

    def test_is_bounded(self, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (jobs, redis_jobs):
            monkeypatch.setattr(module, "MAX_JOBS", 20)
        assert all(line.put(page(number)) for number in range(30))
        assert [take(line) for _ in range(21)] == [*(page(number) for number in range(20)), None]
        assert MAX_JOBS == 1000

    def test_of_another_build_is_another(self, line: Line, shared: str, tmp_path: Path) -> None:
        other = line_of(web_worker(shared, tmp_path / "content", build_id="another build"))
        line.put(KEY)
        assert not other.put(KEY._replace(build="another build"))
        assert other.take() is None

    def test_of_another_signing_key_is_not_believed(self, shared: str, tmp_path: Path) -> None:
        one, other = (
            line_of(web_worker(shared, tmp_path / "content", signing_key=key))
            for key in (b"0123456789abcdef", b"fedcba9876543210")
        )
        one.serve()
        one.put(KEY)
        assert other.take() is None

    @pytest.mark.parametrize(
        "garbage",
        [
            b"",
            b"cos\nsystem\n(S'exit 1'\ntR.",
            b"[" * 50_000,
            b"{}",
            b'["http", "localhost", "", 3, [], [], ""]',
            b'["http", "localhost", "", "/page", [[1, 2]], [], ""]',
            KEY._replace(build="another build"),
            KEY._replace(host="evil.example"),
            KEY._replace(scheme="file"),
            KEY._replace(path="/a//b"),
            KEY._replace(path="/\ud800"),
            KEY._replace(path="/\u4e00"),
            KEY._replace(mount="/\ud800"),
            KEY._replace(path="/" + 3000 * "a"),
            KEY._replace(query=(("undeclared", "1"),)),
            KEY._replace(query=(("q", "\u4e00"),)),
            KEY._replace(vary=()),
            KEY._replace(vary=(("accept-language", "fr"),)),
            KEY._replace(vary=(*LANGUAGE, ("cookie", "session=1"))),
        ],
    )
    def test_is_not_believed(self, line: Line, garbage: bytes | PageKey) -> None:
        """Jobs come from whoever can write to the store."""
        data = json.dumps(garbage).encode() if isinstance(garbage, PageKey) else garbage
        for job in (data, line._codec.seal(data)):
            line._jobs.put(line._name, job)
        line.put(KEY)
        assert [take(line), take(line)] == [KEY, None]

    def test_takes_no_job_without_its_checksum(self, line: Line) -> None:
        line._jobs.put(line._name, json.dumps(KEY).encode())
        assert line.take() is None


class TestJobFiles:
    @pytest.fixture
    def files(self, tmp_path: Path) -> JobFiles:
        made = JobFiles(str(tmp_path / "jobs"))
        made.serve("line")
        return made

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return tmp_path / "jobs" / "line"

    def test_what_is_no_file_makes_way(self, files: JobFiles, folder: Path, tmp_path: Path) -> None:
        (folder / "folder").mkdir(parents=True)
        os.mkfifo(folder / "pipe")
        (folder / "link").symlink_to(tmp_path)
        (folder / "large").write_bytes(bytes(jobs.MAX_JOB + 1))
        files.put("line", b"job")
        assert _take(files) == b"job"
        assert list(folder.iterdir()) == []

    def test_a_folder_that_is_none_is_an_empty_line(self, files: JobFiles, folder: Path) -> None:
        folder.write_text("")
        assert files.take("line") is None

    def test_a_job_that_nobody_keeps_is_anybodys(self, files: JobFiles, folder: Path) -> None:
        """Who does it hangs, or is frozen."""
        files.put("line", b"job")
        held = files.take("line")
        assert held is not None and files.take("line") is None
        (path,) = folder.iterdir()
        os.utime(path, (1, time.time() - CLAIM - 1))
        taken = files.take("line")
        assert taken is not None and taken.data == b"job"
        # Whoever comes late does not take the other's away.
        held.done()
        assert list(folder.iterdir()) == [path]
        assert files.take("line") is None
        taken.done()
        assert list(folder.iterdir()) == []

    def test_a_job_that_is_kept_is_nobody_elses(self, files: JobFiles, folder: Path) -> None:
        files.put("line", b"job")
        held = files.take("line")
        assert held is not None
        (path,) = folder.iterdir()
        os.utime(path, (1, time.time() - CLAIM - 1))
        held.keep()
        assert files.take("line") is None
        held.done()

    def test_what_killed_writers_left_is_removed_in_time(
        self, files: JobFiles, folder: Path
    ) -> None:
        folder.mkdir()
        for name, age in (("old.0", LITTER_AGE + 1), ("new.0", 0)):
            (folder / name).touch()
            os.utime(folder / name, (1, time.time() - age))
        assert files.take("line") is None
        assert [path.name for path in folder.iterdir()] == ["new.0"]

    def test_lines_of_builds_that_are_no_more_are_pruned(self, tmp_path: Path) -> None:
        coordination = FileCoordination(str(tmp_path / "folder"))
        files = coordination.jobs
        for name in ("old", "new"):
            files.serve(name)
            files.put(name, b"job")
        old = tmp_path / "folder" / "jobs" / "old"
        for path in (*old.iterdir(), old.with_name("old.served")):
            os.utime(path, (1, time.time() - LITTER_AGE - 1))
        Pruner(FileStorage(str(tmp_path / "folder" / "pages")), coordination).sweep()
        assert sorted(path.name for path in old.parent.iterdir()) == ["new", "new.served"]
        assert _take(files, "new") == b"job"


def _take(files: JobFiles, line: str = "line") -> bytes | None:
    job = files.take(line)
    if not isinstance(job, FileJob):
        return None
    job.done()
    return job.data


@pytest.mark.servers
class TestRedisJobs:
    @pytest.fixture
    def line(self, redis: Redis, tmp_path: Path) -> Iterator[Line]:
        content = tmp_path / "content"
        content.write_text("text")
        isr = web_worker(redis.url, content)
        line = line_of(isr)
        line.serve()
        yield line
        isr.close()

    @pytest.fixture
    def keys(self, line: Line) -> list[str]:
        """What waits, and what is being done."""
        return [f"isr:jobs:{line._name}", f"isr:jobs:{line._name}:doing"]

    def test_a_job_that_nobody_keeps_is_anybodys(
        self, line: Line, redis: Redis, keys: list[str]
    ) -> None:
        line.put(KEY)
        held = line.take()
        assert held is not None and line.take() is None
        redis.do("ZADD", keys[1], 1, held.job.data)
        taken = line.take()
        assert taken is not None and taken.key == KEY
        line.done(taken.job)
        assert line.take() is None

    def test_a_job_that_is_kept_is_nobody_elses(
        self, line: Line, redis: Redis, keys: list[str]
    ) -> None:
        line.put(KEY)
        held = line.take()
        assert held is not None
        redis.do("ZADD", keys[1], 1, held.job.data)
        line.keep(held.job)
        assert line.take() is None
        line.done(held.job)
        # Who is told late that it has been done does not put it back.
        line.keep(held.job)
        assert redis.do("EXISTS", *keys) == 0

    def test_whatever_else_is_under_their_names_makes_way(
        self, line: Line, redis: Redis, keys: list[str]
    ) -> None:
        for key in keys:
            redis.do("SET", key, "garbage")
        assert line.put(KEY)
        assert take(line) == KEY

    def test_a_line_that_nobody_adds_to_is_forgotten(
        self, line: Line, redis: Redis, keys: list[str]
    ) -> None:
        line.put(page(1))
        line.put(page(2))
        line.take()
        assert all(0 < redis.do("TTL", key) <= redis_jobs.FORGOTTEN for key in keys)

    def test_who_waits_is_told(self, line: Line) -> None:
        line.wait(0.0)
        # The server has confirmed the subscription by now, or does before it tells of a job.
        line._jobs._channels[line._name].next(1.0)  # type: ignore[attr-defined]
        line.put(KEY)
        began = time.monotonic()
        line.wait(HOLD)
        assert time.monotonic() - began < HOLD
