"""Redis servers that are killed, frozen, emptied, full, replaced, or have somebody else's keys."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import threading
import time
import typing as t
from collections.abc import Callable, Iterator

import pytest
from entries import put, state
from redis_server import Redis, SlowNetwork, eventually, listening, running
from steps import visit
from werkzeug import Response

from wsgi_isr import ISRMiddleware
from wsgi_isr.page import Invalidated
from wsgi_isr.store import clients
from wsgi_isr.store.clients import redis_client
from wsgi_isr.store.protocol import Busy, Number, ReadOnly
from wsgi_isr.store.redis import RedisStore
from wsgi_isr.testing.support import make_record

pytestmark = pytest.mark.servers

NO, STALE = Invalidated.NO, Invalidated.STALE
Open = Callable[..., RedisStore]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, patience: None) -> None:
    monkeypatch.setattr("wsgi_isr.store.clients.TIMEOUT", 0.25)


@pytest.fixture
def server(tmp_path: t.Any) -> Iterator[Redis]:
    with running(Redis(tmp_path)) as server:
        assert isinstance(server, Redis)
        yield server


@pytest.fixture
def open_store(server: Redis) -> Iterator[Open]:
    with contextlib.ExitStack() as stack:

        def open_one(other: Redis = server) -> RedisStore:
            store = RedisStore(redis_client(other.url), "site:")
            stack.callback(store.close)
            return store

        yield open_one


def seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    with contextlib.suppress(Exception):
        work()
    return time.monotonic() - began


class TestAServerThatIsAway:
    def test_frozen_costs_a_quarter_of_a_second(self, server: Redis, open_store: Open) -> None:
        store = open_store()
        put(store)
        lease = store.lease("page", 60, False)
        assert not isinstance(lease, Busy)
        server.freeze()
        try:
            for work in (lambda: state(store), store.number, lambda: store.invalidate(["x"], True)):
                with pytest.raises(Exception, match="(?i)timeout"):
                    work()
                assert seconds(work) < 0.6
            assert seconds(lease.release) < 0.6
            assert seconds(store.time) < 0.6
            assert seconds(store.time) < 0.05
        finally:
            server.thaw()
        store.probe()
        assert state(store) is not None
        assert store.time() == pytest.approx(time.time(), abs=0.2)
        # What could not be said before is said now.
        assert not isinstance(store.lease("page", 60, False), Busy)

    def test_a_lease_that_nobody_heard_of_is_given_back(
        self, server: Redis, open_store: Open
    ) -> None:
        store = open_store()
        store.number()
        server.freeze()
        with pytest.raises(Exception, match="(?i)timeout"):
            store.lease("page", 60, False)
        server.thaw()
        assert eventually(lambda: not isinstance(store.lease("page", 60, False), Busy), 2)

    def test_comes_back(self, server: Redis, open_store: Open) -> None:
        store = open_store()
        put(store)
        with listening(store):
            server.kill()
            with pytest.raises(Exception, match="(?i)conn|closed"):
                store.get("page")
            assert store.listen(0.05)
            server.start()
            mark = store.signal[0]
            assert eventually(lambda: store.get("page") is None, 2)
            assert eventually(lambda: store.signal[0] != mark, 3)
            put(store)
            assert state(store) is NO


class TestAServerThatLostWrites:
    @pytest.fixture
    def server(self, tmp_path: t.Any) -> Iterator[Redis]:
        with running(Redis(tmp_path, "--save ''")) as server:
            assert isinstance(server, Redis)
            yield server

    def back_to(self, server: Redis, work: Callable[[], object]) -> None:
        """Have a server forget some work."""
        server.do("SAVE")
        work()
        server.kill()
        server.start()

    def test_has_pages_that_count_as_stale(
        self, server: Redis, open_store: Open, caplog: pytest.LogCaptureFixture
    ) -> None:
        store, other = open_store(), open_store()
        put(store, tags=["tag"])
        lineage = store.number().lineage
        other.number()
        self.back_to(server, lambda: store.invalidate(["tag:tag"], False))
        # Whoever comes first, and whatever happens until the one comes who has seen more.
        assert state(other) is NO
        for _ in range(5):
            other.number()
        assert state(store) is STALE
        assert store.number().lineage != lineage
        assert state(other) is STALE
        assert "lost the order" in caplog.text

    def test_that_nobody_saw_has_pages_that_stay(self, server: Redis, open_store: Open) -> None:
        store = open_store()
        put(store)
        before = store.number()
        self.back_to(server, lambda: None)
        after = store.number()
        assert after.lineage == before.lineage
        # Renders that began before may have had numbers that the server lost.
        assert after.sequence > before.sequence + 1000
        assert state(store) is NO

    @pytest.mark.parametrize(
        "loss",
        [
            ("FLUSHALL",),
            *(("DEL", f"{{site:}}{key}") for key in "clock order patterns".split()),
        ],
        ids=lambda loss: " ".join(loss),
    )  # fmt: skip
    def test_of_the_order_has_a_new_lineage(
        self, server: Redis, open_store: Open, loss: tuple[str, ...]
    ) -> None:
        store = open_store()
        put(store, tags=["a"])
        store.invalidate(["tag:a", "tag:b", "pattern:/x/*"], True)
        at = store.changes(Number("", 0)).at
        server.do(*loss)
        changes = store.changes(at)
        assert not changes.complete and changes.at.lineage != at.lineage
        assert state(store) in (STALE, None)
        put(store, "later")
        assert state(store, "later") is NO

    def test_of_the_index_has_no_pages_that_it_lacks(self, server: Redis, open_store: Open) -> None:
        """None that invalidations or `prune` could miss."""
        store = open_store()
        put(store, "other", path="/other")
        put(store)
        server.do("DEL", "{site:}pages")
        assert state(store) is None
        put(store)
        assert state(store) is NO and state(store, "other") is None
        assert [one.record.name for one in store.records()] == ["page"]
        assert store.sizes().pages == store.prune(everything=True) == 1
        assert state(store) is None

    def test_pages_that_were_evicted_are_missing_and_nothing_else(
        self, server: Redis, open_store: Open
    ) -> None:
        store = open_store()
        put(store)
        lineage = store.number().lineage
        store.invalidate(["tag:a"], False)
        used = server.do("INFO", "memory")["used_memory"]
        server.do("CONFIG", "SET", "maxmemory", used + 2**20)
        for number in range(60):
            put(store, f"page{number}", path=f"/{number}", body=b"x" * 100_000)
        assert server.do("INFO", "stats")["evicted_keys"] > 0
        assert store.number().lineage == lineage
        assert 0 < len(list(store.records())) < 60


class TestAServerThatTakesNoWrites:
    def check(self, store: RedisStore) -> None:
        assert state(store) is NO
        assert [one.record.name for one in store.records()] == ["page"]
        assert store.changes(store.changes(Number("", 0)).at).complete
        for work in (
            store.number,
            lambda: store.invalidate(["tag:a"], False),
            lambda: store.put(make_record("new", Number("", 0))),
            lambda: store.lease("page", 60, False),
            store.probe,
        ):
            with pytest.raises(ReadOnly):
                work()

    def test_because_it_is_full_is_read_on(self, server: Redis, open_store: Open) -> None:
        store = open_store()
        put(store)
        server.do("CONFIG", "SET", "maxmemory-policy", "noeviction")
        server.do("CONFIG", "SET", "maxmemory", "1")
        self.check(store)
        self.check(open_store())
        server.do("CONFIG", "SET", "maxmemory", "100mb")
        store.probe()
        store.invalidate(["page:page"], False)
        assert state(store) is STALE

    def test_because_it_is_full_and_empty_has_no_pages(
        self, server: Redis, open_store: Open
    ) -> None:
        server.do("CONFIG", "SET", "maxmemory-policy", "noeviction")
        server.do("CONFIG", "SET", "maxmemory", "1")
        store = open_store()
        assert state(store) is None
        with pytest.raises(ReadOnly):
            store.number()
        server.do("CONFIG", "SET", "maxmemory", "100mb")
        put(store)
        assert state(store) is NO

    def test_because_it_lacks_replicas_is_read_on(self, server: Redis, open_store: Open) -> None:
        store = open_store()
        put(store)
        server.do("CONFIG", "SET", "min-replicas-to-write", "1")
        self.check(store)

    def test_because_it_is_a_replica_is_read_on_and_may_be_promoted(
        self, server: Redis, open_store: Open, tmp_path: t.Any
    ) -> None:
        store = open_store()
        put(store, tags=["a"])
        (tmp_path / "replica").mkdir()
        options = f"--save '' --replicaof 127.0.0.1 {server.port}"
        with running(Redis(tmp_path / "replica", options)) as replica:
            assert isinstance(replica, Redis)
            assert eventually(lambda: b"connected" in replica.do("ROLE"), 10)
            there = open_store(replica)
            assert eventually(lambda: state(there) is NO, 5)
            self.check(there)
            # An invalidation that the replica never gets.
            replica.do("REPLICAOF", "NO", "ONE")
            with SlowNetwork(server.port, 0.0) as address:
                url = f"redis://127.0.0.1:{address.port}/0"
                moved = RedisStore(redis_client(url), "site:")
                moved.invalidate(["tag:a"], False)
                assert state(there) is NO
            server.kill()
            with SlowNetwork(replica.port, 0.0, address.port):
                assert eventually(lambda: self.state_at(moved) is STALE, 5)
                moved.close()
            assert state(there) is STALE
            there.close()

    def state_at(self, store: RedisStore) -> Invalidated | None:
        with contextlib.suppress(Exception):
            return state(store)
        return None


def leave(url: str, pipe: t.Any) -> None:
    def app(environ: t.Any, start_response: t.Any) -> t.Any:
        pipe.send(environ["wsgi_isr.reason"])
        time.sleep(60)

    isr = ISRMiddleware(app, url, rules={"/": 60})
    threading.Thread(target=visit, args=(isr,), daemon=True).start()
    pipe.recv()
    # No close: the process ends as one does whose server stops it.


@pytest.mark.processes
class TestAProcessWithALease:
    def start(self, server: Redis, work: Callable[..., None]) -> t.Any:
        context = multiprocessing.get_context("spawn")
        mine, its = context.Pipe()
        process = context.Process(target=work, args=(f"{server.url}?socket_timeout=5", its))
        process.start()
        assert mine.poll(20)
        assert mine.recv() == "miss"
        return process, mine

    def test_that_ends_gives_it_back(self, server: Redis) -> None:
        process, pipe = self.start(server, leave)
        assert len(server.do("KEYS", "*lease:*")) == 1
        pipe.send(None)
        process.join()
        assert not server.do("KEYS", "*lease:*")

    def test_keeps_it_when_a_child_of_its_ends(self, server: Redis, open_store: Open) -> None:
        store = open_store()
        lease = store.lease("page", 60, False)
        child = os.fork()
        if not child:
            store.close()
            os._exit(0)
        os.waitpid(child, 0)
        other = open_store().lease("page", 60, False)
        assert isinstance(other, Busy) and other.token == lease.token
        assert store.number()


def test_a_middleware_that_is_closed_leaves_no_connection(server: Redis) -> None:
    before = set(threading.enumerate())
    isr = ISRMiddleware(Response("body"), server.url, rules={"/": 60})
    visit(isr)
    isr.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    assert server.do("INFO", "clients")["connected_clients"] == 1


class TestAdvice:
    @pytest.mark.parametrize(
        ("size", "policy", "says"),
        [
            ("1gb", "volatile-lru", ""), ("0", "noeviction", "no maxmemory"),
            ("1gb", "noeviction", "evicts nothing"), ("1gb", "allkeys-lru", "may evict the order"),
        ],
    )  # fmt: skip
    def test_is_given_once(
        self, server: Redis, open_store: Open, size: str, policy: str, says: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        clients._warn_once.cache_clear()
        server.do("CONFIG", "SET", "maxmemory", size)
        server.do("CONFIG", "SET", "maxmemory-policy", policy)
        for _ in range(2):
            open_store().time()
        warnings = [one.message for one in caplog.records if one.levelno == logging.WARNING]
        assert len(warnings) == bool(says)
        assert says in "".join(warnings)
