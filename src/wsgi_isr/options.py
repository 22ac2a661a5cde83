"""Checks of the middleware's arguments: a mistake is told when it is made, with its remedy."""

from __future__ import annotations

import re
import typing as t

from cachelib import BaseCache
from cachelib import FileSystemCache
from cachelib import RedisCache
from cachelib import ValkeyCache

from .executor import check_executor
from .metadata import check_tags_header

_PREFIX = re.compile(r"[\x21-\x7e]{0,64}")


def check(**options: t.Any) -> None:
    """
    :raises TypeError: for an argument of the wrong kind.
    :raises ValueError: for a value that cannot work.
    """
    if not callable(options["app"]):
        raise TypeError(f"app is a WSGI application, not {options['app']!r}")
    numbers = {"memory_size": 0, "max_body_size": 1, "workers": 0, "previous_builds": 0}
    for name, least in numbers.items():
        value = options[name]
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} takes a whole number, not {value!r}")
        if value < least:
            raise ValueError(f"{name} is at least {least}, not {value}")
    if isinstance(options["render_timeout"], bool) or not isinstance(
        options["render_timeout"], int | float
    ):
        raise TypeError(f"render_timeout takes seconds, not {options['render_timeout']!r}")
    if options["render_timeout"] <= 0:
        raise ValueError(f"render_timeout is more than 0, not {options['render_timeout']}")
    if not isinstance(options["build_id"], str):
        raise TypeError(f"build_id takes a text, not {options['build_id']!r}")
    if not isinstance(options["key_prefix"], str) or not _PREFIX.fullmatch(options["key_prefix"]):
        raise ValueError(
            "key_prefix takes up to 64 printable ASCII characters without spaces, "
            f"not {options['key_prefix']!r}"
        )
    key = options["signing_key"]
    if key is not None and not isinstance(key, bytes):
        raise TypeError("signing_key takes bytes; encode a text first")
    if key is not None and len(key) < 16:
        raise ValueError(f"signing_key has at least 16 bytes, not {len(key)}")
    if options["tags_header"] is not None:
        check_tags_header(options["tags_header"])
    if options["executor"] is not None:
        check_executor(options["executor"])
    if options["workers"] == 0:
        if options["executor"] is not None:
            raise ValueError("workers=0 leaves renders to other processes; leave executor out")
        if not _hands_over(options["cache"]):
            raise ValueError(
                "workers=0 leaves renders to other processes, which need a store that can tell "
                "them what to do: files, or Redis"
            )
    if options["memory_size"] == 0 and str(options["cache"]).startswith("memory:"):
        raise ValueError("memory:// with memory_size=0 would store nothing; leave one of them out")


def _hands_over(cache: object) -> bool:
    """Whether a store, as far as one can tell by now, tells other processes what to render."""
    if isinstance(cache, BaseCache):
        return isinstance(cache, RedisCache | ValkeyCache | FileSystemCache)
    return str(cache).partition(":")[0] not in ("memory", "memcached")
