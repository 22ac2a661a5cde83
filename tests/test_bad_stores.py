"""Stores that do not do what a store should: no request ever gets an error for it."""

from __future__ import annotations

import errno
import os
import shutil
import typing as t
from pathlib import Path

import pytest
from cachelib import BaseCache
from cachelib import SimpleCache
from conftest import Browser
from conftest import Clock
from conftest import Make
from conftest import Site
from conftest import status_of
from steps import visit
from steps import wait_until

from wsgi_isr import RevalidationError
from wsgi_isr.store import breaker
from wsgi_isr.store.backend import FileStorage
from wsgi_isr.store.backend import NullStorage
from wsgi_isr.store.breaker import Breaker

COLD = "isr; fwd=uri-miss; stored"


class Bad(SimpleCache):
    """A cache of which some methods answer something else, once it is told to.

    :param answer: what they return, or raise.
    """

    def __init__(self, answer: object, *methods: str) -> None:
        super().__init__(threshold=1000)
        self._bad_methods = methods
        self._bad_answer = answer
        self.is_bad = [True]
        self.calls: list[str] = []

    def _do(self, name: str, *args: t.Any, **kwargs: t.Any) -> t.Any:
        self.calls.append(name)
        if not self.is_bad[0] or name not in self._bad_methods:
            return getattr(super(), name)(*args, **kwargs)
        if isinstance(self._bad_answer, Exception):
            raise self._bad_answer
        return self._bad_answer

    def get(self, key: str) -> t.Any:
        return self._do("get", key)

    def set(self, key: str, value: t.Any, timeout: int | None = None) -> t.Any:
        return self._do("set", key, value, timeout)

    def delete(self, key: str) -> t.Any:
        return self._do("delete", key)


class Worse(BaseCache):
    """One that does not even have what it should."""

    get = set = add = delete = has = clear = None  # type: ignore[assignment]


ALL = ("get", "set", "delete")
CACHES: dict[str, t.Callable[[], BaseCache]] = {
    "raises": lambda: Bad(OSError("it is down"), *ALL),
    "raises on reading": lambda: Bad(OSError("it is down"), "get"),
    "raises on writing": lambda: Bad(OSError("it is full"), "set"),
    "raises what nobody expects": lambda: Bad(RecursionError("deep"), *ALL),
    "says None": lambda: Bad(None, *ALL),
    "says False": lambda: Bad(False, *ALL),
    "says text": lambda: Bad("yes", *ALL),
    "says a number": lambda: Bad(5, *ALL),
    "says bytes": lambda: Bad(b"ISR\x01c", *ALL),
    "has nothing": Worse,
    "is the base of all": BaseCache,
}


@pytest.mark.parametrize("methods", [("get",), ("set",), ALL], ids=repr)
def test_a_cache_that_fails_now_and_then_is_one_line_in_the_log(
    site: Site, make: Make, caplog: pytest.LogCaptureFixture, methods: tuple[str, ...]
) -> None:
    isr = make(Bad(OSError("it is full"), *methods), memory_size=0)
    for number in range(20):
        site.page(f"/{number}")
        visit(isr, f"/{number}")
    told = [r.message for r in caplog.records if r.message.startswith("the store failed (")]
    assert len(told) == 1


@pytest.mark.parametrize("memory_size", [0, 2**20], ids=["alone", "behind memory"])
@pytest.mark.parametrize("make_cache", CACHES.values(), ids=CACHES)
class TestACacheThat:
    def test_never_raises_into_a_request(
        self, site: Site, make: Make, clock: Clock, make_cache: t.Any, memory_size: int
    ) -> None:
        isr = make(make_cache(), memory_size=memory_size, base_url="http://localhost")
        for number in range(6):
            site.page("/", f"page {number}", revalidate=10)
            assert visit(isr).status_code == 200
            clock.advance(11)
            answer = visit(isr)
            isr.close()
            assert answer.status_code == 200
            assert answer.text in (f"page {number}", f"page {number - 1}")
        try:
            isr.revalidate("/")
        except RevalidationError:
            # What may be lost is told to who demanded it.
            return
        assert visit(isr).text == "page 5"

    def test_comes_from_a_callable(
        self, site: Site, make: Make, make_cache: t.Any, memory_size: int
    ) -> None:
        site.page("/", "the page")
        isr = make(make_cache, memory_size=memory_size)
        assert visit(isr).text == visit(isr).text == "the page"


class TestACallableThat:
    @pytest.mark.parametrize("made", [None, "redis://localhost", OSError("it is down")], ids=repr)
    def test_makes_no_cache_leaves_pages_in_memory_and_says_so(
        self, site: Site, make: Make, caplog: pytest.LogCaptureFixture, made: object
    ) -> None:
        def cache() -> t.Any:
            if isinstance(made, Exception):
                raise made
            return made

        site.page("/")
        isr = make(cache)
        assert status_of(visit(isr)) == COLD
        assert status_of(visit(isr)) == "isr; hit; ttl=60"
        (record,) = caplog.records
        assert "the callable given as cache failed" in record.message


class TestTheBreaker:
    """What fails is left alone, and tried again."""

    @pytest.fixture
    def now(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        now = [1000.0]
        monkeypatch.setattr(breaker.time, "monotonic", lambda: now[0])
        return now

    def test_opens_after_some_failures_and_closes_when_it_works_again(
        self, now: list[float], caplog: pytest.LogCaptureFixture
    ) -> None:
        errors: list[str] = []
        calls: list[bool] = []
        works = False
        guard = Breaker(lambda operation, error: errors.append(operation))

        def ask() -> str:
            calls.append(works)
            if not works:
                raise OSError("it is down")
            return "an answer"

        assert guard.well
        for _ in range(100):
            assert guard.call("get", ask) is None
        assert len(calls) == len(errors) == breaker.THRESHOLD
        assert guard.open and not guard.well
        now[0] += breaker.PAUSE[0]
        assert guard.call("get", ask) is None
        assert len(calls) == breaker.THRESHOLD + 1
        works = True
        assert guard.call("get", ask) is None, "it is left alone again, for longer"
        now[0] += breaker.PAUSE[1]
        assert guard.call("get", ask) == guard.call("get", ask) == "an answer"
        assert guard.well and not guard.open
        assert [record.message.partition("(")[0] for record in caplog.records] == [
            "the store failed ",
            "the store answers again",
        ]

    def test_lets_one_of_all_try(self, now: list[float]) -> None:
        guard = Breaker(lambda operation, error: None)
        tried = []

        def fail() -> None:
            raise OSError("it is down")

        def ask() -> str:
            tried.append(guard.call("get", lambda: tried.append("another")))
            return "an answer"

        for _ in range(breaker.THRESHOLD):
            guard.call("get", fail)
        now[0] += breaker.PAUSE[1]
        assert guard.call("get", ask) == "an answer"
        assert tried == [None]


def test_a_cache_that_works_again_is_used_again(site: Site, make: Make) -> None:
    cache = Bad(OSError("it is down"), *ALL)
    site.page("/", revalidate=10)
    isr = make(cache, memory_size=0)
    for _ in range(10):
        answer = visit(isr)
        assert (answer.text, status_of(answer)) == (
            "a page",
            "isr; fwd=uri-miss; detail=store-error",
        )
    assert isr.stats()["store_errors"] >= breaker.THRESHOLD
    cache.is_bad[0] = False
    wait_until(lambda: status_of(visit(isr)) == "isr; hit; ttl=10")


class TestTheDefault:
    @pytest.fixture(autouse=True)
    def here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        return tmp_path

    def test_is_a_folder_under_the_working_directory_that_is_for_its_owner_alone(
        self, site: Site, make: Make, here: Path
    ) -> None:
        site.page("/")
        isr = make(None)
        assert not list(here.iterdir()), "nothing is made before it is needed"
        visit(isr)
        folder = here / ".isr-cache"
        assert folder.stat().st_mode & 0o777 == 0o700
        assert status_of(visit(make(None))) == "isr; hit; ttl=60"

    def test_is_not_moved_by_a_change_of_directory(
        self, site: Site, make: Make, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site.page("/")
        isr = make(None)
        (here / "elsewhere").mkdir()
        monkeypatch.chdir(here / "elsewhere")
        visit(isr)
        assert (here / ".isr-cache").is_dir()


class TestAFolderThatCannotBeWritten:
    """One warning, and pages from memory."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return tmp_path / "cache"

    @pytest.fixture(autouse=True)
    def after(
        self, site: Site, browse: t.Any, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> t.Iterator[None]:
        """The test has made the folder what it is."""
        yield
        site.page("/", "the page")
        browser: Browser = browse(f"file://{folder}")
        assert status_of(browser.get("/")) == COLD
        assert status_of(browser.get("/")) == "isr; hit; ttl=60"
        assert isinstance(browser.isr._here().store.storage, NullStorage)
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert record.message.startswith(f"{folder} cannot be written (")
        assert record.message.endswith("kept in the memory of each process only")

    def test_because_a_file_is_in_its_place(self, folder: Path) -> None:
        folder.touch()

    def test_because_a_file_is_in_the_way(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "isr%3A").touch()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
    def test_because_it_is_somebody_elses_and_we_are_root(self, folder: Path) -> None:
        folder.mkdir()
        os.chown(folder, 12345, 12345)

    @pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
    def test_because_the_system_says_so(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        folder.mkdir()

        def refuse(self: FileStorage) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(FileStorage, "_probe", refuse)


class TestAFolderThatIsLostMeanwhile:
    @pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO])
    def test_keeps_pages_in_memory_and_the_old_file_as_it_is(
        self, site: Site, make: Make, files: str, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        isr = make(files, base_url="http://localhost")
        site.page("/", "old", revalidate=False)
        visit(isr)
        site.page("/other", "other")

        def refuse(path: str, flags: int, *args: t.Any, **kwargs: t.Any) -> t.Any:
            if flags & (os.O_WRONLY | os.O_RDWR):
                raise OSError(code, os.strerror(code))
            return real(path, flags, *args, **kwargs)

        real = os.open
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse)
            assert visit(isr).text == "old"
            assert status_of(visit(isr, "/other")) == "isr; fwd=uri-miss; detail=store-error"
            assert status_of(visit(isr, "/other")) == "isr; hit; ttl=60"
            with pytest.raises(RevalidationError):
                isr.revalidate("/")
            assert visit(isr).text == "old"
        assert visit(make(files)).text == "old"

    def test_that_was_removed_is_made_again(
        self, site: Site, make: Make, files: str, tmp_path: Path
    ) -> None:
        isr = make(files, base_url="http://localhost")
        site.page("/", "old", revalidate=False)
        visit(isr)
        shutil.rmtree(tmp_path / "cache")
        site.page("/", "new", revalidate=False)
        isr.revalidate("/")
        assert visit(isr).text == "new"
        assert status_of(visit(make(files))) == "isr; hit"
