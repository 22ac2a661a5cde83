"""Keys of a Redis server that somebody else wrote under the names of a site, or damaged."""

from __future__ import annotations

import math
import typing as t
from collections.abc import Callable

import pytest
from entries import put
from redis_server import Redis

from wsgi_isr.page import Invalidated
from wsgi_isr.store.protocol import Failure, Wanted
from wsgi_isr.store.redis import RedisStore

pytestmark = pytest.mark.servers

Open = Callable[[], RedisStore]


def key_of(server: Redis, name: str) -> str:
    """A key of the site; ``{index}`` stands for what is in the keys of all pages."""
    index = server.do("ZRANGE", "{site:}pages", 0, 0)[0].decode().removeprefix("!")
    return "{site:}" + name.replace("{index}", index)


class TestForeignKeysUnderOurNames:
    KEYS = (
        "clock order patterns pages page:{index}:page lease:page outcome:t failures "
        "failures:times wanted:b wanted:b:times paths builds totals processes processes:times "
        "serving:b journal once:x minute:1"
    ).split()

    @pytest.mark.parametrize("kind", ["string", "list", "hash", "zset"])
    def test_are_overwritten_or_missing(self, redis: Redis, open_redis: Open, kind: str) -> None:
        plant = {
            "string": ("SET", "{}", "junk"),
            "list": ("RPUSH", "{}", "junk"),
            "hash": ("HSET", "{}", "lineage", "junk"),
            "zset": ("ZADD", "{}", "1", "junk"),
        }[kind]
        store = open_redis()
        put(store, tags=["a"])
        store.invalidate(["tag:b", "pattern:/*/x"], False)
        for name in self.KEYS:
            key = key_of(redis, name)
            redis.do("DEL", key)
            redis.do(plant[0], key, *plant[2:])
            for one in (store, open_redis()):
                self.use(one)

    def use(self, store: RedisStore) -> None:
        store.get("page")
        put(store, tags=["a"])
        store.invalidate(["tag:a"], False)
        stored = store.get("page")
        assert stored is not None and stored.validity.invalidated is Invalidated.STALE
        assert len(list(store.records())) == 1
        store.set_failure("page", Failure(1, 2.0, "error"))
        assert store.failure("page") == Failure(1, 2.0, "error")
        assert dict(store.failures())["page"].times == 1
        store.set_failure("page", None)
        assert store.outcome("t") in (None, b"junk")
        assert store.take("b", 5) is None
        assert store.want("b", Wanted("n", b"d"))
        taken = store.take("b", 5)
        assert taken is not None and taken.name == "n"
        store.done("b", "n")
        store.list_path("/a")
        assert store.has_path("/a")
        assert isinstance(store.builds("b"), list)
        store.add({"hits": 1})
        assert store.totals()["hits"] >= 1
        store.report({"pid": 1})
        assert {"pid": 1} in store.processes()
        store.log(b"entry")
        assert store.journal()[0] == b"entry"
        assert isinstance(store.once("x", 5), bool)
        assert list(store.minutes().values())
        store.lease("page", 1, True).release()  # type: ignore[union-attr]
        store.probe()

    @pytest.mark.parametrize(
        ("key", "field", "value"),
        [
            ("page:{index}:page", "meta", ""), ("page:{index}:page", "meta", "x"),
            ("page:{index}:page", "meta", "1\na\n/\n"),
            ("page:{index}:page", "meta", b"1\n%ff\n" * 5),
            ("page:{index}:page", "meta", b"9\n\xff\n\n\n\n"), ("page:{index}:page", "stale", "x"),
            ("page:{index}:page", "used", "x"), ("clock", "sequence", "x"),
            ("clock", "changed", ""), ("clock", "cursor", "x"), ("clock", "lineage", b"\xff"),
            ("clock", "sequence", "1e30"), ("clock", "sequence", "9" * 18),
            ("clock", "run", b"\xff"), ("clock", "stores", "1.5"),
            ("totals", "hits", "x"), ("totals", "hits", "inf"),
        ],
    )  # fmt: skip
    def test_damaged_fields_harm_nobody_for_good(
        self, redis: Redis, open_redis: Open, key: str, field: str, value: t.Any
    ) -> None:
        store = open_redis()
        put(store, tags=["a"])
        store.invalidate(["tag:a"], False)
        redis.do("HSET", key_of(redis, key), field, value)
        store.get("page")
        list(store.records())
        store.prune(max_pages=5)
        self.use(open_redis())
        self.use(store)

    @pytest.mark.parametrize("key", ["order", "patterns"])
    @pytest.mark.parametrize("label", ["pattern:/%ff", "pattern:/x*", b"\xff"])
    @pytest.mark.parametrize("number", ["5", "1.5", "inf", "-inf"])
    def test_planted_labels_harm_nobody(
        self, redis: Redis, open_redis: Open, key: str, label: t.Any, number: str
    ) -> None:
        store = open_redis()
        put(store, tags=["a"])
        text = label if isinstance(label, bytes) else label.encode()
        redis.do("ZADD", f"{{site:}}{key}", number, b"s" + text)
        for one in (store, open_redis()):
            self.use(one)
            assert all(map(math.isfinite, one.totals().values()))
