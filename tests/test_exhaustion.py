"""Whatever clients choose freely, and however much of it they send, is bounded (promise 9).

While they do it, the page that everybody wants is served from the store.
"""

from __future__ import annotations

import gc
import itertools
import threading
import tracemalloc
import typing as t
from collections.abc import Iterator

import pytest
from conftest import Clock
from steps import PATIENCE
from steps import result
from steps import start
from steps import Steps
from steps import visit
from werkzeug.test import create_environ

from wsgi_isr import ISRMiddleware
from wsgi_isr import known
from wsgi_isr import page_headers
from wsgi_isr import pool
from wsgi_isr import Rule
from wsgi_isr.respond import Negotiation
from wsgi_isr.store import coordination

#: Requests of an attacker who never sends the same twice.
MANY = 10_000
MEMORY = 4 * 2**20
#: Seconds between two of his requests.
PAUSE = 0.01
#: Between two attacks and the next visitor of the page that everybody wants.
OFTEN = 50


def tables(root: object) -> dict[str, int]:
    """The length of every container that an object of the library holds, by where it is."""
    found: dict[str, int] = {}
    seen: set[int] = set()
    line = [("", root)]
    while line:
        where, thing = line.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, dict | list | set | tuple | bytearray):
            found[where] = len(thing)
        elif type(thing).__module__.startswith("wsgi_isr"):
            slots = itertools.chain.from_iterable(
                getattr(kind, "__slots__", ()) for kind in type(thing).__mro__
            )
            names = {*slots, *getattr(thing, "__dict__", ())}
            line += [(f"{where}.{name}", getattr(thing, name, None)) for name in names]
    return found


def site(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
    """A page at every path, but for those below /dynamic; tagged with whatever it is called."""
    path = environ["PATH_INFO"]
    headers = [("Content-Type", "text/plain")]
    if not path.startswith("/dynamic"):
        count = 100 if path.startswith("/tagged") else 1
        headers += page_headers(tags=[f"{n}{path[:100]}".ljust(200, "x") for n in range(count)])
    status = "404 Not Found" if path.startswith("/missing") else "200 OK"
    start_response(status, headers)
    return [b"a page " * 100]


class Flood:
    """Ten thousand requests, with visitors of ``/hot`` among them."""

    def __init__(self, **options: t.Any) -> None:
        self.isr = ISRMiddleware(site, "memory://", memory_size=MEMORY, **options)
        self.isr._clock = self.clock = Clock()
        self.template = create_environ("/hot", "http://site.example")

    def request(self, **environ: str) -> str:
        started: list[t.Any] = []
        body = self.isr({**self.template, **environ}, lambda *args: started.extend(args))
        for _ in body:
            pass
        return next((value for name, value in started[1] if name == "Cache-Status"), "")

    def send(self, vary: t.Callable[[int], dict[str, str]]) -> None:
        self.request()
        for number in range(MANY):
            self.request(**vary(number))
            self.clock.advance(PAUSE)
            if number % OFTEN == 0:
                assert self.request() == "isr; hit"

    def check(self) -> None:
        here = self.isr._here()
        assert here.memory.size <= MEMORY
        assert len(here.memory) <= MEMORY // 2048
        for where, length in tables(here).items():
            assert length <= known.MAX_NOT_PAGES + MEMORY // 256, where
        assert len(self.isr._site.negotiation._preferences) <= Negotiation.LIMIT
        # Of its own: those of earlier tests are idle for a while.
        assert len(here.pool._threads) <= 2 * (1 + pool.STAND_INS)
        self.isr.close()


FLOODS: dict[str, tuple[t.Callable[[int], dict[str, str]], dict[str, t.Any]]] = {
    "undeclared queries": (lambda n: {"QUERY_STRING": f"q={n}"}, {}),
    "declared queries": (lambda n: {"QUERY_STRING": f"q={n}"}, {"query": ["q"]}),
    "long queries": (lambda n: {"QUERY_STRING": f"q={n}" + "x" * 4000}, {"query": ["q"]}),
    "hosts": (lambda n: {"HTTP_HOST": f"h{n}.example"}, {}),
    "hosts that are not trusted": (
        lambda n: {"HTTP_HOST": f"h{n}.example"},
        {"trusted_hosts": ["site.example"]},
    ),
    "ports": (lambda n: {"HTTP_HOST": f"site.example:{n + 1000}"}, {}),
    "paths": (lambda n: {"PATH_INFO": f"/{n}"}, {}),
    "paths that are declared": (lambda n: {"PATH_INFO": f"/{n}"}, {"rules": {"/**": Rule()}}),
    "paths that are not there": (lambda n: {"PATH_INFO": f"/missing/{n}"}, {}),
    "paths of no pages": (lambda n: {"PATH_INFO": f"/dynamic/{n}"}, {}),
    "long paths": (lambda n: {"PATH_INFO": f"/{n}/" + "x" * 2000}, {}),
    "mount points": (lambda n: {"SCRIPT_NAME": f"/m{n}"}, {}),
    "languages": (
        lambda n: {"HTTP_ACCEPT_LANGUAGE": f"x{n}, de;q=0.{n % 10}"},
        {"rules": {"/**": Rule(vary={"Accept-Language": ["en", "de"]})}},
    ),
    "content codings": (lambda n: {"HTTP_ACCEPT_ENCODING": f"x{n}, gzip"}, {}),
    "long content codings": (lambda n: {"HTTP_ACCEPT_ENCODING": f"x{n}," + "x" * 4000}, {}),
    "cookies": (lambda n: {"HTTP_COOKIE": f"session={n}"}, {}),
    "headers": (lambda n: {f"HTTP_X_{n}": "x"}, {}),
    "methods": (lambda n: {"REQUEST_METHOD": f"M{n}"}, {}),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_made_up_requests_is_bounded(flood: str) -> None:
    vary, options = FLOODS[flood]
    crowd = Flood(**options)
    crowd.send(vary)
    crowd.check()


@pytest.mark.parametrize("flood", ["paths", "long paths", "long declared queries", "tags"])
def test_pages_take_the_memory_that_they_are_counted_with(flood: str) -> None:
    """Also where most of it is not their bodies."""
    vary, options = {
        "long declared queries": (
            lambda n: {"QUERY_STRING": f"q={n}" + "x" * 1900},
            {"query": ["q"]},
        ),
        "tags": (lambda n: {"PATH_INFO": f"/tagged/{n}"}, {}),
        **FLOODS,
    }[flood]
    crowd = Flood(**options)
    crowd.request()
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(400 if flood == "tags" else 3000):
            crowd.request(**vary(number))
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Half as much for what is not counted, and the last thousand names of pages.
    assert taken < 1.5 * MEMORY + 1024 * 5000
    assert crowd.isr._here().memory.size > MEMORY / 2


class TestWhatNobodyCanMultiply:
    """What is no part of a key makes no page."""

    @pytest.mark.parametrize(
        ("flood", "pages"),
        [
            ("undeclared queries", 1),
            ("hosts that are not trusted", 0),
            ("languages", 2),
            ("content codings", 1),
            ("cookies", 1),
            ("headers", 1),
        ],
    )
    def test_has_one_page(self, flood: str, pages: int) -> None:
        vary, options = FLOODS[flood]
        crowd = Flood(**options)
        for number in range(100):
            crowd.request(**vary(number))
        assert len(list(crowd.isr.pages())) == pages


def test_ten_thousand_tags_are_forgotten_as_invalidated_never_as_valid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coordination, "MAX_LABELS", 1000)
    crowd = Flood()
    crowd.request()
    for number in range(MANY):
        crowd.isr.revalidate_tag(f"tag-{number}")
    assert len(crowd.isr._here().store.coordination.epochs()) <= 1000
    # Whether one of the forgotten tags was its own, nobody knows any more.
    assert crowd.request() == "isr; hit; ttl=0"


class TestEndlessBodies:
    """A stream without end reaches its visitor, block by block, and nobody else has to wait."""

    class Stream:
        def __init__(self) -> None:
            self.read = 0
            self.closed = threading.Event()

        def __iter__(self) -> Iterator[bytes]:
            while not self.closed.is_set():
                self.read += 1
                yield b"x" * 1000

        def close(self) -> None:
            self.closed.set()

    @pytest.fixture
    def streams(self) -> list[Stream]:
        return []

    def endless(self, streams: list[Stream], *headers: tuple[str, str]) -> t.Any:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
            start_response("200 OK", [("Content-Type", "text/plain"), *headers])
            streams.append(self.Stream())
            return streams[-1]

        return app

    @staticmethod
    def open(isr: t.Any, path: str = "/x") -> t.Any:
        return isr(create_environ(path), lambda *args: lambda data: None)

    def test_of_no_page_pass_through(self, streams: list[Stream]) -> None:
        isr = ISRMiddleware(self.endless(streams), "memory://", max_body_size=10_000)
        assert self.open(isr) is streams[0]
        assert streams[0].read == 0

    @pytest.mark.parametrize("rules", [None, {"/x": Rule()}], ids=["undeclared", "declared"])
    def test_of_a_page_are_collected_to_the_limit_and_then_sent_on(
        self, streams: list[Stream], rules: t.Any
    ) -> None:
        app = self.endless(streams, *page_headers(60))
        isr = ISRMiddleware(app, "memory://", rules=rules, max_body_size=10_000)
        answer = self.open(isr)
        assert all(stream.read <= 12 for stream in streams)
        blocks = list(itertools.islice(answer, 100))
        assert sum(map(len, blocks)) > 100_000
        answer.close()
        assert all(stream.closed.is_set() for stream in streams)

    def test_behind_a_stale_page_are_cut(
        self, site: t.Any, browse: t.Any, clock: Clock, streams: list[Stream]
    ) -> None:
        site.page("/x", "good")
        client = browse(max_body_size=10_000)
        client.get("/x")
        site.answers["/x"] = self.endless(streams, *page_headers(60))
        clock.advance(61)
        assert client.get("/x").text == "good"
        client.isr.close()
        (stream,) = streams
        assert stream.closed.wait(PATIENCE)
        assert stream.read <= 12
        assert client.get("/x").text == "good"

    def test_of_those_who_come_at_once_block_nobody(self, streams: list[Stream]) -> None:
        app = self.endless(streams, *page_headers(60))
        isr = ISRMiddleware(app, "memory://", rules={"/x": Rule()}, max_body_size=10_000)
        answers = [start(self.open, isr) for _ in range(8)]
        for answer in map(result, answers):
            assert next(iter(answer))
            answer.close()


class TestSlowRenders:
    """Renders that hang, of more pages than there are threads."""

    def test_leave_the_stored_pages_to_be_served(
        self, site: t.Any, make: t.Any, clock: Clock
    ) -> None:
        slow = Steps()
        paths = [f"/{number}" for number in range(50)]
        for path in [*paths, "/hot"]:
            site.page(path, "old", revalidate=60 if path != "/hot" else 600)
        isr = make(workers=2)
        for path in [*paths, "/hot"]:
            visit(isr, path)
        for path in paths:
            site.page(path, slow)
        clock.advance(61)
        for _ in range(3):
            for path in paths:
                assert visit(isr, path).text == "old"
            assert visit(isr, "/hot").headers["Cache-Status"].startswith("isr; hit; ttl=5")
        slow.wait(2)
        assert slow.begun == 2
        assert isr._here().pool._queue.qsize() <= len(paths)
        slow.release()
        isr.close(PATIENCE)
        assert slow.begun == len(paths)
        assert visit(isr, paths[-1]).text.startswith("render ")

    def test_beyond_the_line_are_asked_for_again_later(
        self, site: t.Any, make: t.Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pool, "QUEUE_LIMIT", 5)
        slow = Steps()
        paths = [f"/{number}" for number in range(20)]
        for path in paths:
            site.page(path, "old")
        isr = make(workers=1)
        for path in paths:
            visit(isr, path)
            site.page(path, slow)
        clock.advance(61)
        for path in paths:
            assert visit(isr, path).text == "old"
        slow.wait(1)
        assert isr._here().pool._queue.qsize() <= 5
        assert len(isr._here().regeneration._queued) <= 6
        slow.release()
        for path in paths:
            visit(isr, path)
            isr.close(PATIENCE)
            assert visit(isr, path).text.startswith("render ")


class TestStormsOnDemand:
    """The route of a CMS, called by everybody at once."""

    @pytest.fixture
    def app(self) -> t.Any:
        from flask import Flask

        from wsgi_isr.flask import ISR
        from wsgi_isr.flask import isr_page

        app = Flask(__name__)
        app.config.update(
            ISR_ENABLED=True,
            ISR_CACHE="memory://",
            ISR_SECRET="a secret of some length",
            ISR_BASE_URL="http://localhost",
        )
        app.renders = Steps()  # type: ignore[attr-defined]

        @app.get("/")
        @isr_page
        def index() -> str:
            from flask import request

            return t.cast(str, app.renders(request.environ))  # type: ignore[attr-defined]

        ISR(app)
        return app

    def post(self, app: t.Any, secret: str = "a secret of some length") -> int:
        headers = {"Authorization": f"Bearer {secret}"}
        call = {"paths": ["/"]}
        response = app.test_client().post("/_isr/revalidate", json=call, headers=headers)
        return t.cast(int, response.status_code)

    def test_render_each_page_a_few_times(self, app: t.Any) -> None:
        first = start(self.post, app)
        app.renders.wait(1)
        storm = [start(self.post, app) for _ in range(40)]
        app.renders.release()
        assert {result(call) for call in [first, *storm]} == {200}
        # Those who come while one render runs share the next.
        assert app.renders.begun < 20

    def test_of_those_who_guess_render_nothing(self, app: t.Any) -> None:
        guesses = ["", "x", "a secret of some lengt", "a secret of some length!", "\xe9" * 24]
        assert {self.post(app, guess) for guess in guesses * 40} == {401}
        assert app.renders.begun == 0
