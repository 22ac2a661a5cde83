"""Clients of servers: made from URLs with short timeouts, or judged when they are handed over.

A client's own defaults are for programs that can wait: redis-py tries again for three seconds,
pymemcache waits for ever. Nothing is connected here; each process makes its own connections.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import importlib
import logging
import os
import select
import threading
import typing as t
import weakref
from collections.abc import Callable
from collections.abc import Iterator
from urllib.parse import parse_qsl
from urllib.parse import urlsplit

import cachelib
from cachelib import BaseCache
from cachelib import MemcachedCache
from cachelib import RedisCache
from cachelib import ValkeyCache

from .coordination import StoreError
from .coordination import WritesRefused

logger = logging.getLogger("wsgi_isr")

#: Seconds for an answer, and for a connection.
TIMEOUT = 0.25
#: Seconds from which on a client of somebody else's making is called slow.
PATIENT = 2.0
#: redis-py gives up at 100, with an error; servers with more threads than that exist.
MAX_CONNECTIONS = 10_000

#: Package, its client and its cachelib cache by URL scheme.
_REDIS = {
    "redis": ("redis", "Redis", "RedisCache"),
    "rediss": ("redis", "Redis", "RedisCache"),
    "valkey": ("valkey", "Valkey", "ValkeyCache"),
    "valkeys": ("valkey", "Valkey", "ValkeyCache"),
}
SCHEMES = (*_REDIS, "memcached")
#: What a server answers that is there, but takes no writes.
_REFUSALS = ("OOM", "READONLY", "MISCONF", "NOREPLICAS")
#: Errors of clients that a server of a cluster answered.
_OF_CLUSTERS = ("MovedError", "AskError", "ClusterCrossSlotError", "ClusterDownError")


def from_url(url: str) -> Callable[[], BaseCache]:
    """How to make the cache that a URL names.

    :raises ImportError: where its client is not installed, with the remedy.
    :raises ValueError: for a URL that names none.
    """
    scheme = urlsplit(url).scheme
    return _memcached(url) if scheme == "memcached" else _redis(url, *_REDIS[scheme])


def _import(name: str, extra: str) -> t.Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"the cache URL needs {extra}, which is not installed: pip install 'wsgi-isr[{extra}]'"
        ) from error


def _redis(url: str, package: str, client: str, cache: str) -> Callable[[], BaseCache]:
    make_client = getattr(_import(package, package), client).from_url
    retry = _import(f"{package}.retry", package).Retry
    no_backoff = _import(f"{package}.backoff", package).NoBackoff

    def connect() -> t.Any:
        # What the URL says itself goes before these.
        return make_client(
            url,
            retry=retry(no_backoff(), 0),
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            socket_keepalive=True,
            max_connections=MAX_CONNECTIONS,
        )

    try:
        pool = connect().connection_pool
        # Not connected: it only shows what is wrong with the URL's options.
        pool.connection_class(**pool.connection_kwargs)
    except (TypeError, ValueError, AttributeError) as error:
        # A password that is not quoted may be taken for a port, and told.
        why = "its port is no number; a password is percent-encoded" if _quotes(error) else error
        raise ValueError(f"the {package} cache URL cannot be used: {why}") from None
    _refuse_text(pool)

    def make() -> BaseCache:
        client = connect()
        made: BaseCache = getattr(cachelib, cache)(client)
        _afterwards(made, client.connection_pool.disconnect)
        return made

    return make


def _quotes(error: Exception) -> bool:
    return str(error).startswith("Port ")


def _afterwards(owner: object, close: Callable[[], object]) -> None:
    """Close connections when their owner is gone, and never at the end of a forked child."""
    # Not in a __del__: of a reference cycle the sockets may be finalized first, with a warning.
    weakref.finalize(owner, close).atexit = False


def _refuse_text(pool: t.Any) -> None:
    if pool.connection_kwargs.get("decode_responses"):
        raise ValueError("pages are bytes: the client must not be set to decode_responses")


def _memcached(url: str) -> Callable[[], BaseCache]:
    base = _import("pymemcache.client.base", "memcached")
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port or 11211
        options = {name: float(value) for name, value in parse_qsl(parts.query, True, True)}
    except ValueError:
        host, options = None, {}
    if not host or "," in host or parts.path not in ("", "/") or parts.username is not None:
        raise ValueError("a memcached URL names one server, as in 'memcached://localhost:11211'")
    if unknown := set(options) - {"timeout", "connect_timeout"}:
        raise ValueError(f"a memcached URL has no option {sorted(unknown)[0]!r}")
    timeouts = {"timeout": TIMEOUT, "connect_timeout": TIMEOUT, **options}

    def make() -> BaseCache:
        # Without an answer to each write nobody would know of one that failed.
        client = base.PooledClient((host, port), default_noreply=False, no_delay=True, **timeouts)
        client.client_pool = LivePool(client._create_client)
        return MemcachedCache(client)

    return make


# Caches that are handed over.


def check(cache: BaseCache) -> None:
    """
    :raises ValueError: for a cache that cannot keep what the store promises.
    """
    if isinstance(cache, RedisCache | ValkeyCache):
        pool = getattr(cache._write_client, "connection_pool", None)
        if pool is None:
            raise ValueError(f"{type(cache).__name__} needs a client of one server, not a cluster")
        _refuse_text(pool)
        options = pool.connection_kwargs
        waits = [options.get("socket_timeout"), options.get("socket_connect_timeout")]
        # A pool that blocks has visitors wait for a connection, too.
        waits.append(getattr(pool, "timeout", 0))
        _warn_if_slow(cache, waits, getattr(options.get("retry"), "_retries", 0))
    elif isinstance(cache, MemcachedCache):
        client = cache._client
        if _is_refused(client):
            raise ValueError(
                f"MemcachedCache over {type(client).__module__} executes what it reads (pickle), "
                "or is not safe in threads: use 'memcached://host:11211', or "
                "MemcachedCache(PooledClient(...)) with the client of pymemcache, without a serde"
            )
        if _is_pooled(client):
            _warn_if_slow(cache, [client.timeout, client.connect_timeout], 0)


def _warn_if_slow(cache: BaseCache, waits: list[t.Any], retries: int) -> None:
    if retries > 1 or any(not isinstance(w, int | float) or w > PATIENT for w in waits):
        logger.warning(
            "the client of this %s waits long for a server that does not answer, and visitors "
            "with it: give it timeouts of %s seconds and no retries, or use a cache URL",
            type(cache).__name__,
            TIMEOUT,
        )


def _is_refused(client: t.Any) -> bool:
    package = type(client).__module__.partition(".")[0]
    if package != "pymemcache":
        return package in ("pylibmc", "memcache", "libmc", "google")
    if not _is_pooled(client):
        return True
    decode = getattr(client.serde, "deserialize", None)
    return getattr(decode, "__name__", "") != "_default_deserialize"


def _is_pooled(client: t.Any) -> bool:
    return type(client).__module__.startswith("pymemcache.") and hasattr(client, "client_pool")


def own_client(cache: MemcachedCache) -> MemcachedCache:
    """The same cache over connections of this process: those of another would mix up pages."""
    if not _is_pooled(cache._client):
        return cache
    mine = copy.copy(cache)
    client = copy.copy(cache._client)
    client.default_noreply = False
    client.client_pool = LivePool(client._create_client)
    mine._client = client
    mine._client_context = lambda: contextlib.nullcontext(client)
    return mine


def renew_pool(client: t.Any) -> None:
    """See to it that a connection pool of redis-py or valkey-py is one of this process.

    It drops the parent's connections by itself, but a lock that another thread held at the moment
    of the fork would never be free again.
    """
    pool = client.connection_pool
    if getattr(pool, "pid", None) in (None, os.getpid()):
        return
    for name in ("_lock", "_fork_lock"):
        lock = getattr(pool, name, None)
        if lock is None:
            continue
        if lock.acquire(timeout=0.1):
            lock.release()
        else:
            setattr(pool, name, threading.RLock())


@contextlib.contextmanager
def told_apart() -> Iterator[None]:
    """Tell what a server refuses from one that does not answer.

    :raises WritesRefused: where it takes no writes.
    :raises StoreError: where it is one of a cluster, with the remedy.
    """
    try:
        yield
    except Exception as error:
        if is_refusal(error):
            raise WritesRefused(str(error)) from error
        if type(error).__name__ in _OF_CLUSTERS or str(error).startswith(("CROSSSLOT", "MOVED")):
            raise StoreError(
                "the server is one of a cluster, and the store needs one server (or a primary "
                f"that sentinels watch): {error}"
            ) from error
        raise


def is_refusal(error: Exception) -> bool:
    """Whether a server that answers has said that it takes no writes."""
    answered = any(kind.__name__ == "ResponseError" for kind in type(error).__mro__)
    return answered and any(word in str(error) for word in _REFUSALS) or _says(error)


def _says(error: Exception) -> bool:
    # Their own classes leave the first word out of the message.
    return type(error).__name__ in ("OutOfMemoryError", "ReadOnlyError")


class LivePool:
    """Connections of pymemcache, each looked at before it is used again.

    One that the server has closed would be an error, and on one with bytes to read somebody
    else's answer would be taken for ours.
    """

    def __init__(self, make: Callable[[], t.Any]) -> None:
        self._make = make
        self._free: collections.deque[t.Any] = collections.deque()
        _afterwards(self, functools.partial(_close_all, self._free))

    @contextlib.contextmanager
    def get_and_release(self, destroy_on_fail: bool = False) -> Iterator[t.Any]:
        client = self._take()
        try:
            yield client
        except BaseException:
            # Whatever it was: the rest of an answer may still come.
            client.close()
            raise
        self._free.append(client)

    def _take(self) -> t.Any:
        while True:
            try:
                client = self._free.pop()
            except IndexError:
                return self._make()
            if _is_quiet(client.sock):
                return client
            client.close()

    def destroy(self, client: t.Any, silent: bool = True) -> None:
        client.close()

    def clear(self) -> None:
        _close_all(self._free)


def _close_all(clients: collections.deque[t.Any]) -> None:
    with contextlib.suppress(IndexError):
        while True:
            clients.pop().close()


def _is_quiet(sock: t.Any) -> bool:
    if sock is None:
        return True
    try:
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return not poll.poll(0)
    except (OSError, ValueError):
        return False
