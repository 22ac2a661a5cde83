"""A page that its app no longer offers to everybody is gone at once, in all workers."""

from __future__ import annotations

import logging
import typing as t

import pytest
from conftest import Clock, Make, Site, status_of
from failures import LIMIT, WITHDRAWALS, Answer, answers, withdrawing
from steps import visit, wait_until
from werkzeug.middleware.lint import WSGIWarning

from wsgi_isr import ISRMiddleware, Result, RevalidationError
from wsgi_isr.signals import page_withdrawn

HOME = "http://localhost/"
# It is Lint's to complain of the app, and ours to live with it.
pytestmark = pytest.mark.filterwarnings(f"ignore::{WSGIWarning.__module__}.WSGIWarning")


@pytest.fixture
def withdrawn() -> t.Iterator[list[t.Any]]:
    """What receivers of the signal get."""
    heard: list[t.Any] = []

    def receive(sender: object, **extra: t.Any) -> None:
        heard.append((sender, extra["url"], extra["reason"]))

    with page_withdrawn.connected_to(receive):
        yield heard


def published(site: Site, isr: ISRMiddleware) -> None:
    site.page("/", "for everybody", revalidate=10, tags=["post"])
    visit(isr)


class TestAnAnswerThatIsNoPage:
    @withdrawing
    def test_removes_the_page_on_demand(
        self,
        site: Site,
        make: Make,
        listable: str,
        withdrawn: list[t.Any],
        caplog: pytest.LogCaptureFixture,
        answer: Answer,
        reason: str,
    ) -> None:
        isr = make(listable, max_body_size=LIMIT)
        published(site, isr)
        site.answers["/"] = answer
        (result,) = isr.revalidate(HOME)
        assert (result.url, result.error, result.outcome) == (HOME, None, "withdrawn")
        assert list(isr.pages()) == []
        assert withdrawn == [(isr, HOME, reason)]
        (record,) = [r for r in caplog.records if "withdrawn" in r.getMessage()]
        assert record.levelno == logging.WARNING and HOME in record.getMessage()
        assert isr.stats()["failures"] == 0
        assert visit(isr).text != "for everybody"
        published(site, isr)
        assert isr.revalidate(HOME) == [Result(HOME, 200)]
        assert (visit(isr).text, status_of(visit(isr))) == ("for everybody", "isr; hit; ttl=10")

    @pytest.mark.parametrize("how", ["age", "tag", "expired tag", "pattern"])
    def test_removes_the_page_however_its_render_came_about(
        self, site: Site, make: Make, cache: t.Any, clock: Clock, how: str
    ) -> None:
        isr = make(cache)
        published(site, isr)
        site.answers["/"], _ = WITHDRAWALS["sets a cookie"]
        if how == "age":
            clock.advance(10)
        elif how == "pattern":
            isr.invalidate("/**")
        else:
            isr.revalidate_tag("post", expire=how == "expired tag")
        if how != "expired tag":
            assert visit(isr).text == "for everybody"
            isr.close()
        for _ in range(2):
            answer = visit(isr)
            assert answer.text == "bad" and answer.headers["Set-Cookie"] == "session=1"
            assert answer.headers["Cache-Control"] == "private, no-store"
            assert "hit" not in status_of(answer)

    def test_removes_it_in_all_workers(self, site: Site, make: Make, shared: str) -> None:
        one, other = make(shared), make(shared)
        published(site, one)
        assert visit(other).text == "for everybody"
        site.answers["/"], _ = WITHDRAWALS["answers 401"]
        one.revalidate(HOME)
        assert visit(one).status_code == 401
        # At once on one machine, within a second over a network.
        if shared.startswith("file:"):
            assert visit(other).status_code == 401
        wait_until(lambda: visit(other).status_code == 401)
        assert visit(make(shared)).status_code == 401

    def test_is_not_given_to_others_and_counts_for_a_minute(
        self, site: Site, make: Make, clock: Clock
    ) -> None:
        isr = make(rules={"/": 10})
        published(site, isr)

        def login(environ: t.Any, start_response: t.Any) -> t.Any:
            who = environ.get("HTTP_AUTHORIZATION", "nobody")
            start_response("200 OK", [("Content-Type", "text/plain"), ("Set-Cookie", who)])
            return [who.encode()]

        site.answers["/"] = login
        isr.revalidate(HOME)
        for user in ("a=1", "b=2"):
            answer = visit(isr, headers={"Authorization": user})
            assert (answer.text, answer.headers["Set-Cookie"]) == (user, user)
        site.page("/", "public again", revalidate=10)
        clock.advance(61)
        assert visit(isr).text == "public again"
        assert status_of(visit(isr)) == "isr; hit; ttl=10"

    def test_leaves_what_never_was_a_page_without_a_signal(
        self, site: Site, make: Make, withdrawn: list[t.Any]
    ) -> None:
        site.answers["/"], _ = WITHDRAWALS["sets a cookie"]
        isr = make(rules={"/": 10})
        visit(isr)
        assert withdrawn == []


class TestContentThatIsGone:
    def test_is_a_result_and_no_withdrawal(
        self, site: Site, make: Make, cache: t.Any, withdrawn: list[t.Any]
    ) -> None:
        isr = make(cache)
        published(site, isr)
        site.answers["/"] = answers("404 Not Found", body=b"gone")
        assert isr.revalidate(HOME) == [Result(HOME, 404, None, "gone")]
        answer = visit(isr)
        assert (answer.status_code, status_of(answer)) == (404, "isr; hit; ttl=10")
        assert withdrawn == []

    @pytest.mark.parametrize("header", [("Set-Cookie", "a=b"), ("Cache-Control", "private")])
    def test_is_for_one_visitor_where_its_answer_says_so(
        self, site: Site, make: Make, listable: str, header: tuple[str, str]
    ) -> None:
        isr = make(listable)
        published(site, isr)
        site.answers["/"] = answers("404 Not Found", header, body=b"gone")
        assert isr.revalidate(HOME) == [Result(HOME, 404, None, "withdrawn")]
        assert list(isr.pages()) == []
        assert (visit(isr).status_code, status_of(visit(isr))) == (404, "")


def test_a_failure_does_not_outlive_a_page_that_is_withdrawn(
    site: Site, make: Make, listable: str
) -> None:
    isr = make(listable)
    published(site, isr)
    site.fail("/")
    with pytest.raises(RevalidationError):
        isr.revalidate(HOME)
    assert next(isr.pages()).last_error
    site.answers["/"] = answers("403 Forbidden")
    isr.revalidate(HOME)
    assert list(isr.pages()) == []
    assert isr.explain(HOME).state == "unknown"
