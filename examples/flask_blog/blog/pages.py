"""The public pages. Each says how long it is fresh, and which tags it has.

A page is rendered once for all visitors, so nothing here reads a cookie, the session or a
flashed message.
"""

from __future__ import annotations

import typing as t

from flask import Blueprint, abort, render_template, request
from flask.sansio.blueprints import BlueprintSetupState

from wsgi_isr.flask import ISR, isr_page

from . import posts
from .database import get_db
from .rest import render

isr = ISR()
bp = Blueprint("blog", __name__)


def index_pages() -> t.Iterator[dict[str, int]]:
    """What `flask isr prerender` renders besides the first page."""
    for page in range(2, posts.page_count(len(posts.list_slugs(get_db()))) + 1):
        yield {"page": page}


@bp.get("/")
@isr_page(revalidate=60, tags=("posts",), query=("page",), paths=index_pages)
def index() -> str:
    listing = posts.list_posts(get_db(), page_number()) or abort(404)
    return render_template("index.html", listing=listing)


def post_pages() -> t.Iterator[dict[str, str]]:
    for slug in posts.list_slugs(get_db()):
        yield {"slug": slug}


def shell(slug: str) -> str:
    """A browser gets this at once while a post is rendered for the first time."""
    return render_template("shell.html", slug=slug)


def post(slug: str) -> str:
    found = posts.get_post(get_db(), slug)
    draft = None
    if isr.is_draft:
        # The editor's own render, which is never stored.
        draft = posts.get_draft(get_db(), slug)
    elif found is not None and found.published is None:
        found = None
    if found is None:
        # A 404 is a page, too. It is replaced when somebody publishes the post.
        abort(404, "There is no such post (yet).")
    found = draft or found
    newer, older = posts.neighbours(get_db(), found)
    for other in filter(None, (newer, older)):
        # This page shows its title.
        isr_page.current.tags.add(f"beside:{other.slug}")
    return render_template(
        "post.html", post=found, body=render(found.body), newer=newer, older=older
    )


@bp.record
def add_posts(state: BlueprintSetupState) -> None:
    """Declare the pages of posts, with the fallback that the app's config names."""
    declare = isr_page(
        revalidate=300,
        tags=lambda slug: (f"post:{slug}",),
        paths=post_pages,
        fallback=shell if state.app.config["BLOG_SHELL"] else "blocking",
    )
    state.add_url_rule("/post/<slug:slug>", "post", declare(post))


@bp.get("/tag")
@isr_page(revalidate=60, tags=("posts",))
def tags() -> str:
    return render_template("tags.html", tags=posts.list_tags(get_db()))


def tag_pages() -> t.Iterator[dict[str, t.Any]]:
    for tag, count in posts.list_tags(get_db()):
        yield {"tag": tag}
        for page in range(2, posts.page_count(count) + 1):
            yield {"tag": tag, "page": page}


@bp.get("/tag/<slug:tag>")
@isr_page(revalidate=60, tags=lambda tag: (f"tag:{tag}",), query=("page",), paths=tag_pages)
def tag(tag: str) -> str:
    listing = posts.list_posts(get_db(), page_number(), tag)
    if listing is None or not listing.posts:
        abort(404, "There are no posts here (yet).")
    return render_template("tag.html", tag=tag, listing=listing)


def page_number() -> int:
    """The number of the page in a request: 1, 2, 3 … and nothing else."""
    page = request.args.get("page", "1")
    if not (page.isascii() and page.isdigit() and len(page) < 7 and page[0] != "0"):
        abort(404)
    return int(page)
