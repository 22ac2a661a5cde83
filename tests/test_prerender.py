"""Pages rendered ahead of their visitors, the list of what is stored, and the counters."""

from __future__ import annotations

import itertools
import typing as t
from collections.abc import Callable

import pytest
from cachelib import MemcachedCache
from conftest import Browser
from conftest import Clock
from conftest import Make
from conftest import Site
from conftest import status_of
from steps import result
from steps import start
from steps import Steps
from steps import visit
from steps import visitors

from wsgi_isr import PageInfo
from wsgi_isr import Result
from wsgi_isr import RevalidationError

Browse = Callable[..., Browser]

BASE = "http://localhost"


class TestPrerender:
    def test_renders_and_stores_every_path(self, site: Site, browse: Browse, cache: str) -> None:
        for path in ("/a", "/b", "/c"):
            site.page(path, lambda environ: environ["wsgi_isr.reason"])
        browser = browse(cache, base_url=BASE)
        results = browser.isr.prerender(["/a", "/b", "/c"])
        assert sorted(results) == [Result(f"{BASE}/{name}", 200) for name in "abc"]
        answer = browser.get("/b")
        assert (answer.text, status_of(answer)) == ("prerender", "isr; hit; ttl=60")

    def test_does_not_render_a_fresh_page_again(
        self, site: Site, browse: Browse, cache: str
    ) -> None:
        site.page("/a", "body")
        site.page("/b", "body")
        browser = browse(cache, base_url=BASE)
        browser.get("/a")
        assert len(list(browser.isr.prerender(["/a", "/b"]))) == 2
        assert (site.renders("/a"), site.renders("/b")) == (1, 1)

    def test_renders_a_stale_page_again(
        self, site: Site, browse: Browse, cache: str, clock: Clock
    ) -> None:
        site.page("/", "old", revalidate=10)
        browser = browse(cache, base_url=BASE)
        browser.get("/")
        site.page("/", "new", revalidate=10)
        clock.advance(10)
        assert list(browser.isr.prerender(["/"])) == [Result(f"{BASE}/", 200)]
        assert browser.get("/").text == "new"

    def test_goes_on_after_failures_and_tells_of_them(
        self, site: Site, browse: Browse, cache: str
    ) -> None:
        site.page("/good", "body")
        site.page("/also-good", "body")
        site.page("/refused", "body", headers=[("Set-Cookie", "a=b")])
        site.fail("/bad")
        isr = browse(cache, base_url=BASE).isr
        paths = ["/good", "/bad", "no path", "/refused", "/unknown", "/also-good"]
        results = {result.url: result for result in isr.prerender(paths)}
        assert len(results) == len(paths)
        assert results[f"{BASE}/good"].error is results[f"{BASE}/also-good"].error is None
        assert isinstance(results[f"{BASE}/bad"].error, ZeroDivisionError)
        assert isinstance(results["no path"].error, ValueError)
        assert results[f"{BASE}/refused"].error is not None
        assert results[f"{BASE}/unknown"].status == 404

    def test_gives_results_as_they_finish(self, site: Site, make: Make) -> None:
        steps = Steps()
        site.page("/slow", steps)
        site.page("/quick", "body")
        isr = make(base_url=BASE)
        results = isr.prerender(["/slow", "/quick"], workers=2)
        assert result(start(next, results)).url == f"{BASE}/quick"
        steps.release()
        assert result(start(next, results)).url == f"{BASE}/slow"

    def test_renders_as_many_at_a_time_as_it_was_told(self, site: Site, make: Make) -> None:
        steps = Steps()
        for number in range(10):
            site.page(f"/{number}", steps)
        isr = make(base_url=BASE)
        running = start(list, isr.prerender([f"/{number}" for number in range(10)], workers=3))
        steps.wait(3)
        assert steps.begun == 3
        steps.release()
        assert len(result(running)) == 10

    def test_takes_paths_one_by_one_so_that_they_may_be_without_end(
        self, site: Site, make: Make
    ) -> None:
        taken = []

        def paths() -> t.Iterator[str]:
            for number in itertools.count():
                taken.append(number)
                yield f"/{number}"

        results = make(base_url=BASE).prerender(paths(), workers=1)
        next(results)
        results.close()  # type: ignore[attr-defined]
        assert len(taken) < 10

    def test_of_no_path_is_nothing(self, make: Make) -> None:
        assert list(make(base_url=BASE).prerender([])) == []

    def test_without_a_known_host_is_told_of_each_path(self, make: Make) -> None:
        (only,) = make().prerender(["/"])
        assert isinstance(only.error, ValueError) and "set base_url" in str(only.error)

    def test_shares_a_render_with_visitors(self, site: Site, make: Make, cache: str) -> None:
        steps = Steps()
        site.page("/", steps)
        isr = make(cache, base_url=BASE, rules={"/": 60})
        running = start(list, isr.prerender(["/"]))
        steps.wait(1)
        waiting = visitors(isr, 4)
        steps.release()
        assert result(running) == [Result(f"{BASE}/", 200)]
        assert {result(visitor).text for visitor in waiting} == {"render 1"}


class TestPages:
    def test_tell_what_is_stored(
        self, site: Site, browse: Browse, listable: str, clock: Clock
    ) -> None:
        site.page("/", "x" * 1000, revalidate=10, tags=["a", "b"])
        browser = browse(listable)
        browser.get("/")
        clock.advance(4)
        (page,) = browser.isr.pages()
        assert page == PageInfo(
            url=f"{BASE}/",
            status=200,
            state="fresh",
            age=4.0,
            ttl=6,
            tags=("a", "b"),
            size=page.size,
            codings=page.codings,
            last_error=None,
            sizes=page.sizes,
        )
        assert page.sizes["identity"] == 1000
        assert tuple(page.sizes) == ("identity", *page.codings)
        assert 1000 < page.size == sum(page.sizes.values()) < 1100

    def test_tell_the_state(self, site: Site, browse: Browse, listable: str, clock: Clock) -> None:
        site.page("/window", "body", revalidate=10, expire=20)
        site.page("/tag", "body", revalidate=100, tags=["soft"])
        site.page("/hard", "body", revalidate=100, tags=["hard"])
        site.page("/false", "body", revalidate=False)
        browser = browse(listable)
        for path in ("/window", "/tag", "/hard", "/false"):
            browser.get(path)

        def states() -> list[tuple[str, int | None]]:
            pages = {page.url.removeprefix(BASE): page for page in browser.isr.pages()}
            order = ("/window", "/tag", "/hard", "/false")
            return [(pages[path].state, pages[path].ttl) for path in order]

        assert states() == [("fresh", 10), ("fresh", 100), ("fresh", 100), ("fresh", None)]
        clock.advance(12)
        browser.isr.revalidate_tag("soft")
        browser.isr.revalidate_tag("hard", expire=True)
        assert states() == [("stale", -2), ("stale", 0), ("expired", 0), ("fresh", None)]
        clock.advance(8)
        assert states()[0] == ("expired", -10)

    def test_tell_the_last_error(self, site: Site, browse: Browse, listable: str) -> None:
        site.page("/", "body")
        browser = browse(listable)
        browser.get("/")
        site.fail("/")
        with pytest.raises(RevalidationError):
            browser.isr.revalidate(f"{BASE}/")
        (page,) = browser.isr.pages()
        assert page.last_error == "the render failed"

    def test_of_other_workers_are_listed_too(self, site: Site, make: Make, files: str) -> None:
        for path in ("/a", "/b"):
            site.page(path, "body")
        one, other = make(files), make(files)
        visit(one, "/a")
        visit(other, "/b")
        assert sorted(page.url for page in one.pages()) == [f"{BASE}/a", f"{BASE}/b"]

    def test_of_other_builds_are_not(self, site: Site, make: Make, files: str) -> None:
        site.page("/", "body")
        visit(make(files, build_id="one"))
        assert list(make(files, build_id="two").pages()) == []

    def test_cannot_be_listed_where_the_backend_cannot(self, site: Site, make: Make) -> None:
        class Client:
            """As much of a memcached client as it takes."""

            def get(self, key: str) -> None:
                return None

            def set(self, key: str, value: t.Any, timeout: int) -> bool:
                return True

            def delete(self, key: str) -> bool:
                return True

        site.page("/", "body")
        isr = make(lambda: MemcachedCache(Client()))
        visit(isr)
        with pytest.raises(NotImplementedError, match="MemcachedCache cannot list"):
            list(isr.pages())


class TestStats:
    def test_count_what_this_process_did(self, site: Site, browse: Browse, clock: Clock) -> None:
        site.page("/", "body", revalidate=10)
        browser = browse()
        for _ in range(3):
            browser.get("/")
        clock.advance(10)
        browser.get("/")
        browser.isr.close()
        site.page("/", "body", headers=[("Set-Cookie", "a=b")])
        clock.advance(10)
        browser.get("/")
        browser.isr.close()
        site.fail("/")
        browser.get("/")
        browser.isr.close()
        stats = browser.isr.stats()
        assert {name: stats[name] for name in stats if "seconds" not in name} == {
            "hits": 2,
            "stale_hits": 3,
            "misses": 1,
            "renders": 4,
            "failures": 1,
            "rejections": 1,
            "store_errors": 0,
        }

    def test_tell_the_time_spent_in_renders(self, site: Site, browse: Browse) -> None:
        site.page("/", "body")
        browser = browse()
        browser.get("/")
        stats = browser.isr.stats()
        assert 0 < stats["render_seconds_max"] <= stats["render_seconds"] < 10

    def test_begin_at_nothing(self, make: Make) -> None:
        assert set(make().stats().values()) == {0}
