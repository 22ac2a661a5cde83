"""From what a user hands over as ``cache`` to a `Store`.

Mistakes raise when the middleware is made. The store itself is opened with the first request, in
each process anew, so that no connection and no lock is used on both sides of a fork.
"""

from __future__ import annotations

import errno
import functools
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


class DefaultFolder(t.NamedTuple):
    """A folder for the embedded store; where it cannot be written, pages are in memory."""

    path: str


CacheLike: t.TypeAlias = (
    "cachelib.BaseCache | Store | Callable[[], cachelib.BaseCache | Store] | DefaultFolder | str"
    " | None"
)
#: Opens the store in this process; it gets the store of the parent after a fork, or ``None``.
Opener: t.TypeAlias = "Callable[[Store | None], Store]"

FOLDER = ".isr-cache"
_VALKEY = RedisStore.kind._replace(name="valkey")
_ALL = (SQLiteStore.kind, RedisStore.kind, _VALKEY, MEMCACHED, CACHELIB, LOCAL, MEMORY)
#: What each kind of store promises.
KINDS = {kind.name: kind for kind in _ALL}
URLS = (
    "memory://, file:///path, redis://host, rediss://host, redis+cluster://host, "
    "redis+sentinel://host, valkey://host and memcached://host"
)
_METHODS = [name for name, it in vars(Store).items() if inspect.isfunction(it) and name[0] != "_"]
#: What a store has that was never opened: nothing is refused before it can be tried.
_AWAY = {"kind": Kind("away", "network", True, True, True, True, True), "signal": (0, 0)}
#: Errors of a folder that nobody writes to, whatever happens.
_HOPELESS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}
#: Two middlewares over one cache and prefix of this process share one store.
_local: weakref.WeakKeyDictionary[cachelib.BaseCache, dict[str, tuple[int, CachelibStore]]] = (
    weakref.WeakKeyDictionary()
)
#: Kinds whose limits this process has logged.
_warned: set[str] = set()


def plan(cache: CacheLike, prefix: str, app_name: str) -> tuple[Kind | None, Opener]:
    """The kind of store, and how to open it, later and once in each process.

    :returns: ``None`` as the kind where only opening it shows that.
    :raises TypeError: for what is no cache.
    :raises ValueError: for a URL that names none, or a cache that cannot be used.
    :raises ImportError: for a URL whose client is not installed.
    """
    if cache is None:
        cache = DefaultFolder(os.path.join(os.path.abspath(FOLDER), _safe(app_name)))
    if isinstance(cache, DefaultFolder):
        folder = cache.path
        return SQLiteStore.kind, lambda parent: _open_default(folder, prefix)
    if isinstance(cache, os.PathLike):
        cache = os.path.abspath(cache)
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


def _warned_of(kind: Kind, name: str, advice: str = "") -> Kind:
    """Say once what a kind of store does not promise."""
    if kind.name not in _warned and (found := limits(kind)):
        _warned.add(kind.name)
        advice = advice or "a file:// URL (SQLite) and Redis have no such limits"
        logger.warning("%s as the store: %s; %s", name, "; ".join(found), advice)
    return kind


# Folders and URLs.


def _safe(name: str) -> str:
    """A name as that of one folder, whatever characters it has."""
    quoted = parse.quote(name.encode("utf-8", "surrogatepass"), safe="").replace(".", "%2E") or "%"
    return quoted if len(quoted) <= 200 else hashlib.sha256(quoted.encode()).hexdigest()


def _open_sqlite(folder: str, prefix: str, **bounds: int) -> Store:
    return SQLiteStore(os.path.join(folder, _safe(prefix)), **bounds)


def _open_default(folder: str, prefix: str) -> Store:
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        # One that has pages is read.
        if error.errno in _HOPELESS and not os.path.isdir(os.path.join(folder, _safe(prefix))):
            logger.warning(
                "%s cannot be written (%s): pages are in the memory of each process only; name a "
                "folder that can be written, as in cache='file:///var/cache/site'",
                folder,
                error.strerror,
            )
            return _open_memory(None)
    return _open_sqlite(folder, prefix)


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
    return lambda parent: _open_sqlite(folder, prefix, **bounds)


def _of_url(url: str, prefix: str) -> tuple[Kind, Opener]:
    scheme = parse.urlsplit(url).scheme
    if scheme == "memory":
        if url != "memory://":
            raise ValueError(f"memory:// takes no path and no options, as {url[:100]!r} has them")
        # Its limits are no surprise to those who write it.
        return MEMORY, _open_memory
    if scheme == "file":
        return SQLiteStore.kind, _of_folder(url, prefix)
    if scheme.startswith(("redis", "valkey")):
        make = clients.redis_client(url)
        kind = KINDS["valkey" if scheme.startswith("valkey") else "redis"]
        return kind, lambda parent: RedisStore(make, prefix)
    if scheme == "memcached":
        return _on_memcached(clients.memcached_cache(url), prefix)
    if url[:1] in ("/", ".", "~") and url[:2] != "//":
        folder = Path(os.path.abspath(os.path.expanduser(url))).as_uri()
        raise ValueError(f"cache takes a URL: write the folder {url!r} as {folder!r}")
    # Not the URL itself, which may have a password.
    raise ValueError(f"cache URLs are {URLS}" + (f", not {scheme}://" if scheme else ""))


# Caches.


def _of_cache(cache: cachelib.BaseCache, prefix: str) -> tuple[Kind, Opener]:
    if isinstance(cache, SQLiteCache):
        folder = cache.folder
        return SQLiteStore.kind, lambda parent: _open_sqlite(folder, prefix)
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
        return _on_memcached(clients.own_memcached(cache), prefix)
    in_process, name = isinstance(cache, cachelib.SimpleCache), type(cache).__name__
    shared = getattr(cache, "isr_shared", "process" if in_process else "network")
    if shared not in ("process", "machine", "network"):
        raise ValueError(
            f"isr_shared of {name} is 'process', 'machine' or 'network', not {shared!r}"
        )
    if shared == "process":
        return _warned_of(LOCAL, name), lambda parent: _open_local(cache, prefix)
    # uWSGI's cache ends with its master.
    kind = CACHELIB._replace(durable=not isinstance(cache, cachelib.UWSGICache))
    advice = ""
    if isinstance(cache, cachelib.FileSystemCache):
        advice = "hand its folder over as cache='file:///path' or as SQLiteCache(folder)"
    return _warned_of(kind, name, advice), lambda parent: CachelibStore(cache, prefix, kind)


def _on_memcached(make: Callable[[], cachelib.BaseCache], prefix: str) -> tuple[Kind, Opener]:
    kind = _warned_of(MEMCACHED, "memcached")
    return kind, lambda parent: CachelibStore(make(), prefix, kind)


def _open_memory(parent: Store | None) -> Store:
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
    store = AwayStore(make, prefix)
    try:
        return store.open()
    except Exception:
        # A request waits, which an error does not help.
        logger.exception("the callable given as cache failed; it is called again until it succeeds")
        return t.cast(Store, store)


class AwayStore:
    """What a callable makes: all methods raise `StoreError` until it succeeds, in `probe`."""

    def __init__(self, make: Callable[[], object], prefix: str) -> None:
        self._make, self._prefix = make, prefix
        self._opened: Store | None = None
        self._error: Exception | None = None
        self._lock = threading.Lock()

    def open(self) -> Store:
        with self._lock:
            try:
                self._opened = self._opened or self._open(self._make())
            except Exception as error:
                self._error = error
                raise
        return self._opened

    def _open(self, made: object) -> Store:
        if isinstance(made, cachelib.BaseCache):
            return _of_cache(made, self._prefix)[1](None)
        if _is_store(made):
            return t.cast(Store, made)
        raise TypeError(f"it returned neither a cachelib cache nor a Store: {type(made)}")

    def __getattr__(self, name: str) -> t.Any:
        if self._opened is not None:
            return getattr(self._opened, name)
        if name in _AWAY:
            return _AWAY[name]
        if name not in _METHODS:
            raise AttributeError(name)

        @functools.wraps(getattr(Store, name))
        def refuse(*args: object, **options: object) -> t.NoReturn:
            raise StoreError(f"the store could not be opened: {self._error}") from self._error

        return refuse

    def probe(self) -> None:
        self.open().probe()

    def listen(self, seconds: float) -> bool:
        """Announce something now and then: its thread waits, even if nothing is announced here."""
        if not self.__getattr__("listen")(seconds):
            time.sleep(min(seconds, 0.05))
        return True

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
