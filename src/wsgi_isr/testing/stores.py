"""`StoreContract`: a class of tests for a kind of store; tests of what it does not claim skip."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import typing as t
from collections.abc import Callable

from ..store.protocol import MAX_JOURNAL, Busy, Failure, Store
from .order import OrderContract
from .pages import PagesContract
from .support import GRACE, STALE, TAKEN_OVER, add_often, eventually, run_threads, take_lease


class StoreContract(PagesContract, OrderContract):
    """The promises of a store. Derive a class whose name begins with ``Test``."""

    # What exists, what was counted, how much there is.

    def test_remembers_paths(self, store: Store, other: Store) -> None:
        for path in ("/a", "/a", "/caf\xc3\xa9", "/" + "x" * 2000, "/a b/../c"):
            assert bool(other.has_path(path)) is (path == "/a" and bool(store.has_path("/a")))
            store.list_path(path)
            assert other.has_path(path)
        assert not other.has_path("/A") and not other.has_path("/a/")

    def test_gives_earlier_builds(self, store: Store, other: Store) -> None:
        assert store.builds("a") == []
        assert other.builds("b") == ["a"]
        assert store.builds("c") == ["b", "a"]
        assert [store.builds(build) for build in "abc"] == [[], ["a"], ["b", "a"]]

    def test_adds_up_counts(self, store: Store, other: Store) -> None:
        assert store.totals() == {}
        store.add({"hits": 1, "le=0.5": 2})
        other.add({"hits": 2, "seconds": 0.25})
        other.add({})
        assert store.totals() == other.totals() == {"hits": 3, "le=0.5": 2, "seconds": 0.25}
        self.need(store, "exact")
        run_threads(8, lambda index: add_often((store, other)[index % 2], 25))
        assert store.totals()["hits"] == 203

    def test_gives_the_totals_of_each_minute(self, store: Store, other: Store) -> None:
        assert store.minutes() == {}
        first = store.time() // 60
        store.add({"hits": 1})
        other.add({"hits": 2, "seconds": 0.25})
        minutes = other.minutes()
        # The minute may have passed in between: then the second one has both.
        assert minutes == store.minutes() and next(iter(minutes.values())) == {"hits": 1}
        assert list(minutes) in ([first], [first, first + 1], [first + 1])

    def test_keeps_a_journal(self, store: Store, other: Store) -> None:
        assert store.journal() == []
        entries = [b'{"at": %d}\xff\0' % number for number in range(MAX_JOURNAL + 5)]
        for turn, entry in enumerate(entries):
            (store, other)[turn % 2].log(entry)
        store.log(*entries[-2:])
        latest = [*entries[-1:-3:-1], *reversed(entries)][:MAX_JOURNAL]
        assert store.journal() == other.journal() == latest

    def test_asks_once_in_a_time(self, store: Store, other: Store) -> None:
        assert store.once("é x", 60) and other.once("another", 60)
        assert not store.once("é x", 60) and not other.once("é x", 60)
        assert other.once("short", 0.3)
        assert not store.once("short", 0.3)
        assert eventually(lambda: store.once("short", 0.3), 0.3 + GRACE)

    def test_asks_one_of_many(self, store: Store, other: Store) -> None:
        self.need(store, "one_render")
        asked: list[bool] = []
        run_threads(8, lambda turn: asked.append((store, other)[turn % 2].once("name", 60)))
        assert sorted(asked) == [False] * 7 + [True]

    def test_gives_what_each_process_reported_last(self, store: Store, other: Store) -> None:
        assert store.processes() == []
        store.report({"pid": 1, "rendering": ["/é"]})
        store.report({"pid": 1, "rendering": []})
        assert other.processes() == [{"pid": 1, "rendering": []}]
        if other is not store:
            other.report({"pid": 2})
            assert sorted(item["pid"] for item in store.processes()) == [1, 2]
            other.close()
            assert store.processes() == [{"pid": 1, "rendering": []}]

    # The process.

    def test_the_time_goes_on(self, store: Store) -> None:
        times = [store.time() for _ in range(5)]
        assert times == sorted(times) and times[0] > 1.6e9

    def test_answers_a_probe(self, store: Store) -> None:
        store.probe()

    def test_can_be_closed_twice(self, store: Store, other: Store) -> None:
        store.number()
        store.close()
        store.close()
        assert other.number().sequence

    def test_outlives_a_restart(self, store: Store, opened: Callable[[], Store]) -> None:
        self.need(store, "durable")
        self.put(store)
        at = store.invalidate(["page:page"], False)
        store.list_path("/a")
        store.set_failure("page", Failure(1, 2.5, "error"))
        store.add({"hits": 1})
        store.log(b"entry")
        store.close()
        again = opened()
        assert self.state(again) is STALE and again.has_path("/a")
        assert again.failure("page") == Failure(1, 2.5, "error") and again.totals() == {"hits": 1}
        assert again.journal() == [b"entry"] and list(again.minutes().values()) == [{"hits": 1}]
        assert again.changes(at).complete and again.number() > at

    # Other processes.

    def test_processes_share_one_order(
        self, store: Store, store_arguments: tuple[t.Any, ...]
    ) -> None:
        self.need(store, "exact")
        results = multiprocessing.get_context("spawn").Queue()
        processes = [self.spawn(store_arguments, _count, results) for _ in range(4)]
        numbers = [number for _ in processes for number in results.get(timeout=60)]
        for process in processes:
            process.join()
        assert len(set(numbers)) == len(numbers) == 400
        assert store.totals() == {"hits": 400}

    def test_a_killed_process_gives_its_lease_back(
        self, store: Store, store_arguments: tuple[t.Any, ...]
    ) -> None:
        ready = multiprocessing.get_context("spawn").Event()
        process = self.spawn(store_arguments, _hold, ready)
        assert ready.wait(60) and isinstance(store.lease("page", 60, False), Busy)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        lease = eventually(lambda: take_lease(store, "page"), TAKEN_OVER + GRACE)
        assert lease is not None
        lease.release()


def _count(store: Store, results: t.Any) -> None:
    add_often(store, 100)
    results.put([store.number() for _ in range(100)])


def _hold(store: Store, ready: t.Any) -> None:
    assert not isinstance(store.lease("page", 60, False), Busy)
    ready.set()
    threading.Event().wait()
