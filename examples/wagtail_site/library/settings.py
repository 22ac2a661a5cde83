"""Settings of a small Wagtail site. What belongs to wsgi-isr is at the end."""

from __future__ import annotations

import os
from pathlib import Path

BASE_DIR = Path(__file__).parents[1]
#: The database, pictures and stored pages. Remove the folder to begin anew.
DATA = Path(os.environ.get("LIBRARY_DATA", BASE_DIR / "data"))

# A real site reads its own from the environment. This one serves an example to one machine.
SECRET_KEY = "an example that everybody may read"
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
DEBUG = False

INSTALLED_APPS = [
    "library",
    "wagtail.users",
    "wagtail.snippets",
    "wagtail.images",
    "wagtail.documents",
    "wagtail.search",
    "wagtail.admin",
    "wagtail",
    "modelcluster",
    "taggit",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
ROOT_URLCONF = "library.urls"
WSGI_APPLICATION = "library.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "django.template.context_processors.request",
                "library.models.rendered",
            ]
        },
    }
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATA / "library.db",
        # Four workers write to one file.
        "OPTIONS": {"timeout": 20},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
MEDIA_ROOT = DATA / "media"
MEDIA_URL = "/media/"
STATIC_URL = "/static/"
TIME_ZONE = "UTC"
USE_TZ = True
WAGTAIL_SITE_NAME = "The library"
WAGTAILADMIN_BASE_URL = "http://127.0.0.1:8000"

INSTALLED_APPS += ["wsgi_isr.django", "wsgi_isr.django.wagtail"]
ISR = {
    "CACHE": f"file://{DATA}/pages",
    # Editors have a session: they always see the site as it is, with their userbar.
    "BYPASS": ["sessionid"],
    "RULES": {"/admin/**": None, "/static/**": None, "/media/**": None},
    # A template tag fetches the notice, so all pages have a tag of its model.
    "WAGTAIL_SITE_TAGS": ["library.Notice"],
}
