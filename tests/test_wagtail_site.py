"""The Wagtail example as README.md starts it: four gunicorn workers over SQLite."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from steps import PATIENCE, wait_until
from wagtails import EXAMPLE

pytestmark = [pytest.mark.processes, pytest.mark.slow]

WORKERS = 4
VISITS = 24
PATHS = ("/", "/text/", "/text/argparse/")


class Browser:
    """Each request on a connection of its own, so that any worker may get it."""

    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}"
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())

    def get(self, path: str, data: dict[str, str] | None = None) -> tuple[int, str, str]:
        """Status, text, and what the cache says."""
        body = None if data is None else urlencode(data).encode()
        try:
            with self._opener.open(self._address + path, body, 6 * PATIENCE) as answer:
                text, headers, status = answer.read().decode(), answer.headers, answer.status
        except urllib.error.HTTPError as error:
            with error:
                text, headers, status = error.read().decode(), error.headers, error.code
        return status, text, headers.get("Cache-Status", "")

    def submit(self, path: str, **fields: str) -> None:
        """A form of Wagtail's admin."""
        found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', self.get(path)[1])
        assert found, path
        status, _, _ = self.get(path, {"csrfmiddlewaretoken": found[1], **fields})
        assert status == 200


class Site:
    """The site's folder, and its server while it runs."""

    def __init__(self, folder: Path) -> None:
        self._environment = {**os.environ, "LIBRARY_DATA": str(folder)}
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.browser = Browser(self.port)
        self._process: subprocess.Popen[bytes] | None = None

    def manage(self, *arguments: str) -> str:
        command = [sys.executable, "manage.py", *arguments]
        done = subprocess.run(
            command, cwd=EXAMPLE, env=self._environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self) -> None:
        bind = f"127.0.0.1:{self.port}"
        command = ["gunicorn", "-w", str(WORKERS), "-b", bind, "--chdir", str(EXAMPLE)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command, "library.wsgi"],
            env=self._environment,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self._listens)
        # A worker has to import all of Wagtail first.
        assert self.browser.get("/admin/login/")[0] == 200

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(PATIENCE)

    def visit(self, *paths: str) -> list[tuple[int, str, str]]:
        return [self.browser.get(path) for path in paths * VISITS]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("library"))
    assert "pages. Log in" in site.manage("fill", "--limit", "2")
    try:
        site.start()
        yield site
    finally:
        site.stop()


def editing(code: str) -> str:
    return (
        "from library.models import ModulePage\n"
        "from wagtail.models import PageViewRestriction\n"
        "page = ModulePage.objects.get(slug='argparse')\n"
        f"{code}"
    )


class TestFourWorkers:
    def test_render_a_page_once(self, site: Site) -> None:
        answers = site.visit("/files/")
        assert len({text for _, text, _ in answers}) == 1
        assert all(cache.startswith("isr; hit") for _, _, cache in answers[1:])

    def test_show_what_another_process_publishes(self, site: Site) -> None:
        site.visit(*PATHS)
        code = "page.title = 'An edited title'; page.save_revision().publish()"
        site.manage("shell", "-c", editing(code))
        assert all("An edited title" in text for _, text, _ in site.visit(*PATHS))

    def test_show_nobody_what_is_private(self, site: Site) -> None:
        site.visit(*PATHS)
        code = "PageViewRestriction.objects.create(page=page.page_ptr, restriction_type='login')"
        site.manage("shell", "-c", editing(code))
        answers = site.visit(PATHS[-1])
        assert not [text for _, text, _ in answers if "Looked after by" in text]
        site.manage("shell", "-c", editing("PageViewRestriction.objects.all().delete()"))
        assert "Looked after by" in site.browser.get(PATHS[-1])[1]

    def test_follow_an_editor_who_unpublishes_a_page(self, site: Site) -> None:
        site.visit(*PATHS)
        editor = Browser(site.port)
        editor.submit("/admin/login/", username="editor", password="editor", next="/admin/")
        assert "wagtail-userbar" in editor.get("/text/")[1]
        key = re.search(r"/admin/pages/(\d+)/edit/", editor.get("/text/argparse/")[1])
        assert key, "the userbar has no link to the editor"
        editor.submit(f"/admin/pages/{key[1]}/unpublish/")
        assert {status for status, _, _ in site.visit(PATHS[-1])} == {404}
        assert not [text for _, text, _ in site.visit("/text/") if "/text/argparse/" in text]


def test_the_site_passes_its_checks(site: Site) -> None:
    assert "no issues" in site.manage("check")
