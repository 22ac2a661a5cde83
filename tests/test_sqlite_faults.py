"""Faults of the machine under the embedded store: files, disks, processes."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
import typing as t
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from werkzeug.test import Client

from wsgi_isr import ISRMiddleware
from wsgi_isr.page import Invalidated
from wsgi_isr.store import locks
from wsgi_isr.store.database import VERSION
from wsgi_isr.store.protocol import Busy, Number, ReadOnly, Record, StoreError
from wsgi_isr.store.sqlite import SQLiteStore

NOTHING = Number("", 0)
PRELUDE = """
import os, signal, sys, time
from wsgi_isr.store.protocol import *
from wsgi_isr.store.sqlite import SQLiteStore
store = SQLiteStore(sys.argv[1])
def record(name, number, body=b"body"):
    labels = ("path:/" + name, "tag:all")
    return Record(name, labels, number, "build", "/" + name, False, b"head", body)
"""

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do that")


def make_record(name: str, number: Number, body: bytes = b"body") -> Record:
    return Record(
        name, (f"path:/{name}", "tag:all"), number, "build", f"/{name}", False, b"h", body
    )


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def running(folder: object, code: str) -> Iterator[subprocess.Popen[str]]:
    """A process with a store; the code says when it is ready by printing."""
    program = PRELUDE + textwrap.dedent(code)
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A folder whose files are in memory, where the machine has one: 3,000 closed files sync."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def open_store(folder: Path) -> Iterator[Callable[..., SQLiteStore]]:
    stores: list[SQLiteStore] = []

    def open_one(**options: t.Any) -> SQLiteStore:
        stores.append(SQLiteStore(str(folder), **options))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def store(open_store: Callable[..., SQLiteStore]) -> SQLiteStore:
    return open_store()


def put(store: SQLiteStore, name: str = "a", body: bytes = b"body") -> None:
    assert store.put(make_record(name, store.number(), body)) is not None


class TestDamage:
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
        before = descriptors()
        for call in (lambda: store.get("a"), store.number, lambda: store.changes(NOTHING)):
            with pytest.raises(StoreError, match="newer"):
                call()
        assert descriptors() <= before + 2
        with contextlib.closing(sqlite3.connect(folder / "pages.sqlite3")) as connection:
            connection.execute(f"PRAGMA user_version = {VERSION}")
        assert store.get("a") is not None

    def test_no_flipped_byte_loses_an_invalidation(self, in_memory: Path) -> None:
        folder = in_memory / "cache"
        store = SQLiteStore(str(folder))
        store.invalidate(["tag:early"], False)
        for name in "abcdefgh":
            record = make_record(name, store.number(), name.encode() * 3000)
            store.put(record._replace(labels=(*record.labels, f"tag:{name}")))
        since = store.number()
        at = store.changes(NOTHING).at
        for name in "abc":
            store.invalidate([f"tag:{name}"], True)
        store.invalidate(["pattern:/d/**"], False)
        store.put(make_record("late", store.number()))
        store.close()
        content = (folder / "pages.sqlite3").read_bytes()
        assert os.listdir(folder).count("pages.sqlite3-wal") == 0
        chance = random.Random(7)
        live = [at for at in range(len(content)) if content[at]]
        before = descriptors()
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
            assert store.put(make_record("new", store.number())) is not None
            list(store.records())
            store.invalidate(["tag:all"], False)
            found = store.get("e")
            assert found is None or found.validity.invalidated
            store.close()
        assert since and descriptors() <= before + 1


class TestFiles:
    def test_begins_anew_where_the_folder_was_removed(
        self, folder: Path, open_store: Callable[..., SQLiteStore]
    ) -> None:
        first, second = open_store(), open_store()
        put(first)
        assert second.get("a") is not None
        at = second.changes(NOTHING).at
        before = descriptors()
        shutil.rmtree(folder)
        assert not second.changes(at).complete
        put(first, "b")
        assert second.get("b") is not None and second.get("a") is None
        assert descriptors() <= before + 2

    @pytest.mark.parametrize("name", ["pages.sqlite3", "pages.sqlite3-wal", "pages.sqlite3-shm"])
    def test_notices_a_removed_file(self, folder: Path, store: SQLiteStore, name: str) -> None:
        put(store)
        at = store.changes(NOTHING).at
        os.unlink(folder / name)
        assert not store.changes(at).complete
        put(store, "b")
        assert store.get("b") is not None

    def test_a_folder_that_was_away_has_no_lock_of_somebody_who_missed_it(
        self, folder: Path, open_store: Callable[..., SQLiteStore]
    ) -> None:
        store, other = open_store(), open_store()
        put(store)
        signal = store.signal
        folder.rename(folder.parent / "away")
        folder.write_text("")
        with pytest.raises(StoreError):
            store.number()
        folder.unlink()
        (folder.parent / "away").rename(folder)
        put(other, "b")
        put(store, "c")
        assert store.get("b") is not None and len(signal) == 2

    def test_memory_follows_the_first_answer_of_a_new_file(self, folder: Path) -> None:
        content = b"old"

        def site(environ: t.Any, start_response: t.Any) -> list[bytes]:
            start_response("200 OK", [("ISR-Revalidate", "false")])
            return [content]

        isr = ISRMiddleware(site, f"file://{folder}", base_url="http://a.test")
        client, inside = Client(isr), folder / "isr%3A"
        for path in ("/a", "/b"):
            client.get(path)
        isr.invalidate("/**", expire=True)
        client.get("/b")
        # No counter of the new lock shows that there is a new file.
        (inside / "lock").unlink()
        (folder / "garbage").write_bytes(b"garbage" * 999)
        (folder / "garbage").rename(inside / "pages.sqlite3")
        content = b"new"
        answers = [client.get("/a") for _ in range(2)]
        assert [answer.data for answer in answers] == [b"new", b"new"]
        assert answers[1].headers["Cache-Status"] == "isr; hit"
        isr.close()

    def test_takes_a_copy_put_in_place_for_another_lineage(
        self, folder: Path, tmp_path: Path, open_store: Callable[..., SQLiteStore]
    ) -> None:
        store = open_store()
        put(store)
        store.close()
        shutil.copy(folder / "pages.sqlite3", tmp_path / "copy")
        at = store.invalidate(["tag:all"], True)
        os.replace(tmp_path / "copy", folder / "pages.sqlite3")
        assert not store.changes(at).complete
        stored = store.get("a")
        assert stored is None or stored.validity.invalidated

    def test_takes_it_for_another_lineage_also_where_the_lock_is_not_to_be_had(
        self, folder: Path, tmp_path: Path, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(store)
        store.close()
        shutil.copy(folder / "pages.sqlite3", tmp_path / "copy")
        at = store.invalidate(["tag:all"], True)
        os.replace(tmp_path / "copy", folder / "pages.sqlite3")
        monkeypatch.setattr(locks, "LOCK_TIMEOUT", 0.1)
        with running(
            folder, "with store.database.lock:\n    print('ready', flush=True); time.sleep(60)"
        ) as process:
            assert said(process) == "ready"
            with pytest.raises(StoreError, match="another process"):
                store.changes(at)
        assert not store.changes(at).complete

    def test_a_copy_says_nothing_of_leases(
        self, folder: Path, tmp_path: Path, open_store: Callable[..., SQLiteStore]
    ) -> None:
        store, other = open_store(), open_store()
        lease = store.lease("a", 60, True)
        shutil.copytree(folder, tmp_path / "copy")
        assert not isinstance(lease, Busy)
        lease.release()
        folder.rename(tmp_path / "before")
        (tmp_path / "copy").rename(folder)
        store.lease("b", 60, True)
        assert isinstance(other.lease("b", 60, True), Busy)
        for one in (store, other):
            again = one.lease("a", 60, True)
            assert not isinstance(again, Busy)
            again.release()

    def test_an_older_copy_brings_pages_and_order_back_together(
        self, folder: Path, tmp_path: Path, open_store: Callable[..., SQLiteStore]
    ) -> None:
        with running(
            folder,
            """
            store.put(record("a", store.number(), b"old"))
            print(store.invalidate(["tag:none"], False).sequence, flush=True)
            sys.stdin.readline()
            store.invalidate(["tag:all"], True)
            store.put(record("a", store.number(), b"new"))
            print("more", flush=True)
            sys.stdin.readline()
            """,
        ) as process:
            sequence = int(said(process))
            shutil.copytree(folder, tmp_path / "older")
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            assert said(process) == "more"
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "older", folder)
        store = open_store()
        stored = store.get("a")
        assert stored is not None and stored.record.body == b"old"
        assert stored.validity.invalidated is Invalidated.NO
        assert store.changes(NOTHING).at.sequence == sequence

    @pytest.mark.parametrize("how", ["unlink", "rename"])
    def test_notices_another_lock_with_other_counters(
        self, folder: Path, open_store: Callable[..., SQLiteStore], how: str
    ) -> None:
        first, second = open_store(), open_store()
        at = second.changes(NOTHING).at
        first.changes(NOTHING)
        if how == "unlink":
            (folder / "lock").unlink()
        else:
            (folder / "lock").rename(folder / "old")
        third = open_store()
        third.invalidate(["tag:x"], False)
        assert [change.label for change in second.changes(at).invalidations] == ["tag:x"]
        for store in (third, first):
            values, before = second.signal, second.signal[0]
            store.invalidate(["tag:x"], False)
            assert values is second.signal and values[0] != before

    def test_a_disk_that_has_no_room_for_a_lock_heals_by_itself(
        self, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: object) -> t.Any:
            raise OSError(errno.ENOSPC, "no space")

        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", fail)
            for _ in range(2):
                with pytest.raises(ReadOnly, match="no space"):
                    store.number()
        put(store)
        assert store.signal[0] and store.get("a") is not None

    def test_waits_for_nobody_who_keeps_the_file_locked(
        self, folder: Path, store: SQLiteStore
    ) -> None:
        put(store)
        with contextlib.closing(
            sqlite3.connect(folder / "pages.sqlite3", isolation_level=None)
        ) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            began = time.monotonic()
            with pytest.raises(StoreError):
                store.number()
            assert time.monotonic() - began < 2.5
            assert store.get("a") is not None
            connection.execute("ROLLBACK")
        put(store, "b")

    @root
    def test_reads_a_folder_of_another_user(self, folder: Path, store: SQLiteStore) -> None:
        put(store)
        store.close()
        os.chown(folder, 12345, 12345)
        assert store.get("a") is not None
        with pytest.raises(ReadOnly, match="belongs to user 12345"):
            store.number()
        os.chown(folder, 0, 0)
        put(store, "b")

    @root
    def test_reads_where_it_may_not_write(self, folder: Path, store: SQLiteStore) -> None:
        put(store)
        store.list_path("/a")
        store.close()
        os.chmod(folder.parent, 0o755)
        os.chmod(folder, 0o555)
        os.chmod(folder / "pages.sqlite3", 0o444)
        for parent in folder.parents:
            if parent.stat().st_uid == 0 and parent != Path("/"):
                os.chmod(parent, parent.stat().st_mode | 0o055)
        with running(
            folder,
            """
            os.setegid(12345); os.seteuid(12345)
            assert store.get("a").record.body == b"body" and store.has_path("/a")
            assert len(list(store.records())) == 1 and store.changes(Number("", 0)).at
            before = len(os.listdir("/proc/self/fd"))
            for call in (store.number, store.probe, lambda: store.invalidate(["tag:all"], True),
                         lambda: store.lease("a", 9, True), lambda: store.list_path("/b")):
                try:
                    call()
                except ReadOnly:
                    continue
                raise AssertionError(call)
            print(len(os.listdir("/proc/self/fd")) - before, flush=True)
            """,
        ) as process:
            assert said(process) == "0"

    @root
    def test_a_full_disk_heals_by_itself(self, tmp_path: Path) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)])
        if mounted.returncode:
            pytest.skip("no file system can be mounted here")
        store = SQLiteStore(str(disk / "cache"))
        try:
            put(store)
            lease = store.lease("a", 60, False)
            filler = disk / "filler"
            with contextlib.suppress(OSError), open(filler, "wb") as file:
                while True:
                    file.write(b"x" * 4096)
                    file.flush()
            before = descriptors()
            failed = 0
            for turn in range(60):
                try:
                    put(store, f"n{turn}", b"b" * 100_000)
                except StoreError:
                    failed += 1
                assert store.get("a") is not None
            assert failed > 10 and not isinstance(lease, Busy)
            lease.release(b"outcome" * 100_000)
            assert descriptors() <= before + 1
            os.unlink(filler)
            put(store, "later")
            again = store.lease("a", 60, False)
            assert not isinstance(again, Busy)
        finally:
            store.close()
            subprocess.run(["umount", "-l", str(disk)], check=True)


class TestProcesses:
    @pytest.mark.parametrize("phase", ["lease", "transaction", "lock"])
    def test_another_goes_on_within_a_second(
        self, folder: Path, store: SQLiteStore, phase: str
    ) -> None:
        put(store)
        with running(
            folder,
            {
                "lease": "store.lease('a', 60, True); store.report({'pid': 1})",
                "transaction": """
                    store.lease('a', 60, True)
                    def step(connection):
                        connection.execute("DELETE FROM pages")
                        print("ready", flush=True)
                        time.sleep(60)
                    store.database.write(step)
                """,
                "lock": """
                    store.lease('a', 60, True)
                    with store.database.lock:
                        print("ready", flush=True)
                        time.sleep(60)
                """,
            }[phase]
            + ("\nprint('ready', flush=True)\ntime.sleep(60)" if phase == "lease" else ""),
        ) as process:
            assert said(process) == "ready"
            if phase == "lease":
                assert isinstance(store.lease("a", 60, True), Busy)
                assert store.processes() == [{"pid": 1}]
            process.kill()
            process.wait()
        began = time.monotonic()
        assert not isinstance(store.lease("a", 60, False), Busy)
        assert time.monotonic() - began < 1
        assert store.get("a") is not None and store.processes() == []

    def test_a_frozen_writer_delays_for_a_bounded_time(
        self, folder: Path, store: SQLiteStore
    ) -> None:
        put(store)
        with running(
            folder,
            "with store.database.lock:\n    print('ready', flush=True); time.sleep(60)",
        ) as process:
            assert said(process) == "ready"
            process.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            with pytest.raises(StoreError, match="another process"):
                store.number()
            assert time.monotonic() - began < 2
            assert store.get("a") is not None
        put(store)

    def test_a_child_uses_connections_of_its_own(self, folder: Path, store: SQLiteStore) -> None:
        put(store)
        lease = store.lease("a", 60, False)
        assert not isinstance(lease, Busy)
        child = os.fork()
        if child == 0:
            good = False
            with contextlib.suppress(BaseException):
                # SQLite's locks of a process do not follow its descriptors into a child.
                paths = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
                opened = [os.readlink(path) for path in paths if os.path.lexists(path)]
                assert not any(path.startswith(str(folder)) for path in opened)
                found = store.get("a") is not None and isinstance(store.lease("a", 9, True), object)
                store.put(make_record("child", store.number()))
                good = found
            os._exit(0 if good else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert store.get("child") is not None
        put(store, "parent")

    def test_a_child_does_not_keep_the_leases_of_its_parent(
        self, folder: Path, store: SQLiteStore
    ) -> None:
        with running(
            folder,
            """
            store.lease("a", 60, True)
            if os.fork() == 0:
                print(os.getpid(), flush=True)
                time.sleep(60)
                os._exit(0)
            time.sleep(60)
            """,
        ) as process:
            child = int(said(process))
            try:
                assert isinstance(store.lease("a", 60, True), Busy)
                process.kill()
                process.wait()
                assert not isinstance(store.lease("a", 60, True), Busy)
            finally:
                os.kill(child, signal.SIGKILL)

    def test_eight_processes_read_and_write_at_once(self, folder: Path, store: SQLiteStore) -> None:
        put(store)
        code = """
            import random
            store.max_pages = 40
            chance = random.Random(os.getpid())
            print("ready", flush=True)
            sys.stdin.readline()
            for turn in range(150):
                name = f"p{chance.randrange(60)}"
                number = store.number()
                if turn % 3 == 0:
                    sequence = store.invalidate([f"path:/{name}"], True).sequence
                    found = store.get(name)
                    assert found is None or found.record.number.sequence > sequence or (
                        found.validity.invalidated == 2)
                else:
                    store.put(record(name, number, b"%d" % number.sequence * 500))
                    found = store.get(name)
                if found:
                    assert found.record.body == b"%d" % found.record.number.sequence * 500
                store.add({"turns": 1})
                assert store.sizes().pages <= 40
            print("done", flush=True)
        """
        with contextlib.ExitStack() as stack:
            processes = [stack.enter_context(running(folder, code)) for _ in range(8)]
            assert [said(process) for process in processes] == ["ready"] * 8
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
            assert [said(process) for process in processes] == ["done"] * 8
        assert store.totals()["turns"] == 8 * 150
        assert len(list(store.records())) == store.sizes().pages <= 40  # type: ignore[operator]
