"""The same checks under every server: do renders run behind visitors, whatever it does to us?"""

from __future__ import annotations

import threading
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_kinds import KINDS, Kind, skip_unless_there
from servers import Folder, Server
from steps import PATIENCE, start, wait_until

pytestmark = [pytest.mark.processes, pytest.mark.servers]


def kinds(recycled: bool) -> list[str]:
    return [name for name, kind in KINDS.items() if bool(kind.recycles) is recycled]


# One server for the tests of a kind: starting it takes longer than they do.


@pytest.fixture(scope="module")
def name(request: pytest.FixtureRequest) -> str:
    name = t.cast(str, request.param)
    skip_unless_there(name)
    return name


@pytest.fixture(scope="module")
def kind(name: str) -> Kind:
    return KINDS[name]


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def server(kind: Kind, folder: Folder) -> Iterator[Server]:
    """With a post that was rendered and regenerated before workers were forked, if they are."""
    folder.write("warm", "first")
    server = kind.start(folder, **({"WARM": "warm"} if kind.preloads else {}))
    try:
        server.start()
        yield server
    finally:
        server.kill()


every_kind = pytest.mark.parametrize("name", kinds(recycled=False), indirect=True, scope="module")


def settle(server: Server, name: str, text: str) -> None:
    """Wait until all workers show a text."""
    wait_until(lambda: {answer.body for answer in server.from_all_workers(name).values()} == {text})


def test_the_page_on_servers_names_each_that_is_tried() -> None:
    text = (Path(__file__).parents[1] / "docs" / "servers.md").read_text()
    tried = {name.removesuffix(", preloaded") for name in KINDS}
    assert [name for name in tried if f"`{name}`" not in text] == []


@every_kind
class TestEach:
    def test_renders_a_stale_page_once_while_nobody_asks_for_anything(
        self, server: Server, folder: Folder, kind: Kind
    ) -> None:
        folder.write("stale", "first")
        settle(server, "stale", "first")
        renders = len(folder.renders("stale"))
        folder.write("stale", "second")
        server.do("invalidate", "/stale")
        for visitor in [start(server.get, "stale") for _ in range(16)]:
            assert visitor.result(3 * PATIENCE).body in ("first", "second")
        if kind.threads:
            wait_until(lambda: len(folder.renders("stale")) > renders)
        # Where threads do not run, a visitor's own renders, after its answer.
        settle(server, "stale", "second")
        assert len(folder.renders("stale")) == renders + 1

    def test_renders_in_workers_what_was_warm_before_they_were_forked(
        self, server: Server, folder: Folder
    ) -> None:
        settle(server, "warm", "first")
        folder.write("warm", "second")
        server.do("invalidate", "/warm")
        settle(server, "warm", "second")

    def test_renders_a_cold_page_once(self, server: Server, folder: Folder) -> None:
        folder.write("cold", "cold")
        with folder.held("cold"):
            visitors = [start(server.get, "cold") for _ in range(16)]
            wait_until(lambda: folder.renders("cold"))
        answers = [visitor.result(3 * PATIENCE).body for visitor in visitors]
        assert answers == ["cold"] * 16
        assert len(folder.renders("cold")) == 1

    def test_holds_what_was_demanded_of_one_worker_in_all(
        self, server: Server, folder: Folder
    ) -> None:
        folder.write("edited", "edition 0")
        settle(server, "edited", "edition 0")
        for number in range(1, 4):
            folder.write("edited", f"edition {number}")
            server.do("revalidate", "/edited")
            answers = server.from_all_workers("edited").values()
            assert {answer.body for answer in answers} == {f"edition {number}"}

    def test_answers_many_at_once(self, server: Server, folder: Folder) -> None:
        """Visits and invalidations of 20 pages at the same time."""
        names = [f"post-{number}" for number in range(20)]
        for each in names:
            folder.write(each, "text")
        answers: list[str] = []
        lock = threading.Lock()

        def browse(offset: int) -> None:
            for step in range(20):
                answer = server.get(names[(offset + step) % 20])
                with lock:
                    answers.append(answer.body)
                if step == 10 and offset % 4 == 0:
                    server.do("invalidate", "/**")

        for visitor in [start(browse, offset) for offset in range(8)]:
            visitor.result(6 * PATIENCE)
        assert answers == ["text"] * 160


#: One of each program: starting them again takes long.
PROGRAMS = list({KINDS[name].needs: name for name in kinds(recycled=False)}.values())


@pytest.mark.parametrize("name", PROGRAMS, indirect=True, scope="module")
def test_a_server_ends_soon_in_the_middle_of_a_render(
    server: Server, folder: Folder, kind: Kind
) -> None:
    folder.write("last", "first")
    settle(server, "last", "first")
    renders = len(folder.renders("last"))
    folder.write("last", "second")
    with folder.held("last"):
        server.do("invalidate", "/last")
        assert "ttl=0" in server.get("last").told
        if kind.threads:
            wait_until(lambda: len(folder.renders("last")) > renders)
        # The render would go on until long after this; nobody waits for it.
        server.stop()
    server.start()
    settle(server, "last", "second")


@pytest.mark.parametrize("name", kinds(recycled=True), indirect=True, scope="module")
def test_workers_that_are_replaced_after_so_many_requests_lose_nothing(
    server: Server, folder: Folder, kind: Kind
) -> None:
    workers: set[int] = set()

    def visit() -> str:
        answer = server.get("post")
        assert answer.status == 200
        workers.add(answer.worker)
        return answer.body

    for number in range(3):
        folder.write("post", f"edition {number}")
        server.do("invalidate", "/post")
        for _ in range(kind.recycles):
            visit()
        wait_until(lambda text=f"edition {number}": visit() == text)
    wait_until(lambda: visit() and len(workers) > server.workers)
