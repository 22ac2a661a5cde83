"""The SQLite file: how it is made, and one connection for each request."""

from __future__ import annotations

import secrets
import sqlite3
import time
import typing as t
from contextlib import contextmanager
from pathlib import Path

from flask import Flask, current_app, g

from . import stdlib

SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE posts (
    slug TEXT PRIMARY KEY,
    title TEXT NOT NULL,
    summary TEXT NOT NULL,
    body TEXT NOT NULL,
    updated REAL NOT NULL,
    published REAL  -- NULL: not published (any more)
);
CREATE INDEX posts_by_date ON posts (published DESC, title COLLATE NOCASE);
CREATE TABLE post_tags (
    tag TEXT NOT NULL,
    slug TEXT NOT NULL REFERENCES posts ON DELETE CASCADE,
    PRIMARY KEY (tag, slug)
) WITHOUT ROWID;
CREATE INDEX tags_by_post ON post_tags (slug);
"""

#: What editors have typed and not published.
DRAFTS = """
CREATE TABLE drafts (
    slug TEXT PRIMARY KEY REFERENCES posts ON DELETE CASCADE,
    title TEXT NOT NULL,
    summary TEXT NOT NULL,
    body TEXT NOT NULL,
    tags TEXT NOT NULL,
    updated REAL NOT NULL
)
"""

#: Of the schema, in the file.
VERSION = 2

#: Seconds that a worker waits at its start for the one that fills the database.
SETUP_TIMEOUT = 60.0


def init_app(app: Flask) -> None:
    """Make the database if there is none, and close connections after requests."""
    path = Path(app.config["DATABASE"])
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = connect(path, timeout=SETUP_TIMEOUT)
    try:
        set_up(connection)
        if not app.config["SECRET_KEY"]:
            # All workers must sign the editors' cookies with the same key.
            (app.config["SECRET_KEY"],) = connection.execute(
                "SELECT value FROM settings WHERE name = 'secret_key'"
            ).fetchone()
    finally:
        connection.close()
    app.teardown_appcontext(close_db)


def connect(path: str | Path, timeout: float = 5.0) -> sqlite3.Connection:
    """Open the database in autocommit mode.

    :param timeout: seconds to wait for another writer before giving up.
    """
    connection = sqlite3.connect(path, timeout=timeout, isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = NORMAL")  # in WAL mode, enough
    return connection


def get_db() -> sqlite3.Connection:
    """The connection of this request.

    A page is rendered in a request context of its own, so a render that `revalidate` starts
    has another connection, and sees only what is committed.
    """
    if "db" not in g:
        g.db = connect(current_app.config["DATABASE"])
    return t.cast(sqlite3.Connection, g.db)


def close_db(error: BaseException | None = None) -> None:
    connection = g.pop("db", None)
    if connection is not None:
        connection.close()


@contextmanager
def transaction(connection: sqlite3.Connection) -> t.Iterator[None]:
    """Write all or nothing. Committed when the block is left."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


def set_up(connection: sqlite3.Connection) -> None:
    """Create the tables and write the posts, in exactly one of the workers.

    The worker that gets SQLite's write lock does it, in one transaction. The others wait for
    the lock and find it done. If that worker is killed, nothing has happened, and the next
    one begins anew.
    """
    switch_to_wal(connection)
    if version(connection) == VERSION:
        return
    with transaction(connection):
        found = version(connection)
        if found == VERSION:
            return
        if found == 0:
            fill(connection)
        connection.execute(DRAFTS)
        connection.execute(f"PRAGMA user_version = {VERSION}")


def version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def fill(connection: sqlite3.Connection) -> None:
    for statement in SCHEMA.split(";"):
        connection.execute(statement)
    connection.execute("INSERT INTO settings VALUES ('secret_key', ?)", [secrets.token_hex()])
    now = time.time()
    for module in stdlib.documented_modules():
        row = [module.name.lower(), module.name, module.summary, module.body]
        connection.execute(
            "INSERT OR IGNORE INTO posts VALUES (?, ?, ?, ?, ?, ?)",
            [*row, now, now],
        )
        connection.executemany(
            "INSERT OR IGNORE INTO post_tags VALUES (?, ?)",
            [(tag, row[0]) for tag in module.tags],
        )


def switch_to_wal(connection: sqlite3.Connection) -> None:
    """Let readers and a writer work at the same time. The file remembers it.

    SQLite's own waiting does not cover this switch: of several workers that try at once,
    SQLite refuses all but one.
    """
    deadline = time.monotonic() + SETUP_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.05)
