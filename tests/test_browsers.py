"""What a real browser shows after a page was replaced: never the old one, whichever way it asks."""

from __future__ import annotations

import collections
import re
import typing as t
from collections.abc import Iterator

import pytest
from browser import browser as browser  # a fixture
from browser import serving
from documents import TEXTS

from wsgi_isr import ISRMiddleware, page_headers

pytestmark = pytest.mark.servers

FETCH = "fetch('/data.json').then(answer => answer.json()).then(data => data.version)"
#: For sites whose visitors shall see the new page on Back, too.
RELOADS = re.findall(r"^<script>.*?</script>$", TEXTS["docs/apps.md"], re.DOTALL | re.MULTILINE)[0]
#: The statuses of the answers to each path.
Sent = dict[str, list[str]]
#: How an editor's change reaches the pages.
CHANGES: dict[str, t.Any] = {
    "revalidate": lambda isr, site: isr.revalidate(f"{site.address}/", f"{site.address}/data.json"),
    "a tag that expires": lambda isr, site: isr.revalidate_tag("v", expire=True),
    "a pattern that expires": lambda isr, site: isr.invalidate("/**", expire=True),
}


class Site:
    """Two pages that show a version, and one URL that is none."""

    address = ""
    script = ""

    def __init__(self) -> None:
        self.version = 1

    def __call__(self, environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
        html = f"<!doctype html><p id=v>{self.version}</p><a href=/other>other</a>{self.script}"
        pages = {
            "/": ("text/html", html),
            "/data.json": ("application/json", f'{{"version": "{self.version}"}}'),
        }
        kind, text = pages.get(environ["PATH_INFO"], ("text/html", "<a href=/>home</a>"))
        own = page_headers(600, tags=["v"]) if environ["PATH_INFO"] in pages else []
        start_response("200 OK", [("Content-Type", kind), *own])
        return [text.encode()]


class Visitor:
    """One tab of a browser with a cache of its own."""

    def __init__(self, page: t.Any, site: Site, isr: ISRMiddleware, sent: Sent) -> None:
        self.page, self.site, self._isr, self.sent = page, site, isr, sent

    def shown(self) -> tuple[str, str]:
        """The version of the page, and the one that its script fetches."""
        return self.page.inner_text("#v"), self.page.evaluate(FETCH)

    def edit(self, change: str) -> tuple[str, str]:
        self.site.version += 1
        CHANGES[change](self._isr, self.site)
        return (str(self.site.version),) * 2


@pytest.fixture
def visitor(browser: t.Any) -> Iterator[Visitor]:
    site = Site()
    isr = ISRMiddleware(site, "memory://")
    sent: Sent = collections.defaultdict(list)

    def app(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
        def start(status: str, *args: t.Any) -> t.Any:
            sent[environ["PATH_INFO"]].append(status)
            return start_response(status, *args)

        return isr(environ, start)

    with serving(app) as site.address:
        context = browser.new_context()
        yield Visitor(context.new_page(), site, isr, sent)
        context.close()
    isr.close()


@pytest.mark.parametrize("change", CHANGES)
class TestAfterAChange:
    def test_a_link_leads_to_the_new_page(self, visitor: Visitor, change: str) -> None:
        page = visitor.page
        page.goto(visitor.site.address)
        assert visitor.shown() == ("1", "1")
        for _ in range(2):
            new = visitor.edit(change)
            page.click("text=other")
            page.click("text=home")
            assert visitor.shown() == new

    def test_a_reload_shows_the_new_page(self, visitor: Visitor, change: str) -> None:
        page = visitor.page
        page.goto(visitor.site.address)
        new = visitor.edit(change)
        assert page.evaluate(FETCH) == new[1]
        page.reload()
        assert visitor.shown() == new

    def test_back_and_forward_fetch_the_new_data(self, visitor: Visitor, change: str) -> None:
        """The page itself comes from the browser's history (RFC 9111 section 6), as any page."""
        page, address = visitor.page, visitor.site.address
        page.goto(f"{address}/other")
        page.goto(address)
        page.goto(f"{address}/other")
        new = visitor.edit(change)
        page.go_back()
        assert page.evaluate(FETCH) == new[1]
        new = visitor.edit(change)
        page.go_back()
        page.go_forward()
        assert page.evaluate(FETCH) == new[1]
        page.reload()
        assert visitor.shown() == new


def test_back_shows_the_new_page_where_its_script_asks_for_it(visitor: Visitor) -> None:
    page, site = visitor.page, visitor.site
    site.script = RELOADS
    page.goto(site.address)
    page.goto(f"{site.address}/other")
    new = visitor.edit("revalidate")
    with page.expect_event("load", lambda page: page.inner_text("#v") == new[0]):
        page.go_back(wait_until="commit")
    assert visitor.shown() == new


def test_a_page_that_is_not_changed_is_not_sent_again(visitor: Visitor) -> None:
    """The browser asks each time, and hears that what it has is good."""
    page = visitor.page
    page.goto(visitor.site.address)
    page.click("text=other")
    page.click("text=home")
    assert visitor.shown() == ("1", "1")
    assert visitor.sent["/"] == ["200 OK", "304 Not Modified"]
