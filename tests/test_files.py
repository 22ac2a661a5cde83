"""The files of a site: damaged, replaced, cut off, or left behind by those who were killed."""

from __future__ import annotations

import os
import signal
import typing as t
import zlib
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Make
from conftest import Site
from conftest import status_of
from elsewhere import Elsewhere
from entries import Bomb
from entries import make_page
from steps import PATIENCE
from steps import result
from steps import start
from steps import visit
from steps import wait_until

from wsgi_isr import RevalidationError
from wsgi_isr.key import PageKey
from wsgi_isr.state import Mark
from wsgi_isr.store import files as module
from wsgi_isr.store import shared
from wsgi_isr.store.backend import FileStorage
from wsgi_isr.store.coordination import Held
from wsgi_isr.store.coordination import Lease
from wsgi_isr.store.files import FileCoordination
from wsgi_isr.store.records import format_line
from wsgi_isr.store.records import LITTER_AGE

NAME = PageKey("http", "localhost", "", "/").name
#: Each kind of file there is, from the folder of the site.
FILES = {
    "entry": f"pages/{NAME[:2]}/{NAME}",
    "sequence": "sequence",
    "epochs": "epochs",
    "lock": "lock",
    "lease": f"leases/{NAME}",
    "outcome": f"outcomes/{NAME}",
    "failure": f"failures/{NAME}",
    "growth": "pages.growth",
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes() or b"\0")
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def flip_the_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def plant(path: Path) -> None:
    path.write_bytes(bomb(path).planted())


def plant_with_checksum(path: Path) -> None:
    planted = bomb(path).planted()
    path.write_bytes(b"".join(format_line(planted.decode("latin-1")) for _ in range(3)))


def be_of_another_version(path: Path) -> None:
    path.write_bytes(format_line({"version": 2}) + format_line([None, 2, "x"]) + b"ISR\x02c1234")


def be_of_other_types(path: Path) -> None:
    path.write_bytes(format_line(["1", "2", 3]))


def be_deep(path: Path) -> None:
    text = b"[" * 100_000
    path.write_bytes(b"%08x %s\n" % (zlib.crc32(text), text))


def be_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").touch()


def be_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def be_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def be_a_link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing")


def vanish(path: Path) -> None:
    path.unlink()


DAMAGES = [cut, empty, flip, flip_the_end, plant, plant_with_checksum, be_of_another_version]
DAMAGES += [
    be_of_other_types,
    be_deep,
    be_a_folder,
    be_a_pipe,
    be_a_link,
    be_a_link_to_nothing,
    vanish,
]


def bomb(path: Path) -> Bomb:
    return Bomb(path.parent / "went off")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "isr%3A"


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
    @pytest.mark.parametrize("kind", FILES)
    def test_is_a_miss_and_no_more(
        self,
        site: Site,
        make: Make,
        files: str,
        folder: Path,
        caplog: pytest.LogCaptureFixture,
        kind: str,
        damage: Callable[[Path], None],
    ) -> None:
        before = make(files, base_url="http://localhost")
        site.page("/", "old", revalidate=False)
        visit(before)
        site.fail("/")
        with pytest.raises(RevalidationError):
            before.revalidate("/")
        holder = FileCoordination(str(folder))
        assert isinstance(left := holder.acquire(NAME, 60, False), module.FileLease)
        left.release(b"an outcome")
        held = holder.acquire(NAME, 60, False) if kind == "lease" else None
        (folder / "pages.growth").touch()
        caplog.clear()

        path = folder / FILES[kind]
        damage(path)
        site.page("/", "new", revalidate=False)
        after = make(files, base_url="http://localhost")
        for isr in (after, before):
            answer = result(start(visit, isr))
            assert (answer.status_code, answer.text) in ((200, "old"), (200, "new"))
            isr.close()
            assert isr.stats()["store_errors"] == 0
            # Nor does it keep the page from being regenerated.
            assert visit(isr).text == "new"
        assert result(start(after.revalidate, "/"))[0].status == 200
        for isr in (before, make(files)):
            answer = visit(isr)
            assert (answer.text, status_of(answer)) == ("new", "isr; hit")
        assert [record.message for record in caplog.records][1:] == []
        assert not bomb(path).went_off
        if isinstance(held, module.FileLease):
            held.release()


class TestInvalidations:
    """The log of invalidations: none is ever lost in silence."""

    @pytest.fixture
    def log(self, tmp_path: Path) -> Path:
        """Of three invalidations, and a new lineage."""
        coordination = FileCoordination(str(tmp_path))
        number = coordination.next_number()
        for label in ("tag:a", "path:/blog/1", "tag:b"):
            coordination.invalidate([label], True)
        assert coordination.epochs().mark(self.page(number.lineage)) is Mark.HARD
        return tmp_path / "epochs"

    def page(self, lineage: str = "", **more: t.Any) -> t.Any:
        return make_page("/blog/1", tags=("b",), sequence=1, lineage=lineage, **more)

    def mark(self, log: Path, page: t.Any) -> Mark:
        return FileCoordination(str(log.parent)).epochs().mark(page)

    def lineage(self, log: Path) -> str:
        return FileCoordination(str(log.parent)).epochs().lineage

    def test_are_not_lost_wherever_the_log_is_cut_off(self, log: Path) -> None:
        data, page = log.read_bytes(), self.page(self.lineage(log))
        sequence = (log.parent / "sequence").read_bytes()
        for length in range(len(data)):
            log.write_bytes(data[:length])
            (log.parent / "sequence").write_bytes(sequence)
            assert self.mark(log, page) is not Mark.NONE, data[:length]

    def test_nor_whatever_byte_of_it_changes(self, log: Path) -> None:
        data, page = log.read_bytes(), self.page(self.lineage(log))
        sequence = (log.parent / "sequence").read_bytes()
        for place in range(len(data)):
            log.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            (log.parent / "sequence").write_bytes(sequence)
            assert self.mark(log, page) is not Mark.NONE, place

    def test_are_seen_by_who_followed_the_log_before_it_was_cut(self, log: Path) -> None:
        other, one = FileCoordination(str(log.parent)), FileCoordination(str(log.parent))
        page = self.page(other.epochs().lineage)
        log.write_bytes(log.read_bytes()[:-30])
        one.invalidate(["tag:c"], False)
        assert other.epochs().mark(page) is not Mark.NONE

    def test_that_were_half_written_when_their_process_was_killed_never_held(
        self, log: Path
    ) -> None:
        lineage = self.lineage(log)
        with log.open("ab") as file:
            file.write(format_line([9, "tag:c", True])[:-1])
        page = make_page("/", tags=("c",), lineage=lineage, sequence=1)
        assert self.mark(log, page) is Mark.NONE
        FileCoordination(str(log.parent)).invalidate(["tag:d"], False)
        assert (self.mark(log, page), self.lineage(log)) == (Mark.NONE, lineage)
        assert self.mark(log, self.page(lineage)) is Mark.HARD

    def test_are_all_kept_when_the_log_is_rewritten(self, log: Path) -> None:
        one, other = FileCoordination(str(log.parent)), FileCoordination(str(log.parent))
        page = self.page(other.epochs().lineage)
        for number in range(1100):
            one.invalidate([f"tag:{number % 5}"], False)
        assert log.stat().st_size < 40 * 200, "it was not"
        for coordination in (one, other, FileCoordination(str(log.parent))):
            epochs = coordination.epochs()
            assert epochs.mark(page) is Mark.HARD
            tagged = make_page("/", tags=("4",), lineage=epochs.lineage, sequence=1102)
            assert epochs.mark(tagged) is Mark.SOFT
            assert len(epochs) == 8

    def test_that_are_forgotten_count_as_many_more_never_as_fewer(
        self, log: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "MAX_LABELS", 10)
        coordination = FileCoordination(str(log.parent))
        page = self.page(coordination.epochs().lineage)
        for number in range(20):
            coordination.invalidate([f"tag:{number}"], False)
        assert len(coordination.epochs()) <= 10
        assert self.mark(log, page) is Mark.HARD


class TestLeases:
    @pytest.fixture
    def pair(self, tmp_path: Path) -> tuple[FileCoordination, ...]:
        return FileCoordination(str(tmp_path)), FileCoordination(str(tmp_path))

    def test_are_had_by_one(self, pair: tuple[FileCoordination, FileCoordination]) -> None:
        one, other = pair
        lease = one.acquire(NAME, 60, False)
        assert other.acquire(NAME, 60, False) == Held(t.cast(Lease, lease).token)
        t.cast(Lease, lease).release()
        again = other.acquire(NAME, 60, False)
        assert not isinstance(again, Held)
        again.release()

    def test_that_were_taken_over_may_be_given_back(self, pair: tuple[t.Any, ...]) -> None:
        one, other = pair
        late = one.acquire(NAME, 0, False)
        taken = other.acquire(NAME, 60, False)
        assert not isinstance(late, Held) and not isinstance(taken, Held)
        late.release()
        assert one.acquire(NAME, 60, False) == Held(taken.token)
        taken.release()

    @pytest.mark.processes
    def test_of_a_process_that_is_stopped_are_taken_over_after_their_time(
        self, files: str, tmp_path: Path
    ) -> None:
        content = tmp_path / "content"
        content.write_text("old")
        options = {"rules": {"/": False}, "render_timeout": 1}
        one, other = (Elsewhere(files, str(content), **options) for _ in range(2))
        try:
            one.hold()
            late = one.begin("visit")
            one.wait()
            os.kill(one.pid, signal.SIGSTOP)
            content.write_text("new")
            assert other.visit()[2] == "new"
            os.kill(one.pid, signal.SIGCONT)
            one.release()
            late.result(PATIENCE)
            assert one.visit()[2] == other.visit()[2] == "new"
        finally:
            one.kill()
            other.kill()


class TestWhatKilledWritersLeave:
    def test_is_no_page_and_goes_after_an_hour(self, tmp_path: Path) -> None:
        storage = FileStorage(str(tmp_path))
        storage.set(NAME, b"whole")
        young, old = (Path(f"{storage.path(NAME)}.{name}.tmp") for name in ("young", "old"))
        for path in (young, old):
            path.write_bytes(b"hal")
        then = os.stat(old).st_mtime - LITTER_AGE - 1
        os.utime(old, (then, then))
        again = FileStorage(str(tmp_path))
        assert (young.exists(), old.exists()) == (True, False)
        assert (list(again.names()), again.get(NAME)) == ([NAME], b"whole")

    def test_is_never_under_the_name_of_a_page(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        storage = FileStorage(str(tmp_path))
        storage.set(NAME, b"the old page")

        def killed(*args: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", killed)
            storage.set(NAME, b"the new page")
        assert storage.get(NAME) == b"the old page"
        assert [path.name for path in tmp_path.glob("*/*")] == [NAME]


class TestWithoutSharedMemory:
    """A `stat` stands in for it."""

    @pytest.fixture(params=["missing", "no folder", "somebody else's"])
    def pair(
        self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[tuple[FileCoordination, FileCoordination]]:
        memory = tmp_path / "shm"
        if request.param == "no folder":
            memory.touch()
        elif request.param == "somebody else's":
            memory.mkdir()
            real_fstat = os.fstat
            monkeypatch.setattr(
                shared.os, "fstat", lambda number: _owned_by(real_fstat(number), os.geteuid() + 1)
            )
        monkeypatch.setattr(shared, "SHARED_MEMORY", str(memory))
        folder = tmp_path / "folder"
        folder.mkdir()
        yield FileCoordination(str(folder)), FileCoordination(str(folder))

    def test_invalidations_and_pages_are_seen_at_once(
        self, pair: tuple[FileCoordination, FileCoordination], tmp_path: Path
    ) -> None:
        one, other = pair
        assert isinstance(one.signal, shared.StatSignal)
        for number in range(5):
            before, stored = other.signal[0], other.stored(NAME)
            one.invalidate([f"tag:{number}"], False)
            assert other.signal[0] != before
            assert f"tag:{number}" in other.epochs().labels
            one.swap(FileStorage(str(tmp_path / "pages")), NAME, b"x", lambda data: True)
            assert other.stored(NAME) != stored

    def test_on_one_side_only_they_are_seen_within_a_second(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = FileCoordination(str(tmp_path))
        monkeypatch.setattr(shared, "SHARED_MEMORY", "/nowhere")
        other = FileCoordination(str(tmp_path))
        one.epochs()
        before = one.signal[0]
        other.invalidate(["tag:a"], False)

        def seen() -> bool:
            one.poll()
            return one.signal[0] != before

        wait_until(seen)
        assert "tag:a" in one.epochs().labels


def _owned_by(status: os.stat_result, user: int) -> os.stat_result:
    fields = list(status)
    fields[4] = user
    return os.stat_result(fields)
