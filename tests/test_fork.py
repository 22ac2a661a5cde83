"""A fork while other threads are at work: the child waits for no lock that nobody will release."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import typing as t
from collections.abc import Iterator

import pytest
from conftest import Make, Site, open_cache, stores
from steps import PATIENCE, start, visit

from wsgi_isr import ISRMiddleware

pytestmark = [
    pytest.mark.processes,
    # Python 3.12 and newer warn of any fork of a process with threads.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]

LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Condition)


@pytest.fixture(
    params=stores("memory", "files", "SimpleCache", "FileSystemCache", "redis", "memcached")
)
def cache(request: pytest.FixtureRequest) -> t.Any:
    return open_cache(request, request.param)


def locks_of(thing: object, seen: set[int]) -> Iterator[t.Any]:
    """All locks that an object of ours, or what it consists of, has."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, LOCKS):
        yield thing
        return
    module = type(thing).__module__
    if module.startswith("wsgi_isr") or module == "cachelib.simple":
        names = [*getattr(thing, "__dict__", ()), *getattr(thing, "__slots__", ())]
        for name in names:
            yield from locks_of(getattr(thing, name, None), seen)


@contextlib.contextmanager
def all_locked(isr: ISRMiddleware) -> Iterator[int]:
    """Another thread holds all locks of a middleware; gives how many."""
    locks = list(locks_of(isr, set()))
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with contextlib.ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            held.set()
            done.wait(10 * PATIENCE)

    thread = start(hold)
    assert held.wait(PATIENCE)
    try:
        yield len(locks)
    finally:
        done.set()
        thread.result(PATIENCE)


def in_a_child(work: t.Callable[[], bool]) -> bool:
    """Whether something comes true in a forked child, before it is killed for being stuck."""
    child = os.fork()
    if child == 0:
        signal.alarm(int(3 * PATIENCE))
        good = False
        try:
            good = work()
        finally:
            os._exit(0 if good else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class TestAForkedChild:
    def test_does_not_wait_for_locks_that_other_threads_held(
        self, site: Site, make: Make, cache: t.Any
    ) -> None:
        isr = make(cache, base_url="http://localhost")
        site.page("/", "old", revalidate=False)
        visit(isr)
        isr.invalidate("/")
        visit(isr)
        isr.close()

        def work() -> bool:
            site.page("/", "new", revalidate=False)
            site.page("/other", "other")
            first = visit(isr).text
            isr.revalidate("/")
            isr.invalidate("/nothing")
            return (first, visit(isr).text, visit(isr, "/other").text) == ("old", "new", "other")

        with all_locked(isr) as locks:
            assert locks >= 5, "they were found"
            assert in_a_child(work)

    def test_works_in_the_midst_of_everything(self, site: Site, make: Make, cache: t.Any) -> None:
        isr = make(cache, base_url="http://localhost")
        pages = [f"/{number}" for number in range(5)]
        for path in pages:
            site.page(path, f"this is {path}", revalidate=False)
        # Imports have locks, too.
        visit(isr)
        ended = threading.Event()

        def keep_busy(number: int) -> None:
            while not ended.is_set():
                visit(isr, pages[number])
                isr.invalidate(pages[number])

        def work() -> bool:
            right = all(visit(isr, path).text == f"this is {path}" for path in pages)
            return right and isr.revalidate(pages[0])[0].status == 200

        crowd = [start(keep_busy, number) for number in range(3)]
        try:
            assert all(in_a_child(work) for _ in range(5))
        finally:
            ended.set()
            for visitor in crowd:
                visitor.result(PATIENCE)
