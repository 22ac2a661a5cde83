"""Files and disks under the embedded store: removed, replaced, full, read-only, locked."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import subprocess
import time
import typing as t
from collections.abc import Callable
from pathlib import Path

import pytest
from embedded import NOTHING, Embedded, descriptors, put, running, said
from werkzeug.test import Client

from wsgi_isr import ISRMiddleware
from wsgi_isr.page import Invalidated
from wsgi_isr.process import POLL
from wsgi_isr.store import locks
from wsgi_isr.store.protocol import Busy, ReadOnly, StoreError
from wsgi_isr.store.sqlite import SQLiteStore

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do that")


class TestFiles(Embedded):
    def test_begins_anew_where_the_folder_was_removed(
        self, folder: Path, open_store: Callable[..., SQLiteStore]
    ) -> None:
        first, second = open_store(), open_store()
        put(first)
        assert second.get("a") is not None
        at = second.changes(NOTHING).at
        before = descriptors(folder)
        shutil.rmtree(folder)
        assert not second.changes(at).complete
        put(first, "b")
        assert second.get("b") is not None and second.get("a") is None
        assert descriptors(folder) <= before + 2

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

    def test_a_process_that_is_closed_opens_nothing_again(self, folder: Path) -> None:
        before = descriptors(folder)
        isr = ISRMiddleware(lambda environ, start_response: [], f"file://{folder}")
        isr.revalidate_tag("tag")
        isr.close()
        time.sleep(1.5 * POLL)
        # What is mapped counts as one.
        assert descriptors(folder) <= before + 1

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

    def test_takes_a_copy_put_in_place_for_another_lineage_once_the_lock_is_to_be_had(
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
        stored = store.get("a")
        assert stored is None or stored.validity.invalidated

    def test_a_copy_says_nothing_of_leases_and_processes(
        self, folder: Path, tmp_path: Path, open_store: Callable[..., SQLiteStore]
    ) -> None:
        store, other = open_store(), open_store()
        lease = store.lease("a", 60, True)
        store.report({"pid": 1})
        shutil.copytree(folder, tmp_path / "copy")
        assert not isinstance(lease, Busy)
        lease.release()
        folder.rename(tmp_path / "before")
        (tmp_path / "copy").rename(folder)
        for _ in range(2):
            store.report({"pid": 1})
        assert other.processes() == [{"pid": 1}]
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
    @pytest.mark.parametrize("left", ["", "-wal -shm", "-wal"])
    def test_reads_where_it_may_not_write(
        self, folder: Path, store: SQLiteStore, tmp_path: Path, left: str
    ) -> None:
        put(store)
        store.list_path("/a")
        store.database.checkpoint("PASSIVE")
        for suffix in left.split():
            # As of a process that was killed.
            shutil.copy(folder / f"pages.sqlite3{suffix}", tmp_path)
        store.close()
        for suffix in left.split():
            shutil.move(tmp_path / f"pages.sqlite3{suffix}", folder)
            os.chmod(folder / f"pages.sqlite3{suffix}", 0o444)
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
            before = descriptors(disk)
            failed = 0
            for turn in range(60):
                try:
                    put(store, f"n{turn}", b"b" * 100_000)
                except StoreError:
                    failed += 1
                assert store.get("a") is not None
            assert failed > 10 and not isinstance(lease, Busy)
            lease.release(b"outcome" * 100_000)
            assert descriptors(disk) <= before + 1
            os.unlink(filler)
            put(store, "later")
            again = store.lease("a", 60, False)
            assert not isinstance(again, Busy)
        finally:
            store.close()
            subprocess.run(["umount", "-l", str(disk)], check=True)
