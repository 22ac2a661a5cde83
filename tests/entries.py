"""Pages made by hand, and entries forged by somebody who knows the format."""

from __future__ import annotations

import json
import os
import pickle
import typing as t

from wsgi_isr.key import PageKey
from wsgi_isr.metadata import Metadata
from wsgi_isr.page import Codec, Invalidated, Page
from wsgi_isr.store.protocol import Store
from wsgi_isr.testing import make_record

KEY = PageKey("https", "www.example.com", "/app", "/blog/1", (("page", "2"),), (("x", "y"),), "b1")


def make_page(
    path: str | None = None,
    body: bytes = b"<p>a page",
    revalidate: int | None = 60,
    expire: int | None = None,
    tags: tuple[str, ...] = (),
    **fields: t.Any,
) -> Page:
    """A page of the site; other fields as in `Page`.

    :param path: ``None``: one with all that a key can have.
    """
    fields.setdefault("key", KEY if path is None else PageKey("http", "localhost", "", path))
    fields.setdefault("generated_at", 1_700_000_000.5)
    fields.setdefault("sequence", 5)
    fields.setdefault("lineage", "a lineage")
    return Page(
        status=fields.pop("status", "200 OK"),
        headers=fields.pop("headers", (("Content-Type", "text/html"), ("X-Name", "J\xfcrgen"))),
        bodies=fields.pop("bodies", {"identity": body}),
        metadata=Metadata(revalidate, expire, tags),
        **fields,
    )


def put(store: Store, name: str = "page", **fields: t.Any) -> None:
    """Store a page that is rendered now."""
    assert store.put(make_record(name, store.number(), **fields)) is not None


def state(store: Store, name: str = "page") -> Invalidated | None:
    """What invalidations made of a page; ``None`` where it is not there."""
    stored = store.get(name)
    return None if stored is None else stored.validity.invalidated


def forge(page: Page, codec: Codec | None = None, **fields: t.Any) -> tuple[bytes, bytes]:
    """The head of a page with other values in it, sealed as if we had made it; and its bodies."""
    codec = codec or Codec()
    head, body = codec.encode(page)
    payload = codec.unseal(head)
    assert payload is not None
    return codec.seal(json.dumps({**json.loads(payload), **fields}).encode()), body


class Bomb:
    """What makes a folder as soon as somebody unpickles it."""

    def __init__(self, folder: t.Any) -> None:
        self._folder = str(folder)

    def __reduce__(self) -> tuple[t.Any, ...]:
        return os.mkdir, (self._folder,)

    def planted(self) -> bytes:
        return pickle.dumps(self)

    @property
    def went_off(self) -> bool:
        return os.path.exists(self._folder)
