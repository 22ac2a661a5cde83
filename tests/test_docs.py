"""The documentation is true: its programs run, and what it names exists."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
import types
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import status_of
from flask import Flask
from flasks import flask_app, flask_browser
from werkzeug.test import Client

from wsgi_isr import ISRMiddleware, signals
from wsgi_isr.cli import group
from wsgi_isr.flask import ISR
from wsgi_isr.store.opening import KINDS, kind_of
from wsgi_isr.testing import StoreContract

ROOT = Path(__file__).parents[1]
TEXTS = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in (
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        ROOT / "examples" / "flask_blog" / "README.md",
    )
}
PAGE, STORES = TEXTS["docs/flask.md"], TEXTS["docs/stores.md"]
# All but what is longer by its nature: generated, or one row a test.
SHORT = set(TEXTS) - {"docs/benchmarks.md"}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.+?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """All Python blocks of docs/flask.md, as one program in a folder of its own."""
    (tmp_path / "flask_page.py").write_text("\n".join(blocks(PAGE, "python")), "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flask_page", raising=False)
    module = importlib.import_module("flask_page")
    yield module
    module.isr.middleware.close()


@pytest.fixture
def app(module: types.ModuleType) -> Flask:
    app: Flask = module.app
    return app


class TestTheFlaskPage:
    def test_all_generators_cover_their_pages(self, module: types.ModuleType, app: Flask) -> None:
        with pytest.warns(UserWarning, match="'report'") as caught:
            assert sorted(module.isr.prerender_paths(app)) == ["/", "/blog/hello"]
        assert len(caught) == 1

    def test_a_view_changes_its_page_while_it_runs(
        self, module: types.ModuleType, app: Flask
    ) -> None:
        client = app.test_client()
        module.POSTS["news"] = "breaking news"
        client.get("/blog/news")
        assert status_of(client.get("/blog/news")).startswith("isr; hit; ttl=")
        (page,) = module.isr.middleware.pages()
        assert page.ttl <= 5
        assert set(page.tags) == {"posts", "post:news", "breaking"}
        assert client.get("/blog/none").status_code == 404

    def test_a_shell_and_then_the_page(self, module: types.ModuleType, app: Flask) -> None:
        client = app.test_client()
        shell = client.get("/report/tea")
        assert (shell.text, shell.headers["Refresh"]) == ("tea is on its way", "1")
        module.isr.middleware.close()
        assert client.get("/report/tea").text == "The report on tea"

    def test_what_is_saved_is_seen_everywhere(self, app: Flask) -> None:
        client = app.test_client()
        assert client.get("/").text == "hello"
        client.get("/blog/second")
        answer = client.post("/save/second/A second post", follow_redirects=True)
        assert answer.text == "A second post"
        assert client.get("/").text == "hello<br>second"

    def test_draft_mode(self, module: types.ModuleType, app: Flask) -> None:
        visitor, editor = app.test_client(), app.test_client()
        visitor.get("/blog/hello")
        editor.post("/preview")
        module.POSTS["hello"] = "A draft"
        assert editor.get("/blog/hello").text == "A draft"
        assert visitor.get("/blog/hello").text == "Hello, world"

    def test_a_cdn_is_purged(
        self, module: types.ModuleType, app: Flask, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[dict[str, t.Any]] = []
        monkeypatch.setattr(module, "call_cdn", lambda **what: calls.append(what))
        client = app.test_client()
        answer = client.get("/blog/hello")
        assert answer.headers["Cache-Tag"] == "post:hello,posts"
        client.post("/save/hello/new")
        assert {"paths": (), "tags": ("posts",)} in calls
        assert {"paths": ("/blog/hello",), "tags": ()} in calls
        with app.app_context():
            module.isr.middleware.invalidate("/blog/*")
        assert calls[-1] == {"everything": True}
        app.view_functions["post"] = lambda slug: ("no", 403)
        module.isr.middleware.revalidate("http://localhost/blog/hello")
        assert calls[-1] == {"urls": ["http://localhost/blog/hello"]}

    def test_the_call_that_is_shown_is_taken_by_the_route(self, tmp_path: Path) -> None:
        found = re.search(r"--json '(.+?)' https://www.example.com(\S+)", PAGE)
        assert found
        app = flask_app(tmp_path)
        app.get("/blog/<slug>")(lambda slug: (slug, {"ISR-Revalidate": "60"}))
        browser = flask_browser(app, secret="correct horse battery")
        headers = {"Authorization": "Bearer correct horse battery"}
        answer = browser.post(found[2], json=json.loads(found[1]), headers=headers)
        assert (answer.status_code, answer.json["revalidated"]) == (200, True)

    def test_the_table_of_config_keys_is_complete(self) -> None:
        listed = set(re.findall(r"^\| `ISR_(\w+)` \|", PAGE, re.MULTILINE))
        arguments = set(inspect.signature(ISRMiddleware).parameters) - {"app"}
        assert {name.lower() for name in listed} == arguments | {"secret", "url_prefix"}

    def test_the_table_of_arguments_is_that_of_the_decorator(self, module: t.Any) -> None:
        listed = set(re.findall(r"^\| `([a-z]+)` \|", PAGE, re.MULTILINE))
        given = inspect.signature(type(module.isr_page).__call__).parameters
        assert listed == set(given) - {"self", "view"}


class TestTheStoresPage:
    def test_says_of_each_kind_what_it_promises(self) -> None:
        words = {True: "yes", False: "no", "process": "one process", "network": "all machines"}
        words["machine"] = "the workers of a machine"
        expected = []
        for kind in KINDS.values():
            one_render = "yes" if kind.one_render else "best effort"
            cells = (words[kind.shared], words[kind.exact], one_render, words[kind.lists])
            expected.append([*cells, words[kind.wants], words[kind.durable]])
        rows = [line.strip("| ").split(" | ") for line in STORES.splitlines()]
        found = [cells[1:] for cells in rows if len(cells) == 7 and cells[0] != "`cache`"]
        assert found == expected

    def test_its_programs_run(self, tmp_path: Path) -> None:
        pytest.importorskip("redis")
        found: dict[str, t.Any] = {}
        for block in blocks(STORES, "python"):
            names: dict[str, t.Any] = {}
            exec(block.replace("/var/cache/site", str(tmp_path)), names)
            found |= names
            if "app" in names:
                assert Client(names["app"]).get("/").text == "{'EUR': 1.0}"
                names["app"].close()
        kind = kind_of(found["cache"])
        assert kind is not None and kind.name == "redis"
        assert issubclass(found["TestMyStore"], StoreContract)


class TestWhatIsNamed:
    def test_config_keys_exist(self) -> None:
        arguments = {*inspect.signature(ISRMiddleware).parameters, "secret", "url_prefix"}
        for name, text in TEXTS.items():
            for key in re.findall(r"(?:FLASK_)?ISR_([A-Z_]+[A-Z])\b", text):
                assert key.lower() in arguments, (name, key)

    def test_urls_of_stores_name_a_store(self) -> None:
        for package in ("redis", "valkey", "pymemcache"):
            pytest.importorskip(package)
        found = set()
        for name, text in TEXTS.items():
            # What stands alone in backticks or quotes, and names a whole store.
            for url in re.findall(
                r"[`\"]((?:memory|file|redis|rediss|valkey|valkeys|memcached)(?:\+\w+)?://[^`\"\s…]*)",
                text,
            ):
                scheme, _, rest = url.partition("://")
                found.add(scheme)
                if rest or scheme == "memory":
                    assert kind_of(url) is not None, (name, url)
        schemes = {"memory", "file", "redis", "rediss", "valkey", "valkeys", "memcached"}
        assert found >= schemes | {"redis+cluster", "redis+sentinel"}
        for scheme in ("valkey+cluster", "rediss+cluster"):
            assert kind_of(f"{scheme}://a,b") is not None
        assert kind_of("valkey+sentinel://a/service") is not None

    def test_commands_and_their_options_exist(self) -> None:
        seen = set()
        for name, text in TEXTS.items():
            for command, rest in re.findall(r"(?:flask isr|MODULE:APP) ([a-z]+)([^`\n]*)", text):
                seen.add(command)
                assert command in group.commands, (name, command)
                known = {o for p in group.commands[command].params for o in p.opts}
                assert set(re.findall(r"--[\w-]+", rest)) <= known, (name, command, rest)
        listed = re.search(r"\(extra `cli`\):\n(.+?)\.\n", TEXTS["README.md"], re.DOTALL)
        assert listed
        assert set(re.findall(r"`(\w+)`", listed[1])) == set(group.commands)
        assert seen >= {"prerender", "prune", "regenerate", "list"}

    def test_signals_exist(self) -> None:
        named = re.findall(r"signal\s+`(\w+)`", "\n".join(TEXTS.values()))
        imported = re.findall(r"from wsgi_isr\.signals import (.+)", PAGE)
        names = {*named, *", ".join(imported).split(", ")}
        assert names >= {"store_failed", "invalidated", "page_withdrawn"}
        assert not [name for name in names if not hasattr(signals, name)]

    def test_methods_and_arguments_exist(self) -> None:
        methods = {*dir(ISRMiddleware), *dir(ISR)}
        for name, text in TEXTS.items():
            for method in re.findall(r"\bisr\.(?:middleware\.)?(\w+)\(", text):
                assert method in methods, (name, method)

    def test_links_lead_somewhere(self) -> None:
        for name, text in TEXTS.items():
            for link in re.findall(r"\]\(([^)#\s]+)", text):
                if "://" not in link:
                    assert ((ROOT / name).parent / link).exists(), (name, link)


@pytest.mark.parametrize("name", sorted(SHORT))
def test_pages_are_short_and_speak_of_nobody_as_he(name: str) -> None:
    text = TEXTS[name]
    assert text.count("\n") <= (205 if name == "README.md" else 200)
    assert not re.findall(r"\b(?:he|him|his|whoever)\b", text)
