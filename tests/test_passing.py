"""What is no page passes through: unread, unbuffered, as the very iterable (promise 7)."""

from __future__ import annotations

import sys
import threading
import tracemalloc
import typing as t
from collections.abc import Iterator

import pytest
from answers import BOTH, PLAIN, answer, renew
from conftest import status_of
from steps import PATIENCE
from werkzeug.test import create_environ

from wsgi_isr import ISRMiddleware, Rule, page_headers
from wsgi_isr.render import RenderTimeout


class Body:
    """A response that notes what is done with it."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = chunks
        self.read = 0
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.chunks:
            self.read += 1
            yield chunk

    def close(self) -> None:
        self.closed += 1


class FileWrapper(Body):
    """A server recognises its own ``wsgi.file_wrapper`` only by that very object."""

    filelike = None


def app_of(body: t.Any, *headers: tuple[str, str], status: str = "200 OK") -> t.Any:
    def app(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
        start_response(status, [PLAIN, *headers])
        return body() if callable(body) else body

    return app


class Server:
    """Calls an app as a server does, one block at a time."""

    def __init__(self, app: t.Any, **environ: t.Any) -> None:
        self.sent: list[t.Any] = []
        self.written: list[bytes] = []
        self.result = app({**create_environ("/x"), **environ}, self._start_response)

    def read(self) -> bytes:
        try:
            return b"".join(self.result)
        finally:
            if hasattr(self.result, "close"):
                self.result.close()

    def _start_response(self, status: str, headers: t.Any, exc_info: t.Any = None) -> t.Any:
        assert exc_info is not None or not self.sent
        if exc_info is not None and self.written:
            raise exc_info[1].with_traceback(exc_info[2])
        self.sent.append((status, headers))
        return self.written.append


class TestAnswersThatAreNoPages:
    @pytest.mark.parametrize("kind", [FileWrapper, tuple, list])
    @pytest.mark.parametrize("status", ["200 OK", "500 Internal Server Error"])
    def test_pass_as_the_very_object_that_the_app_returned(self, kind: t.Any, status: str) -> None:
        body = kind((b"a", b"b")) if kind in (tuple, list) else kind(b"a", b"b")
        isr = ISRMiddleware(app_of(body, status=status), "memory://")
        for _ in range(2):
            server = Server(isr)
            assert server.result is body
            assert server.sent == [(status, [PLAIN])]

    @pytest.mark.parametrize("method", ["POST", "OPTIONS", "QUERY"])
    def test_nor_are_those_to_other_methods(self, method: str) -> None:
        body = FileWrapper(b"a")
        rules = {"/x": Rule(revalidate=60, fallback=False)}
        isr = ISRMiddleware(app_of(body), "memory://", rules=rules)
        assert Server(isr, REQUEST_METHOD=method).result is body

    def test_are_read_and_closed_by_the_server_alone(self) -> None:
        body = Body(b"a", b"b")
        server = Server(ISRMiddleware(app_of(body), "memory://"))
        assert (body.read, body.closed) == (0, 0)
        assert next(iter(server.result)) == b"a"
        assert (body.read, body.closed) == (1, 0)
        server.result.close()
        assert body.closed == 1

    def test_keep_their_headers(self, site: t.Any, browse: t.Any) -> None:
        own = [PLAIN, ("Cache-Control", "max-age=5"), ("Set-Cookie", "a=1"), ("Vary", "Cookie")]
        own += [("Cache-Status", "inner; hit"), ("Accept-Ranges", "bytes")]
        site.answers["/x"] = app_of([b"hello"], *own[1:])
        assert list(browse().get("/x").headers) == own

    @pytest.mark.parametrize("late", [True, False])
    def test_count_once_also_where_they_become_pages(self, late: bool) -> None:
        own: list[tuple[str, str]] = []

        def app(environ: dict[str, t.Any], start_response: t.Any) -> Iterator[bytes]:
            start_response("200 OK", [PLAIN, *own])
            yield b"a"

        isr = ISRMiddleware(app if late else lambda *args: list(app(*args)), "memory://")
        for passed in (1, 2, 3):
            Server(isr).read()
            assert isr.stats()["passed"] == passed
        # It still counts as no page.
        assert len(isr._hits) == 1
        own.extend(page_headers(60))
        Server(isr).read()
        stats = isr.stats()
        assert (stats["passed"], stats["misses"]) == (3, 1)


@pytest.mark.parametrize("undeclared", ["ignore", "pass"])
@pytest.mark.parametrize("query", ["", "?a=1"])
def test_of_a_declared_url_they_are_a_bypassed_visitors_alone(
    site: t.Any, browse: t.Any, undeclared: t.Any, query: str
) -> None:
    site.answers["/x"] = app_of([b"for members"])
    client = browse(rules={"/x": Rule(undeclared=undeclared)}, bypass=lambda environ: True)
    response = client.get(f"/x{query}")
    assert (response.text, status_of(response)) == ("for members", "isr; fwd=bypass; detail=bypass")
    assert response.headers["Cache-Control"] == "private, no-store"


class TestOtherMethods:
    def test_reach_the_app_with_body_and_query(self, site: t.Any, browse: t.Any) -> None:
        def echo(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            start_response("200 OK", [PLAIN])
            return [environ["QUERY_STRING"].encode(), b" ", body]

        site.answers["/x"] = echo
        response = browse(rules={"/x": 60}).post("/x?a=1", data=b"sent")
        assert response.text == "a=1 sent"

    def test_neither_read_nor_change_a_page(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", lambda environ: environ["REQUEST_METHOD"])
        client = browse()
        client.get("/x")
        for method in ("POST", "DELETE", "OPTIONS"):
            response = client.open("/x", method=method)
            assert (response.text, status_of(response)) == (method, "")
        assert client.get("/x").text == "GET"
        assert site.renders("/x") == 1


class TestLateStartResponse:
    """Generators call ``start_response`` only while they are iterated."""

    def test_no_block_is_delayed(self) -> None:
        made = []

        def app(environ: dict[str, t.Any], start_response: t.Any) -> Iterator[bytes]:
            start_response("200 OK", [PLAIN])
            for block in (b"a", b"b", b"c"):
                made.append(block)
                yield block

        blocks = iter(Server(ISRMiddleware(app, "memory://")).result)
        for number, block in enumerate((b"a", b"b", b"c"), 1):
            assert next(blocks) == block
            assert len(made) == number
        assert list(blocks) == []

    @BOTH
    def test_pages_are_found(self, site: t.Any, browse: t.Any, rules: t.Any) -> None:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> Iterator[bytes]:
            start_response("200 OK", [PLAIN, *page_headers(60)])
            yield b"one "
            yield environ.get("wsgi_isr.reason", "visitor").encode()

        site.answers["/x"] = app
        client = browse(rules=rules)
        response = client.get("/x")
        assert (response.text, status_of(response)) == ("one miss", "isr; fwd=uri-miss; stored")
        assert client.get("/x").text == "one miss"

    def test_the_generator_is_closed_once(self) -> None:
        closed = []

        def blocks(start_response: t.Any, headers: t.Any) -> Iterator[bytes]:
            try:
                start_response("200 OK", headers)
                yield b"a"
                yield b"b"
            finally:
                closed.append(True)

        def app(environ: dict[str, t.Any], start_response: t.Any) -> Iterator[bytes]:
            return blocks(start_response, [PLAIN])

        server = Server(ISRMiddleware(app, "memory://"))
        next(iter(server.result))
        server.result.close()
        assert closed == [True]

    def test_an_error_before_it_reaches_the_server(self) -> None:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> Iterator[bytes]:
            raise LookupError("no such table")
            yield b""

        with pytest.raises(LookupError):
            list(Server(ISRMiddleware(app, "memory://")).result)


class TestWrite:
    """``write()`` comes before the iterable."""

    @staticmethod
    def app(*headers: tuple[str, str]) -> t.Any:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            write = start_response("200 OK", [PLAIN, *headers])
            write(b"written, ")
            write(b"then ")
            return [b"returned"]

        return app

    def test_goes_straight_to_the_server(self) -> None:
        server = Server(ISRMiddleware(self.app(), "memory://"))
        assert server.written == [b"written, ", b"then "]
        assert server.result == [b"returned"]

    @BOTH
    def test_is_part_of_a_page(self, site: t.Any, browse: t.Any, rules: t.Any) -> None:
        site.answers["/x"] = self.app(*page_headers(60))
        client = browse(rules=rules)
        assert [client.get("/x").text for _ in range(2)] == ["written, then returned"] * 2
        assert status_of(client.get("/x")) == "isr; hit; ttl=60"

    def test_ends_with_the_time_of_a_render(self, unchecked: t.Any) -> None:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
            write = start_response("200 OK", [PLAIN, *page_headers(60)])
            while True:
                write(b"x")

        with pytest.raises(RenderTimeout):
            unchecked(app=app, rules={"/x": Rule()}, render_timeout=0.05).get("/x")

    @BOTH
    def test_is_bounded(self, unchecked: t.Any, rules: t.Any) -> None:
        """What is beyond the limit waits on disk, and reaches the visitor."""

        def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            write = start_response("200 OK", [PLAIN, *page_headers(60)])
            for _ in range(300):
                write(b"x" * 100_000)
            return [b"the end"]

        isr = unchecked(app=app, rules=rules, max_body_size=100_000).isr
        tracemalloc.start()
        try:
            server = Server(isr)
            assert tracemalloc.get_traced_memory()[1] < 5_000_000
            sizes = [len(block) for block in server.result]
            assert tracemalloc.get_traced_memory()[1] < 5_000_000
        finally:
            tracemalloc.stop()
        server.result.close()
        assert sum(sizes) == 30_000_007
        status = dict(server.sent[-1][1])["Cache-Status"]
        assert status == "isr; fwd=uri-miss; detail=too-large"


class TestExcInfo:
    """``start_response(status, headers, exc_info)``: what an app says when it fails half-way."""

    @staticmethod
    def app(
        status: str,
        *headers: tuple[str, str],
        before: tuple[tuple[str, str], ...] | None = (),
        block: bytes = b"",
    ) -> t.Any:
        """
        :param before: headers of a first call, ``None`` for none.
        :param block: sent before the failure.
        """

        def app(environ: dict[str, t.Any], start_response: t.Any) -> Iterator[bytes]:
            if before is not None:
                start_response("200 OK", [PLAIN, *before])
            if block:
                yield block
            try:
                raise ZeroDivisionError
            except ZeroDivisionError:
                start_response(status, [PLAIN, *headers], sys.exc_info())
            yield b"replaced"

        return app

    ERROR = "500 Internal Server Error"

    def test_replaces_an_answer_of_which_nothing_was_sent(self) -> None:
        server = Server(ISRMiddleware(self.app(self.ERROR), "memory://"))
        assert server.read() == b"replaced"
        assert [status for status, _ in server.sent] == ["200 OK", self.ERROR]

    @BOTH
    @pytest.mark.parametrize("block", [b"", b"half a page"])
    def test_replaces_what_was_collected(
        self, site: t.Any, browse: t.Any, rules: t.Any, block: bytes
    ) -> None:
        site.answers["/x"] = self.app(self.ERROR, before=tuple(page_headers(60)), block=block)
        client = browse(rules=rules)
        response = client.get("/x")
        assert (response.status, response.text) == (self.ERROR, "replaced")
        assert all(page.state == "failed" for page in client.isr.pages())

    @BOTH
    def test_replaces_what_was_written_beyond_the_limit(
        self, site: t.Any, unchecked: t.Any, rules: t.Any
    ) -> None:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            start_response("200 OK", [PLAIN, *page_headers(60)])(b"half a page" * 100)
            try:
                raise ZeroDivisionError
            except ZeroDivisionError:
                start_response("404 Not Found", [PLAIN, *page_headers(60)], sys.exc_info())
            return [b"replaced"]

        server = Server(unchecked(app=app, rules=rules, max_body_size=1000).isr)
        assert server.read() == b"replaced"
        assert dict(server.sent[-1][1])["Cache-Status"] == "isr; fwd=uri-miss; stored"

    @BOTH
    def test_in_a_first_call_is_an_answer_like_any_other(
        self, site: t.Any, browse: t.Any, clock: t.Any, rules: t.Any
    ) -> None:
        site.page("/x", "public")
        client = browse(rules=rules)
        client.get("/x")
        site.answers["/x"] = self.app("404 Not Found", before=None)
        response = renew(client, clock)
        assert (response.status_code, status_of(response)) == (404, "isr; hit; ttl=60")
        site.answers["/x"] = self.app("403 Forbidden", before=None)
        clock.advance(61)
        client.get("/x")
        client.isr.close()
        # Werkzeug's client raises at every exc_info.
        server = Server(client.isr)
        assert (server.read(), server.sent[-1][0]) == (b"replaced", "403 Forbidden")
        assert list(client.isr.pages()) == []

    @pytest.mark.parametrize("at_once", [True, False])
    def test_tells_nobody_that_it_is_a_page(self, at_once: bool) -> None:
        late = self.app(self.ERROR, *page_headers(60))

        def app(*args: t.Any) -> t.Any:
            return list(late(*args)) if at_once else late(*args)

        isr = ISRMiddleware(app, "memory://")
        for _ in range(3):
            # At first nobody has heard of it; later it is remembered as no page.
            server = Server(isr)
            server.read()
            assert [status for status, _ in server.sent] == ["200 OK", self.ERROR]
            names = [name for _, headers in server.sent for name, _ in headers]
            assert names == ["Content-Type", "Content-Type", "Cache-Control", "Cache-Status"]

    def test_raises_what_came_too_late(self) -> None:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            start_response("200 OK", [PLAIN])(b"sent")
            try:
                raise ZeroDivisionError
            except ZeroDivisionError:
                start_response(self.ERROR, [PLAIN], sys.exc_info())
            return []

        with pytest.raises(ZeroDivisionError):
            Server(ISRMiddleware(app, "memory://"))


@pytest.mark.parametrize("kind", ["text/event-stream; charset=utf-8", "Multipart/X-Mixed-Replace"])
class TestEndlessAnswers:
    """They pass, block by block, and hold no thread when their visitor has gone."""

    @pytest.mark.parametrize("declared", [None, {"/x": 60}, {"/**": Rule()}])
    @pytest.mark.parametrize("is_page", [True, False])
    def test_pass_block_by_block(
        self, kind: str, declared: t.Any, is_page: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        closed = []

        def blocks() -> Iterator[bytes]:
            try:
                for number in range(10**9):
                    yield b"event %d" % number
            finally:
                closed.append(True)

        def app(environ: dict[str, t.Any], start_response: t.Any) -> Iterator[bytes]:
            own = page_headers(60) if is_page else []
            start_response("200 OK", [("Content-Type", kind), *own])
            return blocks()

        isr = ISRMiddleware(app, "memory://", rules=declared)
        for _ in range(3):
            server = Server(isr)
            events = iter(server.result)
            assert [next(events) for _ in range(3)] == [b"event 0", b"event 1", b"event 2"]
            headers = dict(server.sent[-1][1])
            assert "ISR-Revalidate" not in headers
            if declared or is_page:
                assert headers["Cache-Status"] == "isr; fwd=uri-miss; detail=stream"
                assert headers["Cache-Control"] == "private, no-store"
            before = len(closed)
            server.result.close()
            assert len(closed) == before + 1
        assert list(isr.pages()) == []
        assert caplog.text.count("is not stored (stream)") == bool(declared or is_page)


def test_a_render_beyond_its_time_is_stopped_between_two_blocks(make: t.Any, site: t.Any) -> None:
    """Whatever its content type says."""
    ended = threading.Event()

    def app(environ: dict[str, t.Any], start_response: t.Any) -> Iterator[bytes]:
        start_response("200 OK", [PLAIN])
        try:
            for _ in range(1000):
                ended.wait(0.01)
                yield b"x"
        finally:
            ended.set()

    isr = make(app=app, rules={"/x": 60}, render_timeout=0.1, base_url="http://localhost")
    (found,) = isr.prerender(["/x"])
    assert found.outcome == "failed" and "render_timeout" in str(found.error)
    assert ended.wait(PATIENCE)


@BOTH
@pytest.mark.parametrize(
    "place", ["middleware.Process", "request.is_ambiguous", "store.pages.Pages.find"]
)
def test_an_exception_of_our_own_is_logged_and_the_app_answers(
    site: t.Any,
    browse: t.Any,
    rules: t.Any,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    site.page("/x", lambda environ: environ.get("wsgi_isr.reason", "own"))
    if rules and "Pages" in place:
        # Its rule alone makes it a page.
        site.answers["/x"], rules = answer(body=b"own"), {"/x": 60}
    client = browse(rules=rules)
    monkeypatch.setattr(f"wsgi_isr.{place}", lambda *args: 1 / 0)
    response = client.get("/x", headers={"ISR-Tags": "a"})
    assert "HTTP_ISR_TAGS" not in site.environs[0] and "ISR-Revalidate" not in response.headers
    assert (response.text, status_of(response)) == ("own", "isr; fwd=bypass; detail=error")
    assert response.headers["Cache-Control"] == "private, no-store"
    assert "the request goes to the app" in caplog.text


def test_an_exception_before_the_app_is_rendered_is_logged_and_the_app_answers(
    site: t.Any, browse: t.Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.page("/x", lambda environ: environ.get("wsgi_isr.reason", "own"))
    client = browse(rules={"/x": Rule()})
    monkeypatch.setattr("wsgi_isr.renders.Renders._lease", lambda *args: 1 / 0)
    response = client.get("/x")
    assert (response.text, status_of(response)) == ("own", "isr; fwd=bypass; detail=error")


def test_an_exception_behind_a_hit_is_logged_and_costs_no_answer(
    site: t.Any,
    browse: t.Any,
    clock: t.Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    site.page("/x")
    client = browse()
    client.get("/x")
    assert status_of(client.get("/x")) == "isr; hit; ttl=60"
    monkeypatch.setattr("wsgi_isr.process.Process.renew", lambda *args: 1 / 0)
    clock.advance(2)
    assert status_of(client.get("/x")) == "isr; hit; ttl=58"
    assert "ZeroDivisionError" in caplog.text


class TestClosing:
    """``close()`` of the app's iterable exactly once, always."""

    @BOTH
    def test_of_a_page(self, rules: t.Any) -> None:
        bodies: list[Body] = []

        def make() -> Body:
            bodies.append(Body(b"a"))
            return bodies[-1]

        isr = ISRMiddleware(app_of(make, *page_headers(60)), "memory://", rules=rules)
        Server(isr)
        assert [body.closed for body in bodies] == [1] * (1 if rules else 2)

    @BOTH
    def test_of_one_that_breaks_off(self, rules: t.Any) -> None:
        class Breaking(Body):
            def __iter__(self) -> Iterator[bytes]:
                yield b"half"
                raise ConnectionError

        body = Breaking()
        isr = ISRMiddleware(app_of(body, *page_headers(60)), "memory://", rules=rules)
        with pytest.raises(ConnectionError):
            list(Server(isr).result)
        assert body.closed == 1
