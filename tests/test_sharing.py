"""Values that many pages have are one object, without being mixed up."""

from __future__ import annotations

import typing as t
from collections.abc import Callable

import pytest
from conftest import Browser
from conftest import Site

from wsgi_isr.metadata import header
from wsgi_isr.metadata import Metadata
from wsgi_isr.sharing import MAX_SHARED
from wsgi_isr.sharing import shared


def text(*parts: str) -> str:
    """A new object each time."""
    return "".join(parts)


def test_equal_values_are_one_object() -> None:
    assert shared(text("a ", "host")) is shared(text("a", " host"))


def test_of_one_type() -> None:
    """A named tuple equals a plain one, and is none."""
    plain: tuple[t.Any, ...] = (77, None, ())
    assert type(shared(plain)) is tuple
    assert type(shared(Metadata(77))) is Metadata


@pytest.mark.parametrize(("length", "is_one"), [(MAX_SHARED, True), (MAX_SHARED + 1, False)])
def test_only_short_ones_are_kept(length: int, is_one: bool) -> None:
    one, other = (header(text("X-", "Long"), "x" * length) for _ in range(2))
    assert one == other and (one is other) is is_one


def test_pages_share_what_they_have_in_common(site: Site, browse: Callable[..., Browser]) -> None:
    for path in ("/a", "/b"):
        site.page(path, revalidate=60)
    browser = browse("memory://")
    for path in ("/a", "/b", "/a", "/b"):
        browser.get(path)
    one, other = browser.isr._here().memory
    assert one.page.headers is other.page.headers
    assert one.page.metadata is other.page.metadata
    assert one.confirmed is other.confirmed
    assert all(a is b for a, b in zip(one.targets[0][1:], other.targets[0][1:], strict=True))
