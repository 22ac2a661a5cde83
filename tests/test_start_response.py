"""Ways to answer that PEP 3333 allows: late, by ``write()``, and once more, with ``exc_info``."""

from __future__ import annotations

import sys
import tracemalloc
import typing as t
from collections.abc import Iterator

import pytest
from answers import BOTH, PLAIN, Server, renew
from conftest import status_of

from wsgi_isr import ISRMiddleware, Rule, page_headers
from wsgi_isr.render import RenderTimeout


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
