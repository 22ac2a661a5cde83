"""The example blog's first start: posts are made of docstrings."""

from __future__ import annotations

import sqlite3
import threading
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blogs import app as app
from blogs import editor as editor
from blogs import example as example
from blogs import filled as filled
from blogs import form, module
from blogs import visitor as visitor
from flask import Flask
from flask.testing import FlaskClient

pytestmark = pytest.mark.usefixtures("example")


class TestFirstStart:
    def test_there_is_a_post_for_each_documented_module(self, filled: Path) -> None:
        db = sqlite3.connect(filled)
        rows = dict(db.execute("SELECT slug, summary FROM posts"))
        db.close()
        assert len(rows) >= 200
        assert rows["json"].startswith("JSON (JavaScript Object Notation)")
        assert {"asyncio.tasks", "__future__", "sys"} <= set(rows)
        assert not [slug for slug in rows if slug.startswith(("test", "idlelib"))]

    def test_all_posts_are_valid_text(self, filled: Path) -> None:
        rest = module("blog.rest")
        db = sqlite3.connect(filled)
        bodies = dict(db.execute("SELECT slug, body FROM posts"))
        db.close()
        assert [slug for slug in bodies if rest.complaints(bodies[slug])] == []

    def test_of_several_workers_one_fills_the_database(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stdlib, database = module("blog.stdlib"), module("blog.database")
        calls: list[int] = []

        def one_module() -> list[t.Any]:
            calls.append(1)
            return [stdlib.Module("abc", "Abstract", "", ("language",))]

        def start(app: Flask) -> None:
            barrier.wait()
            database.init_app(app)

        monkeypatch.setattr(stdlib, "documented_modules", one_module)
        barrier = threading.Barrier(4)
        apps = [Flask("blog") for _ in range(4)]
        for each in apps:
            each.config["DATABASE"] = tmp_path / "new" / "blog.db"
        with ThreadPoolExecutor(4) as workers:
            list(workers.map(start, apps))
        assert calls == [1]
        assert len({each.config["SECRET_KEY"] for each in apps} - {None}) == 1

    def test_a_second_start_keeps_what_was_written(self, app: Flask, editor: FlaskClient) -> None:
        editor.post("/edit/json", data=form(title="Kept"))
        again: Flask = module("blog").create_app(
            {"DATABASE": app.config["DATABASE"], "ISR_CACHE": "memory://"}
        )
        assert "Kept" in again.test_client().get("/post/json").text


class TestText:
    def test_markup_is_rendered(self) -> None:
        html = module("blog.rest").render("Some *text* and ``code``.")
        assert "<p>Some <em>text</em> and <span" in html
        assert ">code</span>.</p>" in html

    @pytest.mark.parametrize(
        "text",
        [
            "<script>alert(1)</script>",
            ".. raw:: html\n\n   <script>alert(1)</script>",
            ".. include:: /etc/hostname",
            "`a <javascript:alert(1)>`_",
            "Title\n=\n\n <script>alert(1)</script>",
        ],
    )
    def test_nothing_dangerous_gets_through(self, text: str) -> None:
        html = module("blog.rest").render(text)
        assert "<script" not in html
        assert 'href="javascript' not in html

    def test_a_text_with_errors_is_shown_as_typed(self) -> None:
        html = module("blog.rest").render(".. nonsense::\n\n   <b>")
        assert html == '<pre class="plain">.. nonsense::\n\n   &lt;b&gt;</pre>'

    @pytest.mark.parametrize(
        ("docstring", "rest"),
        [
            ("Usage:\n\n    a = 1\n    b = 2", "Usage::\n\n    a = 1\n    b = 2"),
            ("Usage:\n\na = 1   # one", "Usage::\n\n    a = 1   # one"),
            ("Call f(*args).", "Call f(\\*args)."),
            ("Keep ``*`` and *this*.", "Keep ``*`` and *this*."),
            ("  - one\n  - two", "- one\n- two"),
            ("- one\n      more", "- one\n  more"),
            ("Part\n====\n\nText", "Part\n----\n\nText"),
        ],
    )
    def test_a_docstring_becomes_markup(self, docstring: str, rest: str) -> None:
        assert module("blog.docstring").to_rest(docstring) == rest

    @pytest.mark.parametrize(
        ("name", "is_package", "tags"),
        [
            ("asyncio.tasks", False, ("asyncio", "concurrency")),
            ("asyncio", True, ("asyncio", "concurrency")),
            ("heapq", False, ("data-types",)),
            ("antigravity", False, ("other",)),
        ],
    )
    def test_tags_come_from_the_names(
        self, name: str, is_package: bool, tags: tuple[str, ...]
    ) -> None:
        assert module("blog.stdlib").tags(name, is_package) == tags
