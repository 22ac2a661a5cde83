"""Stores that do not do what a store should: no request ever gets an error for it."""

from __future__ import annotations

import shutil
import typing as t
from pathlib import Path

import pytest
from cachelib import BaseCache, FileSystemCache, SimpleCache
from conftest import Clock, Make, Site, status_of
from failures import answers
from steps import visit, wait_until

from wsgi_isr import RevalidationError
from wsgi_isr.store.guard import THRESHOLD, Guard
from wsgi_isr.store.protocol import ReadOnly

BASE = "http://localhost"


class Bad(SimpleCache):
    """A cache of which some methods answer something else while it is bad.

    :param answer: what they return, or raise.
    """

    def __init__(self, answer: object, *methods: str) -> None:
        super().__init__(threshold=1000)
        self._methods = methods
        self._answer = answer
        self.is_bad = True

    def _do(self, name: str, *args: t.Any) -> t.Any:
        if not self.is_bad or name not in self._methods:
            return getattr(super(), name)(*args)
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

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


@pytest.mark.parametrize("memory_size", [0, 2**20], ids=["alone", "with memory"])
@pytest.mark.parametrize("name", CACHES)
def test_a_cache_never_raises_into_a_request(
    site: Site,
    make: Make,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    memory_size: int,
) -> None:
    monkeypatch.setattr("wsgi_isr.store.entries.PATIENCE", 0.05)
    cache: t.Any = CACHES[name]()
    if memory_size and name in ("raises", "says None", "says bytes", "has nothing"):
        cache.isr_shared = "network"
    isr = make(cache, memory_size=memory_size, base_url=BASE)
    for number in range(2):
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
        # What may be lost raises where it was demanded.
        return
    assert visit(isr).text == "page 1"


class Broken:
    """Makes methods of a store fail, as long as it is entered."""

    def __init__(self, store: t.Any, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self._patch = monkeypatch.context()
        self._store, self._names = store, names

    def __enter__(self) -> None:
        def refuse(*args: t.Any, **kwargs: t.Any) -> t.Any:
            raise OSError("it is down")

        patch = self._patch.__enter__()
        for name in self._names:
            patch.setattr(self._store, name, refuse)

    def __exit__(self, *error: t.Any) -> None:
        self._patch.__exit__(*error)


METHODS = (
    *("get", "put", "delete", "number", "invalidate", "changes", "lease", "failure"),
    *("set_failure", "builds", "used", "add", "report", "probe"),
)


class TestAStoreThatFailsAndComesBack:
    @pytest.mark.parametrize(
        "methods", [("get",), ("put",), ("lease",), METHODS], ids=lambda names: names[-1]
    )
    def test_costs_pages_and_heals_by_itself_with_a_line_in_the_log_at_each_end(
        self,
        site: Site,
        make: Make,
        files: str,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        methods: tuple[str, ...],
    ) -> None:
        isr = make(files, base_url=BASE)
        for number in range(20):
            site.page(f"/{number}", "body")
        with Broken(isr.store, monkeypatch, *methods):
            for number in range(20):
                assert visit(isr, f"/{number}").text == "body"
            if methods == METHODS:
                assert status_of(visit(isr, "/5")) == "isr; hit; ttl=60"
                with pytest.raises(RevalidationError):
                    isr.revalidate("/5")
        wait_until(lambda: isr.explain("/0") and isr._here().pages.guard.is_well)
        isr.revalidate("/5")
        assert status_of(visit(make(files), "/5")) == "isr; hit; ttl=60"
        lines = [record.getMessage()[:17] for record in caplog.records]
        assert lines.count("the store is away") == lines.count("the store answers") <= 1
        assert isr.stats()["store_errors"] >= 1

    def test_does_not_hide_what_others_have_invalidated_meanwhile(
        self, site: Site, make: Make, files: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site.page("/", "old", revalidate=False)
        isr, other = make(files), make(files)
        visit(isr)
        assert status_of(visit(isr)) == "isr; hit"
        with Broken(isr.store, monkeypatch, "changes", "get"):
            other.invalidate("/", expire=True)
            assert status_of(visit(isr)) == "isr; hit"
        site.page("/", "new", revalidate=False)
        isr._here().pages.follow()
        assert visit(isr).text == "new"

    def test_that_shows_no_changes_is_asked_for_them(
        self,
        site: Site,
        make: Make,
        files: str,
        clock: Clock,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """As one whose folder this process can only read."""
        site.page("/", "old", revalidate=False)
        isr, other = make(files), make(files)
        monkeypatch.setattr(type(isr.store), "signal", (0, 0))
        visit(isr)
        assert status_of(visit(isr)) == "isr; hit"
        site.page("/", "new", revalidate=False)
        other.invalidate("/", expire=True)
        clock.advance(1)
        isr._here().pages.follow()
        assert visit(isr).text == "new"

    @pytest.mark.servers
    @pytest.mark.parametrize("call", ["revalidate", "revalidate_tag", "invalidate"])
    def test_does_not_stand_between_a_process_and_what_it_has_invalidated(
        self, site: Site, make: Make, redis: t.Any, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        """The call succeeds while the circuit is still open for all else."""
        site.page("/", "old", revalidate=False, tags=["t"])
        isr = make(redis.url, base_url=BASE)
        visit(isr)
        assert status_of(visit(isr)) == "isr; hit"
        monkeypatch.setattr(Guard, "probe", lambda guard: None)
        with Broken(isr.store, monkeypatch, *METHODS):
            for number in range(3):
                visit(isr, f"/{number}")
        assert not isr._here().pages.guard.is_well
        site.page("/", "new", revalidate=False, tags=["t"])
        arguments = {"revalidate": "/", "revalidate_tag": "t", "invalidate": "/**"}
        options = {} if call == "revalidate" else {"expire": True}
        getattr(isr, call)(arguments[call], **options)
        assert visit(isr).text == "new"

    @pytest.mark.servers
    def test_does_not_hide_what_this_process_has_invalidated_in_a_new_lineage(
        self, site: Site, make: Make, redis: t.Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site.page("/", "old", revalidate=False)
        isr = make(redis.url)
        visit(isr)
        redis.do("FLUSHDB")
        site.page("/", "new", revalidate=False)
        isr.invalidate("/", expire=True)
        with Broken(isr.store, monkeypatch, *METHODS):
            assert visit(isr).text == "new"

    @pytest.mark.parametrize("memory_size", [0, 2**20], ids=["alone", "with memory"])
    def test_that_takes_no_writes_does_not_bring_a_withdrawn_page_back(
        self, site: Site, make: Make, clock: Clock, files: str, monkeypatch: pytest.MonkeyPatch,
        memory_size: int,
    ) -> None:  # fmt: skip
        site.page("/", "public", revalidate=10)
        isr = make(files, memory_size=memory_size)
        visit(isr)
        site.answers["/"] = answers("403 Forbidden")
        with Broken(isr.store, monkeypatch, "invalidate", "delete", "put", "lease", "probe"):
            for _ in range(3):
                clock.advance(61)
                visit(isr)
                wait_until(lambda: visit(isr).status_code == 403)
            clock.advance(61)
            assert visit(isr).status_code == 403
        wait_until(lambda: isr._here().pages.guard.is_well)
        isr._here().upkeep()
        assert visit(make(files)).status_code == 403


class TestAStoreThatCannotBeOpenedAtFirst:
    def test_fails_on_demand_calls_and_is_opened_later(
        self, site: Site, make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        up: list[bool] = []

        def cache() -> t.Any:
            if not up:
                raise OSError("it is down")
            return FileSystemCache(str(tmp_path / "cache"), threshold=0)

        site.page("/", "old", revalidate=False)
        isr = make(cache, base_url=BASE)
        assert status_of(visit(isr)) == "isr; fwd=uri-miss; detail=store-error"
        assert status_of(visit(isr)) == "isr; hit"
        for call in (isr.revalidate, isr.invalidate):
            with pytest.raises(RevalidationError):
                call("/")
        assert caplog.text.count("the callable given as cache failed") == 1
        up.append(True)
        wait_until(lambda: isr._here().pages.guard.is_well)
        site.page("/", "new", revalidate=False)
        isr.revalidate("/")
        other = make(cache, base_url=BASE)
        assert (visit(isr).text, visit(other).text) == ("new", "new")
        assert status_of(visit(other)) == "isr; hit"

    @pytest.mark.parametrize("made", [None, "redis://localhost", 5], ids=repr)
    def test_because_what_was_made_is_no_cache_leaves_pages_in_memory(
        self, site: Site, make: Make, made: object
    ) -> None:
        site.page("/")
        isr = make(lambda: made)
        assert visit(isr).text == "a page"
        assert status_of(visit(isr)) == "isr; hit; ttl=60"


class TestTheGuard:
    class Store:
        error: Exception | None = OSError("it is down")

        def probe(self) -> None:
            self.ask()

        def ask(self) -> str:
            if self.error is not None:
                raise self.error
            return "an answer"

    @pytest.fixture
    def store(self) -> Store:
        return self.Store()

    @pytest.mark.parametrize("error", [OSError, ValueError, NotImplementedError, KeyError])
    def test_leaves_alone_what_failed_until_any_call_succeeds(
        self, store: t.Any, error: type[Exception]
    ) -> None:
        errors: list[str] = []
        store.error = error("it is down")
        guard = Guard(store, lambda operation, error: errors.append(operation))
        for _ in range(100):
            assert guard.read(store.ask) is None
        assert errors == ["ask"] * THRESHOLD
        assert (guard.is_well, guard.state) == (False, "away")
        # A call that must not pass in silence is made all the same, and closes the circuit.
        with pytest.raises(error):
            guard.demand(store.ask)
        store.error = None
        assert guard.demand(store.ask) == "an answer"
        assert (guard.is_well, guard.state) == (True, "ok")
        assert guard.read(store.ask) == "an answer"

    def test_takes_one_slow_answer_for_no_outage(self, store: t.Any) -> None:
        guard = Guard(store, lambda operation, error: None)
        for _ in range(5):
            store.error = OSError("a lost packet")
            assert guard.read(store.ask) is None
            store.error = None
            assert guard.read(store.ask) == "an answer"

    def test_goes_on_reading_where_nothing_is_written(self, store: t.Any) -> None:
        guard = Guard(store, lambda operation, error: None)
        store.error = ReadOnly("full")
        assert guard.write(store.ask) is None
        assert guard.state == "read-only"
        store.error = None
        assert guard.read(store.ask) == "an answer"
        assert guard.write(store.ask) is None
        assert guard.state == "read-only"
        guard.probe()
        assert guard.state == "ok"


def test_a_folder_that_was_removed_is_made_again(
    site: Site, make: Make, files: str, tmp_path: Path
) -> None:
    isr = make(files, base_url=BASE)
    site.page("/", "old", revalidate=False)
    visit(isr)
    shutil.rmtree(tmp_path / "cache")
    site.page("/", "new", revalidate=False)
    isr.revalidate("/")
    assert visit(isr).text == "new"
    assert status_of(visit(make(files, base_url=BASE))) == "isr; hit"

    def test_logs_an_outage_that_comes_again_once_a_minute(
        self, store: t.Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        guard = Guard(store, lambda operation, error: None)
        for _ in range(3):
            for _ in range(THRESHOLD):
                assert guard.read(store.ask) is None
            store.error = None
            guard.probe()
            store.error = OSError("it is down")
        lines = [record.getMessage() for record in caplog.records]
        assert ["is away" in line for line in lines] == [True, False]
