"""Content codings: made once, when a page is rendered, and never per request.

gzip always; Brotli and Zstandard where their extras are installed.
"""

from __future__ import annotations

import functools
import gzip
import importlib
import typing as t
from collections.abc import Callable
from dataclasses import replace

from .page import Page

Encoder: t.TypeAlias = "Callable[[bytes], bytes]"

#: In the order in which they are chosen at equal quality.
PREFERENCE = ("zstd", "br", "gzip")

# Smaller bodies fit in one packet either way.
_MIN_LENGTH = 500
# Levels at which 20 KB take about a millisecond.
_GZIP_LEVEL = 6
_BROTLI_QUALITY = 5
_ZSTD_LEVEL = 9
_COMPRESSIBLE = frozenset(
    {
        "application/javascript",
        "application/json",
        "application/manifest+json",
        "application/wasm",
        "application/xml",
        "application/x-ndjson",
        "application/vnd.ms-fontobject",
        "font/otf",
        "font/ttf",
        "image/bmp",
        "image/x-icon",
    }
)


@functools.cache
def encoders() -> dict[str, Encoder]:
    """The codings that can be made here, by their names in HTTP."""
    found: dict[str, Encoder] = {
        # A fixed mtime: the same body has the same bytes, and the same ETag.
        "gzip": lambda body: gzip.compress(body, _GZIP_LEVEL, mtime=0)
    }
    try:
        brotli = importlib.import_module("brotli")
    except ImportError:
        pass
    else:
        found["br"] = lambda body: t.cast(bytes, brotli.compress(body, quality=_BROTLI_QUALITY))
    try:
        zstandard = importlib.import_module("zstandard")
    except ImportError:
        pass
    else:
        # A compressor of its own for each body: they are not safe to share among threads.
        found["zstd"] = lambda body: t.cast(
            bytes, zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(body)
        )
    return found


def is_compressible(page: Page) -> bool:
    """Whether codings of a page are worth having."""
    if len(page.bodies["identity"]) < _MIN_LENGTH or page.header("content-encoding") is not None:
        return False
    if "no-transform" in (page.header("cache-control") or "").lower():
        return False
    kind = (page.header("content-type") or "").partition(";")[0].strip().lower()
    return kind.startswith("text/") or kind in _COMPRESSIBLE or kind.endswith(("+xml", "+json"))


def compress(page: Page) -> Page:
    """The page with its content codings, those that make it smaller."""
    if not is_compressible(page):
        return page
    body = page.bodies["identity"]
    bodies = {"identity": body}
    for coding, encode in encoders().items():
        packed = encode(body)
        if len(packed) < len(body):
            # A copy: zstandard's own bytes keep all the memory that they might have needed.
            bodies[coding] = bytes(memoryview(packed))
    return replace(page, bodies=bodies)
