"""Four gunicorn workers on one cache folder: one site, whichever of them answers."""

from __future__ import annotations

import threading
import typing as t
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from servers import Answer, Folder, Server, gunicorn
from steps import PATIENCE, result, start, wait_until

pytestmark = pytest.mark.processes

HIT = "isr; hit"
STALE = "isr; hit; ttl=0"
VISITORS = 64

KINDS: dict[str, dict[str, t.Any]] = {
    "gthread": {},
    "sync preloaded and in use before the fork": {
        "worker_class": "sync",
        "preload": True,
        "WARM": "warm",
    },
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = Folder(tmp_path_factory.mktemp("site"))
    server = gunicorn(folder, **request.param)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def folder(server: Server) -> Folder:
    return server.folder


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A post of the test's own: the server is shared."""
    return str(request.node.originalname)


def crowd(server: Server, name: str, number: int = VISITORS) -> list[Future[Answer]]:
    """Visitors who come at the same moment."""
    barrier = threading.Barrier(number)

    def come() -> Answer:
        barrier.wait(PATIENCE)
        return server.get(name)

    return [start(come) for _ in range(number)]


def stored(server: Server, name: str, text: str, **metadata: t.Any) -> None:
    """A post whose page all workers have in memory."""
    server.folder.write(name, text, **metadata)
    for answer in server.from_all_workers(name).values():
        assert (answer.status, answer.body) == (200, text)


class TestOneRender:
    def test_for_all_who_visit_a_cold_page_at_once(
        self, server: Server, folder: Folder, name: str
    ) -> None:
        folder.write(name, "the page")
        with folder.held(name):
            visitors = crowd(server, name)
            wait_until(lambda: folder.renders(name))
        answers = [result(visitor) for visitor in visitors]
        assert Counter((answer.status, answer.body) for answer in answers) == {
            (200, "the page"): VISITORS
        }
        assert len(folder.renders(name)) == 1
        assert len({answer.worker for answer in answers}) > 1

    def test_for_all_who_visit_a_stale_page_at_once_and_nobody_waits(
        self, server: Server, folder: Folder, name: str
    ) -> None:
        stored(server, name, "old", tags=[name])
        server.do("revalidate_tag", name)
        folder.write(name, "new", tags=[name])
        with folder.held(name):
            # The render waits until all of them have their answer.
            answers = [result(visitor) for visitor in crowd(server, name)]
            assert {(answer.told, answer.body) for answer in answers} == {(STALE, "old")}
            wait_until(lambda: len(folder.renders(name)) == 2)
        wait_until(lambda: server.get(name).body == "new")
        for answer in server.from_all_workers(name).values():
            assert (answer.told, answer.body) == (HIT, "new")
        assert len(folder.renders(name)) == 2


class TestAnEditInOneWorker:
    def test_is_new_in_all_others_at_their_very_next_request(
        self, server: Server, folder: Folder, name: str
    ) -> None:
        stored(server, name, "before")
        editors: set[int] = set()
        edits = 0

        def edit() -> bool:
            nonlocal edits
            edits += 1
            folder.write(name, f"edit {edits}")
            editors.add(server.do("revalidate", f"/{name}").worker)
            answers = server.from_all_workers(name)
            assert {answer.body for answer in answers.values()} == {f"edit {edits}"}
            assert {answer.told for answer in answers.values()} == {HIT}
            return len(editors) == server.workers

        # Until each of the workers was the editor's.
        wait_until(edit)
        assert len(folder.renders(name)) == 1 + edits

    @pytest.mark.parametrize("operation", ["revalidate_tag", "invalidate"])
    def test_of_a_tag_or_a_pattern_holds_in_all_others_at_once(
        self, server: Server, folder: Folder, name: str, operation: str
    ) -> None:
        name = f"{name}-{operation}"
        stored(server, name, "old", tags=[name])
        folder.write(name, "new", tags=[name])
        argument = name if operation == "revalidate_tag" else f"/{name}"
        server.do(operation, argument, expire=True)
        answers = server.from_all_workers(name)
        assert {answer.body for answer in answers.values()} == {"new"}
        assert len(folder.renders(name)) == 2

    def test_that_deletes_the_post_is_a_404_in_all_until_it_is_published_again(
        self, server: Server, folder: Folder, name: str
    ) -> None:
        stored(server, name, "here")
        folder.delete(name)
        server.do("revalidate", f"/{name}")
        for answer in server.from_all_workers(name).values():
            assert (answer.status, answer.told) == (404, HIT)
        assert len(folder.renders(name)) == 2
        folder.write(name, "here again")
        server.do("revalidate", f"/{name}")
        for answer in server.from_all_workers(name).values():
            assert (answer.status, answer.body) == (200, "here again")


class TestAWorkerThatIsKilled:
    @pytest.fixture(autouse=True)
    def recover(self, server: Server) -> Iterator[None]:
        """The next test meets four workers again."""
        yield
        server.all_workers()

    def test_in_the_middle_of_a_cold_render_leaves_the_page_to_another(
        self, server: Server, folder: Folder, name: str
    ) -> None:
        folder.write(name, "the page")
        with folder.held(name):
            visitors = crowd(server, name, 16)
            wait_until(lambda: folder.renders(name))
            server.kill_worker(folder.renders(name)[0])
            # All of them may have come to that one.
            visitors.append(start(server.get, name))
            # Long before render_timeout, a minute: the lease ends with its process.
            wait_until(lambda: len(folder.renders(name)) == 2)
        errors = [visitor.exception(PATIENCE) for visitor in visitors]
        answers = [visitor.result() for visitor in visitors if visitor.exception() is None]
        assert {(answer.status, answer.body) for answer in answers} == {(200, "the page")}
        assert all(isinstance(error, ConnectionError) for error in errors if error is not None)
        assert len(set(folder.renders(name))) == len(folder.renders(name)) == 2


class TestARestartOfAllWorkers:
    @pytest.mark.parametrize("how", ["stop", "kill"])
    def test_loses_nothing(self, tmp_path_factory: pytest.TempPathFactory, how: str) -> None:
        folder = Folder(tmp_path_factory.mktemp("site"))
        server = gunicorn(folder)
        try:
            server.start()
            for name in ("false", "deleted", "soft", "hard", "demanded"):
                folder.write(name, "old", tags=[name])
            folder.write("hour", "old", revalidate=3600)
            for name in ("false", "deleted", "soft", "hard", "demanded", "hour", "never"):
                server.get(name)
            folder.delete("deleted")
            server.do("revalidate", "/deleted")
            folder.write("demanded", "newer")
            server.do("revalidate", "/demanded")
            server.do("revalidate_tag", "soft")
            server.do("revalidate_tag", "hard", expire=True)
            # A second passes, so that freshness that began anew would be seen.
            wait_until(lambda: server.get("hour").told == "isr; hit; ttl=3599")
            before = len((folder.path / "renders").read_text().splitlines())
            for name in ("false", "deleted", "soft", "hard", "hour", "never"):
                folder.write(name, "new")

            getattr(server, how)()
            server.start()

            answers = server.from_all_workers("false")
            assert {(a.told, a.body) for a in answers.values()} == {(HIT, "old")}
            answers = server.from_all_workers("demanded")
            assert {(a.told, a.body) for a in answers.values()} == {(HIT, "newer")}
            for name in ("deleted", "never"):
                answers = server.from_all_workers(name)
                assert {(a.status, a.told) for a in answers.values()} == {(404, HIT)}
            answer = server.get("hour")
            left = int(answer.told.removeprefix("isr; hit; ttl="))
            assert answer.body == "old" and 3500 < left < 3600
            # Nothing of all that was rendered.
            assert len((folder.path / "renders").read_text().splitlines()) == before
            answer = server.get("soft")
            assert (answer.told, answer.body) == (STALE, "old")
            answer = server.get("hard")
            assert (answer.told, answer.body) == ("isr; fwd=stale; stored", "new")
        finally:
            server.kill()
