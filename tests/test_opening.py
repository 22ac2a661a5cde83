"""From what a user hands over as ``cache`` to a store, and what is said of each kind."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from cachelib import BaseCache, FileSystemCache, NullCache, RedisCache, SimpleCache
from entries import put

from wsgi_isr import SQLiteCache
from wsgi_isr.store import opening
from wsgi_isr.store.cachelib import MEMORY, CachelibStore
from wsgi_isr.store.opening import KINDS, CacheLike, Opener, limits, plan
from wsgi_isr.store.protocol import Kind, Store, StoreError
from wsgi_isr.store.redis import RedisStore
from wsgi_isr.store.sqlite import SQLiteStore


def opener(cache: CacheLike, prefix: str, app: str) -> Opener:
    return plan(cache, prefix, app)[1]


def kind_of(cache: CacheLike) -> Kind | None:
    return plan(cache, "", "")[0]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(opening, "_warned", set())
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def stores() -> Iterator[t.Any]:
    """Opens stores, and closes them in the end."""
    opened: list[Store] = []

    def open_one(cache: t.Any, prefix: str = "isr:", parent: Store | None = None) -> Store:
        opened.append(opener(cache, prefix, "app")(parent))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


class ProcessCache(SimpleCache):
    isr_shared = "process"

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def get(self, key: str) -> t.Any:
        with self.lock:
            return super().get(key)


class NetworkCache(SimpleCache):
    isr_shared = "network"


class OwnCache(BaseCache):
    """One that somebody wrote, with a dict that says nothing of who shares it."""

    def __init__(self) -> None:
        super().__init__()
        self.options: dict[str, t.Any] = {}


class TestKinds:
    @pytest.mark.parametrize(
        ("cache", "name", "store_class"),
        [
            (None, "sqlite", SQLiteStore),
            ("file:///var/cache/site", "sqlite", SQLiteStore),
            ("memory://", "memory", CachelibStore),
            ("redis://localhost:6379/0", "redis", RedisStore),
            ("rediss://user:secret@localhost", "redis", RedisStore),
            ("valkey://localhost", "valkey", RedisStore),
            ("memcached://localhost:11211", "memcached", CachelibStore),
            (lambda: RedisCache("localhost", socket_timeout=1), "redis", RedisStore),
            (SimpleCache, "local", CachelibStore),
            (ProcessCache, "local", CachelibStore),
            (NetworkCache, "cachelib", CachelibStore),
            (OwnCache, "cachelib", CachelibStore),
            (lambda: FileSystemCache("cache", threshold=0), "cachelib", CachelibStore),
            (lambda: SQLiteCache("cache"), "sqlite", SQLiteStore),
        ],
    )  # fmt: skip
    def test_follow_from_the_cache(
        self, cache: t.Any, name: str, store_class: type, tmp_path: Path, stores: t.Any
    ) -> None:
        cache = cache() if callable(cache) else cache
        if cache == "file:///var/cache/site":
            cache = f"file://{tmp_path}/cache"
        kind = kind_of(cache)
        assert kind is not None and kind.name == name and KINDS[name] == kind
        assert type(stores(cache)) is store_class

    def test_follow_from_a_store_of_the_users_own(self, stores: t.Any) -> None:
        store = CachelibStore(NullCache(), "", MEMORY)
        assert stores(store) is store and kind_of(store) == store.kind
        with pytest.raises(TypeError, match="it has no .*lease"):
            opener(t.cast(t.Any, type("Half", (), {"kind": store.kind})()), "", "app")

    def test_of_a_callable_show_when_it_is_opened(self, stores: t.Any) -> None:
        assert kind_of(lambda: SimpleCache()) is None
        assert stores(lambda: SimpleCache()).kind.name == "local"
        store = CachelibStore(NullCache(), "", MEMORY)
        assert stores(lambda: store) is store

    def test_have_limits_that_follow_from_what_they_claim(self) -> None:
        assert [name for name, kind in KINDS.items() if not limits(kind)] == [
            "sqlite",
            "redis",
            "valkey",
        ]
        assert len(limits(KINDS["cachelib"])) == 1 + len(limits(KINDS["memcached"])) == 4


class TestMistakes:
    @pytest.mark.parametrize(
        ("cache", "message"),
        [
            ("/var/cache/site", "write the folder '/var/cache/site' as 'file:///var/cache/site'"),
            ("./a b", r"as 'file://.*/a%20b'"),
            ("file://server/share", "absolute path"),
            ("file:cache", "absolute path"),
            ("file:///", "absolute path"),
            ("file:///a#b", "%23"),
            ("memory://?max_pages=9", "takes no path and no options"),
            ("file:///a?max_page=1", "max_pages and max_bytes, not 'max_page'"),
            ("file:///a?max_pages=many", "whole number"),
            ("file:///a?max_bytes=0", "whole number"),
            ("memcached://a,b", "one server"),
            ("postgres://user:secret@host/db", "cache URLs are memory://.*not postgres://"),
            ("user:secret@host", "cache URLs are"),
            ("//user:secret@host/x", "cache URLs are"),
            ("redis://user:secret@host:port:1", "port|URL"),
            ("", "cache URLs are"),
        ],
    )
    def test_in_a_url_raise_at_once_and_show_no_password(self, cache: str, message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            opener(cache, "isr:", "app")
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize("cache", [5, {}, object()])
    def test_in_the_type_raise_at_once(self, cache: t.Any) -> None:
        with pytest.raises(TypeError, match="cache takes a cachelib cache"):
            opener(cache, "isr:", "app")

    def test_in_the_attribute_of_a_cache_raise_at_once(self) -> None:
        cache = SimpleCache()
        cache.isr_shared = "everybody"  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="'process', 'machine' or 'network'"):
            opener(cache, "isr:", "app")

    def test_nothing_is_opened_before_it_is_needed(self, tmp_path: Path) -> None:
        def fail() -> BaseCache:
            raise AssertionError("called too early")

        opener(fail, "isr:", "app")
        opener(None, "isr:", "app")
        opener(f"file://{tmp_path}/cache", "isr:", "app")
        assert os.listdir(tmp_path) == []


class TestFolders:
    @pytest.mark.parametrize("prefix", ["..", ".", "", "/etc", "a/../../b", "x" * 2000, "\udc80é"])
    def test_a_prefix_does_not_leave_the_folder(
        self, prefix: str, tmp_path: Path, stores: t.Any
    ) -> None:
        put(stores(f"file://{tmp_path}/cache", prefix))
        assert os.listdir(tmp_path) == ["cache"]
        (name,) = os.listdir(tmp_path / "cache")
        assert os.path.isdir(tmp_path / "cache" / name)
        assert stores(f"file://{tmp_path}/cache", prefix).get("page") is not None
        assert stores(f"file://{tmp_path}/cache", prefix + "2").get("page") is None

    def test_a_url_bounds_what_is_stored(self, tmp_path: Path, stores: t.Any) -> None:
        store = stores(f"file://localhost{tmp_path}/a%20b?max_pages=7&max_bytes=1000000")
        put(store)
        assert store.sizes()[2:] == (7, 1000000) and os.path.isdir(tmp_path / "a b")

    def test_the_default_names_the_app(self, tmp_path: Path, stores: t.Any) -> None:
        open_store = opener(None, "isr:", "shop/../app")
        # The working directory is that of the construction.
        os.chdir("/")
        store = open_store(None)
        put(store)
        store.close()
        (name,) = os.listdir(tmp_path / ".isr-cache")
        assert "/" not in name and name != "app"

    @pytest.mark.parametrize("obstacle", ["file", "read-only"])
    def test_where_the_default_cannot_be_written_memory_is_used(
        self, obstacle: str, tmp_path: Path, stores: t.Any, caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        if obstacle == "file":
            (tmp_path / ".isr-cache").write_text("not a folder")
        else:
            monkeypatch.setattr(os, "makedirs", lambda *args, **more: _refuse())
        store = stores(None)
        assert store.kind == MEMORY
        (record,) = caplog.records
        assert ".isr-cache" in record.getMessage() and "file:///" in record.getMessage()

    def test_where_a_named_folder_cannot_be_opened_its_methods_raise(
        self, tmp_path: Path, stores: t.Any
    ) -> None:
        (tmp_path / "cache").write_text("not a folder")
        store = stores(f"file://{tmp_path}/cache")
        with pytest.raises(Exception, match="."):
            store.invalidate(["tag:a"], False)
        (tmp_path / "cache").unlink()
        store.probe()
        assert store.invalidate(["tag:a"], False).sequence


def _refuse() -> None:
    raise PermissionError(13, "Permission denied")


class TestCallables:
    @pytest.mark.parametrize("made", [None, "redis://localhost", ZeroDivisionError()])
    def test_that_fail_leave_a_store_that_is_away_until_they_succeed(
        self, made: t.Any, stores: t.Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        answers = [made, made, SimpleCache()]

        def make() -> t.Any:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        store = stores(make)
        assert len(caplog.records) == 1
        for call in (store.number, store.changes, store.time, store.records, store.lease):
            with pytest.raises(StoreError, match="could not be opened"):
                call()
        with pytest.raises(StoreError):
            store.invalidate(["tag:a"], True)
        assert store.signal[0] == 0 and store.kind.shared == "network"
        with pytest.raises((TypeError, ZeroDivisionError)):
            store.probe()
        store.probe()
        put(store)
        before = store.signal[0]
        assert store.listen(0.01)
        store.invalidate(["tag:a"], True)
        assert store.signal[0] != before and store.kind.name == "local"
        assert answers == []


class TestSharing:
    def test_two_middlewares_over_one_cache_agree(self, stores: t.Any) -> None:
        cache = SimpleCache()
        one, two, apart = stores(cache), stores(cache), stores(cache, "other:")
        put(one)
        two.invalidate(["page:page"], True)
        assert one.get("page").validity.invalidated and apart.get("page") is None
        put(apart)
        one.set_failure("page", None)
        assert not apart.get("page").validity.invalidated

    def test_a_cache_that_is_gone_leaves_nothing(self, stores: t.Any) -> None:
        before = len(opening._local)
        store = opener(SimpleCache(), "isr:", "app")(None)
        del store
        assert len(opening._local) == before

    @pytest.mark.processes
    @pytest.mark.parametrize("make", [ProcessCache, lambda: "memory://"])
    def test_a_child_goes_on_with_the_order_of_its_parent(self, make: t.Any, stores: t.Any) -> None:
        """Also where a thread of the parent had the locks at the moment of the fork."""
        cache = make()
        parent = stores(cache)
        put(parent)
        at = parent.invalidate(["tag:a"], False)
        lease = parent.lease("page", 60, True)
        with parent._entries.exclusive("clock"), getattr(cache, "lock", contextlib.nullcontext()):
            pid = os.fork()
            if pid == 0:
                signal.alarm(20)
                try:
                    os._exit(_go_on(opener(cache, "isr:", "app")(parent), at))
                finally:
                    os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        lease.release()
        assert parent.changes(at).invalidations == ()


def _go_on(store: Store, at: t.Any) -> int:
    lease = store.lease("page", 60, True)
    put(store)
    number = store.invalidate(["tag:b"], False)
    good = store.changes(at).complete and number > at and hasattr(lease, "release")
    return 0 if good else 1


class TestWarnings:
    def test_say_once_what_a_kind_does_not_promise(self, caplog: pytest.LogCaptureFixture) -> None:
        for _ in range(3):
            opener(SimpleCache(), "isr:", "app")
            opener(FileSystemCache("cache", threshold=0), "isr:", "app")
        first, second = [record.getMessage() for record in caplog.records]
        assert first.startswith("SimpleCache as the store: pages are those of one process")
        assert "best effort" in second and "SQLiteCache(folder)" in second

    @pytest.mark.parametrize("cache", [None, "file:///a", "redis://localhost", "memory://"])
    def test_say_nothing_of_kinds_without_limits_or_of_plain_memory(
        self, cache: t.Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            opener(cache, "isr:", "app")
        assert caplog.records == []
