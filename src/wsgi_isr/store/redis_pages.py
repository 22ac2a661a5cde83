"""Pages on a Redis or Valkey server, as bytes under names."""

from __future__ import annotations

import re
import typing as t
from collections.abc import Iterator

from cachelib import RedisCache
from cachelib import ValkeyCache

from ..key import PAGE_NAME
from . import scripts
from .backend import CachelibStorage
from .clients import renew_pool
from .clients import told_apart

_GLOB = re.compile(r"[\[\]*?\\]")


def match_prefix(prefix: str) -> str:
    """The pattern of all keys with a prefix, for SCAN, which takes it for what it is."""
    return _GLOB.sub(r"\\\g<0>", prefix) + "*"


class RedisStorage(CachelibStorage):
    """Pages in a `cachelib.RedisCache` or `cachelib.ValkeyCache`, as the bytes they are."""

    def __init__(self, cache: RedisCache | ValkeyCache, prefix: str) -> None:
        super().__init__(cache, prefix)
        self.client: t.Any = cache._write_client
        own: t.Any = self._cache
        # Scripts take whole keys. A prefix that is called for each key could change under them.
        own.key_prefix = cache._get_prefix()
        # A replica may not have yet what was stored a moment ago.
        own._read_client = self.client
        self.prefix = f"{own.key_prefix}{prefix}"
        renew_pool(self.client)

    def index(self, path_digest: str) -> str:
        """The key of the names of all pages of a path: looking at all keys would take seconds."""
        return f"{self.prefix}path:{path_digest}"

    def names(self, path_digest: str | None = None) -> Iterator[str]:
        if path_digest is not None:
            with told_apart():
                index, start = self.index(path_digest), f"{self.prefix}{path_digest}."
                halves = self.client.eval(scripts.SIBLINGS, 1, index, start)
            found = (f"{path_digest}.{half.decode(errors='replace')}" for half in halves)
        else:
            # KEYS would stop the server while it looks at all of them.
            keys = self.client.scan_iter(match=match_prefix(self.prefix), count=1000)
            found = (key.decode(errors="replace").removeprefix(self.prefix) for key in keys)
        # SCAN may tell a key twice.
        seen = set()
        for name in found:
            if name not in seen and PAGE_NAME.fullmatch(name):
                seen.add(name)
                yield name

    def get(self, name: str, used: bool = False) -> bytes | None:
        try:
            with told_apart():
                return super().get(name, used)
        except Exception as error:
            if str(error).startswith("WRONGTYPE"):
                return b""
            raise

    def after_fork(self) -> None:
        renew_pool(self.client)
