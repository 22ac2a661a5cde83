"""What tests of stores on the network share: clients, and a neighbour."""

from __future__ import annotations

import time
import typing as t
import weakref

import pytest
from cachelib import RedisCache
from conftest import Make
from redis_server import Redis

from wsgi_isr import ISRMiddleware
from wsgi_isr import Rule
from wsgi_isr.store.clients import PATIENT

HOME = "http://localhost/"
RULES = {"/**": Rule()}
FAST: dict[str, t.Any] = {"socket_timeout": PATIENT, "socket_connect_timeout": PATIENT}


def quick_client(redis: Redis, package: str, name: str, **options: t.Any) -> t.Any:
    library = pytest.importorskip(package)
    retry = pytest.importorskip(f"{package}.retry").Retry
    pause = pytest.importorskip(f"{package}.backoff").NoBackoff()
    options = {"port": redis.port, "db": redis.database, **FAST, **options}
    client = getattr(library, name)(retry=retry(pause, 0), **options)
    # Else its sockets warn that nobody has closed them.
    weakref.finalize(client, client.connection_pool.disconnect)
    return client


def redis_cache(redis: Redis, **options: t.Any) -> RedisCache:
    return RedisCache(quick_client(redis, "redis", "Redis"), **options)


def neighbour(make: Make, url: str) -> ISRMiddleware:
    """A middleware in this process that goes by the same clock as one elsewhere."""
    isr = make(url, rules=RULES)
    isr._clock = time.time
    return isr
