"""Stores over cachelib caches: what a cache may do to them, and what they read from it."""

from __future__ import annotations

import os
import pickle
import time
import typing as t
from pathlib import Path

import pytest
from cachelib import BaseCache, FileSystemCache, SimpleCache
from entries import put, state

from wsgi_isr.page import Invalidated
from wsgi_isr.store import entries, leases
from wsgi_isr.store.cachelib import KIND, LOCAL, CachelibStore
from wsgi_isr.store.entries import Entries, frame, unframe
from wsgi_isr.store.protocol import Busy, Kind, Number, StoreError, TooLarge
from wsgi_isr.testing import StoreContract, make_record

NO, STALE, EXPIRED = Invalidated.NO, Invalidated.STALE, Invalidated.EXPIRED
RECORD = make_record("page", Number("lineage", 7), tags=["é"], path="/caf\xc3\xa9")


class OwnCache(BaseCache):
    """As somebody writes one: a dict, no `add` of its own, no serializer, and bytes only."""

    def __init__(self, most: int = 10**9) -> None:
        super().__init__()
        self.data: dict[str, bytes] = {}
        self.ends: dict[str, float] = {}
        self.most = most
        self.refuses = False
        self.timeouts: set[t.Any] = set()

    def get(self, key: str) -> t.Any:
        return self.data.get(key) if time.monotonic() < self.ends.get(key, 0) else None

    def set(self, key: str, value: t.Any, timeout: t.Any = None) -> bool | None:
        assert type(value) is bytes
        self.timeouts.add(timeout)
        if self.refuses or len(value) > self.most:
            return None
        self.data[key], self.ends[key] = value, time.monotonic() + timeout
        return True

    def add(self, key: str, value: t.Any, timeout: t.Any = None) -> bool:
        return self.get(key) is None and bool(self.set(key, value, timeout))

    def delete(self, key: str) -> bool:
        return self.data.pop(key, None) is not None


class TestOwnCache(StoreContract):
    @pytest.fixture
    def open_store(self) -> t.Any:
        cache = OwnCache()
        return lambda: CachelibStore(cache, "isr:")


class TestFrames:
    def test_give_the_page_back_and_no_other(self) -> None:
        assert unframe(frame(RECORD), "page") == RECORD
        assert unframe(frame(RECORD), "another page") is None

    @pytest.mark.parametrize("data", [None, b"", b"\0" * 8, b"\0\0\0\2\0\0\0\0[]", b"text" * 9])
    def test_of_something_else_are_no_page(self, data: bytes | None) -> None:
        assert unframe(data, "page") is None

    def test_that_are_damaged_are_no_page_or_have_the_same_fields(self) -> None:
        whole = frame(RECORD)
        for at in range(len(whole)):
            damaged = bytearray(whole)
            damaged[at] ^= 0x41
            found = unframe(bytes(damaged), "page")
            assert found is None or found[:6] == RECORD[:6]
        for length in range(len(whole) - len(RECORD.head + RECORD.body) - 1):
            assert unframe(whole[:length], "page") is None


class TestEntries:
    def test_are_never_executed(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> t.Any:
                return os.mkdir, (str(tmp_path / "executed"),)

        cache = SimpleCache()
        planted = Entries(cache, "isr:")
        planted.set("page:page", b"ours")
        cache.serializer = entries.RawSerializer()  # type: ignore[assignment]
        (key,) = (key for key in cache._cache)
        cache.set(key, pickle.dumps(Evil()), 60)
        assert planted.get("page:page") is None
        assert os.listdir(tmp_path) == []

    def test_leave_the_cache_of_the_app_as_it_is(self, tmp_path: Path) -> None:
        for cache in (SimpleCache(), FileSystemCache(str(tmp_path), threshold=50)):
            cache.set("theirs", {"a": 1})
            Entries(cache, "isr:").set("theirs", b"ours")
            assert cache.get("theirs") == {"a": 1}

    def test_of_prefixes_and_names_do_not_meet(self) -> None:
        cache = OwnCache()
        Entries(cache, "a").set("b:c", b"one")
        for prefix, name in (("ab", ":c"), ("a:b", "c"), ("", "ab:c")):
            assert Entries(cache, prefix).get(name) is None

    def test_never_have_a_timeout_of_zero(self) -> None:
        cache = OwnCache()
        store = CachelibStore(cache, "isr:")
        put(store)
        lease = store.lease("page", 0.001, True)
        assert not isinstance(lease, Busy)
        lease.release(b"outcome")
        assert all(type(seconds) is int and seconds > 0 for seconds in cache.timeouts)

    def test_count_in_a_folder_with_a_threshold(self, tmp_path: Path) -> None:
        """The cache keeps the number of its files beside them, in whatever form."""
        for _ in range(3):
            store = CachelibStore(FileSystemCache(str(tmp_path), threshold=30), "isr:")
            for number in range(25):
                put(store, f"page {number}")
        assert len(os.listdir(tmp_path)) < 60

    def test_that_are_too_large_are_no_outage(self) -> None:
        for store in (
            CachelibStore(OwnCache(60_000), ""),
            CachelibStore(OwnCache(60_000), "", LOCAL),
        ):
            put(store, body=b"x")
            with pytest.raises(TooLarge, match="bytes"):
                put(store, body=b"x" * 70_000)
            stored = store.get("page")
            assert stored is not None and stored.record.body == b"x"

    def test_of_lists_too_large_for_the_cache_lose_what_is_oldest(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(entries.LIMITS, "OwnCache", 5000)
        store = CachelibStore(OwnCache(5000), "")
        for number in range(20):
            store.log(b"%d " % number + b"x" * 1000)
        store.log(b"x" * 6000)
        store.log(b"last")
        assert store.journal()[0] == b"last" and len(store.journal()) < 5

    def test_that_are_refused_at_any_size_are_one(self) -> None:
        cache = OwnCache()
        store = CachelibStore(cache, "")
        put(store)
        cache.refuses = True
        with pytest.raises(StoreError, match="the cache takes no entry"):
            put(store)
        with pytest.raises(StoreError):
            store.probe()


class TestLoss:
    @pytest.mark.parametrize("lost", ["clock", "epochs"])
    def test_of_the_order_makes_all_pages_stale(
        self, lost: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        cache = OwnCache()
        store, other = CachelibStore(cache, ""), CachelibStore(cache, "")
        put(store)
        at = store.invalidate(["tag:a"], True)
        assert state(other) is NO
        Entries(cache, "").delete(lost)
        for each in (store, other):
            each._refreshed = -1e9
            assert state(each) is STALE and not each.changes(at).complete
        put(store)
        assert state(other) is NO
        assert len({record.getMessage() for record in caplog.records}) == 1

    @pytest.mark.parametrize("lineage", [False, True])
    def test_of_an_invalidation_or_a_lineage_is_noticed(self, lineage: bool) -> None:
        """The cache brings back what it had before, as one of several servers may."""
        cache = OwnCache()
        store, entries = CachelibStore(cache, ""), Entries(cache, "")
        store.invalidate(["tag:a"], True)
        record = entries.get("epochs")
        if lineage:
            entries.delete("clock")
        put(store)
        assert record is not None and state(store) is NO
        if not lineage:
            store.invalidate(["page:page"], True)
        entries.set("epochs", record)
        assert state(CachelibStore(cache, "")) is STALE

    def test_of_the_number_of_an_invalidation_does_not_hide_the_next_one(self) -> None:
        """The cache took the invalidation and not the number; its caller knows of the failure."""
        cache = OwnCache()
        store, other = CachelibStore(cache, ""), CachelibStore(cache, "")
        put(store, tags=["b"])
        clock = Entries(cache, "").get("clock")
        failed = store.invalidate(["tag:a"], True)
        assert clock is not None and state(other) is NO
        Entries(cache, "").set("clock", clock)
        assert store.invalidate(["tag:b"], True) > failed
        assert state(other) is EXPIRED

    def test_of_labels_makes_earlier_pages_stale_and_no_later_ones(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(entries, "MAX_VALUE", 2000)
        store = CachelibStore(OwnCache(), "")
        put(store, "early", tags=["0"])
        for number in range(100):
            store.invalidate([f"tag:{number}"], True)
        put(store, "late")
        assert state(store, "early") is STALE and state(store, "late") is NO
        assert store.put(make_record("put late", Number(store.number().lineage, 1))) == (
            STALE,
            store.changes(Number("", 0)).at,
        )

    def test_of_a_lock_that_a_dead_process_left_is_found_out(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(entries, "LOCK", 1)
        cache = OwnCache()
        Entries(cache, "").set("lock:clock", b"of the dead", entries.LOCK)
        store = CachelibStore(cache, "")
        with pytest.raises(StoreError, match="another process has the lock"):
            store.number()
        time.sleep(0.6)
        assert store.number().sequence == 1

    def test_of_a_lock_whose_file_has_expired_is_found_out(self, tmp_path: Path) -> None:
        """FileSystemCache adds nothing where it lies."""
        cache = FileSystemCache(str(tmp_path), threshold=0)
        Entries(cache, "").set("lock:clock", b"of the dead", -5)
        assert CachelibStore(cache, "").number().sequence == 1

    def test_of_a_page_by_eviction_is_a_miss(self) -> None:
        cache = OwnCache()
        for store in (CachelibStore(cache, "a"), CachelibStore(cache, "b", LOCAL)):
            put(store)
            cache.data = {k: v for k, v in cache.data.items() if b'"page"' not in v}
            assert store.get("page") is None
            assert not store.kind.lists or list(store.records()) == []


class TestLeases:
    def test_are_kept_up_while_their_process_lives(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(leases, "TERM", 0.4)
        monkeypatch.setattr(leases, "BEAT", 0.05)
        cache = OwnCache()
        store, other = CachelibStore(cache, ""), CachelibStore(cache, "")
        lease = store.lease("page", 60, False)
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            assert isinstance(other.lease("page", 60, False), Busy)
            time.sleep(0.02)
        assert not isinstance(lease, Busy)
        lease.release()
        assert not isinstance(other.lease("page", 60, False), Busy)

    @pytest.mark.parametrize("kind", [KIND, LOCAL])
    def test_of_a_render_that_hangs_end_with_their_time_in_its_own_process(
        self, kind: Kind, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """To the moment, although caches count whole seconds."""
        monkeypatch.setattr(leases, "BEAT", 0.05)
        store = CachelibStore(OwnCache(), "", kind)
        assert not isinstance(store.lease("page", 0.3, False), Busy)
        assert isinstance(store.lease("page", 60, False), Busy)
        time.sleep(0.4)
        assert not isinstance(store.lease("page", 60, False), Busy)

    def test_are_given_back_at_the_end(self) -> None:
        cache = OwnCache()
        store, other = CachelibStore(cache, ""), CachelibStore(cache, "")
        assert not isinstance(store.lease("page", 60, False), Busy)
        store.close()
        assert not isinstance(other.lease("page", 60, False), Busy)

    def test_can_be_given_back_to_a_cache_that_is_gone(self) -> None:
        cache = OwnCache()
        store = CachelibStore(cache, "")
        lease = store.lease("page", 60, False)
        cache.refuses = True
        assert not isinstance(lease, Busy)
        lease.release(b"outcome")
        store.close()

    def test_that_the_cache_took_and_did_not_answer_for_lapse(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(leases, "TERM", 0.4)
        monkeypatch.setattr(leases, "BEAT", 0.05)
        cache = OwnCache()
        store, other = CachelibStore(cache, ""), CachelibStore(cache, "")
        monkeypatch.setattr(store, "_claim", lambda *args: (other._claim(*args), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            store.lease("page", 60, False)
        assert isinstance(other.lease("page", 60, False), Busy)
        end = time.monotonic() + 6
        while isinstance(lease := other.lease("page", 60, False), Busy):
            assert time.monotonic() < end
            time.sleep(0.05)
        lease.release()

    def test_last_for_their_time_where_threads_do_not_run(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wsgi_isr.threads.start", lambda thread: False)
        cache = OwnCache()
        store, other = CachelibStore(cache, ""), CachelibStore(cache, "")
        store.lease("page", 60, False)
        assert isinstance(other.lease("page", 60, False), Busy)
        assert max(cache.timeouts - {entries.RETENTION}) > 60
