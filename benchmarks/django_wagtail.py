"""The Wagtail example beside other caches: ``python -m benchmarks.django_wagtail``.

gunicorn with four workers over SQLite. Caches keep their pages in files, with Django's
file-based backend where it is not wsgi-isr.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import typing as t
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

from .processes import running
from .results import Table, machine, markdown
from .subjects import ROOT
from .throughput import Load, parse

SITE = ROOT / "examples" / "wagtail_site"
SUBJECTS = ("plain", "Django's cache", "wagtail-cache", "wagtail-cache, cleared", "wsgi-isr")
#: A page with a picture and a snippet, a list that shows it, and the front page.
PAGE, LIST, FRONT = "/text/string/", "/text/", "/"
#: All arrive at one moment.
STORM = 64
#: After an edit, each on a connection of their own.
VISITS = 200
CONNECTIONS = 16
ROUNDS = 3
GUNICORN = [
    sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--workers", "4",
    "--worker-class", "gthread", "--threads", "16", "--no-control-socket",
    "benchmarks.django_wagtail:application()",
]  # fmt: skip

PUBLISH = """
page = ModulePage.objects.get(slug="string")
page.title = page.summary = "An edited title"
page.save_revision().publish()
"""
HIDE = """
page = ModulePage.objects.get(slug="string")
PageViewRestriction.objects.create(page=page.page_ptr, restriction_type="login")
"""
EDITOR = """
import django
django.setup()
from django.db import transaction
from library.models import ModulePage
from wagtail.models import PageViewRestriction
{clear}
with transaction.atomic():
{change}
"""
#: As its documentation has it; nothing is cleared without.
CLEAR = """
from wagtail.signals import page_published
from wagtailcache.cache import clear_cache
page_published.connect(lambda **_: clear_cache(), weak=False)
"""


def application() -> t.Any:
    """What gunicorn serves."""
    ours = os.environ["BENCHMARK_SUBJECT"] == "wsgi-isr"
    module = importlib.import_module("wsgi_isr.django" if ours else "django.core.wsgi")
    return module.get_wsgi_application()


def count(request: t.Any) -> dict[str, t.Any]:
    """A context processor that notes each render."""
    record = Path(os.environ["LIBRARY_DATA"], "renders")
    descriptor = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{request.path}\n".encode())
    os.close(descriptor)
    return {}


class Site:
    """The site under one cache, with a folder of its own."""

    def __init__(self, subject: str, filled: Path, folder: Path) -> None:
        shutil.copytree(filled, folder)
        self.folder = folder
        self._subject = subject
        self.environ = environ(subject, folder)

    @contextlib.contextmanager
    def served(self) -> Iterator[None]:
        with running(GUNICORN, self.folder, environ=self.environ) as self._program:
            for _ in range(20):
                # Every worker is there, and has imported what it needs.
                self.get("/admin/login/")
            yield

    def edit(self, change: str) -> None:
        """In a process of its own, as a command or a task queue does."""
        code = EDITOR.format(
            clear=CLEAR if self._subject.endswith("cleared") else "",
            change="\n".join(f"    {line}" for line in change.strip().splitlines()),
        )
        command = [sys.executable, "-c", code]
        subprocess.run(command, env=os.environ | self.environ, check=True, capture_output=True)

    def get(self, path: str) -> str:
        connection = HTTPConnection("127.0.0.1", self._program.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", path)
            return connection.getresponse().read().decode()

    def renders(self, path: str) -> int:
        record = self.folder / "renders"
        return record.read_text().splitlines().count(path) if record.exists() else 0

    def storm(self, path: str) -> int:
        """Renders for all who come to a page that nobody has seen yet."""
        before = self.renders(path)
        barrier = threading.Barrier(STORM)

        def visit(_: int) -> None:
            barrier.wait()
            self.get(path)

        with ThreadPoolExecutor(STORM) as pool:
            list(pool.map(visit, range(STORM)))
        return self.renders(path) - before

    def load(self, path: str, seconds: int) -> Load:
        """Of a page that has been seen."""
        for _ in range(20):
            self.get(path)
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency"]
        command.append(self._program.url(path))
        before = self._program.processor_time()
        text = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        return parse(text, self._program.processor_time() - before)

    def old(self, path: str) -> int:
        """Of all who come after the edit, those who do not get it."""
        return sum("An edited title" not in self.get(path) for _ in range(VISITS))

    def shown(self, path: str) -> int:
        """Of all who come without an account, those who get the page."""
        return sum("ascii_lowercase" in self.get(path) for _ in range(VISITS))


def environ(subject: str, folder: Path) -> dict[str, str]:
    return {
        "BENCHMARK_SUBJECT": subject,
        "DJANGO_SETTINGS_MODULE": "benchmarks.django_settings",
        "LIBRARY_DATA": str(folder),
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "src", SITE))),
    }


def measure(seconds: int) -> Table:
    table: Table = {}
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        filled = Path(temporary, "filled")
        command = [sys.executable, "manage.py", "fill"]
        environment = os.environ | environ("plain", filled)
        subprocess.run(command, cwd=SITE, env=environment, check=True, capture_output=True)
        sites: dict[str, Site] = {}
        for number, subject in enumerate(SUBJECTS):
            sites[subject] = Site(subject, filled, Path(temporary, str(number)))
            stack.enter_context(sites[subject].served())
        loads: dict[str, list[Load]] = {subject: [] for subject in SUBJECTS}
        # By turns, so that a machine that changes its speed changes it for all.
        for _ in range(ROUNDS):
            for subject, site in sites.items():
                loads[subject].append(site.load(PAGE, seconds))
        for subject, site in sites.items():
            each = [load.processor_time / load.requests * 1e6 for load in loads[subject]]
            table[subject] = {
                "requests/s": statistics.median(load.rate for load in loads[subject]),
                "CPU µs": statistics.median(each),
                "renders in a storm": site.storm("/files/shutil/"),
            }
            for path in (LIST, FRONT):
                site.get(path)
            site.edit(PUBLISH)
            table[subject]["old pages"] = site.old(PAGE)
            table[subject]["old lists"] = site.old(LIST)
            site.edit(HIDE)
            table[subject]["private page shown"] = site.shown(PAGE)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.django_wagtail")
    parser.add_argument("--seconds", type=int, default=5, help="of load in each of three rounds")
    print(markdown(measure(parser.parse_args().seconds)))
    packages = ("django", "gunicorn", "wagtail", "wagtail-cache")
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    print(f"\n{STORM} visitors in a storm, {VISITS} after each edit. {machine()}, {found}.")


if __name__ == "__main__":
    main()
