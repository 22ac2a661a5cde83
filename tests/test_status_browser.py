"""The status page in a real Chromium: narrow and wide, light and dark, by keyboard."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator

import pytest
from browser import LOOKS, faults, serving
from browser import browser as browser
from conftest import Browser, Make, Site, client_of
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from wsgi_isr.status import Status

pytestmark = pytest.mark.servers

SECRET = "correct horse battery staple"


@pytest.fixture
def visitor(site: Site, make: Make, files: str) -> Browser:
    for number in range(60):
        site.page(f"/posts/{number}", f"post {number}", tags=["posts", f"post:{number}"])
    visitor = client_of(make(files))
    for number in range(60):
        visitor.get(f"/posts/{number}", base_url="http://site.example")
    return visitor


@pytest.fixture
def address(visitor: Browser) -> Iterator[str]:
    status = Status(visitor.isr, secret=SECRET)
    with serving(DispatcherMiddleware(visitor.isr, {"/_isr": status})) as address:
        yield f"{address}/_isr/"


@pytest.fixture
def visit(browser: t.Any, address: str) -> Iterator[t.Any]:
    """Opens the page in a window of its own, after a login."""
    contexts = []

    def visit(logged_in: bool = True, **options: t.Any) -> t.Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("console", lambda message: page.problems.append(f"{message.type} {message.text}"))
        page.goto(address)
        if logged_in:
            page.fill("input[name=secret]", SECRET)
            page.click("main button")
            page.wait_for_selector("nav")
            page.problems.clear()
        return page

    yield visit
    for context in contexts:
        context.close()


@LOOKS
def test_everything_is_legible(visit: t.Any, visitor: Browser, width: int, scheme: str) -> None:
    visitor.isr.revalidate_tag("posts")
    page = visit(viewport={"width": width, "height": 800}, color_scheme=scheme)
    urls = ["", "pages", "invalidations", "page?url=http://site.example/posts/7", "page"]
    for url in urls:
        page.goto(page.url.partition("_isr/")[0] + f"_isr/{url}")
        assert faults(page) == []
    page.click("text=Log out")
    page.wait_for_selector("input[name=secret]")
    assert faults(page) == []
    # No rule of the policy was broken; the form is a 401.
    assert [
        problem for problem in page.problems if "401" not in problem and "error" in problem
    ] == []


def test_all_is_done_by_keyboard(visit: t.Any) -> None:
    page = visit(logged_in=False)
    keys = page.keyboard
    # It has the focus by itself, but not always before the page has loaded.
    page.wait_for_function("document.activeElement.name === 'secret'")
    keys.type(SECRET)
    keys.press("Enter")
    page.wait_for_selector("nav")

    def focus(text: str, most: int) -> None:
        for _ in range(most):
            keys.press("Tab")
            there = page.evaluate("document.activeElement.innerText || document.activeElement.name")
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline == "solid" or page.evaluate("document.activeElement === document.body")
            if there == text:
                return
        raise AssertionError(f"{text} is not reached")

    focus("Skip to content", 1)
    focus("Pages", 3)
    keys.press("Enter")
    page.wait_for_url("**/pages")
    focus("q", 7)
    keys.type("posts/59")
    keys.press("Enter")
    page.wait_for_url("**/pages?q=*")
    focus("http://site.example/posts/59", 14)
    keys.press("Enter")
    page.wait_for_url("**/page?url=*")
    focus("Regenerate now", 8)
    keys.press("Enter")
    page.wait_for_selector("text=Rendered just now")
    assert "on demand" in page.inner_text("#verdict")


def test_it_works_without_scripts(visit: t.Any, visitor: Browser) -> None:
    page = visit(java_script_enabled=False)
    page.click("text=Pages")
    page.click("text=http://site.example/posts/0")
    page.click("text=Expire")
    page.wait_for_selector("text=Expired: the next visitor")
    (expired,) = [one for one in visitor.isr.pages() if one.state == "expired"]
    assert expired.url == "http://site.example/posts/0"
    assert not page.is_visible("text=Pause")


def test_it_refreshes_itself_until_it_is_paused(visit: t.Any, visitor: Browser) -> None:
    page = visit(logged_in=False)
    page.clock.install()
    page.goto(page.url)
    page.fill("input[name=secret]", SECRET)
    page.click("main button")
    page.goto(page.url + "page?url=http://site.example/posts/7")
    assert "This page is new" in page.inner_text("#verdict")
    visitor.isr.revalidate_tag("post:7")
    page.clock.run_for(5100)
    page.wait_for_selector("text=This page is old")
    page.click("text=Pause")
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.clock.run_for(20_000)
    assert requests == [] and page.is_visible("text=Resume")
    page.click("text=Resume")
    with page.expect_request(lambda request: "/page?" in request.url):
        page.clock.run_for(5100)
    # A visitor who has been logged out meanwhile sees the form.
    page.context.clear_cookies()
    page.clock.run_for(5100)
    page.wait_for_selector("input[name=secret]")
