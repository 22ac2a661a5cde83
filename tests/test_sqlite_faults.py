"""Damage of the embedded store: files and rows that are not what was written."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import tempfile
import typing as t
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from embedded import NOTHING, Embedded, descriptors, put, running, said

from wsgi_isr.store.database import VERSION
from wsgi_isr.store.protocol import StoreError
from wsgi_isr.store.sqlite import SQLiteStore


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A folder whose files are in memory, where the machine has one: 3,000 closed files sync."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


class TestFiles(Embedded):
    @pytest.mark.parametrize("content", [b"", b"x", b"garbage" * 1000])
    def test_puts_a_file_that_is_no_database_aside_and_begins_anew(
        self, folder: Path, store: SQLiteStore, caplog: pytest.LogCaptureFixture, content: bytes
    ) -> None:
        folder.mkdir(0o700)
        (folder / "pages.sqlite3").write_bytes(content)
        put(store)
        assert store.get("a") is not None
        assert (folder / "pages.sqlite3.damaged-1").read_bytes() == content
        assert "put aside" in caplog.text

    def test_the_log_of_a_damaged_file_is_not_taken_for_that_of_the_new_one(
        self, folder: Path, store: SQLiteStore
    ) -> None:
        with running(
            folder,
            "store.put(record('a', store.number())); print(store.number().lineage, flush=True)\n"
            "time.sleep(60)",
        ) as process:
            lineage = said(process)
            # Nobody moves the log into the file while that process has it open.
            with open(folder / "pages.sqlite3", "r+b") as file:
                file.write(b"garbage" * 1000)
            assert store.number().lineage != lineage and store.get("a") is None
            put(store)
            assert (folder / "pages.sqlite3.damaged-1-wal").stat().st_size
        assert store.get("a") is not None

    def test_begins_anew_once_for_all_who_meet_the_damage(
        self, folder: Path, open_store: Callable[..., SQLiteStore]
    ) -> None:
        first, second = open_store(), open_store()
        put(first)
        assert second.get("a") is not None
        before = first.number()
        with contextlib.closing(sqlite3.connect(folder / "pages.sqlite3")) as connection:
            connection.execute("UPDATE state SET data = x'00'")
            connection.commit()
        after = first.number()
        assert after.lineage != before.lineage
        assert second.number().lineage == after.lineage
        assert not second.changes(before).complete
        assert {path.name for path in folder.glob("*.damaged-*")} <= {
            "pages.sqlite3.damaged-1",
            "pages.sqlite3.damaged-1-wal",
        }

    def test_says_that_the_list_of_paths_was_lost(self, folder: Path, store: SQLiteStore) -> None:
        store.list_path("/a")
        assert store.has_path("/a") and not store.has_path("/b")
        store.close()
        (folder / "pages.sqlite3").write_bytes(b"garbage" * 1000)
        assert store.has_path("/b") is None
        store.list_path("/b")
        assert store.has_path("/b")

    @pytest.mark.parametrize(
        "statement",
        [
            "CREATE TRIGGER t AFTER INSERT ON pages BEGIN DELETE FROM labels; END",
            "CREATE VIEW v AS SELECT * FROM pages",
            "CREATE TABLE extra (a)",
            "DROP TABLE history",
            "PRAGMA application_id = 7",
            "PRAGMA user_version = 0",
        ],
    )
    def test_puts_a_planted_schema_aside(
        self, folder: Path, open_store: Callable[..., SQLiteStore], statement: str
    ) -> None:
        store = open_store()
        put(store)
        lineage = store.number().lineage
        store.close()
        with contextlib.closing(sqlite3.connect(folder / "pages.sqlite3")) as connection:
            connection.execute(statement)
            connection.commit()
        assert open_store().number().lineage != lineage

    def test_leaves_a_file_of_a_newer_version_alone(self, folder: Path, store: SQLiteStore) -> None:
        put(store)
        store.close()
        with contextlib.closing(sqlite3.connect(folder / "pages.sqlite3")) as connection:
            connection.execute(f"PRAGMA user_version = {VERSION + 1}")
        before = descriptors(folder)
        for call in (lambda: store.get("a"), store.number, lambda: store.changes(NOTHING)):
            with pytest.raises(StoreError, match="newer"):
                call()
        assert descriptors(folder) <= before + 2
        with contextlib.closing(sqlite3.connect(folder / "pages.sqlite3")) as connection:
            connection.execute(f"PRAGMA user_version = {VERSION}")
        assert store.get("a") is not None

    def test_no_flipped_byte_loses_an_invalidation(self, in_memory: Path) -> None:
        folder = in_memory / "cache"
        store = SQLiteStore(str(folder))
        store.invalidate(["tag:early"], False)
        for name in "abcdefgh":
            put(store, name, name.encode() * 3000)
        since = store.number()
        at = store.changes(NOTHING).at
        for name in "abc":
            store.invalidate([f"tag:{name}"], True)
        store.invalidate(["pattern:/d/**"], False)
        put(store, "late")
        store.close()
        content = (folder / "pages.sqlite3").read_bytes()
        assert os.listdir(folder).count("pages.sqlite3-wal") == 0
        chance = random.Random(7)
        live = [at for at in range(len(content)) if content[at]]
        before = descriptors(in_memory)
        work = in_memory / "flipped"
        work.mkdir(0o700)
        for turn in range(1000):
            place = chance.choice(live) if turn % 2 else chance.randrange(len(content))
            if 60 <= place < 64:
                # The number of the version: a file of a newer one is left alone.
                continue
            flipped = bytearray(content)
            flipped[place] ^= 1 << chance.randrange(8)
            for name in os.listdir(work):
                if name.startswith("pages"):
                    os.unlink(work / name)
            (work / "pages.sqlite3").write_bytes(flipped)
            store = SQLiteStore(str(work))
            lineage = store.number().lineage
            changes = store.changes(at)
            if changes.complete:
                assert {change.label for change in changes.invalidations} == {
                    "tag:a",
                    "tag:b",
                    "tag:c",
                    "pattern:/d/**",
                }, place
            for name in "abcdefgh":
                stored = store.get(name)
                if stored is None or stored.record.number.lineage != lineage:
                    continue
                assert stored.record.name == name
                expected = {"a": 2, "b": 2, "c": 2, "d": 1}.get(name, 0)
                assert stored.validity.invalidated >= expected, place
            assert put(store, "new") is not None
            list(store.records())
            store.invalidate(["tag:all"], False)
            found = store.get("e")
            assert found is None or found.validity.invalidated
            store.close()
        assert since and descriptors(in_memory) <= before + 1


class TestRows(Embedded):
    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE pages SET meta = x'0011223344'",
            "UPDATE pages SET head = NULL",
            "UPDATE bodies SET body = 'text'",
            "DELETE FROM bodies",
            "UPDATE pages SET meta = (SELECT meta FROM pages WHERE name = 'b') WHERE name = 'a'",
        ],
    )
    def test_a_damaged_page_is_a_miss_and_replaced(
        self, store: SQLiteStore, statement: str
    ) -> None:
        put(store, "a")
        put(store, "b")
        store.database.write(lambda connection: connection.execute(statement).rowcount)
        assert store.get("a") is None
        put(store, "a")
        assert store.get("a") is not None

    def test_an_error_of_the_disk_heals_by_itself(
        self, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(store, "a")

        def fail(connection: sqlite3.Connection) -> t.Any:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error

        for call in (store.database.read, store.database.write):
            with pytest.raises(StoreError):
                call(fail)
            assert store.get("a") is not None
