"""What a request costs once its URL was asked for, counted and not timed: it holds on any machine.

A count that rises fails here, and so does one that falls: then write the new one into `COSTS`, so
that the gain is kept. One that has to rise needs a reason in the commit that writes it.
"""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
import typing as t
from collections.abc import Callable, Iterator

import pytest
from benchmarks.subjects import BODY, Response, app
from benchmarks.subjects import request as browser_request

from wsgi_isr import ISRMiddleware
from wsgi_isr.outcome import MAX_BACK_OFF


class Cost(t.NamedTuple):
    #: Functions called, those written in C too, the server's ``start_response`` among them.
    calls: int
    #: Bytecode instructions run; every version of Python compiles to others: these are 3.11's.
    instructions: int
    #: Bytes allocated at a time, at most. Other threads shake it a little, so it is a bound; it
    #: is there for a copy of an environ or of a body, which takes no more calls.
    held: int


COSTS = {
    "hit": Cost(6, 110, 384),
    "hit with a cookie": Cost(6, 110, 384),
    "hit with an undeclared query": Cost(6, 110, 384),
    "hit without QUERY_STRING": Cost(6, 110, 384),
    "hit with gzip": Cost(6, 110, 384),
    "304": Cost(8, 130, 384),
    "HEAD": Cost(7, 131, 384),
    "stale": Cost(22, 329, 1200),
    "not a page": Cost(12, 215, 1200),
}
#: The number that shows whether a page was stored is read from memory that processes share.
STALE_ON_FILES = Cost(23, 335, 1200)
REQUESTS: dict[str, dict[str, str]] = {
    "hit": {},
    "hit with a cookie": {"HTTP_COOKIE": "a=1; session=abcdef"},
    "hit with an undeclared query": {"QUERY_STRING": "utm_source=newsletter"},
    "hit without QUERY_STRING": {},
    "hit with gzip": {"HTTP_ACCEPT_ENCODING": "gzip, br"},
    "304": {"HTTP_IF_NONE_MATCH": ""},
    "HEAD": {"REQUEST_METHOD": "HEAD"},
    "stale": {},
    "not a page": {"PATH_INFO": "/other"},
}
#: Answers are made anew every second: the least of several counts is what a request takes.
TIMES = 8

Request = Callable[[], object]


def start_response(status: str, headers: t.Any, exc_info: t.Any = None) -> None:
    pass


@pytest.fixture(params=COSTS)
def case(request: pytest.FixtureRequest) -> str:
    return t.cast(str, request.param)


@pytest.fixture
def again(case: str, cache: str) -> Iterator[Request]:
    """The same request again and again."""
    isr = ISRMiddleware(app, cache)
    environ = browser_request() | REQUESTS[case]
    if case == "304":
        environ["HTTP_IF_NONE_MATCH"] = Response(isr, browser_request()).headers["ETag"]
    if case == "hit without QUERY_STRING":
        # As bjoern does, where it is empty.
        del environ["QUERY_STRING"]
    if case == "stale":
        Response(isr, environ)
        (entry,) = isr._here().pages.memory
        # As after a render that has failed.
        entry.retry_at = time.time() + MAX_BACK_OFF
        isr.invalidate("/page/1")
    for _ in range(3):
        answer = Response(isr, environ)
    assert answer.status == ("304 Not Modified" if case == "304" else "200 OK")
    if case == "not a page":
        assert answer.body == BODY and "Cache-Status" not in answer.headers
    else:
        assert answer.headers["Cache-Status"].startswith("isr; hit; ttl=")
        assert (answer.headers["Cache-Status"] == "isr; hit; ttl=0") == (case == "stale")
    assert ("Content-Encoding" in answer.headers) == (case == "hit with gzip")

    yield lambda: isr(environ, start_response)
    isr.close()


def names_of_calls(run: Request) -> list[str]:
    """The functions that a request calls, in their order."""
    names: list[str] = []

    def note(frame: t.Any, event: str, arg: t.Any) -> None:
        if event == "call":
            names.append(frame.f_code.co_qualname)
        elif event == "c_call":
            names.append(arg.__qualname__)

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    # Neither the test's own function nor the one that ends the count.
    return [name for name in names if "again.<locals>" not in name][:-1]


def number_of_instructions(run: Request) -> int:
    count = 0

    def note(frame: t.Any, event: str, arg: t.Any) -> t.Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode" and "again.<locals>" not in frame.f_code.co_qualname
        return note

    before = sys.gettrace()
    sys.settrace(note)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


def bytes_held(run: Request) -> int:
    """The most that is allocated at a time, of what was not before."""
    # A whole collection empties the interpreter's lists of free objects, too.
    gc.collect()
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    run()
    _, most = tracemalloc.get_traced_memory()
    return most - before


@pytest.fixture
def cost(case: str, cache: t.Any) -> Cost:
    return STALE_ON_FILES if case == "stale" and str(cache).startswith("file:") else COSTS[case]


def remedy(case: str, cost: Cost, field: str, now: int) -> str:
    was = getattr(cost, field)
    if now > was:
        return (
            f"{case}: {now} {field} instead of {was}. A hit is what this library is for: take it "
            "out of the way of the request, or give the reason where you write the new number "
            "into COSTS. `python -m benchmarks hits` shows what it costs in nanoseconds."
        )
    return f"{case}: only {now} {field} instead of {was}. Write it into COSTS, to keep it so."


class TestCost:
    def test_calls(self, case: str, cost: Cost, again: Request) -> None:
        names = min((names_of_calls(again) for _ in range(TIMES)), key=len)
        assert len(names) == cost.calls, f"{remedy(case, cost, 'calls', len(names))} {names}"

    @pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the numbers are Python 3.11's")
    def test_instructions(self, case: str, cost: Cost, again: Request) -> None:
        count = min(number_of_instructions(again) for _ in range(TIMES))
        assert count == cost.instructions, remedy(case, cost, "instructions", count)

    @pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the numbers are Python 3.11's")
    def test_memory(self, case: str, cost: Cost, again: Request) -> None:
        # Collections do not look at what other tests left, which takes most of the time.
        gc.freeze()
        tracemalloc.start()
        try:
            # The least: threads of other tests may run in between, and only add to it.
            held = min(bytes_held(again) for _ in range(TIMES))
        finally:
            tracemalloc.stop()
            gc.unfreeze()
        assert held <= cost.held, remedy(case, cost, "held", held)
