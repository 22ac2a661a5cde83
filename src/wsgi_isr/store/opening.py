"""From what a user hands over as ``cache`` to a storage with its coordination.

Mistakes are told when the middleware is made; the store itself is opened on the first request,
in each process anew, so that no connection and no lock crosses a fork.
"""

from __future__ import annotations

import logging
import os
import typing as t
import weakref
from collections.abc import Callable
from urllib.parse import quote
from urllib.parse import unquote
from urllib.parse import urlsplit

from cachelib import BaseCache
from cachelib import DynamoDbCache
from cachelib import FileSystemCache
from cachelib import MemcachedCache
from cachelib import MongoDbCache
from cachelib import NullCache
from cachelib import RedisCache
from cachelib import SimpleCache
from cachelib import UWSGICache
from cachelib import ValkeyCache

from . import clients
from .backend import adapt
from .backend import FileStorage
from .backend import NullStorage
from .backend import Storage
from .bounds import Bounds
from .coordination import Coordination
from .coordination import LocalCoordination
from .files import FileCoordination
from .plain import PlainCoordination
from .plain import PlainStorage
from .redis import RedisCoordination
from .redis_pages import RedisStorage

logger = logging.getLogger("wsgi_isr")

DEFAULT_FOLDER = ".isr-cache"

Opened: t.TypeAlias = "tuple[Storage, Coordination]"
Opener: t.TypeAlias = "Callable[[], Opened]"
CacheLike: t.TypeAlias = "BaseCache | Callable[[], BaseCache] | str | None"

#: Two middlewares over one cache of this process agree with each other.
_local: weakref.WeakKeyDictionary[BaseCache, LocalCoordination] = weakref.WeakKeyDictionary()
#: What a store in memory cannot do.
ONE_PROCESS = (
    "pages are those of one process and end with it; other workers render their own, and are not "
    "reached by on-demand calls"
)
#: Kinds of caches whose limits this process has told.
_told: set[str] = set()


def opener(cache: CacheLike, prefix: str) -> Opener:
    """How to open a store, later and once in each process.

    :raises TypeError: for what is no cache.
    :raises ValueError: for a URL that names none, or a cache that will not do, with the remedy.
    :raises ImportError: for a URL whose client is not installed, with the remedy.
    """
    if cache is None:
        folder = os.path.abspath(DEFAULT_FOLDER)
        return lambda: _open_folder(folder, prefix, Bounds())
    if isinstance(cache, str):
        return _from_url(cache, prefix)
    if isinstance(cache, BaseCache):
        clients.check(cache)
        _tell_limits(cache)
        return lambda: _open_cache(cache, prefix)
    if callable(cache):
        return lambda: _open_made(cache, prefix)
    raise TypeError(
        f"cache takes a cachelib cache, a callable that returns one, or a URL: {cache!r}"
    )


def _open_made(make: Callable[[], BaseCache], prefix: str) -> Opened:
    """Open what a callable returns; by now a request waits, which an error would not help."""
    try:
        cache = make()
        if not isinstance(cache, BaseCache):
            raise TypeError(f"it returned no cachelib cache but {cache!r}")
        clients.check(cache)
        _tell_limits(cache)
        return _open_cache(cache, prefix)
    except Exception:
        logger.exception(
            "the callable given as cache failed: pages are kept in the memory of each process only"
        )
        return NullStorage(), LocalCoordination()


def _from_url(url: str, prefix: str) -> Opener:
    parts = urlsplit(url)
    if parts.scheme == "memory":
        coordination = LocalCoordination()
        # No warning: who writes that knows it.
        _tell_once("memory://", ONE_PROCESS, logging.INFO)
        return lambda: (NullStorage(), coordination)
    if parts.scheme == "file":
        folder = unquote(parts.path)
        if parts.netloc not in ("", "localhost") or not folder.startswith("/") or folder == "/":
            raise ValueError(
                f"a file URL has an absolute path, as in 'file:///var/cache/site': {url!r}"
            )
        if parts.fragment:
            raise ValueError(f"a # in a folder's name is written %23: {url!r}")
        bounds = Bounds.from_query(parts.query)
        return lambda: _open_folder(folder, prefix, bounds)
    if parts.scheme in clients.SCHEMES:
        make = clients.from_url(url)
        _tell_limits(make())
        return lambda: _open_cache(make(), prefix)
    # Not the whole URL: it may have a password.
    raise ValueError(
        "cache URLs are memory://, file:///path, redis://host, rediss://host, valkey://host and "
        f"memcached://host, not {parts.scheme}://"
    )


def _open_folder(folder: str, prefix: str, bounds: Bounds) -> Opened:
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        _refuse_foreign(folder)
        own = os.path.join(folder, quote(prefix, safe=""))
        return FileStorage(os.path.join(own, "pages"), bounds), FileCoordination(own)
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s): pages are kept in the memory of each process only",
            folder,
            error,
        )
        return NullStorage(), LocalCoordination()


def _refuse_foreign(folder: str) -> None:
    """Do not, as root, leave files that the folder's owner can neither read nor replace."""
    owner = os.stat(folder).st_uid
    if os.geteuid() == 0 and owner != 0:
        raise PermissionError(f"it belongs to user {owner}; run as that user")


def _tell_limits(cache: BaseCache) -> None:
    """Say once what a cache cannot do; docs/stores.md says it of all of them."""
    if isinstance(cache, RedisCache | ValkeyCache):
        # What those cannot do, if anything, is known when they answer.
        return
    if _is_plain(cache):
        limits = (
            "pages cannot be listed, it may lose invalidations (pages then count as stale), "
            "and one render per page is best effort; files and Redis have no such limits"
        )
    elif isinstance(cache, FileSystemCache):
        limits = "pages cannot be listed or pruned; a file:// URL has no such limits"
    else:
        limits = ONE_PROCESS
    _tell_once(type(cache).__name__, limits)


def _tell_once(kind: str, limits: str, level: int = logging.WARNING) -> None:
    if kind not in _told:
        _told.add(kind)
        logger.log(level, "%s: %s", kind, limits)


def _is_plain(cache: BaseCache) -> bool:
    """Whether all there is to coordinate the processes that share a cache is the cache."""
    if isinstance(cache, MemcachedCache | UWSGICache | MongoDbCache | DynamoDbCache):
        return True
    if isinstance(cache, RedisCache | ValkeyCache | FileSystemCache | SimpleCache | NullCache):
        return False
    # Of somebody else's making: one that keeps what it is given in a dict shares it with nobody.
    return not any(isinstance(value, dict) for value in vars(cache).values())


def _open_cache(cache: BaseCache, prefix: str) -> Opened:
    if isinstance(cache, RedisCache | ValkeyCache):
        pages = RedisStorage(cache, prefix)
        return pages, RedisCoordination(pages)
    if _is_plain(cache):
        plain = PlainStorage(cache, prefix)
        return plain, PlainCoordination(plain)
    storage = adapt(cache, prefix)
    if isinstance(cache, FileSystemCache):
        # cachelib leaves names with this ending alone, whatever it clears or prunes.
        own = quote(prefix, safe="") + FileSystemCache._fs_transaction_suffix
        return storage, FileCoordination(os.path.join(os.path.abspath(cache._path), own))
    coordination = _local.get(cache)
    if coordination is None:
        coordination = _local[cache] = LocalCoordination()
    return storage, coordination
