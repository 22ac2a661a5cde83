"""Builds in one store: each has its pages, and may lend them to the next one for a while."""

from __future__ import annotations

import typing as t
from collections.abc import Callable

import pytest
from conftest import Browser, Clock, Site, status_of
from failures import answers

from wsgi_isr import Rule

BASE = "http://localhost"
Deploy = Callable[..., Browser]


@pytest.fixture
def deploy(site: Site, browse: Callable[..., Browser], shared: str) -> Deploy:
    """A visitor of a new release, which shows its name and is in the store at once."""

    def deploy(build: str, **options: t.Any) -> Browser:
        site.page("/", f"by {build}", revalidate=60, expire=600, tags=["all"])
        options = {"rules": {"/": 60}, "base_url": BASE, "previous_builds": 1} | options
        browser = browse(shared, build_id=build, **options)
        browser.isr.store.builds(build)
        return browser

    return deploy


class TestByDefault:
    def test_a_build_starts_from_its_own_pages_and_a_way_back_finds_them(
        self, deploy: Deploy
    ) -> None:
        deploy("one", previous_builds=0).get("/")
        answer = deploy("two", previous_builds=0).get("/")
        assert (answer.text, status_of(answer)) == ("by two", "isr; fwd=uri-miss; stored")
        answer = deploy("one", previous_builds=0).get("/")
        assert (answer.text, status_of(answer)) == ("by one", "isr; hit; ttl=60")

    def test_changed_rules_are_another_build(self, site: Site, browse: t.Any, shared: str) -> None:
        site.page("/", lambda environ: f"render {site.renders()}", revalidate=False)
        browse(shared, rules={"/": 60}).get("/")
        assert browse(shared, rules={"/": 60}).get("/").text == "render 1"
        assert browse(shared, rules={"/": 90}).get("/").text == "render 2"


class TestPagesOfThePreviousBuild:
    def test_are_served_as_stale_and_stay_for_a_way_back(self, deploy: Deploy) -> None:
        deploy("one").get("/")
        new = deploy("two")
        assert list(new.isr.pages()) == []
        answer = new.get("/")
        assert (answer.text, status_of(answer)) == ("by one", "isr; hit; ttl=0")
        assert "s-maxage=0" in answer.headers["Cache-Control"]
        new.isr.close()
        answer = new.get("/")
        assert (answer.text, status_of(answer)) == ("by two", "isr; hit; ttl=60")
        answer = deploy("one").get("/")
        assert (answer.text, status_of(answer)) == ("by one", "isr; hit; ttl=60")

    def test_stay_if_the_new_build_cannot_render(
        self, deploy: Deploy, site: Site, clock: Clock
    ) -> None:
        deploy("one").get("/")
        new = deploy("two")
        site.fail("/")
        renders = site.renders("/")
        for _ in range(4):
            assert new.get("/").text == "by one"
            new.isr.close()
        # As for any stale page: at once, once more, and then after a pause.
        assert site.renders("/") == renders + 2
        site.page("/", "mended")
        clock.advance(1)
        new.get("/")
        new.isr.close()
        assert new.get("/").text == "mended"

    def test_are_not_served_past_their_expiry(self, deploy: Deploy, clock: Clock) -> None:
        deploy("one").get("/")
        clock.advance(600)
        answer = deploy("two").get("/")
        assert (answer.text, status_of(answer)) == ("by two", "isr; fwd=stale; stored")

    @pytest.mark.parametrize("how", ["tag", "pattern"])
    @pytest.mark.parametrize("when", ["before", "since"])
    def test_are_not_served_when_they_were_purged(
        self, deploy: Deploy, how: str, when: str
    ) -> None:
        old = deploy("one")
        old.get("/")
        new = deploy("two") if when == "since" else None
        if how == "tag":
            old.isr.revalidate_tag("all", expire=True)
        else:
            old.isr.invalidate("/**", expire=True)
        new = new or deploy("two")
        answer = new.get("/")
        assert answer.text == "by two" and status_of(answer).endswith("; stored")

    def test_are_rendered_by_calls(self, deploy: Deploy) -> None:
        deploy("one").get("/")
        new = deploy("two")
        (result,) = new.isr.revalidate("/", only_generated=True)
        assert result.error is None and new.get("/").text == "by two"
        newer = deploy("three")
        (result,) = newer.isr.prerender(["/"])
        assert result.outcome == "rendered" and newer.get("/").text == "by three"

    def test_that_are_gone_are_not_served(self, deploy: Deploy, site: Site) -> None:
        old = deploy("one")
        site.page("/", "no such page", status="404 Not Found")
        old.get("/")
        # The new build may well have it.
        answer = deploy("two").get("/")
        assert (answer.status_code, answer.text) == (200, "by two")

    def test_that_are_no_pages_any_more_are_not_served_again(
        self, deploy: Deploy, site: Site
    ) -> None:
        deploy("one", rules=None).get("/")
        new = deploy("two", rules=None)
        site.answers["/"] = answers("200 OK", body=b"for you alone")
        assert new.get("/").text == "by one"
        new.isr.close()
        for _ in range(2):
            assert new.get("/").text == "for you alone"

    def test_are_pages_where_only_prerendered_ones_are(self, deploy: Deploy) -> None:
        rules = {"/": Rule(revalidate=60, fallback=False)}
        list(deploy("one", rules=rules).isr.prerender(["/"]))
        assert deploy("two", rules=rules).get("/").text == "by one"


class TestWhichBuildIsThePreviousOne:
    def test_the_one_that_was_seen_first_before_it_however_often_an_older_one_came_back(
        self, deploy: Deploy
    ) -> None:
        one = deploy("one", previous_builds=0)
        one.get("/")
        for build in ("two", "one"):
            deploy(build, previous_builds=0).get("/")
        assert deploy("three").get("/").text == "by two"
        # Of the first one there is none.
        one.isr.prune(everything=True)
        deploy("two").get("/")
        assert status_of(deploy("one").get("/")) != "isr; hit; ttl=0"

    def test_as_many_as_were_asked_for_the_newest_first(self, deploy: Deploy) -> None:
        deploy("one").get("/")
        deploy("two", previous_builds=0)
        assert status_of(deploy("three").get("/")) == "isr; fwd=uri-miss; stored"
        assert deploy("four", previous_builds=3).get("/").text == "by three"

    def test_others_can_be_pruned(self, deploy: Deploy) -> None:
        for build in ("one", "two", "three"):
            new = deploy(build, previous_builds=0)
            new.get("/")
        assert new.isr.prune(keep_builds=2) == 1
        assert status_of(deploy("two", previous_builds=0).get("/")) == "isr; hit; ttl=60"
        answer = deploy("one", previous_builds=0).get("/")
        assert status_of(answer) == "isr; fwd=uri-miss; stored"


@pytest.mark.parametrize(("value", "error"), [(-1, ValueError), (True, TypeError)])
def test_a_mistake_is_an_error_at_once(browse: t.Any, value: t.Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="previous_builds"):
        browse(previous_builds=value)
