"""The folder of a site, with pages whose last use the test sets."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

from wsgi_isr.key import PageKey
from wsgi_isr.metadata import Metadata
from wsgi_isr.page import Codec
from wsgi_isr.page import Page
from wsgi_isr.store.backend import FileStorage
from wsgi_isr.store.bounds import Bounds
from wsgi_isr.store.files import FileCoordination
from wsgi_isr.store.prune import Pruned
from wsgi_isr.store.prune import Pruner

GONE = "404 Not Found"


class Folder:
    def __init__(self, path: Path, bounds: Bounds | None = None) -> None:
        path.mkdir(exist_ok=True)
        self.path = path
        self.storage = FileStorage(str(path / "pages"), bounds)
        self.coordination = FileCoordination(str(path))
        self.pruner = Pruner(self.storage, self.coordination)
        self._codec = Codec()

    def page(self, path: str, size: int = 10, status: str = "200 OK", build: str = "") -> Page:
        key = PageKey("http", "localhost", "", path, build=build)
        return Page(key, status, (), {"identity": b"x" * size}, Metadata(60, None, ()), 0.0)

    def put(
        self,
        path: str,
        used: float | None = None,
        size: int = 10,
        status: str = "200 OK",
        **more: str,
    ) -> str:
        """Store a page that was used so many seconds after some day; its name."""
        page = self.page(path, size, status, **more)
        self.storage.set(page.name, self._codec.encode(page))
        if used is not None:
            os.utime(self.storage.path(page.name), (1_000_000 + used, 1_000_000 + used))
        return page.name

    def names(self) -> set[str]:
        return set(self.storage.names())

    def prune(self, pages: int = 10**6, size: int = 10**12, **more: t.Any) -> Pruned:
        return self.pruner.now(Bounds(pages, size), **more)
