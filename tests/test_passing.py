"""What is no page passes through: unread, unbuffered, as the very iterable (promise 7)."""

from __future__ import annotations

import threading
import typing as t
from collections.abc import Iterator

import pytest
from answers import BOTH, PLAIN, Server, answer, app_of
from conftest import status_of
from steps import PATIENCE

from wsgi_isr import ISRMiddleware, Rule, page_headers


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


@BOTH
def test_an_exception_before_the_app_is_rendered_is_logged_and_the_app_answers(
    site: t.Any,
    browse: t.Any,
    rules: t.Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    site.page("/x", lambda environ: environ.get("wsgi_isr.reason", "own"))
    client = browse(rules=rules)
    monkeypatch.setattr("wsgi_isr.renders.Renders._lease", lambda *args: 1 / 0)
    response = client.get("/x")
    assert response.text == "own" and status_of(response).endswith("detail=error")
    assert response.headers["Cache-Control"] == "private, no-store"
    assert "ZeroDivisionError" in caplog.text


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
