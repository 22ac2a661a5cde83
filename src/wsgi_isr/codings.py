"""Content codings: made once, when a page is rendered, and never per request.

gzip always; Brotli and Zstandard where their extras are installed.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import importlib
import re
from collections.abc import Callable
from dataclasses import replace

from .page import Page

#: In the order in which they are chosen at equal quality.
PREFERENCE = ("zstd", "br", "gzip")

# Smaller bodies fit in one packet either way.
_MIN_LENGTH = 500
_COMPRESSIBLE = re.compile(
    r"text/.*|.*\+(?:json|xml)|application/(?:javascript|json|wasm|xml|x-ndjson)"
    r"|application/vnd\.ms-fontobject|font/(?:otf|ttf)|image/(?:bmp|x-icon)"
)


@functools.cache
def encoders() -> dict[str, Callable[[bytes], bytes]]:
    """The codings that can be made here, by their names in HTTP.

    Their levels are those at which 20 KB take about a millisecond.
    """
    # A fixed mtime: the same body has the same bytes, and the same ETag.
    found: dict[str, Callable[[bytes], bytes]] = {
        "gzip": functools.partial(gzip.compress, compresslevel=6, mtime=0)
    }
    with contextlib.suppress(ImportError):
        found["br"] = functools.partial(importlib.import_module("brotli").compress, quality=5)
    with contextlib.suppress(ImportError):
        zstandard = importlib.import_module("zstandard")
        # With a compressor for each body: they are not safe to share among threads.
        found["zstd"] = functools.partial(zstandard.compress, level=9)
    return found


def is_compressible(page: Page) -> bool:
    """Whether codings of a page are worth having."""
    if len(page.bodies["identity"]) < _MIN_LENGTH or page.header("content-encoding") is not None:
        return False
    if "no-transform" in (page.header("cache-control") or "").lower():
        return False
    kind = (page.header("content-type") or "").partition(";")[0].strip().lower()
    return _COMPRESSIBLE.fullmatch(kind) is not None


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
