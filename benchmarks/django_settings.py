"""The Wagtail example under one of several caches, which ``BENCHMARK_SUBJECT`` names."""

from __future__ import annotations

import os
import typing as t

from library import settings as example
from library.settings import *  # noqa: F403

SUBJECT = os.environ["BENCHMARK_SUBJECT"]
#: Seconds that the caches keep a page where nothing clears them.
SECONDS = 3600

INSTALLED_APPS = [name for name in example.INSTALLED_APPS if not name.startswith("wsgi_isr")]
MIDDLEWARE = [*example.MIDDLEWARE]
#: All four workers share it.
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
        "LOCATION": example.DATA / "cache",
        "TIMEOUT": SECONDS,
        "OPTIONS": {"MAX_ENTRIES": 100_000},
    }
}
CACHE_MIDDLEWARE_SECONDS = SECONDS

if SUBJECT == "wsgi-isr":
    INSTALLED_APPS += ["wsgi_isr.django", "wsgi_isr.django.wagtail"]
elif SUBJECT.startswith("wagtail-cache"):
    INSTALLED_APPS += ["wagtailcache"]
    MIDDLEWARE.insert(0, "wagtailcache.cache.UpdateCacheMiddleware")
    MIDDLEWARE.append("wagtailcache.cache.FetchFromCacheMiddleware")
elif SUBJECT == "Django's cache":
    MIDDLEWARE.insert(0, "django.middleware.cache.UpdateCacheMiddleware")
    MIDDLEWARE.append("django.middleware.cache.FetchFromCacheMiddleware")

options: t.Any = example.TEMPLATES[0]["OPTIONS"]
options["context_processors"].append("benchmarks.django_wagtail.count")
