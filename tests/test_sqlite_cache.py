"""`SQLiteCache` is a cachelib cache like any other, in the store's database."""

from __future__ import annotations

import contextlib
import datetime
import enum
import os
import sqlite3
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from wsgi_isr.store import notes
from wsgi_isr.store.notes import SQLiteCache
from wsgi_isr.store.protocol import Record
from wsgi_isr.store.sqlite import SQLiteStore


class Clock:
    now = 1_700_000_000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(notes, "time", clock)
    return clock


@pytest.fixture
def cache(tmp_path: Path) -> SQLiteCache:
    return SQLiteCache(str(tmp_path / "cache"), threshold=20)


class Colour(enum.IntEnum):
    RED = 1


class TestSQLiteCache:
    @pytest.mark.parametrize(
        "value",
        [
            "é\ud800",
            b"\0\xff",
            2**5000,
            -(2**64),
            1.5,
            float("inf"),
            True,
            [1, "a", None, [b"x"]],
            (1, (2,)),
            {"a": {"b": (1, [2])}, "tuple": 1, "": None},
        ],
    )
    def test_gives_back_what_was_set(self, cache: SQLiteCache, value: t.Any) -> None:
        assert cache.set("key", value) is True
        found = cache.get("key")
        assert found == value and type(found) is type(value)
        assert cache.has("key") and not cache.has("other")

    @pytest.mark.parametrize("value", [object(), {1: 2}, {1, 2}, Colour.RED, [print], 1j])
    def test_takes_no_other_values(self, cache: SQLiteCache, value: t.Any) -> None:
        with pytest.raises(TypeError, match="a SQLiteCache keeps"):
            cache.set("key", value)

    def test_takes_no_value_that_contains_itself(self, cache: SQLiteCache) -> None:
        value: list[t.Any] = []
        value.append(value)
        with pytest.raises(TypeError, match="contains itself"):
            cache.set("key", value)

    def test_items_expire(self, cache: SQLiteCache, clock: Clock) -> None:
        cache.set("default", 1)
        cache.set("short", 1, timeout=datetime.timedelta(seconds=1))
        cache.set("ever", 1, timeout=0)
        clock.now += 2
        assert cache.get_many("default", "short", "ever") == [1, None, 1]
        clock.now += 10**9
        assert cache.get_many("default", "short", "ever") == [None, None, 1]
        assert not cache.has("default")

    def test_adds_only_what_is_not_there(self, cache: SQLiteCache, clock: Clock) -> None:
        assert cache.add("key", 1, timeout=1) and not cache.add("key", 2)
        assert cache.get("key") == 1
        clock.now += 2
        assert cache.add("key", 3) and cache.get("key") == 3

    def test_counts(self, cache: SQLiteCache, clock: Clock) -> None:
        assert cache.inc("n") == 1 and cache.inc("n", 5) == 6 and cache.dec("n") == 5
        cache.set("n", 1, timeout=10)
        clock.now += 9
        assert cache.inc("n") == 2
        clock.now += 2
        assert cache.get("n") is None

    def test_takes_many(self, cache: SQLiteCache) -> None:
        assert cache.set_many({"a": 1, "b": 2}) == ["a", "b"]
        assert cache.get_dict("a", "b", "c") == {"a": 1, "b": 2, "c": None}
        cache.delete_many("a", "c")
        assert cache.get_many("a", "b") == [None, 2]
        assert not cache.delete("a") and cache.delete("b")

    def test_keeps_within_its_threshold(self, cache: SQLiteCache, clock: Clock) -> None:
        cache.set("first", 1, timeout=0)
        cache.set("short", 1, timeout=1)
        clock.now += 2
        for turn in range(19):
            cache.set(f"key {turn}", turn)
        assert cache.has("first") and not cache.has("short")
        cache.set("one more", 1)
        assert not cache.has("first") and cache.has("key 0")

    def test_clears_items_and_no_pages(self, cache: SQLiteCache) -> None:
        store = SQLiteStore(cache.folder)
        number = store.number()
        store.put(Record("page", ("path:/",), number, "", "/", False, b"h", b"b"))
        cache.set("key", 1)
        assert cache.clear()
        assert cache.get("key") is None and store.get("page") is not None
        store.close()

    def test_a_damaged_item_is_not_there(self, cache: SQLiteCache) -> None:
        cache.set("key", "value")
        path = Path(cache.folder) / "pages.sqlite3"
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("UPDATE items SET value = x'6162636465'")
            connection.commit()
        assert cache.get("key") is None and cache.add("key", 1)

    def test_an_outage_is_a_miss_and_one_line_a_minute(
        self, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").write_text("")
        cache = SQLiteCache(str(tmp_path / "file"))
        for _ in range(2):
            assert cache.get("key") is None and cache.set("key", 1) is False
            assert not cache.add("key", 1) and cache.inc("key") is None and not cache.delete("key")
            clock.now += 61
        assert [str(tmp_path) in record.message for record in caplog.records] == [True, True]

    def test_takes_a_folder_whatever_its_name(self, tmp_path: Path) -> None:
        cache = SQLiteCache(os.fsdecode(os.fsencode(tmp_path) + b"/%3F?#\xff"))
        assert cache.set("key", 1) and cache.get("key") == 1

    def test_processes_add_up(self, cache: SQLiteCache) -> None:
        code = (
            "import sys; from wsgi_isr.store.notes import SQLiteCache\n"
            "cache = SQLiteCache(sys.argv[1])\n"
            "for _ in range(100): cache.inc('n')"
        )
        command = [sys.executable, "-c", code, cache.folder]
        processes = [subprocess.Popen(command) for _ in range(4)]
        assert [process.wait() for process in processes] == [0] * 4
        assert cache.get("n") == 400
