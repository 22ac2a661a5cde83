"""What tests do to the project, and all that their lines of code name."""

from __future__ import annotations

# ruff: noqa: F401 - tests name what is imported here
import contextlib
import io
import json
import os
import shutil
import typing as t
from datetime import timedelta
from pathlib import Path
from unittest import mock
from uuid import uuid4

# Models are there from now on.
from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core import serializers
from django.core.files.base import ContentFile
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction
from django.db.migrations.state import ProjectState
from django.test import Client as DjangoClient
from django.test import override_settings
from django.utils import timezone
from library.models import HomePage, Maintainer, ModulePage, Notice, SubjectPage
from library.wsgi import application
from PIL import Image as Picture
from wagtail.contrib.redirects.models import Redirect
from wagtail.documents.models import Document
from wagtail.images.models import Image
from wagtail.models import (
    Collection,
    Comment,
    Locale,
    Page,
    PageViewRestriction,
    ReferenceIndex,
    Site,
)
from werkzeug.test import Client

from shelf.models import (
    Author,
    BookPage,
    Chapter,
    Genre,
    Imprint,
    NoPage,
    Publisher,
    Shop,
    TaggedPage,
)
from wsgi_isr.django.wagtail import changes
from wsgi_isr.django.wagtail.serving import check, paths


def reset() -> None:
    """Take back all that was done since `build`."""
    data = Path(os.environ["LIBRARY_DATA"])
    database, built = data / "library.db", data / "built.db"
    connection.close()
    if built.exists():
        shutil.copyfile(built, database)
    else:
        shutil.copyfile(database, built)
    Site.clear_site_root_paths_cache()
    mock.patch.stopall()
    changes.MANY = 500
    application.prune(everything=True)


def get(path: str, host: str = "a.example", cookie: str = "") -> dict[str, t.Any]:
    visitor = Client(application, use_cookies=False)
    headers = {"Cookie": cookie} if cookie else {}
    answer = visitor.get(path, base_url=f"http://{host}", headers=headers)
    return {"status": answer.status_code, "text": answer.text, "headers": dict(answer.headers)}


def login() -> str:
    client = DjangoClient()
    client.force_login(get_user_model().objects.get())
    return f"sessionid={client.cookies['sessionid'].value}"


def page(slug: str) -> t.Any:
    """The first one: translations come later."""
    return Page.objects.filter(slug=slug).order_by("pk").first().specific


def edit(name: str, /, **fields: t.Any) -> None:
    """As the editor's form does."""
    with transaction.atomic():
        found = page(name)
        for field, value in fields.items():
            setattr(found, field, value)
        found.save_revision().publish()


def taken_back(slug: str, **fields: t.Any) -> None:
    with contextlib.suppress(KeyError), transaction.atomic():
        edit(slug, **fields)
        raise KeyError


def without_a_store(slug: str, **fields: t.Any) -> None:
    failing = OSError("no store")
    with mock.patch("wsgi_isr.django.changes.get_middleware", side_effect=failing):
        edit(slug, **fields)


def without_a_database(path: str) -> str:
    failing = mock.Mock(side_effect=DatabaseError)
    with mock.patch("wsgi_isr.django.wagtail.serving.Page", mock.Mock(objects=failing)):
        failing.filter = failing
        return str(get(path)["headers"]["Cache-Status"])


def load(found: t.Any) -> None:
    for each in serializers.deserialize("json", serializers.serialize("json", [found])):
        each.save()


def schedule(slug: str, **fields: t.Any) -> None:
    """For in an hour."""
    found = page(slug)
    found.go_live_at = timezone.now() + timedelta(hours=1)
    for name, value in fields.items():
        setattr(found, name, value)
    found.save_revision().publish()


def publish_scheduled() -> None:
    """Two hours later."""
    later = timezone.now() + timedelta(hours=2)
    with mock.patch("django.utils.timezone.now", lambda: later):
        call_command("publish_scheduled")


def restrict(slug: str, **fields: t.Any) -> None:
    fields.setdefault("restriction_type", "login")
    PageViewRestriction.objects.create(page=Page.objects.get(slug=slug), **fields)


def enter_password(path: str, password: str) -> int:
    """As a visitor does. Returns the status of the page that they get then."""
    visitor = Client(application)
    visitor.get(path, base_url="http://a.example")
    token = visitor.get_cookie("csrftoken", domain="a.example")
    restriction = PageViewRestriction.objects.get()
    visitor.post(
        f"/_util/authenticate_with_password/{restriction.pk}/{restriction.page_id}/",
        base_url="http://a.example",
        data={"password": password, "return_url": path, "csrfmiddlewaretoken": token.value},
    )
    answer = visitor.get(path, base_url="http://a.example")
    return 0 if 'name="password"' in answer.text else answer.status_code


def comment(slug: str) -> None:
    user = get_user_model().objects.get()
    Comment.objects.create(page=page(slug), user=user, text="well", contentpath="title")


def in_a_migration() -> None:
    """Its models are copies, and not all tables need be there."""
    notice = ProjectState.from_apps(apps).apps.get_model("library", "Notice")
    with mock.patch.object(ReferenceIndex, "get_references_to", side_effect=DatabaseError):
        notice.objects.create(text="old")


def translate(slug: str, title: str) -> None:
    found = page(slug).copy_for_translation(Locale.objects.get(language_code="fr"))
    found.title, found.slug, found.live = title, title, True
    found.save_revision().publish()


def localize(slug: str) -> None:
    """As wagtail-localize publishes a translation."""
    from wagtail_localize.models import Translation, TranslationSource

    source, _ = TranslationSource.update_or_create_from_instance(page(slug))
    french = Locale.objects.get(language_code="fr")
    translation, _ = Translation.objects.get_or_create(source=source, target_locale=french)
    translation.save_target(publish=True)


def checked(changed: dict[str, t.Any], what: str = "id") -> list[str]:
    with override_settings(ISR={**settings.ISR, **changed}):
        return [getattr(message, what) for message in check()]


def add(parent: t.Any, model: t.Any, title: str, **fields: t.Any) -> t.Any:
    return parent.add_child(instance=model(title=title, slug=title, **fields))


def build() -> None:
    """Two sites: a.example with two lists, b.example with one page."""
    get_user_model().objects.create_superuser("editor", "editor@example.com", "editor")
    Locale.objects.create(language_code="en")
    Locale.objects.create(language_code="fr")
    Collection.add_root(name="Root")
    root = Page.add_root(title="root", slug="root")
    document = Document.objects.create(title="map", file=ContentFile(b"map", "map.txt"))
    link = f'<a linktype="document" id="{document.pk}">map</a>'
    home = add(root, HomePage, "home", intro=link)
    Site.objects.create(hostname="a.example", root_page=home, is_default_site=True)
    other = add(root, HomePage, "other")
    Site.objects.create(hostname="b.example", root_page=other)
    content = io.BytesIO()
    Picture.new("RGB", (8, 8)).save(content, "PNG")
    picture = Image.objects.create(title="cover", file=ContentFile(content.getvalue(), "c.png"))
    maintainer = Maintainer.objects.create(name="Ada")
    author = Author.objects.create(name="Bea", publisher=Publisher.objects.create(name="Press"))
    author.others.add(Publisher.objects.create(name="Other"))
    Notice.objects.create(text="notice")
    text = add(home, SubjectPage, "text", show_in_menus=True)
    add(text, ModulePage, "string", summary="s", maintainer=maintainer)
    add(text, ModulePage, "re", summary="r", picture=picture)
    files = add(home, SubjectPage, "files")
    glob = add(files, ModulePage, "glob", summary="g")
    part = {"type": "item", "id": str(uuid4()), "value": {"picture": picture.pk}}
    values = {"author": author.pk, "parts": [part], "see": glob.pk}
    values["shop"] = Shop.objects.create(name="Corner").pk
    body = [{"type": name, "value": value} for name, value in values.items()]
    reader = get_user_model().objects.get()
    book = add(files, BookPage, "book", body=json.dumps(body), reader=reader)
    book.genres.add(Genre.objects.create())
    book.save()
    Chapter.objects.create(page=book, title="first")
    add(files, NoPage, "live")
    add(home, TaggedPage, "tagged")
