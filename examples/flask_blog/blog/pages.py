"""The public pages. Each says how long it is fresh and by which tags it is found.

A page is rendered once for all visitors, so nothing here looks at a cookie, the session
or a flashed message.
"""

from __future__ import annotations

from flask import abort
from flask import Blueprint
from flask import render_template
from flask import request

from wsgi_isr.flask import ISR
from wsgi_isr.flask import isr_page

from . import posts
from .database import get_db
from .rest import render

isr = ISR()
bp = Blueprint("blog", __name__)


@bp.get("/")
@isr_page(revalidate=60, tags=("posts",), query=("page",))
def index() -> str:
    listing = posts.list_posts(get_db(), page_number()) or abort(404)
    return render_template("index.html", listing=listing)


@bp.get("/post/<slug:slug>")
@isr_page(revalidate=300, tags=lambda slug: (f"post:{slug}",))
def post(slug: str) -> str:
    # A 404 is a page too: stored, and replaced when somebody publishes the post.
    found = posts.get_post(get_db(), slug)
    if found is None or found.published is None:
        abort(404, "There is no such post (yet).")
    return render_template("post.html", post=found, body=render(found.body))


@bp.get("/tag")
@isr_page(revalidate=60, tags=("posts",))
def tags() -> str:
    return render_template("tags.html", tags=posts.list_tags(get_db()))


@bp.get("/tag/<slug:tag>")
@isr_page(revalidate=60, tags=lambda tag: (f"tag:{tag}",), query=("page",))
def tag(tag: str) -> str:
    listing = posts.list_posts(get_db(), page_number(), tag)
    if listing is None or not listing.posts:
        abort(404, "There are no posts here (yet).")
    return render_template("tag.html", tag=tag, listing=listing)


def page_number() -> int:
    """Read the page a visitor asks for: 1, 2, 3 … and nothing else."""
    page = request.args.get("page", "1")
    if not (page.isascii() and page.isdigit() and len(page) < 7 and page[0] != "0"):
        abort(404)
    return int(page)
