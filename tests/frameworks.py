"""The same small site in four frameworks that have no extension: they send the headers themselves.

``GET /blog/SLUG``   a post, as a page with the tag ``posts``; 404 as one, too
``POST /save/SLUG``  changes it and has it rendered, through the middleware in the environ
``POST /tag``        makes all posts stale
"""

from __future__ import annotations

import typing as t
import warnings
from collections.abc import Callable

from wsgi_isr import page_headers

Texts = dict[str, str]
App = Callable[..., t.Any]

HEADERS = page_headers(60, tags=["posts"])


def save(texts: Texts, environ: dict[str, t.Any], slug: str, text: str) -> str:
    texts[slug] = text
    (result,) = environ["wsgi_isr.middleware"].revalidate(f"/blog/{slug}")
    return str(result.url)


def mark(environ: dict[str, t.Any]) -> str:
    environ["wsgi_isr.middleware"].revalidate_tag("posts")
    return "marked"


def django(texts: Texts) -> App:
    import djangos  # noqa: F401
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpRequest, HttpResponse
    from django.urls import path, set_urlconf
    from django.views.decorators.csrf import csrf_exempt

    def post(request: HttpRequest, slug: str) -> HttpResponse:
        known = slug in texts
        return HttpResponse(
            texts.get(slug, "no such post"), status=200 if known else 404, headers=dict(HEADERS)
        )

    @csrf_exempt
    def save_post(request: HttpRequest, slug: str) -> HttpResponse:
        return HttpResponse(save(texts, request.META, slug, request.POST["text"]))

    @csrf_exempt
    def tag(request: HttpRequest) -> HttpResponse:
        return HttpResponse(mark(request.META))

    urls = (path("blog/<slug>", post), path("save/<slug>", save_post), path("tag", tag))
    settings.ROOT_URLCONF = urls
    set_urlconf(None)
    return t.cast(App, get_wsgi_application())


def bottle(texts: Texts) -> App:
    import bottle

    app = bottle.Bottle()

    @app.get("/blog/<slug>")
    def post(slug: str) -> t.Any:
        code = 200 if slug in texts else 404
        return bottle.HTTPResponse(texts.get(slug, "no such post"), code, dict(HEADERS))

    @app.post("/save/<slug>")
    def save_post(slug: str) -> str:
        return save(texts, bottle.request.environ, slug, bottle.request.forms.text)

    @app.post("/tag")
    def tag() -> str:
        return mark(bottle.request.environ)

    return t.cast(App, app)


def falcon(texts: Texts) -> App:
    import falcon

    class Post:
        def on_get(self, request: t.Any, response: t.Any, slug: str) -> None:
            response.status = 200 if slug in texts else 404
            response.content_type = "text/plain"
            response.text = texts.get(slug, "no such post")
            response.set_headers(HEADERS)

    class Save:
        def on_post(self, request: t.Any, response: t.Any, slug: str) -> None:
            response.text = save(texts, request.env, slug, request.get_media()["text"])

    class Tag:
        def on_post(self, request: t.Any, response: t.Any) -> None:
            response.text = mark(request.env)

    app = falcon.App()
    app.add_route("/blog/{slug}", Post())
    app.add_route("/save/{slug}", Save())
    app.add_route("/tag", Tag())
    return t.cast(App, app)


def pyramid(texts: Texts) -> App:
    with warnings.catch_warnings():
        # It imports modules that Python and setuptools have given up.
        warnings.simplefilter("ignore")
        from pyramid.config import Configurator
        from pyramid.response import Response

        def post(request: t.Any) -> t.Any:
            slug = request.matchdict["slug"]
            status = 200 if slug in texts else 404
            text = texts.get(slug, "no such post")
            response = Response(text, status)
            response.headers.extend(HEADERS)
            return response

        def save_post(request: t.Any) -> t.Any:
            slug, text = request.matchdict["slug"], request.POST["text"]
            return Response(save(texts, request.environ, slug, text))

        def tag(request: t.Any) -> t.Any:
            return Response(mark(request.environ))

        with Configurator() as config:
            for name, pattern, view in (
                ("post", "/blog/{slug}", post),
                ("save", "/save/{slug}", save_post),
                ("tag", "/tag", tag),
            ):
                config.add_route(name, pattern)
                config.add_view(view, route_name=name)
            return t.cast(App, config.make_wsgi_app())


FRAMEWORKS = {make.__name__: make for make in (django, bottle, falcon, pyramid)}
