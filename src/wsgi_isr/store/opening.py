"""From what a user hands over as ``cache`` to a `Store`.

Mistakes raise when the middleware is made. The store itself is opened with the first request, in
each process anew, so that no connection and no lock is used on both sides of a fork.
"""

from __future__ import annotations

import errno
import hashlib
import inspect
import logging
import os
import tempfile
import threading
import time
import typing as t
import weakref
from collections.abc import Callable
from pathlib import Path
from urllib import parse

import cachelib

from . import clients
from .cachelib import KIND as CACHELIB
from .cachelib import LOCAL, MEMCACHED, MEMORY, CachelibStore
from .notes import SQLiteCache
from .protocol import Kind, Store, StoreError
from .redis import RedisStore
from .sqlite import SQLiteStore

logger = logging.getLogger("wsgi_isr")

CacheLike: t.TypeAlias = (
    "cachelib.BaseCache | Store | Callable[[], cachelib.BaseCache | Store] | str | None"
)
#: Opens the store in this process; it gets the store of the parent after a fork, or ``None``.
Opener: t.TypeAlias = "Callable[[Store | None], Store]"

DEFAULT_FOLDER = ".isr-cache"
_VALKEY = RedisStore.kind._replace(name="valkey")
_ALL = (SQLiteStore.kind, RedisStore.kind, _VALKEY, MEMCACHED, CACHELIB, LOCAL, MEMORY)
#: What each kind of store promises.
KINDS = {kind.name: kind for kind in _ALL}
URLS = (
    "memory://, file:///path, redis://host, rediss://host, redis+cluster://host, "
    "redis+sentinel://host, valkey://host and memcached://host"
)
_METHODS = [name for name, it in vars(Store).items() if inspect.isfunction(it) and name[0] != "_"]
#: Of a store that was never opened: nothing is refused before it can be tried.
AWAY = Kind("away", "network", True, True, True, True, True)
#: Errors of a folder that nobody writes to, whatever happens.
_HOPELESS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}
#: Two middlewares over one cache and prefix of this process share one store.
_local: weakref.WeakKeyDictionary[cachelib.BaseCache, dict[str, tuple[int, CachelibStore]]] = (
    weakref.WeakKeyDictionary()
)
#: Kinds whose limits this process has logged.
_warned: set[str] = set()


def limits(kind: Kind) -> list[str]:
    """What a kind of store does not promise."""
    promises = {
        "pages are those of one process, and on-demand calls reach no other": (
            kind.shared != "process"
        ),
        "invalidations may be lost, and all pages then count as stale": kind.exact,
        "that one process renders a page at a time is best effort": kind.one_render,
        "pages cannot be listed or pruned": kind.lists,
        "workers=0 does not work": kind.wants,
        "pages do not outlive a restart": kind.durable,
    }
    return [limit for limit, is_promised in promises.items() if not is_promised]


def opener(cache: CacheLike, prefix: str, app_name: str) -> Opener:
    """How to open a store, later and once in each process.

    :raises TypeError: for what is no cache.
    :raises ValueError: for a URL that names none, or a cache that cannot be used.
    :raises ImportError: for a URL whose client is not installed.
    """
    kind, open_store = _plan(cache, prefix, app_name)
    if kind is not None:
        _warn(kind, cache)
    return open_store


def kind_of(cache: CacheLike) -> Kind | None:
    """The kind of store; ``None`` where only opening it shows that. It raises as `opener` does."""
    return _plan(cache, "", "")[0]


def _plan(cache: CacheLike, prefix: str, app_name: str) -> tuple[Kind | None, Opener]:
    if isinstance(cache, os.PathLike):
        cache = os.path.abspath(cache)
    if cache is None:
        folder = os.path.join(os.path.abspath(DEFAULT_FOLDER), _safe(app_name))
        return SQLiteStore.kind, lambda parent: open_default(folder, prefix)
    if isinstance(cache, str):
        return _of_url(cache, prefix)
    if isinstance(cache, cachelib.BaseCache):
        return _of_cache(cache, prefix)
    if _is_store(cache):
        store = t.cast(Store, cache)
        return store.kind, lambda parent: store
    if callable(cache):
        make = cache
        return None, lambda parent: _open_made(make, prefix)
    raise TypeError(
        "cache takes a cachelib cache, a Store, a callable that returns one of them, or a URL: "
        f"{URLS}; not an object of type {type(cache).__name__}"
    )


def _is_store(value: object) -> bool:
    missing = [name for name in _METHODS if not callable(getattr(value, name, None))]
    if missing and isinstance(getattr(value, "kind", None), Kind):
        raise TypeError(f"{type(value).__name__} is not a Store: it has no {', '.join(missing)}")
    return not missing and not isinstance(value, type)


def _warn(kind: Kind, cache: object) -> None:
    """Say once what a kind of store does not promise."""
    found = limits(kind)
    if not found or kind.name in _warned:
        return
    _warned.add(kind.name)
    name = type(cache).__name__ if isinstance(cache, cachelib.BaseCache) else kind.name
    advice = "a file:// URL (SQLite) and Redis have no such limits"
    if isinstance(cache, cachelib.FileSystemCache):
        advice = "hand its folder over as cache='file:///path' or as SQLiteCache(folder)"
    # memory:// is no surprise to those who write it.
    level = logging.INFO if kind == MEMORY else logging.WARNING
    logger.log(level, "%s as the store: %s; %s", name, "; ".join(found), advice)


# Folders and URLs.


def _safe(name: str) -> str:
    """A name as that of one folder, whatever characters it has."""
    quoted = parse.quote(name.encode("utf-8", "surrogatepass"), safe="").replace(".", "%2E") or "%"
    return quoted if len(quoted) <= 200 else hashlib.sha256(quoted.encode()).hexdigest()


def open_default(folder: str, prefix: str) -> Store:
    """The embedded store, or memory and a warning where its folder cannot be written."""
    own = os.path.join(folder, _safe(prefix))
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        # One that has pages is read.
        if error.errno in _HOPELESS and not os.path.isdir(own):
            logger.warning(
                "%s cannot be written (%s): pages are in the memory of each process only; name a "
                "folder that can be written, as in cache='file:///var/cache/site'",
                folder,
                error.strerror,
            )
            return _open_memory()
    return SQLiteStore(own)


def _of_folder(url: str, prefix: str) -> Opener:
    parts = parse.urlsplit(url)
    folder = os.path.normpath(parse.unquote(parts.path) or "/")
    if parts.netloc not in ("", "localhost") or not folder.strip("/") or folder[0] != "/":
        raise ValueError("a file URL has an absolute path, as in 'file:///var/cache/site'")
    if parts.fragment:
        raise ValueError(f"a # in a folder's name is written %23: {parts.path}#{parts.fragment}")
    bounds: dict[str, int] = {}
    for name, value in parse.parse_qsl(parts.query, keep_blank_values=True):
        if name not in ("max_pages", "max_bytes"):
            raise ValueError(
                f"a file URL takes max_pages and max_bytes, not {name!r}; a ? in a folder's name "
                "is written %3F"
            )
        if not value.isascii() or not value.isdigit() or int(value) < 1:
            raise ValueError(f"{name} of a file URL is a whole number, 1 or more, not {value!r}")
        bounds[name] = int(value)
    return lambda parent: SQLiteStore(os.path.join(folder, _safe(prefix)), **bounds)


def _of_url(url: str, prefix: str) -> tuple[Kind, Opener]:
    scheme = parse.urlsplit(url).scheme
    if scheme == "memory":
        if url != "memory://":
            raise ValueError(f"memory:// takes no path and no options, as {url[:100]!r} has them")
        return MEMORY, _open_memory
    if scheme == "file":
        return SQLiteStore.kind, _of_folder(url, prefix)
    if scheme.startswith(("redis", "valkey")):
        make = clients.redis_client(url)
        kind = KINDS["valkey" if scheme.startswith("valkey") else "redis"]
        return kind, lambda parent: RedisStore(make, prefix)
    if scheme == "memcached":
        connect = clients.memcached_cache(url)
        return MEMCACHED, lambda parent: CachelibStore(connect(), prefix, MEMCACHED)
    if url[:1] in ("/", ".", "~") and url[:2] != "//":
        folder = Path(os.path.abspath(os.path.expanduser(url))).as_uri()
        raise ValueError(f"cache takes a URL: write the folder {url!r} as {folder!r}")
    # Not the URL itself, which may have a password.
    raise ValueError(f"cache URLs are {URLS}" + (f", not {scheme}://" if scheme else ""))


# Caches.


def _of_cache(cache: cachelib.BaseCache, prefix: str) -> tuple[Kind, Opener]:
    if isinstance(cache, SQLiteCache):
        folder = os.path.join(cache.folder, _safe(prefix))
        return SQLiteStore.kind, lambda parent: SQLiteStore(folder)
    if isinstance(cache, cachelib.NullCache):
        raise ValueError(
            "NullCache stores nothing: leave cache out, or switch the library off with "
            "enabled=False"
        )
    if isinstance(cache, cachelib.RedisCache | cachelib.ValkeyCache):
        kind = KINDS["valkey" if isinstance(cache, cachelib.ValkeyCache) else "redis"]
        client, own = clients.client_of(cache), clients.prefix_of(cache) + prefix
        return kind, lambda parent: RedisStore(lambda: client, own, lent=True)
    if isinstance(cache, cachelib.MemcachedCache):
        make = clients.own_memcached(cache)
        return MEMCACHED, lambda parent: CachelibStore(make(), prefix, MEMCACHED)
    in_process = isinstance(cache, cachelib.SimpleCache)
    shared = getattr(cache, "isr_shared", "process" if in_process else "network")
    if shared not in ("process", "machine", "network"):
        raise ValueError(
            f"isr_shared of {type(cache).__name__} is 'process', 'machine' or 'network', "
            f"not {shared!r}"
        )
    if shared == "process":
        return LOCAL, lambda parent: _open_local(cache, prefix)
    # uWSGI's cache ends with its master.
    kind = CACHELIB._replace(durable=not isinstance(cache, cachelib.UWSGICache))
    return kind, lambda parent: CachelibStore(cache, prefix, kind)


def _open_memory(parent: Store | None = None) -> Store:
    before = parent if isinstance(parent, CachelibStore) else None
    return CachelibStore(cachelib.NullCache(), "", MEMORY, before)


def _open_local(cache: cachelib.BaseCache, prefix: str) -> Store:
    stores = _local.setdefault(cache, {})
    pid, store = stores.get(prefix, (0, None))
    if store is None or pid != os.getpid():
        # After a fork another cache, because the parent's may have locks that nobody gives back.
        pages = cache if store is None else cachelib.SimpleCache()
        store = CachelibStore(pages, prefix, LOCAL, store)
        stores[prefix] = os.getpid(), store
    return store


def _open_made(make: Callable[[], object], prefix: str) -> Store:
    def attempt() -> Store:
        made = make()
        if isinstance(made, cachelib.BaseCache):
            kind, open_store = _of_cache(made, prefix)
            _warn(kind, made)
            return open_store(None)
        if _is_store(made):
            return t.cast(Store, made)
        raise TypeError(f"it returned neither a cachelib cache nor a Store: {type(made)}")

    try:
        return attempt()
    except Exception as error:
        # A request waits, which an error does not help.
        logger.exception("the callable given as cache failed; it is called again until it succeeds")
        return t.cast(Store, AwayStore(attempt, error))


class AwayStore:
    """A store that could not be opened: all methods raise `StoreError` until `probe` opens it."""

    def __init__(self, attempt: Callable[[], Store], error: Exception) -> None:
        self._attempt, self._error = attempt, error
        self._opened: Store | None = None
        self._signal = [0, 0]
        self._lock = threading.Lock()

    @property
    def kind(self) -> Kind:
        return AWAY if self._opened is None else self._opened.kind

    @property
    def signal(self) -> t.Any:
        return self._signal if self._opened is None else self._opened.signal

    def __getattr__(self, name: str) -> t.Any:
        if name not in _METHODS:
            raise AttributeError(name)
        return lambda *args, **options: getattr(self._there(), name)(*args, **options)

    def _there(self) -> Store:
        if self._opened is None:
            raise StoreError(f"the store could not be opened: {self._error}") from self._error
        return self._opened

    def probe(self) -> None:
        with self._lock:
            if self._opened is None:
                try:
                    self._opened = self._attempt()
                except Exception as error:
                    self._error = error
                    raise
        self._opened.probe()

    def listen(self, seconds: float) -> bool:
        """Announce something now and then: its thread waits, even if nothing is announced here."""
        if not self._there().listen(seconds):
            time.sleep(min(seconds, 0.05))
        return True

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
