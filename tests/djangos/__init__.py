"""A Django project of the tests, set up by the import; it is an app of its own."""

from __future__ import annotations

import atexit
import contextlib
import shutil
import tempfile
import types
import typing as t
from collections.abc import Iterator
from pathlib import Path

from conftest import Browser, strict

#: The settings of one project are those of a whole process.
FOLDER = Path(tempfile.mkdtemp(prefix="djangos"))
SETTINGS: dict[str, t.Any] = {
    "ALLOWED_HOSTS": ["*"],
    "BASE_DIR": FOLDER,
    "DATABASES": {
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(FOLDER / "db.sqlite3")},
        "other": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(FOLDER / "other.sqlite3")},
    },
    "INSTALLED_APPS": [
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "django.contrib.sessions",
        "djangos",
        "wsgi_isr.django",
    ],
    "LANGUAGES": [("en", "English"), ("de", "German")],
    "MIDDLEWARE": [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    "SECRET_KEY": "not a secret, but long enough for it",
    "TEMPLATES": [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    "USE_TZ": True,
}


def _configure() -> None:
    from django.conf import settings

    settings.configure(**SETTINGS)
    atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
    import django
    from django.core.management import call_command

    django.setup()
    for database in SETTINGS["DATABASES"]:
        call_command("migrate", database=database, run_syncdb=True, verbosity=0)


@contextlib.contextmanager
def project(*patterns: t.Any, isr: t.Any = None, **settings: t.Any) -> Iterator[Browser]:
    """A visitor of a site with these URLs; ``browser.isr`` is its middleware."""
    from django.contrib import admin
    from django.db import connections
    from django.test import override_settings
    from django.urls import path

    from wsgi_isr.django import get_wsgi_application

    urls = types.ModuleType("urls")
    urls.urlpatterns = [*patterns, path("admin/", admin.site.urls)]  # type: ignore[attr-defined]
    # Modules are the keys of a cache of Django's.
    settings = {"ROOT_URLCONF": urls, "ISR": {"CACHE": "memory://", **(isr or {})}, **settings}
    with override_settings(**settings):
        app = get_wsgi_application()
        browser = Browser(strict(app))
        browser.isr = app
        try:
            yield browser
        finally:
            app.close()
            connections.close_all()


_configure()
