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
from urllib.parse import parse_qsl
from urllib.parse import quote
from urllib.parse import unquote
from urllib.parse import urlsplit

from cachelib import BaseCache
from cachelib import FileSystemCache
from cachelib import MemcachedCache
from cachelib import NullCache
from cachelib import RedisCache
from cachelib import SimpleCache
from cachelib import UWSGICache
from cachelib import ValkeyCache

from .cachelib import CachelibStore
from .cachelib import KIND as CACHELIB
from .cachelib import MEMCACHED
from .clients import check_cache
from .clients import client_of
from .clients import LivePool
from .clients import memcached_cache
from .clients import prefix_of
from .clients import redis_client
from .local import LocalStore
from .local import MEMORY
from .protocol import Kind
from .protocol import Store
from .protocol import StoreError
from .redis import RedisStore
from .sqlite import SQLiteStore
from .sqlite_cache import SQLiteCache

logger = logging.getLogger("wsgi_isr")

CacheLike: t.TypeAlias = "BaseCache | Store | Callable[[], BaseCache | Store] | str | None"
#: Opens the store in this process; it gets the store of the parent after a fork, or ``None``.
Opener: t.TypeAlias = "Callable[[Store | None], Store]"

DEFAULT_FOLDER = ".isr-cache"
#: What each kind of store promises.
KINDS = {
    "sqlite": SQLiteStore.kind,
    "redis": RedisStore.kind,
    "valkey": RedisStore.kind._replace(name="valkey"),
    "memcached": MEMCACHED,
    "cachelib": CACHELIB,
    "local": LocalStore.kind,
    "memory": MEMORY,
}
#: What users hand over for each kind.
EXAMPLES = {
    "sqlite": "`None`, `file:///path`, `SQLiteCache(folder)`",
    "redis": "`redis://`, `rediss://`, `redis+cluster://`, `redis+sentinel://`, `RedisCache`",
    "valkey": "`valkey://`, `valkeys://`, `ValkeyCache`",
    "memcached": "`memcached://`, `MemcachedCache`",
    "cachelib": "`FileSystemCache`, `UWSGICache`, `MongoDbCache`, `DynamoDbCache`, your own",
    "local": '`SimpleCache`, `NullCache`, your own with `isr_shared = "process"`',
    "memory": "`memory://`",
}
FILES = "; hand its folder over as cache='file:///path' or as SQLiteCache(folder)"
OTHERS = "; a file:// URL (SQLite) and Redis have no such limits"
URLS = (
    "memory://, file:///path, redis://host, rediss://host, redis+cluster://host, "
    "redis+sentinel://host, valkey://host and memcached://host"
)
_METHODS = [name for name, value in vars(Store).items() if inspect.isfunction(value)]
_METHODS = [name for name in _METHODS if not name.startswith("_")]
#: Errors of a folder that nobody writes to, whatever happens.
_HOPELESS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}
#: Two middlewares over one cache and prefix of this process share one store.
_local: weakref.WeakKeyDictionary[BaseCache, dict[str, LocalStore]] = weakref.WeakKeyDictionary()
#: Kinds whose limits this process has logged.
_warned: set[str] = set()


def limits(kind: Kind) -> list[str]:
    """What a kind of store does not promise."""
    sentences = {
        "pages are those of one process, and on-demand calls reach no other": (
            kind.shared == "process"
        ),
        "invalidations may be lost, and all pages then count as stale": not kind.exact,
        "that one process renders a page at a time is best effort": not kind.one_render,
        "pages cannot be listed or pruned": not kind.lists,
        "workers=0 does not work": not kind.wants,
        "pages do not outlive a restart": not kind.durable,
    }
    return [sentence for sentence, holds in sentences.items() if holds]


def table() -> str:
    """The promises of all kinds, in Markdown."""
    fields = ("shared", "exact", "one_render", "lists", "wants", "durable")
    head = (
        "| `cache` | shared by | exact order | one render | lists pages | `workers=0` | durable |"
    )
    lines = [head, "|" + "---|" * (len(fields) + 1)]
    words = {
        True: "yes",
        False: "no",
        "process": "one process",
        "machine": "the workers of a machine",
    }
    for name, kind in KINDS.items():
        values = [getattr(kind, field) for field in fields]
        values[2] = "yes" if kind.one_render else "best effort"
        cells = [
            words.get(value, "all machines" if value == "network" else value) for value in values
        ]
        lines.append("| " + " | ".join([EXAMPLES[name], *cells]) + " |")
    return "\n".join(lines)


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
    if cache is None:
        folder = os.path.join(os.path.abspath(DEFAULT_FOLDER), _safe(app_name))
        return KINDS["sqlite"], lambda parent: _open_default(folder, prefix)
    if isinstance(cache, str):
        return _of_url(cache, prefix)
    if isinstance(cache, BaseCache):
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
        raise TypeError(f"{type(value).__name__} is no Store: it has no {', '.join(missing)}")
    return not missing and not isinstance(value, type)


def _warn(kind: Kind, cache: object) -> None:
    """Say once what a kind of store does not promise."""
    found = limits(kind)
    if not found or kind.name in _warned:
        return
    _warned.add(kind.name)
    name = type(cache).__name__ if isinstance(cache, BaseCache) else kind.name
    advice = FILES if isinstance(cache, FileSystemCache) else OTHERS
    # Who writes memory:// knows what that means.
    level = logging.INFO if kind == MEMORY else logging.WARNING
    logger.log(level, "%s as the store: %s%s", name, "; ".join(found), advice)


# Folders.


def _safe(name: str) -> str:
    """A name as that of one folder, whatever characters it has."""
    quoted = quote(name.encode("utf-8", "surrogatepass"), safe="").replace(".", "%2E") or "%"
    return quoted if len(quoted) <= 200 else hashlib.sha256(quoted.encode()).hexdigest()


def _open_default(folder: str, prefix: str) -> Store:
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
            return LocalStore()
    return SQLiteStore(own)


def _of_folder(url: str, prefix: str) -> tuple[Kind, Opener]:
    parts = urlsplit(url)
    folder = os.path.normpath(unquote(parts.path) or "/")
    if parts.netloc not in ("", "localhost") or not folder.strip("/") or folder[0] != "/":
        raise ValueError("a file URL has an absolute path, as in 'file:///var/cache/site'")
    if parts.fragment:
        raise ValueError(f"a # in a folder's name is written %23: {parts.path}#{parts.fragment}")
    bounds: dict[str, int] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in ("max_pages", "max_bytes"):
            raise ValueError(
                f"a file URL takes max_pages and max_bytes, not {name!r}; a ? in a folder's name "
                "is written %3F"
            )
        if not value.isascii() or not value.isdigit() or int(value) < 1:
            raise ValueError(f"{name} of a file URL is a whole number, 1 or more, not {value!r}")
        bounds[name] = int(value)
    own = os.path.join(folder, _safe(prefix))
    return KINDS["sqlite"], lambda parent: SQLiteStore(own, **bounds)


def _of_url(url: str, prefix: str) -> tuple[Kind, Opener]:
    scheme = urlsplit(url).scheme
    if scheme == "memory":
        return MEMORY, _open_memory
    if scheme == "file":
        return _of_folder(url, prefix)
    if scheme.startswith(("redis", "valkey")):
        make_client = redis_client(url)
        kind = KINDS["valkey" if scheme.startswith("valkey") else "redis"]
        return kind, lambda parent: RedisStore(make_client, prefix)
    if scheme == "memcached":
        make = memcached_cache(url)
        return MEMCACHED, lambda parent: CachelibStore(make(), prefix, MEMCACHED)
    if url[:1] in ("/", ".", "~") and url[:2] != "//":
        folder = Path(os.path.abspath(os.path.expanduser(url))).as_uri()
        raise ValueError(f"cache takes a URL: write the folder {url!r} as {folder!r}")
    # Not the URL itself, which may have a password.
    raise ValueError(f"cache URLs are {URLS}" + (f", not {scheme}://" if scheme else ""))


def _open_memory(parent: Store | None) -> Store:
    if isinstance(parent, LocalStore):
        parent.after_fork()
        return parent
    return LocalStore()


# Caches.


def _of_cache(cache: BaseCache, prefix: str) -> tuple[Kind, Opener]:
    if isinstance(cache, SQLiteCache):
        folder = os.path.join(cache.folder, _safe(prefix))
        return KINDS["sqlite"], lambda parent: SQLiteStore(folder)
    if isinstance(cache, RedisCache | ValkeyCache):
        check_cache(cache)
        kind = KINDS["redis" if isinstance(cache, RedisCache) else "valkey"]
        make, own = client_of(cache), prefix_of(cache) + prefix
        return kind, lambda parent: RedisStore(make, own)
    if isinstance(cache, MemcachedCache):
        check_cache(cache)
        return MEMCACHED, lambda parent: CachelibStore(_own(cache), prefix, MEMCACHED)
    in_process = isinstance(cache, SimpleCache | NullCache)
    shared = getattr(cache, "isr_shared", "process" if in_process else "network")
    if shared not in ("process", "machine", "network"):
        raise ValueError(
            f"isr_shared of {type(cache).__name__} is 'process', 'machine' or 'network', "
            f"not {shared!r}"
        )
    if shared == "process":
        return LocalStore.kind, lambda parent: _open_local(cache, prefix)
    # uWSGI's cache ends with its master.
    kind = CACHELIB._replace(durable=not isinstance(cache, UWSGICache))
    return kind, lambda parent: CachelibStore(cache, prefix, kind)


def _open_local(cache: BaseCache, prefix: str) -> Store:
    stores = _local.setdefault(cache, {})
    store = stores.setdefault(prefix, LocalStore(cache, prefix))
    store.after_fork()
    return store


def _own(cache: MemcachedCache) -> BaseCache:
    """The same cache over connections of this process: those of another would mix up pages."""
    client = next((v for v in vars(cache).values() if hasattr(v, "client_pool")), None)
    if client is None:
        return cache
    # Without an answer to each write nobody hears of one that failed.
    names = set(inspect.signature(type(client)).parameters) & set(vars(client))
    options = {**{name: getattr(client, name) for name in names}, "default_noreply": False}
    mine = type(client)(**options)
    mine.client_pool = LivePool(functools.partial(mine.client_class, **options))
    return MemcachedCache(mine, key_prefix=cache.key_prefix)


def _open_made(make: Callable[[], object], prefix: str) -> Store:
    def attempt() -> Store:
        made = make()
        if not isinstance(made, BaseCache):
            if not _is_store(made):
                raise TypeError(f"it returned neither a cachelib cache nor a Store: {type(made)}")
            return t.cast(Store, made)
        kind, open_store = _of_cache(made, prefix)
        _warn(kind, made)
        return open_store(None)

    try:
        return attempt()
    except Exception as error:
        # A request waits, which an error does not help.
        logger.exception("the callable given as cache failed; it is called again while it fails")
        return t.cast(Store, AwayStore(attempt, error))


class AwayStore:
    """A store that could not be opened: all methods raise `StoreError` until `probe` opens it."""

    def __init__(self, attempt: Callable[[], Store], error: Exception) -> None:
        self._attempt, self._error = attempt, error
        self.opened: Store | None = None
        self._counters = [0, 0]
        self._lock = threading.Lock()

    @property
    def kind(self) -> Kind:
        # Nothing is refused before it can be tried.
        away = Kind("away", "network", True, True, True, True, True)
        return away if self.opened is None else self.opened.kind

    @property
    def signal(self) -> t.Any:
        return self._counters if self.opened is None else self.opened.signal

    def __getattr__(self, name: str) -> t.Any:
        if name not in _METHODS:
            raise AttributeError(name)
        return lambda *args, **kwargs: getattr(self._there(), name)(*args, **kwargs)

    def _there(self) -> Store:
        if self.opened is None:
            raise StoreError(f"the store could not be opened: {self._error}") from self._error
        return self.opened

    def probe(self) -> None:
        with self._lock:
            if self.opened is None:
                try:
                    self.opened = self._attempt()
                except Exception as error:
                    self._error = error
                    raise
        self.opened.probe()

    def listen(self, seconds: float) -> bool:
        """Wait for this process's thread, whatever kind of store it has become."""
        store, deadline = self._there(), time.monotonic() + seconds
        before = store.signal[0]
        if store.listen(seconds):
            return True
        while store.signal[0] == before and time.monotonic() < deadline:
            time.sleep(0.02)
        return bool(store.signal[0] != before)

    def close(self) -> None:
        if self.opened is not None:
            self.opened.close()
