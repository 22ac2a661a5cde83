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
from steps import result, start, visit
from werkzeug.test import create_environ

from wsgi_isr import ISRMiddleware, Rule, page_headers, process

#: Requests of an attacker who never sends the same twice: more than anything may keep.
MANY = 2_000
MEMORY = 2**18
#: URLs that are remembered as no pages.
NOT_PAGES = 500
#: Seconds between two of their requests.
PAUSE = 0.1
#: Between two attacks and the next visitor of the page that everybody wants.
OFTEN = 10


def tables(root: object) -> dict[str, int]:
    """The length of every container that an object of the library has, by where it is."""
    found: dict[str, int] = {}
    seen: set[int] = set()
    waiting = [("", root)]
    while waiting:
        where, thing = waiting.pop()
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
            waiting += [(f"{where}.{name}", getattr(thing, name, None)) for name in names]
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
    """Thousands of requests, with visitors of ``/hot`` among them."""

    def __init__(self, memory_size: int = MEMORY, **options: t.Any) -> None:
        self.isr = ISRMiddleware(site, "memory://", memory_size=memory_size, **options)
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
        assert self.isr.stats()["memory_bytes"] <= MEMORY
        for where, length in tables(self.isr._here()).items():
            assert length <= NOT_PAGES + MEMORY // 256, where
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
    "methods": (lambda n: {"REQUEST_METHOD": f"M{n}"}, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_made_up_requests_is_bounded(
    flood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "MAX_NOT_PAGES", NOT_PAGES)
    vary, options = FLOODS[flood]
    crowd = Flood(**options)
    crowd.send(vary)
    crowd.check()


@pytest.mark.slow
@pytest.mark.parametrize("flood", ["long paths", "long declared queries", "tags"])
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
    memory = 2 * 2**20
    crowd = Flood(memory, **options)
    crowd.request()
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(400 if flood == "tags" else 1500):
            crowd.request(**vary(number))
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Half as much for what is not counted, and the last thousand names of pages.
    assert taken < 1.5 * memory + 1024 * 5000
    assert crowd.isr.stats()["memory_bytes"] > memory / 2


@pytest.mark.parametrize(
    ("flood", "pages"),
    [
        ("undeclared queries", 1),
        ("hosts that are not trusted", 0),
        ("languages", 2),
        ("content codings", 1),
        ("cookies", 1),
    ],
)
def test_what_is_no_part_of_a_key_makes_no_page(flood: str, pages: int) -> None:
    vary, options = FLOODS[flood]
    crowd = Flood(**options)
    for number in range(100):
        crowd.request(**vary(number))
    assert len(list(crowd.isr.pages())) == pages


@pytest.mark.slow
def test_thousands_of_tags_and_patterns_slow_nobody_down_and_expire_nothing_else(
    site: t.Any, make: t.Any, files: str
) -> None:
    site.page("/", revalidate=False, tags=["mine"])
    site.page("/blog/1", revalidate=False)
    isr = make(files)
    for path in ("/", "/blog/1"):
        visit(isr, path)
    isr.revalidate_tag(*(f"tag-{number}" for number in range(MANY)))
    for number in range(500):
        isr.invalidate(f"/never/{number}/*")
    for worker in (isr, make(files)):
        for path in ("/", "/blog/1"):
            assert visit(worker, path).headers["Cache-Status"] == "isr; hit"
    isr.revalidate_tag("mine")
    assert visit(isr).headers["Cache-Status"] == "isr; hit; ttl=0"


class TestEndlessBodies:
    """A body without end reaches its visitor, block by block, and nobody else has to wait."""

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
            start_response("200 OK", [*headers])
            streams.append(self.Stream())
            return streams[-1]

        return app

    @staticmethod
    def open(isr: t.Any) -> t.Any:
        return isr(create_environ("/x"), lambda *args: lambda data: None)

    @pytest.mark.parametrize("rules", [None, {"/x": 60}], ids=["undeclared", "declared"])
    @pytest.mark.parametrize(
        ("kind", "most"), [("text/plain", 12), ("text/event-stream", 2)], ids=["text", "events"]
    )
    def test_of_a_page_are_collected_to_the_limit_or_not_at_all_and_then_sent_on(
        self, streams: list[Stream], rules: t.Any, kind: str, most: int
    ) -> None:
        app = self.endless(streams, ("Content-Type", kind), *page_headers(60))
        isr = ISRMiddleware(app, "memory://", rules=rules, max_body_size=10_000)
        answers = [result(call) for call in [start(self.open, isr) for _ in range(8)]]
        assert all(stream.read <= most for stream in streams)
        for answer in answers:
            blocks = list(itertools.islice(answer, 100))
            assert sum(map(len, blocks)) > 90_000
            answer.close()
        assert all(stream.closed.is_set() for stream in streams)
