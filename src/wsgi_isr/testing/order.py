"""The order of renders and invalidations, and who renders."""

from __future__ import annotations

import random
import threading
import typing as t

import pytest

from ..store.protocol import MAX_HISTORY, MAX_WANTED, Busy, Failure, Number, Store, Stored, Wanted
from .support import (
    FOLLOWS,
    GRACE,
    NO,
    NOTHING,
    TAKEN_OVER,
    Contract,
    differs,
    eventually,
    listening,
    make_record,
    run_threads,
    take_lease,
)


class OrderContract(Contract):
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
                assert differs(lambda: other.signal[0], there, wait)

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
        second = eventually(lambda: take_lease(other, "page"), TAKEN_OVER + GRACE)
        assert second and not isinstance(first, Busy)
        first.release()
        assert store.lease("page", 60, False) == Busy(second.token)
        second.release()

    def test_a_lease_lasts_as_long_as_its_time(self, store: Store, other: Store) -> None:
        lease = store.lease("page", 60, False)
        assert eventually(lambda: take_lease(other, "page"), 4.5) is None
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

    def test_bounds_what_waits(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.need(store, "wants")
        # A busy machine takes longer than a process that takes pages may be silent.
        monkeypatch.setattr("wsgi_isr.store.protocol.ABANDONED", 60.0)
        store.take("build", 5)
        for number in range(MAX_WANTED + 10):
            store.want("build", Wanted(f"page {number}", b""))
        taken = 0
        while wanted := store.take("build", 60):
            store.done("build", wanted.name)
            taken += 1
        assert taken == MAX_WANTED
