"""`StoreContract`: a class of tests for a kind of store; tests of what it does not claim skip."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import threading
import time
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence

import pytest

from ..freshness import Invalidated
from ..store.protocol import Busy
from ..store.protocol import Failure
from ..store.protocol import MAX_HISTORY
from ..store.protocol import MAX_LABELS
from ..store.protocol import MAX_WANTED
from ..store.protocol import Number
from ..store.protocol import Record
from ..store.protocol import Store
from ..store.protocol import Stored
from ..store.protocol import Wanted

NO, STALE, EXPIRED = Invalidated.NO, Invalidated.STALE, Invalidated.EXPIRED
NOTHING = Number("", 0)
FOREIGN = Number("another lineage", 10**6)
#: Seconds within which another process sees a change, and within which a killed one is replaced.
FOLLOWS, TAKEN_OVER = 1.0, 6.0
#: Seconds that a busy machine may add to those.
GRACE = 1.0


def make_record(name: str, number: Number, **fields: t.Any) -> Record:
    """A page of a host, whose labels follow from its path and ``tags``."""
    path, tags = fields.get("path", "/blog/1"), fields.pop("tags", ())
    labels = (f"path:{path}", f"host:example.com{path}", f"page:{name}")
    record = Record(name, labels, number, "build", path, False, b"head", b"body")
    return record._replace(labels=(*labels, *(f"tag:{tag}" for tag in tags)), **fields)


def eventually(check: Callable[[], t.Any], seconds: float) -> t.Any:
    """The first true value of a check, or the last one when time is up."""
    deadline = time.monotonic() + seconds
    while not (value := check()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return value


def run_threads(count: int, work: Callable[[int], None]) -> None:
    """Run work in threads that begin together, and raise what one of them raised."""
    barrier, errors = threading.Barrier(count), []

    def run(index: int) -> None:
        try:
            barrier.wait()
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@contextlib.contextmanager
def listening(store: Store) -> Iterator[Callable[[], bool]]:
    """Call `Store.listen` in a thread; gives whether the store announces anything."""
    stop, announces = threading.Event(), threading.Event()

    def listen() -> None:
        while not stop.is_set() and store.listen(0.2):
            announces.set()

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield lambda: announces.is_set() or thread.is_alive()
    finally:
        stop.set()
        thread.join()


class StoreContract:
    """The promises of a store. Derive a class whose name begins with ``Test``."""

    #: False for a store that leaves pages to the memory of its process.
    keeps_pages = True
    #: A picklable callable that opens the store in another process, with the result of the fixture
    #: ``store_arguments``; without it no processes are started.
    store_factory: t.ClassVar[Callable[..., Store] | None] = None

    @pytest.fixture
    def open_store(self) -> Callable[[], Store]:
        """How to open one more store on the same data, as another process does."""
        raise NotImplementedError("override the fixture open_store")

    @pytest.fixture
    def store_arguments(self) -> tuple[t.Any, ...]:
        return ()

    @pytest.fixture
    def opened(self, open_store: Callable[[], Store]) -> Iterator[Callable[[], Store]]:
        stores: list[Store] = []

        def open_one() -> Store:
            stores.append(open_store())
            return stores[-1]

        yield open_one
        for store in stores:
            store.close()

    @pytest.fixture
    def store(self, opened: Callable[[], Store]) -> Store:
        return opened()

    @pytest.fixture
    def other(self, store: Store, opened: Callable[[], Store]) -> Store:
        return opened()

    @pytest.fixture
    def pages(self, store: Store) -> None:
        if not self.keeps_pages:
            pytest.skip("the store keeps no pages")

    @pytest.fixture
    def listed(self, store: Store, pages: None) -> None:
        self.need(store, "lists")

    def need(self, store: Store, *claims: str) -> None:
        for claim in claims:
            if not getattr(store.kind, claim):
                pytest.skip(f"the kind {store.kind.name} does not claim {claim!r}")

    def put(self, store: Store, name: str = "page", **fields: t.Any) -> Record:
        record = make_record(name, fields.pop("number", None) or store.number(), **fields)
        assert store.put(record) is not None
        return record

    def state(self, store: Store, name: str = "page") -> Invalidated:
        stored = store.get(name)
        assert stored is not None
        return stored.validity.invalidated

    # Pages.

    @pytest.mark.usefixtures("pages")
    @pytest.mark.parametrize(
        "name",
        ["0a.ff", "a" * 200, "A", "a/../b", "..", "%2e", "a b", "clock", "", "x:y", "'; --", "*"],
    )
    def test_gives_what_was_put_under_any_name(
        self, store: Store, other: Store, name: str
    ) -> None:
        assert store.get(name) is None
        record = self.put(store, name, tags=["é", "a b"], gone=True, build="", path="/caf\xc3\xa9")
        assert other.get(name) == Stored(record, t.cast(Stored, store.get(name)).validity)
        assert store.get(name.swapcase() + "2") is None

    @pytest.mark.usefixtures("pages")
    @pytest.mark.parametrize(
        ("head", "body"), [(b"", b""), (bytes(range(256)), b"\0\n\r\xff" * 1000)], ids=["none", "all"]
    )
    def test_keeps_bytes(self, store: Store, other: Store, head: bytes, body: bytes) -> None:
        record = self.put(store, head=head, body=body)
        assert t.cast(Stored, other.get("page")).record == record

    @pytest.mark.usefixtures("pages")
    def test_keeps_large_pages(self, store: Store, other: Store) -> None:
        record = self.put(store, body=random.Random(1).randbytes(1000 * 1000))
        assert t.cast(Stored, other.get("page")).record == record

    @pytest.mark.usefixtures("pages")
    def test_deletes_a_page_and_no_other(self, store: Store, other: Store) -> None:
        self.put(store, "one")
        self.put(store, "two")
        other.delete("one")
        other.delete("never there")
        assert store.get("one") is None and store.get("two") is not None

    @pytest.mark.usefixtures("pages")
    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
    def test_keeps_the_latest_render_in_whatever_order_they_end(
        self, store: Store, other: Store, order: Sequence[int]
    ) -> None:
        records = [make_record("page", store.number(), body=b"%d" % turn) for turn in range(3)]
        latest = -1
        for turn, at in zip(order, (store, other, store), strict=True):
            stored = at.put(records[turn])
            assert (stored is None) == (turn < latest)
            latest = max(latest, turn)
            assert t.cast(Stored, other.get("page")).record == records[latest]

    @pytest.mark.usefixtures("pages")
    def test_replaces_a_page_of_the_same_number(self, store: Store) -> None:
        number = store.number()
        self.put(store, number=number)
        again = self.put(store, number=number, body=b"again")
        assert t.cast(Stored, store.get("page")).record == again

    @pytest.mark.usefixtures("pages")
    def test_takes_a_page_of_another_lineage_for_a_stale_one(self, store: Store) -> None:
        validity = store.put(make_record("page", FOREIGN))
        assert validity is not None and validity.invalidated is STALE
        assert self.state(store) is STALE
        self.put(store)
        assert self.state(store) is NO
        assert store.put(make_record("page", FOREIGN)) is None
        assert self.state(store) is NO

    @pytest.mark.usefixtures("pages")
    def test_expires_a_page_of_another_lineage(self, store: Store) -> None:
        store.put(make_record("page", FOREIGN))
        store.invalidate(["path:/blog/1"], True)
        assert self.state(store) is EXPIRED

    def test_says_when_a_page_was_stored_or_deleted(self, store: Store, other: Store) -> None:
        with listening(other):
            for change in (lambda: self.put(store), lambda: store.delete("page")):
                before, there = store.stored("page"), other.stored("page")
                change()
                assert store.stored("page") != before
                assert eventually(lambda there=there: other.stored("page") != there, FOLLOWS + GRACE)

    # Validity.

    @pytest.mark.usefixtures("pages")
    @pytest.mark.parametrize("expire", [False, True])
    @pytest.mark.parametrize(
        "label",
        [
            "path:/blog/caf\xc3\xa9", "host:example.com/blog/caf\xc3\xa9", "page:page", "tag:é",
            "tag:" + "x" * 256, "tag:%2F *", "pattern:/blog/caf%C3%A9", "pattern:/blog/*",
            "pattern:/**", "pattern:/*/caf*", "pattern:/blog/**", "pattern:/**/caf%C3%A9",
            "pattern:/blog/caf%c3%a9/**", "pattern:/b*/**/*",
        ],
    )  # fmt: skip
    def test_invalidates_earlier_renders_by_each_label(
        self, store: Store, other: Store, label: str, expire: bool
    ) -> None:
        tags, path = ["é", "x" * 256, "%2F *"], "/blog/caf\xc3\xa9"
        before = self.put(store, tags=tags, path=path)
        late = before._replace(name="late")
        assert self.state(other) is NO
        at = other.invalidate([label], expire)
        after = EXPIRED if expire else STALE
        for opened in (store, other):
            stored = opened.get("page")
            assert stored is not None and stored.validity == (after, at)
        assert store.put(late._replace(labels=before.labels)) == (after, at)
        self.put(store, tags=tags, path=path)
        assert self.state(other) is NO

    @pytest.mark.usefixtures("pages")
    @pytest.mark.parametrize(
        "label",
        [
            "path:/blog", "path:/blog/1/", "host:example.com/blog", "host:example.org/blog/1",
            "page:pag", "tag:a", "tag:ab,", "tag:AB", "pattern:/blog", "pattern:/*",
            "pattern:/blog/*/**/1", "pattern:/blog/1*1", "pattern:/BLOG/*", "pattern:/blog/%2A",
        ],
    )  # fmt: skip
    def test_leaves_other_pages_as_they_are(self, store: Store, label: str) -> None:
        self.put(store, tags=["ab"])
        store.invalidate([label], True)
        assert self.state(store) is NO

    @pytest.mark.usefixtures("pages")
    def test_what_expires_a_page_outweighs_what_makes_it_stale(self, store: Store) -> None:
        self.put(store)
        store.invalidate(["path:/blog/1"], True)
        store.invalidate(["path:/blog/1", "pattern:/**"], False)
        assert self.state(store) is EXPIRED
        self.put(store)
        store.invalidate(["page:page"], False)
        assert self.state(store) is STALE

    @pytest.mark.usefixtures("pages")
    def test_finds_pages_by_many_patterns(self, store: Store) -> None:
        """Whatever is merged or indexed, an earlier page that matches is never valid."""
        for number in range(300):
            self.put(store, f"page {number}", path=f"/shop/{number}/item")
        store.invalidate([f"pattern:/shop/{number}/*" for number in range(150)], False)
        store.invalidate([f"pattern:/shop/*/item{number}" for number in range(250)], False)
        states = [self.state(store, f"page {number}") for number in range(150)]
        assert set(states) == {STALE}

    @pytest.mark.usefixtures("pages")
    def test_forgets_labels_without_making_other_pages_stale(self, store: Store) -> None:
        self.need(store, "exact")
        old = self.put(store, "old", tags=["first"])
        self.put(store, "free", path="/free")
        store.invalidate(["tag:first"], True)
        for start in range(0, MAX_LABELS + 2000, 1000):
            store.invalidate([f"tag:{number}" for number in range(start, start + 1000)], False)
        assert self.state(store, "old") is EXPIRED
        assert self.state(store, "free") is NO
        validity = store.put(old._replace(name="put late"))
        assert validity is not None and validity.invalidated is not NO
        self.put(store, "new", tags=["first"])
        assert self.state(store, "new") is NO

    # The order.

    def test_numbers_rise_over_all_who_share_it(self, store: Store, other: Store) -> None:
        numbers = [store.number(), other.invalidate(["tag:a"], False), store.number()]
        numbers += [store.invalidate(["tag:a"], True), other.number()]
        assert sorted(set(numbers)) == numbers
        assert len({number.lineage for number in numbers}) == 1 and numbers[0].lineage

    def test_one_number_is_given_once(self, store: Store, other: Store) -> None:
        self.need(store, "exact")
        numbers: list[Number] = []
        run_threads(
            8, lambda index: numbers.extend((store, other)[index % 2].number() for _ in range(50))
        )
        assert len(set(numbers)) == 400

    def test_says_what_was_invalidated_since(self, store: Store, other: Store) -> None:
        start = store.changes(NOTHING)
        assert not start.complete and start.at.lineage
        assert store.changes(start.at) == (start.at, True, ())
        store.number()
        assert store.changes(start.at).at == start.at
        first = store.invalidate(["tag:a", "path:/x"], False)
        middle = other.changes(start.at)
        assert middle.complete and middle.at == first
        assert {item.label for item in middle.invalidations} == {"tag:a", "path:/x"}
        second = store.invalidate(["tag:a"], True)
        for opened in (store, other):
            changes = opened.changes(first)
            assert changes == opened.changes(first) == (second, True, changes.invalidations)
            (item,) = changes.invalidations
            assert item == ("tag:a", second.sequence, True)
        both = other.changes(start.at)
        assert {item.label for item in both.invalidations} == {"tag:a", "path:/x"}
        assert not store.changes(start.at._replace(lineage="another")).complete
        assert store.changes(second) == (second, True, ())

    def test_says_when_somebody_is_too_far_behind(self, store: Store) -> None:
        start = store.invalidate(["tag:a"], False)
        labels = {f"tag:{number}" for number in range(MAX_HISTORY + 200)}
        for label in sorted(labels)[:200]:
            store.invalidate([label], False)
        near = store.changes(NOTHING).at
        store.invalidate(sorted(labels)[200:], False)
        changes = store.changes(start)
        assert not changes.complete or {item.label for item in changes.invalidations} == labels
        store.invalidate(["tag:last"], False)
        last = store.changes(store.changes(near).at)
        assert last.complete and not last.invalidations

    def test_a_signal_changes_with_each_invalidation(self, store: Store, other: Store) -> None:
        with listening(other) as announces:
            for expire in (False, True, False):
                before, there = store.signal[0], other.signal[0]
                store.invalidate(["tag:a"], expire)
                assert store.signal[0] != before
                wait = FOLLOWS + GRACE if announces() else 0
                assert eventually(lambda there=there: other.signal[0] != there, wait)

    @pytest.mark.usefixtures("pages")
    def test_a_page_read_after_an_invalidation_is_never_an_earlier_valid_one(
        self, store: Store, other: Store
    ) -> None:
        self.need(store, "exact")
        latest: dict[str, int] = {}
        lock = threading.Lock()

        def work(index: int) -> None:
            mine, dice = (store, other)[index % 2], random.Random(index)
            for _ in range(40):
                name, tag = f"page {dice.randrange(3)}", f"tag {dice.randrange(2)}"
                if dice.random() < 0.6:
                    record = make_record(name, mine.number(), tags=[tag])
                    mine.put(record)
                    with lock:
                        latest[name] = max(latest.get(name, 0), record.number.sequence)
                    continue
                number = mine.invalidate([f"tag:{tag}"], dice.random() < 0.5)
                stored = mine.get(name)
                if stored is not None and f"tag:{tag}" in stored.record.labels:
                    valid = stored.validity.invalidated is NO
                    assert not valid or stored.record.number > number
                    assert stored.validity.at >= number

        run_threads(8, work)
        found = {name: t.cast(Stored, other.get(name)).record.number.sequence for name in latest}
        assert found == latest

    # Renders.

    def test_one_has_the_lease_of_a_page(self, store: Store, other: Store) -> None:
        lease = store.lease("page", 60, False)
        assert not isinstance(lease, Busy)
        assert other.lease("page", 60, False) == store.lease("page", 60, False) == Busy(lease.token)
        another = other.lease("another", 60, False)
        assert not isinstance(another, Busy) and another.token != lease.token
        assert other.outcome(lease.token) is None
        lease.release(b"the outcome")
        assert eventually(lambda: other.outcome(lease.token), GRACE) == b"the outcome"
        second = other.lease("page", 60, False)
        assert not isinstance(second, Busy)
        lease.release()
        assert store.lease("page", 60, False) == Busy(second.token)
        second.release()
        assert store.outcome(second.token) is None
        another.release()

    def test_a_demanded_render_takes_the_lease_from_another(
        self, store: Store, other: Store
    ) -> None:
        early = store.lease("page", 60, False)
        demanded = other.lease("page", 60, True)
        assert not isinstance(early, Busy) and not isinstance(demanded, Busy)
        for seeking in (True, False):
            assert store.lease("page", 60, seeking) == Busy(demanded.token)
        early.release(b"too early")
        assert store.lease("page", 60, True) == Busy(demanded.token)
        demanded.release()

    def test_a_lease_ends_with_its_time(self, store: Store, other: Store) -> None:
        first = store.lease("page", 0.5, True)
        assert isinstance(other.lease("page", 60, True), Busy)
        second = eventually(lambda: _lease(other, "page"), TAKEN_OVER + GRACE)
        assert second and not isinstance(first, Busy)
        first.release()
        assert store.lease("page", 60, False) == Busy(second.token)
        second.release()

    def test_a_lease_lasts_as_long_as_its_time(self, store: Store, other: Store) -> None:
        lease = store.lease("page", 60, False)
        assert eventually(lambda: _lease(other, "page"), 4.5) is None
        assert not isinstance(lease, Busy)
        lease.release()

    def test_one_of_many_gets_a_lease(self, store: Store, other: Store) -> None:
        self.need(store, "one_render")
        for turn in range(10):
            taken: list[t.Any] = []

            def work(index: int, name: str = f"page {turn}", taken: list[t.Any] = taken) -> None:
                taken.append((store, other)[index % 2].lease(name, 60, False))

            run_threads(8, work)
            leases = [lease for lease in taken if not isinstance(lease, Busy)]
            assert len(leases) == 1
            assert {item.token for item in taken} == {leases[0].token}
            leases[0].release()

    def test_remembers_failures(self, store: Store, other: Store) -> None:
        assert store.failure("page") is None
        failure = Failure(3, 1.7e9 + 0.5, "ZeroDivisionError: é" * 20, "http://a/b", "build")
        store.set_failure("page", failure)
        assert other.failure("page") == failure and other.failure("other") is None
        other.set_failure("page", failure._replace(times=4))
        other.set_failure("second", failure)
        if store.kind.lists:
            assert dict(store.failures())["page"].times == 4 and len(list(store.failures())) == 2
        store.set_failure("page", None)
        store.set_failure("never there", None)
        assert other.failure("page") is None and other.failure("second") == failure

    # Pages that other processes render.

    def test_nobody_takes_pages_where_the_kind_cannot(self, store: Store) -> None:
        if store.kind.wants:
            pytest.skip("it can")
        assert store.take("build", 5) is None
        assert not store.want("build", Wanted("page", b"data"))
        store.done("build", "page")

    def test_hands_pages_over_in_their_order(self, store: Store, other: Store) -> None:
        self.need(store, "wants")
        first, second = Wanted("page 1", b"one\0"), Wanted("page 2", b"two")
        assert not store.want("build", first)
        assert other.take("build", 5) is None
        assert not store.want("another build", first)
        for wanted in (first, second, first):
            assert store.want("build", wanted)
        assert other.take("another build", 5) is None
        assert other.take("build", 5) == first
        assert store.take("build", 5) == second
        assert store.take("build", 5) is None
        other.done("build", "page 1")
        store.done("build", "page 2")
        assert store.want("build", first) and other.take("build", 5) == first

    def test_a_page_is_handed_over_again_after_its_time(self, store: Store, other: Store) -> None:
        self.need(store, "wants")
        store.take("build", 5)
        store.want("build", Wanted("page", b"data"))
        assert other.take("build", 0.3) is not None
        assert store.take("build", 5) is None
        assert eventually(lambda: store.take("build", 5), 2 + GRACE) == Wanted("page", b"data")

    def test_does_not_hand_over_what_somebody_renders(self, store: Store, other: Store) -> None:
        self.need(store, "wants")
        store.take("build", 5)
        lease = store.lease("page", 60, False)
        store.want("build", Wanted("page", b"data"))
        assert other.take("build", 5) is None
        assert not isinstance(lease, Busy)
        lease.release()
        assert eventually(lambda: other.take("build", 5), GRACE) == Wanted("page", b"data")

    def test_bounds_what_waits(self, store: Store) -> None:
        self.need(store, "wants")
        store.take("build", 5)
        for number in range(MAX_WANTED + 10):
            store.want("build", Wanted(f"page {number}", b""))
        taken = list(iter(lambda: store.take("build", 60), None))
        assert len(taken) == MAX_WANTED

    # What exists, what was counted, how much there is.

    def test_remembers_paths(self, store: Store, other: Store) -> None:
        for path in ("/a", "/a", "/caf\xc3\xa9", "/" + "x" * 2000, "/a b/../c"):
            assert bool(other.has_path(path)) is (path == "/a" and bool(store.has_path("/a")))
            store.list_path(path)
            assert other.has_path(path)
        assert not other.has_path("/A") and not other.has_path("/a/")

    def test_gives_earlier_builds(self, store: Store, other: Store) -> None:
        assert store.builds("a") == []
        assert other.builds("b") == ["a"]
        assert store.builds("c") == ["b", "a"]
        assert [store.builds(build) for build in "abc"] == [[], ["a"], ["b", "a"]]

    def test_adds_up_counts(self, store: Store, other: Store) -> None:
        assert store.totals() == {}
        store.add({"hits": 1, "le=0.5": 2})
        other.add({"hits": 2, "seconds": 0.25})
        other.add({})
        assert store.totals() == other.totals() == {"hits": 3, "le=0.5": 2, "seconds": 0.25}
        self.need(store, "exact")
        run_threads(8, lambda index: _add_often((store, other)[index % 2], 25))
        assert store.totals()["hits"] == 203

    def test_gives_what_each_process_reported_last(self, store: Store, other: Store) -> None:
        assert store.processes() == []
        store.report({"pid": 1, "rendering": ["/é"]})
        store.report({"pid": 1, "rendering": []})
        assert other.processes() == [{"pid": 1, "rendering": []}]
        if other is not store:
            other.report({"pid": 2})
            assert sorted(item["pid"] for item in store.processes()) == [1, 2]
            other.close()
            assert store.processes() == [{"pid": 1, "rendering": []}]
        store.report(None)
        store.report(None)
        assert store.processes() == []

    @pytest.mark.usefixtures("listed")
    def test_lists_pages(self, store: Store, other: Store) -> None:
        assert list(store.records()) == []
        one = self.put(store, "one", path="/a", body=b"x" * 1000)
        two = self.put(other, "two", path="/a", build="second")
        self.put(store, "three", path="/a/b")
        store.invalidate(["page:one"], False)
        found = {item.record.name: item for item in other.records()}
        assert set(found) == {"one", "two", "three"}
        assert found["one"].record == one._replace(body=b"")
        assert [found[name].validity.invalidated for name in ("one", "two")] == [STALE, NO]
        assert {item.record.name for item in store.records(path="/a")} == {"one", "two"}
        assert [item.record.name for item in store.records(build="second")] == ["two"]
        both = [item.record for item in other.records(build="second", path="/a")]
        assert both == [two._replace(body=b"")]
        store.delete("two")
        assert list(other.records(build="second")) == []

    def test_says_that_it_cannot_list(self, store: Store) -> None:
        if store.kind.lists:
            pytest.skip("it can")
        for call in (store.records, store.prune):
            with pytest.raises(NotImplementedError, match="SQLite|Redis"):
                next(iter(t.cast(t.Any, call)(**({"everything": True} if call == store.prune else {}))))

    @pytest.mark.usefixtures("listed")
    def test_lists_pages_while_they_change(self, store: Store, other: Store) -> None:
        for number in range(500):
            self.put(store, f"page {number}")
        seen = []
        for turn, stored in enumerate(store.records()):
            seen.append(stored.record.name)
            other.delete(f"page {499 - turn}")
            self.put(other, f"later {turn}")
            if turn > 600:
                break
        assert len(set(seen)) == len(seen) >= 250

    @pytest.mark.usefixtures("listed")
    def test_says_how_much_it_has(self, store: Store, other: Store) -> None:
        assert store.sizes().pages == 0
        for number in range(3):
            self.put(store, f"page {number}", body=b"x" * 10_000)
        sizes = other.sizes()
        assert sizes.pages == 3
        assert sizes.bytes is None or sizes.bytes >= 30_000

    @pytest.mark.usefixtures("listed")
    def test_prunes_to_a_number_of_pages(self, store: Store) -> None:
        """Pages that are not there go first, then those that were used least recently."""
        for number in range(10):
            self.put(store, str(number), gone=number in (8, 9))
        store.used(["0"])
        assert store.prune(max_pages=20) == 0
        assert store.prune(max_pages=8) == 2
        assert store.get("8") is None and store.get("9") is None
        assert store.prune(max_pages=3) == 5
        assert len(list(store.records())) == 3 and store.get("0") is not None

    @pytest.mark.usefixtures("listed")
    def test_prunes_to_a_number_of_bytes(self, store: Store, other: Store) -> None:
        for number in range(10):
            self.put(store, str(number), body=os.urandom(100_000))
        removed = other.prune(max_bytes=450_000)
        assert 6 <= removed < 10
        assert len(list(store.records())) == 10 - removed

    @pytest.mark.usefixtures("listed")
    def test_prunes_other_builds_or_everything(self, store: Store, other: Store) -> None:
        for build in ("old", "older", "new", "newest"):
            self.put(store, build, build=build)
        assert other.prune(keep_builds=["new", "newest"]) == 2
        assert {item.record.name for item in store.records()} == {"new", "newest"}
        assert other.prune(everything=True) == 2
        assert list(store.records()) == [] and store.get("new") is None

    # The process.

    def test_the_time_goes_on(self, store: Store) -> None:
        times = [store.time() for _ in range(5)]
        assert times == sorted(times) and times[0] > 1.6e9

    def test_answers_a_probe(self, store: Store) -> None:
        store.probe()

    def test_can_be_closed_twice(self, store: Store, other: Store) -> None:
        store.number()
        store.close()
        store.close()
        assert other.number().sequence

    def test_outlives_a_restart(self, store: Store, opened: Callable[[], Store]) -> None:
        self.need(store, "durable")
        self.put(store)
        at = store.invalidate(["page:page"], False)
        store.list_path("/a")
        store.set_failure("page", Failure(1, 2.5, "error"))
        store.add({"hits": 1})
        store.close()
        again = opened()
        assert self.state(again) is STALE and again.has_path("/a")
        assert again.failure("page") == Failure(1, 2.5, "error") and again.totals() == {"hits": 1}
        assert again.changes(at).complete and again.number() > at

    # Other processes.

    def spawn(self, arguments: tuple[t.Any, ...], work: Callable[..., None], *more: t.Any) -> t.Any:
        if self.store_factory is None:
            pytest.skip("no store_factory")
        factory = type(self).__dict__["store_factory"]
        factory = getattr(factory, "__func__", factory)
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_work, args=(factory, arguments, work, *more))
        process.start()
        return process

    def test_processes_share_one_order(
        self, store: Store, store_arguments: tuple[t.Any, ...]
    ) -> None:
        self.need(store, "exact")
        results = multiprocessing.get_context("spawn").Queue()
        processes = [self.spawn(store_arguments, _count, results) for _ in range(4)]
        numbers = [number for _ in processes for number in results.get(timeout=60)]
        for process in processes:
            process.join()
        assert len(set(numbers)) == len(numbers) == 400
        assert store.totals() == {"hits": 400}

    def test_a_killed_process_gives_its_lease_back(
        self, store: Store, store_arguments: tuple[t.Any, ...]
    ) -> None:
        ready = multiprocessing.get_context("spawn").Event()
        process = self.spawn(store_arguments, _hold, ready)
        assert ready.wait(60) and isinstance(store.lease("page", 60, False), Busy)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        lease = eventually(lambda: _lease(store, "page"), TAKEN_OVER + GRACE)
        assert lease is not None
        lease.release()


def _lease(store: Store, name: str) -> t.Any:
    lease = store.lease(name, 60, False)
    return None if isinstance(lease, Busy) else lease


def _add_often(store: Store, times: int) -> None:
    for _ in range(times):
        store.add({"hits": 1})


def _work(
    factory: Callable[..., Store], arguments: tuple[t.Any, ...], work: t.Any, *more: t.Any
) -> None:
    store = factory(*arguments)
    work(store, *more)
    store.close()


def _count(store: Store, results: t.Any) -> None:
    _add_often(store, 100)
    results.put([store.number() for _ in range(100)])


def _hold(store: Store, ready: t.Any) -> None:
    assert not isinstance(store.lease("page", 60, False), Busy)
    ready.set()
    threading.Event().wait()
