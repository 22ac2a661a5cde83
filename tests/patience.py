"""How long visitors wait for a store that does not answer, in the tests of that."""

from __future__ import annotations

import time
import typing as t

import pytest
from redis_server import Memcached, Redis, Server
from steps import PATIENCE, visit

from wsgi_isr import ISRMiddleware
from wsgi_isr.process import POLL

#: Seconds that a client waits here, longer than a busy machine takes for what needs no wait.
TIMEOUT = 0.6
#: Seconds that whoever meets the failure first may wait: for a connection and for an answer.
#: Nobody after them waits at all.
FIRST, OTHERS = 2 * TIMEOUT + 2, 0.4
#: Seconds until all is as before: a pause between two probes, and one that fails.
RECOVERY = POLL + FIRST + PATIENCE


def be_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsgi_isr.store.clients.TIMEOUT", TIMEOUT)


def usual(times: list[float]) -> float:
    """The slowest but for a tenth of them, whom the machine may have kept waiting."""
    return sorted(times)[int(0.9 * (len(times) - 1))]


def timed(isr: ISRMiddleware, path: str = "/") -> tuple[float, t.Any]:
    began = time.monotonic()
    answer = visit(isr, path)
    return time.monotonic() - began, answer


def url_of(server: Server) -> str:
    assert isinstance(server, Redis | Memcached)
    return server.url
