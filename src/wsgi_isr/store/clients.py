"""Clients of servers: made from URLs with short timeouts, or judged when they are handed over.

A client's own defaults are for programs that can wait: redis-py tries again for three seconds,
pymemcache waits for ever. Each process makes its own clients, so that no connection crosses a fork.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib
import logging
import re
import select
import typing as t
import weakref
from collections.abc import Callable, Iterator
from urllib.parse import parse_qsl, urlsplit

from cachelib import BaseCache, MemcachedCache, RedisCache, ValkeyCache

logger = logging.getLogger("wsgi_isr")

#: Seconds for an answer, and for a connection.
TIMEOUT = 0.25
#: Seconds from which on a client of somebody else's making is called slow.
PATIENT = 2.0

_URL = re.compile(r"(redis|valkey)(s?)(\+cluster|\+sentinel)?://(?:([^/?#]*)@)?([^@/?#]*)(.*)")
#: What a server answers that is there, but takes no writes.
_REFUSALS = ("OOM", "READONLY", "MISCONF", "NOREPLICAS")
_REFUSED = ("OutOfMemoryError", "ReadOnlyError")


def import_extra(module: str, extra: str) -> t.Any:
    """A module that an extra of this package installs.

    :raises ImportError: where it is not installed, with the remedy.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"the cache URL needs {extra}, which is not installed: pip install 'wsgi-isr[{extra}]'"
        ) from error


def redis_client(url: str) -> Callable[[], t.Any]:
    """How to make a client of the server, the cluster or the sentinels that a URL names.

    :raises ImportError: where its package is not installed, with the remedy.
    :raises ValueError: for a URL that names none.
    """
    found = _URL.fullmatch(url)
    if found is None:
        raise ValueError("a Redis URL is redis://host:port/db, redis+cluster://host:port,host:port")
    package, tls, kind, login, hosts, rest = found.groups(default="")
    module = import_extra(package, package)
    connection = import_extra(f"{package}.connection", package)
    retry = import_extra(f"{package}.retry", package).Retry
    backoff = import_extra(f"{package}.backoff", package).NoBackoff
    waits = {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT, "socket_keepalive": True}
    service, _, database = rest.partition("?")[0].strip("/").partition("/")
    if kind == "+sentinel":
        rest = f"/{database or 0}?{rest.partition('?')[2]}"
    try:
        nodes = [_node(host, 26379 if kind == "+sentinel" else 6379) for host in hosts.split(",")]
        login = f"{login}@" if login else ""
        # What the URL says itself goes before our own.
        first = hosts.split(",")[0]
        named = connection.parse_url(f"{package}{tls}://{login}{first}{rest}")
        options = {**waits, "retry": retry(backoff(), 0), **named}
        kind_of_connection = options.pop("connection_class", connection.Connection)
        # Not connected: it only shows what is wrong with the URL's options.
        of_pools = ("max_connections", "timeout")
        kind_of_connection(**{k: v for k, v in options.items() if k not in of_pools})
        _refuse_text(options)
        if kind == "+sentinel" and not service:
            raise ValueError("it names no service, as in redis+sentinel://host:port/service/db")
        if not kind and len(nodes) > 1:
            raise ValueError(f"several servers are {package}+cluster:// or {package}+sentinel://")
    except (TypeError, ValueError, AttributeError) as error:
        # A password that is not quoted may be taken for a port, and shown.
        why = error if "Port " not in str(error) else "its port is no number; quote the password"
        raise ValueError(f"the {package} cache URL cannot be used: {why}") from None
    name = package.capitalize()
    if not kind:
        return lambda: _with_pool(
            getattr(module, name),
            module.ConnectionPool(connection_class=kind_of_connection, **options),
        )
    for word in ("host", "port"):
        options.pop(word, None)
    if tls:
        options["ssl"] = True
    if kind == "+sentinel":
        return lambda: module.Sentinel(
            nodes, sentinel_kwargs={**waits, "retry": retry(backoff(), 0)}, **options
        ).master_for(service, getattr(module, name))
    options.pop("db", None)
    # One retry, after the cluster was asked who is who.
    options["retry"] = retry(backoff(), 1)
    cluster = import_extra(f"{package}.cluster", package)
    return lambda: getattr(cluster, f"{name}Cluster")(
        startup_nodes=[cluster.ClusterNode(*node) for node in nodes], **options
    )


def _node(host: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{host}")
    return parts.hostname or "localhost", parts.port or port


def _with_pool(kind: Callable[..., t.Any], pool: t.Any) -> t.Any:
    return kind(connection_pool=pool)


def _refuse_text(options: t.Any) -> None:
    if options.get("decode_responses") in (True, "True", "true", "1", "yes"):
        raise ValueError("pages are bytes: the client must not be set to decode_responses")


def _find(cache: BaseCache) -> t.Any:
    """The client of a cache that was handed over."""
    for value in vars(cache).values():
        modules = [kind.__module__ for kind in type(value).__mro__ if hasattr(kind, "evalsha")]
        if any(module.startswith(("redis.", "valkey.")) for module in modules):
            return value
    raise ValueError(f"{type(cache).__name__} has no client of redis-py or valkey-py")


def client_of(cache: BaseCache) -> Callable[[], t.Any]:
    """How to make a client with the options of the one in a `RedisCache` or `ValkeyCache`."""
    client = _find(cache)
    pool = getattr(client, "connection_pool", None)
    if pool is None:
        nodes, options = client.get_nodes(), dict(client.get_connection_kwargs())
        node, options = type(nodes[0]), {k: v for k, v in options.items() if k not in _OF_NODES}
        hosts = [(one.host, one.port) for one in nodes]
        return lambda: type(client)(startup_nodes=[node(*host) for host in hosts], **options)
    options = {k: v for k, v in pool.connection_kwargs.items() if k != "connection_pool"}
    manager = getattr(pool, "sentinel_manager", None)
    if manager is None:
        most = {"max_connections": pool.max_connections}
        kind = pool.connection_class
        # What other pools are for, waiting and being bounded, the store does for all.
        plain = importlib.import_module(type(client).__module__.partition(".")[0]).ConnectionPool
        return lambda: _with_pool(type(client), plain(connection_class=kind, **most, **options))
    watched = [one.connection_pool.connection_kwargs for one in manager.sentinels]
    hosts = [(one["host"], one["port"]) for one in watched]
    ask = manager.sentinel_kwargs
    return lambda: type(manager)(hosts, manager.min_other_sentinels, ask, **options).master_for(
        pool.service_name, type(client)
    )


#: Options of a cluster's client that belong to one node, or that it makes itself.
_OF_NODES = ("host", "port", "retry", "redis_connect_func", "connection_pool", "event_dispatcher")


def prefix_of(cache: t.Any) -> str:
    """What the keys of a `RedisCache` or `ValkeyCache` begin with."""
    prefix = cache.key_prefix
    return str(prefix() if callable(prefix) else prefix or "")


def connections_of(client: t.Any) -> int:
    """How many connections a client makes at the most."""
    pool = getattr(client, "connection_pool", None)
    if pool is not None:
        return int(pool.max_connections)
    return int(client.get_connection_kwargs().get("max_connections") or 2**31)


def database_of(client: t.Any) -> int:
    pool = getattr(client, "connection_pool", None)
    return int(pool.connection_kwargs.get("db") or 0) if pool is not None else 0


def close_client(client: t.Any, *subscriptions: t.Any) -> None:
    """Close all connections of a client that nobody else uses; it never raises."""
    for close in (*(one.close for one in subscriptions), client.close):
        with contextlib.suppress(Exception):
            close()
    pools = [client.connection_pool] if hasattr(client, "connection_pool") else []
    managers = [pool.sentinel_manager for pool in pools if hasattr(pool, "sentinel_manager")]
    pools += [one.connection_pool for manager in managers for one in manager.sentinels]
    for pool in pools:
        with contextlib.suppress(Exception):
            pool.disconnect()


def is_refusal(error: Exception) -> bool:
    """Whether a server that answers has said that it takes no writes."""
    names = [kind.__name__ for kind in type(error).__mro__]
    # Their own classes leave the first word out of the message.
    return names[0] in _REFUSED or (
        "ResponseError" in names and any(word in str(error) for word in _REFUSALS)
    )


def check_cache(cache: BaseCache) -> None:
    """
    :raises ValueError: for a cache that cannot keep what a store promises.
    """
    if isinstance(cache, RedisCache | ValkeyCache):
        client = _find(cache)
        pool = getattr(client, "connection_pool", None)
        options = pool.connection_kwargs if pool is not None else client.get_connection_kwargs()
        _refuse_text(options)
        waits = [options.get("socket_timeout"), options.get("socket_connect_timeout")]
        retry: t.Any = options.get("retry") if pool is not None else None
        _warn_if_slow(cache, waits, retry.get_retries() if hasattr(retry, "get_retries") else 0)
    elif isinstance(cache, MemcachedCache):
        for client in vars(cache).values():
            package, _, module = type(client).__module__.partition(".")
            if package in ("pylibmc", "memcache", "libmc", "google") or (
                package == "pymemcache" and module.startswith("client") and not _is_safe(client)
            ):
                raise ValueError(
                    f"MemcachedCache over {package} executes what it reads (pickle), or is not "
                    "safe in threads: use 'memcached://host:11211', or "
                    "MemcachedCache(PooledClient(...)) with the client of pymemcache and no serde"
                )
            if package == "pymemcache" and _is_safe(client):
                _warn_if_slow(cache, [client.timeout, client.connect_timeout], 0)


def _is_safe(client: t.Any) -> bool:
    """Whether a client of pymemcache has a pool, and gives bytes as they are."""
    serde = getattr(client, "serde", None)
    if not hasattr(client, "client_pool") or serde is None:
        return False
    # pickle's own mark of a value, which a serde that executes would follow.
    return bool(serde.deserialize("", b"N.", 1) == b"N.")


def _warn_if_slow(cache: BaseCache, waits: list[t.Any], retries: int) -> None:
    if retries > 1 or any(not isinstance(w, int | float) or w > PATIENT for w in waits):
        logger.warning(
            "the client of this %s waits long for a server that does not answer, and visitors "
            "with it: give it timeouts of %s seconds and no retries, or use a cache URL",
            type(cache).__name__,
            TIMEOUT,
        )


def memcached_cache(url: str) -> Callable[[], MemcachedCache]:
    """How to make the cache on the memcached server that a URL names.

    :raises ImportError: where its client is not installed, with the remedy.
    :raises ValueError: for a URL that names none.
    """
    base = import_extra("pymemcache.client.base", "memcached")
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
    # Without an answer to each write nobody would hear of one that failed.
    settings: dict[str, t.Any] = {"default_noreply": False, "no_delay": True}
    settings |= {"timeout": TIMEOUT, "connect_timeout": TIMEOUT, **options}

    def make() -> MemcachedCache:
        client = base.PooledClient((host, port), **settings)
        client.client_pool = LivePool(functools.partial(base.Client, (host, port), **settings))
        return MemcachedCache(client)

    return make


class LivePool:
    """Connections of pymemcache, each of which is checked before it is used again.

    One that the server has closed would be an error, and on one with bytes to read somebody
    else's answer would be taken for ours.
    """

    def __init__(self, make: Callable[[], t.Any]) -> None:
        self._make = make
        self._free: collections.deque[t.Any] = collections.deque()
        # Not in a __del__: of a reference cycle the sockets may be finalized first, with a warning.
        weakref.finalize(self, _close_all, self._free).atexit = False

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
