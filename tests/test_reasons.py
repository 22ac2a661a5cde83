"""Why the app is called: ``environ["wsgi_isr.reason"]``, so that it can skip its analytics."""

from __future__ import annotations

import typing as t
from collections.abc import Callable

import pytest
from conftest import Browser, Clock, Site

from wsgi_isr import Rule

Browse = Callable[..., Browser]
Reasons = Callable[[], list[str | None]]

KEY = "wsgi_isr.reason"


@pytest.fixture
def reasons(site: Site) -> Reasons:
    """Gives the reasons of all calls of the app since it was last called."""
    seen = 0

    def reasons() -> list[str | None]:
        nonlocal seen
        new, seen = site.environs[seen:], len(site.environs)
        return [environ.get(KEY) for environ in new]

    return reasons


@pytest.fixture
def client(site: Site, browse: Browse, files: str) -> Browser:
    site.page("/", expire=600, tags=["all"])
    return browse(files, rules={"/": 60}, base_url="http://localhost")


def test_are_those_of_the_contract(client: Browser, reasons: Reasons, clock: Clock) -> None:
    assert [r.status for r in client.isr.prerender(["/"])] == [200]
    assert reasons() == ["prerender"]
    clock.advance(60)
    client.get("/")
    client.isr.close()
    assert reasons() == ["stale"]
    clock.advance(600)
    client.get("/")
    assert reasons() == ["stale"]
    client.isr.revalidate_tag("all", expire=True)
    client.get("/")
    assert reasons() == ["stale"]
    client.isr.revalidate("/")
    assert reasons() == ["revalidate"]
    client.isr.prune(everything=True)
    client.get("/")
    assert reasons() == ["miss"]


def test_a_shell_has_none_and_its_page_has_one(
    site: Site, browse: Browse, reasons: Reasons
) -> None:
    def shell(environ: t.Any, start_response: t.Any) -> t.Any:
        assert KEY not in environ
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"shell"]

    site.page("/")
    client = browse(rules={"/": Rule(revalidate=60, fallback=shell)})
    client.get("/")
    client.isr.close()
    assert reasons() == ["miss"]


def test_a_visitors_own_request_has_none(
    site: Site, browse: Browse, client: Browser, reasons: Reasons
) -> None:
    browse().get("/none")
    assert reasons() == [None]
    browse().get("/")
    assert reasons() == [None, "miss"]
    client.post("/")
    browse(enabled=False, rules={"/": 60}).get("/")
    assert reasons() == [None, None]


@pytest.mark.parametrize("path", ["/", "/none"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_client_can_give_one(client: Browser, reasons: Reasons, path: str, method: str) -> None:
    # A header becomes an environ key of its own; a server or proxy that mixes them up, too,
    # must not make a visitor pass for the library.
    for _ in range(2):
        client.open(
            path,
            method=method,
            headers={KEY: "stale", "WSGI-ISR-Reason": "stale", "ISR-Revalidate": "1"},
            environ_overrides={KEY: "revalidate"},
        )
    assert set(reasons()) <= {None, "miss"}
