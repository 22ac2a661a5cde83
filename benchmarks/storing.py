"""Part ``files``: a page from files, and into them, beside cachelib's own cache in files."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time

from cachelib import FileSystemCache

from wsgi_isr import ISRMiddleware
from wsgi_isr.page import Codec

from .results import Table
from .subjects import Response, app, request, start_response
from .turns import by_turns, repeat


def measure(quick: bool) -> Table:
    with tempfile.TemporaryDirectory() as folder:
        isr = ISRMiddleware(app, f"file://{folder}/isr", memory_size=0)
        for _ in range(3):
            answer = Response(isr, request())
        assert answer.headers["Cache-Status"].startswith("isr; hit; ttl=")
        pages = isr._here().pages
        ((name, listed),) = pages.listed()
        assert listed is not None
        key = listed.page.key
        entry = pages.newest(key)
        assert entry is not None
        page = entry.page
        data = b"".join(Codec().encode(page))

        # Not bounded: counting its files costs cachelib much more.
        cache = FileSystemCache(os.path.join(folder, "cachelib"), threshold=0)
        assert cache.set(name, data, 3600) and cache.get(name) == data

        def write() -> None:
            nonlocal page
            page = dataclasses.replace(page, sequence=page.sequence + 1)
            _, refused = pages.put(page)
            assert refused is None

        reading = {
            "cachelib, get": repeat(cache.get, name),
            "a page read": repeat(pages.newest, key),
            "a request, memory level off": repeat(isr, request(), start_response),
        }
        writing = {
            "cachelib, set": repeat(cache.set, name, data, 3600),
            "a page written": repeat(write),
        }
        # Waiting for the disk counts.
        table = by_turns(reading | writing, 20 if quick else 200, time.perf_counter_ns, length=0.01)
        for names in (reading, writing):
            base = table[next(iter(names))]["ns"]
            for row in names:
                table[row]["ratio"] = table[row]["ns"] / base
        table["the entry"] = {"bytes": len(data)}
        isr.close()
    return table
