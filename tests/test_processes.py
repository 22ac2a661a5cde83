"""Processes on one store: one render, and what is demanded in one holds in the other."""

from __future__ import annotations

import time
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Make
from elsewhere import Elsewhere
from steps import PATIENCE, wait_until

from wsgi_isr import Rule

pytestmark = pytest.mark.processes

HOME = "http://localhost/"
HIT = "isr; hit"
STALE = "isr; hit; ttl=0"


@pytest.fixture
def content(tmp_path: Path) -> Path:
    """What the page says; renders read it when they begin."""
    path = tmp_path / "content"
    path.write_text("old")
    return path


@pytest.fixture
def spawn(files: str, content: Path) -> Iterator[t.Any]:
    processes = []

    def spawn(**options: t.Any) -> Elsewhere:
        options.setdefault("rules", {"/": False})
        processes.append(Elsewhere(files, str(content), **options))
        return processes[-1]

    yield spawn
    for process in processes:
        process.kill()


class TestOnDemand:
    def test_is_new_in_the_other_process_at_its_very_next_request(
        self, spawn: t.Any, content: Path
    ) -> None:
        one, other = spawn(), spawn()
        for number in range(50):
            editor, visited = (one, other) if number % 2 else (other, one)
            content.write_text(f"edit {number}")
            editor.do("revalidate", HOME)
            assert visited.visit() == (200, HIT, f"edit {number}")

    @pytest.mark.parametrize("cold", [True, False], ids=["cold", "background"])
    def test_a_render_in_flight_elsewhere_does_not_overwrite(
        self, spawn: t.Any, content: Path, cold: bool
    ) -> None:
        one, other = spawn(), spawn()
        if not cold:
            one.visit()
            one.do("invalidate", "/")
        other.hold()
        late = other.begin("visit")
        other.wait()
        content.write_text("new")
        one.do("revalidate", HOME)
        assert one.visit() == (200, HIT, "new")
        other.release()
        late.result(PATIENCE)
        other.do("close")
        assert one.visit() == other.visit() == (200, HIT, "new")

    def test_a_render_elsewhere_that_outlived_render_timeout_does_not_overwrite(
        self, spawn: t.Any, content: Path
    ) -> None:
        one, other = spawn(render_timeout=0.1), spawn(render_timeout=0.1)
        other.hold()
        late = other.begin("visit")
        other.wait()
        content.write_text("new")
        # It waits until the other one's time is over, and renders.
        assert one.visit()[2] == "new"
        other.release()
        # It has taken too long, and what it gives its own visitor is nobody else's.
        late.exception(PATIENCE)
        assert one.visit() == other.visit() == (200, HIT, "new")

    def test_a_call_during_a_render_elsewhere_starts_its_own(
        self, spawn: t.Any, content: Path
    ) -> None:
        one, other = spawn(), spawn()
        other.hold()
        late = other.begin("revalidate", HOME)
        other.wait()
        content.write_text("new")
        demanded = one.begin("revalidate", HOME)
        other.release()
        demanded.result(PATIENCE)
        late.result(PATIENCE)
        assert one.visit() == other.visit() == (200, HIT, "new")
        assert one.do("renders") == other.do("renders") == 1

    def test_a_hundred_calls_cost_two_renders_and_the_last_content_wins(
        self, spawn: t.Any, content: Path, make: Make, files: str
    ) -> None:
        one, other = spawn(), spawn()
        one.hold()
        calls = [one.begin("revalidate", HOME)]
        one.wait()
        content.write_text("new")
        calls += [process.begin("revalidate", HOME) for process in (one, other) for _ in range(50)]
        # Each has invalidated the page by now.
        wait_until(lambda: make(files).stats()["invalidations"] == len(calls))
        one.release()
        for call in calls:
            call.result(PATIENCE)
        assert one.visit() == other.visit() == (200, HIT, "new")
        assert one.do("renders") + other.do("renders") == 2


class TestOneRender:
    def test_that_takes_longer_than_its_page_lasts_is_for_all_who_wait(self, spawn: t.Any) -> None:
        options = {"rules": {"/": Rule(expire=1)}, "revalidate": 1}
        one, other = spawn(**options), spawn(**options)
        one.hold()
        first = one.begin("visit")
        one.wait()
        crowd = [process.begin("visit") for process in (one, other) for _ in range(8)]
        wait_until(lambda: other.do("stats")["waiting"] >= 8)
        time.sleep(1.1)
        one.release()
        assert {call.result(PATIENCE)[2] for call in [first, *crowd]} == {"old"}
        assert one.do("renders") + other.do("renders") == 1


class TestAProcessThatIsKilled:
    def test_in_the_middle_of_a_regeneration_leaves_it_to_the_next_visitor(
        self, spawn: t.Any, content: Path
    ) -> None:
        one, other = spawn(), spawn()
        one.visit()
        one.do("invalidate", "/")
        one.hold()
        one.visit()
        one.wait()
        one.kill()
        content.write_text("new")
        assert other.visit() == (200, STALE, "old")
        other.do("close")
        assert other.visit() == (200, HIT, "new")

    def test_in_the_middle_of_a_render_on_demand_leaves_the_page_stale(
        self, spawn: t.Any, content: Path
    ) -> None:
        one, other = spawn(), spawn()
        other.visit()
        one.hold()
        one.begin("revalidate", HOME)
        one.wait()
        content.write_text("new")
        one.kill()
        assert other.visit() == (200, STALE, "old")
        other.do("close")
        assert other.visit() == (200, HIT, "new")
