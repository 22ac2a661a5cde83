"""Revalidation from outside, for a headless CMS or a cron job."""

from __future__ import annotations

import secrets

from flask import Blueprint, current_app, request
from flask.typing import ResponseReturnValue

from wsgi_isr import RevalidationError
from wsgi_isr.flask import revalidate

bp = Blueprint("api", __name__)


@bp.get("/api/revalidate")
def hook() -> ResponseReturnValue:
    """Render a path again: ``/api/revalidate?secret=…&path=/post/abc``."""
    token = str(current_app.config["BLOG_SECRET"] or "")
    secret = request.args.get("secret", "")
    if not token or not secrets.compare_digest(secret.encode(), token.encode()):
        return {"message": "Invalid token"}, 401
    try:
        revalidate(request.args.get("path", "/"))
    except ValueError as error:  # not a path of this site
        return {"message": str(error)}, 400
    except RevalidationError:
        # The last page that was rendered well stays where it is.
        return {"message": "Error revalidating"}, 500
    return {"revalidated": True}
