"""Pages beyond ``max_body_size``: delivered block by block, never stored."""

from __future__ import annotations

import secrets
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from answers import BOTH, answer, renew
from conftest import status_of
from steps import Steps, result, start, visit, visitors
from werkzeug.test import create_environ

from wsgi_isr import ISRMiddleware, RevalidationError, Rule, page_headers


class Body:
    """Twenty blocks, and a note of how many were read and how often it was closed."""

    def __init__(self) -> None:
        self.read = 0
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(20):
            self.read += 1
            yield b"x" * 100

    def close(self) -> None:
        self.closed += 1


def answer_to(app: t.Any, **environ: str) -> t.Any:
    """What an app returns to a server that has not read it yet."""
    return app({**create_environ("/x"), **environ}, lambda *args: lambda data: None)


@pytest.fixture
def bodies() -> list[Body]:
    return []


@pytest.fixture
def large(bodies: list[Body]) -> t.Any:
    def app(environ: dict[str, t.Any], start_response: t.Any) -> Body:
        start_response("200 OK", [("Content-Type", "text/plain"), *page_headers(60)])
        bodies.append(Body())
        return bodies[-1]

    return app


@BOTH
def test_large_answers_reach_the_visitor_whole(
    site: t.Any,
    browse: t.Any,
    large: t.Any,
    bodies: list[Body],
    rules: t.Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    site.answers["/x"] = large
    client = browse(rules=rules, max_body_size=1000)
    for _ in range(3):
        response = client.get("/x", base_url="http://example.com")
        assert response.data == b"x" * 2000
        assert status_of(response) == "isr; fwd=uri-miss; detail=too-large"
    assert list(client.isr.pages()) == []
    assert [body.closed for body in bodies] == [1] * len(bodies)
    (record,) = caplog.records
    assert "http://example.com/x" in record.getMessage()
    assert "max_body_size" in record.getMessage()


@pytest.mark.parametrize("form", [b"", b'<input name="csrf_token">'])
def test_of_large_answers_too_a_rule_ignores_fields_but_no_form(
    site: t.Any, browse: t.Any, form: bytes
) -> None:
    """The canonical request's cookie would log its visitor out."""
    headers = ("Set-Cookie", "session=canonical"), ("Cache-Control", "private")
    site.answers["/x"] = answer(*headers, body=form + b"x" * 2000)
    rule = Rule(60, ignore=["Set-Cookie", "Cache-Control"])
    client = browse(rules={"/x": rule}, max_body_size=1000)
    for _ in range(2):
        response = client.get("/x")
        assert ("Set-Cookie" in response.headers) is bool(form)
        assert response.headers.get("Cache-Control") == ("private, no-store" if form else None)
        detail = "form-token" if form else "too-large"
        assert status_of(response) == f"isr; fwd=uri-miss; detail={detail}"


def test_large_answers_to_a_head_request_are_closed(large: t.Any, bodies: list[Body]) -> None:
    isr = ISRMiddleware(large, "memory://", rules={"/x": Rule()}, max_body_size=1000)
    assert b"".join(answer_to(isr, REQUEST_METHOD="HEAD")) == b""
    assert bodies[-1].closed == 1


def test_large_answers_behind_a_stale_page_withdraw_it_and_are_closed(
    site: t.Any, browse: t.Any, clock: t.Any, large: t.Any, bodies: list[Body]
) -> None:
    site.page("/x", "small")
    client = browse(max_body_size=1000)
    client.get("/x")
    site.answers["/x"] = large
    assert renew(client, clock).data == b"x" * 2000
    assert [body.closed for body in bodies] == [1] * len(bodies)
    assert list(client.isr.pages()) == []


class TestErrors:
    """An error page may be large, too."""

    @pytest.fixture
    def failing(self, large: t.Any) -> t.Any:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
            def start(status: str, headers: t.Any) -> t.Any:
                return start_response("503 Down", [*headers, ("Set-Cookie", "session=of-nobody")])

            return large(environ, start)

        return app

    def test_reach_the_visitor_whole(
        self, site: t.Any, browse: t.Any, failing: t.Any, bodies: list[Body]
    ) -> None:
        site.answers["/x"] = failing
        client = browse(rules={"/x": Rule()}, max_body_size=1000)
        for _ in range(2):
            response = client.get("/x")
            assert (response.status, response.data) == ("503 Down", b"x" * 2000)
            assert response.headers["Cache-Control"] == "private, no-store"
            assert "Set-Cookie" not in response.headers
        assert [body.closed for body in bodies] == [1, 1]
        assert [page.state for page in client.isr.pages()] == ["failed"]

    def test_are_closed_where_nobody_waits(
        self, site: t.Any, browse: t.Any, clock: t.Any, failing: t.Any, bodies: list[Body]
    ) -> None:
        site.page("/x", "good")
        client = browse(max_body_size=1000, base_url="http://localhost")
        client.get("/x")
        site.answers["/x"] = failing
        clock.advance(61)
        assert client.get("/x").text == "good"
        client.isr.close()
        with pytest.raises(RevalidationError):
            client.isr.revalidate("/x")
        assert [body.closed for body in bodies] == [1, 1]

    def test_are_closed_where_the_visitor_gets_his_own_answer(
        self, site: t.Any, browse: t.Any, failing: t.Any, bodies: list[Body]
    ) -> None:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
            if "wsgi_isr.reason" in environ:
                return failing(environ, start_response)
            start_response("200 OK", [("Content-Type", "text/plain"), *page_headers(60)])
            return [b"for you alone"]

        site.answers["/x"] = app
        assert browse(max_body_size=1000).get("/x").text == "for you alone"
        assert [body.closed for body in bodies] == [1]

    def test_are_shared_as_a_status_by_those_who_wait(
        self, site: t.Any, make: t.Any, cache: str
    ) -> None:
        steps = Steps()
        error = "503 Down"
        site.page("/", lambda environ: steps(environ) + "x" * 2000, status=error)
        isr = make(cache, rules={"/": Rule()}, max_body_size=1000)
        waiting = visitors(isr, 4)
        steps.release()
        texts = sorted(result(visitor).text for visitor in waiting)
        assert texts == sorted([f"{error}\n"] * 3 + ["render 1" + "x" * 2000])
        assert site.renders("/") == 1


@BOTH
def test_those_who_waited_for_a_large_answer_do_not_wait_for_each_other(
    site: t.Any, make: t.Any, rules: t.Any
) -> None:
    steps = Steps()
    site.page("/x", lambda environ: steps(environ).ljust(2000))
    isr = make(rules=rules, max_body_size=1000)
    first = start(visit, isr, "/x")
    steps.wait(1)
    others = visitors(isr, 3, "/x")
    steps.release(1)
    # All at once: none of these has ended.
    steps.wait(4)
    steps.release()
    answers = [result(future) for future in (first, *others)]
    assert {status_of(answer) for answer in answers} == {"isr; fwd=uri-miss; detail=too-large"}
    assert all(answer.text.startswith("render") for answer in answers)


def test_large_answers_that_nobody_waits_for_are_closed(
    site: t.Any, browse: t.Any, large: t.Any, bodies: list[Body]
) -> None:
    site.answers["/x"] = large
    client = browse(max_body_size=1000, base_url="http://localhost")
    (result,) = client.isr.prerender(["/x"])
    assert "too-large" in str(result.error)
    with pytest.raises(RevalidationError):
        client.isr.revalidate("/x")
    assert [body.closed for body in bodies] == [1, 1]


def test_a_body_of_exactly_that_size_is_stored(site: t.Any, browse: t.Any) -> None:
    site.page("/x", "x" * 1000)
    client = browse(max_body_size=1000)
    client.get("/x")
    assert status_of(client.get("/x")) == "isr; hit; ttl=60"


def test_a_page_that_is_too_large_for_the_store_is_withdrawn(
    site: t.Any, make: t.Any, tmp_path: Path
) -> None:
    site.page("/x", "old", revalidate=False)
    url = f"file://{tmp_path}?max_bytes=300000"
    isr, other = make(url, rules={"/x": Rule()}), make(url, rules={"/x": Rule()})
    assert visit(isr, "/x").text == visit(other, "/x").text == "old"
    site.page("/x", lambda environ: secrets.token_hex(200_000), revalidate=False)
    assert [found.outcome for found in isr.revalidate("http://localhost/x")] == ["withdrawn"]
    assert list(isr.pages()) == []
    for middleware in (isr, other):
        answer = visit(middleware, "/x")
        assert (len(answer.text), status_of(answer)) == (
            400_000,
            "isr; fwd=uri-miss; detail=too-large",
        )
