"""The embedded store as its tests use it: stores over one folder, also in other processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import typing as t
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wsgi_isr.store.protocol import Number, Record
from wsgi_isr.store.sqlite import SQLiteStore

NOTHING = Number("", 0)
PRELUDE = """
import os, signal, sys, time
from wsgi_isr.store.protocol import *
from wsgi_isr.store.sqlite import SQLiteStore
store = SQLiteStore(sys.argv[1])
def record(name, number, body=b"body"):
    labels = ("path:/" + name, "tag:all")
    return Record(name, labels, number, "build", "/" + name, False, b"head", body)
"""


class Embedded:
    """Fixtures: a folder that does not exist yet, and stores over it."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return tmp_path / "cache"

    @pytest.fixture
    def open_store(self, folder: Path) -> Iterator[Callable[..., SQLiteStore]]:
        with contextlib.ExitStack() as stack:

            def open_one(**options: t.Any) -> SQLiteStore:
                store = SQLiteStore(str(folder), **options)
                stack.callback(store.close)
                return store

            yield open_one

    @pytest.fixture
    def store(self, open_store: Callable[..., SQLiteStore]) -> SQLiteStore:
        return open_store()


def put(store: SQLiteStore, name: str = "a", body: bytes = b"body", **fields: t.Any) -> Record:
    """Store a page at the path of its name, with the tags ``all`` and its name."""
    path = fields.get("path", f"/{name}")
    number = fields.pop("number", None) or store.number()
    labels = (f"path:{path}", "tag:all", f"tag:{name}")
    record = Record(name, labels, number, "build", path, False, b"head", body)
    record = record._replace(**fields)
    assert store.put(record) is not None
    return record


def descriptors(folder: Path) -> int:
    """How many files below a folder are open here, removed ones among them."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum(link.startswith(str(folder)) for link in links)


@contextlib.contextmanager
def running(folder: object, code: str) -> Iterator[subprocess.Popen[str]]:
    """A process with a store; the code says when it is ready by printing."""
    program = PRELUDE + textwrap.dedent(code)
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()
