"""What is special to the embedded store; what it shares with others is in the contract."""

from __future__ import annotations

import gc
import os
import sqlite3
import threading
import time
import types
import typing as t
from collections.abc import Callable
from pathlib import Path

import pytest
from embedded import NOTHING, Embedded, put

from wsgi_isr.page import Invalidated
from wsgi_isr.store import notes, tables
from wsgi_isr.store.protocol import (
    MAX_MINUTES,
    Busy,
    Failure,
    Number,
    StoreError,
    TooLarge,
    Wanted,
)
from wsgi_isr.store.sqlite import SQLiteStore
from wsgi_isr.store.tables import State

NO, STALE, EXPIRED = Invalidated.NO, Invalidated.STALE, Invalidated.EXPIRED


def state(store: SQLiteStore, name: str) -> Invalidated:
    stored = store.get(name)
    assert stored is not None
    return stored.validity.invalidated


def cost(store: SQLiteStore, name: str) -> float:
    """Seconds that a read takes: the best of many, because others use the machine, too."""
    times = []
    for _ in range(300):
        began = time.perf_counter()
        store.get(name)
        times.append(time.perf_counter() - began)
    return sorted(times)[30]


class TestFolder(Embedded):
    def test_is_for_this_user_alone(self, folder: Path, store: SQLiteStore) -> None:
        assert not folder.exists()
        assert store.get("a") is None
        assert folder.stat().st_mode & 0o777 == 0o700

    def test_what_is_given_back_leaves_nothing_open(
        self, folder: Path, open_store: Callable[..., SQLiteStore]
    ) -> None:
        # What earlier tests left open goes now, not meanwhile.
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        store = open_store()
        put(store, "a")
        lease = store.lease("a", 9, True)
        store.report({"pid": 1})
        store.close()
        assert len(os.listdir("/proc/self/fd")) == before
        assert os.listdir(folder / "processes") == [] and not isinstance(lease, Busy)
        lease.release()

    def test_prune_removes_what_versions_without_a_database_left(
        self, folder: Path, store: SQLiteStore
    ) -> None:
        put(store, "a")
        for name in ("pages", "leases"):
            (folder / "isr%3A" / name).mkdir(parents=True)
        (folder / "isr%3A" / "sequence").write_text("x")
        (folder / "mine" / "pages").mkdir(parents=True)
        (folder / "sequence").mkdir()
        (folder / "other").mkdir()
        (folder / "other" / "sequence").write_text("x")
        store.prune()
        assert not (folder / "isr%3A").exists()
        assert all(
            (folder / name).exists() for name in ("mine/pages", "sequence", "other/sequence")
        )
        assert store.get("a") is not None


class TestOrder(Embedded):
    @pytest.mark.parametrize("label", ["tag:{}", "pattern:/blog/{}/**", "pattern:/shop/*/x{}"])
    def test_reading_costs_the_same_however_much_was_invalidated(
        self, store: SQLiteStore, label: str
    ) -> None:
        put(store, "a", path="/shop/1/a", body=b"b" * 20_000)
        store.invalidate([label.format("first")], False)
        before = cost(store, "a")
        for start in range(0, 20_000, 500):
            store.invalidate([label.format(n) for n in range(start, start + 500)], False)
        assert state(store, "a") is NO
        assert cost(store, "a") < 2.2 * before + 20e-6

    def test_patterns_that_begin_alike_reach_their_pages_and_no_others(
        self, store: SQLiteStore
    ) -> None:
        early = store.number()
        for n in range(70):
            put(store, f"p{n}", path=f"/shop/1/x{n}")
        put(store, "other", path="/shop/1/y")
        for n in range(60):
            store.invalidate([f"pattern:/shop/*/x{n}"], n % 2 == 0)
        for n in range(60):
            assert state(store, f"p{n}") is (STALE if n % 2 else EXPIRED), n
        assert {state(store, f"p{n}") for n in range(60, 70)} == {NO}
        assert state(store, "other") is NO
        # Nobody can say any more what happened to one that began before all that.
        put(store, "late", path="/shop/1/x3", number=early)
        assert state(store, "late") is not NO
        put(store, "p1", path="/shop/1/x1")
        assert state(store, "p1") is NO

    def test_forgotten_labels_reach_their_pages_and_no_others(
        self, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tables, "ROWS", 4)
        early = store.number()
        for n in range(300):
            put(store, f"p{n}")
        put(store, "other")
        for n in range(250):
            store.invalidate([f"tag:p{n}"], n % 2 == 0)
        assert 0 < store.database.read(State.read).floor < store.number().sequence
        for n in range(250):
            assert state(store, f"p{n}") is (STALE if n % 2 else EXPIRED), n
        assert {state(store, f"p{n}") for n in range(250, 300)} == {NO}
        assert state(store, "other") is NO
        put(store, "late", number=early)
        assert state(store, "late") is STALE

    def test_a_label_that_comes_while_others_are_forgotten_stays(
        self, open_store: Callable[..., SQLiteStore], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tables, "ROWS", 1)
        store, other = open_store(), open_store()
        put(store, "a")
        concerned, labels = tables.concerned, ["tag:a", *(f"tag:{n}" for n in range(60))]

        def interrupted(connection: sqlite3.Connection, after: str) -> t.Any:
            found = concerned(connection, after)
            while not found[0] and labels:
                other.invalidate([labels.pop(0)], False)
            return found

        monkeypatch.setattr(tables, "concerned", interrupted)
        for n in range(50):
            store.invalidate([f"tag:x{n}"], False)
        assert labels == [] and state(store, "a") is STALE

    @pytest.mark.parametrize("statement", ["UPDATE labels SET data = x'00'", "DELETE FROM labels"])
    def test_a_damaged_row_of_labels_is_a_damaged_file(
        self, folder: Path, store: SQLiteStore, statement: str
    ) -> None:
        put(store, "a")
        at = store.invalidate(["tag:b"], False)
        store.list_path("/a")
        store.database.write(lambda connection: connection.execute(statement).rowcount)
        assert store.get("a") is None and not store.changes(at).complete
        assert store.has_path("/a") is None
        put(store, "a")
        store.invalidate(["tag:c"], False)
        assert state(store, "a") is NO

    def test_a_gap_in_the_history_shows(self, store: SQLiteStore) -> None:
        at = store.changes(NOTHING).at
        for n in range(3):
            store.invalidate([f"tag:{n}"], False)
        assert len(store.changes(at).invalidations) == 3
        store.database.write(
            lambda connection: connection.execute("DELETE FROM history WHERE id = 2").rowcount
        )
        assert not store.changes(at).complete

    def test_a_page_from_a_future_that_was_undone_is_not_ahead_of_invalidations(
        self, store: SQLiteStore
    ) -> None:
        number = store.number()
        put(store, "a", number=number._replace(sequence=number.sequence + 100))
        store.invalidate(["tag:a"], False)
        assert state(store, "a") is STALE


class TestBounds(Embedded):
    def test_holds_under_many_made_up_names(self, open_store: Callable[..., SQLiteStore]) -> None:
        stores = [open_store(max_pages=50, max_bytes=50_000) for _ in range(4)]
        put(stores[0], "real", body=b"b" * 2000)
        over: list[object] = []

        def crawl(store: SQLiteStore, turn: int) -> None:
            for n in range(150):
                put(store, f"{turn}-{n}", gone=True, body=b"b" * (n % 7 * 1000))
                sizes = store.sizes()
                if (sizes.pages or 0) > 50 or (sizes.bytes or 0) > 50_000:
                    over.append(sizes)

        threads = [
            threading.Thread(target=crawl, args=(store, turn)) for turn, store in enumerate(stores)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = list(stores[0].records())
        assert over == [] and len(found) == stores[0].sizes().pages <= 50
        assert stores[0].get("real") is not None

    def test_evicts_what_was_used_least(self, open_store: Callable[..., SQLiteStore]) -> None:
        store = open_store(max_pages=3)
        for name in "abc":
            put(store, name)
        store.set_failure("b", Failure(1, 0.0, "error"))
        store.used(["a"])
        put(store, "d")
        assert [name for name in "abcd" if store.get(name)] == ["a", "c", "d"]
        assert store.failure("b") is None

    def test_refuses_what_is_too_large(self, open_store: Callable[..., SQLiteStore]) -> None:
        store = open_store(max_bytes=1000)
        put(store, "a")
        with pytest.raises(TooLarge):
            put(store, "a", body=b"b" * 1000)
        assert store.get("a") is not None

    def test_the_file_shrinks(self, folder: Path, store: SQLiteStore) -> None:
        for n in range(200):
            put(store, f"p{n}", body=b"b" * 50_000)
        store.prune(max_pages=200)
        before = (folder / "pages.sqlite3").stat().st_size
        assert store.prune(max_pages=10) == 190
        assert (folder / "pages.sqlite3").stat().st_size < before / 5
        assert (folder / "pages.sqlite3-wal").stat().st_size == 0
        assert store.sizes().pages == 10

    @pytest.mark.parametrize("how", ["prune", "put", "put large"])
    def test_making_room_lets_others_in_between(
        self, open_store: Callable[..., SQLiteStore], how: str
    ) -> None:
        store, other = open_store(max_pages=800), open_store()
        for n in range(800):
            put(other, f"p{n}", body=b"b" * 2000, number=Number("", 1))
        actions: dict[str, Callable[[], object]] = {
            "prune": lambda: store.prune(everything=True),
            "put": lambda: put(open_store(max_pages=9), "new", number=Number("", 1)),
            "put large": lambda: put(
                open_store(max_bytes=1_650_000), "new", body=b"b" * 1_550_000, number=Number("", 1)
            ),
        }
        waits: list[float] = []
        thread = threading.Thread(target=actions[how])
        thread.start()
        while thread.is_alive():
            began = time.perf_counter()
            other.number()
            waits.append(time.perf_counter() - began)
        thread.join()
        assert len(waits) > 10 and sorted(waits)[len(waits) // 2] < 0.01
        assert (store.sizes().pages or 0) < 200
        assert len(list(store.records())) == store.sizes().pages


class TestLeases(Embedded):
    def test_one_that_cannot_be_given_back_is_given_back_later(
        self, open_store: Callable[..., SQLiteStore], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store, other = open_store(), open_store()
        lease = store.lease("a", 60, True)
        assert not isinstance(lease, Busy)

        def fail(*args: object) -> t.Any:
            raise StoreError("full")

        with monkeypatch.context() as patched:
            patched.setattr(store.database, "write", fail)
            lease.release(b"outcome")
        assert isinstance(other.lease("a", 60, True), Busy)
        again = store.lease("a", 60, False)
        assert not isinstance(again, Busy)
        # Who comes so late did not wait for it.
        assert other.outcome(lease.token) is None
        with monkeypatch.context() as patched:
            patched.setattr(store.database, "write", fail)
            again.release()
        store.probe()
        assert not isinstance(other.lease("a", 60, False), Busy)


class TestWanted(Embedded):
    def test_listening_ends_with_a_wanted_page(
        self, open_store: Callable[..., SQLiteStore]
    ) -> None:
        store, other = open_store(), open_store()
        assert not other.want("build", Wanted("a", b"data"))
        assert store.take("build", 9) is None
        assert store.listen(0.05) is False
        heard = threading.Event()
        thread = threading.Thread(target=lambda: store.listen(30) and heard.set())
        thread.start()
        while not heard.is_set():
            assert other.want("build", Wanted("a", b"data"))
            other.done("build", "a") if not heard.wait(0.05) else None
        thread.join()

    def test_a_damaged_wanted_page_is_dropped(self, store: SQLiteStore) -> None:
        assert store.take("build", 9) is None
        assert store.want("build", Wanted("a", b"data"))
        store.database.write(
            lambda connection: (
                connection.execute(
                    "UPDATE notes SET value = x'00' WHERE kind LIKE 'wanted%'"
                ).rowcount
            )
        )
        assert store.take("build", 9) is None
        assert store.want("build", Wanted("a", b"data"))
        assert store.take("build", 9) == Wanted("a", b"data")


class TestTotals(Embedded):
    def test_those_of_the_last_hour_are_kept(
        self, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 1.7e9
        clock = types.SimpleNamespace(time=lambda: now, monotonic=time.monotonic)
        monkeypatch.setattr(notes, "time", clock)
        for _ in range(MAX_MINUTES + 9):
            now += 60
            store.add({"hits": 1})
            store.add({"hits": 1})
        last = int(now // 60)
        found = store.minutes()
        assert list(found) == list(range(last - MAX_MINUTES + 1, last + 1))
        assert found[last] == {"hits": 2 * MAX_MINUTES + 17}
        now += 60 * 50
        assert list(store.minutes()) == list(range(last - 10, last + 1))
