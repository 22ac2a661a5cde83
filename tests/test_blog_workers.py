"""The example blog as README.md starts it: four gunicorn workers over one store in files."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import typing as t
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from blogs import EXAMPLE
from blogs import example as example
from blogs import filled as filled
from steps import PATIENCE, wait_until

pytestmark = pytest.mark.processes

WORKERS = 4
VISITS = 40


class Answer(t.NamedTuple):
    status: int
    headers: dict[str, str]
    text: str

    @property
    def is_hit(self) -> bool:
        return self.headers.get("Cache-Status", "").startswith("isr; hit; ttl=")


class Blog:
    """The blog's folder, and its server while it runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.environment = {
            **os.environ,
            "BLOG_DATABASE": str(folder / "blog.db"),
            "FLASK_ISR_CACHE": f"file://{folder}/pages",
        }
        self._process: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        bind = f"127.0.0.1:{self._port}"
        command = ["gunicorn", "-w", str(WORKERS), "--threads", "4", "-b", bind]
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command, "app:create_app()"],
            cwd=EXAMPLE,
            env=self.environment,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self._answers)

    def _answers(self) -> bool:
        try:
            return self.get("/static/style.css").status == 200
        except OSError:
            return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(PATIENCE)
            self._process = None

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``flask isr``, in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "flask", "--app", "app", "isr", *arguments],
            cwd=EXAMPLE,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def get(self, path: str) -> Answer:
        """A visitor with a connection of his own, so that any worker may get it."""
        return self._ask("GET", path)

    def post(self, path: str, **fields: str) -> Answer:
        return self._ask("POST", path, urlencode(fields))

    def _ask(self, method: str, path: str, body: str | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        try:
            headers = {"Content-Type": "application/x-www-form-urlencoded"} if body else {}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.headers), answer.read().decode())
        finally:
            connection.close()


@pytest.fixture
def blog(filled: Path, tmp_path: Path) -> Iterator[Blog]:
    shutil.copy(filled, tmp_path / "blog.db")
    blog = Blog(tmp_path)
    yield blog
    blog.stop()


class TestSaving:
    def test_shows_no_old_page_to_anybody_any_more(self, blog: Blog) -> None:
        blog.start()
        paths = ("/", "/post/abc", "/tag/language")
        for path in paths * VISITS:
            blog.get(path)
        for number in range(5):
            title = f"abc, edition {number}"
            saved = blog.post("/edit/abc", title=title, body="New", tags="language")
            assert saved.status == 302
            for path in paths * (VISITS // 4):
                assert title in blog.get(path).text

    def test_a_deleted_post_is_gone_in_all_workers_and_after_a_restart(self, blog: Blog) -> None:
        blog.start()
        for _ in range(VISITS):
            assert blog.get("/post/abc").status == 200
        blog.post("/delete/abc")
        assert {blog.get("/post/abc").status for _ in range(VISITS)} == {404}
        blog.stop()
        blog.start()
        answers = [blog.get("/post/abc") for _ in range(VISITS)]
        assert {(answer.status, answer.is_hit) for answer in answers} == {(404, True)}
        blog.post("/publish/abc")
        assert {blog.get("/post/abc").status for _ in range(VISITS)} == {200}


class TestCommands:
    def test_what_is_prerendered_before_the_server_starts_is_a_hit_in_every_worker(
        self, blog: Blog
    ) -> None:
        with contextlib.closing(sqlite3.connect(blog.environment["BLOG_DATABASE"])) as db:
            # Enough for two pages of a list.
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("DELETE FROM posts WHERE slug != 'json' AND slug NOT LIKE 'encodings.cp%'")
            db.commit()
        done = blog.command("prerender", "--base-url", blog.address)
        assert done.returncode == 0
        assert "no generator covers" not in done.stderr
        assert "/post/json\n" in done.stdout
        assert "/?page=2\n" in done.stdout
        assert "/tag/encodings?page=2\n" in done.stdout
        blog.start()
        for path in ("/", "/?page=2", "/post/json", "/tag", "/tag/encodings?page=2"):
            assert all(blog.get(path).is_hit for _ in range(VISITS // 4))
        again = blog.command("prerender", "--base-url", blog.address)
        assert " skipped" in again.stdout.splitlines()[-1]

    def test_hold_in_all_workers_at_once(self, blog: Blog) -> None:
        blog.start()
        for _ in range(VISITS):
            assert blog.get("/post/abc").status == 200
        done = blog.command("revalidate", "--base-url", blog.address, "/post/abc")
        assert done.returncode == 0, done.stderr
        assert {"because of a revalidate" in blog.get("/post/abc").text for _ in range(VISITS)} == {
            True
        }
        listed = blog.command("list")
        (line,) = [line for line in listed.stdout.splitlines() if "/post/abc" in line]
        assert line.split()[1:3] == ["200", "fresh"]


class TestShell:
    def test_is_shown_while_a_post_is_rendered_for_the_first_time(self, blog: Blog) -> None:
        blog.environment["BLOG_SHELL"] = "1"
        blog.start()
        shell = blog.get("/post/abc")
        assert "It appears here in a moment" in shell.text
        assert shell.headers["Cache-Control"] == "private, no-store"
        assert "Refresh" in shell.headers
        wait_until(lambda: blog.get("/post/abc").is_hit)
        assert "<h1>abc</h1>" in blog.get("/post/abc").text
