"""The benchmarks run wherever the tests do, and say what they have found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import report, targets
from benchmarks.results import Results
from benchmarks.subjects import ROOT
from benchmarks.turns import by_turns, cycle

DOCS = f"# Title\n\nabove\n\n{report.BEGIN}\nof an earlier run\n{report.END}\n\nbelow\n"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of what needs no other programs."""
    folder = tmp_path_factory.mktemp("out")
    (folder / "benchmarks.md").write_text(DOCS)
    command = [sys.executable, "-m", "benchmarks", "--quick", "--out", str(folder)]
    for part in ("files", "hits"):
        subprocess.run([*command, part], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return folder


@pytest.mark.processes
class TestCommand:
    def test_writes_between_its_marks(self, out: Path) -> None:
        text = (out / "benchmarks.md").read_text()
        assert text.startswith(f"# Title\n\nabove\n\n{report.BEGIN}\n\n## Targets\n")
        assert text.endswith(f"\n{report.END}\n\nbelow\n")
        assert "of an earlier run" not in text

    def test_keeps_the_parts_that_ran_before(self, out: Path) -> None:
        parts = json.loads((out / "benchmarks.json").read_text())
        assert parts.keys() == {"files", "hits"}
        text = (out / "benchmarks.md").read_text()
        for row in ("| by hand, again |", "| file://, 304 |", "| cachelib, get |"):
            assert row in text

    def test_says_that_a_quick_run_is_not_to_be_quoted(self, out: Path) -> None:
        assert "A quick run: too short to be quoted" in (out / "benchmarks.md").read_text()

    def test_a_part_that_does_not_exist_is_refused(self) -> None:
        command = [sys.executable, "-m", "benchmarks", "hit"]
        done = subprocess.run(command, capture_output=True, cwd=ROOT, text=True)
        assert done.returncode == 2
        assert "no part is called 'hit'" in done.stderr


class TestTargets:
    def row(self, results: Results, what: str) -> str:
        (line,) = (line for line in targets.table(results).splitlines() if f"| {what} |" in line)
        return line

    @pytest.mark.parametrize(("measured", "verdict"), [(2.0, "met"), (2.01, "**missed**")])
    def test_are_met_or_missed(self, tmp_path: Path, measured: float, verdict: str) -> None:
        results = Results(tmp_path / "r.json")
        results.add("hits", {"memory://": {"ratio": measured}}, quick=False)
        expected = f"| hit, `memory://` | at most 2 × by hand | {measured:g} × | {verdict} |  |"
        assert self.row(results, "hit, `memory://`") == expected

    @pytest.mark.parametrize(("measured", "verdict"), [(10.0, "met"), (11.0, "**missed**")])
    def test_may_be_lower_bounds(self, tmp_path: Path, measured: float, verdict: str) -> None:
        table = {
            "granian, constant": {"CPU µs": 9.5},
            "granian, wsgi-isr": {"CPU µs": measured},
        }
        results = Results(tmp_path / "r.json")
        results.add("http", table, quick=False)
        assert self.row(results, "hits over HTTP, granian").endswith(f" × | {verdict} |  |")

    def test_stand_beside_what_does_less(self, tmp_path: Path) -> None:
        cpu = {"constant": 10.0, "by hand": 10.2, "wsgi-isr": 10.4}
        table = {f"granian, {name}": {"CPU µs": value} for name, value in cpu.items()}
        results = Results(tmp_path / "r.json")
        results.add("http", table, quick=False)
        line = self.row(results, "hits over HTTP, granian")
        assert line.endswith("| 0.962 × | met | 0.98 × |")

    def test_say_what_was_not_measured(self, tmp_path: Path) -> None:
        line = self.row(Results(tmp_path / "r.json"), "a page written to files")
        assert line.endswith("| not measured |  |  |")


class TestTurns:
    def test_every_subject_has_one_in_each_round(self) -> None:
        order: list[str] = []
        clock = iter(range(0, 10_000, 7)).__next__
        subjects = {name: lambda times, name=name: order.append(name) for name in "ab"}
        table = by_turns(subjects, 3, clock, length=0.0)
        assert "".join(order).endswith("ababab")
        assert table == {name: {"ns": 7.0, "spread %": 0.0} for name in "ab"}

    def test_a_cycle_goes_on_where_it_ended(self) -> None:
        seen: list[int] = []
        turn = cycle(seen.append, [1, 2, 3])
        turn(2)
        turn(5)
        assert seen == [1, 2, 3, 1, 2, 3, 1]
