"""Clients of servers: made from URLs with short timeouts, or judged when they are handed over.

A client's own defaults are for programs that can wait: redis-py tries again for three seconds,
pymemcache waits for ever.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.resources
import inspect
import logging
import random
import re
import secrets
import threading
import time
import typing as t
import weakref
from collections.abc import Callable
from urllib.parse import parse_qsl, urlsplit

from cachelib import BaseCache, MemcachedCache, RedisCache, ValkeyCache

from .leases import Lease, Leases
from .protocol import ReadOnly

logger = logging.getLogger("wsgi_isr")

#: Seconds for an answer, and for a connection.
TIMEOUT = 0.25
#: Seconds from which on a client of somebody else's making is called slow.
PATIENT = 2.0
#: Seconds that a thread waits for a connection where all are busy, and between two attempts.
PATIENCE, PAUSE = 2.0, (0.001, 0.005)
#: Connections that a memcached server may have closed since they were used.
MAX_CLOSED = 20
#: Seconds between two measurements of a server's clock.
CLOCK = 60.0
#: Seconds for which the outcome of a render is there for those who wait.
OUTCOME = 10.0

_URL = re.compile(r"(redis|valkey)(s?)(\+cluster|\+sentinel)?://(?:([^/?#]*)@)?([^@/?#]*)(.*)")
#: What a server answers that is there, but takes no writes; the clients' own classes leave the
#: first word out of the message.
_REFUSALS = ("OOM", "READONLY", "MISCONF", "NOREPLICAS", "OutOfMemoryError", "ReadOnlyError")
_SCRIPT = importlib.resources.files(__package__).joinpath("redis.lua").read_bytes()


def milliseconds(seconds: float) -> int:
    return max(1, int(1000 * seconds))


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


# Redis and Valkey.


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
    plain, retry = getattr(module, package.capitalize()), module.retry.Retry
    waits = {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT, "socket_keepalive": True}
    waits["retry"] = retry(module.backoff.NoBackoff(), 0)
    service, _, database = rest.partition("?")[0].strip("/").partition("/")
    if kind == "+sentinel":
        rest = f"/{database or 0}?{rest.partition('?')[2]}"
    try:
        parts = [urlsplit(f"//{host}") for host in hosts.split(",")]
        port = 26379 if kind == "+sentinel" else 6379
        nodes = [(part.hostname or "localhost", part.port or port) for part in parts]
        first = f"{package}{tls}://{login and f'{login}@'}{hosts.split(',')[0]}{rest}"
        # What the URL says itself goes before our own.
        options = {**waits, **module.connection.parse_url(first)}
        _refuse_text(options)
        # Not connected: it only shows what is wrong with the URL's options.
        plain.from_url(first, **waits).connection_pool.make_connection()
        if kind == "+sentinel" and not service:
            raise ValueError("name a service, as in redis+sentinel://host:port/service/db")
        if not kind and len(nodes) > 1:
            raise ValueError(f"several servers are {package}+cluster:// or {package}+sentinel://")
    except (TypeError, ValueError, AttributeError) as error:
        # A password that is not quoted may be taken for a port, and shown.
        why = error if "Port " not in str(error) else "its port is no number; quote the password"
        raise ValueError(f"the {package} cache URL cannot be used: {why}") from None
    if not kind:
        return lambda: plain.from_url(first, **waits)
    for name in ("host", "port", "connection_class"):
        options.pop(name, None)
    if tls:
        options["ssl"] = True
    if kind == "+sentinel":
        return lambda: module.Sentinel(nodes, sentinel_kwargs=waits, **options).master_for(
            service, plain
        )
    options.pop("db", None)
    # One retry, after the cluster was asked who is who.
    options["retry"] = retry(module.backoff.NoBackoff(), 1)
    cluster = module.cluster
    return lambda: getattr(cluster, f"{plain.__name__}Cluster")(
        startup_nodes=[cluster.ClusterNode(*node) for node in nodes], **options
    )


def client_of(cache: BaseCache) -> t.Any:
    """The client of a `RedisCache` or `ValkeyCache`, which is right on both sides of a fork.

    :raises ValueError: for one that has another client, or a client that gives text.
    """
    for value in vars(cache).values():
        modules = [kind.__module__ for kind in type(value).__mro__ if hasattr(kind, "evalsha")]
        if any(module.startswith(("redis.", "valkey.")) for module in modules):
            pool = getattr(value, "connection_pool", None)
            options = value.get_connection_kwargs() if pool is None else pool.connection_kwargs
            _refuse_text(options)
            waits = [options.get("socket_timeout"), options.get("socket_connect_timeout")]
            retry = None if pool is None else options.get("retry")
            _warn_if_slow(cache, waits, getattr(retry, "get_retries", int)())
            return value
    raise ValueError(f"{type(cache).__name__} has no client of redis-py or valkey-py")


def prefix_of(cache: RedisCache | ValkeyCache) -> str:
    """What the keys of a cache begin with."""
    prefix: t.Any = cache.key_prefix
    return str(prefix() if callable(prefix) else prefix or "")


def _refuse_text(options: t.Any) -> None:
    if options.get("decode_responses") in (True, "True", "true", "1", "yes"):
        raise ValueError("pages are bytes: the client must not be set to decode_responses")


def _warn_if_slow(cache: BaseCache, waits: list[t.Any], retries: int) -> None:
    if retries > 1 or any(not isinstance(w, int | float) or w > PATIENT for w in waits):
        logger.warning(
            "the client of this %s waits long for a server that does not answer, and so do "
            "visitors: give it timeouts of %s seconds and no retries, or use a cache URL",
            type(cache).__name__,
            TIMEOUT,
        )


class Server:
    """A Redis or Valkey server. It connects when it is first needed.

    :param root: what all keys of the site begin with.
    :param lent: whether the client is somebody else's, who closes it.
    """

    def __init__(self, make_client: Callable[[], t.Any], root: str, lent: bool) -> None:
        self._make_client, self._root, self._lent = make_client, root, lent
        self.leases = Leases(self._extend, self._end)
        self._client: t.Any = None
        self._script: t.Any = None
        self._lock = threading.Lock()
        self._offset, self._measure_at = 0.0, 0.0

    def _connect(self) -> None:
        with self._lock:
            if self._client is None:
                client = self._make_client()
                self._script = client.register_script(_SCRIPT)
                self._client = client

    def step(self, step: str, *args: object, seen: tuple[t.Any, ...] = ("", "", 0, 0)) -> t.Any:
        """Run a step of the script.

        :param seen: what this process has seen of the order, for steps that depend on it.
        :raises ReadOnly: where the server answers, but takes no writes.
        """
        self._connect()
        words = (step, secrets.token_hex(8), *seen, *args)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self._script([f"{self._root}clock"], words)
            except Exception as error:
                kinds = [kind.__name__ for kind in type(error).__mro__]
                said = f"{kinds[0]} {error}"
                if "ResponseError" in kinds and any(word in said for word in _REFUSALS):
                    raise ReadOnly(str(error)) from error
                # The app and other middlewares may use the same connections.
                if "Too many connections" not in said or time.monotonic() > deadline:
                    raise
            time.sleep(random.uniform(*PAUSE))

    def _extend(self, lease: Lease, seconds: float) -> bool:
        return bool(self.step("extend", lease.name, lease.token, milliseconds(seconds)))

    def _end(self, lease: Lease) -> None:
        left = () if lease.outcome is None else (lease.outcome,)
        self.step("release", lease.name, lease.token, milliseconds(OUTCOME), *left)

    def time(self) -> float:
        """Seconds since 1970 by the server's clock."""
        if time.monotonic() >= self._measure_at:
            here, began = time.time(), time.monotonic()
            # A server that is away is asked again sooner.
            self._measure_at = began + CLOCK / 30
            with contextlib.suppress(Exception):
                there = self.step("time") / 1000
                self._offset = there - here - (time.monotonic() - began) / 2
                self._measure_at = began + CLOCK
                _advise(self.memory())
        return time.time() + self._offset

    def memory(self) -> dict[str, str]:
        """What the server says of its memory; nothing where this user may not ask."""
        lines = self.step("info", "memory").decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def close(self) -> None:
        self.leases.close()
        with self._lock:
            client, self._client = self._client, None
        if client is not None and not self._lent:
            pool = getattr(client, "connection_pool", None)
            manager = getattr(pool, "sentinel_manager", None)
            for each in (client, pool, *getattr(manager, "sentinels", ())):
                for name in ("close", "disconnect"):
                    with contextlib.suppress(Exception):
                        getattr(each, name)()


def _advise(found: dict[str, str]) -> None:
    """Say what a server's own configuration keeps the store from promising."""
    policy = found.get("maxmemory_policy", "volatile-lru")
    if found.get("maxmemory") == "0":
        _warn_once("the server has no maxmemory: nothing bounds its pages")
    elif policy == "noeviction":
        _warn_once("the server evicts nothing: when it is full, it takes no pages or invalidations")
    elif policy not in ("volatile-lru", "volatile-lfu"):
        _warn_once(f"the server may evict the order of pages (maxmemory-policy {policy})")


@functools.cache
def _warn_once(what: str) -> None:
    logger.warning("%s; set maxmemory, and maxmemory-policy volatile-lru", what)


# memcached.


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
    settings = {"no_delay": True, "timeout": TIMEOUT, "connect_timeout": TIMEOUT, **options}
    return lambda: _reliable(base.PooledClient, {"server": (host, port), **settings})


def own_memcached(cache: MemcachedCache) -> Callable[[], MemcachedCache]:
    """How to make a cache like another, over connections of this process.

    Two processes on one connection would mix up pages.

    :raises ValueError: for one that executes what it reads, or is not safe in threads.
    """
    for client in vars(cache).values():
        package, _, module = type(client).__module__.partition(".")
        if package == "pymemcache" and _is_safe(client):
            _warn_if_slow(cache, [client.timeout, client.connect_timeout], 0)
            kind, names = type(client), inspect.signature(type(client)).parameters
            options = {name: getattr(client, name) for name in names if hasattr(client, name)}
            return lambda: _reliable(kind, options, cache.key_prefix)
        if package in ("pylibmc", "memcache", "libmc", "google") or (
            package == "pymemcache" and module.startswith("client")
        ):
            raise ValueError(
                f"MemcachedCache over {package} executes what it reads (pickle), or is not "
                "safe in threads: use 'memcached://host:11211', or "
                "MemcachedCache(PooledClient(...)) with the client of pymemcache and no serde"
            )
    return lambda: cache


def _is_safe(client: t.Any) -> bool:
    """Whether a client of pymemcache has a pool, and gives bytes as they are."""
    serde = getattr(client, "serde", None)
    if not hasattr(client, "client_pool") or serde is None:
        return False
    # pickle's own mark of a value, which a serde that executes would follow.
    return bool(serde.deserialize("", b"N.", 1) == b"N.")


def _reliable(kind: t.Any, options: dict[str, t.Any], prefix: t.Any = None) -> MemcachedCache:
    """A cache that hears of each write that failed, and for which no connection is too old."""
    client = kind(**{**options, "default_noreply": False})
    retrying = importlib.import_module("pymemcache.client.retrying").RetryingClient
    closed = importlib.import_module("pymemcache.exceptions").MemcacheUnexpectedCloseError
    broken = [closed, BrokenPipeError, ConnectionResetError]
    client_for_all = retrying(client, attempts=MAX_CLOSED, retry_for=broken)
    cache = MemcachedCache(client_for_all, key_prefix=prefix)
    weakref.finalize(cache, client.close).atexit = False
    return cache
