"""Writing, publishing and deleting posts, and bringing these changes to the pages.

Everybody may edit in this example. A real site puts a login in front of the blueprint.
"""

from __future__ import annotations

import re
import typing as t
from urllib.parse import urlsplit

from flask import (
    Blueprint,
    Response,
    abort,
    flash,
    make_response,
    redirect,
    render_template,
    request,
    url_for,
)
from flask.typing import ResponseReturnValue

from wsgi_isr import RevalidationError
from wsgi_isr.flask import revalidate, revalidate_tag
from wsgi_isr.ondemand import called_by

from . import posts
from .database import get_db
from .pages import isr, page_number
from .posts import Post
from .rest import complaints

bp = Blueprint("editor", __name__)

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_MAX_TAGS = 8
_NOT_RENDERED = "The text is saved, but the page still shows the previous version."
_NO_TITLE = "A post needs a title, and an address of letters or digits."


def renew(post: Post, tags: t.Iterable[str], message: str) -> ResponseReturnValue:
    """Bring a change, already committed, to every page that shows the post.

    The lists, and the pages of the posts before and after it, expire: the next visitor of each,
    perhaps the editor, waits for its render and sees the change. Without ``expire`` they would
    get the old page once more. The post's own page is rendered now, so nobody waits for it.

    :param tags: the tags of the post, before and after the change.
    :param message: for the editor, who returns to the form.
    """
    try:
        names = {f"tag:{tag}" for tag in tags} | {f"beside:{post.slug}"}
        # A new post comes between two that link to each other until now.
        stored = posts.get_post(get_db(), post.slug) or post
        names |= {f"post:{other.slug}" for other in posts.neighbours(get_db(), stored) if other}
        with called_by(f"the editor, {request.remote_addr}"):
            revalidate_tag("posts", *sorted(names), expire=True)
            revalidate(url_for("blog.post", slug=post.slug))
    except RevalidationError:
        # Nothing is lost: the old page stays, and its next visitor starts a new attempt.
        flash(_NOT_RENDERED, "error")
    else:
        flash(message, "ok")
    return redirect(url_for(".edit", slug=post.slug))


@bp.before_request
def same_origin() -> None:
    """Refuse forms that another site sends (CSRF): browsers say where a form comes from.

    Behind a proxy you need ``ProxyFix``, which sets the public host.
    """
    if request.method in {"GET", "HEAD", "OPTIONS"}:
        return
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    if site is not None:
        allowed = site in {"same-origin", "none"}
    else:
        allowed = origin is None or urlsplit(origin).netloc == request.host
    if not allowed:
        abort(403, "This form comes from another site.")


@bp.after_request
def keep_private(response: Response) -> Response:
    response.headers["Cache-Control"] = "private, no-store"
    return response


@bp.get("/editor")
def overview() -> str:
    words = request.args.get("q", "")
    listing = posts.find_posts(get_db(), page_number(), words) or abort(404)
    return render_template("editor/overview.html", listing=listing, words=words)


@bp.route("/new", methods=["GET", "POST"])
def new() -> ResponseReturnValue:
    if request.method == "GET":
        empty = Post("", "", "", "")
        return render_template("editor/form.html", post=empty, is_new=True)
    form = request.form
    post = read_form(posts.slugify(form.get("slug") or form.get("title", "")))
    problem = "" if post.slug and post.title else _NO_TITLE
    if not problem and not posts.add_post(get_db(), post, published="preview" not in form):
        problem = "There is a post with this address already."
    if problem:
        flash(problem, "error")
        return render_template("editor/form.html", post=post, is_new=True), 400
    if "preview" in form:
        return preview(post.slug)
    return renew(post, post.tags, "Published.")


@bp.route("/edit/<slug:slug>", methods=["GET", "POST"])
def edit(slug: str) -> ResponseReturnValue:
    if request.method == "GET":
        draft = posts.get_draft(get_db(), slug)
        post = draft or posts.get_post(get_db(), slug) or abort(404)
        return render_template("editor/form.html", post=post, is_draft=draft is not None)
    post = read_form(slug)
    if not post.title:
        flash(_NO_TITLE, "error")
        return render_template("editor/form.html", post=post), 400
    if "preview" in request.form:
        if posts.get_post(get_db(), slug) is None:
            abort(404)
        posts.save_draft(get_db(), post)
        return preview(slug)
    old = posts.save_post(get_db(), post) or abort(404)
    for complaint in complaints(post.body)[:1]:
        flash(f"The text is not quite reStructuredText: {complaint}", "hint")
    return renew(post, old.tags + post.tags, "Saved.")


def preview(slug: str) -> ResponseReturnValue:
    """Show the editor, and nobody else, the post as it will be."""
    response = make_response(redirect(url_for("blog.post", slug=slug)))
    isr.enable_draft(response)
    return response


@bp.post("/preview/leave")
def leave_preview() -> ResponseReturnValue:
    response = make_response(redirect(url_for(".overview")))
    isr.disable_draft(response)
    return response


@bp.post("/discard/<slug:slug>")
def discard(slug: str) -> ResponseReturnValue:
    posts.discard_draft(get_db(), slug)
    flash("The draft is gone; visitors never saw it.", "ok")
    return redirect(url_for(".edit", slug=slug))


@bp.post("/delete/<slug:slug>")
def delete(slug: str) -> ResponseReturnValue:
    post = posts.publish_post(get_db(), slug, published=False) or abort(404)
    message = "Deleted. The text is kept here, and can be published again."
    return renew(post, post.tags, message)


@bp.post("/publish/<slug:slug>")
def publish(slug: str) -> ResponseReturnValue:
    if request.form:
        posts.save_post(get_db(), read_form(slug))
    post = posts.publish_post(get_db(), slug, published=True) or abort(404)
    return renew(post, post.tags, "Published.")


def read_form(slug: str) -> Post:
    """Read what an editor typed."""
    tags = dict.fromkeys(map(posts.slugify, _field("tags").split(",")))
    return Post(
        slug=slug,
        title=_field("title"),
        summary=_field("summary"),
        body=_field("body"),
        tags=tuple(tag for tag in tags if tag)[:_MAX_TAGS],
    )


def _field(name: str) -> str:
    text = request.form.get(name, "").replace("\r\n", "\n")
    return _CONTROLS.sub("", text).strip("\n").rstrip()
