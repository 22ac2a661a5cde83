"""Threads in step: renders that end when the test says so, and visitors who come together."""

from __future__ import annotations

import threading
import time
import typing as t
from collections.abc import Callable
from concurrent.futures import Future

from conftest import Clock, client_of

from wsgi_isr import ISRMiddleware

#: Seconds after which a test has failed; none that passes waits for them.
PATIENCE = 10.0
#: Seconds after which a render that waits fails: later, so that it helps no test to pass.
HOLD = 3 * PATIENCE


class Steps:
    """The body of a page: ``render 1``, ``render 2`` ..., each waits until it is released.

    A body says when its render began, so an older one that overwrites a newer one is seen. What
    the app answers to a visitor's own request is not delayed, and is never what they get.
    """

    def __init__(self) -> None:
        self.begun = 0
        self._released: set[int] = set()
        self._all = False
        self._only: int | None = None
        self._changed = threading.Condition()

    def __call__(self, environ: dict[str, t.Any]) -> str:
        if "wsgi_isr.reason" not in environ:
            return "a first answer"
        with self._changed:
            self.begun += 1
            number = self.begun
            self._changed.notify_all()
            released = self._changed.wait_for(lambda: self._may_end(number), HOLD)
        assert released, f"render {number} was never released"
        return f"render {number}"

    def _may_end(self, number: int) -> bool:
        return self._all or number in self._released or self._only not in (None, number)

    def hang(self, number: int) -> None:
        """Let all renders but this one end."""
        with self._changed:
            self._only = number
            self._changed.notify_all()

    def wait(self, number: int) -> None:
        """Wait until a render has begun."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.begun >= number, PATIENCE)

    def release(self, *numbers: int) -> None:
        """Let renders end, now or when they begin; without numbers: all of them."""
        with self._changed:
            self._released.update(numbers)
            self._all = self._all or not numbers
            self._changed.notify_all()


def start(function: Callable[..., t.Any], *args: t.Any, **kwargs: t.Any) -> Future[t.Any]:
    """Run a function in a thread of its own."""
    future: Future[t.Any] = Future()

    def run() -> None:
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def result(future: Future[t.Any]) -> t.Any:
    return future.result(PATIENCE)


def wait_until(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """For what gives no event."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.002)


def visit(isr: ISRMiddleware, path: str = "/", **kwargs: t.Any) -> t.Any:
    """One visitor, with a client of their own."""
    return client_of(isr).get(path, **kwargs)


def later(isr: ISRMiddleware, clock: Clock) -> t.Any:
    """A visitor a moment later: while another process renders, nobody tries for a moment."""
    clock.advance(0.1)
    return visit(isr)


def number(answer: t.Any) -> int:
    """Which render it was whose page came."""
    return int(answer.text.removeprefix("render "))


def visitors(isr: ISRMiddleware, count: int, path: str = "/") -> list[Future[t.Any]]:
    """Visitors of a page that is being rendered; when this returns all of them wait for it."""
    renders = isr._here().renders
    joined = threading.Semaphore(0)
    join = renders._join

    def counted(*args: t.Any) -> t.Any:
        flight = join(*args)
        joined.release()
        return flight

    renders._join = counted  # type: ignore[method-assign]
    barrier = threading.Barrier(count)

    def come() -> t.Any:
        barrier.wait(PATIENCE)
        return visit(isr, path)

    futures = [start(come) for _ in range(count)]
    for _ in range(count):
        assert joined.acquire(timeout=PATIENCE)
    renders._join = join  # type: ignore[method-assign]
    return futures
