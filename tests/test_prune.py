"""Stores are bounded: the pages that were used least go, and what is gone goes first."""

from __future__ import annotations

import typing as t
from collections.abc import Callable

import pytest
from conftest import Browser, Clock, Make, Site, status_of
from steps import visit, wait_until

Browse = Callable[..., Browser]

COLD = "isr; fwd=uri-miss; stored"


def fill(site: Site, browser: Browser, *paths: str, status: str = "200 OK") -> None:
    for path in paths:
        site.page(path, "x" * 2000, revalidate=False, status=status)
        browser.get(path)


def left(browser: Browser) -> set[str]:
    return {page.url.removeprefix("http://localhost/") for page in browser.isr.pages()}


class TestACall:
    def test_removes_the_pages_used_least(
        self, site: Site, browse: Browse, shared: str, clock: Clock
    ) -> None:
        browser = browse(shared, memory_size=0)
        fill(site, browser, "/a", "/b", "/c", "/d")
        assert browser.isr.prune(max_pages=4) == 0
        # Used from memory, or in the store: it is noted once a minute.
        clock.advance(61)
        browser.get("/a")
        browser.isr.close()
        assert browser.isr.prune(max_pages=2) == 2
        assert len(left(browser)) == 2 and "a" in left(browser)

    def test_removes_what_is_gone_first(self, site: Site, browse: Browse, shared: str) -> None:
        browser = browse(shared)
        fill(site, browser, "/a", "/b")
        fill(site, browser, "/x", "/y", status="404 Not Found")
        assert browser.isr.prune(max_pages=2) == 2
        assert left(browser) == {"a", "b"}

    def test_removes_until_the_bytes_fit(self, site: Site, browse: Browse, shared: str) -> None:
        browser = browse(shared)
        fill(site, browser, *(f"/{number}" for number in range(20)))
        assert browser.isr.prune(max_bytes=10_000) > 0
        assert 1 <= len(left(browser)) < 20

    def test_removes_everything_in_all_workers(self, site: Site, make: Make, shared: str) -> None:
        site.page("/", lambda environ: f"render {site.renders('/')}", revalidate=False)
        one, other = make(shared), make(shared)
        assert visit(one).text == visit(other).text == "render 1"
        assert one.prune(everything=True) == 1
        assert list(one.pages()) == []
        wait_until(lambda: visit(other).text == "render 2")
        assert visit(one).text == "render 2"

    @pytest.mark.servers
    def test_cannot_be_where_pages_cannot_be_listed(
        self, make: Make, memcached_process: t.Any
    ) -> None:
        with pytest.raises(NotImplementedError):
            make(memcached_process.url).prune(max_pages=1)


class TestABoundInTheURL:
    def test_keeps_real_pages_before_invented_addresses(
        self, site: Site, browse: Browse, files: str
    ) -> None:
        browser = browse(f"{files}?max_pages=50", memory_size=0)
        fill(site, browser, *(f"/real/{number}" for number in range(10)))
        for number in range(150):
            fill(site, browser, f"/made-up/{number}", status="404 Not Found")
        wait_until(lambda: browser.isr.stats()["pages"] <= 60)
        assert {f"real/{number}" for number in range(10)} <= left(browser)
        assert browser.isr.stats()["evictions"] > 0

    def test_holds_for_bytes_and_a_page_that_was_evicted_is_rendered_again(
        self, site: Site, browse: Browse, files: str
    ) -> None:
        browser = browse(f"{files}?max_bytes=100000", memory_size=0)
        for number in range(200):
            fill(site, browser, f"/{number}")
        wait_until(lambda: browser.isr.stats()["bytes"] <= 130_000)
        answer = browser.get("/0")
        assert (answer.text, status_of(answer)) == ("x" * 2000, COLD)
