"""Posts: how they are read from the database, and written to it."""

from __future__ import annotations

import re
import sqlite3
import time
import typing as t
import unicodedata
from dataclasses import dataclass

from .database import transaction

#: Posts on one page of a list.
PER_PAGE = 20

_COLUMNS = """
    posts.slug, title, summary, body, updated, published, (
        SELECT group_concat(tag, ' ') FROM post_tags WHERE post_tags.slug = posts.slug
    ) AS tags
"""
_NEWEST_FIRST = "published DESC, title COLLATE NOCASE"


@dataclass(frozen=True)
class Post:
    slug: str
    title: str
    summary: str
    body: str
    tags: tuple[str, ...] = ()
    published: float | None = None
    updated: float = 0.0


@dataclass(frozen=True)
class Listing:
    """One page of a list of posts."""

    posts: list[Post]
    page: int
    pages: int
    total: int


def get_post(db: sqlite3.Connection, slug: str) -> Post | None:
    """Find a post, published or not."""
    row = db.execute(f"SELECT {_COLUMNS} FROM posts WHERE slug = ?", [slug]).fetchone()
    return _post(row) if row else None


def list_posts(db: sqlite3.Connection, page: int, tag: str | None = None) -> Listing | None:
    """List the published posts, the newest first. None: there is no such page."""
    if tag is None:
        where, values = "published IS NOT NULL", []
    else:
        where = "published IS NOT NULL AND slug IN (SELECT slug FROM post_tags WHERE tag = ?)"
        values = [tag]
    return _listing(db, where, values, _NEWEST_FIRST, page)


def neighbours(db: sqlite3.Connection, post: Post) -> tuple[Post | None, Post | None]:
    """The published posts right before and right after one in the list: a newer, an older one."""
    found = []
    for side, order in ((">", "published, title COLLATE NOCASE DESC"), ("<", _NEWEST_FIRST)):
        later = "<" if side == ">" else ">"
        row = db.execute(
            f"SELECT {_COLUMNS} FROM posts WHERE published {side} :at"
            f" OR published = :at AND title COLLATE NOCASE {later} :title ORDER BY {order} LIMIT 1",
            {"at": post.published, "title": post.title},
        ).fetchone()
        found.append(_post(row) if row else None)
    return found[0], found[1]


def find_posts(db: sqlite3.Connection, page: int, words: str) -> Listing | None:
    """List the posts that an editor searches for, published or not, the last edited first."""
    where, values = "1", []
    for word in words.split():
        where += " AND instr(lower(title || ' ' || summary), ?)"
        values.append(word.lower())
    return _listing(db, where, values, "updated DESC, title COLLATE NOCASE", page)


def list_tags(db: sqlite3.Connection) -> list[tuple[str, int]]:
    """List the tags of published posts, with the number of posts."""
    rows = db.execute(
        "SELECT tag, count(*) FROM post_tags JOIN posts USING (slug)"
        " WHERE published IS NOT NULL GROUP BY tag ORDER BY tag"
    )
    return [(tag, count) for tag, count in rows]


def list_slugs(db: sqlite3.Connection) -> list[str]:
    """The addresses of all published posts."""
    rows = db.execute("SELECT slug FROM posts WHERE published IS NOT NULL ORDER BY slug")
    return [slug for (slug,) in rows]


def page_count(total: int) -> int:
    """The number of pages of a list of posts."""
    return -(-total // PER_PAGE) or 1


def add_post(db: sqlite3.Connection, post: Post, published: bool = True) -> bool:
    """Write a new post. False: its address is taken."""
    now = time.time()
    with transaction(db):
        added = db.execute(
            "INSERT OR IGNORE INTO posts VALUES (?, ?, ?, ?, ?, ?)",
            [post.slug, post.title, post.summary, post.body, now, now if published else None],
        )
        if added.rowcount:
            _write_tags(db, post)
    return bool(added.rowcount)


def save_post(db: sqlite3.Connection, post: Post) -> Post | None:
    """Write a post, and return the one that it replaces. None: there was none."""
    with transaction(db):
        old = get_post(db, post.slug)
        db.execute(
            "UPDATE posts SET title = ?, summary = ?, body = ?, updated = ? WHERE slug = ?",
            [post.title, post.summary, post.body, time.time(), post.slug],
        )
        if old is not None:
            db.execute("DELETE FROM post_tags WHERE slug = ?", [post.slug])
            _write_tags(db, post)
            discard_draft(db, post.slug)
    return old


def get_draft(db: sqlite3.Connection, slug: str) -> Post | None:
    """What an editor has typed of a post, and not saved yet."""
    row = db.execute(
        "SELECT drafts.*, published FROM drafts JOIN posts USING (slug) WHERE slug = ?", [slug]
    ).fetchone()
    return _post(row) if row else None


def save_draft(db: sqlite3.Connection, post: Post) -> None:
    """Keep what an editor has typed, where visitors do not see it."""
    row = [post.slug, post.title, post.summary, post.body, " ".join(post.tags), time.time()]
    db.execute("INSERT OR REPLACE INTO drafts VALUES (?, ?, ?, ?, ?, ?)", row)


def discard_draft(db: sqlite3.Connection, slug: str) -> None:
    db.execute("DELETE FROM drafts WHERE slug = ?", [slug])


def publish_post(db: sqlite3.Connection, slug: str, published: bool) -> Post | None:
    """Publish a post, or take it off the blog. None: there is none."""
    now = time.time()
    with transaction(db):
        db.execute(
            "UPDATE posts SET published = ?, updated = ? WHERE slug = ?",
            [now if published else None, now, slug],
        )
        return get_post(db, slug)


def slugify(text: str) -> str:
    """Make an address: ``"Élan & Co."`` becomes ``elan-co``."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9._]+", "-", plain.lower()).strip(".-")[:80]


def _listing(
    db: sqlite3.Connection, where: str, values: t.Sequence[str], order: str, page: int
) -> Listing | None:
    (total,) = db.execute(f"SELECT count(*) FROM posts WHERE {where}", values).fetchone()
    pages = page_count(total)
    if not 1 <= page <= pages:
        return None
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM posts WHERE {where} ORDER BY {order} LIMIT ? OFFSET ?",
        [*values, PER_PAGE, (page - 1) * PER_PAGE],
    )
    return Listing([_post(row) for row in rows], page, pages, total)


def _post(row: sqlite3.Row) -> Post:
    fields = dict(row)
    tags = tuple(sorted((fields.pop("tags") or "").split()))
    return Post(**fields, tags=tags)


def _write_tags(db: sqlite3.Connection, post: Post) -> None:
    db.executemany(
        "INSERT OR IGNORE INTO post_tags VALUES (?, ?)",
        [(tag, post.slug) for tag in post.tags],
    )
