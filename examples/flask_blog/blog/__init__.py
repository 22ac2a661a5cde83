"""A blog whose public pages are regenerated incrementally: the app factory."""

from __future__ import annotations

import os
import typing as t
from datetime import UTC, datetime
from pathlib import Path

from flask import Flask, Response, current_app, render_template, request
from flask.typing import ResponseReturnValue
from markupsafe import Markup
from werkzeug.exceptions import HTTPException
from werkzeug.routing import BaseConverter

from . import api, database, editor, pages

#: Only the blog's own style sheet, and pictures. No script runs on a page, whatever a post says.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' https: data:;"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


#: Why a page is rendered, in words.
OCCASIONS = {
    "miss": "for its first visitor",
    "stale": "because the page before it was too old",
    "revalidate": "after an edit",
    "prerender": "ahead of its visitors",
}


class SlugConverter(BaseConverter):
    """The address of a post or a tag.

    Other addresses are not pages, so nobody can fill the store with made-up ones.
    """

    regex = r"[a-z0-9_][a-z0-9._-]{0,79}"


def create_app(config: t.Mapping[str, t.Any] | None = None) -> Flask:
    """Build the blog. At its first start it writes the posts, which takes seconds.

    :param config: overrides the defaults below and the environment:
        ``BLOG_DATABASE`` is the path of the SQLite file, ``BLOG_SECRET`` the token of
        ``/api/revalidate`` and of the status page, ``BLOG_SHELL=1`` shows a shell while a post
        is rendered for the first time, and ``FLASK_…`` is every other key (``FLASK_ISR_CACHE``).
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
    app.config.setdefault("ISR_SECRET", app.config["BLOG_SECRET"])
    app.url_map.converters["slug"] = SlugConverter
    database.init_app(app)
    pages.isr.init_app(app)
    app.register_blueprint(pages.bp)
    app.register_blueprint(editor.bp)
    app.register_blueprint(api.bp)
    app.context_processor(rendered)
    app.add_template_filter(date)
    app.register_error_handler(HTTPException, error_page)
    app.after_request(secure)
    return app


def rendered() -> dict[str, t.Any]:
    """When, why and by which worker a page is rendered, for the box above it.

    The library gives the reason; without one, the page is for this visitor alone.
    """
    reason: str | None = request.environ.get("wsgi_isr.reason")
    has_status = bool(current_app.config["ISR_SECRET"])
    return {
        "rendered_at": datetime.now(UTC),
        "rendered_because": reason,
        "rendered_for": OCCASIONS.get(reason or "", "for you alone"),
        "rendered_by": os.getpid(),
        "preview": pages.isr.is_draft,
        "status": f"{request.script_root}/_isr/" if has_status else None,
    }


def date(seconds: float) -> Markup:
    """A day, for people and for programs."""
    day = datetime.fromtimestamp(seconds, UTC)
    return Markup('<time datetime="{:%Y-%m-%d}">{} {:%B %Y}</time>').format(day, day.day, day)


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
