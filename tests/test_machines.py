"""Processes on one Redis server stand for machines."""

from __future__ import annotations

import random
import statistics
import threading
import time
import typing as t
from collections.abc import Iterator

import pytest
from conftest import Clock, Make, Site, status_of
from elsewhere import Elsewhere
from redis_server import Redis
from steps import PATIENCE, result, start, visit, wait_until

from wsgi_isr import ISRMiddleware, Rule

pytestmark = [pytest.mark.servers, pytest.mark.processes]

HOME = "http://localhost/"
RULES = {"/**": Rule()}
MACHINES = 4
INTERLEAVINGS = 100


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> t.Any:
    path = tmp_path_factory.mktemp("machines") / "content"
    path.write_text("0")
    return path


@pytest.fixture(scope="module")
def machines(redis_process: Redis, content: t.Any) -> Iterator[list[Elsewhere]]:
    """They are the same in all tests: starting them takes longer than the tests do."""
    redis_process.database += 1
    url = redis_process.url
    made = [Elsewhere(url, str(content), rules=RULES) for _ in range(MACHINES)]
    for machine in made:
        machine.do("renders")
    yield made
    for machine in made:
        machine.kill()


class TestMachines:
    def test_see_what_was_rendered_on_demand_on_one_of_them(
        self, machines: list[Elsewhere], content: t.Any
    ) -> None:
        """On that one at once, on the others within a second."""
        for machine in machines:
            machine.visit()
        delays: list[float] = []
        for number in range(1, 11):
            content.write_text(str(number))
            one = machines[number % MACHINES]
            one.do("revalidate", HOME)
            returned = time.monotonic()
            assert one.visit()[2] == str(number)

            def follow(machine: Elsewhere, number: int = number, since: float = returned) -> None:
                while machine.visit()[2] != str(number):
                    assert time.monotonic() - since < PATIENCE
                delays.append(time.monotonic() - since)

            for future in [start(follow, machine) for machine in machines if machine is not one]:
                result(future)
        assert statistics.median(delays) < 1


class Database:
    """A number that pages show. A render reads it when it begins, and then takes a while."""

    def __init__(self, chance: random.Random) -> None:
        self.value = 0
        self._chance = chance
        self._lock = threading.Lock()

    def write(self) -> int:
        with self._lock:
            self.value += 1
            return self.value

    def render(self, environ: dict[str, t.Any]) -> str:
        value = self.value
        time.sleep(self._chance.choice((0, 0, 0.001, 0.003)))
        return str(value)


class TestInterleavings:
    """Regenerations, cold renders and calls on demand, in a hundred orders on three machines."""

    def test_lose_no_update(self, redis: Redis, site: Site, make: Make, clock: Clock) -> None:
        machines = [make(redis.url, rules=RULES) for _ in range(3)]
        last = []
        for seed in range(INTERLEAVINGS):
            chance = random.Random(seed)
            database = Database(chance)
            site.page(path := f"/{seed}", database.render, revalidate=10)
            self._run(chance, path, database, machines, clock)
            last.append((path, str(database.value)))
            site.environs.clear()
        for path, value in last[-50:]:
            for there in (make(redis.url, rules=RULES), *machines):
                wait_until(lambda at=(there, path), value=value: visit(*at).text == value)

    def _run(
        self,
        chance: random.Random,
        path: str,
        database: Database,
        machines: list[ISRMiddleware],
        clock: Clock,
    ) -> None:
        wrong: list[t.Any] = []

        def act(kinds: list[str], orders: list[int]) -> None:
            for kind, order in zip(kinds, orders, strict=True):
                machine = machines[order % 3]
                time.sleep((order % 7) / 4000)
                if kind == "write":
                    value = database.write()
                    machine.revalidate(f"http://localhost{path}")
                    # What a visitor of this machine gets now was rendered after the write.
                    text = visit(machine, path).text
                    if int(text) < value:
                        wrong.append((path, text, value))
                elif kind == "age":
                    clock.advance(10)
                else:
                    visit(machine, path)

        threads = []
        for _ in range(3):
            kinds = chance.choices(("write", "visit", "age"), (2, 4, 1), k=3)
            orders = [chance.randrange(1000) for _ in kinds]
            threads.append(threading.Thread(target=act, args=(kinds, orders)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        if database.value == 0:
            return
        # Nothing that was begun earlier and ends later may change what is stored.
        url = f"http://localhost{path}"
        wait_until(lambda: not machines[0].stats()["rendering"])
        assert machines[0].explain(url).state != "unknown"


def test_clocks_that_differ_by_minutes_make_no_difference(redis: Redis, content: t.Any) -> None:
    options = {"rules": RULES, "revalidate": 60}
    machines = [Elsewhere(redis.url, str(content), ahead=s, **options) for s in (0, 300, -300)]
    try:
        answers = [machine.visit()[1] for machine in machines]
        assert answers[0] == "isr; fwd=uri-miss; stored"
        left = [int(answer.removeprefix("isr; hit; ttl=")) for answer in answers[1:]]
        assert all(0 < seconds <= 60 for seconds in left)
    finally:
        for machine in machines:
            machine.kill()


def test_statuses_are_those_of_one_site(redis: Redis, site: Site, make: Make) -> None:
    """A page that one machine has rendered is a hit on all others."""
    site.page("/", "body", revalidate=10)
    machines = [make(redis.url) for _ in range(MACHINES)]
    answers = [status_of(visit(machine)) for machine in machines]
    assert answers == ["isr; fwd=uri-miss; stored"] + (MACHINES - 1) * ["isr; hit; ttl=10"]
