"""Files stay within their bounds: made-up URLs go first, then what was not used for longest."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Browser
from conftest import Make
from folder import Folder
from folder import GONE

from wsgi_isr.page import Codec
from wsgi_isr.store import shared
from wsgi_isr.store.bounds import Bounds
from wsgi_isr.store.coordination import Failure
from wsgi_isr.store.coordination import Held
from wsgi_isr.store.prune import Pruned

Browse = Callable[..., Browser]


@pytest.fixture(autouse=True)
def own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(shared, "SHARED_MEMORY", str(tmp_path / "shm"))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "site")


class TestOptions:
    def test_by_default_there_are_bounds(self, make: Make, files: str) -> None:
        pruner = make(files)._here().store.pruner
        assert pruner is not None
        assert pruner.bounds == Bounds(pages=100_000, size=2 * 2**30)

    def test_bounds_stand_in_the_url(self, make: Make, files: str) -> None:
        pruner = make(f"{files}?max_pages=1000&max_bytes=1000000")._here().store.pruner
        assert pruner is not None
        assert pruner.bounds == Bounds(1000, 1_000_000)

    @pytest.mark.parametrize(
        "query",
        [
            "max_page=1",
            "max_pages=0",
            "max_pages=-1",
            "max_pages=1.5",
            "max_pages=many",
            "max_pages=",
            "max_pages",
            "max_pages=1&max_pages=2",
            "max_bytes=1e9",
            "max_bytes=10000000000000000000000",
            "max_bytes=٣",
            "site",
        ],
    )
    def test_a_mistake_is_told_when_the_middleware_is_made(
        self, make: Make, files: str, query: str
    ) -> None:
        with pytest.raises(ValueError, match="max_pages|max_bytes"):
            make(f"{files}?{query}")

    def test_a_number_sign_in_a_folder_is_told_from_a_fragment(
        self, make: Make, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match="%23"):
            make(f"file://{tmp_path}/c#1")


class TestLeastRecentlyUsed:
    def test_within_the_bounds_nothing_goes(self, folder: Folder) -> None:
        names = {folder.put(f"/{number}", number) for number in range(10)}
        assert folder.prune(pages=10) == Pruned()
        assert folder.names() == names

    def test_the_pages_used_least_go(self, folder: Folder) -> None:
        names = [folder.put(f"/{number}", used) for number, used in enumerate([5, 1, 4, 2, 3])]
        assert folder.prune(pages=2).pages == 3
        assert folder.names() == {names[0], names[2]}

    def test_until_the_bytes_are_within_their_bound(self, folder: Folder) -> None:
        names = [folder.put(f"/{number}", number, size=1000) for number in range(10)]
        pruned = folder.prune(size=5000)
        assert folder.names() == set(names[6:])
        assert pruned.size == 6 * os.stat(folder.storage.path(names[9])).st_size

    def test_never_the_newest(self, folder: Folder) -> None:
        folder.put("/small", 1)
        newest = folder.put("/large", 2, size=10_000)
        folder.prune(size=100)
        assert folder.names() == {newest}

    def test_restored_files_with_one_time_for_all_are_bounded_too(self, folder: Folder) -> None:
        for number in range(20):
            folder.put(f"/{number}", 0)
        folder.prune(pages=5)
        assert len(folder.names()) == 5

    def test_what_is_no_page_stays(self, folder: Folder) -> None:
        name = folder.put("/1", 1)
        folder.put("/2", 2)
        note = Path(folder.storage.path(name)).with_name("README")
        note.write_text("not ours")
        os.utime(note, (0, 0))
        folder.prune(pages=1)
        assert note.exists()


class TestGone:
    def test_what_is_gone_makes_room_first(self, folder: Folder) -> None:
        real = {folder.put(f"/{number}", number) for number in range(5)}
        for number in range(5):
            folder.put(f"/gone/{number}", 100 + number, status=GONE)
        newest = folder.put("/newest", 200)
        pruned = folder.prune(pages=6)
        assert folder.names() == {*real, newest}
        assert (pruned.pages, pruned.gone) == (0, 5)

    @pytest.mark.parametrize("status", [GONE, "410 Gone"])
    def test_it_has_a_bound_of_its_own(self, folder: Folder, status: str) -> None:
        real = {folder.put(f"/{number}", number) for number in range(5)}
        gone = [folder.put(f"/gone/{number}", number, status=status) for number in range(50)]
        folder.prune(pages=100)
        assert folder.names() == {*real, *gone[40:]}

    def test_it_does_not_push_out_real_pages_that_nearly_fill_the_folder(
        self, tmp_path: Path
    ) -> None:
        folder = Folder(tmp_path / "nearly full", Bounds(100))
        real = {folder.put(f"/{number}", number) for number in range(89)}
        for number in range(10):
            folder.put(f"/gone/{number}", 100 + number, status=GONE)
        folder.pruner.behind()
        assert real <= folder.names()

    def test_a_page_that_comes_back_is_as_real_as_others(self, folder: Folder) -> None:
        folder.put("/a", status=GONE)
        name = folder.put("/a", 1)
        gone = [folder.put(f"/gone/{number}", 10 + number, status=GONE) for number in range(5)]
        folder.prune(pages=2)
        assert folder.names() == {name, gone[-1]}

    def test_a_page_with_a_signature_is_known_as_gone(self, tmp_path: Path) -> None:
        folder = Folder(tmp_path / "signed")
        folder._codec = Codec(b"a key of 16 bytes or more")
        real = folder.put("/", 1)
        newest = [folder.put(f"/{number}", 2 + number, status=GONE) for number in range(3)][-1]
        folder.prune(pages=2)
        assert folder.names() == {real, newest}


class TestWhileOthersWork:
    def test_a_page_that_was_rendered_meanwhile_stays(self, folder: Folder) -> None:
        folder.put("/a", 1)
        files = list(folder.pruner._files())
        name = folder.put("/a")
        assert folder.pruner._remove_batch(files) == Pruned()
        assert folder.names() == {name}

    def test_a_page_that_was_visited_meanwhile_stays(self, folder: Folder) -> None:
        name = folder.put("/a", 1)
        files = list(folder.pruner._files())
        folder.storage.touch(name)
        folder.pruner._remove_batch(files)
        assert folder.names() == {name}

    def test_a_page_that_vanished_meanwhile_is_none_of_ours(self, folder: Folder) -> None:
        name = folder.put("/a", 1)
        files = list(folder.pruner._files())
        folder.storage.delete(name)
        assert folder.pruner._remove_batch(files) == Pruned()

    def test_one_process_at_a_time(self, tmp_path: Path) -> None:
        one, other = Folder(tmp_path / "site", Bounds(10)), Folder(tmp_path / "site", Bounds(10))
        for number in range(20):
            one.put(f"/{number}", number)
        with one.storage.growth.pruning(0.0) as mine:
            assert mine
            assert other.pruner.behind() == Pruned()
        assert other.pruner.behind().pages > 0

    def test_a_folder_that_is_gone_is_no_error(self, folder: Folder) -> None:
        folder.put("/a")
        os.rename(folder.path, folder.path.with_name("elsewhere"))
        with pytest.raises(OSError):
            folder.pruner.behind()

    def test_it_ends_in_time_and_goes_on_later(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = Folder(tmp_path / "site", Bounds(10))
        for number in range(100):
            folder.put(f"/{number}", number)
        monkeypatch.setattr("wsgi_isr.store.prune.PATIENCE", -1.0)
        assert 0 < folder.pruner.behind().pages < 90
        assert folder.pruner.due
        while folder.pruner.due:
            folder.pruner.behind()
        assert len(folder.names()) <= 10


class TestBuilds:
    @pytest.fixture
    def builds(self, folder: Folder) -> dict[str, set[str]]:
        return {
            build: {folder.put(f"/{number}", used + number, build=build) for number in range(3)}
            for build, used in (("one", 10), ("two", 30), ("three", 20))
        }

    def test_those_used_last_are_kept(self, folder: Folder, builds: dict[str, set[str]]) -> None:
        assert folder.prune(keep_builds=2, build="two").pages == 3
        assert folder.names() == builds["two"] | builds["three"]

    def test_the_current_one_is_kept_however_old(
        self, folder: Folder, builds: dict[str, set[str]]
    ) -> None:
        folder.prune(keep_builds=1, build="one")
        assert folder.names() == builds["one"]

    def test_the_current_one_counts_before_it_has_pages(
        self, folder: Folder, builds: dict[str, set[str]]
    ) -> None:
        folder.prune(keep_builds=2, build="four")
        assert folder.names() == builds["two"]

    def test_more_than_there_are_keep_all(
        self, folder: Folder, builds: dict[str, set[str]]
    ) -> None:
        assert folder.prune(keep_builds=4, build="four") == Pruned()

    def test_a_page_with_a_long_head_has_a_build_too(
        self, folder: Folder, builds: dict[str, set[str]]
    ) -> None:
        folder.put("/" + "x" * 10_000, 100, build="one")
        folder.prune(keep_builds=1, build="two")
        assert folder.names() == builds["two"]

    def test_an_entry_that_is_damaged_has_none_and_stays(
        self, folder: Folder, builds: dict[str, set[str]]
    ) -> None:
        (name,) = list(builds["one"])[:1]
        folder.storage.set(name, b"ISR\x01c")
        folder.prune(keep_builds=1, build="two")
        assert folder.names() == builds["two"] | {name}


def old(path: str | Path) -> None:
    os.utime(path, (0, 0))


class TestLitter:
    def test_an_outcome_that_nobody_waits_for_goes(self, folder: Folder) -> None:
        lease = folder.coordination.acquire("a", 60, False)
        assert not isinstance(lease, Held)
        lease.release(b"an outcome")
        folder.pruner.sweep()
        assert folder.coordination.outcome("a", lease.token) is not None
        old(folder.path / "outcomes" / "a")
        assert folder.pruner.sweep() == Pruned(litter=1)
        assert folder.coordination.outcome("a", lease.token) is None

    def test_a_lease_of_a_killed_process_goes(self, folder: Folder) -> None:
        lease = folder.coordination.acquire("a", 60, False)
        path = folder.path / "leases" / "a"
        path.with_name("b").touch()
        for each in (path, path.with_name("b")):
            old(each)
        folder.pruner.sweep()
        assert os.listdir(path.parent) == ["a"]
        lease.release()  # type: ignore[union-attr]

    def test_failures_go_with_their_pages(self, folder: Folder) -> None:
        kept, dropped = folder.put("/a"), folder.put("/b")
        for name in (kept, dropped):
            folder.coordination.set_failure(name, Failure(1, 0.0, "it failed"))
        folder.storage.delete(dropped)
        folder.pruner.sweep()
        assert folder.coordination.failure(kept) is not None
        assert folder.coordination.failure(dropped) is None

    def test_what_killed_writers_left_goes(self, folder: Folder) -> None:
        page = Path(folder.storage.path(folder.put("/a")))
        left = [page.with_name("x.tmp"), folder.path / "epochs.0123456789abcdef"]
        for path in left:
            path.touch()
        folder.pruner.sweep()
        assert all(path.exists() for path in left)
        for path in left:
            old(path)
        folder.pruner.sweep()
        assert not any(path.exists() for path in left)

    def test_the_files_that_count_stay_however_old(self, folder: Folder) -> None:
        folder.coordination.invalidate(["tag:a"], False)
        folder.put("/a")
        before = sorted(os.listdir(folder.path))
        for name in before:
            old(folder.path / name)
        folder.pruner.sweep()
        assert sorted(os.listdir(folder.path)) == before

    def test_counters_of_a_folder_that_is_gone_go(self, folder: Folder, tmp_path: Path) -> None:
        other = Folder(tmp_path / "other")
        assert len(os.listdir(tmp_path / "shm")) == 2
        os.rename(other.path, tmp_path / "renamed")
        assert folder.pruner.sweep() == Pruned(litter=1)
        assert len(os.listdir(tmp_path / "shm")) == 1

    def test_counters_are_shared_as_before(self, folder: Folder, tmp_path: Path) -> None:
        folder.coordination.invalidate(["tag:a"], False)
        folder.pruner.sweep()
        other = Folder(folder.path)
        other.coordination.invalidate(["tag:b"], False)
        assert folder.coordination.signal[0] == other.coordination.signal[0] >= 2
