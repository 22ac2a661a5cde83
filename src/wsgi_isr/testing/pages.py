"""Pages, their validity, and lists of them."""

from __future__ import annotations

import itertools
import os
import random
import typing as t
from collections.abc import Sequence

import pytest

from ..store.protocol import MAX_LABELS, Store, Stored
from .support import (
    EXPIRED,
    FOLLOWS,
    FOREIGN,
    GRACE,
    NO,
    STALE,
    Contract,
    differs,
    listening,
    make_record,
)


class PagesContract(Contract):
    # Pages.

    @pytest.mark.usefixtures("pages")
    @pytest.mark.parametrize(
        "name",
        ["0a.ff", "a" * 200, "A", "a/../b", "..", "%2e", "a b", "clock", "", "x:y", "'; --", "*"],
    )
    def test_gives_what_was_put_under_any_name(self, store: Store, other: Store, name: str) -> None:
        assert store.get(name) is None
        record = self.put(store, name, tags=["é", "a b"], gone=True, build="", path="/caf\xc3\xa9")
        assert t.cast(Stored, store.get(name)).record == record
        assert other.get(name) == store.get(name)
        assert store.get(name.swapcase() + "2") is None

    @pytest.mark.usefixtures("pages")
    @pytest.mark.parametrize(
        ("head", "body"),
        [(b"", b""), (bytes(range(256)), b"\0\n\r\xff" * 1000)],
        ids=["none", "all"],
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
                before, there = store.signal[1], other.signal[1]
                change()
                assert store.signal[1] != before
                assert differs(lambda: other.signal[1], there, FOLLOWS + GRACE)

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
        for number in range(150):
            self.put(store, f"one {number}", path=f"/shop/{number}/item{number}")
            self.put(store, f"two {number}", path=f"/shop/{number}/other")
        store.invalidate([f"pattern:/shop/*/item{number}" for number in range(250)], False)
        store.invalidate([f"pattern:/shop/{number}/o*" for number in range(150)], True)
        ones = {self.state(store, f"one {number}") for number in range(150)}
        twos = {self.state(store, f"two {number}") for number in range(150)}
        assert NO not in ones and twos == {EXPIRED}

    @pytest.mark.usefixtures("pages")
    def test_forgets_labels_without_making_other_pages_stale(self, store: Store) -> None:
        self.need(store, "exact")
        old = self.put(store, "old", tags=["first"])
        self.put(store, "free", path="/free")
        store.invalidate(["tag:first"], True)
        for start in range(0, MAX_LABELS + 2000, 10_000):
            store.invalidate([f"tag:{number}" for number in range(start, start + 10_000)], False)
        assert self.state(store, "old") is EXPIRED
        assert self.state(store, "free") is NO
        validity = store.put(old._replace(name="put late"))
        assert validity is not None and validity.invalidated is not NO
        self.put(store, "new", tags=["first"])
        assert self.state(store, "new") is NO

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
                next(
                    iter(
                        t.cast(t.Any, call)(**({"everything": True} if call == store.prune else {}))
                    )
                )

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
    @pytest.mark.parametrize("which", [{}, {"build": "new"}, {"path": "/a"}])
    def test_lists_pages_in_parts(self, store: Store, other: Store, which: t.Any) -> None:
        for number in range(120):
            self.put(store, f"page {number}", build=("old", "new")[number % 2], path="/a")
        whole = [item.record.name for item in store.records(**which)]
        parts: list[str] = []
        while part := list(itertools.islice(other.records(**which, after=(parts or [""])[-1]), 7)):
            parts += [item.record.name for item in part]
        assert parts == whole and len(set(whole)) == (60 if "build" in which else 120)
        # The page that a list goes on behind may have been removed.
        store.delete(whole[9])
        rest = [item.record.name for item in other.records(**which, after=whole[9])]
        assert rest == whole[10:]

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
