"""Every kind of store keeps the promises of the protocol that it claims to keep."""

from __future__ import annotations

import secrets
import typing as t
import weakref
from collections.abc import Callable

import pytest
from cachelib import FileSystemCache, NullCache, SimpleCache
from redis_server import Memcached, Redis

from wsgi_isr.page import Invalidated
from wsgi_isr.store.cachelib import LOCAL, MEMCACHED, MEMORY, CachelibStore
from wsgi_isr.store.protocol import MAX_LABELS, Store
from wsgi_isr.testing import StoreContract

Open = Callable[[], Store]


def in_folder(folder: str) -> Store:
    return CachelibStore(FileSystemCache(folder, threshold=0), "a")


def on_memcached(port: int, prefix: str) -> Store:
    from cachelib import MemcachedCache
    from pymemcache.client.base import PooledClient

    client = PooledClient(("127.0.0.1", port), timeout=5, connect_timeout=5, default_noreply=False)
    weakref.finalize(client.client_pool, client.client_pool.clear).atexit = False
    return CachelibStore(MemcachedCache(client), prefix, MEMCACHED)


def in_sqlite(folder: str) -> Store:
    from wsgi_isr.store.sqlite import SQLiteStore

    return SQLiteStore(folder)


def on_redis(url: str) -> Store:
    from wsgi_isr.store.clients import redis_client
    from wsgi_isr.store.redis import RedisStore

    return RedisStore(redis_client(url), "a")


class TestMemory(StoreContract):
    keeps_pages = False

    @pytest.fixture
    def open_store(self) -> Open:
        store = CachelibStore(NullCache(), "", MEMORY)
        return lambda: store


class TestSimpleCache(StoreContract):
    @pytest.fixture
    def open_store(self) -> Open:
        store = CachelibStore(SimpleCache(threshold=10_000), "a", LOCAL)
        return lambda: store

    def test_forgets_labels_without_making_other_pages_stale(self, store: Store) -> None:
        """It makes all earlier pages stale, because it cannot list them."""
        self.put(store, "early")
        for start in range(0, MAX_LABELS + 2000, 1000):
            store.invalidate([f"tag:{number}" for number in range(start, start + 1000)], False)
            if start == 50_000:
                self.put(store, "late")
        assert self.state(store, "early") is Invalidated.STALE
        assert self.state(store, "late") is Invalidated.NO


class TestFileSystemCache(StoreContract):
    store_factory = in_folder

    @pytest.fixture
    def store_arguments(self, tmp_path: t.Any) -> tuple[t.Any, ...]:
        return (str(tmp_path),)

    @pytest.fixture
    def open_store(self, store_arguments: tuple[t.Any, ...]) -> Open:
        return lambda: in_folder(*store_arguments)


@pytest.mark.servers
class TestMemcached(StoreContract):
    store_factory = on_memcached

    @pytest.fixture
    def store_arguments(self, memcached_process: Memcached) -> tuple[t.Any, ...]:
        return (memcached_process.port, secrets.token_hex(8))

    @pytest.fixture
    def open_store(self, store_arguments: tuple[t.Any, ...]) -> Open:
        return lambda: on_memcached(*store_arguments)


class TestSQLite(StoreContract):
    store_factory = in_sqlite

    @pytest.fixture
    def store_arguments(self, tmp_path: t.Any) -> tuple[t.Any, ...]:
        return (str(tmp_path),)

    @pytest.fixture
    def open_store(self, store_arguments: tuple[t.Any, ...]) -> Open:
        return lambda: in_sqlite(*store_arguments)


@pytest.mark.servers
class TestRedis(StoreContract):
    store_factory = on_redis

    @pytest.fixture
    def store_arguments(self, redis: Redis) -> tuple[t.Any, ...]:
        return (f"{redis.url}?socket_timeout=5&socket_connect_timeout=5",)

    @pytest.fixture
    def open_store(self, store_arguments: tuple[t.Any, ...]) -> Open:
        return lambda: on_redis(*store_arguments)
