"""A middleware in another process, on the same store, that a test works by remote control."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import typing as t
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection

from conftest import Site
from steps import HOLD, PATIENCE, start, visit

from wsgi_isr import ISRMiddleware
from wsgi_isr.store import clients

_processes = multiprocessing.get_context("spawn")


class Elsewhere:
    """Another process. Its page ``/`` has the text of a file, read when its render begins.

    :param cache: URL of the store.
    :param content: path of the file.
    :param options: of the middleware, ``revalidate``, the window of the page, and ``ahead``,
        seconds that the clock of that machine is ahead.
    """

    def __init__(self, cache: str, content: str, **options: t.Any) -> None:
        self._ours, theirs = _processes.Pipe()
        self._held, self._begun, self._released = (_processes.Event() for _ in range(3))
        events = (self._held, self._begun, self._released)
        self._process = _processes.Process(
            target=_serve, args=(theirs, events, cache, content, options), daemon=True
        )
        self._process.start()
        theirs.close()
        self._answers: dict[int, Future[t.Any]] = {}
        self._number = 0
        self._lock = threading.Lock()
        start(self._receive)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    # Renders in step.

    def hold(self) -> None:
        """Keep renders that begin from now on from ending."""
        self._released.clear()
        self._begun.clear()
        self._held.set()

    def wait(self) -> None:
        """Wait until such a render has begun."""
        assert self._begun.wait(PATIENCE)
        self._held.clear()

    def release(self) -> None:
        self._held.clear()
        self._released.set()

    # What is done there.

    def begin(self, operation: str, *args: t.Any) -> Future[t.Any]:
        """Call a method of the middleware there, or ``"visit"`` a path."""
        with self._lock:
            self._number += 1
            future = self._answers[self._number] = Future()
            self._ours.send((self._number, operation, args))
        return future

    def visit(self, path: str = "/") -> tuple[int, str, str]:
        """Status, ``Cache-Status`` and text of an answer."""
        answer: tuple[int, str, str] = self.begin("visit", path).result(PATIENCE)
        return answer

    def do(self, operation: str, *args: t.Any) -> t.Any:
        return self.begin(operation, *args).result(PATIENCE)

    def _receive(self) -> None:
        while True:
            try:
                number, value, error = self._ours.recv()
            except (EOFError, OSError):
                return
            future = self._answers.pop(number)
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

    def kill(self) -> None:
        """SIGKILL: it has no chance to tidy up."""
        self._process.kill()
        self._process.join(PATIENCE)


def _serve(
    connection: Connection, events: t.Any, cache: str, content: str, options: dict[str, t.Any]
) -> None:
    held, begun, released = events
    # As conftest.py has it.
    clients.TIMEOUT = clients.PATIENT
    site = Site()

    def body(environ: dict[str, t.Any]) -> str:
        with open(content) as file:
            text = file.read()
        if held.is_set():
            begun.set()
            assert released.wait(HOLD)
        return text

    site.page("/", body, revalidate=options.pop("revalidate", False))
    ahead, real = options.pop("ahead", 0), time.time
    time.time = lambda: real() + ahead
    isr = ISRMiddleware(site, cache, **options)
    isr._clock = time.time

    def work(number: int, operation: str, args: tuple[t.Any, ...]) -> None:
        try:
            value: t.Any = None
            if operation == "visit":
                answer = visit(isr, *args)
                value = answer.status_code, answer.headers.get("Cache-Status", ""), answer.text
            elif operation == "renders":
                value = site.renders()
            else:
                value = getattr(isr, operation)(*args)
                value = value if operation in ("revalidate", "stats") else None
        except Exception as error:
            connection.send((number, None, RuntimeError(repr(error))))
        else:
            connection.send((number, value, None))

    with ThreadPoolExecutor(128) as threads:
        while True:
            try:
                job = connection.recv()
            except EOFError:
                os._exit(0)
            threads.submit(work, *job)
