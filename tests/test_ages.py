"""Fresh, then stale, then expired; and what answers say of it from second to second."""

from __future__ import annotations

import threading
import typing as t
from collections.abc import Callable

import pytest
from conftest import Browser, Clock, Make, Site, status_of
from steps import PATIENCE, result, start, visit

from wsgi_isr import answer as answer_module
from wsgi_isr.answer import Answer

Browse = Callable[..., Browser]


@pytest.fixture
def client(site: Site, browse: Browse, cache: str) -> Browser:
    return browse(cache)


class TestFresh:
    def test_for_its_window_nobody_asks_the_app(
        self, site: Site, client: Browser, clock: Clock
    ) -> None:
        site.page("/x", revalidate=10)
        assert status_of(client.get("/x")) == "isr; fwd=uri-miss; stored"
        calls = site.calls("/x")
        for left in range(10, 0, -1):
            answer = client.get("/x")
            assert (answer.text, status_of(answer)) == ("a page", f"isr; hit; ttl={left}")
            clock.advance(1)
        client.isr.close()
        assert site.calls("/x") == calls

    def test_a_page_with_false_is_fresh_for_ever(
        self, site: Site, client: Browser, clock: Clock
    ) -> None:
        site.page("/x", "first", revalidate=False)
        client.get("/x")
        site.page("/x", "second", revalidate=False)
        clock.advance(50 * 365 * 86400)
        answer = client.get("/x")
        client.isr.close()
        assert (answer.text, status_of(answer)) == ("first", "isr; hit")
        assert client.get("/x").text == "first"

    def test_its_time_begins_when_its_render_begins(
        self, site: Site, client: Browser, clock: Clock
    ) -> None:
        def slow(environ: t.Any) -> str:
            if "wsgi_isr.reason" in environ:
                clock.advance(4)
            return "body"

        site.page("/", slow, revalidate=10)
        client.get("/")
        assert status_of(client.get("/")) == "isr; hit; ttl=6"


class TestStale:
    def test_the_old_page_is_served_and_the_new_one_follows(
        self, site: Site, client: Browser, clock: Clock
    ) -> None:
        site.page("/x", "old")
        client.get("/x")
        clock.advance(60)
        go = threading.Event()
        site.page("/x", lambda environ: f"new {go.wait(PATIENCE)}")
        # Nobody waits for the render.
        for _ in range(5):
            answer = client.get("/x")
            assert (answer.text, status_of(answer)) == ("old", "isr; hit; ttl=0")
        go.set()
        client.isr.close()
        answer = client.get("/x")
        assert (answer.text, status_of(answer)) == ("new True", "isr; hit; ttl=60")
        assert site.renders("/x") == 2
        assert site.environs[-1]["wsgi_isr.reason"] == "stale"

    def test_a_head_request_starts_a_regeneration_too(
        self, site: Site, browse: Browse, clock: Clock
    ) -> None:
        site.page("/x", "old")
        client = browse()
        client.get("/x")
        site.page("/x", "new")
        clock.advance(61)
        client.head("/x")
        client.isr.close()
        assert client.get("/x").text == "new"

    def test_what_is_said_of_it_changes_with_its_age(
        self, site: Site, client: Browser, clock: Clock
    ) -> None:
        site.page("/", "old", revalidate=10, expire=30)
        client.get("/")
        # So that it stays as it is.
        site.fail("/")
        said = []
        for seconds in (10.25, 0.5, 1, 17.5):
            clock.advance(seconds)
            for _ in range(3):
                answer = client.get("/")
                left = answer.headers["CDN-Cache-Control"].split("=")[-1]
                said.append((status_of(answer), answer.headers["Cache-Control"], left))
        control = "public, max-age=0, must-revalidate, s-maxage=0"
        assert said == [
            item
            for left, stale in ((0, "19"), (0, "19"), (-1, "18"), (-19, "0"))
            for item in [(f"isr; hit; ttl={left}", control, stale)] * 3
        ]

    def test_a_page_of_a_rule_is_rendered_by_its_rule(
        self, site: Site, browse: Browse, clock: Clock
    ) -> None:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"render %d" % site.renders("/")]

        site.answers["/"] = app
        client = browse(rules={"/": 10})
        assert client.get("/").text == client.get("/").text == "render 1"
        clock.advance(10)
        assert status_of(client.get("/")) == "isr; hit; ttl=0"
        client.isr.close()
        answer = client.get("/")
        assert (answer.text, status_of(answer)) == ("render 2", "isr; hit; ttl=10")


class TestExpired:
    def test_the_next_visitor_waits_for_the_new_page(
        self, site: Site, client: Browser, clock: Clock
    ) -> None:
        site.page("/x", "old", revalidate=60, expire=90)
        client.get("/x")
        site.fail("/x")
        clock.advance(89)
        assert client.get("/x").text == "old"
        client.isr.close()
        site.page("/x", "new", revalidate=60, expire=90)
        clock.advance(1)
        answer = client.get("/x")
        assert (answer.text, status_of(answer)) == ("new", "isr; fwd=stale; stored")

    def test_an_error_then_reaches_each_visitor_but_the_page_is_not_lost(
        self, site: Site, browse: Browse, listable: str, clock: Clock
    ) -> None:
        site.page("/x", "good", revalidate=60, expire=90)
        client = browse(listable)
        client.get("/x")
        site.page("/x", "oops", status="503 Service Unavailable")
        clock.advance(91)
        for _ in range(3):
            assert client.get("/x").status_code == 503
        (page,) = client.isr.pages()
        assert (page.status, page.state) == (200, "expired")
        # Each was a new attempt.
        assert site.renders("/x") == 4
        site.page("/x", "healed")
        assert client.get("/x").text == "healed"


class TestAnAnswerThatIsMadeAnewByTwoAtOnce:
    """One does not know of an invalidation yet, the other does."""

    def test_is_never_fresh_under_the_new_generation(
        self, site: Site, make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site.page("/", "old", revalidate=False)
        isr = make()
        for _ in range(2):
            visit(isr)
        site.fail("/")
        clock.advance(2)
        window_of, slot = answer_module.window_of, Answer.generation
        names: dict[int, str] = {}
        first, go_on, second, end = (threading.Event() for _ in range(4))

        def late_window(*args: t.Any) -> t.Any:
            found = window_of(*args)
            if names.get(threading.get_ident()) == "first":
                # By now it has read what invalidations have made of the page.
                first.set()
                assert go_on.wait(PATIENCE)
            return found

        def late_generation(hit: Answer, value: object) -> None:
            if names.get(threading.get_ident()) == "second":
                second.set()
                assert end.wait(PATIENCE)
            slot.__set__(hit, value)  # type: ignore[attr-defined]

        monkeypatch.setattr(answer_module, "window_of", late_window)
        monkeypatch.setattr(Answer, "generation", property(slot.__get__, late_generation))  # type: ignore[attr-defined]

        def come(name: str) -> t.Any:
            names[threading.get_ident()] = name
            return visit(isr)

        one = start(come, "first")
        assert first.wait(PATIENCE)
        isr.invalidate("/")
        other = start(come, "second")
        # It waits for the first, which goes on.
        second.wait(0.1)
        go_on.set()
        result(one)
        end.set()
        assert status_of(result(other)) == "isr; hit; ttl=0"
        assert status_of(visit(isr)) == "isr; hit; ttl=0"
