"""The program in docs/flask.md is run, and does what is said there."""

from __future__ import annotations

import importlib
import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import status_of
from flask import Flask
from flasks import flask_app
from flasks import flask_browser

from wsgi_isr.flask import extension

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "flask.md").read_text("utf-8")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """All Python blocks of the page, as one program in a folder of its own."""
    blocks = re.findall(r"^```python\n(.+?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "flask_page.py").write_text("\n".join(blocks), "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flask_page", raising=False)
    module = importlib.import_module("flask_page")
    yield module
    module.isr.middleware.close()


@pytest.fixture
def app(module: types.ModuleType) -> Flask:
    app: Flask = module.app
    return app


def test_all_keys_that_it_lists_exist() -> None:
    keys = set(re.findall(r"`ISR_(\w+)`", PAGE))
    known = {name.upper() for name in (*extension._OPTIONS, *extension._OWN_OPTIONS)}
    assert keys <= known
    # Those that the middleware has not, and one that deploys are about.
    assert {"ENABLED", "CACHE", "BUILD_ID", "SECRET", "URL_PREFIX", "PREVIOUS_BUILDS"} <= keys


def test_all_generators_cover_their_pages(module: types.ModuleType, app: Flask) -> None:
    with pytest.warns(UserWarning, match="'report'") as caught:
        assert sorted(module.isr.prerender_paths(app)) == ["/", "/blog/hello"]
    assert len(caught) == 1


def test_a_view_changes_its_page_while_it_runs(module: types.ModuleType, app: Flask) -> None:
    client = app.test_client()
    module.POSTS["news"] = "breaking news"
    client.get("/blog/news")
    assert status_of(client.get("/blog/news")).startswith("isr; hit; ttl=")
    (page,) = module.isr.middleware.pages()
    assert page.ttl <= 5
    assert set(page.tags) == {"posts", "post:news", "breaking"}
    assert client.get("/blog/none").status_code == 404


def test_a_shell_and_then_the_page(module: types.ModuleType, app: Flask) -> None:
    client = app.test_client()
    assert client.get("/report/tea").text == "tea is on its way"
    module.isr.middleware.close()
    assert client.get("/report/tea").text == "The report on tea"


def test_what_is_saved_is_seen_everywhere(app: Flask) -> None:
    client = app.test_client()
    assert client.get("/").text == "hello"
    client.get("/blog/second")
    answer = client.post("/save/second/A second post", follow_redirects=True)
    assert answer.text == "A second post"
    assert client.get("/").text == "hello<br>second"


def test_draft_mode(module: types.ModuleType, app: Flask) -> None:
    visitor, editor = app.test_client(), app.test_client()
    visitor.get("/blog/hello")
    editor.post("/preview")
    module.POSTS["hello"] = "A draft"
    assert editor.get("/blog/hello").text == "A draft"
    assert visitor.get("/blog/hello").text == "Hello, world"


def test_the_route_takes_the_call_that_is_shown(tmp_path: Path) -> None:
    found = re.search(r"--json '(.+?)' https://www.example.com(\S+)", PAGE)
    assert found
    app = flask_app(tmp_path)
    app.get("/blog/<slug>")(lambda slug: (slug, {"ISR-Revalidate": "60"}))
    browser = flask_browser(app, secret="x")
    headers = {"Authorization": "Bearer x"}
    answer = browser.post(found[2], json=json.loads(found[1]), headers=headers)
    assert (answer.status_code, answer.json["revalidated"]) == (200, True)
