"""A blog whose public pages are regenerated incrementally: the app factory."""

from __future__ import annotations

import os
import typing as t
from datetime import datetime
from pathlib import Path

from flask import Flask, Response, render_template, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException
from werkzeug.routing import BaseConverter

from . import api, database, editor, pages

#: Only the blog's own style sheet, and pictures. No script runs on a page, whatever a post says.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' https: data:;"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


class SlugConverter(BaseConverter):
    """The address of a post or a tag.

    Anything else is no page, so that nobody fills the store with made-up addresses.
    """

    regex = r"[a-z0-9_][a-z0-9._-]{0,79}"


def create_app(config: t.Mapping[str, t.Any] | None = None) -> Flask:
    """Build the blog. At its first start it writes the posts, which takes seconds.

    :param config: overrides the defaults below and the environment:
        ``BLOG_DATABASE`` is the path of the SQLite file, ``BLOG_SECRET`` the token of
        ``/api/revalidate``, ``BLOG_SHELL=1`` shows a shell while a post is rendered for the
        first time, and ``FLASK_…`` is every other key (``FLASK_ISR_CACHE``).
    """
    app = Flask(__name__)
    app.config.from_mapping(
        BLOG_SECRET=os.environ.get("BLOG_SECRET", ""),
        BLOG_SHELL=os.environ.get("BLOG_SHELL", "") not in ("", "0"),
        DATABASE=os.environ.get("BLOG_DATABASE") or str(Path(app.instance_path, "blog.db")),
        MAX_CONTENT_LENGTH=2**20,
        SESSION_COOKIE_SAMESITE="Lax",
    )
    app.config.from_prefixed_env()
    app.config.from_mapping(config)
    app.url_map.converters["slug"] = SlugConverter
    database.init_app(app)
    pages.isr.init_app(app)
    app.register_blueprint(pages.bp)
    app.register_blueprint(editor.bp)
    app.register_blueprint(api.bp)
    app.context_processor(rendered)
    app.register_error_handler(HTTPException, error_page)
    app.after_request(secure)
    return app


def rendered() -> dict[str, t.Any]:
    """When, why and by which worker a page is rendered, for its footer.

    The library gives the reason; without one, the page is for this visitor alone.
    """
    return {
        "rendered_at": datetime.now().isoformat(" ", "milliseconds"),
        "rendered_because": request.environ.get("wsgi_isr.reason"),
        "rendered_by": os.getpid(),
        "preview": pages.isr.is_draft,
    }


def error_page(error: HTTPException) -> ResponseReturnValue:
    """Show an error in the blog's layout. A 404 of a page is stored, too."""
    response = error.get_response(request.environ)
    if error.response is None:
        response.set_data(render_template("error.html", error=error))
    return response


def secure(response: Response) -> Response:
    response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    return response
