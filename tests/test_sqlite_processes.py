"""Processes over one embedded store: killed, frozen, forked, many at once."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
from embedded import Embedded, put, running, said

from wsgi_isr.store.protocol import Busy, StoreError
from wsgi_isr.store.sqlite import SQLiteStore


class TestProcesses(Embedded):
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
                put(store, "child")
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
