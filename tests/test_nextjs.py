"""What docs/nextjs.md says of Next.js and of us: each row has a test, and here are some of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Browser, Clock, Site, status_of

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "nextjs.md").read_text("utf-8")

Browse = Callable[..., Browser]


def rows() -> list[list[str]]:
    """The rows of all tables that have tests."""
    found = []
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("|") and len(cells) == 3 and not cells[0].startswith("Next.js 12.2"):
            found.append(cells)
    return [cells for cells in found if set(cells[0]) != {"-"}]


def names_in(path: Path) -> set[str]:
    """The tests in a file, by the names that pytest gives them."""
    found = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(f"{path.name}::{node.name}")
        elif isinstance(node, ast.ClassDef):
            methods = (child for child in node.body if isinstance(child, ast.FunctionDef))
            found |= {f"{path.name}::{node.name}::{method.name}" for method in methods}
    return found


class TestTheTable:
    def test_has_a_test_in_each_row(self) -> None:
        assert len(rows()) > 60
        for _, ours, tests in rows():
            assert ours.partition(":")[0].split()[0].strip(",;") in ("Same", "Better", "Different")
            assert re.fullmatch(r"`[\w.:]+`(, `[\w.:]+`)*", tests)

    def test_names_tests_that_there_are(self) -> None:
        there: set[str] = set()
        for path in (ROOT / "tests").glob("test_*.py"):
            there |= names_in(path)
        named = set(re.findall(r"test_\w+\.py::[\w:]+", PAGE))
        assert named - there == set()


@pytest.fixture
def client(site: Site, browse: Browse, files: str) -> Browser:
    """A visitor of a site in files; ``/a`` is a page."""
    site.page("/a", lambda environ: f"render {site.renders('/a')}")
    return browse(files, rules={"/**": 60}, base_url="http://localhost")


@pytest.fixture
def other(browse: Browse, files: str) -> Callable[[], Browser]:
    """Makes a visitor of another process, which has nothing in memory."""
    return lambda: browse(files, rules={"/**": 60}, base_url="http://localhost")


class TestTime:
    def test_the_window_of_a_prerendered_page_begins_with_its_render(
        self, client: Browser, clock: Clock
    ) -> None:
        list(client.isr.prerender(["/a"]))
        clock.advance(59)
        assert status_of(client.get("/a")) == "isr; hit; ttl=1"
        clock.advance(1)
        assert status_of(client.get("/a")) == "isr; hit; ttl=0"

    def test_the_time_of_a_page_is_kept_with_it(
        self, client: Browser, other: Callable[[], Browser], clock: Clock
    ) -> None:
        client.get("/a")
        clock.advance(59)
        assert status_of(other().get("/a")) == "isr; hit; ttl=1"


class TestBuild:
    def test_a_redirect_is_prerendered(self, client: Browser, site: Site) -> None:
        there = [("Location", "http://localhost/a")]
        site.page("/old", "", status="308 Permanent Redirect", headers=there)
        (result,) = client.isr.prerender(["/old"])
        assert (result.status, result.error) == (308, None)
        assert client.get("/old").location == "http://localhost/a"


class TestPaths:
    def test_are_compared_decoded_and_with_their_case(self, client: Browser, site: Site) -> None:
        site.page("/A", "another")
        client.get("/a")
        assert client.get("/%61").text == "render 1"
        assert client.get("/A").text == "another"

    def test_may_be_longer_than_a_file_name(
        self, site: Site, client: Browser, other: Callable[[], Browser]
    ) -> None:
        path = "/" + 300 * "x"
        site.page(path)
        client.get(path)
        assert status_of(other().get(path)) == "isr; hit; ttl=60"


class TestRequests:
    @pytest.mark.parametrize(
        "headers", [{"Cache-Control": "no-cache"}, {"Cache-Control": "max-age=0"}, {"Pragma": "x"}]
    )
    def test_a_reload_is_answered_from_the_store(
        self, client: Browser, headers: dict[str, str]
    ) -> None:
        client.get("/a")
        answer = client.get("/a", headers=headers)
        assert (answer.text, status_of(answer)) == ("render 1", "isr; hit; ttl=60")


class TestStorage:
    def test_what_does_not_fit_into_memory_is_read_again(
        self, site: Site, browse: Browse, files: str
    ) -> None:
        paths = [f"/{number}" for number in range(20)]
        for path in paths:
            site.page(path, 1000 * path)
        client = browse(files, memory_size=20_000)
        for path in paths:
            client.get(path)
        assert 0 < client.isr.stats()["memory_bytes"] <= 20_000
        for path in paths:
            answer = client.get(path)
            assert (answer.text, status_of(answer)) == (1000 * path, "isr; hit; ttl=60")
        assert site.renders() == len(paths)

    def test_what_is_deleted_is_a_miss(
        self, client: Browser, other: Callable[[], Browser], site: Site
    ) -> None:
        client.get("/a")
        assert client.isr.prune(everything=True) == 1
        assert other().get("/a").text == "render 2"
