"""The status page under ``ISR_URL_PREFIX`` of a Flask app."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Browser, status_of
from flask import current_app
from flasks import flask_app, flask_browser

from wsgi_isr.flask import isr_page
from wsgi_isr.signals import invalidated

# Relative ones are fine since RFC 7231, and right behind any proxy.
pytestmark = pytest.mark.filterwarnings("ignore:Absolute URLs required for location header")

SECRET = "correct horse battery staple"


@pytest.fixture
def browse(tmp_path: Path) -> Iterator[Callable[..., Browser]]:
    made = []

    def browse(**options: object) -> Browser:
        app = flask_app(tmp_path)

        @app.get("/")
        @isr_page
        def index() -> str:
            return "the site"

        app.get("/about/us", endpoint="us")(lambda: "us")

        made.append(flask_browser(app, **options))
        return made[-1]

    yield browse
    for browser in made:
        browser.isr.close()


@pytest.mark.parametrize("secret", [None, "", b""])
def test_is_not_there_without_a_secret(browse: Callable[..., Browser], secret: object) -> None:
    browser = browse(secret=secret)
    assert browser.get("/_isr/").status_code == 404
    assert browser.post("/_isr/login", data={"secret": ""}).status_code == 404


@pytest.mark.parametrize("prefix", ["/_isr", "/ops/pages/"])
def test_is_there_with_one(browse: Callable[..., Browser], prefix: str) -> None:
    browser, root = browse(secret=SECRET, url_prefix=prefix), prefix.rstrip("/")
    assert browser.get("/").text == "the site"
    assert browser.get(root).location == f"{root}/"
    assert browser.get(f"{root}/").status_code == 401
    answer = browser.post(f"{root}/login", data={"secret": SECRET})
    assert (answer.status_code, answer.location) == (303, f"{root}/")
    assert f"Path={root}/;" in answer.headers["Set-Cookie"]
    assert "http://localhost/" in browser.get(f"{root}/pages").text
    assert "Cache-Status" not in browser.get(f"{root}/").headers


def test_is_no_page_whatever_rules_say(browse: Callable[..., Browser]) -> None:
    browser = browse(secret=SECRET, rules={"/**": 60})
    assert status_of(browser.get("/_isr/")) == ""
    browser.post("/_isr/login", data={"secret": SECRET})
    answer = browser.get("/_isr/")
    assert answer.status_code == 200
    assert status_of(answer) == ""


def test_leaves_the_site_other_paths_under_its_prefix(browse: Callable[..., Browser]) -> None:
    browser = browse(secret=SECRET, url_prefix="/about")
    assert browser.get("/about/us").text == "us"
    assert browser.get("/about/pages").status_code == 401


@pytest.mark.parametrize("host", ["www.example.com", "tenant.example.com"])
def test_is_beside_the_hosts_and_hooks_of_a_site(tmp_path: Path, host: str) -> None:
    app = flask_app(tmp_path, host_matching=True, static_host="www.example.com")
    app.before_request(lambda: ("Log in first, and send the token of the form.", 403))
    browser, url = flask_browser(app, secret=SECRET), f"http://{host}"
    assert browser.post("/_isr/login", data={"secret": SECRET}, base_url=url).status_code == 303
    assert browser.get("/_isr/", base_url=url).status_code == 200
    token = {"Authorization": f"Bearer {SECRET}"}
    call = {"json": {"tags": ["posts"]}, "headers": token}
    assert browser.post("/_isr/revalidate", base_url=url, **call).json["revalidated"] is True  # type: ignore[arg-type]
    assert browser.get("/", base_url=url).status_code == 403


def test_lets_receivers_of_signals_use_the_app(browse: Callable[..., Browser]) -> None:
    browser, names = browse(secret=SECRET), []

    def purge(sender: object, **extra: object) -> None:
        names.append(current_app.name)

    call = {"json": {"tags": ["posts"]}, "headers": {"Authorization": f"Bearer {SECRET}"}}
    with invalidated.connected_to(purge):
        browser.post("/_isr/revalidate", **call)  # type: ignore[arg-type]
    assert names == ["site"]


def test_logs_in_to_the_metrics_as_well(browse: Callable[..., Browser]) -> None:
    browser = browse(secret=SECRET)
    assert browser.get("/_isr/metrics").status_code == 401
    browser.post("/_isr/login", data={"secret": SECRET})
    assert "wsgi_isr_hits_total" in browser.get("/_isr/metrics").text
