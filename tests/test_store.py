"""What every store has to do, whatever it is made of and however it is handed over."""

from __future__ import annotations

import typing as t

import pytest
from conftest import Clock
from conftest import Make
from conftest import open_cache
from conftest import Site
from conftest import status_of
from conftest import stores
from steps import Steps
from steps import visit
from steps import wait_until

from wsgi_isr import ISRMiddleware
from wsgi_isr import RevalidationError
from wsgi_isr.key import PageKey

HOME = "http://localhost/"
COLD = "isr; fwd=uri-miss; stored"
HIT = "isr; hit"
STALE = "isr; hit; ttl=0"
EXPIRED = "isr; fwd=stale; stored"
KEY = PageKey("http", "localhost", "", "/")

SHARED = ("files", "FileSystemCache", "callable", "redis", "valkey", "memcached")
CANNOT_LIST = ("FileSystemCache", "callable", "memcached")


@pytest.fixture(params=stores("memory", "SimpleCache", *SHARED))
def cache(request: pytest.FixtureRequest) -> t.Any:
    """Every kind of store, and every way to hand it over."""
    return open_cache(request, request.param)


@pytest.fixture(params=stores(*SHARED))
def shared(request: pytest.FixtureRequest) -> t.Any:
    """Those whose pages outlive the process."""
    return open_cache(request, request.param)


@pytest.fixture
def isr(cache: t.Any, make: Make) -> ISRMiddleware:
    return make(cache, base_url="http://localhost")


def told(isr: ISRMiddleware, path: str = "/") -> tuple[int, str, str]:
    """What a visitor gets, and all that it sets off."""
    answer = visit(isr, path)
    isr.close()
    return answer.status_code, status_of(answer), answer.text


class TestAPage:
    def test_is_rendered_kept_served_stale_and_renewed(
        self, site: Site, isr: ISRMiddleware, clock: Clock
    ) -> None:
        site.page("/", "one", revalidate=10)
        assert told(isr) == (200, COLD, "one")
        site.page("/", "two", revalidate=10)
        clock.advance(4)
        assert told(isr) == (200, "isr; hit; ttl=6", "one")
        clock.advance(6)
        assert told(isr) == (200, STALE, "one")
        assert told(isr) == (200, "isr; hit; ttl=10", "two")
        assert site.renders() == 2

    def test_is_not_served_past_its_expiry(
        self, site: Site, isr: ISRMiddleware, clock: Clock
    ) -> None:
        site.page("/", "one", revalidate=10, expire=20)
        told(isr)
        site.page("/", "two", revalidate=10, expire=20)
        clock.advance(20)
        assert told(isr) == (200, EXPIRED, "two")

    def test_without_memory_is_read_from_the_store(
        self, site: Site, shared: t.Any, make: Make
    ) -> None:
        site.page("/", "one", revalidate=False)
        isr = make(shared, memory_size=0)
        told(isr)
        assert told(isr) == (200, HIT, "one")
        assert site.renders() == 1

    def test_has_any_bytes_there_are(self, site: Site, shared: t.Any, make: Make) -> None:
        body = bytes(range(256)) * 300 + b"0123456789"

        def answer(environ: t.Any, start_response: t.Any) -> list[bytes]:
            start_response("200 OK", [("Content-Type", "image/x"), ("ISR-Revalidate", "60")])
            return [body]

        site.answers["/"] = answer
        isr = make(shared, memory_size=0)
        assert visit(isr).data == visit(isr).data == body

    def test_of_digits_alone_is_no_number(self, site: Site, shared: t.Any, make: Make) -> None:
        site.page("/", "12345", revalidate=60)
        isr = make(shared, memory_size=0)
        told(isr)
        assert told(isr)[2] == "12345"


class TestTheLastGoodPageStays:
    """Promise 3."""

    @pytest.mark.parametrize("status", [None, "500 Oh", "403 No"])
    def test_when_renders_fail(
        self, site: Site, isr: ISRMiddleware, clock: Clock, status: str | None
    ) -> None:
        site.page("/", "good", revalidate=10)
        told(isr)
        if status is None:
            site.fail("/")
        else:
            site.page("/", "bad", revalidate=10, status=status)
        clock.advance(11)
        for _ in range(4):
            clock.advance(2)
            assert told(isr)[0::2] == (200, "good")
        with pytest.raises(RevalidationError):
            isr.revalidate("/")
        assert told(isr)[0::2] == (200, "good")
        site.page("/", "new", revalidate=10)
        clock.advance(31)
        told(isr)
        assert told(isr) == (200, "isr; hit; ttl=10", "new")

    def test_and_who_failed_is_known_to_others(
        self, site: Site, shared: t.Any, make: Make, clock: Clock
    ) -> None:
        one, other = make(shared), make(shared)
        site.page("/", "good", revalidate=10)
        told(one)
        site.fail("/")
        clock.advance(11)
        for _ in range(3):
            told(one)
        renders = site.renders()
        assert told(other)[0::2] == (200, "good")
        assert site.renders() == renders, "it was to pause for a second"


class TestGone:
    """Promise 4."""

    @pytest.mark.parametrize("status", ["404 Not Found", "410 Gone"])
    def test_a_page_that_is_gone_stays_so_and_comes_back(
        self, site: Site, isr: ISRMiddleware, status: str
    ) -> None:
        site.page("/", "there", revalidate=False)
        told(isr)
        site.page("/", "gone", revalidate=False, status=status)
        isr.revalidate("/")
        assert told(isr) == told(isr) == (int(status[:3]), HIT, "gone")
        site.page("/", "back", revalidate=False)
        isr.revalidate("/")
        assert told(isr) == (200, HIT, "back")

    def test_also_for_others(self, site: Site, shared: t.Any, make: Make) -> None:
        site.page("/", "gone", revalidate=False, status="404 Not Found")
        told(make(shared))
        assert told(make(shared)) == (404, HIT, "gone")
        assert site.renders() == 1


class TestOnDemand:
    """Promise 5."""

    def test_means_after(self, site: Site, isr: ISRMiddleware) -> None:
        site.page("/", "old", revalidate=False)
        told(isr)
        for number in range(5):
            site.page("/", f"edit {number}", revalidate=False)
            assert isr.revalidate("/")[0].status == 200
            assert told(isr) == (200, HIT, f"edit {number}")

    @pytest.mark.parametrize("by", ["tag", "pattern", "host"])
    @pytest.mark.parametrize("expire", [False, True], ids=["soft", "hard"])
    def test_all_that_is_meant_is_marked_and_nothing_else(
        self, site: Site, isr: ISRMiddleware, by: str, expire: bool
    ) -> None:
        for path in ("/blog/1", "/blog/2"):
            site.page(path, "old", revalidate=False, tags=["blog"])
        site.page("/about", "old", revalidate=False, tags=["other"])
        for path in site.answers:
            told(isr, path)
        for path in list(site.answers):
            site.page(path, "new", revalidate=False, tags=["blog"])
        if by == "tag":
            isr.revalidate_tag("blog", expire=expire)
        elif by == "pattern":
            isr.invalidate("/blog/*", expire=expire)
        else:
            isr.invalidate("/blog/1", "/blog/2", expire=expire)
        first = (200, EXPIRED, "new") if expire else (200, STALE, "old")
        for path in ("/blog/1", "/blog/2"):
            assert told(isr, path) == first
            assert told(isr, path) == (200, HIT, "new")
        assert told(isr, "/about") == (200, HIT, "old")

    def test_a_render_that_began_before_never_wins(self, site: Site, isr: ISRMiddleware) -> None:
        steps = Steps()
        site.page("/", steps, revalidate=False)
        steps.hang(2)
        told(isr)
        isr.invalidate("/")
        visit(isr)
        steps.wait(2)
        isr.revalidate("/")
        assert visit(isr).text == "render 3"
        steps.release()
        isr.close()
        assert told(isr) == (200, HIT, "render 3")

    def test_a_page_that_was_removed_meanwhile_is_not_served_from_another_memory(
        self, site: Site, shared: t.Any, make: Make
    ) -> None:
        one, other = (make(shared, base_url="http://localhost") for _ in range(2))
        site.page("/", "old", revalidate=False)
        told(other)
        assert told(one) == (200, HIT, "old")
        site.page("/", "new", revalidate=False)
        other.revalidate("/")
        other._here().store.storage.delete(KEY.name)
        follow(one, other)
        assert told(one) == (200, COLD, "new")

    def test_a_page_that_was_damaged_meanwhile_neither(
        self, site: Site, shared: t.Any, make: Make
    ) -> None:
        one, other = (make(shared, base_url="http://localhost") for _ in range(2))
        site.page("/", "old", revalidate=False)
        told(other)
        told(one)
        site.page("/", "new", revalidate=False)
        other.revalidate("/")
        other._here().store.storage.set(KEY.name, b"damaged")
        follow(one, other)
        assert told(one)[2] == "new"

    def test_a_page_that_is_only_old_is_served_from_memory_though_it_was_removed(
        self, site: Site, shared: t.Any, make: Make, clock: Clock
    ) -> None:
        isr = make(shared)
        site.page("/", "old", revalidate=10)
        told(isr)
        isr._here().store.storage.delete(KEY.name)
        clock.advance(10)
        assert told(isr) == (200, STALE, "old")

    def test_what_the_store_never_took_is_served_from_memory(
        self, site: Site, shared: t.Any, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        isr = make(shared)
        site.page("/", "old", revalidate=False, tags=["t"])
        storage = isr._here().store.storage
        with monkeypatch.context() as patch:
            patch.setattr(storage, "set", failing)
            patch.setattr(isr._here().store.coordination, "swap", failing)
            told(isr)
        wait_until(lambda: not isr._here().store._breaker.open)
        isr.revalidate_tag("t")
        assert told(isr)[1:] == (STALE, "old")


def follow(one: ISRMiddleware, other: ISRMiddleware) -> None:
    """Over a network others follow within a second."""
    there = other._here().store.coordination.epochs()

    def followed() -> bool:
        here = one._here().store.coordination.epochs()
        return (here.lineage, here.sequence) >= (there.lineage, there.sequence)

    wait_until(followed)


def failing(*args: object) -> t.Any:
    raise OSError("no space left on device")


class TestARestart:
    """Promise 6: a new middleware on the same store."""

    def test_loses_nothing(self, site: Site, shared: t.Any, make: Make, clock: Clock) -> None:
        pages = {"/hour": 3600, "/soft": False, "/hard": False, "/false": False, "/gone": False}
        for path, window in pages.items():
            status = "404 Not Found" if path == "/gone" else "200 OK"
            site.page(path, "old", revalidate=window, tags=[path], status=status)
        before = make(shared)
        for path in pages:
            told(before, path)
        before.revalidate_tag("/soft")
        before.revalidate_tag("/hard", expire=True)
        clock.advance(600)
        for path, window in pages.items():
            site.page(path, "new", revalidate=window, tags=[path])
        after = make(shared)
        assert told(after, "/hour") == (200, "isr; hit; ttl=3000", "old")
        assert told(after, "/false") == (200, HIT, "old")
        assert told(after, "/gone") == (404, HIT, "old")
        assert told(after, "/soft") == (200, STALE, "old")
        assert told(after, "/hard") == (200, EXPIRED, "new")
        after.revalidate_tag("/false")
        assert told(after, "/false") == (200, STALE, "old")


class TestListing:
    def test_tells_what_there_is_or_says_that_it_cannot(
        self, site: Site, isr: ISRMiddleware, request: pytest.FixtureRequest
    ) -> None:
        for path in ("/a", "/b"):
            site.page(path, tags=["t"])
            told(isr, path)
        if request.node.callspec.params["cache"] in CANNOT_LIST:
            with pytest.raises(NotImplementedError, match="cannot list"):
                list(isr.pages())
        else:
            found = sorted((page.url, page.state, page.tags) for page in isr.pages())
            assert found == [(f"{HOME}{name}", "fresh", ("t",)) for name in ("a", "b")]
