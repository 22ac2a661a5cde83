"""Peers from the package index: Flask-Caching, WhiteNoise, Django's cache, and Flask alone.

All of them serve ``/page/1``; a render is a loop in a Jinja or Django template.
"""

from __future__ import annotations

import gzip
import typing as t
from pathlib import Path

from benchmarks.subjects import BODY, PARAGRAPHS, App

TEMPLATE = "{% for line in lines %}<p>{{ line }}</p>\n{% endfor %}"
VALUES = {"lines": PARAGRAPHS}


def flask(folder: Path) -> App:
    """Rendered for every visitor."""
    from flask import Flask, render_template_string

    app = Flask("flask_peer")

    @app.get("/page/<number>")
    def page(number: str) -> str:
        return render_template_string(TEMPLATE, **VALUES)

    return t.cast(App, app)


def flask_caching(folder: Path) -> App:
    """``@cache.cached`` on the view, in memory."""
    from flask import Flask, render_template_string
    from flask_caching import Cache

    app = Flask("flask_caching_peer")
    cache = Cache(app, config={"CACHE_TYPE": "SimpleCache", "CACHE_DEFAULT_TIMEOUT": 3600})

    @app.get("/page/<number>")
    @cache.cached()  # type: ignore[untyped-decorator]
    def page(number: str) -> str:
        return render_template_string(TEMPLATE, **VALUES)

    return t.cast(App, app)


def whitenoise(folder: Path) -> App:
    """A file that was written beforehand, and its compressed variant."""
    from whitenoise import WhiteNoise

    from benchmarks.subjects import app

    root = folder / "page"
    root.mkdir(parents=True, exist_ok=True)
    (root / "1").write_bytes(BODY)
    (root / "1.gz").write_bytes(gzip.compress(BODY, 9))
    return t.cast(App, WhiteNoise(app, root=str(folder), mimetypes={"": "text/html"}))


def django(folder: Path) -> App:
    """The cache of the whole site, in memory."""
    import django
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpRequest, HttpResponse
    from django.template import Context, Engine
    from django.urls import path

    template = Engine().from_string(TEMPLATE)

    def page(request: HttpRequest, number: str) -> HttpResponse:
        return HttpResponse(template.render(Context(VALUES)))

    class Urls:
        urlpatterns: t.ClassVar = [path("page/<number>", page)]

    if not settings.configured:
        settings.configure(
            ALLOWED_HOSTS=["*"],
            CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
            CACHE_MIDDLEWARE_SECONDS=3600,
            MIDDLEWARE=[
                "django.middleware.cache.UpdateCacheMiddleware",
                "django.middleware.common.CommonMiddleware",
                "django.middleware.cache.FetchFromCacheMiddleware",
            ],
            ROOT_URLCONF=Urls,
        )
        django.setup()
    return t.cast(App, get_wsgi_application())


PACKAGES: dict[str, t.Callable[[Path], App]] = {
    "Flask-Caching": flask_caching,
    "WhiteNoise": whitenoise,
    "Django": django,
    "Flask": flask,
}
#: What has to be installed for them.
MODULES = {
    "Flask-Caching": "flask_caching",
    "WhiteNoise": "whitenoise",
    "Django": "django",
    "Flask": "flask",
}
