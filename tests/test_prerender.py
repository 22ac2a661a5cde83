"""Pages rendered ahead of their visitors, and the list of what is stored."""

from __future__ import annotations

import time
import typing as t
from collections.abc import Callable

import pytest
from conftest import Browser, Clock, Make, Site, status_of
from steps import Steps, result, start, visit, visitors

from wsgi_isr import PageInfo, Result, RevalidationError, Rule

Browse = Callable[..., Browser]

BASE = "http://localhost"


class TestPrerender:
    def test_renders_and_stores_every_path_unless_it_is_fresh(
        self, site: Site, browse: Browse, cache: t.Any, clock: Clock
    ) -> None:
        site.page("/a", revalidate=10)
        for path in ("/b", "/c"):
            site.page(path, lambda environ: environ["wsgi_isr.reason"], revalidate=100)
        browser = browse(cache, base_url=BASE)
        outcomes = {r.url[-1]: r.outcome for r in browser.isr.prerender(["/a", "/b"])}
        assert outcomes == {"a": "rendered", "b": "rendered"}
        clock.advance(10)
        outcomes = {r.url[-1]: r.outcome for r in browser.isr.prerender(["/a", "/b", "/c"])}
        assert outcomes == {"a": "rendered", "b": "skipped", "c": "rendered"}
        assert (site.renders("/a"), site.renders("/b")) == (2, 1)
        answer = browser.get("/c")
        assert (answer.text, status_of(answer)) == ("prerender", "isr; hit; ttl=100")

    def test_renders_all_declared_variants(self, site: Site, browse: Browse, cache: t.Any) -> None:
        site.page("/", lambda environ: environ["HTTP_ACCEPT_LANGUAGE"])
        rules = {"/": Rule(vary={"Accept-Language": ["en", "de", "fr"]})}
        browser = browse(cache, base_url=BASE, rules=rules)
        assert len(list(browser.isr.prerender(["/"]))) == 3
        for language in ("en", "de", "fr"):
            answer = browser.get("/", headers={"Accept-Language": language})
            assert (answer.text, status_of(answer)) == (language, "isr; hit; ttl=60")

    def test_goes_on_after_failures_and_gives_them(
        self, site: Site, browse: Browse, cache: t.Any
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
        assert (results[f"{BASE}/unknown"].status, results[f"{BASE}/unknown"].outcome) == (
            404,
            "gone",
        )

    def test_renders_as_many_at_a_time_as_it_may_and_gives_results_as_they_end(
        self, site: Site, make: Make
    ) -> None:
        steps = Steps()
        site.page("/quick", "body")
        for number in range(9):
            site.page(f"/{number}", steps)
        isr = make(base_url=BASE)
        results = isr.prerender(["/0", "/quick", *(f"/{n}" for n in range(1, 9))], workers=3)
        assert result(start(next, results)).url == f"{BASE}/quick"
        running = start(list, results)
        steps.wait(3)
        assert steps.begun == 3
        steps.release()
        assert len(result(running)) == 9

    def test_takes_paths_one_by_one_so_that_they_may_be_without_end(self, make: Make) -> None:
        taken = []

        def paths() -> t.Iterator[str]:
            for number in range(10_000):
                taken.append(number)
                yield f"/{number}"

        results = make(base_url=BASE).prerender(paths(), workers=1)
        next(results)
        results.close()  # type: ignore[attr-defined]
        assert len(taken) < 10

    def test_of_no_path_or_without_a_host_renders_nothing(self, make: Make) -> None:
        assert list(make(base_url=BASE).prerender([])) == []
        (only,) = make().prerender(["/"])
        assert isinstance(only.error, ValueError) and "set base_url" in str(only.error)

    def test_renders_nothing_while_the_library_is_off(self, site: Site, make: Make) -> None:
        site.page("/a")
        isr = make(base_url=BASE, enabled=False)
        assert list(isr.prerender(["/a"])) == [Result(f"{BASE}/a", None, None, "skipped")]
        assert site.environs == []

    def test_shares_a_render_with_visitors(self, site: Site, make: Make, cache: t.Any) -> None:
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
    def test_say_what_is_stored(
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
            seconds=page.seconds,
            renders=page.renders,
            used_at=page.used_at,
        )
        assert 0 < page.used_at <= time.time() + 1
        assert page.sizes["identity"] == 1000 and "gzip" in page.codings
        assert tuple(page.sizes) == ("identity", *page.codings)
        assert 1000 < page.size == sum(page.sizes.values()) < 1100

    def test_say_the_state(self, site: Site, browse: Browse, listable: str, clock: Clock) -> None:
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

    def test_say_the_last_error_also_of_a_page_that_never_rendered_well(
        self, site: Site, browse: Browse, listable: str
    ) -> None:
        site.page("/", "body")
        browser = browse(listable)
        browser.get("/")
        for path in ("/", "/never"):
            site.fail(path)
            with pytest.raises(RevalidationError):
                browser.isr.revalidate(BASE + path)
        pages = {page.url: page for page in browser.isr.pages()}
        assert pages[f"{BASE}/"].last_error == "the render failed"
        never = pages[f"{BASE}/never"]
        assert (never.state, never.last_error) == ("failed", "the render failed")

    def test_are_those_of_all_workers_and_of_this_build(
        self, site: Site, make: Make, shared: str
    ) -> None:
        for path in ("/a", "/b"):
            site.page(path, "body")
        one, other = make(shared), make(shared)
        visit(one, "/a")
        visit(other, "/b")
        assert sorted(page.url for page in one.pages()) == [f"{BASE}/a", f"{BASE}/b"]
        assert list(make(shared, build_id="two").pages()) == []

    @pytest.mark.servers
    def test_cannot_be_listed_where_the_store_cannot(
        self, site: Site, make: Make, memcached_process: t.Any
    ) -> None:
        site.page("/", "body")
        isr = make(memcached_process.url)
        visit(isr)
        with pytest.raises(NotImplementedError, match="cannot"):
            list(isr.pages())
