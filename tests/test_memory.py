"""The memory level: bounded in bytes, and a hit copies nothing of a page."""

from __future__ import annotations

import copyreg
import gc
import json
import sys
import time
import tracemalloc
import typing as t
from collections.abc import Iterator

import pytest
from conftest import Make, Site, status_of
from entries import make_page
from steps import visit
from werkzeug.test import create_environ

from wsgi_isr import ISRMiddleware
from wsgi_isr.key import PageKey
from wsgi_isr.page import Invalidated
from wsgi_isr.store.memory import MAX_FINGERPRINTS, MAX_LENGTH, Entry, MemoryLevel
from wsgi_isr.store.protocol import MAX_HISTORY, Changes, Invalidation, Number

DEFAULT = 50 * 2**20
SIZE = 20 * 1024


def entry(path: str, body: bytes = b"", **fields: t.Any) -> Entry:
    return Entry(make_page(path, body, **fields), Invalidated.NO)


def real_size(memory: MemoryLevel) -> int:
    """Bytes of all that the pages in it consist of, each object counted once."""
    seen: set[int] = set()
    waiting: list[t.Any] = [*memory, memory.hits]
    size = 0
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, type):
            continue
        seen.add(id(thing))
        size += sys.getsizeof(thing)
        if isinstance(thing, dict):
            waiting += [*thing.keys(), *thing.values()]
        elif isinstance(thing, tuple | list | set):
            waiting += thing
        for name in copyreg._slotnames(type(thing)):  # type: ignore[attr-defined]
            if hasattr(thing, name):
                waiting.append(getattr(thing, name))
        waiting += vars(thing).values() if hasattr(thing, "__dict__") else ()
    return size


class TestBound:
    def test_holds_for_ten_thousand_pages_of_20_kb(self) -> None:
        memory = MemoryLevel(DEFAULT)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for number in range(10_000):
                # A body of its own for each.
                memory.put(entry(f"/{number}", b"%d" % number + bytes(SIZE)))
                assert memory.size <= DEFAULT
            taken = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert len(memory) * SIZE > 0.8 * DEFAULT, "it is made use of"
        assert real_size(memory) <= DEFAULT
        assert taken <= DEFAULT

    def test_holds_for_small_pages_and_the_requests_that_find_them(
        self, site: Site, make: Make
    ) -> None:
        isr = make(memory_size=2**19, query=["q"])
        for number in range(750):
            site.page(f"/{number}", f"{number}", tags=[f"tag {number}"])
            for query in ("", "?utm=1", "?q=" + "x" * 50):
                visit(isr, f"/{number}{query}")
        memory = isr._here().pages.memory
        assert 50 < len(memory) < 750
        assert real_size(memory) <= 1.1 * 2**19

    def test_of_zero_keeps_nothing(self, site: Site, make: Make, files: str) -> None:
        site.page("/")
        isr = make(files, memory_size=0)
        assert status_of(visit(isr)) == "isr; fwd=uri-miss; stored"
        assert status_of(visit(isr)) == "isr; hit; ttl=60"
        assert isr.stats()["memory_bytes"] == 0

    def test_of_zero_lets_the_store_know_which_pages_are_used(
        self, site: Site, make: Make, files: str
    ) -> None:
        site.page("/")
        isr = make(files, memory_size=0)
        # The store's own.
        isr._clock = time.time
        visit(isr)
        isr.store.database.write(lambda db: db.execute("UPDATE pages SET used = 1") and None)
        visit(isr)
        isr.stats()
        (stored,) = isr.store.records()
        assert stored.used > 1

    def test_keeps_no_page_that_is_larger_and_lets_the_others_stay(self) -> None:
        memory = MemoryLevel(100_000)
        memory.put(entry("/small"))
        memory.put(entry("/large", bytes(200_000)))
        assert [kept.page.key.path for kept in memory] == ["/small"]

    def test_is_given_back_when_pages_go(self) -> None:
        memory = MemoryLevel(100_000)
        for number in range(10):
            memory.put(entry("/same", bytes(1000 * number), sequence=number))
        kept = memory.get(make_page("/same").key)
        assert kept is not None and memory.size == kept.size
        memory.discard(kept.page.key)
        assert memory.size == len(memory) == len(memory.hits) == 0


class TestEviction:
    def test_takes_what_was_not_visited_since(self) -> None:
        memory = MemoryLevel(10 * entry("/new/0", bytes(1000)).size)
        entries = [memory.put(entry(f"/old/{number}", bytes(1000))) for number in range(10)]
        for visited in entries[:5]:
            visited.referenced = True
        for number in range(5):
            memory.put(entry(f"/new/{number}", bytes(1000)))
        left = {kept.page.key.path for kept in memory}
        assert left == {*(f"/old/{n}" for n in range(5)), *(f"/new/{n}" for n in range(5))}

    def test_forgets_the_requests_that_led_to_the_page(self) -> None:
        first = entry("/0", bytes(1000))
        memory = MemoryLevel(first.size + 500)
        memory.put(first)
        fingerprint = ("/0", "", "localhost", "http", "", None)
        memory.add_hit(first, fingerprint, "an answer")
        assert memory.hits == {fingerprint: "an answer"}
        memory.put(entry("/1", bytes(1000)))
        assert memory.hits == {}
        memory.add_hit(first, fingerprint, "an answer")
        assert memory.hits == {}, "a page that is not kept is not found"

    def test_bounds_the_requests_that_lead_to_a_page(self) -> None:
        memory = MemoryLevel(DEFAULT)
        kept = memory.put(entry("/"))
        before = memory.size
        for number in range(10 * MAX_FINGERPRINTS):
            memory.add_hit(kept, ("/", f"q={number}", "localhost", "http", "", None), "an answer")
        assert 1 <= len(memory.hits) <= MAX_FINGERPRINTS and memory.size > before
        memory.add_hit(kept, ("/", "q" * MAX_LENGTH, "localhost", "http", "", None), "an answer")
        assert len(memory.hits) <= MAX_FINGERPRINTS
        memory.discard(kept.page.key)
        assert memory.size == len(memory.hits) == 0


class TestInvalidations:
    """They are kept until each page has been confirmed, but not too many of them."""

    @pytest.fixture
    def memory(self) -> MemoryLevel:
        memory = MemoryLevel(DEFAULT)
        self.apply(memory, 5)
        return memory

    @staticmethod
    def apply(memory: MemoryLevel, at: int, *labels: str, complete: bool = True) -> None:
        made = tuple(Invalidation(label, at, False) for label in labels)
        memory.apply(Changes(Number("a lineage", at), complete, made))
        memory.generation = at

    def test_apply_to_the_page_when_it_is_next_used(self, memory: MemoryLevel) -> None:
        kept, other = memory.put(entry("/a")), memory.put(entry("/b"))
        self.apply(memory, 6, "path:/a")
        for page in (kept, other):
            memory.confirm(page)
        assert (kept.invalidated, other.invalidated) == (Invalidated.STALE, Invalidated.NO)
        # A page that was read before says so too.
        late = entry("/a", sequence=5)
        memory.discard(kept.page.key)
        assert memory.put(late, Number("a lineage", 5)).invalidated is Invalidated.STALE

    def test_are_forgotten_when_they_were_applied_to_all(self, memory: MemoryLevel) -> None:
        kept, other = memory.put(entry("/a")), memory.put(entry("/b"))
        self.apply(memory, 6, "path:/a", *map(str, range(MAX_HISTORY)))
        assert (kept.invalidated, other.invalidated) == (Invalidated.STALE, Invalidated.NO)
        late = entry("/c")
        assert memory.put(late, Number("a lineage", 5)).invalidated is Invalidated.STALE
        assert memory.get(late.page.key) is None, "it may have missed one of them"
        sound = memory.put(entry("/c"), Number("a lineage", 6))
        assert memory.get(late.page.key) is sound and sound.invalidated is Invalidated.NO

    def test_that_nobody_can_name_leave_no_page(self, memory: MemoryLevel) -> None:
        memory.put(entry("/a"))
        self.apply(memory, 9, complete=False)
        assert not list(memory)

    def test_hold_here_where_the_store_did_not_take_them(self, memory: MemoryLevel) -> None:
        kept, other = memory.put(entry("/a", tags=("t",))), memory.put(entry("/b"))
        memory.invalidate(["tag:t"], True)
        assert (kept.invalidated, other.invalidated) == (Invalidated.EXPIRED, Invalidated.NO)
        assert memory.put(entry("/a", sequence=5, generated_at=1.0)).invalidated is Invalidated.NO


class TestPut:
    def test_keeps_the_newer_page_and_the_entry_of_one_that_is_read_again(self) -> None:
        memory = MemoryLevel(DEFAULT)
        newer, older = entry("/", sequence=6), entry("/", sequence=5)
        assert memory.put(newer) is newer
        assert memory.put(older) is memory.put(entry("/", sequence=6)) is newer
        assert memory.get(newer.page.key) is newer


@pytest.mark.parametrize(
    ("changes", "outdated"),
    [
        (Changes(Number("one", 9), True, ()), False),
        (Changes(Number("one", 9), True, (Invalidation("path:/y", 9, False),)), False),
        (Changes(Number("one", 9), True, (Invalidation("path:/x", 4, False),)), False),
        (Changes(Number("one", 9), True, (Invalidation("path:/x", 9, False),)), True),
        (Changes(Number("one", 9), True, (Invalidation("pattern:/*", 9, False),)), True),
        # Its tags are not known yet.
        (Changes(Number("one", 9), True, (Invalidation("tag:any", 9, False),)), True),
        (Changes(Number("one", 9), False, ()), True),
        (Changes(Number("two", 1), False, ()), True),
    ],
)
def test_a_render_is_outdated_by_what_may_be_about_its_page(
    changes: Changes, outdated: bool
) -> None:
    memory = MemoryLevel(DEFAULT)
    memory.apply(Changes(Number("one", 5), True, ()))
    memory.apply(changes)
    key = PageKey("http", "localhost", "", "/x")
    assert memory.is_outdated(key, Number("one", 6)) is outdated


class TestAHit:
    @pytest.mark.parametrize("coding", ["identity", "gzip"])
    @pytest.mark.parametrize("cache", ["memory", "files"])
    def test_hands_out_the_very_bytes_that_are_stored_and_parses_nothing(
        self,
        site: Site,
        make: Make,
        files: str,
        monkeypatch: pytest.MonkeyPatch,
        cache: str,
        coding: str,
    ) -> None:
        def never(*args: object, **kwargs: object) -> t.Any:
            raise AssertionError("a hit has no need of it")

        site.page("/", "x" * SIZE)
        isr: ISRMiddleware = make("memory://" if cache == "memory" else files)
        visit(isr)
        (kept,) = isr._here().pages.memory
        monkeypatch.setattr(json, "loads", never)
        monkeypatch.setattr("wsgi_isr.page.Codec.encode", never)
        for _ in range(3):
            environ = create_environ(headers={"Accept-Encoding": coding})
            (body,) = isr(environ, lambda status, headers: None)  # type: ignore[arg-type]
            assert body is kept.page.bodies[coding]


class TestAPageThatIsNotKept:
    @pytest.fixture(autouse=True)
    def no_collections(self) -> Iterator[None]:
        """What refers to itself would stay, with all its bytes."""
        gc.collect()
        gc.disable()
        yield
        gc.enable()

    @staticmethod
    def alive(path: str) -> int:
        found = (thing for thing in gc.get_objects() if type(thing) is Entry)
        return sum(entry.page.key.path == path for entry in found)

    def test_is_freed_when_it_was_served_or_replaced(
        self, site: Site, make: Make, files: str
    ) -> None:
        site.page("/not-kept")
        site.page("/replaced")
        isr = make(files, memory_size=0)
        for _ in range(5):
            status = status_of(visit(isr, "/not-kept"))
        assert (status, self.alive("/not-kept")) == ("isr; hit; ttl=60", 0)
        isr = make()
        for _ in range(5):
            visit(isr, "/replaced")
            assert status_of(visit(isr, "/replaced")) == "isr; hit; ttl=60"
            isr.revalidate("http://localhost/replaced")
        assert self.alive("/replaced") == 1
