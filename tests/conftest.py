"""A tiny site under the strictest validators, a clock that tests turn, and real folders."""

from __future__ import annotations

import collections
import contextlib
import secrets
import threading
import typing as t
from collections.abc import Callable, Iterator
from pathlib import Path
from wsgiref.validate import validator

import pytest
from cachelib import FileSystemCache, MemcachedCache, SimpleCache
from redis_server import Memcached, Redis, running
from werkzeug.middleware.lint import InputStream, LintMiddleware
from werkzeug.test import Client

from wsgi_isr import ISRMiddleware, page_headers
from wsgi_isr.store.clients import PATIENT, redis_client
from wsgi_isr.store.redis import RedisStore

App = Callable[..., t.Any]

# Lint's input lacks a method that wsgiref.validate asks for, so they would not go together.
InputStream.readlines = lambda self, *args: self._stream.readlines(*args)  # type: ignore


def pytest_configure(config: pytest.Config) -> None:
    # pytest-xdist would begin with the files that have the most tests.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that no process works on at the end alone."""
    lengths = collections.Counter[Path]()
    for item in items:
        is_long = {"processes", "slow"} & {mark.name for mark in item.iter_markers()}
        lengths[item.path] += 20 if is_long else 1
    items.sort(key=lambda item: -lengths[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> t.Generator[None, t.Any, t.Any]:
    """Tests log what is no text in any encoding, and processes of tests send reports as UTF-8."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


class Clock:
    """Seconds since 1970, when the test says so."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Site:
    """A WSGI app whose answers tests set, with a record of the environs it was called with.

    ``site.answers[path] = app`` or ``site.page(path, body, **headers)``.
    """

    def __init__(self) -> None:
        self.answers: dict[str, App] = {}
        self.environs: list[dict[str, t.Any]] = []
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
        with self._lock:
            self.environs.append(environ)
        answer = self.answers.get(environ["PATH_INFO"])
        if answer is None:
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"no such page"]
        return answer(environ, start_response)

    def page(
        self,
        path: str,
        body: str | Callable[[dict[str, t.Any]], str] = "a page",
        revalidate: t.Any = 60,
        expire: int | None = None,
        tags: t.Any = (),
        status: str = "200 OK",
        headers: t.Any = (),
    ) -> None:
        """Answer a path with a page; a callable body takes the environ."""

        def answer(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
            text = body(environ) if callable(body) else body
            start_response(
                status,
                [
                    ("Content-Type", "text/html; charset=utf-8"),
                    *page_headers(revalidate, expire, tags),
                    *headers,
                ],
            )
            return [text.encode()]

        self.answers[path] = answer

    def fail(self, path: str) -> None:
        def answer(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
            raise ZeroDivisionError("the render failed")

        self.answers[path] = answer

    def renders(self, path: str | None = None) -> int:
        """How often the library itself called the app."""
        return sum(
            1
            for environ in list(self.environs)
            if "wsgi_isr.reason" in environ and path in (None, environ["PATH_INFO"])
        )

    def calls(self, path: str) -> int:
        return sum(1 for environ in list(self.environs) if environ["PATH_INFO"] == path)


def strict(app: App) -> App:
    """An app under both validators: whatever breaks PEP 3333 raises or warns."""
    both, one = validator(LintMiddleware(app)), validator(app)

    def choose(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
        # Lint wants no Content-Length on the answer to a HEAD; RFC 9110 section 8.6 allows it.
        return (one if environ["REQUEST_METHOD"] == "HEAD" else both)(environ, start_response)

    return choose


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
def clock() -> Clock:
    return Clock()


SERVERS = ("redis", "valkey", "memcached")


def stores(*names: str) -> list[t.Any]:
    return [
        pytest.param(name, marks=pytest.mark.servers if name in SERVERS else ()) for name in names
    ]


@pytest.fixture(params=stores("memory", "files", "redis", "memcached"))
def cache(request: pytest.FixtureRequest) -> t.Any:
    """Each way to coordinate, with nothing stored, as users hand it over."""
    return open_cache(request, request.param)


@pytest.fixture(params=stores("memory", "files", "redis"))
def listable(request: pytest.FixtureRequest) -> t.Any:
    """The same, of those that can list their pages."""
    return open_cache(request, request.param)


def open_cache(request: pytest.FixtureRequest, name: str) -> t.Any:
    """A store of some kind, with nothing in it."""
    if name == "memory":
        return "memory://"
    if name == "SimpleCache":
        return SimpleCache(threshold=1000)
    # Each test has its own part of a server, which is never emptied: the threads that followed it
    # for an earlier test may still run.
    if name in ("redis", "valkey"):
        pytest.importorskip(name)
        return request.getfixturevalue("redis").url.replace("redis:", f"{name}:")
    if name == "memcached":
        base = pytest.importorskip("pymemcache.client.base")
        address = ("127.0.0.1", request.getfixturevalue("memcached_process").port)
        client = base.PooledClient(address, timeout=1.5, connect_timeout=1.5)
        return MemcachedCache(client, key_prefix=secrets.token_hex(8))
    folder = f"{request.getfixturevalue('tmp_path')}/cache"
    if name == "files":
        return f"file://{folder}"
    if name == "callable":
        return lambda: FileSystemCache(folder, threshold=0)
    return FileSystemCache(folder, threshold=0)


@pytest.fixture(scope="session")
def memcached_process() -> Iterator[Memcached]:
    with running(Memcached()) as server:
        assert isinstance(server, Memcached)
        yield server


@pytest.fixture
def files(tmp_path: t.Any) -> str:
    """A store in files, as a URL."""
    return f"file://{tmp_path}/cache"


@pytest.fixture(params=["files", pytest.param("redis", marks=pytest.mark.servers)])
def shared(request: pytest.FixtureRequest) -> str:
    """Every store from which other processes take pages to render, as a URL."""
    url = request.getfixturevalue("files" if request.param == "files" else "redis")
    # Also other processes shall take a busy machine for no outage.
    wait = f"socket_timeout={PATIENT}&socket_connect_timeout={PATIENT}"
    return url if request.param == "files" else f"{url.url}?{wait}"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no outage."""
    monkeypatch.setattr("wsgi_isr.store.clients.TIMEOUT", PATIENT)


@pytest.fixture(scope="session")
def redis_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with running(Redis(tmp_path_factory.mktemp("redis"))) as server:
        assert isinstance(server, Redis)
        yield server


@pytest.fixture
def redis(redis_process: Redis) -> Redis:
    """A server with nothing in its database, which no process of another test follows any more.

    A test that stops a server, or sets it up, makes its own.
    """
    redis_process.database += 1
    redis_process.do("CONFIG", "RESETSTAT")
    return redis_process


@pytest.fixture
def open_redis(redis: Redis) -> Iterator[Callable[[], RedisStore]]:
    """Opens stores over one server, one for each process that a test stands for."""
    with contextlib.ExitStack() as stack:

        def open_one() -> RedisStore:
            store = RedisStore(redis_client(redis.url), "site:")
            stack.callback(store.close)
            return store

        yield open_one


Make = Callable[..., ISRMiddleware]


def end(middleware: ISRMiddleware) -> None:
    """Close a middleware, so that no thread of it goes on beside later tests."""
    middleware.close()


@pytest.fixture
def make(site: Site, clock: Clock) -> Iterator[Make]:
    """Makes a middleware around the site that runs by the test's clock."""
    made = []

    def make(cache: t.Any = "memory://", app: App | None = None, **options: t.Any) -> ISRMiddleware:
        middleware = ISRMiddleware(strict(app or site), cache, **options)
        middleware._clock = clock
        made.append(middleware)
        return middleware

    yield make
    for middleware in made:
        end(middleware)


@pytest.fixture
def browse(make: Make) -> Callable[..., Browser]:
    """A client of a new middleware, with validators on both sides; ``client.isr`` is it."""

    def browse(cache: t.Any = "memory://", **options: t.Any) -> Browser:
        return client_of(make(cache, **options))

    return browse


@pytest.fixture
def unchecked(site: Site, clock: Clock) -> Iterator[Callable[..., Browser]]:
    """A client without validators, for what they do not let pass: relative redirects, breaches."""
    made = []

    def unchecked(cache: t.Any = "memory://", app: App | None = None, **options: t.Any) -> Browser:
        middleware = ISRMiddleware(app or site, cache, **options)
        middleware._clock = clock
        browser = Browser(middleware)
        browser.isr = middleware
        made.append(browser)
        return browser

    yield unchecked
    for browser in made:
        end(browser.isr)


class Browser(Client):
    """A client that reads answers whole and closes them, as servers do."""

    isr: ISRMiddleware

    def open(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        kwargs.setdefault("buffered", True)
        return super().open(*args, **kwargs)


def client_of(middleware: ISRMiddleware) -> Browser:
    browser = Browser(strict(middleware))
    browser.isr = middleware
    return browser


def status_of(response: t.Any) -> str:
    """The ``Cache-Status`` of an answer, ``""`` without one."""
    return str(response.headers.get("Cache-Status", ""))
