"""Builds in one store: each has its pages, and may lend them to the next one for a while."""

from __future__ import annotations

import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest
from cachelib import SimpleCache
from conftest import Browser
from conftest import Clock
from conftest import Site
from conftest import status_of
from folder import Folder
from redis_server import Redis
from redis_server import running
from steps import wait_until

from wsgi_isr import Rule
from wsgi_isr.key import PageKey
from wsgi_isr.page import Codec
from wsgi_isr.store import builds
from wsgi_isr.store import PageStore
from wsgi_isr.store.files import FileCoordination

BASE = "http://localhost"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with running(Redis(tmp_path_factory.mktemp("redis"))) as server:
        assert isinstance(server, Redis)
        yield server


@pytest.fixture
def redis(server: Redis) -> str:
    """The URL of a server with nothing in it."""
    server.do("FLUSHALL")
    return f"redis://127.0.0.1:{server.port}/0"


@pytest.fixture(params=["cachelib", "files", pytest.param("redis", marks=pytest.mark.servers)])
def shared(request: pytest.FixtureRequest, tmp_path: t.Any) -> t.Any:
    """Every kind of store that several builds may share."""
    if request.param == "cachelib":
        return SimpleCache(threshold=1000)
    if request.param == "files":
        return f"file://{tmp_path}/cache"
    return request.getfixturevalue("redis")


@pytest.fixture
def deploy(site: Site, browse: Callable[..., Browser], shared: t.Any) -> Callable[..., Browser]:
    """A visitor of a new release, which shows its name and is seen by the store at once."""

    def deploy(build: str, **options: t.Any) -> Browser:
        site.page("/", f"by {build}", revalidate=60, expire=600, tags=["all"])
        options = {"rules": {"/": 60}, "base_url": BASE, "previous_builds": 1} | options
        browser = browse(shared, build_id=build, **options)
        browser.isr._here().store.note_build()
        return browser

    return deploy


Deploy = Callable[..., Browser]


class TestByDefault:
    def test_a_build_starts_from_its_own_pages(self, deploy: Deploy) -> None:
        deploy("one", previous_builds=0).get("/")
        answer = deploy("two", previous_builds=0).get("/")
        assert (answer.text, status_of(answer)) == ("by two", "isr; fwd=uri-miss; stored")

    def test_going_back_finds_the_pages_as_they_were(self, deploy: Deploy) -> None:
        deploy("one", previous_builds=0).get("/")
        deploy("two", previous_builds=0).get("/")
        again = deploy("one", previous_builds=0)
        answer = again.get("/")
        assert (answer.text, status_of(answer)) == ("by one", "isr; hit; ttl=60")


class TestPagesOfThePreviousBuild:
    def test_are_served_as_stale_while_the_new_build_renders(self, deploy: Deploy) -> None:
        deploy("one").get("/")
        new = deploy("two")
        answer = new.get("/")
        assert (answer.text, status_of(answer)) == ("by one", "isr; hit; ttl=0")
        assert "s-maxage=0" in answer.headers["Cache-Control"]
        new.isr.close()
        answer = new.get("/")
        assert (answer.text, status_of(answer)) == ("by two", "isr; hit; ttl=60")

    def test_stay_as_they_were_for_a_way_back(self, deploy: Deploy) -> None:
        deploy("one").get("/")
        new = deploy("two")
        new.get("/")
        new.isr.close()
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

    def test_are_rendered_as_stale_ones_by_other_processes_too(
        self, deploy: Deploy, site: Site
    ) -> None:
        deploy("one").get("/")
        new = deploy("two")
        site.fail("/")
        key = PageKey("http", "localhost", "", "/", build="two")
        regenerate = new.isr._here().regeneration.regenerate
        for _ in range(4):
            regenerate(key, None)
        # With its pause after the second failure.
        assert [environ["wsgi_isr.reason"] for environ in site.environs] == ["miss"] + ["stale"] * 2

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
        assert answer.text == "by two"
        assert status_of(answer).endswith("; stored")

    def test_are_known_pages_to_a_call_on_demand(self, deploy: Deploy) -> None:
        deploy("one").get("/")
        new = deploy("two")
        (result,) = new.isr.revalidate("/", only_generated=True)
        assert result.error is None
        assert new.get("/").text == "by two"

    def test_are_prerendered_anew(self, deploy: Deploy) -> None:
        deploy("one").get("/")
        new = deploy("two")
        (result,) = new.isr.prerender(["/"])
        assert result.rendered
        assert new.get("/").text == "by two"

    def test_are_not_listed(self, deploy: Deploy) -> None:
        deploy("one").get("/")
        new = deploy("two")
        assert list(new.isr.pages()) == []

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

        def plain(environ: t.Any, start_response: t.Any) -> t.Any:
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"for you alone"]

        site.answers["/"] = plain
        assert new.get("/").text == "by one"
        new.isr.close()
        for _ in range(2):
            answer = new.get("/")
            assert (answer.text, status_of(answer)) == ("for you alone", "")

    def test_are_pages_where_only_prerendered_ones_are(self, deploy: Deploy) -> None:
        rules = {"/": Rule(revalidate=60, fallback=False)}
        list(deploy("one", rules=rules).isr.prerender(["/"]))
        assert deploy("two", rules=rules).get("/").text == "by one"


class TestWhichBuildIsThePreviousOne:
    def test_the_one_that_was_seen_first_before_it(self, deploy: Deploy) -> None:
        for build in ("one", "two"):
            deploy(build, previous_builds=0).get("/")
        assert deploy("three").get("/").text == "by two"

    def test_however_often_an_older_one_came_back(self, deploy: Deploy) -> None:
        for build in ("one", "two", "one"):
            deploy(build, previous_builds=0).get("/")
        assert deploy("three").get("/").text == "by two"

    def test_of_the_first_one_there_is_none(self, deploy: Deploy) -> None:
        one = deploy("one")
        deploy("two").get("/")
        answer = one.get("/")
        assert status_of(answer) == "isr; fwd=uri-miss; stored"

    def test_more_than_one_may_be_asked_the_newest_first(self, deploy: Deploy) -> None:
        deploy("one").get("/")
        deploy("two", previous_builds=0)
        assert deploy("three", previous_builds=2).get("/").text == "by one"

    def test_but_no_more_than_that(self, deploy: Deploy) -> None:
        deploy("one").get("/")
        deploy("two", previous_builds=0)
        assert status_of(deploy("three").get("/")) == "isr; fwd=uri-miss; stored"


class TestTheListOfBuilds:
    def test_is_bounded_and_the_oldest_goes(self) -> None:
        known: list[str] = []
        for number in range(builds.MAX_BUILDS + 1):
            known = builds.add(known, str(number))
        assert len(known) == builds.MAX_BUILDS
        assert "0" not in known
        assert builds.before(known, "3") == ["2", "1"]

    def test_on_files_outlives_all_processes(self, tmp_path: t.Any) -> None:
        path = Folder(tmp_path / "cache").path
        assert FileCoordination(str(path)).note_build("one") == []
        assert FileCoordination(str(path)).note_build("two") == ["one"]
        assert FileCoordination(str(path)).note_build("one") == []

    @pytest.mark.parametrize("damage", [b"", b"no list", b'00000000 ["x"]\n'])
    def test_that_is_damaged_begins_anew(self, tmp_path: t.Any, damage: bytes) -> None:
        folder = Folder(tmp_path / "cache")
        folder.coordination.note_build("one")
        (folder.path / "builds").write_bytes(damage)
        assert folder.coordination.note_build("two") == []
        assert folder.coordination.note_build("three") == ["two"]

    @pytest.mark.servers
    def test_on_redis_is_bounded(self, redis: str, browse: Callable[..., Browser]) -> None:
        note = browse(redis, build_id="x").isr._here().store.coordination.note_build
        for number in range(builds.MAX_BUILDS + 5):
            before = note(str(number))
        assert before[:2] == ["53", "52"]
        assert len(before) == builds.MAX_BUILDS - 1

    def test_has_builds_that_do_not_ask_for_others(
        self, site: Site, browse: Callable[..., Browser], files: str
    ) -> None:
        # Whoever switches the option on finds the pages of the build before.
        site.page("/")
        browser = browse(files, build_id="one")
        browser.get("/")
        coordination = browser.isr._here().store.coordination
        path = Path(coordination.folder, "builds")
        wait_until(lambda: path.exists() and "one" in path.read_text())
        assert coordination.note_build("two") == ["one"]


class TestMistakes:
    @pytest.mark.parametrize(("value", "error"), [(-1, ValueError), (True, TypeError)])
    def test_are_told_at_once(self, browse: t.Any, value: t.Any, error: type[Exception]) -> None:
        with pytest.raises(error, match="previous_builds"):
            browse(previous_builds=value)

    def test_a_store_that_does_not_know_of_builds_says_so(
        self, browse: Callable[..., Browser], caplog: pytest.LogCaptureFixture
    ) -> None:
        here = browse().isr._here()
        nothing: t.Any = object()
        store = PageStore(
            here.store.storage, nothing, here.memory, Codec(), "two", lambda *args: None, 1
        )
        assert store.note_build() == []
        assert "previous_builds has no effect" in caplog.text
