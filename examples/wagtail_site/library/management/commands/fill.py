"""``manage.py fill``: the database, an editor, and a page for each documented module."""

from __future__ import annotations

import ast
import html
import io
import sysconfig
import textwrap
import typing as t
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.files.base import ContentFile
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandParser
from django.db import connection, transaction
from PIL import Image as Picture
from wagtail.images.models import Image
from wagtail.models import Page, Site

from library.models import HomePage, Maintainer, ModulePage, Notice, SubjectPage

SUBJECTS = {
    "Concurrency": "asyncio concurrent multiprocessing queue sched selectors subprocess threading",
    "Data types": "array bisect calendar collections copy dataclasses datetime enum functools "
    "heapq numbers operator pprint queue reprlib types typing weakref zoneinfo",
    "Files": "bz2 configparser csv fileinput fnmatch glob gzip lzma pathlib shelve shutil "
    "sqlite3 stat tarfile tempfile zipfile",
    "Internet": "email ftplib html http imaplib ipaddress json mailbox mimetypes smtplib socket "
    "socketserver ssl urllib webbrowser wsgiref xml xmlrpc",
    "Language": "abc ast code compileall contextlib dis importlib inspect keyword pdb pickle "
    "profile symtable token tokenize traceback unittest warnings",
    "Text": "argparse cmd codecs difflib gettext locale optparse re string stringprep textwrap",
}


class Command(BaseCommand):
    help = "Make the database and fill it with pages about Python's standard library."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--limit", type=int, help="modules of each subject")

    def handle(self, *args: t.Any, **options: t.Any) -> None:
        settings.DATA.mkdir(parents=True, exist_ok=True)
        call_command("migrate", verbosity=0)
        with connection.cursor() as cursor:
            # Readers and a writer work at the same time. The file remembers it.
            cursor.execute("PRAGMA journal_mode = WAL")
        if HomePage.objects.exists():
            self.stdout.write("The site is there already.")
            return
        with transaction.atomic():
            count = fill(options["limit"])
        self.stdout.write(f"{count} pages. Log in at /admin/ as editor, password editor.")


def fill(limit: int | None) -> int:
    get_user_model().objects.create_superuser("editor", "editor@example.com", "editor")
    Notice.objects.create(text="Read the docstrings.")
    maintainer = Maintainer.objects.create(name="the core developers")
    root = Page.objects.get(depth=1)
    home = root.add_child(
        instance=HomePage(title="The library", intro="<p>What Python comes with.</p>")
    )
    Site.objects.update(root_page=home)
    Page.objects.get(depth=2, slug="home").delete()
    home.slug = "home"
    home.save()
    for number, (subject, modules) in enumerate(SUBJECTS.items()):
        page = home.add_child(instance=SubjectPage(title=subject, show_in_menus=True))
        picture = _picture(subject, number)
        for name, docstring in islice(_docstrings(modules.split()), limit):
            summary, _, text = docstring.partition("\n\n")
            paragraphs = (f"<p>{html.escape(part)}</p>" for part in text.split("\n\n"))
            page.add_child(
                instance=ModulePage(
                    title=name,
                    summary=textwrap.shorten(summary, 300),
                    body="".join(paragraphs),
                    picture=picture,
                    maintainer=maintainer,
                )
            )
    return Page.objects.count() - 1


def _picture(subject: str, number: int) -> t.Any:
    content = io.BytesIO()
    Picture.new("RGB", (320, 200), f"hsl({number * 55}, 60%, 60%)").save(content, "PNG")
    file = ContentFile(content.getvalue(), f"{subject}.png")
    return Image.objects.create(title=subject, file=file)


def _docstrings(modules: list[str]) -> Iterator[tuple[str, str]]:
    """Of modules and packages. Sources are parsed, never imported."""
    folder = Path(sysconfig.get_path("stdlib"))
    for name in modules:
        paths = [folder / f"{name}.py", *sorted((folder / name).glob("*.py"))]
        for path in paths:
            if not path.is_file() or path.stem.startswith("_") and path.stem != "__init__":
                continue
            with warnings.catch_warnings(action="ignore"):
                docstring = ast.get_docstring(ast.parse(path.read_bytes()))
            if docstring:
                module = name if path.stem in (name, "__init__") else f"{name}.{path.stem}"
                yield module, docstring
