"""The store on a Redis server: what the contract of all stores does not ask for."""

from __future__ import annotations

import itertools
import threading
import time
import typing as t
from collections.abc import Callable

import pytest
from entries import put, state
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis_server import Redis, eventually, listening

from wsgi_isr.page import Invalidated
from wsgi_isr.rules import compile_pattern
from wsgi_isr.store import redis as module
from wsgi_isr.store.clients import redis_client
from wsgi_isr.store.protocol import MAX_FAILURES, Failure, Number
from wsgi_isr.store.redis import RedisStore
from wsgi_isr.testing.support import make_record

pytestmark = pytest.mark.servers

NO, STALE, EXPIRED = Invalidated.NO, Invalidated.STALE, Invalidated.EXPIRED
Open = Callable[[], RedisStore]


@pytest.fixture
def store(open_redis: Open) -> RedisStore:
    return open_redis()


def server_time(redis: Redis, work: Callable[[], object]) -> float:
    """Microseconds that the server took for each script of some work."""
    redis.do("CONFIG", "RESETSTAT")
    work()
    found = [
        value for name, value in redis.do("INFO", "commandstats").items() if "cmdstat_eval" in name
    ]
    return sum(one["usec"] for one in found) / sum(one["calls"] for one in found)


segments = st.lists(
    st.sampled_from(
        ["*", "**", "a", "b", "ab", "", "a*", "*b", "a*b", "*a*b*", "%61", "caf%C3%A9"]
    ),
    min_size=1,
    max_size=5,
)
paths = st.lists(st.sampled_from(["a", "b", "ab", "aab", "", "caf\xc3\xa9", "aXb"]), max_size=6)


class TestPatterns:
    @settings(
        max_examples=150,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(st.lists(segments, min_size=1, max_size=3), st.lists(paths, min_size=1, max_size=4))
    def test_match_what_rules_match(
        self, store: RedisStore, patterns: list[list[str]], pages: list[list[str]]
    ) -> None:
        store.prune(everything=True)
        for number, path in enumerate(pages):
            put(store, f"page{number}", path="/" + "/".join(path))
        texts = ["/" + "/".join(pattern) for pattern in patterns]
        texts = [text for text in texts if not text.startswith("//")]
        if not texts:
            return
        store.invalidate([f"pattern:{text}" for text in texts], False)
        for number, path in enumerate(pages):
            full = "/" + "/".join(path)
            matched = any(compile_pattern(text).fullmatch(full) for text in texts)
            assert state(store, f"page{number}") is (STALE if matched else NO), (full, texts)

    @pytest.mark.parametrize("pattern", ["/*a" * 40, "/**/a" * 40, "/" + "*a" * 200])
    def test_do_not_backtrack(self, redis: Redis, store: RedisStore, pattern: str) -> None:
        put(store, path="/" + "a/a" * 500)
        store.invalidate([f"pattern:{pattern}b"], False)
        assert server_time(redis, lambda: state(store)) < 20_000

    def test_are_sent_to_each_process_once(
        self, redis: Redis, store: RedisStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However many are not applied to pages yet."""
        monkeypatch.setattr(module, "MAX_PATTERNS", 10)
        monkeypatch.setattr(store, "_fold", lambda times: None)
        store.invalidate([f"pattern:/{number}/*" for number in range(100)], False)
        store.number()
        before = redis.do("INFO", "stats")["total_net_output_bytes"]
        for _ in range(10):
            store.get("page")
        assert redis.do("INFO", "stats")["total_net_output_bytes"] - before < 20_000

    @pytest.mark.parametrize("shape", ["/blog/{}/**", "/shop/*/x{}", "/a/**/x{}", "/p/x{}*"])
    def test_do_not_make_reads_slower(self, redis: Redis, store: RedisStore, shape: str) -> None:
        put(store, path="/shop/a/b")
        store.invalidate(["pattern:/elsewhere/*"], False)
        before = min(server_time(redis, lambda: state(store)) for _ in range(20))
        store.invalidate([f"pattern:{shape.format(number)}" for number in range(1500)], False)
        after = min(server_time(redis, lambda: state(store)) for _ in range(20))
        assert after < 2 * before + 50
        store.invalidate([f"pattern:{shape.format('/')[:-1]}**"], False)


class TestLabels:
    @pytest.mark.parametrize("tag", ["a\nb", "\x00", "\ud800", "%", "\x1an", "a\\b", "*", " ", ""])
    def test_have_any_characters(self, open_redis: Open, tag: str) -> None:
        store = open_redis()
        put(store, tags=[tag])
        put(store, "other", path="/other", tags=["x"])
        there = store.get("page")
        assert there is not None and there.record.labels[-1] == f"tag:{tag}"
        before = store.changes(Number("", 0)).at
        store.invalidate([f"tag:{tag}"], True)
        assert state(store) is EXPIRED
        assert state(store, "other") is NO
        assert open_redis().changes(before).invalidations[0].label == f"tag:{tag}"

    def test_that_are_no_patterns_harm_nobody(self, open_redis: Open) -> None:
        store = open_redis()
        put(store)
        store.invalidate(["pattern:foo", "pattern:", "pattern://", "pattern:/%"], False)
        assert state(open_redis()) is NO
        store.invalidate(["tag:x"], False)


class TestBounds:
    @pytest.fixture(autouse=True)
    def few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("wsgi_isr.store.protocol.MAX_LABELS", 100)
        monkeypatch.setattr(module, "PAGES", 10)

    def labels(self, redis: Redis) -> int:
        return int(redis.do("ZCARD", "{site:}order"))

    def test_old_labels_are_applied_and_forgotten(self, redis: Redis, store: RedisStore) -> None:
        early = store.number()
        for number in range(60):
            put(store, f"page{number}", path=f"/{number}", tags=[f"{number}"])
        put(store, "other")
        for number in range(400):
            store.invalidate([f"tag:{number}"], number % 2 == 1)
        for number in range(60):
            assert state(store, f"page{number}") is (EXPIRED if number % 2 else STALE)
        put(store, "later", tags=["5"])
        assert state(store, "later") is state(store, "other") is NO
        assert self.labels(redis) <= 200
        store.put(make_record("early", early))
        assert state(store, "early") is STALE

    def test_who_sleeps_through_a_round_of_that_does_not_end_the_next(
        self, open_redis: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, other = open_redis(), open_redis()
        put(one, tags=["x"])
        fold, step = other._fold, one._step
        monkeypatch.setattr(other, "_fold", lambda times: None)
        other.invalidate([f"tag:{number}" for number in range(101)], False)
        one.number()

        def slow(name: str, *args: t.Any, **options: t.Any) -> t.Any:
            if name == "fold":
                fold(10)
                other.invalidate(["tag:x"], False)
                other.invalidate([f"tag:again {number}" for number in range(100)], False)
            return step(name, *args, **options)

        monkeypatch.setattr(one, "_step", slow)
        one._fold(1)
        assert state(other) is STALE
        fold(10)
        assert state(other) is STALE

    def test_they_are_forgotten_a_few_at_a_time(
        self, redis: Redis, store: RedisStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wsgi_isr.store.protocol.MAX_LABELS", 3000)
        with monkeypatch.context() as patch:
            patch.setattr(store, "_fold", lambda times: None)
            store.invalidate([f"tag:{number}" for number in range(3001)], False)
        left = [self.labels(redis)]
        while store._seen.cursor:
            store._fold(1)
            left.append(self.labels(redis))
        assert left[-1] < 1700
        assert max(before - after for before, after in itertools.pairwise(left)) <= 500

    def test_who_listens_does_it_too(self, redis: Redis, store: RedisStore) -> None:
        for number in range(50):
            put(store, f"page{number}", path=f"/{number}")
        store.invalidate([f"tag:{number}" for number in range(101)], False)
        with listening(store):
            assert eventually(lambda: self.labels(redis) <= 51, 5)

    def test_old_patterns_are_applied_and_forgotten(
        self, redis: Redis, store: RedisStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "MAX_PATTERNS", 10)
        put(store, path="/shop/a3b")
        put(store, "other", path="/shop/b")
        for number in range(40):
            store.invalidate([f"pattern:/shop/*{number}*"], False)
        assert redis.do("ZCARD", "{site:}patterns") < 20
        assert (state(store), state(store, "other")) == (STALE, NO)

    def test_failures_are_bounded(self, store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
        assert MAX_FAILURES >= 1000
        monkeypatch.setattr("wsgi_isr.store.protocol.MAX_FAILURES", 3)
        for number in range(6):
            store.set_failure(f"page{number}", Failure(1, 2.0, "error"))
            time.sleep(0.002)
        assert sorted(name for name, _ in store.failures()) == ["page3", "page4", "page5"]

    def test_the_index_forgets_evicted_pages(self, redis: Redis, store: RedisStore) -> None:
        for number in range(50):
            put(store, f"page{number}", path=f"/{number}")
        index = redis.do("ZRANGE", "{site:}pages", 0, 0)[0].decode().removeprefix("!")
        for number in range(10, 50):
            redis.do("DEL", f"{{site:}}page:{index}:page{number}")
        for number in range(40):
            put(store, f"page{number % 10}", path=f"/{number % 10}")
        assert store.sizes().pages == 10
        assert state(store, "page1") is NO


class TestNews:
    def test_tells_of_pages_and_invalidations_by_others(self, open_redis: Open) -> None:
        one, other = open_redis(), open_redis()
        with listening(other):
            before = other.signal[1]
            put(one)
            assert eventually(lambda: other.signal[1] != before, 1)
            signal = other.signal[0]
            one.invalidate(["tag:x"], False)
            assert eventually(lambda: other.signal[0] != signal, 1)

    def test_comes_with_each_answer_and_once(self, open_redis: Open) -> None:
        one, other = open_redis(), open_redis()
        other.number()
        before = list(other.signal)
        put(one)
        one.invalidate(["tag:x"], False)
        other.get("page")
        now = list(other.signal)
        assert before[0] != now[0] and before[1] != now[1]
        other.get("page")
        with listening(other):
            time.sleep(0.6)
        assert other.signal == now


class TestTheClock:
    def test_is_the_servers(self, open_redis: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        right, now = open_redis(), time.time
        monkeypatch.setattr("wsgi_isr.store.clients.time.time", lambda: now() + 300)
        wrong = open_redis()
        assert wrong.time() == pytest.approx(now(), abs=0.5)
        monkeypatch.undo()
        assert right.time() == pytest.approx(now(), abs=0.5)

    def test_takes_one_round_trip(self, redis: Redis, store: RedisStore) -> None:
        store.time()
        redis.do("CONFIG", "RESETSTAT")
        for _ in range(10):
            store.time()
        assert "cmdstat_evalsha" not in redis.do("INFO", "commandstats")


class TestLeases:
    def test_last_their_whole_time_where_threads_do_not_run(
        self, redis: Redis, store: RedisStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wsgi_isr.threads.start", lambda thread: False)
        store.lease("page", 40, False)
        assert 30_000 < redis.do("PTTL", "{site:}lease:page") <= 40_000
        store.lease("other", 4000, False)
        assert redis.do("PTTL", "{site:}lease:other") <= 60_000

    def test_are_given_back_when_the_store_is_closed(self, redis: Redis) -> None:
        store = RedisStore(redis_client(redis.url), "site:")
        store.lease("page", 60, False)
        store.close()
        assert not redis.do("EXISTS", "{site:}lease:page")


class TestASite:
    def test_is_apart_from_others_on_the_server(self, redis: Redis) -> None:
        prefixes = ["a", "a}", "{a}", "", "}", "a*", "é", "%"]
        stores = [RedisStore(redis_client(redis.url), prefix) for prefix in prefixes]
        for store, prefix in zip(stores, prefixes, strict=True):
            put(store, path=f"/{prefix}")
        stores[0].prune(everything=True)
        stores[0].invalidate(["pattern:/**"], True)
        for store in stores[1:]:
            assert state(store) is NO
            assert len(list(store.records())) == 1
        for store in stores:
            store.close()

    def test_is_used_by_many_threads_and_others_with_one_connection(
        self, redis: Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wsgi_isr.store.clients.PATIENCE", 30.0)
        client = redis_client(f"{redis.url}?max_connections=1")()
        stores = [RedisStore(lambda: client, prefix, lent=True) for prefix in ("site:", "other:")]
        errors: list[Exception] = []

        def work(number: int) -> None:
            try:
                store = stores[number % 2]
                for _ in range(50):
                    put(store, f"page{number}")
                    state(store, f"page{number}")
            except Exception as error:
                errors.append(error)

        with listening(stores[0]):
            threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for store in stores:
            store.close()
        client.close()
        assert not errors


class TestPruning:
    def test_and_listing_never_stop_the_server(self, redis: Redis, store: RedisStore) -> None:
        number = store.number()
        for index in range(3000):
            path = f"/blog/{index}"
            store.put(make_record(f"{index}", number, path=path, body=b"x" * 3000))
        store.invalidate([f"tag:{index}" for index in range(10_000)], False)
        assert server_time(redis, lambda: list(store.records())) < 30_000
        assert server_time(redis, lambda: list(store.records(path="/blog/5"))) < 10_000
        assert server_time(redis, lambda: store.prune(keep_builds=["other"])) < 30_000
        assert not list(store.records())
